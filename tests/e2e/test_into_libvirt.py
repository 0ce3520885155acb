"""One VM out of a vSphere into libvirt, through every process."""
import os
import pathlib
import xml.etree.ElementTree as ET

import pytest

from tests.harness import guest, images
from tests.harness.bridge import BRIDGE, Program
from tests.harness.vsphere import make_image, vm
from tests.harness.wait import wait_for

MB = 1 << 20
NAME = "web 'ü' <1> & 2"


@pytest.fixture
def disk(tmp_path):
    return make_image(tmp_path / "disk.raw", 16 * MB, [(0, MB), (9 * MB + 512, 2 * MB)])


@pytest.fixture
def make(make_suite, make_vsphere, disk):
    """Function: the suite; settings go into the section libvirt."""

    def make(**libvirt):
        suite = make_suite(config={"libvirt": libvirt})
        suite.add_vsphere(make_vsphere([vm("web", disk), vm(NAME, disk)]))
        return suite

    return make


def convert(**libvirt):
    return {"hyper2kvm_integration": {"enabled": True, "daemon_mode": False}, "libvirt": libvirt}


def test_an_export_ends_in_a_domain_that_runs(make, libvirtd, disk):
    suite = make(uri=libvirtd.uri, pool="images", network="user", domain_type="qemu")
    job = suite.client.submit(vm_path=NAME, **convert(start=True, autostart=True))
    result = suite.wait_job(job, "completed")["result"]
    domain = result["libvirt_domain"]
    assert (domain["name"], domain["state"], domain["autostart"]) == (NAME, "running", True)
    assert domain["source"]["vm_name"] == NAME and domain["source"]["vm_id"]
    assert domain["export_path"] == result["output_path"]
    assert result["conversion"]["path_used"] == "builtin" and not domain["guest_fixed"]
    xml = ET.fromstring(libvirtd.domains()[NAME])
    files = [d.find("source").get("file") for d in xml.findall("devices/disk")]
    assert [v["path"] for v in domain["volumes"]] == files
    assert xml.find("metadata/{urn:hypersdk:import}import").get("job") == job
    libvirtd.connect().lookupByName(NAME).destroy()
    images.compare(disk, files[0], "qcow2")
    verify = suite.client.post("/api/v1/exports/verify", {"path": result["output_path"]},
                               status=202)["job_id"]
    assert suite.wait_job(verify, "completed")["result"]["intact"], "the export was written to"


def test_an_import_fails_alone_and_is_tried_again_alone(make, libvirtd):
    """Export and conversion stay; a retry goes on with the import."""
    suite = make(uri=libvirtd.uri, network="user", domain_type="qemu")
    job = suite.client.submit(vm_path="web", **convert(pool="later"))
    failed = suite.wait_job(job, "failed")
    assert failed["error_code"] == "not_found" and "storage pool 'later'" in failed["error"]
    assert failed["phase"] == "importing"
    assert pathlib.Path(failed["result"]["output_path"], "export.json").exists()
    (libvirtd.pool / "more").mkdir(mode=0o777)
    os.chmod(libvirtd.pool / "more", 0o777)
    pool = libvirtd.connect().storagePoolDefineXML(
        f"<pool type='dir'><name>later</name><target><path>{libvirtd.pool}/more</path></target>"
        "</pool>")
    pool.create()
    wait_for(lambda: suite.client.request("POST", f"/api/v1/jobs/{job}/retry", {}).ok, 60)
    assert suite.wait_job(job, "completed")["result"]["libvirt_domain"]["name"] == "web"
    kinds = suite.sql("SELECT kind, epoch FROM tasks WHERE job_id = %s ORDER BY ordinal", job)
    assert [(k["kind"], k["epoch"]) for k in kinds] == [("export", 1), ("convert", 1),
                                                        ("import", 2)]


def test_an_export_of_the_catalogue_is_imported_later(make, libvirtd):
    suite = make(uri=libvirtd.uri, pool="images", network="user", domain_type="qemu")
    job = suite.client.submit(vm_path="web", format="qcow2")
    suite.wait_job(job, "completed")
    export = suite.client.get("/api/v1/exports")["exports"][0]
    answer = suite.client.post("/import-to-kvm", {"export_id": export["export_id"], "cpus": 3,
                                                  "memory": 128}, status=202)
    assert answer["domain"] == "web" and answer["status"] == "pending"
    done = suite.wait_job(answer["job_id"], "completed")
    domain = done["result"]["libvirt_domain"]
    assert (domain["cpus"], domain["memory_mb"], domain["state"]) == (3, 128, "shutoff")
    assert done["kind"] == "import" and done["vm_name"] and set(libvirtd.domains()) == {"web"}
    listed = suite.client.get("/api/v1/imports")["jobs"]
    assert [j["job_id"] for j in listed] == [answer["job_id"]]
    assert wait_for(lambda: suite.client.get("/capabilities")["features"]["libvirt_import"], 60)


def test_requests_that_cannot_work_are_refused(make):
    suite = make(uri="test:///default")
    image = suite.exports / "a.qcow2"
    image.write_bytes(b"")
    machine = {"vm_name": "a", "memory_mb": 64, "vcpus": 1}
    for body, status, field in [
            ({}, 400, "image_path"),
            ({"image_path": str(image)}, 400, "vm_name"),
            ({"image_path": str(image), "vm_name": "a", "memory": 1}, 400, "vcpus"),
            ({"image_path": "/etc/passwd", **machine}, 422, "image_path"),
            ({"disks": [str(image), "../x"], **machine}, 422, "disks"),
            ({"image_path": str(image), "disks": [str(image)], **machine}, 400, "disks"),
            ({"manifest_path": "/etc/passwd"}, 422, "manifest_path"),
            ({"manifest_path": "m", "export_id": "x"}, 400, "manifest_path"),
            ({"image_path": str(image), **machine, "firmware": "efi"}, 400, "firmware"),
            ({"image_path": str(image), **machine, "uri": "qemu:///system"}, 422, "uri"),
            ({"image_path": str(image), **machine, "if_exists": "overwrite"}, 400, "if_exists"),
            ({"image_path": str(image), **machine, "network": "a", "bridge": "b"}, 400, "bridge"),
            ({"image_path": str(image), **machine, "disk": "b"}, 400, "disk")]:
        answer = suite.client.request("POST", "/api/v1/imports", body)
        assert (answer.status_code, answer.json().get("field")) == (status, field), (body, answer.text)
    assert suite.client.request("POST", "/import/kvm", {"export_id": "none"}).status_code == 404
    answer = suite.client.request("POST", "/jobs/submit", {"vm": "web", "libvirt": {}})
    assert answer.status_code == 422 and answer.json()["field"] == "libvirt"
    assert suite.client.get("/api/v1/imports")["jobs"] == []


@pytest.mark.parametrize("firmware", ["bios", "uefi"] if os.environ.get("HSDK_BOOTS") == "all"
                         else ["bios"])
def test_what_was_imported_boots_in_libvirt(make_suite, make_vsphere, libvirtd, firmware):
    if firmware == "uefi" and not (guest.OVMF / "OVMF_CODE_4M.fd").exists():
        pytest.skip("the package ovmf is not installed")
    suite = make_suite(config={"libvirt": {"uri": libvirtd.uri, "pool": "images", "network": "user",
                                           "domain_type": "qemu"}})
    suite.add_vsphere(make_vsphere([vm("demo guest", guest.build(), firmware=guest.VSPHERE[firmware])]))
    job = suite.client.submit(vm_path="demo guest", **convert())
    domain = suite.wait_job(job, "completed", deadline=180)["result"]["libvirt_domain"]
    if firmware == "bios":
        assert [d["bus"] for d in domain["disks"]] == ["scsi"], "as it had under vSphere"
        marker = guest.DATA_OK
    else:  # firmware, kernel and initramfs come from the disk; the guest has no driver for SATA
        assert [d["bus"] for d in domain["disks"]] == ["sata"]
        marker = guest.UP + " firmware=uefi"
    assert f"firmware={firmware}" in libvirtd.boot("demo guest", marker)


def test_an_import_goes_to_the_bridge_that_has_the_images(make, libvirtd, disk, tmp_path):
    """Each bridge publishes on a disk of its own."""
    suite = make(uri=libvirtd.uri, pool="images", network="user", domain_type="qemu")
    program = Program(tmp_path / "h2k", held=True)
    for name in (BRIDGE, f"{BRIDGE}-2"):
        private = tmp_path / name
        private.mkdir()
        settings = suite.config(name)
        settings["hyper2kvm"].update(path=str(program.path), output_dir=str(private))
        settings["export"]["concurrent_exports"] = 3  # of six at a time
        if name in suite.processes:
            suite[name].stop()
        suite.add(name, settings)
    wait_for(lambda: suite.ready(f"{BRIDGE}-2") and suite.ready(BRIDGE), 60)
    jobs = [suite.client.submit(vm_path="web", **convert(if_exists="rename")) for _ in range(6)]
    wait_for(lambda: len(program.calls()) == 6, 60, suite.tails)
    (program.directory / "go").touch()
    used = set()
    for job in jobs:
        result = suite.wait_job(job, "completed")["result"]
        rows = suite.sql("SELECT kind, worker, volume FROM tasks WHERE job_id = %s ORDER BY ordinal", job)
        assert [r["kind"] for r in rows] == ["export", "convert", "import"]
        assert rows[1]["worker"] == rows[2]["worker"]
        assert result["conversion"]["output_files"][0].startswith(str(tmp_path / BRIDGE))
        used.add(rows[1]["worker"])
    assert len(used) == 2, "both were to work"
    assert len(libvirtd.domains()) == 6

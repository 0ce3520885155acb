"""Conversions and manifests over REST, through every process."""
import json
import pathlib
import subprocess
import xml.etree.ElementTree as ET

import pytest

from tests.harness import images
from tests.harness.vsphere import make_image, vm

MB = 1 << 20


@pytest.fixture
def disk(tmp_path):
    return make_image(tmp_path / "disk.raw", 16 * MB, [(0, MB), (9 * MB + 512, 2 * MB)])


@pytest.fixture
def make(make_suite, make_vsphere, disk):
    def make(**sections):
        suite = make_suite(config={"hyper2kvm": {"path": "/nonexistent/hyper2kvm"}, **sections})
        suite.add_vsphere(make_vsphere([vm("web", disk, memory=512, cpus=2)]))
        return suite

    return make


def exported(suite, **fields):
    job = suite.client.submit(vm_path="web", **fields)
    return suite.wait_job(job, "completed")["result"]


def test_an_export_without_conversion_is_converted_later(make, disk):
    suite = make()
    result = exported(suite, format="ovf")
    answer = suite.client.post("/convert", {
        "source_path": result["ovf_path"],
        "output_path": str(suite.directory / "images" / "shop"),
        "conversion_options": {"format": "qcow2", "compression": True}}, status=202)
    assert answer["conversion_id"] == "cnv-" + answer["job_id"][4:]
    job = suite.wait_job(answer["job_id"], "completed")
    made = job["result"]["conversion"]
    assert made["output_files"] == [str(suite.directory / "images" / "shop" / "web-disk1.qcow2")]
    images.check(made["output_files"][0], "qcow2")
    images.compare(disk, made["output_files"][0], "qcow2")
    domain = ET.parse(made["domain_xml"])
    assert domain.find("devices/interface/mac").get("address").startswith("00:50:56")
    seen = suite.client.get(f"/convert/status?id={answer['conversion_id']}")
    assert seen["status"] == "completed" and seen["percentage"] == 100
    assert seen["output_files"] == made["output_files"] and seen["path_used"] == "builtin"
    listed = suite.client.get("/convert/list?limit=1")
    assert [c["id"] for c in listed["conversions"]] == [answer["conversion_id"]]
    verify = suite.client.post("/api/v1/exports/verify", {"path": result["output_path"]},
                               status=202)["job_id"]
    assert suite.wait_job(verify, "completed")["result"]["intact"]
    # the place is taken now
    again = suite.client.post("/convert", {"source_path": result["ovf_path"], "output_path": "shop"},
                              status=202)
    assert suite.wait_job(again["job_id"], "failed")["error_code"] == "conflict"


def test_converted_and_imported_in_one_operation(make, disk, libvirtd):
    suite = make(libvirt={"uri": libvirtd.uri, "domain_type": "qemu", "network": "user"})
    result = exported(suite, format="ova")
    answer = suite.client.post("/api/v1/conversions", {
        "input": result["exported_files"][0], "import": True, "vm_name": "neu & alt",
        "memory_mb": 300, "autostart": True}, status=202)
    job = suite.wait_job(answer["job_id"], "completed")["result"]
    domain = job["libvirt_domain"]
    assert (domain["name"], domain["autostart"]) == ("neu & alt", True)
    xml = ET.fromstring(libvirtd.domains()["neu & alt"])
    assert int(xml.find("memory").text) == 300 * 1024
    files = [d.find("source").get("file") for d in xml.findall("devices/disk")]
    assert files == job["conversion"]["output_files"]
    images.compare(disk, files[0], "qcow2")


def test_manifests_are_checked_and_converted(make, disk):
    suite = make()
    result = exported(suite, format="qcow2")
    manifest = json.loads(pathlib.Path(result["manifest_path"]).read_text())
    checked = suite.client.post("/api/workflow/manifest/validate",
                                {"manifest": manifest, "checksums": True})
    assert checked["valid"] and checked["checksums_checked"] and checked["disks"] == 1
    answer = suite.client.post("/api/v1/manifests", manifest, status=202)
    made = suite.wait_job(answer["job_id"], "completed")["result"]["conversion"]
    assert made["output_files"] == [str(suite.directory / "images" / "web" / "web-disk1.qcow2")]
    images.compare(disk, made["output_files"][0], "qcow2")
    for change, words in (({"disks": []}, "disks"), ({"manifest_version": "7"}, "manifest_version"),
                          ({"disks": [{**manifest["disks"][0], "local_path": "/etc/passwd"}]}, "")):
        refused = suite.client.post("/api/v1/manifests/validate", {**manifest, **change})
        assert not refused["valid"] and words in refused["errors"][0]["message"], refused
    manifest["disks"][0]["checksum"] = "sha256:" + "0" * 64
    assert suite.client.post("/api/v1/manifests/validate", manifest)["valid"]
    refused = suite.client.post("/api/v1/manifests/validate",
                                {"manifest": manifest, "checksums": True})
    assert refused["errors"][0]["code"] == "corrupt"


def test_the_header_of_an_image_and_the_bridges(make, disk):
    suite = make()
    result = exported(suite, format="vmdk")
    facts = suite.client.get(f"/vmdk/parse?path={result['exported_files'][0]}")
    assert facts["format"] == "vmdk" and facts["subformat"] == "streamOptimized"
    assert facts["capacity_bytes"] == 16 * MB and facts["compressed"]
    suite.client.get("/vmdk/parse?path=/etc/passwd", status=422)
    suite.client.get("/vmdk/parse", status=400)
    sparse = suite.exports / "other.vmdk"
    subprocess.run(["qemu-img", "convert", "-O", "vmdk", disk, sparse], check=True)
    assert suite.client.get(f"/parse-vmdk?path={sparse}")["subformat"] == "monolithicSparse"
    status = suite.client.get("/api/workflow/status")
    assert [b["capabilities"]["fallback"] for b in status["bridges"]] == ["builtin"]
    assert status["conversions"]["running"] == 0 and status["active"] == []


def test_what_is_wrong_is_said_at_once(make):
    suite = make()
    for body, status, field in (
            ({}, 400, "source_path"), ({"source_path": "/etc/passwd"}, 422, "source_path"),
            ({"source_path": "x.ovf", "format": "vdi"}, 422, "format"),
            ({"source_path": "x.ovf", "mode": "fast"}, 400, "mode"),
            ({"source_path": "x.ovf", "format": "raw", "compression": True}, 422, "compression"),
            ({"source_path": "x.ovf", "output_path": "/tmp/x"}, 422, "output_path"),
            ({"source_path": "x.ovf", "output_path": "../x"}, 422, "output_path"),
            ({"source_path": "x.ovf", "stages": {"fix": 3}}, 400, "stages.fix"),
            ({"source_path": "x.ovf", "format": "raw", "conversion_options": {"format": "qcow2"}},
             400, "format")):
        answer = suite.client.post("/convert", body, status=status)
        assert answer["field"] == field, (body, answer)
    job = suite.client.post("/convert", {"source_path": "none.ovf"}, status=202)["job_id"]
    assert suite.wait_job(job, "failed")["error_code"] == "not_found"
    suite.client.get("/api/v1/conversions/cnv-none", status=404)

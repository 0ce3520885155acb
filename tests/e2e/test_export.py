"""One VM out of a vSphere, through every process."""
import pathlib

import pytest

from tests.harness import images
from tests.harness.vsphere import make_image, vm
from tests.harness.wait import wait_for

MB = 1 << 20


@pytest.fixture
def disk(tmp_path):
    """64 MiB, 9 MiB of them used, partly across chunk borders."""
    return make_image(tmp_path / "disk.raw", 64 * MB,
                      [(0, MB), (10 * MB - 4096, 4 * MB), (40 * MB + 512, 3 * MB), (63 * MB, MB)])


@pytest.fixture
def sim(make_vsphere, disk):
    return make_vsphere([vm("web", disk), vm("off", disk, power="off", firmware="efi")])


@pytest.fixture
def suite(make_suite, sim):
    suite = make_suite()
    suite.add_vsphere(sim)
    return suite


@pytest.mark.parametrize("name,power", [("web", "on"), ("off", "off")])
def test_ovf_export_with_conversion(suite, sim, disk, name, power):
    job = suite.client.submit(vm_path=name, hyper2kvm_integration={
        "enabled": True, "daemon_mode": False})
    done = suite.wait_job(job, "completed")
    result = done["result"]
    directory = pathlib.Path(result["output_path"])
    assert directory == suite.exports / name
    images.compare(disk, directory / f"{name}-disk1.vmdk", "vmdk")
    qcow2 = [f for f in result["conversion"]["output_files"] if f.endswith(".qcow2")][0]
    images.check(qcow2, "qcow2")
    images.compare(disk, qcow2, "qcow2")
    assert images.check_digests(directory) >= 3
    assert (directory / "manifest.yaml").exists() and (directory / "export.json").exists()
    assert images.leftovers(suite.exports) == []
    assert sim.snapshots(name) == []
    # used bytes only went over the network once
    assert result["transferred_bytes"] <= 64 * MB


@pytest.mark.parametrize("form", ["qcow2", "raw", "vmdk"])
def test_other_formats(suite, disk, form):
    job = suite.client.submit(vm_path="web", format=form)
    result = suite.wait_job(job, "completed")["result"]
    image = pathlib.Path(result["output_path"]) / f"web-disk1.{form}"
    images.compare(disk, image, form)
    assert images.check_digests(result["output_path"]) >= 1


def test_one_ova(suite, disk, tmp_path):
    job = suite.client.submit(vm_path="web", format="ova")
    result = suite.wait_job(job, "completed")["result"]
    directory = pathlib.Path(result["output_path"])
    assert result["exported_files"] == [str(directory / "web.ova")]
    names = images.unpack_ova(directory / "web.ova", tmp_path / "unpacked")
    assert names == ["web.ovf", "web.mf", "web-disk1.vmdk"]
    images.compare(disk, tmp_path / "unpacked" / "web-disk1.vmdk", "vmdk")
    assert images.check_digests(directory) >= 1
    assert images.leftovers(suite.exports) == []


def test_a_snapshot_that_is_to_stay_has_its_name(suite, sim):
    job = suite.client.submit(vm_path="web", format="raw", snapshot=True,
                              snapshot_name="before the move", delete_snapshot=False)
    suite.wait_job(job, "completed")
    assert sim.snapshots("web") == ["before the move"]


def test_a_second_export_of_the_same_vm_overwrites_nothing(suite):
    first = suite.wait_job(suite.client.submit(vm_path="web", format="raw"), "completed")["result"]
    before = images.sha256(pathlib.Path(first["output_path"]) / "export.json")
    second = suite.wait_job(suite.client.submit(vm_path="web", format="raw"), "completed")["result"]
    assert first["output_path"] != second["output_path"]
    assert images.sha256(pathlib.Path(first["output_path"]) / "export.json") == before


def test_cancel_stops_the_transfer_and_leaves_nothing(suite, sim):
    sim.set_rate(2 * MB)
    job = suite.client.submit(vm_path="web", format="qcow2")
    suite.wait_bytes(job, MB)
    sim.hold()  # a request under way would take ten minutes
    assert sim.snapshots("web") != []
    answer = suite.client.post("/jobs/cancel", {"job_ids": [job], "reason": "test"})
    assert answer["cancelled"] == [job]
    wait_for(lambda: sim.stats()["running"] == 0, 60, "the transfer stops")
    sim.set_rate(0)
    suite.wait_job(job, "cancelled")
    wait_for(lambda: sim.snapshots("web") == [], 60, "the snapshot is removed")
    assert not list(suite.exports.rglob("*.qcow2"))
    again = suite.client.post("/jobs/cancel", {"job_ids": [job]})
    assert again["failed"] == [job]


def test_an_unknown_vm_fails_with_its_name(suite):
    job = suite.client.submit(vm_path="nowhere")
    done = suite.wait_job(job, "failed")
    assert "nowhere" in done["error"] and done["error_code"] == "not_found"
    assert done["attempt"] == 1


def test_wrong_credentials_are_told_and_not_repeated(make_suite, sim):
    suite = make_suite()
    suite.client.post("/api/v1/providers", dict(sim.settings(), password="hunter2-nope"))
    checked = suite.client.post("/providers/validate", {"provider": "vsphere"})
    assert (checked["valid"], checked["reachable"], checked["authenticated"]) == (False, True, False)
    job = suite.client.submit(vm_path="web")
    done = suite.wait_job(job, "failed")
    assert done["error_code"] == "denied"
    assert "hunter2-nope" not in suite.tails()


def test_an_ambiguous_name_lists_its_candidates(make_suite, make_vsphere, disk):
    sim = make_vsphere([vm("dup", disk, folder="a"), vm("dup", disk, folder="b")])
    suite = make_suite()
    suite.add_vsphere(sim)
    done = suite.wait_job(suite.client.submit(vm_path="dup"), "failed")
    assert "/DC0/vm/a/dup" in done["error"] and "/DC0/vm/b/dup" in done["error"]
    job = suite.client.submit(vm_path="/DC0/vm/b/dup", format="raw")
    suite.wait_job(job, "completed")


def test_a_listing_does_not_wait_behind_exports(make_suite, make_vsphere, disk):
    sim = make_vsphere([vm(f"web{i}", disk) for i in range(3)])
    suite = make_suite()
    suite.add_vsphere(sim)
    sim.set_rate(MB)
    jobs = [suite.client.submit(vm_path=f"web{i}", format="raw") for i in range(3)]
    suite.wait_bytes(jobs[0], 1)
    sim.hold()
    names = {v["name"] for v in suite.client.post("/vms/list", {"provider": "vsphere",
                                                                "refresh": True})}
    assert {"web0", "web1", "web2"} <= names
    assert suite.client.job(jobs[0])["status"] == "running"
    for job in jobs:
        suite.client.post("/jobs/cancel", {"job_ids": [job]})
    sim.set_rate(0)
    for job in jobs:
        suite.wait_job(job, "cancelled")

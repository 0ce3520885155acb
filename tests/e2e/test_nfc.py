"""Exports by NFC (method nfc): disks that come as streams of an export lease, through the real
suite, from a server made by hand that cuts, lies and forgets (fakes/vsphere_nfc.py)."""
import json
import pathlib
import subprocess

import pytest

from tests.fakes.s3 import S3
from tests.fakes.vsphere import Disk, FakeVsphere, Vm, fault
from tests.fakes.vsphere_nfc import stream_optimized
from tests.harness import images
from tests.harness.process import BIN
from tests.harness.vsphere import make_image, pseudo_random
from tests.harness.wait import wait_for

MB = 1 << 20
SECOND = pseudo_random(300_000, "swap") + bytes(5 * MB - 300_000) + b"\x01" * 512


@pytest.fixture(scope="module")
def disks(tmp_path_factory):
    """(first, second) as files; the first is 70 MiB and has holes of all sizes."""
    directory = tmp_path_factory.mktemp("disks")
    first = make_image(directory / "first.raw", 70 * MB + 512,
                       [(0, MB)] + [(i * 6 * MB + 777 * 512, 2 * MB + 512) for i in range(1, 7)] +
                       [(60 * MB, 5 * MB), (70 * MB, 512)])
    second = directory / "second.raw"
    second.write_bytes(SECOND)
    return first, second


@pytest.fixture(scope="module")
def packed(disks):
    return [stream_optimized(path.read_bytes()) for path in disks]


@pytest.fixture
def fake(tmp_path, disks, packed):
    server = FakeVsphere(tmp_path, [
        Vm("vm-1", "web", [Disk(2000, disks[0].read_bytes(), "[ds 1] web/web.vmdk"),
                           Disk(2001, SECOND, "[ds 1] web/web_1.vmdk", unit=1)],
           power="poweredOn")])
    for key, data in zip((2000, 2001), packed):
        server.streams["vm-1", key] = data
    yield server
    server.stop()


@pytest.fixture
def suite(make_suite, fake):
    running = make_suite()
    add(running, fake)
    return running


def add(suite, fake):
    suite.client.post("/api/v1/providers", dict(fake.settings(), name="vsphere", kind="vsphere"))


def submit(suite, **more):
    return suite.client.submit(**dict({"vm_path": "web", "format": "qcow2", "method": "nfc"}, **more))


def log_of(suite, job):
    return suite.client.request("GET", f"/jobs/logs/{job}").text


def nothing_is_left(suite, fake):
    wait_for(lambda: not fake.vms["vm-1"].snapshots, 30, "no snapshot is left")
    assert not [x.id for x in fake.leases.values() if fake.alive(x)], "a lease is left"
    assert images.leftovers(suite.exports) == []


def check_qcow2(suite, fake, disks, job):
    done = suite.wait_job(job, "completed")
    directory = pathlib.Path(done["result"]["output_path"])
    for i, disk in enumerate(disks, 1):
        image = directory / f"web-disk{i}.qcow2"
        images.check(image, "qcow2")
        images.compare(disk, image, "qcow2")
    images.check_digests(directory)
    nothing_is_left(suite, fake)
    return done


def noted(suite):
    """Numbers of the first disk's parts that the target has and the state file names."""
    return [json.loads(line)["part"] for p in suite.exports.rglob(".hypersdk-upload.301")
            for line in p.read_text().splitlines()[1:] if line.endswith("}")]


def aborted(fake):
    return [getattr(x, "aborted", False) for x in fake.leases.values()]


def test_raw_qcow2_and_ova_are_the_source_byte_for_byte(suite, fake, disks, tmp_path):
    done = suite.wait_job(submit(suite, format="raw"), "completed")
    assert done["method"] == done["result"]["method"] == "snapshot-nfc"
    directory = pathlib.Path(done["result"]["output_path"])
    for i, disk in enumerate(disks, 1):
        assert (directory / f"web-disk{i}.raw").read_bytes() == disk.read_bytes()
    manifest = json.loads((directory / "artifact-manifest.json").read_text())
    record = json.loads((directory / "export.json").read_text())
    assert record["source"]["method"] == "snapshot-nfc"
    assert "snapshot-nfc" in json.dumps(manifest)
    # what came over the wire was the packed form
    assert 0 < done["result"]["transferred_bytes"] < 40 * MB

    done = check_qcow2(suite, fake, disks, submit(suite, output_path="q"))
    assert done["result"]["verified"]

    done = suite.wait_job(submit(suite, format="ova", output_path="o"), "completed")
    directory = pathlib.Path(done["result"]["output_path"])
    names = images.unpack_ova(directory / "web.ova", tmp_path / "unpacked")
    for disk, name in zip(disks, sorted(n for n in names if n.endswith(".vmdk"))):
        images.compare(disk, tmp_path / "unpacked" / name, "vmdk")
    assert not fake.folder_requests
    assert {x.state for x in fake.leases.values()} == {"done"}
    nothing_is_left(suite, fake)


def test_the_command_asks_for_it(suite, fake, disks):
    told = subprocess.run([BIN / "hyperexport", "--vm", "web", "--format", "raw", "--method", "nfc",
                           "--daemon-url", suite.url()], capture_output=True, text=True, timeout=90)
    assert told.returncode == 0, told.stderr
    assert (suite.exports / "web" / "web-disk1.raw").read_bytes() == disks[0].read_bytes()
    assert len(fake.leases) == 2 and not fake.folder_requests


def test_capabilities_tell_and_other_words_are_refused(suite):
    wait_for(lambda: "snapshot-nfc" in suite.client.get("/capabilities")["capabilities"], 60,
             "the worker's methods")
    answer = suite.client.request("POST", "/api/v1/jobs", {"vm_path": "web", "method": "vddk"})
    assert answer.status_code == 422 and "vddk" in answer.text


def test_a_cut_stream_is_read_again_in_a_new_lease(suite, fake, disks):
    fake.nfc_rate = 16 * MB
    fake.nfc_cuts = [9 * MB, None, None, 200_000]
    done = check_qcow2(suite, fake, disks, submit(suite))
    assert done["attempt"] == 0, "a cut stream is no failed attempt"
    # first disk cut, read whole; the second was not cut
    assert aborted(fake) == [True, False, False]
    assert "copy_stream_restarts" in suite["exporter-vsphere"].output()


def test_a_lease_dies_without_renewal_and_ours_does_not(suite, fake, disks):
    """The job's own rate limit holds the readers back for longer than the lease lives alone: it
    would end before the disk of 18 MB does, and a renewal that a busy machine makes late is none
    that was left out."""
    fake.lease_timeout, fake.lease_bytes = 1, 12 * MB
    job = submit(suite, bandwidth_limit_mbps=4, bandwidth_burst_mb=1)
    check_qcow2(suite, fake, disks, job)
    assert aborted(fake) == [False, False]
    assert all(len(x.percents) > 2 for x in list(fake.leases.values())[:1])


def test_bytes_that_the_host_did_not_send_fail_the_job(suite, fake):
    fake.nfc_manifest = lambda key, sha1, size, capacity: fake.nfc_entry(key, "0" * 40, size, capacity)
    job = suite.wait_job(submit(suite), "failed")
    assert "SHA-1" in job["error"]
    wait_for(lambda: not fake.vms["vm-1"].snapshots, 30, "no snapshot is left")
    assert aborted(fake) == [True] and not list(suite.exports.rglob("*.qcow2*"))


def test_a_lease_that_fails_says_why(suite, fake):
    fake.lease_faults = [fault("NoPermission", "VApp.Export is missing")]
    job = suite.wait_job(submit(suite), "failed")
    assert "VApp.Export is missing" in job["error"]
    nothing_is_left(suite, fake)


def test_cancel_ends_the_lease(suite, fake):
    fake.nfc_rate = MB
    job = submit(suite)
    suite.wait_bytes(job, MB)
    progress = suite.client.get(f"/jobs/progress/{job}")
    assert progress["limited_by"] in ("source", "")
    suite.client.post("/jobs/cancel", {"job_ids": [job]})
    suite.wait_job(job, "cancelled")
    wait_for(lambda: aborted(fake) == [True], 60, "the lease was aborted")
    wait_for(lambda: not fake.vms["vm-1"].snapshots, 30, "no snapshot is left")


def test_kill_9_in_the_middle(suite, fake, disks):
    fake.nfc_holds = {2000: 10 * MB}
    job = submit(suite)
    suite.wait_bytes(job, 9 * MB)
    suite["exporter-vsphere"].kill()
    fake.nfc_go.set()
    suite["exporter-vsphere"].start()
    done = check_qcow2(suite, fake, disks, job)
    assert done["attempt"] == 0
    assert aborted(fake) == [True, False, False], "the next lease aborted the old one"


def test_kill_9_while_it_is_sent_on(make_suite, fake, disks):
    """stream_upload: the stream brings everything again, the target gets only what it lacks."""
    s3 = S3().start()
    try:
        suite = make_suite(config={"uploads": {"main": s3.entry("s3://bucket")}})
        add(suite, fake)
        fake.nfc_holds = {2000: 14 * MB}  # three parts of the first disk are whole
        job = submit(suite, format="raw", upload="s3://bucket", stream_upload=True)
        wait_for(lambda: len(noted(suite)) >= 2, 60, lambda: suite.explain(job))
        suite["exporter-vsphere"].kill()
        there = noted(suite)
        sent = len(s3.puts)
        fake.nfc_go.set()
        suite["exporter-vsphere"].start()
        result = suite.wait_job(job, "completed")["result"]
        again = s3.puts[sent:]
        for part in there:  # the second disk has one part of its own
            assert again.count(part) == (part == 1), "parts were sent again"
        prefix = result["uploaded_to"].removeprefix("s3://bucket/")
        for i, disk in enumerate(disks, 1):
            assert s3.objects[f"{prefix}/web-disk{i}.raw"][0] == disk.read_bytes()
        assert [p for p in suite.exports.rglob("*") if p.name != ".hypersdk-volume"] == []
        nothing_is_left(suite, fake)
    finally:
        s3.stop()


def test_kill_9_while_a_qcow2_is_sent_on(make_suite, fake, disks, tmp_path):
    """What the stream brings again and the journal knows is not appended once more, the rest is."""
    s3 = S3().start()
    try:
        suite = make_suite(config={"uploads": {"main": s3.entry("s3://bucket")}})
        add(suite, fake)
        fake.nfc_holds = {2000: 14 * MB}
        job = submit(suite, format="qcow2", upload="s3://bucket", stream_upload=True)

        def some_is_there():
            return any(p.stat().st_size > 8 * MB for p in suite.exports.rglob("*.qcow2.partial"))
        wait_for(some_is_there, 60, lambda: suite.explain(job))
        suite["exporter-vsphere"].kill()
        fake.nfc_go.set()
        suite["exporter-vsphere"].start()
        result = suite.wait_job(job, "completed")["result"]
        prefix = result["uploaded_to"].removeprefix("s3://bucket/")
        for i, disk in enumerate(disks, 1):
            image = tmp_path / f"back{i}.qcow2"
            image.write_bytes(s3.objects[f"{prefix}/web-disk{i}.qcow2"][0])
            images.check(image, "qcow2")
            images.compare(disk, image, "qcow2")
        assert [p for p in suite.exports.rglob("*") if p.name != ".hypersdk-volume"] == []
        nothing_is_left(suite, fake)
    finally:
        s3.stop()


def test_a_stream_that_breaks_while_it_is_sent_on(make_suite, fake, disks):
    """Nobody reads the object back here: what was punched out of the spool must not go out again."""
    s3 = S3().start()
    try:
        suite = make_suite(config={"uploads": {"main": s3.entry("s3://bucket")}})
        add(suite, fake)
        fake.nfc_holds = {2000: 16 * MB}
        fake.nfc_cuts = [17 * MB]
        job = submit(suite, format="raw", upload="s3://bucket", stream_upload=True, verify=False,
                     retry={"max_attempts": 3, "initial_delay": "200ms"})
        wait_for(lambda: len(noted(suite)) >= 2, 60, lambda: suite.explain(job))
        fake.nfc_go.set()
        result = suite.wait_job(job, "completed")["result"]
        assert suite.client.job(job)["attempt"] == 1, "the stream was to break"
        prefix = result["uploaded_to"].removeprefix("s3://bucket/")
        for i, disk in enumerate(disks, 1):
            assert s3.objects[f"{prefix}/web-disk{i}.raw"][0] == disk.read_bytes()
        nothing_is_left(suite, fake)
    finally:
        s3.stop()


def test_what_is_finished_of_other_disks_is_not_read_again(suite, fake, disks):
    fake.nfc_holds = {2001: 64 * 1024}
    job = submit(suite)
    wait_for(lambda: len(fake.nfc_requests) == 2, 60, "the second disk's stream")
    suite["exporter-vsphere"].kill()
    fake.nfc_go.set()
    suite["exporter-vsphere"].start()
    check_qcow2(suite, fake, disks, job)
    assert [path[-11:] for path, _ in fake.nfc_requests] == ["disk-0.vmdk", "disk-1.vmdk",
                                                             "disk-1.vmdk"]
    assert aborted(fake) == [False, True, False]
    assert "complete since an earlier attempt" in log_of(suite, job)


def test_disks_without_files_are_read_by_nfc_without_being_asked(suite, fake, disks):
    for disk in fake.vms["vm-1"].disks:
        disk.data = None  # vSAN
    done = check_qcow2(suite, fake, disks, submit(suite, method="auto"))
    assert done["method"] == "snapshot-nfc"


def test_increments_are_compared_since_a_stream_has_no_ranges(suite, fake, disks):
    for _ in range(2):
        done = suite.wait_job(submit(suite, incremental=True), "completed")
    for disk in done["result"]["incremental"]["disks"]:
        assert disk["incremental_mode"] == "leaf_compare"
        assert "come as streams (snapshot-nfc)" in disk["incremental_reason"]
    for i, disk in enumerate(disks, 1):
        images.compare(disk, pathlib.Path(done["result"]["output_path"]) / f"web-disk{i}.qcow2", "qcow2")
    nothing_is_left(suite, fake)

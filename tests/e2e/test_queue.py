"""Rules of the queue with the real processes: what is held loses nothing."""
import os
import pathlib
import subprocess

import pytest

from tests.harness import images
from tests.harness.process import BIN
from tests.harness.vsphere import make_image, vm
from tests.harness.wait import wait_for

MB = 1 << 20


@pytest.fixture
def disk(tmp_path):
    return make_image(tmp_path / "disk.raw", 96 * MB, [(i * 8 * MB + 777 * 512, 5 * MB)
                                                       for i in range(11)])


@pytest.fixture
def sim(make_vsphere, disk):
    return make_vsphere([vm("web", disk), vm("db", disk)])


def cli(suite, *words):
    env = dict(os.environ, XDG_CONFIG_HOME=str(suite.directory / "home"), LC_ALL="C.UTF-8",
               HYPERSDK_URL=suite.url())
    out = subprocess.run([BIN / "hyperexport", *words], capture_output=True, text=True, timeout=60,
                         env=env)
    return out.returncode, out.stdout, out.stderr


def check_result(suite, disk, job, name="web", deadline=120):
    done = suite.wait_job(job, "completed", deadline=deadline)
    image = pathlib.Path(done["result"]["output_path"]) / f"{name}-disk1.qcow2"
    images.check(image, "qcow2")
    images.compare(disk, image, "qcow2")
    images.check_digests(image.parent)
    return done


def test_a_paused_export_frees_its_slot_and_goes_on_from_its_journal(make_suite, sim, disk):
    suite = make_suite(config={"export": {"concurrent_exports": 1}})
    suite.add_vsphere(sim)
    sim.set_rate(8 * MB)
    job = suite.client.submit(vm_path="web", format="qcow2")
    suite.wait_bytes(job, 50 * MB)  # a checkpoint or two behind it
    sim.hold()
    before = sim.stats()["bytes"]
    status, out, err = cli(suite, "jobs", "pause", job)
    assert (status, out) == (0, f"paused: {job}\n"), err

    def idle():
        return suite.sql("SELECT 1 FROM tasks WHERE job_id = %s AND state = 'queued'", job)
    wait_for(idle, 30, "the worker has handed it back")
    view = suite.client.get(f"/api/v1/jobs/{job}")
    assert (view["status"], view["substatus"]) == ("running", "paused")
    assert view["pending_reason"].startswith("paused by ")
    assert view["progress"]["rate_bytes_per_second"] == 0
    assert view["progress"]["bytes_done"] > 0 and view["progress"]["eta_seconds"] is None
    assert "paused" in cli(suite, "jobs", "get", job)[1]
    refused = suite.client.request("DELETE", f"/api/v1/jobs/{job}")
    assert refused.status_code == 409 and "cancel it first" in refused.json()["error"]
    # the one slot is free for another VM
    sim.set_rate(0)
    handed_back = sim.stats()["bytes"]
    check_result(suite, disk, suite.client.submit(vm_path="db", format="qcow2"), "db")
    other = sim.stats()["bytes"] - handed_back
    status, out, err = cli(suite, "jobs", "resume", job)
    assert (status, out) == (0, f"resumed: {job}\n"), err
    done = check_result(suite, disk, job)
    assert done["attempt"] == 0
    read_again = sim.stats()["bytes"] - handed_back - other
    assert read_again < other - 30 * MB, f"{before}: what the journal has was not read again"
    wait_for(lambda: sim.snapshots("web") == [], 60, "no snapshot is left")
    assert images.leftovers(suite.exports) == []
    status, out, err = cli(suite, "jobs", "delete", job, "--yes")
    assert (status, out) == (0, f"deleted: {job}\n"), err
    assert suite.client.request("GET", f"/api/v1/jobs/{job}").status_code == 404
    exports = suite.client.get("/api/v1/exports")["exports"]
    assert job in {e["job_id"] for e in exports}, "the export itself stays"


def test_a_paused_export_that_is_cancelled_leaves_nothing_at_the_source(make_suite, sim):
    suite = make_suite()
    suite.add_vsphere(sim)
    sim.set_rate(8 * MB)
    job = suite.client.submit(vm_path="web", format="qcow2")
    suite.wait_bytes(job, 16 * MB)
    sim.hold()
    suite.client.post(f"/api/v1/jobs/{job}/pause", {"reason": "window"})
    wait_for(lambda: suite.sql("SELECT 1 FROM tasks WHERE job_id = %s AND state = 'queued'", job),
             30, "handed back")
    assert sim.snapshots("web") != [], "kept for the next lease"
    suite.client.post("/jobs/cancel", {"job_ids": [job], "discard": True})
    suite.wait_job(job, "cancelled")
    wait_for(lambda: sim.snapshots("web") == [], 60, "the snapshot is released")
    wait_for(lambda: images.leftovers(suite.exports) == [], 60, "the partial files are removed")


def test_a_drained_worker_moves_its_export_to_another(make_suite, sim, disk):
    suite = make_suite()
    suite.add_vsphere(sim)
    sim.set_rate(8 * MB)
    job = suite.client.submit(vm_path="web", format="qcow2")
    suite.wait_bytes(job, 50 * MB)
    sim.hold()
    first = suite.client.job(job)["worker_id"]
    suite.add("exporter-vsphere-2")

    def workers():
        found = suite.client.get("/status")["workers"]["list"]
        return {w["instance"]: w for w in found if w["provider"] == "vsphere"}
    wait_for(lambda: len(workers()) == 2, 60, "the second worker is there")
    status, out, err = cli(suite, "workers", "drain", first)
    assert (status, out) == (0, f"draining: {first} (1 running)\n"), err
    sim.set_rate(0)
    done = check_result(suite, disk, job)
    assert done["worker_id"] != first and done["attempt"] == 0
    assert "gone on at" in suite.client.request("GET", f"/jobs/logs/{job}").text
    wait_for(lambda: workers()[first]["state"] == "drained", 60, lambda: workers())
    assert workers()[first]["drained_by"]
    assert f"{first} is drained, by " in cli(suite, "status")[1]
    next_job = suite.client.submit(vm_path="db", format="qcow2")
    assert suite.wait_job(next_job, "completed")["worker_id"] != first
    refused = suite.client.request("POST", f"/api/v1/workers/{first}/drain")
    assert refused.status_code == 409 and "drained already" in refused.json()["error"]
    assert suite.client.request("POST", "/api/v1/workers/none/drain").status_code == 404
    # the drained process still lives and is of use again
    status, out, err = cli(suite, "workers", "resume", first)
    assert (status, out) == (0, f"resumed: {first} (0 running)\n"), err
    other = next(name for name in workers() if name != first)
    suite.client.post(f"/api/v1/workers/{other}/drain")
    last = suite.client.submit(vm_path="db", format="qcow2")
    assert suite.wait_job(last, "completed")["worker_id"] == first


def test_the_queue_is_paused_and_resumed(make_suite, sim):
    suite = make_suite()
    suite.add_vsphere(sim)
    status, out, err = cli(suite, "queue", "pause", "storage work")
    assert status == 0 and "Queue    paused by " in out and ": storage work" in out, err
    job = suite.client.submit(vm_path="web", format="qcow2")
    wait_for(lambda: "storage work" in (suite.client.job(job)["pending_reason"] or ""), 60,
             lambda: suite.client.job(job))
    queue = suite.client.get("/api/v1/queue")
    assert queue["paused"] and queue["paused_by"] and queue["paused_since"]
    assert queue["jobs"]["pending"] == 1 and queue["queue_depth"] == 1
    assert queue["providers"] == [{"provider": "vsphere", "pending": 1, "running": 0, "paused": 0,
                                   "cancelling": 0}]
    assert suite.client.get("/status")["queue"]["reason"] == "storage work"
    assert "Queue    paused by" in cli(suite, "status")[1]
    assert suite.client.request("POST", "/api/v1/queue/pause").status_code == 409
    status, out, err = cli(suite, "queue", "resume")
    assert status == 0 and "Queue    open" in out, err
    suite.wait_job(job, "completed")
    assert suite.client.request("POST", "/api/v1/queue/resume").status_code == 409

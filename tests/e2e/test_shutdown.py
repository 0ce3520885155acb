"""The guest is shut down before an export and the VM is started again after it."""
import os
import pathlib
import re
import subprocess

import pytest

from tests.harness import images
from tests.harness.process import BIN
from tests.harness.vsphere import make_image, vm
from tests.harness.wait import wait_for

MB = 1 << 20


@pytest.fixture
def disk(tmp_path):
    return make_image(tmp_path / "disk.raw", 64 * MB, [(i * 8 * MB + 777 * 512, 5 * MB)
                                                       for i in range(7)])


@pytest.fixture
def sim(make_vsphere, disk):
    return make_vsphere([vm("web", disk), vm("off", disk, power="off")])


@pytest.fixture
def suite(make_suite, sim):
    suite = make_suite()
    suite.add_vsphere(sim)
    return suite


def log_of(suite, job):
    return suite.client.request("GET", f"/jobs/logs/{job}").text


def powered(sim, state, name="web"):
    wait_for(lambda: sim.power(name) == state, 60, f"{name} is {state}")


def test_the_guest_is_shut_down_and_the_vm_started_again(suite, sim, disk):
    job = suite.client.submit(vm_path="web", format="qcow2",
                              options={"shutdown_vm": True, "power_on_after": True})
    done = suite.wait_job(job, "completed")
    assert sim.power("web") == "poweredOn"
    log = log_of(suite, job)
    assert "at most 300 s" in log and "the guest has shut down" in log
    assert "no snapshot needed" in log and "the VM is powered on again" in log
    images.compare(disk, pathlib.Path(done["result"]["output_path"]) / "web-disk1.qcow2", "qcow2")
    # as a hook, and without being started again
    job = suite.client.submit(vm_path="web", output_path="second", pre_hooks=[
        {"type": "shutdown", "timeout": 240}, {"type": "snapshot", "name": "moved"}])
    suite.wait_job(job, "completed")
    assert sim.power("web") == "poweredOff" and "at most 240 s" in log_of(suite, job)
    # a VM that was off stays off
    job = suite.client.submit(vm_path="off", options={"shutdown_vm": True, "power_on_after": True})
    suite.wait_job(job, "completed")
    assert sim.power("off") == "poweredOff" and "off already" in log_of(suite, job)


def test_a_guest_that_does_not_shut_down(suite, sim):
    sim.set_guest("deaf")
    wish = {"type": "shutdown", "timeout": 1, "power_on_after": True}
    job = suite.client.submit(vm_path="web", pre_hooks=[wish])
    failed = suite.wait_job(job, "failed")
    assert "did not do so within 1 s" in failed["error"] and failed["phase"] == "shutdown"
    assert sim.power("web") == "poweredOn" and not list(suite.exports.rglob("*.vmdk"))
    job = suite.client.submit(vm_path="web", output_path="running",
                              pre_hooks=[dict(wish, on_error="continue")])
    done = suite.wait_job(job, "completed")
    assert "goes on, as asked" in log_of(suite, job) and "snapshot created" in log_of(suite, job)
    assert sim.power("web") == "poweredOn" and done["status"] == "completed"
    job = suite.client.submit(vm_path="web", output_path="stopped",
                              pre_hooks=[dict(wish, on_error="power_off", power_on_after=False)])
    suite.wait_job(job, "completed")
    assert "was powered off" in log_of(suite, job) and sim.power("web") == "poweredOff"


def test_a_guest_that_shuts_down_late_is_started_again(suite, sim):
    sim.set_guest("deaf")
    sim.set_rate(4 * MB)
    job = suite.client.submit(vm_path="web", pre_hooks=[
        {"type": "shutdown", "timeout": 1, "power_on_after": True, "on_error": "continue"}])
    suite.wait_bytes(job, 8 * MB)
    sim.hold()
    sim.look("web", lambda item: item.PowerOff())
    powered(sim, "poweredOff")
    sim.set_rate(0)
    done = suite.wait_job(job, "completed", deadline=120)
    assert sim.power("web") == "poweredOn" and "powered on again" in log_of(suite, job)
    assert [(h["when"], h["type"], h["state"]) for h in done["hooks"]] == [
        ("pre", "shutdown", "failed")]
    assert "did not do so within 1 s" in done["hooks"][0]["error"]


def test_a_snapshot_may_fail(suite, sim, disk):
    """on_error: continue: a VM that is off is read without one, a running one cannot be."""
    sim.set_snapshots("refuse")
    hook = {"type": "snapshot", "name": "moved", "on_error": "continue"}
    job = suite.client.submit(vm_path="off", format="qcow2", pre_hooks=[hook])
    done = suite.wait_job(job, "completed")
    images.compare(disk, pathlib.Path(done["result"]["output_path"]) / "off-disk1.qcow2", "qcow2")
    manifest = pathlib.Path(done["result"]["manifest_path"]).read_text()
    assert "its disks are read without one" in manifest
    assert done["result"]["method"] == "folder"
    assert [(h["when"], h["type"], h["state"]) for h in done["hooks"]] == [
        ("pre", "snapshot", "failed")]
    events = suite.client.get(f"/api/v1/jobs/{job}/history")["history"]
    assert [e["detail"]["task"] for e in events if e["event"] == "job.hook_failed"] == ["snapshot"]
    job = suite.client.submit(vm_path="web", pre_hooks=[hook])
    failed = suite.wait_job(job, "failed")
    assert "cannot be exported without a snapshot" in failed["error"]
    assert "was refused" in failed["error"] and not list((suite.exports / "web").glob("*"))


def test_a_guest_without_tools(suite, sim):
    sim.set_guest("notools")
    job = suite.client.submit(vm_path="web", options={"shutdown_vm": True})
    assert "VMware Tools do not run" in suite.wait_job(job, "failed")["error"]
    job = suite.client.submit(vm_path="web", options={
        "shutdown_vm": True, "shutdown_on_error": "power_off", "power_on_after": True})
    suite.wait_job(job, "completed")
    assert "was powered off" in log_of(suite, job) and sim.power("web") == "poweredOn"


def begun(suite, sim):
    """An export of the stopped VM that has copied some megabytes and is held."""
    sim.set_rate(4 * MB)
    job = suite.client.submit(vm_path="web", format="qcow2",
                              options={"shutdown_vm": True, "power_on_after": True})
    suite.wait_bytes(job, 8 * MB)
    sim.hold()
    assert sim.power("web") == "poweredOff"
    return job


def test_kill_9_between_shutdown_and_start(suite, sim, disk):
    job = begun(suite, sim)
    suite["exporter-vsphere"].kill()
    suite["exporter-vsphere"].start()
    sim.set_rate(0)
    done = suite.wait_job(job, "completed", deadline=120)
    powered(sim, "poweredOn")
    images.compare(disk, pathlib.Path(done["result"]["output_path"]) / "web-disk1.qcow2", "qcow2")
    assert "powered on again" in log_of(suite, job)


def test_a_job_that_is_cancelled_or_dies_with_its_worker_leaves_the_vm_running(suite, sim):
    job = begun(suite, sim)
    suite.client.post(f"/api/v1/jobs/{job}/cancel")
    suite.wait_job(job, "cancelled")
    powered(sim, "poweredOn")
    job = begun(suite, sim)
    suite["exporter-vsphere"].kill()
    suite.client.post(f"/api/v1/jobs/{job}/cancel")
    suite["exporter-vsphere"].start()
    suite.wait_job(job, "cancelled", deadline=120)
    powered(sim, "poweredOn")


@pytest.mark.parametrize("options, word", [
    ({"power_on_after": True}, "without 'options.shutdown_vm'"),
    ({"shutdown_timeout": 60}, "without 'options.shutdown_vm'"),
    ({"shutdown_vm": True, "shutdown_on_error": "pull"}, "fail, power_off or continue"),
    ({"shutdown_vm": True, "shutdown_timeout": "5h"}, "shutdown_timeout")])
def test_what_makes_no_sense_is_refused(suite, options, word):
    answer = suite.client.request("POST", "/api/v1/jobs", {"vm_path": "web", "options": options})
    assert answer.status_code == 400 and word in answer.json()["error"], answer.text


def test_the_command_line_powers_off_what_does_not_shut_down(suite, sim, tmp_path):
    def cli(*args):
        env = dict(os.environ, XDG_CONFIG_HOME=str(tmp_path / "home"), HYPERSDK_URL=suite.url())
        return subprocess.run([BIN / "hyperexport", *args], capture_output=True, text=True,
                              timeout=120, env=env)

    sim.set_guest("deaf")
    refused = cli("--vm", "web", "--shutdown-timeout", "1s")
    assert refused.returncode == 64 and "needs --power-off" in refused.stderr
    done = cli("--vm", "web", "--power-off", "--shutdown-timeout", "1s", "--power-on-after",
               "--parallel", "2")
    assert done.returncode == 0, (done.stdout, done.stderr, suite.tails())
    job = suite.sql("SELECT id FROM jobs")[0]["id"]
    assert re.search(r"was powered off \([1-9]\d* s\)", log_of(suite, job))
    assert sim.power("web") == "poweredOn"
    assert suite.sql("SELECT spec FROM tasks WHERE kind = 'export'")[0]["spec"]["parallel"] == 2

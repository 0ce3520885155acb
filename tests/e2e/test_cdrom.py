"""options.remove_cdrom: the drives of a VM are removed before its export, only when asked to, and once."""
import os
import subprocess

import pytest

from tests.fakes.vsphere import Cdrom, Disk, FakeVsphere, Vm, fault
from tests.harness.process import BIN
from tests.harness.vsphere import pseudo_random
from tests.harness.wait import wait_for

ISO = "[ds 1] iso/debian-12.iso"
TOLD = f"removed from the VM, as asked: CD/DVD drive 1: ISO file '{ISO}'"


@pytest.fixture
def fake(tmp_path):
    server = FakeVsphere(tmp_path, [Vm(f"vm-{n}", name, [
        Disk(2000, pseudo_random(1 << 20, name), f"[ds 1] {name}/{name}.vmdk")],
        power="poweredOn", cdroms=[Cdrom(3000, iso=ISO)]) for n, name in ((1, "web"), (2, "db"))])
    yield server
    server.stop()


def test_drives_are_removed_when_that_is_asked_for(make_suite, fake, tmp_path):
    suite = make_suite()
    suite.client.post("/api/v1/providers", fake.settings(name="vsphere", kind="vsphere"))
    web, db = fake.vms["vm-1"], fake.vms["vm-2"]

    def log_of(job):
        return suite.client.request("GET", f"/jobs/logs/{job}").text

    wait_for(lambda: suite.client.get("/capabilities")["features"].get("remove_cdrom") is True, 60, suite.tails)
    job = suite.client.submit(vm_path="web", output_path="untouched")
    suite.wait_job(job, "completed")
    assert fake.count("ReconfigVM_Task") == 0 and len(web.cdroms) == 1
    # one that runs cannot lose them; the failed job says what to do, and its retry works then
    made = fake.count("CreateSnapshot_Task")
    wish = {"options": {"remove_cdrom": True}, "snapshot": True}
    job = suite.client.submit(vm_path="web", output_path="moved", **wish)
    failed = suite.wait_job(job, "failed")
    assert "InvalidPowerState" in failed["error"] and "shut it down first" in failed["error"]
    assert "leave remove_cdrom out" in failed["error"] and failed["error_code"] == "conflict"
    assert fake.count("CreateSnapshot_Task") == made and len(web.cdroms) == 1
    assert not list((suite.exports / "moved").rglob("*.vmdk"))
    web.power = "poweredOff"
    # in a later attempt they are gone already, and nothing is removed again
    fake.faults["CreateSnapshot_Task"] = [fault("SystemError", "a host is restarting")]
    # a worker may still be removing what the last attempt left
    wait_for(lambda: suite.client.request("POST", f"/api/v1/jobs/{job}/retry", {}).ok, 60)
    wait_for(lambda: web.cdroms == [], 60, suite.tails)
    suite.wait_job(job, "completed")
    log = log_of(job)
    assert log.count(TOLD) == 1 and log.index(TOLD) < log.index("snapshot created")
    assert "an earlier attempt has looked after the CD-ROM drives" in log
    assert fake.count("ReconfigVM_Task") == 2
    job = suite.client.submit(vm_path="web", output_path="again", **wish)
    suite.wait_job(job, "completed")
    assert "the VM has no CD-ROM drive to remove" in log_of(job)
    # the command line
    db.power = "poweredOff"
    env = dict(os.environ, XDG_CONFIG_HOME=str(tmp_path / "home"), HYPERSDK_URL=suite.url())
    done = subprocess.run([BIN / "hyperexport", "--vm", "db", "--remove-cdrom", "--quiet"], env=env, text=True,
                          capture_output=True, timeout=120)
    assert done.returncode == 0, (done.stdout, done.stderr, suite.tails())
    assert db.cdroms == [] and fake.count("ReconfigVM_Task") == 3
    job = suite.sql("SELECT id FROM jobs WHERE vm_path = 'db'")[0]["id"]
    assert TOLD in log_of(job)

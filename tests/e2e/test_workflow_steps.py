"""Steps of workflows that are the bridge's: scripts, webhooks, conversions, imports; every process
is real."""
import json
import os
import pathlib

import pytest

from tests.fakes.receiver import Receiver
from tests.harness import images
from tests.harness.bridge import alive
from tests.harness.vsphere import make_image, vm
from tests.harness.wait import wait_for

MB = 1 << 20


@pytest.fixture
def disk(tmp_path):
    return make_image(tmp_path / "disk.raw", 8 * MB, [(0, MB)])


@pytest.fixture
def receiver():
    started = Receiver()
    yield started
    started.stop()


@pytest.fixture
def make(make_suite, make_vsphere, disk, tmp_path):
    def make(**sections):
        directory = tmp_path / "scripts"
        directory.mkdir(mode=0o755)
        suite = make_suite(config={"hyper2kvm": {"path": "/nonexistent/hyper2kvm"},
                                   "webhooks": {"allow_private": True},
                                   "hooks": {"scripts_dir": str(directory)}, **sections})
        suite.add_vsphere(make_vsphere([vm("web", disk, memory=512, cpus=2)]))
        return Flows(suite, directory)
    return make


class Flows:
    def __init__(self, suite, directory):
        self.suite, self.directory, self.api = suite, directory, suite.client

    def script(self, name, text):
        path = self.directory / name
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o755)

    def start(self, *steps, name="w1"):
        self.api.post("/api/v1/workflows", {"name": name, "steps": list(steps)}, status=201)
        return self.api.post(f"/api/v1/workflows/{name}/run", status=202)["run_id"]

    def view(self, run):
        return self.api.get(f"/api/v1/workflows/runs/{run}", status=200)

    def steer(self, run, action):
        return self.api.post(f"/api/v1/workflows/runs/{run}/{action}", status=200)

    def step(self, run, step):
        return next(s for s in self.view(run)["steps"] if s["id"] == step)

    def job(self, run, step, status):
        wait_for(lambda: self.step(run, step)["job_ids"], 60, self.suite.tails)
        return self.suite.wait_job(self.step(run, step)["job_ids"][0], status)

    def wait(self, run, status):
        wait_for(lambda: self.view(run)["status"] == status, 60,
                 lambda: f"{json.dumps(self.view(run), indent=1)}\n{self.suite.tails()}")
        return {s["id"]: s["status"] for s in self.view(run)["steps"]}

    def log(self, job):
        return self.api.request("GET", f"/jobs/logs/{job}").text


def script(step, command, *on, **more):
    return {"id": step, "type": "script", "command": command, "depends_on": list(on), **more}


def webhook(step, url, *on, **more):
    return {"id": step, "type": "webhook", "url": url, "depends_on": list(on), **more}


def test_a_script_and_a_webhook_between_other_steps(make, receiver, tmp_path):
    f = make()
    f.script("check.sh", f'/usr/bin/env > {tmp_path}/env; echo "seen $1 $2"\n')
    url = f"http://127.0.0.1:{receiver.port}/x"
    run = f.start({"id": "move", "type": "batch", "vms": ["web"]},
                  script("check", "check.sh", "move", args=["a b", "$(id)"], timeout="1m"),
                  webhook("tell", url, "check", when="always"),
                  webhook("own", url, "tell", body={"text": "moved"}))
    assert set(f.wait(run, "completed").values()) == {"completed"}
    check = f.job(run, "check", "completed")
    env = dict(x.split("=", 1) for x in (tmp_path / "env").read_text().splitlines())
    ours = {"PWD", "_", "SHLVL", "OLDPWD"}  # the shell's own
    assert {k for k in env if k not in ours} == {
        "HYPERSDK_JOB_ID", "HYPERSDK_WORKFLOW", "HYPERSDK_RUN_ID", "HYPERSDK_STEP",
        "HYPERSDK_ATTEMPT"}, env
    assert (env["HYPERSDK_WORKFLOW"], env["HYPERSDK_RUN_ID"], env["HYPERSDK_STEP"]) == (
        "w1", run, "check")
    assert check["kind"] == "script" and check["name"] == "check"
    assert "check.sh: seen a b $(id)" in f.log(check["job_id"])
    assert check["result"]["script"]["exit_status"] == 0
    told, own = receiver.requests
    assert (told.json["event"], told.json["workflow"], told.json["run_id"], told.json["step"]) == (
        "workflow.step", "w1", run, "tell")
    assert own.json == {"text": "moved"}
    assert f.job(run, "own", "completed")["result"]["webhook"]["http_status"] == 204
    times = {s["id"]: s for s in f.view(run)["steps"]}
    assert times["check"]["started_at"] >= times["move"]["completed_at"]


def test_failures_their_way_and_the_retry_from_there(make, receiver, tmp_path):
    f = make()
    receiver.answers = [500, 500, 204]
    f.script("first.sh", f"echo x >> {tmp_path}/first\n")
    f.script("bad.sh", f"echo x >> {tmp_path}/bad; exit 3\n")
    url = f"http://127.0.0.1:{receiver.port}/x"
    run = f.start(script("first", "first.sh"),
                  script("bad", "bad.sh", "first",
                         retry={"max_attempts": 2, "initial_delay": "100ms"}),
                  script("behind", "first.sh", "bad"),
                  webhook("rescue", url, "bad", when="failure",
                          retry={"max_attempts": 3, "initial_delay": "100ms"}))
    assert f.wait(run, "failed") == {"first": "completed", "bad": "failed", "behind": "skipped",
                                     "rescue": "completed"}
    assert "exit status 3" in f.step(run, "bad")["error"]
    assert (tmp_path / "bad").read_text() == "x\n" * 2 and len(receiver.requests) == 3
    f.script("bad.sh", "exit 0\n")
    f.steer(run, "retry")
    assert f.wait(run, "completed") == {"first": "completed", "bad": "completed",
                                        "behind": "completed", "rescue": "skipped"}
    assert (tmp_path / "first").read_text() == "x\n" * 2, "first.sh ran for first and for behind"


def test_limits_pause_and_cancel_of_a_script(make, tmp_path):
    f = make()
    slow = f'echo $$ >> {tmp_path}/pids; exec sleep 600\n'
    f.script("slow.sh", slow)
    pids = tmp_path / "pids"

    def started(count):
        wait_for(lambda: pids.exists() and len(pids.read_text().split()) == count, 60,
                 f.suite.tails)
        return int(pids.read_text().split()[-1])

    run = f.start(script("slow", "slow.sh", timeout="3s"))
    assert f.wait(run, "failed") == {"slow": "failed"}
    assert "did not end within 3 s" in f.step(run, "slow")["error"]
    assert not alive(started(1))
    # held: ended, and begun anew when the run goes on
    run = f.start(script("slow", "slow.sh"), script("next", "slow.sh", "slow"), name="w2")
    first = started(2)
    assert f.steer(run, "pause")["status"] == "paused"
    wait_for(lambda: not alive(first), 60, f.suite.tails)
    assert f.job(run, "slow", "paused")["substatus"] == "paused"
    f.steer(run, "resume")
    second = started(3)
    f.steer(run, "cancel")
    assert f.wait(run, "cancelled") == {"slow": "cancelled", "next": "cancelled"}
    assert not alive(second)
    # a script that is not there any more, or may not be run, fails its step alone
    (f.directory / "slow.sh").chmod(0o777)
    f.steer(run, "retry")
    f.wait(run, "failed")
    assert "written by others" in f.step(run, "slow")["error"]
    os.unlink(f.directory / "slow.sh")
    f.steer(run, "retry")
    wait_for(lambda: "slow.sh" in (f.step(run, "slow")["error"] or "") and
             f.step(run, "slow")["attempt"] == 3, 60, f.suite.tails)
    assert f.wait(run, "failed") == {"slow": "failed", "next": "skipped"}
    assert len(pids.read_text().split()) == 3


def test_a_conversion_and_an_import_as_steps(make, libvirtd, disk):
    f = make(libvirt={"uri": libvirtd.uri, "pool": "images", "network": "user",
                      "domain_type": "qemu"})
    export = f.suite.wait_job(f.api.submit(vm_path="web", format="ovf"), "completed")["result"]
    images_dir = f.suite.directory / "images" / "shop"
    run = f.start(
        {"id": "to-kvm", "type": "convert",
         "convert": {"source_path": export["ovf_path"], "output_path": str(images_dir),
                     "conversion_options": {"format": "qcow2"}}},
        {"id": "define", "type": "import", "depends_on": ["to-kvm"],
         "import": {"disks": [str(images_dir / "web-disk1.qcow2")], "vm_name": "shop",
                    "memory_mb": 128, "vcpus": 2}})
    assert f.wait(run, "completed") == {"to-kvm": "completed", "define": "completed"}
    made = f.job(run, "to-kvm", "completed")["result"]["conversion"]
    assert made["path_used"] == "builtin"
    images.compare(disk, made["output_files"][0], "qcow2")
    domain = f.job(run, "define", "completed")["result"]["libvirt_domain"]
    assert set(libvirtd.domains()) == {"shop"} and domain["name"] == "shop"
    images.compare(disk, pathlib.Path(domain["volumes"][0]["path"]), "qcow2")

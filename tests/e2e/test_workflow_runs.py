"""A workflow from its file to the exports, with the command line, while the scheduler is killed."""
import json
import os
import pathlib
import subprocess

import pytest

from tests.harness import images
from tests.harness.process import BIN
from tests.harness.vsphere import make_image, vm
from tests.harness.wait import wait_for

MB = 1 << 20
EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "workflows" / "rack-move.yaml"
VMS = ("db-a", "db-b", "app-a", "app-b")


@pytest.fixture
def disk(tmp_path):
    return make_image(tmp_path / "disk.raw", 8 * MB, [(MB, 2 * MB)])


@pytest.fixture
def suite(make_suite, make_vsphere, disk):
    suite = make_suite()
    suite.add_vsphere(make_vsphere([vm(n, disk) for n in VMS]))
    return suite


@pytest.fixture
def cli(suite, tmp_path):
    def call(*args, ok=True):
        env = dict(os.environ, XDG_CONFIG_HOME=str(tmp_path / "home"), LC_ALL="C.UTF-8",
                   HYPERSDK_URL=suite.url())
        done = subprocess.run([BIN / "hyperexport", *args], capture_output=True, text=True,
                              timeout=120, env=env)
        assert (done.returncode == 0) == ok, (args, done.stdout, done.stderr, suite.tails())
        return done.stdout if ok else done.stderr
    return call


def test_the_example_runs_from_its_file_over_kills_of_the_scheduler(suite, cli, disk):
    made = cli("workflow", "create", str(EXAMPLE))
    assert made.startswith("workflow-id: wf-")
    assert "exists already" in cli("workflow", "create", str(EXAMPLE), ok=False)
    assert "\track-move\t" in cli("workflow", "list", "--quiet")
    assert len(json.loads(cli("workflow", "show", "rack-move"))["steps"]) == 4
    run = cli("workflow", "run", "rack-move").split()[1]
    for done in (1, 2, 3):
        wait_for(lambda n=done: sum(s["items_completed"] for s in json.loads(
            cli("workflow", "status", run, "--json"))["steps"]) >= n, 90, suite.tails)
        suite["scheduler"].kill()
        suite["scheduler"].start()
    shown = cli("workflow", "status", run, "--watch")
    assert "status: completed" in shown and "rack-move" in shown
    view = json.loads(cli("workflow", "status", run, "--json"))
    steps = {s["id"]: s for s in view["steps"]}
    assert {k: s["status"] for k, s in steps.items()} == {
        "dbs": "completed", "settle": "completed", "apps": "completed",
        "full-copy-of-the-databases": "skipped"}
    assert steps["apps"]["started_at"] >= steps["settle"]["completed_at"] >= \
        steps["dbs"]["completed_at"]
    jobs = [suite.client.job(j) for s in view["steps"] for j in s["job_ids"]]
    assert sorted(j["vm_name"] for j in jobs) == sorted(VMS)
    assert len(suite.sql("SELECT 1 FROM exports")) == 4, "no VM was exported twice"
    for job in jobs:
        assert job["format"] == ("qcow2" if job["vm_name"].startswith("app") else "ovf")
        image = next(f["name"] for f in job["result"]["files"] if f["type"] == "disk")
        images.compare(disk, pathlib.Path(job["result"]["output_path"]) / image,
                       "qcow2" if image.endswith(".qcow2") else "vmdk")
    assert cli("workflow", "delete", "rack-move", "--yes").startswith("deleted: wf-")


def test_a_failed_step_is_retried_from_the_command_line(suite, cli, tmp_path):
    path = tmp_path / "w.yaml"
    path.write_text("name: two\nsteps:\n  - {id: a, type: batch, vms: [db-a, not-there-yet]}\n"
                    "  - {id: b, type: job, job: {vm_path: db-b}, depends_on: [a]}\n")
    cli("workflow", "create", str(path))
    shown = cli("workflow", "run", "two", "--watch", "--json", ok=False)
    assert shown == ""
    run = suite.sql("SELECT id FROM workflow_runs")[0]["id"]
    status = cli("workflow", "status", run)
    assert "1 of 2 failed" in status and "not-there-yet" in status and "skipped" in status
    paused = cli("workflow", "pause", run, ok=False)
    assert "ended" in paused
    suite.client.post("/api/v1/queue/pause", {})  # it would fail again before the cancel comes
    cli("workflow", "retry", run)
    assert "status: cancel" in cli("workflow", "cancel", run)
    path.write_text("name: bad\nsteps:\n  - {id: a, type: wait, duration: 1, depends_on: [a]}\n")
    assert "step 'a'" in cli("workflow", "create", str(path), ok=False)
    path.write_text("name: [\n")
    assert "line" in cli("workflow", "create", str(path), ok=False)

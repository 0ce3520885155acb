"""Backup policies and templates by the command line, against the real suite."""
import json
import os
import subprocess

import pytest

from tests.harness import images
from tests.harness.process import BIN, ROOT
from tests.harness.vsphere import make_image, vm

MB = 1 << 20
EXAMPLE = ROOT / "examples" / "policies" / "nightly-production.yaml"


@pytest.fixture
def disk(tmp_path):
    return make_image(tmp_path / "disk.raw", 2 * MB, [(0, MB)])


@pytest.fixture
def suite(make_suite, make_vsphere, disk, tmp_path):
    gone = make_image(tmp_path / "gone.raw", MB, [(0, 512)])
    suite = make_suite()
    suite.gone = gone
    suite.add_vsphere(make_vsphere([vm("a", disk, tags=["env:production"]),
                                    vm("b", gone, tags=["env:production"], power="off"),
                                    vm("scratch-1", disk, tags=["env:production"]),
                                    vm("other", disk)]))
    return suite


@pytest.fixture
def cli(suite, tmp_path):
    def call(*args, code=0):
        env = dict(os.environ, XDG_CONFIG_HOME=str(tmp_path / "home"), LC_ALL="C.UTF-8",
                   HYPERSDK_URL=suite.url())
        done = subprocess.run([BIN / "hyperexport", *map(str, args)], capture_output=True, text=True,
                              timeout=120, env=env)
        assert done.returncode == code, (args, done.stdout, done.stderr, suite.tails())
        return done.stdout if code in (0, 7) else done.stderr
    return call


def test_a_policy_from_its_file_to_its_results(suite, cli, tmp_path):
    made = cli("policy", "create", EXAMPLE).splitlines()
    assert made[0].startswith("policy-created: pol-") and made[1] == "matching VMs: 2"
    id = made[0].split()[1]
    assert cli("policy", "list", "--quiet") == f"{id}=nightly-production\n"
    preview = cli("policy", "preview", "nightly-production", "--quiet").splitlines()
    assert sorted(line.split("=")[1] for line in preview) == ["/DC0/vm/a", "/DC0/vm/b"]
    assert "has not run yet" in cli("policy", "results", id, code=2)
    shown = json.loads(cli("policy", "run", id, "--watch", "--json"))
    assert [(r["vm_name"], r["status"]) for r in shown] == [("a", "completed"), ("b", "completed")]
    suite.gone.unlink()
    table = cli("policy", "run", "nightly-production", "--watch", code=7).splitlines()
    assert table[0].split() == ["VM", "STATUS", "JOB", "PHASE", "ERROR"]
    assert [line.split()[:2] for line in table[1:]] == [["/DC0/vm/a", "completed"],
                                                        ["/DC0/vm/b", "failed"]]
    assert cli("policy", "results", id, "--quiet").splitlines() == ["/DC0/vm/a=completed",
                                                                    "/DC0/vm/b=failed"]
    assert [line.split("=")[1] for line in cli("policy", "runs", id, "--quiet").splitlines()] == [
        "failed", "ok"]
    changes = tmp_path / "changes.json"
    changes.write_text('{"vm_filter": {"name": "a"}, "enabled": false}')
    job = shown[0]["job_id"]
    assert "matching VMs: 1" in cli("policy", "update", "nightly-production", changes, "--depends-on",
                                    f"{job}:final")
    policy = json.loads(cli("policy", "show", id))
    assert policy["enabled"] is False and policy["retention"] == {"count": 7}
    assert policy["depends_on"] == [{"job_id": job, "required_state": "final", "timeout": "86400s"}]
    second = tmp_path / "second.json"
    second.write_text('{"name": "second", "schedule": "@yearly", "vm_filter": {"name": "a"},'
                      ' "depends_on": [{"job_id": "replaced"}]}')
    cli("policy", "create", second, "--depends-on", "nightly-production::2h")
    assert json.loads(cli("policy", "show", "second"))["depends_on"] == [
        {"schedule_id": id, "required_state": "completed", "timeout": "7200s"}]
    assert "was not deleted (--yes deletes it)" in cli("policy", "delete", id, code=2)
    assert cli("policy", "delete", "nightly-production", "--yes") == f"deleted: {id}\n"
    assert "there is no backup policy" in cli("policy", "show", id, code=2)


def test_templates_are_kept_rendered_and_used(suite, cli, disk, tmp_path):
    file = tmp_path / "t.yaml"
    file.write_text('format: qcow2\noutput_path: "t/{{ .VMName }}"\nmetadata: {by: "{{ .JobID }}"}\n')
    assert cli("template", "create", "move", file) == "template-created: move\n"
    assert "already" in cli("template", "create", "move", file, code=2)
    assert json.loads(cli("template", "show", "move"))["template"]["format"] == "qcow2"
    job = json.loads(cli("template", "render", "move", "--vm", "/DC0/vm/x/web", "--set", "JobID=j-1"))
    assert job["output_path"] == "t/web" and job["metadata"] == {"by": "j-1"}
    assert "NAME=VALUE" in cli("template", "render", "move", "--set", "JobID", code=64)
    assert cli("export", "--template", "move", "--vm", "a", "--quiet").startswith("success: a exported")
    images.compare(disk, suite.exports / "t" / "a" / "a-disk1.qcow2", "qcow2")
    cli("export", "--template", "move", "--vm", "a", "--format", "raw", "--output", "own", "--quiet")
    images.compare(disk, suite.exports / "own" / "a-disk1.raw", "raw")
    file.write_text('vm_path: /DC0/vm/a\nformat: raw\noutput_path: "whole"\n')
    assert cli("template", "update", "move", file) == "template-updated: move\n"
    cli("--template", "move", "--quiet")
    images.compare(disk, suite.exports / "whole" / "a-disk1.raw", "raw")
    assert cli("template", "list", "--quiet") == "move=api\n"
    assert "--vm NAME is missing" in cli("export", "--template", "move", "--resume", code=64)
    assert "was not deleted" in cli("template", "delete", "move", code=2)
    assert cli("template", "delete", "move", "--yes") == "deleted: move\n"
    assert "no template" in cli("export", "--template", "move", "--vm", "a", code=2)

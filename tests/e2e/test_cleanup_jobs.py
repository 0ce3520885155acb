"""Clean-ups that come with an export, and what becomes of them when things go wrong."""
import json
import pathlib
import subprocess

import pytest

from tests.e2e.test_restore_points import hyperexport
from tests.harness.process import BIN
from tests.harness.vsphere import make_image, vm
from tests.harness.wait import wait_for

MB = 1 << 20


@pytest.fixture
def suite(make_suite, make_vsphere, tmp_path):
    disk = make_image(tmp_path / "disk.raw", 4 * MB, [(0, MB)])
    sim = make_vsphere([vm("web", disk), vm("db", disk)])
    suite = make_suite()
    suite.add_vsphere(sim)
    return suite


def export(suite, name="web", **fields):
    job = suite.client.submit(vm_path=name, format="raw", **fields)
    return suite.wait_job(job, "completed")["result"]


def directory(result):
    return pathlib.Path(result["output_path"])


def export_id(result):
    return json.loads((directory(result) / "export.json").read_text())["export_id"]


def test_a_job_takes_old_exports_away_when_it_is_complete(suite):
    old = [export(suite) for _ in range(3)]
    other = export(suite, "db")
    job = export(suite, cleanup={"max_count": 2, "preserve": [export_id(old[0])]})
    cleaned = suite.wait_job(job["cleanup_job_id"], "completed")
    assert cleaned["kind"] == "cleanup" and cleaned["output_path"] == str(suite.exports)
    result = cleaned["result"]
    assert [d["path"] for d in result["deleted"]] == [old[1]["output_path"]]
    assert [(p["path"], p["reason"]) for p in result["preserved"]] == [(old[0]["output_path"], "preserved")]
    assert not directory(old[1]).exists()
    assert all((directory(r) / "export.json").exists() for r in (old[0], old[2], other, job))
    volume = suite.sql("SELECT volume FROM tasks WHERE job_id = %s", job["cleanup_job_id"])[0]["volume"]
    assert volume == (suite.exports / ".hypersdk-volume").read_text().strip()
    # of a job that fails nothing is taken away
    count = suite.sql("SELECT count(*) AS n FROM jobs WHERE kind = 'cleanup'")[0]["n"]
    failed = suite.client.submit(vm_path="nobody", cleanup={"max_count": 1}, retry={"max_attempts": 1})
    suite.wait_job(failed, "failed")
    assert suite.sql("SELECT count(*) AS n FROM jobs WHERE kind = 'cleanup'")[0]["n"] == count


def test_following_a_job_tells_why_it_waits(make_suite, make_vsphere, tmp_path):
    sim = make_vsphere([vm("web", make_image(tmp_path / "gone.raw", MB, []))])
    suite = make_suite()
    suite.add_vsphere(sim)
    sim.stop()
    job = suite.client.submit(vm_path="web", retry={"initial_delay": "1h", "max_delay": "1h"})
    wait_for(lambda: suite.client.job(job)["error"] and suite.client.job(job)["status"] == "pending", 60)
    watch = subprocess.Popen([BIN / "hyperexport", "--daemon-watch", job, "--daemon-url", suite.url()],
                             stderr=subprocess.PIPE, text=True)
    try:
        assert any("waits, and will be tried again: " in line for line in watch.stderr)
    finally:
        watch.kill()
        watch.wait()


def test_the_rules_are_confined_and_need_the_right_to_delete(suite):
    refused = suite.client.request("POST", "/api/v1/jobs", {"vm_path": "web", "cleanup": {"dir": "/etc"}})
    assert refused.status_code == 422 and refused.json()["field"] == "cleanup.dir"
    refused = suite.client.request("POST", "/api/v1/jobs", {"vm_path": "web", "cleanup": {"max_cuont": 1}})
    assert refused.status_code == 400 and refused.json()["field"] == "cleanup.max_cuont"


def test_a_clean_up_that_fails_leaves_the_export_good_and_ends_with_8(suite):
    old = export(suite)
    # in the way of what is moved there
    (directory(old) / f".hypersdk-trash-{export_id(old)}").write_text("")
    done = hyperexport(suite, "--vm", "web", "--format", "raw", "--quiet", "--cleanup",
                       "--cleanup-max-count", "1")
    assert done.returncode == 8, done.stdout + done.stderr
    assert "success: web exported to " in done.stdout and "moved away" in done.stderr
    (directory(old) / f".hypersdk-trash-{export_id(old)}").unlink()
    done = hyperexport(suite, "--vm", "web", "--format", "raw", "--quiet", "--cleanup",
                       "--cleanup-max-count", "1")
    assert done.returncode == 0 and "cleanup: deleted=2 " in done.stdout, done.stderr
    done = hyperexport(suite, "--vm", "web", "--format", "raw", "--quiet", "--detach", "--cleanup",
                       "--cleanup-max-count", "1")
    assert done.returncode == 0 and done.stdout.startswith("job-id: "), done.stderr
    job = suite.wait_job(done.stdout.split()[1], "completed")["result"]["cleanup_job_id"]
    assert suite.wait_job(job, "completed")["result"]["deleted_count"] == 1


def test_a_clean_up_goes_on_after_a_kill(suite):
    """The worker dies with exports half removed: the next lease removes the rest, the catalogue knows."""
    exports = [export(suite) for _ in range(30)]
    job = suite.client.post("/api/v1/exports/cleanup", {"max_count": 1}, status=202)["job_id"]
    gone = directory(exports[-4])
    wait_for(lambda: not gone.exists(), what="the clean-up has begun")
    suite["exporter-vsphere"].kill()
    suite["exporter-vsphere"].start()
    result = suite.wait_job(job, "completed", deadline=120)["result"]
    assert result["kept_count"] == 1
    left = [r for r in exports if (directory(r) / "export.json").exists()]
    assert left == exports[-1:]
    assert [r["path"] for r in suite.sql("SELECT path FROM exports")] == [exports[-1]["output_path"]]
    found = subprocess.run(["find", suite.exports, "-name", ".hypersdk-trash*"], capture_output=True, text=True)
    assert found.stdout == ""

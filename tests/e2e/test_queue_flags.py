"""What an export of the command line waits for: other jobs, time windows, its deadline."""
import json
from datetime import datetime, timedelta, timezone

import pytest

from tests.e2e.test_restore_points import hyperexport
from tests.harness.vsphere import make_image, vm
from tests.harness.wait import wait_for

MB = 1 << 20


@pytest.fixture
def suite(make_suite, make_vsphere, tmp_path):
    suite = make_suite()
    suite.add_vsphere(make_vsphere([vm("web", make_image(tmp_path / "disk.raw", MB, [(0, 512)]))]))
    return suite


def ahead(form="%H:%M", **delta):
    return (datetime.now(timezone.utc) + timedelta(**delta)).strftime(form)


def detached(suite, *flags):
    done = hyperexport(suite, "--vm", "web", "--format", "raw", "--detach", "--json", *flags)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["job_id"]


def waits(suite, job, text):
    def look():
        found = suite.client.job(job)
        return found if text in found["pending_reason"] else None
    return wait_for(look, 30, lambda: f"{suite.client.job(job)}\n{suite.tails()}")


def test_windows_dependencies_and_the_deadline_of_an_export(suite):
    shut = f"daily {ahead(hours=3)}-{ahead(hours=5)} UTC"
    first = detached(suite, "--time-windows", shut, "--on-window-end", "pause")
    found = waits(suite, first, "outside its time windows")
    assert found["not_before"] > ahead("%Y-%m-%dT%H:%M", hours=2)
    assert found["definition"]["on_window_end"] == "pause"
    second = detached(suite, "--depends-on", first)
    assert first in waits(suite, second, "wait")["pending_reason"]
    late = detached(suite, "--depends-on", f"{first},{second}", "--deadline",
                    ahead("%Y-%m-%dT%H:%M:%SZ", hours=1))
    suite.sql("UPDATE jobs SET deadline = now() - interval '1 ms' WHERE id = %s", late)
    assert suite.wait_job(late, "failed")["error_code"] == "deadline"
    opened = detached(suite, "--time-windows", f"{shut}; daily 00:00-24:00")
    suite.wait_job(opened, "completed")
    suite.client.request("POST", f"/api/v1/jobs/{first}/cancel")
    assert first in suite.wait_job(second, "failed")["error"]


@pytest.mark.parametrize("flags, text", [
    (("--time-windows", "at night"), "time_windows"),
    (("--depends-on", "job-0000000000000000"), "depends_on"),
    (("--deadline", "tomorrow"), "'deadline' must be a time"),
    (("--on-window-end", "stop"), "continue, pause"),
    (("--deadline", "2099-01-01T00:00:00Z", "--daemon-schedule", "nightly:@daily"),
     "--deadline belongs to one export"),
    (("--depends-on", "job-0000000000000000", "--daemon-schedule", "nightly:@daily"),
     "job 'job-0000000000000000' does not exist"),
    (("--depends-on", "a week/ly", "--daemon-schedule", "nightly:@daily"),
     "schedule or policy 'a week/ly' does not exist"),
    (("--depends-on", "job-1:running", "--daemon-schedule", "nightly:@daily"),
     "must be completed, failed or final")])
def test_what_cannot_be_is_refused(suite, flags, text):
    refused = hyperexport(suite, "--vm", "web", "--detach", *flags)
    assert refused.returncode != 0 and text in refused.stderr, refused.stderr
    assert suite.sql("SELECT count(*) AS n FROM jobs")[0]["n"] == 0
    assert suite.sql("SELECT count(*) AS n FROM schedules")[0]["n"] == 0

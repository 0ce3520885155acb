"""Schedules through the whole suite: from the command line to exports that retention keeps."""
import pathlib

import pytest

from tests.e2e.test_restore_points import hyperexport
from tests.harness.vsphere import make_image, vm
from tests.harness.wait import wait_for

MB = 1 << 20


@pytest.fixture
def suite(make_suite, make_vsphere, tmp_path):
    sim = make_vsphere([vm("web", make_image(tmp_path / "disk.raw", 2 * MB, [(0, MB)]))])
    suite = make_suite()
    suite.add_vsphere(sim)
    return suite


def runs(suite, schedule):
    return suite.client.get(f"/schedules/{schedule}/runs")["runs"]


def wait_ended(suite, schedule, count):
    """The newest of `count` runs, when it and its clean-ups have ended."""
    def look():
        found = runs(suite, schedule)
        return found if len(found) == count and found[0]["completed_at"] else None
    run = wait_for(look, 60, lambda: f"{runs(suite, schedule)}\n{suite.tails()}")[0]
    assert run["status"] == "ok", run
    for job in run["cleanup_job_ids"]:
        suite.wait_job(job, "completed")
    return run


def fire(suite, schedule, count):
    """Now, or a second behind its last run: due times are whole seconds, no runs share one."""
    suite.sql("UPDATE schedules SET next_run_at = greatest(date_trunc('second', now()), (SELECT"
              " max(r.due_at) + interval '1 second' FROM schedule_runs r"
              " WHERE r.schedule_id = schedules.id)) WHERE id = %s", schedule)
    return wait_ended(suite, schedule, count)


def exports_below(directory):
    return sorted(p.parent for p in pathlib.Path(directory).rglob("export.json"))


def test_a_daily_export_by_the_command_line_keeps_as_many_as_it_should(suite):
    by_hand = suite.wait_job(suite.client.submit(vm_path="web", format="raw"), "completed")
    made = hyperexport(suite, "--vm", "web", "--format", "raw", "--snapshot", "--bandwidth-limit", "50",
                       "--snapshot-on-error", "continue",
                       "--daemon-schedule", "daily: 0 1 * * *", "--timezone", "Europe/Berlin",
                       "--cleanup-schedule", "24h", "--cleanup-max-count", "30", "--quiet")
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines() == ["schedule-created: daily",
                                        "schedule-created: cleanup every 24h"]
    assert suite.client.get("/api/v1/exports/cleanup/schedule")["max_count"] == 30
    schedule, = suite.client.get("/schedules")["schedules"]
    assert schedule["timezone"] == "Europe/Berlin" and schedule["name"] == "daily"
    assert schedule["job_template"] == {"vm_path": "web", "format": "raw", "snapshot": True,
                                        "snapshot_on_error": "continue", "bandwidth_limit_mbps": 50}
    later = hyperexport(suite, "--vm", "web", "--daemon-schedule", "later:@yearly", "--depends-on",
                        f"daily:final:6h,{by_hand['job_id']}", "--json")
    assert later.returncode == 0, later.stderr
    awaited, = suite.sql("SELECT fields->'depends_on' AS d FROM schedules WHERE name = 'later'")
    assert awaited["d"] == [
        {"schedule_id": schedule["id"], "required_state": "final", "timeout": "21600s"},
        {"job_id": by_hand["job_id"], "required_state": "completed", "timeout": "86400s"}]
    assert hyperexport(suite, "schedule", "delete", "later", "--yes").returncode == 0
    again = hyperexport(suite, "--vm", "web", "--daemon-schedule", "daily:@daily")
    assert again.returncode != 0 and "exists already" in again.stderr
    suite.client.put(f"/schedules/{schedule['id']}", {"retention": {"count": 2}})

    listed = hyperexport(suite, "schedule", "list")
    assert "daily" in listed.stdout and "Europe/Berlin" in listed.stdout, listed.stderr
    triggered = hyperexport(suite, "schedule", "trigger", "daily")
    assert triggered.stdout.startswith("job-id: job-"), triggered.stderr
    first = suite.wait_job(wait_ended(suite, schedule["id"], 1)["job_ids"][0], "completed")
    assert first["definition"]["snapshot_on_error"] == "continue"
    made = [first["result"]]
    for count in (2, 3, 4):
        run = fire(suite, schedule["id"], count)
        made.append(suite.wait_job(run["job_ids"][0], "completed")["result"])
    place = suite.exports / "web" / schedule["id"]
    kept = [pathlib.Path(r["output_path"]) for r in made[-2:]]
    assert exports_below(place) == sorted(kept)
    assert (pathlib.Path(by_hand["result"]["output_path"]) / "export.json").exists()
    catalogue = {e["path"] for e in suite.client.get("/api/v1/exports")["exports"]}
    assert catalogue == {str(p) for p in kept} | {by_hand["result"]["output_path"]}

    shown = hyperexport(suite, "schedule", "runs", "daily", "--quiet").stdout.splitlines()
    assert len(shown) == 4 and all(line.endswith("=ok") for line in shown)
    assert "disabled" in hyperexport(suite, "schedule", "disable", "daily").stdout
    assert suite.client.get(f"/schedules/{schedule['id']}")["next_run"] is None
    kept_it = hyperexport(suite, "schedule", "delete", "daily")
    assert kept_it.returncode == 2 and "schedule 'daily' was not deleted" in kept_it.stderr
    assert hyperexport(suite, "schedule", "delete", "daily", "--yes").returncode == 0
    assert suite.client.get("/schedules")["total"] == 0
    gone = hyperexport(suite, "schedule", "show", "daily")
    assert gone.returncode != 0 and "does not exist" in gone.stderr
    assert exports_below(place) == sorted(kept)


def test_an_incremental_schedule_makes_a_chain(suite):
    schedule = suite.client.post("/schedules", {
        "name": "chain", "cron": "@daily", "retention": {"count": 1},
        "job_template": {"vm_path": "web", "incremental": True}}, status=201)["schedule"]["id"]
    first = fire(suite, schedule, 1)
    second = fire(suite, schedule, 2)
    one, two = (suite.client.job(r["job_ids"][0])["result"] for r in (first, second))
    assert two["incremental"]["mode"] == "leaf" and two["incremental"]["base_dir"] == f"../{pathlib.Path(one['output_path']).name}"
    # the older one is what the newer one stands on: it stays
    assert len(exports_below(suite.exports / "web" / schedule)) == 2

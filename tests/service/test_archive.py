"""Jobs that ended long ago: out of the lists, still to be read, at last gone."""
import pytest

from tests.harness.scheduler import PUBLISHED
from tests.harness.wait import wait_for

HISTORY = {"archive_after": "1h", "delete_after": "10d"}


@pytest.fixture
def suite(make_suite):
    suite = make_suite(services=["scheduler", "api-gateway"], config={"history": HISTORY})
    suite.client.post("/api/v1/providers", {"kind": "vsphere", "host": "vc.example.com:443",
                                            "username": "u", "password": "p"}, status=201)
    return suite


def ended(suite, vm, hours, status="completed", release=False):
    job = suite.client.submit(vm_path=vm)
    if release:
        suite.sql("INSERT INTO tasks (id, kind, class, role, provider_kind, spec) SELECT 'task-r',"
                  " 'release', 'transfer', 'exporter', 'vsphere', jsonb_build_object('task_id', id)"
                  " FROM tasks WHERE job_id = %s", job)
    suite.sql("UPDATE tasks SET state = 'done' WHERE job_id = %s", job)
    suite.sql("INSERT INTO job_logs (job_id, at, level, phase, message)"
              " VALUES (%s, now(), 'warn', 'exporting', 'slow disk')", job)
    wait_for(lambda: suite.sql("SELECT 1 FROM job_events WHERE job_id = %s HAVING"
                               f" bool_and({PUBLISHED})", job), what="its events are published")
    suite.sql("UPDATE jobs SET status = %s, started_at = now() - %s * interval '1 hour',"
              " completed_at = now() - %s * interval '1 hour' WHERE id = %s",
              status, hours + 1, hours, job)
    return job


def test_an_old_job_moves_into_the_archive_and_reads_as_before(suite):
    api = suite.client
    new, waiting = ended(suite, "web", 0), api.submit(vm_path="db")
    old = ended(suite, "web", 2, "failed")
    wait_for(lambda: suite.sql("SELECT 1 FROM archived_jobs WHERE id = %s", old),
             what="it is archived")
    assert suite.sql("SELECT 1 FROM jobs WHERE id = %s", old) == []
    for table in ("tasks", "job_events", "job_logs"):
        assert suite.sql(f"SELECT 1 FROM {table} WHERE job_id = %s", old) == []
    job = api.get(f"/api/v1/jobs/{old}")
    assert job["archived"] is True and (job["status"], job["vm_path"]) == ("failed", "web")
    assert "archived" not in api.get(f"/api/v1/jobs/{new}")
    assert [e["event"] for e in api.get(f"/api/v1/jobs/{old}/history")["history"]] == ["job.created"]
    assert [line["message"] for line in api.get(f"/jobs/logs/{old}")["logs"]] == ["slow disk"]
    listed = [j["job_id"] for j in api.get("/api/v1/jobs?all=true")["jobs"]]
    assert sorted(listed) == sorted([new, waiting])
    archive = api.get("/api/v1/jobs?archived=true&vm=web")
    assert [j["job_id"] for j in archive["jobs"]] == [old] and archive["total"] == 1
    assert api.request("POST", f"/api/v1/jobs/{old}/retry").status_code == 404


def test_the_archive_forgets_and_leaves_what_a_worker_still_has_to_remove(suite):
    kept, gone = ended(suite, "db", 24 * 11, release=True), ended(suite, "web", 24 * 11)
    wait_for(lambda: suite.client.request("GET", f"/api/v1/jobs/{gone}").status_code == 404,
             what="the old one is forgotten")
    assert suite.sql("SELECT 1 FROM jobs WHERE id = %s", kept)
    suite.sql("UPDATE tasks SET state = 'done' WHERE id = 'task-r'")
    wait_for(lambda: suite.sql("SELECT 1 FROM jobs WHERE id = %s", kept) == [], what="then it goes")


def test_a_run_that_is_not_settled_still_finds_its_jobs(suite):
    """Of a scheduler that was away for longer than jobs stay."""
    made = suite.client.post("/api/v1/workflows", {"name": "w", "steps": [
        {"id": "a", "type": "job", "job": {"vm_path": "web"}},
        {"id": "b", "type": "wait", "duration": "1h", "depends_on": ["a"]}]}, status=201)
    run = suite.client.post(f"/api/v1/workflows/{made['id']}/run", status=202)["run_id"]
    job, = wait_for(lambda: suite.sql("SELECT id FROM jobs WHERE workflow_run_id = %s", run),
                    what="its job is there")
    marker = ended(suite, "db", 2)
    suite.sql("UPDATE tasks SET state = 'done' WHERE job_id = %s", job["id"])
    wait_for(lambda: suite.sql("SELECT 1 FROM job_events WHERE job_id = %s HAVING"
                               f" bool_and({PUBLISHED})", job["id"]), what="its events are published")
    suite.sql("UPDATE jobs SET status = 'completed', started_at = now() - interval '3 h',"
              " completed_at = now() - interval '3 h' WHERE id = %s", job["id"])
    second = ended(suite, "db", 2)
    for old in (marker, second):
        wait_for(lambda: suite.sql("SELECT 1 FROM archived_jobs WHERE id = %s", old),
                 what="the archive has looked")
    assert suite.sql("SELECT 1 FROM jobs WHERE id = %s", job["id"]), "its run is under way"
    wait_for(lambda: [s["status"] for s in suite.client.get(f"/api/v1/workflows/runs/{run}")["steps"]]
             == ["completed", "running"], what="the run has found it")
    suite.client.post(f"/api/v1/workflows/runs/{run}/cancel")
    wait_for(lambda: suite.sql("SELECT 1 FROM archived_jobs WHERE id = %s", job["id"]),
             what="it goes when the run has ended")


def test_the_archive_has_every_column_of_jobs(suite):
    columns = {table: {r["column_name"] for r in suite.sql(
        "SELECT column_name FROM information_schema.columns WHERE table_name = %s", table)}
        for table in ("jobs", "archived_jobs")}
    assert columns["jobs"] - columns["archived_jobs"] == set(), "add them in the same migration"

"""Schedules: the real gateway and schedulers, scripted workers. Due times are made by writing
schedules.next_run_at back; downtime by stopping the scheduler."""
import json
import re
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from tests.harness.driver import Driver, export_result
from tests.fakes.receiver import Receiver
from tests.harness.gateways import Socket, add_user, admin_password, login, sse, wait_subscribed
from tests.harness.client import Client
from tests.harness.scheduler import WANTS_ALL
from tests.harness.wait import free_port, wait_for

TEMPLATE = {"vm_identifier": "/dc/vm/web", "export_method": "ova"}
YEARLY = "0 0 1 1 *"


class Plan:
    """A suite of scheduler and gateway, a worker, and what tests ask of schedules."""

    def __init__(self, make_suite, dev=True, config=None):
        config = dict(config or {})  # the scripted worker does not renew: it shall lose nothing
        config["scheduler"] = {"lease": "120s", **config.get("scheduler", {})}
        self.suite = make_suite(services=["scheduler", "api-gateway"], dev=dev, config=config)
        for name in self.suite.processes:
            wait_for(lambda n=name: self.suite.ready(n), what=self.suite.tails)
        self.suite.sql("INSERT INTO providers (name, kind, settings) VALUES"
                       " ('vsphere', 'vsphere', '{\"host\": \"vc\"}')")
        self.suite.sql(WANTS_ALL)
        self.client = Client(self.suite.url())
        self.driver = Driver(self.suite.directory / "scheduler.yaml")
        self.number = 0

    def sql(self, query, *params):
        return self.suite.sql(query, *params)

    def create(self, **fields):
        self.number += 1
        body = {"name": f"plan-{self.number}", "cron": YEARLY, "timezone": "UTC",
                "job_template": TEMPLATE, **fields}
        return self.client.post("/api/v1/schedules", body, status=201)["schedule"]["id"]

    def due(self, schedule, at=None):
        """Now, or a second behind its last run: due times are whole seconds, no runs share one."""
        at = at or ("greatest(date_trunc('second', now()), (SELECT max(r.due_at)"
                    " + interval '1 second' FROM schedule_runs r"
                    " WHERE r.schedule_id = schedules.id))")
        self.sql(f"UPDATE schedules SET next_run_at = {at} WHERE id = %s", schedule)

    def runs(self, schedule, **query):
        return self.client.get(f"/schedules/{schedule}/runs", params=query)["runs"]

    def wait_runs(self, schedule, *statuses, deadline=60):
        """The runs, oldest first, once these are their states."""
        def look():
            runs = self.runs(schedule)[::-1]
            return runs if [r["status"] for r in runs] == list(statuses) else None
        return wait_for(look, deadline, lambda: f"runs {statuses}: {self.runs(schedule)}\n"
                        + self.suite.tails())

    def jobs(self, schedule):
        return self.client.get("/jobs/query", params={"schedule_id": schedule})["jobs"]

    def finish(self, fail=False):
        """The next queued export ends; its lease."""
        lease = self.driver.take()
        if fail:
            self.driver.on(lease, "fail", code="invalid", message="no such VM", retryable=False)
        else:
            self.number += 1
            result = export_result()
            result["export"]["id"] = f"exp-{self.number:016x}"
            self.driver.on(lease, "record", key="export.volume", value="vol-1")
            self.driver.finish(lease, result)
        return lease


@pytest.fixture
def make(make_suite):
    plans = []

    def start(**options):
        plans.append(Plan(make_suite, **options))
        return plans[-1]

    yield start
    for plan in plans:
        plan.driver.stop()


@pytest.fixture
def plan(make):
    return make()


def refused(plan, status, field, text, method="POST", path="/schedules", client=None, **changes):
    body = {"name": "bad", "cron": "@daily", "job_template": TEMPLATE, **changes}
    answer = (client or plan.client).request(method, path, body)
    assert answer.status_code == status, answer.text
    assert answer.json().get("field") == field and text in answer.json()["error"], answer.text
    return answer.json()


# ---- create, read, change, delete ----

def test_a_schedule_is_created_shown_changed_and_deleted_in_both_families(plan):
    seed = {"name": "daily-backup", "cron": "0 1 * * *",
            "job_definition": {"vm_identifier": "db-main", "export_method": "ova",
                               "hyper2kvm_integration": {"enabled": True}},
            "retention": {"count": 7}}
    made = plan.client.post("/schedules/create", seed, status=201)
    one = made["schedule"]
    assert "created" in made["message"] and re.fullmatch(r"sch-[0-9a-f]{16}", one["id"])
    assert one["schedule"] == "0 1 * * *" and one["retention"] == {"count": 7}
    assert one["job_template"] == seed["job_definition"] and one["enabled"] is True
    assert (one["overlap"], one["misfire"], one["jitter"]) == ("skip", "run_once", 0)
    assert one["last_run"] is None and one["run_count"] == 0 and one["created_by"] == "dev"
    zone = ZoneInfo(one["timezone"])
    local = datetime.fromisoformat(one["next_run"].replace("Z", "+00:00")).astimezone(zone)
    assert (local.hour, local.minute) == (1, 0)
    assert local - datetime.now(zone) <= timedelta(hours=25)
    other = plan.client.post("/schedules", dict(seed, name="other"), status=201)["schedule"]
    for path in ("/schedules", "/schedules/list", "/api/v1/schedules"):
        answer = plan.client.get(path)
        assert [s["id"] for s in answer["schedules"]] == [one["id"], other["id"]]
        assert answer["total"] == 2
    assert plan.client.get("/schedules", params={"name": "other"})["schedules"] == [other]
    assert plan.client.get(f"/schedules/{one['id']}") == one
    assert plan.client.get(f"/api/v1/schedules/{one['id']}") == one
    changed = plan.client.put(f"/schedules/{one['id']}", {"cron": "@hourly", "timezone": "Asia/Tokyo",
                                                          "retention": {}, "jitter": "30s"})["schedule"]
    assert changed["schedule"] == "@hourly" and changed["timezone"] == "Asia/Tokyo"
    assert changed["retention"] == {} and changed["jitter"] == 30 and changed["name"] == "daily-backup"
    assert changed["job_template"] == seed["job_definition"]
    assert changed["next_run"].endswith(":00:00.000Z")
    assert plan.client.delete(f"/schedules/{one['id']}")["id"] == one["id"]
    plan.client.get(f"/schedules/{one['id']}", status=404)
    plan.client.delete(f"/api/v1/schedules/{one['id']}", status=404)
    plan.client.put(f"/api/v1/schedules/{one['id']}", {"enabled": True}, status=404)
    plan.client.get(f"/schedules/{one['id']}/runs", status=404)
    assert plan.client.get("/capabilities")["features"]["schedules"] is True


def test_lists_are_paged(plan):
    ids = [plan.create() for _ in range(5)]
    seen, cursor = [], None
    while True:
        page = plan.client.get("/schedules", params={"limit": 2, **({"cursor": cursor} if cursor else {})})
        seen += [s["id"] for s in page["schedules"]]
        cursor = page.get("next_cursor")
        if not cursor:
            break
    assert seen == ids and page["total"] == 5
    assert plan.client.request("GET", "/schedules?cursor=x").status_code == 400


def test_what_is_wrong_is_refused_with_field_and_fix(plan):
    no_template = plan.client.request("POST", "/schedules", {"name": "x", "cron": "@daily"})
    assert no_template.status_code == 400 and no_template.json()["field"] == "job_template"
    refused(plan, 400, "schedule", "minute: 61 is not", cron="61 * * * *")
    refused(plan, 400, "schedule", "never fires", cron="0 0 31 2 *")
    refused(plan, 400, "schedule", "has a different value", schedule="@weekly")
    refused(plan, 400, "timezone", "unknown time zone", timezone="Mars/Base")
    refused(plan, 400, "timezone", "no time zone name", timezone="../../etc/passwd")
    refused(plan, 400, "overlap", "it is skip, queue or allow", overlap="pile")
    refused(plan, 400, "misfire", "it is run_once, skip or run_all", misfire="never")
    refused(plan, 400, "misfire_limit", "run_all", misfire_limit=3)
    refused(plan, 400, "retention.count", "from 1 to", retention={"count": 0})
    refused(plan, 400, "retention.keep", "unknown field", retention={"keep": 7})
    refused(plan, 400, "jitter", "whole number of seconds", jitter="1500ms")
    refused(plan, 400, "priority", "'job_template'", priority=3)
    refused(plan, 400, "nmae", "did you mean 'name'", nmae="x")
    refused(plan, 400, "time_windows", "two times like", time_windows=[{"start_time": "22:00"}])
    refused(plan, 400, "on_window_end", "continue, pause", on_window_end="stop",
            time_windows=["daily 01:00-02:00"])
    refused(plan, 400, "depends_on", "list of objects", depends_on=["sch-1"])
    refused(plan, 400, "depends_on", "either 'schedule_id' or 'job_id'", depends_on=[{"timeout": 5}])
    refused(plan, 400, "depends_on.required_state", "completed, failed or final",
            depends_on=[{"schedule_id": "sch-1", "required_state": "running"}])
    refused(plan, 422, "depends_on.schedule_id", "'sch-1' does not exist",
            depends_on=[{"schedule_id": "sch-1"}])
    refused(plan, 422, "depends_on.job_id", "job 'j' does not exist", depends_on=[{"job_id": "j"}])
    refused(plan, 422, "notify_on_failure", "job.failed and schedule.missed", notify_on_failure=True)
    # the template, exactly as a submit
    refused(plan, 400, "job_template.vm_path", "missing", job_template={"format": "ova"})
    refused(plan, 400, "job_template.vm_pth", "unknown field",
            job_template={"vm_path": "web", "vm_pth": "web"})
    refused(plan, 422, "job_template.provider", "nope",
            job_template={"vm_path": "web", "provider": "nope"})
    refused(plan, 422, "job_template.output_path", "outside",
            job_template={"vm_path": "web", "output_path": "/etc"})
    refused(plan, 422, "job_template.id", "belongs to one job", job_template={"vm_path": "web", "id": "j1"})
    refused(plan, 422, "job_template.encrypt.passphrase", "encrypt.key_ref",
            job_template={"vm_path": "web", "encrypt": {"passphrase": "correct horse battery"}})
    refused(plan, 422, "job_template", "configured provider",
            job_template={"vm_path": "web", "metadata": {"api_token": "x"}})
    refused(plan, 422, "retention", "keep the local files", retention={"count": 2},
            job_template={"vm_path": "web", "upload": "s3://bucket/x", "keep_local": False})
    assert plan.client.get("/schedules")["total"] == 0
    plan.create(name="one")
    taken = plan.client.request("POST", "/schedules", {"name": "one", "cron": "@daily",
                                                       "job_template": TEMPLATE})
    assert taken.status_code == 409 and "exists already" in taken.json()["error"]
    one = plan.client.get("/schedules")["schedules"][0]["id"]
    two = plan.create(depends_on=[{"schedule_id": one}], notify_on_failure=False)
    refused(plan, 422, "depends_on.schedule_id", "wait for itself", method="PUT",
            path=f"/schedules/{one}", depends_on=[{"schedule_id": two}], name="one")


def test_validate_shows_the_next_five_and_what_is_wrong(plan):
    good = plan.client.post("/schedules/validate", {"cron": "30 2 * * *", "timezone": "Europe/Berlin"})
    zone = ZoneInfo("Europe/Berlin")
    times = [datetime.fromisoformat(t.replace("Z", "+00:00")) for t in good["next_runs"]]
    assert good["valid"] is True and len(times) == 5 and times == sorted(set(times))
    assert times[0] > datetime.now(timezone.utc)
    assert all((t.astimezone(zone).hour, t.astimezone(zone).minute) in ((2, 30), (3, 0)) for t in times)
    bad = plan.client.post("/api/v1/schedules/validate", {"schedule": "0 0 * * * *"})
    assert bad["valid"] is False and bad["field"] == "schedule" and "6 fields" in bad["error"]
    assert "next_runs" not in bad
    bad = plan.client.post("/schedules/validate", {"schedule": "@daily", "job_template": {"format": "ova"}})
    assert bad["valid"] is False and bad["field"] == "job_template.vm_path"
    assert plan.client.get("/schedules")["total"] == 0


def test_who_may(make):
    plan = make(dev=False)
    admin = login(plan.suite, "admin", admin_password(plan.suite))
    plan.suite.client = admin
    operator, viewer = add_user(plan.suite, "olga", "operator"), add_user(plan.suite, "vera", "viewer")
    body = {"name": "mine", "cron": "@daily", "job_template": TEMPLATE}
    assert viewer.request("POST", "/schedules", body).status_code == 403
    made = operator.post("/schedules", body, status=201)["schedule"]
    assert made["created_by"] == "olga"
    assert viewer.get("/schedules")["total"] == 1 and viewer.get("/schedules/stats")["total"] == 1
    for path in ("enable", "disable", "trigger"):
        assert viewer.request("POST", f"/schedules/{made['id']}/{path}").status_code == 403
    assert viewer.request("DELETE", f"/schedules/{made['id']}").status_code == 403
    refused(plan, 403, "job_template.cleanup", "job.delete", client=operator,
            job_template=dict(TEMPLATE, cleanup={"max_count": 2}))
    job = operator.post(f"/schedules/{made['id']}/trigger")["job_id"]
    assert admin.job(job)["submitted_by"] == "olga"
    logs = admin.get("/audit/logs", params={"action": "schedule.create", "result": "success"})["logs"]
    assert [r["resource"] for r in logs] == [f"schedule/{made['id']}"]


# ---- runs ----

def test_a_due_schedule_makes_its_job_and_the_run_tells_how_it_ended(plan):
    schedule = plan.create(job_template=dict(TEMPLATE, tags={"a": "b"}))
    before = plan.client.get(f"/schedules/{schedule}")["next_run"]
    plan.due(schedule)
    run, = plan.wait_runs(schedule, "running")
    job, = plan.jobs(schedule)
    assert run["job_ids"] == [job["job_id"]] and job["schedule_id"] == schedule
    assert run["manual"] is False and run["started_at"] and run["completed_at"] is None
    base = str(plan.suite.exports)
    assert re.fullmatch(rf"{base}/web/{schedule}/\d{{8}}T\d{{6}}Z-[0-9a-f]{{8}}", job["output_path"])
    assert job["name"] == "plan-1" and job["submitted_by"] == "dev" and job["format"] == "ova"
    assert plan.client.get(f"/schedules/{schedule}")["next_run"] == before
    plan.finish()
    run, = plan.wait_runs(schedule, "ok")
    assert run["completed_at"] and run["reason"] == ""
    shown = plan.client.get(f"/schedules/{schedule}")
    assert shown["run_count"] == 1 and shown["last_status"] == "ok" and shown["last_run"]
    plan.due(schedule)
    plan.wait_runs(schedule, "ok", "running")
    plan.finish(fail=True)
    run = plan.wait_runs(schedule, "ok", "failed")[1]
    assert "no such VM" in run["reason"] and "0 of 1" in run["reason"]
    first, second = (j["output_path"] for j in plan.jobs(schedule))
    assert first != second
    stats = plan.client.get("/schedules/stats")
    assert stats["total"] == stats["enabled"] == 1 and stats["runs"]["ok"] == stats["runs"]["failed"] == 1
    assert plan.runs(schedule, status="failed") == [run]
    assert plan.client.get("/jobs/query", params={"schedule_id": "sch-none"})["total"] == 0


def test_restore_points_of_a_schedule_share_a_directory(plan):
    schedule = plan.create(job_template={"vm_path": "/dc/vm/web", "incremental": True})
    for _ in range(2):
        plan.client.post(f"/schedules/{schedule}/trigger")
        plan.finish()
        wait_for(lambda: plan.runs(schedule)[0]["status"] == "ok")
    assert {j["output_path"] for j in plan.jobs(schedule)} == {f"{plan.suite.exports}/web/{schedule}"}


def test_trigger_runs_at_once_also_a_disabled_one(plan):
    schedule = plan.create(enabled=False)
    assert plan.client.get(f"/schedules/{schedule}")["next_run"] is None
    answer = plan.client.post(f"/schedules/{schedule}/trigger")
    assert answer["job_ids"] == [answer["job_id"]] and answer["status"] == "running"
    assert plan.client.job(answer["job_id"])["schedule_id"] == schedule
    run, = plan.runs(schedule)
    assert run["manual"] is True and run["run_id"] == answer["run_id"]
    again = plan.client.request("POST", f"/schedules/{schedule}/trigger")
    assert again.status_code == 409 and "still under way" in again.json()["error"]
    assert len(plan.runs(schedule)) == 1
    plan.client.post("/jobs/cancel", {"job_ids": [answer["job_id"]]})
    plan.wait_runs(schedule, "failed")
    assert plan.client.post(f"/schedules/{schedule}/enable")["schedule"]["next_run"]
    assert plan.client.post(f"/schedules/{schedule}/disable")["schedule"]["next_run"] is None
    plan.client.post("/schedules/sch-none/trigger", status=404)


def test_a_disabled_schedule_does_not_fire_and_missed_times_are_not_made_up(plan):
    schedule, other = plan.create(), plan.create()
    plan.client.post(f"/schedules/{schedule}/disable")
    plan.due(schedule, "now() - interval '1 hour'")
    plan.due(other)
    plan.wait_runs(other, "running")
    assert plan.runs(schedule) == []
    shown = plan.client.post(f"/schedules/{schedule}/enable")["schedule"]
    assert shown["next_run"] > datetime.now(timezone.utc).isoformat()


def test_a_template_that_is_wrong_by_now_fails_the_run_not_the_schedule(plan):
    schedule = plan.create()
    plan.sql("UPDATE providers SET enabled = false")
    plan.due(schedule)
    run, = plan.wait_runs(schedule, "failed")
    assert "disabled" in run["reason"] and run["job_ids"] == [] and run["errors"][0]["vm_path"] == ""
    assert plan.client.request("POST", f"/schedules/{schedule}/trigger").status_code == 422
    plan.sql("UPDATE providers SET enabled = true")
    plan.due(schedule)
    plan.wait_runs(schedule, "failed", "running")


def test_jitter_delays_the_run_not_its_due_time(plan):
    schedule = plan.create(jitter=3600)
    rows = plan.sql("SELECT delay_ms FROM schedules WHERE id = %s", schedule)
    assert 0 <= rows[0]["delay_ms"] <= 3600000
    plan.sql("UPDATE schedules SET next_run_at = date_trunc('second', now()) - interval '1 second',"
             " delay_ms = 4000 WHERE id = %s", schedule)
    due = plan.client.get(f"/schedules/{schedule}")["next_run"]
    run, = plan.wait_runs(schedule, "running")
    assert run["due_at"] == due and run["reason"] == ""
    waited = plan.sql("SELECT extract(epoch FROM started_at - due_at) AS s FROM schedule_runs")[0]["s"]
    assert waited >= 4


# ---- overlap ----

def test_overlap_skip_leaves_the_run_out(plan):
    schedule = plan.create()
    plan.due(schedule)
    plan.wait_runs(schedule, "running")
    plan.due(schedule, "date_trunc('second', now()) + interval '1 second'")
    run = plan.wait_runs(schedule, "running", "skipped")[1]
    assert "still under way" in run["reason"] and run["job_ids"] == []
    assert len(plan.jobs(schedule)) == 1
    events = [r["event"] for r in plan.sql("SELECT event FROM outbox WHERE payload->>'schedule_id' = %s"
                                           " ORDER BY id", schedule)]
    assert events == ["schedule.triggered", "schedule.missed"]


def test_overlap_queue_starts_when_the_run_before_has_ended(plan):
    schedule = plan.create(overlap="queue")
    plan.due(schedule)
    plan.wait_runs(schedule, "running")
    plan.due(schedule, "date_trunc('second', now()) + interval '1 second'")
    plan.wait_runs(schedule, "running", "queued")
    answer = plan.client.post(f"/schedules/{schedule}/trigger")
    assert answer["status"] == "queued" and "job_id" not in answer
    assert len(plan.jobs(schedule)) == 1
    plan.finish()
    plan.wait_runs(schedule, "ok", "running", "queued")
    plan.finish()
    plan.wait_runs(schedule, "ok", "ok", "running")
    assert len(plan.jobs(schedule)) == 3


def test_overlap_allow_runs_beside_it(plan):
    schedule = plan.create(overlap="allow")
    plan.due(schedule)
    plan.wait_runs(schedule, "running")
    plan.due(schedule, "date_trunc('second', now()) + interval '1 second'")
    plan.wait_runs(schedule, "running", "running")
    assert len(plan.jobs(schedule)) == 2


# ---- dependencies ----

def test_a_run_waits_for_another_schedule(plan):
    first = plan.create()
    second = plan.create(depends_on=[{"schedule_id": first}])
    last = plan.create(depends_on=[{"schedule_id": second, "required_state": "final", "timeout": "2h"}])
    assert plan.client.get(f"/schedules/{last}")["depends_on"] == [
        {"schedule_id": second, "required_state": "final", "timeout": "7200s"}]
    # all due at the same time: whoever is looked at first, the order is that of the dependencies
    ids = [last, second, first]
    plan.sql("UPDATE schedules SET next_run_at = date_trunc('second', now()) WHERE id = ANY (%s)", ids)
    plan.wait_runs(first, "running")
    waits = plan.wait_runs(second, "queued")[0]
    assert waits["job_ids"] == [] and f"waits for schedule {first} to be completed" in waits["reason"]
    plan.wait_runs(last, "queued")
    plan.finish()
    assert plan.wait_runs(second, "running")[0]["reason"].startswith("waited for ")
    assert [r["status"] for r in plan.runs(last)] == ["queued"]
    plan.finish(fail=True)
    plan.wait_runs(second, "failed")
    plan.wait_runs(last, "running")
    plan.finish()
    plan.wait_runs(last, "ok")
    # what failed before: the next run of who needs it completed is left out, and says why
    plan.due(first)
    plan.wait_runs(first, "ok", "running")
    plan.finish(fail=True)
    plan.wait_runs(first, "ok", "failed")
    plan.due(second)
    run = plan.wait_runs(second, "failed", "skipped")[1]
    assert run["reason"] == f"it waits for schedule {first} to end as completed, but that is failed"
    told = plan.sql("SELECT event, payload FROM outbox WHERE payload->>'schedule_id' = %s"
                    " ORDER BY id DESC LIMIT 1", second)[0]
    assert told["event"] == "schedule.missed" and told["payload"]["status"] == "skipped"
    # that is long ago, though, for one whose turn comes with the other's: that run counts
    wait_for(lambda: plan.sql("SELECT 1 FROM schedule_runs HAVING max(due_at) < now() -"
                              " interval '2 seconds'"), what="all of it is past")
    plan.sql("UPDATE schedules SET next_run_at = (SELECT max(due_at) FROM schedule_runs) + CASE id"
             " WHEN %s THEN interval '1 second' ELSE interval '2 seconds' END WHERE id = ANY (%s)",
             second, [first, second])
    plan.wait_runs(second, "failed", "skipped", "queued")
    plan.finish()
    plan.wait_runs(second, "failed", "skipped", "running")
    plan.finish()
    plan.wait_runs(second, "failed", "skipped", "ok")
    # who asks for a run gets it at once
    plan.due(first)
    plan.wait_runs(first, "ok", "failed", "ok", "running")
    assert plan.client.post(f"/schedules/{second}/trigger")["job_id"]


def test_a_run_waits_for_a_job_and_not_for_ever(plan):
    job = plan.client.submit(vm_path="web")
    schedule = plan.create(overlap="allow", depends_on=[{"job_id": job, "timeout": 3600}])
    plan.due(schedule)
    plan.wait_runs(schedule, "queued")
    plan.due(schedule)
    plan.wait_runs(schedule, "queued", "queued")
    plan.sql("UPDATE schedule_runs SET created_at = created_at - interval '1 hour' WHERE seq ="
             " (SELECT min(seq) FROM schedule_runs)")
    late = plan.wait_runs(schedule, "skipped", "queued")[0]
    assert late["reason"].startswith(f"job {job} was not completed within 3600s: it is ")
    assert late["completed_at"] and late["job_ids"] == []
    plan.finish()
    plan.wait_runs(schedule, "skipped", "running")
    # without a run that could be looked at it waits; without the schedule there is no sense in it
    other = plan.create()
    schedule = plan.create(depends_on=[{"schedule_id": other}])
    plan.due(schedule)
    assert "it is without a run" in plan.wait_runs(schedule, "queued")[0]["reason"]
    plan.client.delete(f"/schedules/{other}")
    assert "was deleted" in plan.wait_runs(schedule, "skipped")[0]["reason"]
    # nothing to wait for any more
    changed = plan.client.put(f"/schedules/{schedule}", {"depends_on": []})["schedule"]
    assert "depends_on" not in changed
    plan.due(schedule)
    plan.wait_runs(schedule, "skipped", "running")


# ---- who is told ----

def test_live_clients_and_webhooks_are_told(make):
    receiver = Receiver()
    plan = make(config={"webhooks": {"allow_private": True, "endpoints": [
        {"url": receiver.url, "events": ["schedule.triggered", "schedule.missed", "job.completed"]}]}})
    plan.suite.add("notifier")
    wait_subscribed(plan.suite)
    watcher = Socket(plan.suite.url(), "/ws?topics=schedules")
    assert watcher.next()["subscription"] == ["schedules"]
    stream = plan.client.request("GET", "/events?topics=schedules", stream=True)
    streamed = (json.loads(b["data"]) for b in sse(stream) if b["event"] not in ("hello", "status"))
    schedule = plan.create(name="told")
    plan.due(schedule)
    fired = watcher.until("schedule.triggered", schedule_id=schedule)
    run = plan.wait_runs(schedule, "running")[0]
    assert (fired["run_id"], fired["job_ids"], fired["name"], fired["status"], fired["reason"]) == (
        run["run_id"], run["job_ids"], "told", "running", "")
    assert fired["seq"] > 0 and fired["timestamp"].endswith("Z") and "job_id" not in fired
    plan.due(schedule)
    missed = watcher.until("schedule.missed", status="skipped")
    assert missed["job_ids"] == [] and f"run {run['run_id']} is still under way" in missed["reason"]
    # nothing of jobs; and who comes back gets what it missed, by hand or not
    assert [m["type"] for m in watcher.seen if m["type"] not in ("hello", "status")] == [
        "schedule.triggered", "schedule.missed"]
    watcher.close()
    assert [next(streamed), next(streamed)] == [fired, missed]
    stream.close()
    plan.finish()
    plan.wait_runs(schedule, "ok", "skipped")
    asked = plan.client.post(f"/schedules/{schedule}/trigger")
    again = Socket(plan.suite.url(), f"/ws?topics=schedules&resume_from={fired['seq']}")
    again.until("schedule.triggered", run_id=asked["run_id"], job_ids=asked["job_ids"])
    with plan.client.request("GET", f"/events?topics=schedules&resume_from={fired['seq']}", stream=True) as stream:
        streamed = (json.loads(b["data"]) for b in sse(stream) if b["event"].startswith("schedule."))
        assert [next(streamed) for _ in range(2)] == again.seen[-2:]
    # those who did not ask for it are told of jobs only
    other = Socket(plan.suite.url(), f"/ws?resume_from={fired['seq'] - 1}")
    other.until("job.completed", job_id=run["job_ids"][0])
    assert not [m for m in other.seen if m["type"].startswith("schedule.")]

    def told():
        got = [r.json for r in receiver.requests]
        return sorted(got, key=lambda b: b["timestamp"]) if len(got) == 4 else None

    bodies = wait_for(told, what=lambda: [r.json for r in receiver.requests])
    receiver.stop()
    assert sorted(b["event"] for b in bodies) == ["job.completed", "schedule.missed",
                                                  "schedule.triggered", "schedule.triggered"]
    assert {b["schedule_id"] for b in bodies} == {schedule}
    by_event = {b["event"]: b for b in bodies}
    assert by_event["job.completed"]["job_id"] == run["job_ids"][0]
    assert by_event["schedule.missed"]["status"] == "skipped"
    assert "still under way" in by_event["schedule.missed"]["error"]
    # a run that is forgotten takes what was told of it along
    plan.client.delete(f"/schedules/{schedule}")
    assert plan.sql("SELECT 1 FROM job_events WHERE run_id IS NOT NULL") == []


# ---- missed runs ----

def months(count):
    """First days of the newest `count` months, oldest first; what a monthly schedule was due at."""
    now = datetime.now(timezone.utc)
    numbers = [now.year * 12 + now.month - 1 - i for i in range(count)][::-1]
    return [datetime(n // 12, n % 12 + 1, 1, tzinfo=timezone.utc) for n in numbers]


def after_downtime(plan, count=4, **fields):
    """A monthly schedule that was due `count` times while no scheduler ran."""
    schedule = plan.create(cron="@monthly", **fields)
    plan.suite["scheduler"].stop()
    plan.due(schedule, f"'{months(count)[0].isoformat()}'::timestamptz")
    plan.suite["scheduler"].start()
    return schedule


def dues(runs):
    return [datetime.fromisoformat(r["due_at"].replace("Z", "+00:00")) for r in runs]


def test_misfire_run_once(plan):
    schedule = after_downtime(plan)
    runs = plan.wait_runs(schedule, "missed", "missed", "missed", "running")
    assert dues(runs) == months(4) and "stands for it" in runs[0]["reason"]
    assert "late" in runs[3]["reason"] and len(plan.jobs(schedule)) == 1
    assert plan.client.get(f"/schedules/{schedule}")["next_run"] > datetime.now(timezone.utc).isoformat()
    plan.finish()
    assert "late" in plan.wait_runs(schedule, "missed", "missed", "missed", "ok")[3]["reason"]


def test_misfire_skip(plan):
    schedule = after_downtime(plan, misfire="skip")
    runs = plan.wait_runs(schedule, "missed", "missed", "missed", "missed")
    assert dues(runs) == months(4) and plan.jobs(schedule) == []
    rows = plan.sql("SELECT payload FROM outbox WHERE event = 'schedule.missed'")
    assert len(rows) == 1 and rows[0]["payload"]["error"].startswith("4 times")


def test_misfire_run_all_up_to_its_limit(plan):
    schedule = after_downtime(plan, count=5, misfire="run_all", misfire_limit=3, overlap="allow")
    runs = plan.wait_runs(schedule, "missed", "missed", "running", "running", "running")
    assert dues(runs) == months(5) and len(plan.jobs(schedule)) == 3
    assert "misfire_limit" in runs[0]["reason"]


def test_a_year_of_missed_minutes_is_caught_up_with_at_once(plan):
    schedule = plan.create(cron="* * * * *", misfire="skip")
    plan.due(schedule, "date_trunc('minute', now()) - interval '360 days'")
    wait_for(lambda: plan.runs(schedule))
    runs = [r for r in plan.runs(schedule, limit=1000) if r["status"] == "missed"]
    assert len(runs) == 100 and re.search(r"5\d{5} earlier ones", runs[-1]["reason"])


# ---- exactly once ----

@pytest.fixture
def two(make):
    """Leader and standby with addresses of their own."""
    names = ("lease", "events", "announce")
    addresses = {n: [f"tcp://127.0.0.1:{free_port()}" for _ in range(2)] for n in names}
    plan = make(config={"bus": addresses})
    settings = plan.suite.config("scheduler-2")
    for name in names:
        settings["bus"][f"listen_{name}"] = addresses[name][1]
    plan.suite.add("scheduler-2", settings)
    plan.suite["scheduler-2"].wait_event("standing_by")
    return plan


def all_once(plan, schedules):
    wait_for(lambda: plan.sql("SELECT count(*) AS n FROM schedule_runs")[0]["n"] >= len(schedules),
             what=plan.suite.tails)
    rows = plan.sql("SELECT s.id, (SELECT count(*) FROM schedule_runs r WHERE r.schedule_id = s.id) AS"
                    " runs, (SELECT count(*) FROM jobs j WHERE j.schedule_id = s.id) AS jobs,"
                    " s.next_run_at > now() AS ahead FROM schedules s")
    assert [(r["runs"], r["jobs"], r["ahead"]) for r in rows] == [(1, 1, True)] * len(schedules)


def test_a_leader_that_is_killed_while_it_fires_loses_and_doubles_nothing(two):
    plan = two
    schedules = [plan.create() for _ in range(40)]
    plan.sql("UPDATE schedules SET next_run_at = date_trunc('second', now())")
    wait_for(lambda: plan.sql("SELECT count(*) AS n FROM schedule_runs")[0]["n"] > 0, interval=0.005)
    plan.suite["scheduler"].kill()
    plan.suite["scheduler-2"].wait_event("leader_acquired")
    all_once(plan, schedules)


def test_a_leader_that_slept_fires_nothing_a_second_time(two):
    plan = two
    schedules = [plan.create() for _ in range(20)]
    plan.suite["scheduler"].pause()
    plan.sql("UPDATE schedules SET next_run_at = date_trunc('second', now())")
    wait_for(lambda: plan.suite["scheduler-2"].events("leader_acquired"))
    plan.suite["scheduler"].resume()
    all_once(plan, schedules)


def test_a_due_time_that_has_its_run_gets_no_second_one(plan):
    schedule = plan.create()
    plan.due(schedule)
    run, = plan.wait_runs(schedule, "running")
    plan.finish()
    plan.wait_runs(schedule, "ok")
    for _ in range(3):
        plan.due(schedule, f"'{run['due_at']}'::timestamptz")
        wait_for(lambda: plan.sql("SELECT next_run_at > now() AS ahead FROM schedules")[0]["ahead"])
    assert len(plan.runs(schedule)) == 1 and len(plan.jobs(schedule)) == 1


def test_schedules_survive_restarts(plan):
    schedule = plan.create(retention={"count": 3})
    shown = plan.client.get(f"/schedules/{schedule}")
    plan.suite["scheduler"].kill()
    plan.suite["api-gateway"].kill()
    plan.suite["scheduler"].start()
    plan.suite["api-gateway"].start()
    plan.client = Client(plan.suite.url())
    wait_for(lambda: plan.suite.ready("api-gateway"), what=plan.suite.tails)
    assert plan.client.get(f"/schedules/{schedule}") == shown
    plan.due(schedule)
    plan.wait_runs(schedule, "running")


# ---- retention ----

def test_after_a_good_run_retention_cleans_below_the_schedules_own_directory(plan):
    retention = {"count": 7, "age_days": 30, "size_bytes": 1000000}
    schedule = plan.create(retention=retention)
    plan.client.post(f"/schedules/{schedule}/trigger")
    plan.finish()
    run, = plan.wait_runs(schedule, "ok")
    cleanup_id, = run["cleanup_job_ids"]
    cleanup = plan.client.job(cleanup_id)
    assert cleanup["kind"] == "cleanup" and cleanup["schedule_id"] == schedule
    task = plan.sql("SELECT spec, volume FROM tasks WHERE job_id = %s", cleanup_id)[0]
    assert task["volume"] == "vol-1"
    assert task["spec"] == {"dir": f"{plan.suite.exports}/web/{schedule}", "max_count": 7,
                            "max_age_ms": 30 * 86400000, "max_size": 1000000, "per_vm": True}


def test_a_failed_run_removes_nothing(plan):
    schedule = plan.create(retention={"count": 1})
    plan.client.post(f"/schedules/{schedule}/trigger")
    plan.finish(fail=True)
    run, = plan.wait_runs(schedule, "failed")
    assert run["cleanup_job_ids"] == []
    assert plan.sql("SELECT count(*) AS n FROM jobs WHERE kind = 'cleanup'")[0]["n"] == 0


# ---- time windows ----

@pytest.fixture
def windowed(make):
    now = datetime.now(timezone.utc)
    opens, closes = ((now + timedelta(hours=h)).strftime("%H:%M") for h in (3, 5))
    plan = make(config={"scheduler": {"maintenance_windows": [
        f"nightly daily {opens}-{closes} UTC"]}})
    plan.opens, plan.closes, plan.same = opens, closes, f"daily {opens}-{closes} Etc/UTC"
    return plan


def test_the_jobs_of_a_schedule_wait_for_its_windows(windowed):
    plan = windowed
    schedule = plan.create(time_windows=["nightly", plan.same],
                           on_window_end="pause")
    shown = plan.client.get(f"/schedules/{schedule}")
    assert shown["time_windows"] == ["nightly", plan.same]
    assert shown["on_window_end"] == "pause"
    plan.client.post(f"/schedules/{schedule}/trigger", {})
    plan.wait_runs(schedule, "running")
    job = wait_for(lambda: [j for j in plan.jobs(schedule) if j["not_before"]],
                   what="it waits")[0]
    windows = job["definition"]["time_windows"]
    assert windows[0] == {"start_time": windowed.opens, "end_time": windowed.closes,
                          "timezone": "UTC", "days": ["mon", "tue", "wed", "thu", "fri", "sat",
                                                      "sun"]}
    assert windows[1] == {**windows[0], "timezone": "Etc/UTC"}
    assert job["not_before"].endswith(f"T{windowed.opens}:00.000Z")
    wait_for(lambda: "outside its time windows" in (plan.client.job(job["job_id"])
                                                    ["pending_reason"] or ""), what="it says why")
    refused(plan, 400, "time_windows", "'weekly' is no window of scheduler.",
            time_windows=["weekly"])
    refused(plan, 400, "time_windows", "leave one out", time_windows=["nightly"],
            job_template={**TEMPLATE, "time_windows": ["nightly"]})
    refused(plan, 400, "job_template.time_windows", "no window of",
            job_template={**TEMPLATE, "time_windows": ["weekly"]})
    refused(plan, 400, "on_window_end", "means nothing without", on_window_end="pause")
    plan.sql("INSERT INTO inventory_state (provider, generation, completed_at) VALUES ('vsphere', 'g',"
             " now())")  # else it is read first, by a worker that does not do that
    policy = plan.client.post("/backup-policies/create", {
        "name": "p", "schedule": YEARLY, "vm_filter": {"name": "*"}, "time_windows": "nightly",
        "on_window_end": "cancel"}, status=201)
    assert policy["time_windows"] == "nightly" and policy["on_window_end"] == "cancel"

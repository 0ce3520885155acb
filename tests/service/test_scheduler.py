"""The scheduler as workers and the gateway see it: leases, renewals, ends, losses. Workers are
scripted (tests/harness/driver.py) and speak the real bus; PostgreSQL and Redis are real."""
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from tests.harness.driver import export_result
from tests.harness.scheduler import bench  # noqa: F401
from tests.harness.wait import wait_for


# ---- leases ----

def test_a_parked_request_gets_the_task_at_once_and_all_that_belongs_to_it(bench):
    b = bench()
    b.sql("INSERT INTO credentials (provider, audience, key_id, sealed) VALUES ('vsphere',"
          " 'provider:vsphere', 'k', '\\x0102ff')")
    parked = b.driver.ask()
    job = b.driver.submit(trace_id="0123456789abcdef0123456789abcdef")
    lease = parked.lease()
    assert lease["job_id"] == job and lease["kind"] == "export" and lease["epoch"] == 1
    assert lease["spec"] == {"vm": "web"} and lease["provider"] == "vsphere"
    assert lease["settings"] == {"host": "vc"} and lease["sealed"] == "0102ff"
    assert lease["audience"] == "provider:vsphere" and lease["attempt"] == 0
    row = b.job(job)
    assert row["status"] == "running" and row["worker_id"] == "w1" and row["started_at"]
    assert b.task(lease["task_id"])["worker"] == "w1"
    assert b.history(job) == ["job.created", "job.started"]
    assert [r["event"] for r in b.outbox(job)] == ["job.started"]
    worker = b.sql("SELECT * FROM workers")[0]
    assert worker["instance"] == "w1" and worker["state"] == "up"
    assert worker["slots_transfer"] == 4 and worker["volumes"][0]["id"] == "vol-1"


def test_the_outbox_has_only_what_a_webhook_wants(bench):
    b = bench()
    for events, enabled, told in (("{job.completed,job.failed}", True, ["job.completed"]),
                                  ("{job.completed}", False, []), ("{}", True, [])):
        b.sql("UPDATE webhooks SET events = %s, enabled = %s", events, enabled)
        job = b.driver.submit()
        b.driver.finish(b.driver.take(), export_result())
        assert b.job(job)["status"] == "completed"
        assert [r["event"] for r in b.outbox(job)] == told, events


def test_a_request_without_a_task_is_answered_none_after_twenty_seconds(bench):
    b = bench()
    answer = b.driver.ask().get()
    assert answer["reply"] == "no_task"


def test_higher_priority_goes_first_then_the_older_job(bench):
    b = bench()
    low, first, second, high = (b.driver.submit(priority=p) for p in (10, 50, 50, 90))
    assert [b.driver.take(slot=i)["job_id"] for i in range(4)] == [high, first, second, low]


def test_a_worker_gets_only_what_it_can_do(bench):
    b = bench()
    b.driver.submit()
    others = [b.driver.ask("a", provider="aws"), b.driver.ask("b", kinds=["import"]),
              b.driver.ask("c", role="bridge", provider="", kinds=["convert"]),
              b.driver.ask("d", transfer=False, kinds=["export"])]
    b.driver.take(instance="right")
    assert all(o.waits() for o in others)


def test_a_task_on_existing_files_goes_only_to_workers_that_reach_the_volume(bench):
    b = bench()
    job = b.driver.submit()
    lease = b.driver.take()
    b.driver.on(lease, "record", key="export.volume", value="vol-7")
    assert b.driver.on(lease, "yield")["refused"] == ""
    far = b.driver.ask("far", volumes=["vol-1"])
    b.wait_reason(job, "no connected worker reaches the volume vol-7")
    assert far.waits()
    assert b.driver.take(instance="near", volumes=["vol-1", "vol-7"])["job_id"] == job


def test_provider_limit_holds_over_all_workers(bench):
    b = bench(config={"export": {"provider_limit": 2}})
    jobs = [b.driver.submit() for _ in range(3)]
    other = b.driver.submit(provider="other")
    leases = [b.driver.take(instance=f"w{i}") for i in range(3)]
    assert [x["job_id"] for x in leases] == [jobs[0], jobs[1], other]
    waits = b.driver.ask("w3")
    b.wait_reason(jobs[2], "limit of 2 exports at a time for provider vsphere")
    assert waits.waits()
    b.driver.finish(leases[0], export_result())
    assert waits.lease()["job_id"] == jobs[2]


def test_a_disabled_provider_gets_no_new_exports(bench):
    b = bench()
    b.sql("UPDATE providers SET enabled = false WHERE name = 'vsphere'")
    job = b.driver.submit()
    waits = b.driver.ask()
    b.wait_reason(job, "provider vsphere is disabled")
    assert waits.waits()
    b.sql("UPDATE providers SET enabled = true WHERE name = 'vsphere'")
    assert waits.lease()["job_id"] == job


def test_a_job_whose_provider_was_removed_fails_and_says_so(bench):
    b = bench()
    job = b.driver.submit(provider="other")
    b.sql("DELETE FROM providers WHERE name = 'other'")
    waits = b.driver.ask()
    b.wait_status(job, "failed")
    assert b.job(job)["error"] == "provider 'other' does not exist any more"
    assert waits.waits()


def test_a_listing_never_waits_behind_exports(bench):
    b = bench()
    for i in range(4):
        b.driver.submit()
        b.driver.take(slot=i)
    b.driver.submit()
    task = b.control_task("vm_info", spec={"vm": "web"})
    lease = b.driver.take(transfer=False, kinds=["vm_info", "inventory"])
    assert lease["task_id"] == task and lease["job_id"] == ""
    assert b.driver.finish(lease, {"vm": {"name": "web"}}) == {
        "id": lease["id"] + 1, "reply": "ack", "lost": False, "again": False, "refused": ""}
    row = b.task(task)
    assert row["state"] == "done" and row["result"] == {"vm": {"name": "web"}}


def test_ten_jobs_over_two_workers_are_each_done_once(bench):
    b = bench()
    jobs = [b.driver.submit() for _ in range(10)]
    seen = []
    for i in range(5):
        asked = [b.driver.ask(w, slot=i % 2) for w in ("w1", "w2")]
        for instance, pending in zip(("w1", "w2"), asked):
            lease = pending.lease()
            seen.append((lease["job_id"], instance))
            result = export_result()
            result["export"]["id"] = f"exp-{len(seen):016x}"
            assert not b.driver.finish(lease, result)["lost"]
    assert sorted(j for j, _ in seen) == sorted(jobs)
    assert {w for _, w in seen} == {"w1", "w2"}
    assert b.total("hypersdk_jobs_total", status="completed", provider="vsphere") == 10
    assert all(t["epoch"] == 1 for j in jobs for t in b.tasks(j))


def test_the_request_of_a_dead_worker_gets_no_task(bench):
    b = bench()
    ghost = b.more()
    ghost.parked(instance="ghost")
    ghost.kill()
    living = b.driver.parked(instance="living")
    job = b.driver.submit()
    assert living.lease()["job_id"] == job


def test_a_leaving_worker_is_sent_away_and_shown_as_draining(bench):
    b = bench()
    parked = [b.driver.ask(slot=i) for i in range(2)]
    assert b.driver.ask(leaving=True).get()["reply"] == "no_task"
    assert [p.get()["reply"] for p in parked] == ["no_task", "no_task"]
    assert b.sql("SELECT state FROM workers")[0]["state"] == "draining"


# ---- while a lease lives ----

def test_renewals_keep_the_lease_and_store_each_log_line_once(bench):
    b = bench()
    job = b.driver.submit()
    lease = b.driver.take()
    before = b.task(lease["task_id"])["lease_until"]
    lines = [{"number": i, "at_ms": 1772330400000 + i, "level": "info", "phase": "exporting",
              "message": f"line {i} 'ä"} for i in (1, 2, 3)]
    first = b.driver.on(lease, "renew", phase="exporting", lines=lines[:2])
    assert first["lines_stored"] == 2 and not first["lost"] and first["controls"] == []
    again = b.driver.on(lease, "renew", phase="exporting", lines=lines)
    assert again["lines_stored"] == 3
    rows = b.sql("SELECT number, message, phase FROM job_logs WHERE job_id = %s ORDER BY id", job)
    assert [(r["number"], r["message"]) for r in rows] == [(x["number"], x["message"])
                                                          for x in lines]
    assert b.job(job)["phase"] == "exporting"
    assert b.task(lease["task_id"])["lease_until"] > before


def test_a_stale_token_or_epoch_changes_nothing_and_is_told_lost(bench):
    b = bench()
    b.driver.submit()
    lease = b.driver.take()
    row = b.task(lease["task_id"])
    for wrong in (dict(lease, token="00" * 16), dict(lease, epoch=lease["epoch"] + 1),
                  dict(lease, task_id="task-0000000000000000")):
        assert b.driver.on(wrong, "renew")["lost"]
        assert b.driver.on(wrong, "record", key="k", value="v")["lost"]
        answer = b.driver.on(wrong, "permit")
        assert answer["lost"] and not answer["granted"]
        assert b.driver.finish(wrong, export_result())["lost"]
        assert b.driver.on(wrong, "fail", code="internal", message="x")["lost"]
        assert b.driver.on(wrong, "yield")["lost"]
        assert b.driver.on(wrong, "page", page=1, last=True)["lost"]
    assert b.task(lease["task_id"]) == row
    assert not b.sql("SELECT 1 FROM task_records")


def test_records_reach_every_later_lease(bench):
    b = bench()
    b.driver.submit()
    lease = b.driver.take()
    for value in ("intent", "snapshot-7"):
        assert b.driver.on(lease, "record", key="snapshot", value=value)["refused"] == ""
    b.driver.on(lease, "record", key="export.dir", value="/exports/x")
    b.driver.on(lease, "yield")
    again = b.driver.take(instance="w2")
    assert again["records"] == {"snapshot": "snapshot-7", "export.dir": "/exports/x"}
    assert again["epoch"] == 2 and again["attempt"] == 0


TAKEN = "another task holds it"  # to be asked again by a worker, an answer here


def claim(b, lease, wait=True):
    """What the scheduler says to a claim."""
    def ask():
        return b.driver.send("record", key="import.name", value="web", exclusive=True,
                             task_id=lease["task_id"], epoch=lease["epoch"], token=lease["token"],
                             instance=lease["instance"])

    def answer():
        told = ask().get()
        return told if told["refused"] == TAKEN or not told["again"] else None

    return wait_for(answer)["refused"] if wait else ask()


def test_a_claimed_name_has_one_holder_whatever_comes_back(bench):
    b = bench()
    for _ in range(2):
        b.driver.submit()
    first, second = b.driver.take(), b.driver.take(instance="w2")
    assert claim(b, first) == "" and claim(b, second) == TAKEN
    b.driver.on(first, "yield")
    assert claim(b, second) == ""  # nobody works on the first
    first = b.driver.take(instance="w3")
    # The name is with the one that got it last, also when that asks again for a lost answer.
    assert claim(b, first) == TAKEN and claim(b, second) == ""

    # "Last" is when the name was given, not when a transaction that had to wait began.
    with closing(b.suite.postgres.connect(b.suite.database)) as connection:
        connection.autocommit = False
        connection.cursor().execute("SELECT 1 FROM tasks WHERE id = %s FOR UPDATE",
                                    (first["task_id"],))
        waiting = claim(b, first, wait=False)
        wait_for(lambda: not waiting.waits() or b.sql(
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            " AND query LIKE 'SELECT provider FROM tasks WHERE id%'"))
        assert claim(b, second) == ""
        b.driver.on(second, "yield")
    waiting.get()
    assert claim(b, first) == ""  # it may have waited in vain; once more changes nothing
    second = b.driver.take(instance="w4")
    assert claim(b, second) == TAKEN and claim(b, first) == ""


def test_too_many_records_are_refused(bench):
    b = bench()
    b.driver.submit()
    lease = b.driver.take()
    b.sql("INSERT INTO task_records (task_id, key, value) SELECT %s, 'k' || i, repeat('x', 4000)"
          " FROM generate_series(1, 60) i", lease["task_id"])
    assert b.driver.on(lease, "record", key="small", value="v")["refused"] == ""
    answer = b.driver.on(lease, "record", key="big", value="x" * 4096 * 1)
    for i in range(10):
        answer = b.driver.on(lease, "record", key=f"big{i}", value="x" * 4096)
    assert "at most 256 records" in answer["refused"] and not answer["lost"]


def test_progress_reaches_redis_and_the_row_but_not_from_a_stale_lease(bench):
    b = bench()
    job = b.driver.submit()
    lease = b.driver.take()
    fields = dict(job_id=job, phase="exporting", bytes_transferred=40, bytes_total=100)
    b.driver.on(dict(lease, token="11" * 16), "progress", bytes_done=99, **fields)
    b.driver.on(lease, "progress", bytes_done=50, **fields)

    def stored():
        text = b.suite.redis.command("HGET", f"hypersdk:progress:{job}", "json")
        return json.loads(text) if text else None

    document = wait_for(stored, what="progress in Redis")
    assert document["percentage"] == 50.0 and document["bytes_transferred"] == 40
    assert document["total_bytes"] == 100 and document["phase"] == "exporting"
    assert int(b.suite.redis.command("TTL", f"hypersdk:progress:{job}")) > 0
    wait_for(lambda: b.job(job)["progress"], what="progress in the row")
    assert b.job(job)["progress"]["percentage"] == 50.0
    b.driver.on(lease, "renew")
    assert b.task(lease["task_id"])["bytes_done"] == 50


def test_a_scan_replaces_the_old_inventory_at_its_last_page(bench):
    b = bench()

    def vm(i):
        return {"id": f"vm-{i}", "name": f"web-{i}", "path": f"/dc/vm/web-{i}",
                "power_state": "poweredOn", "vm": json.dumps({"name": f"web-{i}"})}

    def names():
        return [r["name"] for r in b.sql(
            "SELECT v.name FROM inventory_vms v JOIN inventory_state s ON s.provider = v.provider"
            " AND s.generation = v.generation ORDER BY v.id")]

    b.control_task()
    lease = b.driver.take(transfer=False, kinds=["inventory"])
    for page, vms, last in ((1, [vm(1), vm(2)], False), (1, [vm(1), vm(2)], False),
                            (2, [vm(3)], True)):
        assert names() == []
        assert b.driver.on(lease, "page", page=page, vms=vms, last=last)["refused"] == ""
    assert names() == ["web-1", "web-2", "web-3"]
    b.driver.finish(lease, {"count": 3})
    b.sql("DELETE FROM tasks")
    b.control_task()
    b.sql("UPDATE tasks SET id = 'task-second'")
    lease = b.driver.take(transfer=False, kinds=["inventory"])
    b.driver.on(lease, "page", page=1, vms=[vm(9)], last=True)
    assert names() == ["web-9"]
    assert b.sql("SELECT count(*) AS n FROM inventory_vms")[0]["n"] == 1


# ---- ends ----

def test_a_finished_export_completes_the_job_with_all_that_follows(bench):
    b = bench()
    job = b.driver.submit()
    lease = b.driver.take()
    b.hears(lease)
    line = {"number": 1, "at_ms": 1, "level": "info", "phase": "", "message": "done"}
    answer = b.driver.on(lease, "permit")
    assert answer["granted"] and not answer["lost"]
    assert b.task(lease["task_id"])["state"] == "finishing"
    b.driver.finish(lease, export_result(), lines=[line])
    row = b.job(job)
    assert row["status"] == "completed" and row["completed_at"] and row["vm_name"] == "web"
    assert row["result"]["manifest_path"] == "/exports/x/artifact-manifest.json"
    assert "export" not in row["result"]
    export = b.sql("SELECT * FROM exports")[0]
    assert export["id"] == "exp-0123456789abcdef" and export["job_id"] == job
    assert export["volume"] == "vol-1" and export["provider"] == "vsphere"
    assert b.sql("SELECT * FROM export_disks")[0]["capacity_bytes"] == 1024
    assert b.history(job) == ["job.created", "job.started", "job.finishing", "job.completed"]
    assert [r["message"] for r in b.sql("SELECT message FROM job_logs")] == ["done"]
    wait_for(lambda: {"announce": "job", "job_id": job, "event": "job.completed"}
             in b.driver.announcements, what="announcement")
    payload = b.outbox(job)[-1]["payload"]
    assert payload["event"] == "job.completed" and payload["job_id"] == job
    assert payload["vm_name"] == "web" and payload["status"] == "completed"
    assert payload["exported_files"] == ["/exports/x/web-disk1.qcow2"]
    assert payload["duration_seconds"] >= 0 and payload["timestamp"].endswith("Z")
    assert b.total("hypersdk_vms_exported_total") == 1
    assert b.total("hypersdk_bytes_exported_total") == 5
    assert b.total("hypersdk_job_duration_seconds_count", vm_type="linux", provider="vsphere") == 1


def test_a_repeated_end_is_answered_the_same_and_done_once(bench):
    b = bench()
    job = b.driver.submit()
    lease = b.driver.take()
    first = b.driver.finish(lease, export_result(), message_id="msg-1")
    second = b.driver.finish(lease, export_result(), message_id="msg-1")
    assert (first["lost"], first["refused"]) == (second["lost"], second["refused"]) == (False, "")
    assert b.total("hypersdk_jobs_total", status="completed", provider="vsphere") == 1
    assert len(b.outbox(job)) == 2 and b.history(job).count("job.completed") == 1
    assert b.driver.on(lease, "renew")["lost"]


def test_an_export_releases_its_conversion_and_both_results_are_merged(bench):
    b = bench()
    job = b.driver.submit(convert=True)
    bridge = b.driver.ask("bridge", role="bridge", provider="", kinds=["convert"])
    lease = b.driver.take()
    assert bridge.waits()
    b.driver.finish(lease, export_result(output_path="/exports/x/exp-1"))
    conversion = bridge.lease()
    assert conversion["spec"]["export_path"] == "/exports/x/exp-1"
    assert conversion["spec"]["manifest_path"] == "/exports/x/artifact-manifest.json"
    assert conversion["spec"]["vm_name"] == "web" and conversion["spec"]["hyper2kvm"] == {}
    assert b.job(job)["status"] == "running"
    assert b.tasks(job)[1]["volume"] == "vol-1"
    b.driver.finish(conversion, {"conversion": {"path_used": "builtin"}})
    row = b.job(job)
    assert row["status"] == "completed"
    assert row["result"]["conversion"] == {"path_used": "builtin"}
    assert row["result"]["total_size"] == 5
    assert b.total("hypersdk_job_duration_seconds_count", vm_type="linux", provider="vsphere") == 1


def test_only_errors_that_may_pass_are_tried_again_and_with_back_off(bench):
    b = bench()
    job = b.driver.submit(max_attempts=2, retry_initial_ms=600_000, retry_max_ms=600_000)
    lease = b.driver.take()
    b.driver.on(lease, "fail", code="unavailable", message="vCenter is away", retryable=True)
    row = b.job(job)
    assert row["status"] == "pending" and row["attempt"] == 1
    assert row["error"] == "vCenter is away" and row["error_code"] == "unavailable"
    b.wait_reason(job, "waits until .* after an error: vCenter is away")
    b.sql("UPDATE tasks SET not_before = now() WHERE job_id = %s AND state = 'queued'", job)
    b.driver.call("changed")
    again = b.driver.take()
    assert again["attempt"] == 1 and again["epoch"] == 2
    assert b.driver.on(lease, "fail", code="internal", message="late")["lost"]
    b.driver.on(again, "fail", code="unavailable", message="still away", retryable=True)
    row = b.job(job)
    assert row["status"] == "failed" and row["error"] == "still away" and row["attempt"] == 2
    assert b.outbox(job)[-1]["payload"]["error"] == "still away"
    assert b.total("hypersdk_retry_attempts_total", operation="export", provider="vsphere") == 1
    assert b.total("hypersdk_errors_total", type="unavailable", provider="vsphere") == 2


def test_other_errors_end_the_job_and_its_conversion_at_once(bench):
    b = bench()
    job = b.driver.submit(convert=True)
    lease = b.driver.take()
    b.driver.on(lease, "fail", code="denied", message="wrong password", retryable=False)
    assert b.job(job)["status"] == "failed" and b.job(job)["error_code"] == "denied"
    assert [t["state"] for t in b.tasks(job)] == ["failed", "cancelled"]
    assert b.history(job)[-1] == "job.failed"


def test_a_yielded_task_comes_back_without_blame(bench):
    b = bench()
    job = b.driver.submit()
    for epoch in range(1, 8):
        lease = b.driver.take()
        assert lease["epoch"] == epoch
        assert b.driver.on(lease, "yield")["refused"] == ""
    assert b.job(job)["attempt"] == 0 and b.job(job)["status"] == "pending"
    assert b.job(job)["phase"] == ""


# ---- losses ----

def test_a_lost_lease_goes_to_another_worker_and_the_late_end_of_the_first_is_lost(bench):
    b = bench()
    job = b.driver.submit()
    lease = b.driver.take()
    b.expire(lease)
    b.wait_state(lease["task_id"], "queued")
    assert b.driver.finish(lease, export_result())["lost"]  # before anybody else has it, too
    again = b.driver.take(instance="w2")
    assert again["epoch"] == 2 and again["attempt"] == 0 and again["token"] != lease["token"]
    assert b.driver.finish(lease, export_result())["lost"]
    assert b.job(job)["status"] == "running" and b.job(job)["worker_id"] == "w2"
    assert "job.lease_lost" in b.history(job)
    b.driver.finish(again, export_result())
    assert b.job(job)["status"] == "completed"


def test_a_lease_is_not_given_on_before_five_seconds_after_its_end(bench):
    b = bench()
    b.driver.submit()
    lease = b.driver.take()
    b.expire(lease, seconds=3)
    end = b.task(lease["task_id"])["lease_until"]
    other = b.driver.ask("w2")
    if b.driver.on(lease, "renew")["lost"]:  # only when we needed two seconds for that
        at = b.sql("SELECT at FROM job_events WHERE event = 'job.lease_lost'")[0]["at"]
        assert (at - end).total_seconds() >= 5
    else:
        assert other.waits(), "it is still the first one's"


def test_five_losses_without_progress_fail_the_job_and_progress_forgives(bench):
    b = bench()
    job = b.driver.submit()
    done = 0
    for i in range(7):
        lease = b.driver.take()
        if i == 1:
            done = 10
            b.sql("UPDATE tasks SET bytes_done = %s", done)
        b.expire(lease)
        b.wait_state(lease["task_id"], "failed" if i == 6 else "queued")
    row = b.job(job)
    assert row["status"] == "failed" and "died again and again" in row["error"]
    assert row["attempt"] == 0


def test_a_permitted_task_is_given_out_again_as_soon_as_any_other(bench):
    b = bench()
    b.driver.submit()
    lease = b.driver.take()
    for op in ("permit", "renew"):
        b.driver.on(lease, op)
        [row] = b.sql("SELECT state, extract(epoch FROM lease_until - now()) AS s FROM tasks")
        assert row["state"] == "finishing" and 0 < row["s"] <= lease["lease_ms"] / 1000
    b.expire(lease)
    again = b.driver.take()
    assert again["epoch"] == 2
    answer = b.driver.on(lease, "permit")
    assert answer["lost"] and not answer["granted"]


# ---- cancel and retry ----

def test_a_waiting_job_is_cancelled_at_once(bench):
    b = bench()
    job = b.driver.submit(convert=True)
    assert "error" not in b.driver.cancel(job, reason="not needed")
    row = b.job(job)
    assert row["status"] == "cancelled" and row["cancel_reason"] == "not needed"
    assert [t["state"] for t in b.tasks(job)] == ["cancelled", "cancelled"]
    assert b.driver.cancel(job)["code"] == "conflict"
    assert b.driver.cancel("job-none")["code"] == "not_found"
    assert b.outbox(job)[-1]["event"] == "job.cancelled"
    assert not b.sql("SELECT 1 FROM tasks WHERE kind = 'release'")


def test_a_running_job_is_told_to_stop_until_it_does_and_then_swept(bench):
    b = bench()
    job = b.driver.submit()
    lease = b.driver.take()
    b.driver.on(lease, "record", key="snapshot", value="snapshot-7")
    b.driver.cancel(job, discard=True)
    assert b.job(job)["status"] == "cancelling"
    wait_for(lambda: {"announce": "control", "task_id": lease["task_id"], "kind": 1}
             in b.driver.announcements, what="control message")
    answer = b.driver.on(lease, "renew")
    assert answer.get("controls") == [{"task_id": lease["task_id"], "kind": 1}], answer
    answer = b.driver.on(lease, "permit")
    assert not answer["granted"] and "cancelled" in answer["reason"]
    b.driver.on(lease, "fail", code="cancelled", message="stopped", retryable=False)
    assert b.job(job)["status"] == "cancelled"
    release = b.driver.take(transfer=False, kinds=["release"])
    assert release["spec"]["task_id"] == lease["task_id"] and release["spec"]["discard"] is True
    assert release["records"] == {"snapshot": "snapshot-7"}
    assert b.driver.retry(job)["code"] == "conflict"  # a worker is at what it left
    b.driver.finish(release, {"released": True})
    assert "error" not in b.driver.retry(job)


def test_a_release_is_not_given_up_when_its_workers_die_again_and_again(bench):
    b = bench()
    b.driver.submit()
    lease = b.driver.take()
    b.driver.on(lease, "record", key="snapshot", value="snapshot-7")
    b.driver.on(lease, "fail", code="corrupt", message="x", retryable=False)
    for i in range(6):  # scheduler.losses_max is 5
        release = b.driver.take(transfer=False, kinds=["release"])
        assert release["records"] == {"snapshot": "snapshot-7"} and release["epoch"] == i + 1
        b.expire(release)
    last = b.driver.take(transfer=False, kinds=["release"])
    assert not b.driver.finish(last, {"released": True})["lost"]
    assert b.task(last["task_id"])["state"] == "done"


def test_a_release_outlives_the_deletion_of_its_job(bench):
    b = bench()
    job = b.driver.submit()
    lease = b.driver.take()
    b.driver.on(lease, "record", key="snapshot", value="snapshot-7")
    b.driver.on(lease, "fail", code="corrupt", message="x", retryable=False)
    b.sql("DELETE FROM jobs WHERE id = %s", job)
    release = b.driver.take(transfer=False, kinds=["release"])
    assert release["records"] == {"snapshot": "snapshot-7"} and release["provider"] == "vsphere"


def test_a_cancelled_job_whose_worker_died_ends_with_its_lease(bench):
    b = bench()
    job = b.driver.submit()
    lease = b.driver.take()
    b.driver.cancel(job)
    b.expire(lease)
    b.wait_status(job, "cancelled")


def test_a_retry_starts_again_from_the_records(bench):
    b = bench()
    job = b.driver.submit(convert=True)
    lease = b.driver.take()
    b.driver.on(lease, "record", key="export.dir", value="/exports/x")
    b.driver.on(lease, "fail", code="limit", message="disk full", retryable=False)
    assert b.driver.retry(job)["id"]
    row = b.job(job)
    assert row["status"] == "pending" and row["error"] == "" and row["completed_at"] is None
    assert [t["state"] for t in b.tasks(job)] == ["queued", "blocked"]
    waiting = b.sql("SELECT state FROM tasks WHERE kind = 'release'")
    assert [w["state"] for w in waiting] == ["cancelled"]  # it would take away what is needed
    again = b.driver.take()
    assert again["records"] == {"export.dir": "/exports/x"} and again["epoch"] == 2
    assert b.driver.retry(job)["code"] == "conflict"


def test_a_conversion_cancelled_late_can_be_tried_again_alone(bench):
    b = bench()
    job = b.driver.submit(convert=True)
    lease = b.driver.take()
    b.driver.cancel(job)
    b.driver.finish(lease, export_result())  # it was done before it heard
    assert b.job(job)["status"] == "cancelled"
    assert [t["state"] for t in b.tasks(job)] == ["done", "cancelled"]
    b.driver.retry(job)
    conversion = b.driver.take(instance="bridge", role="bridge", provider="", kinds=["convert"])
    assert conversion["spec"]["manifest_path"] == "/exports/x/artifact-manifest.json"


def test_a_submission_with_a_known_key_is_the_same_job(bench):
    b = bench()
    job = b.driver.submit(key="k1")
    answer = b.driver.call("submit", provider="vsphere", provider_kind="vsphere", vm_path="web",
                           definition={}, export_spec={}, priority=50, max_attempts=1,
                           retry_initial_ms=1, retry_max_ms=1, trace_id="", key="k1",
                           role="hypersdk_gateway")
    assert answer["job_id"] == job and answer["existing"] is True
    taken = b.driver.call("submit", provider="vsphere", provider_kind="vsphere", vm_path="web",
                          definition={}, export_spec={}, priority=50, max_attempts=1, job_id=job,
                          retry_initial_ms=1, retry_max_ms=1, trace_id="",
                          role="hypersdk_gateway")
    assert taken["code"] == "conflict" and "exists already" in taken["error"]


# ---- why a job waits; sweeping; audit ----

def test_a_waiting_job_says_why(bench):
    b = bench()
    job = b.driver.submit()
    b.wait_reason(job, "no worker exporter-vsphere is connected")
    b.driver.take(slots=1)
    second = b.driver.submit()
    b.wait_reason(second, "all 1 transfer slots of the connected workers are busy")
    assert b.job(job)["pending_reason"] == ""


def test_expired_control_tasks_are_swept(bench):
    b = bench()
    task = b.control_task(expires="-1 second")
    wait_for(lambda: not b.sql("SELECT 1 FROM tasks WHERE id = %s", task), what="swept")


def test_a_failed_control_task_is_final_and_its_error_is_kept(bench):
    b = bench()
    task = b.control_task("validate")
    lease = b.driver.take(transfer=False, kinds=["validate"])
    b.driver.on(lease, "fail", code="unavailable", message="no route", retryable=True)
    row = b.task(task)
    assert row["state"] == "failed" and row["error"] == "no route"


def test_a_task_that_fits_no_message_fails_and_does_not_block_the_queue(bench):
    b = bench()
    big = b.driver.submit(priority=90, export_spec={"vm": "x" * 1100000})
    small = b.driver.submit()
    assert b.driver.take()["job_id"] == small
    row = b.job(big)
    assert row["status"] == "failed" and row["error_code"] == "limit"


def test_audit_rows_are_chained_completely_however_they_commit(bench):
    b = bench()
    slow = b.suite.postgres.connect(b.suite.database)
    slow.autocommit = False
    slow.cursor().execute("INSERT INTO audit.audit_log (action, result) VALUES ('slow', 'success')")
    for i in range(3):
        b.sql("INSERT INTO audit.audit_log (action, result) VALUES (%s, 'success')", f"a{i}")
    b.driver.submit()
    slow.commit()
    slow.close()
    wait_for(lambda: b.sql("SELECT sum(rows) AS n FROM audit.audit_seal")[0]["n"] == 4,
             what="sealed")
    b.sql("INSERT INTO audit.audit_log (action, result) VALUES ('last', 'denied')")
    wait_for(lambda: b.sql("SELECT sum(rows) AS n FROM audit.audit_seal")[0]["n"] == 5,
             what="sealed")
    seals = b.sql("SELECT * FROM audit.audit_seal ORDER BY id")
    assert bytes(seals[0]["prev"]) == b""
    for before, after in zip(seals, seals[1:]):
        assert bytes(after["prev"]) == bytes(before["digest"])


def test_ends_that_come_together_are_judged_one_by_one(bench):
    """They share a transaction; a stale one and a broken one keep no other from its end."""
    b = bench()
    jobs = [b.driver.submit() for _ in range(8)]
    leases = [b.driver.take(slot=i, slots=8) for i in range(8)]
    before = b.total("hypersdk_vms_exported_total")
    def end(i):
        """Repeated while the scheduler says "again", as workers do: it waits for no lock long."""
        result = export_result()
        result["export"]["id"] = f"exp-{i:016d}"
        lease = dict(leases[i], token="00" * 16) if i == 3 else leases[i]
        return b.driver.on(lease, "finish", result="no json" if i == 5 else json.dumps(result))

    holder = b.suite.postgres.connect(b.suite.database)
    with ThreadPoolExecutor(8) as pool:
        try:
            with holder.cursor() as cursor:
                cursor.execute("BEGIN")
                cursor.execute("SELECT 1 FROM tasks WHERE id = %s FOR UPDATE",
                               (leases[0]["task_id"],))
            ends = [pool.submit(end, i) for i in range(8)]
            wait_for(lambda: b.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                                   " AND application_name = 'scheduler requests'"), what="one waits")
            assert not ends[0].done()
        finally:
            holder.close()
        answers = [e.result() for e in ends]
    assert [a["lost"] for a in answers] == [i == 3 for i in range(8)]
    assert [a.get("refused", "") != "" for a in answers] == [i == 5 for i in range(8)]
    ended = [job for job in jobs if b.job(job)["status"] == "completed"]
    assert len(ended) == 6 and b.total("hypersdk_vms_exported_total") == before + 6
    assert b.task(leases[3]["task_id"])["state"] == "leased", "a stale end changes nothing"
    assert all(b.history(job).count("job.completed") == 1 for job in ended)

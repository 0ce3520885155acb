"""What holds a job back, and what lets it go: pauses, drains."""
from tests.harness.driver import export_result
from tests.harness.scheduler import bench  # noqa: F401
from tests.harness.wait import wait_for

PAUSE, DRAIN = 2, 5  # enum ControlKind of proto/hypersdk.proto


def told(driver, task_id, kind):
    return [a for a in driver.announcements
            if a["announce"] == "control" and a["task_id"] == task_id and a["kind"] == kind]


# ---- pause and resume of a job ----

def test_a_pending_job_is_held_until_it_is_resumed(bench):
    b = bench()
    held = b.driver.submit(priority=90)
    b.driver.pause(held, reason="change freeze")
    assert b.job(held)["status"] == "paused"
    assert b.job(held)["pending_reason"] == "paused by tester: change freeze"
    other = b.driver.submit(priority=10)
    assert b.driver.take()["job_id"] == other
    waits = b.driver.ask(slot=1)
    again = b.driver.pause(held)
    assert "paused already" in again["error"]
    b.driver.resume(held)
    assert waits.get(10)["job_id"] == held
    assert b.job(held)["pending_reason"] == ""
    assert b.history(held) == ["job.created", "job.paused", "job.continued", "job.started"]


def test_a_running_job_is_handed_back_and_its_slot_is_free(bench):
    b = bench(config={"export": {"provider_limit": 1}})
    job = b.driver.submit()
    lease = b.driver.take()
    b.driver.on(lease, "record", key="export.volume", value="vol-1")
    b.driver.pause(job)
    wait_for(lambda: told(b.driver, lease["task_id"], PAUSE), 10, "the worker is told")
    renewed = b.driver.on(lease, "renew", phase="exporting")
    assert not renewed["lost"] and renewed["controls"] == [{"task_id": lease["task_id"], "kind": PAUSE}]
    assert b.job(job)["status"] == "paused"
    other = b.driver.submit()
    waits = b.driver.ask(slot=1)
    b.wait_reason(other, "limit of 1 exports")
    assert b.driver.on(lease, "yield")["refused"] == ""
    assert waits.get(10)["job_id"] == other, "the slot of the paused job is free"
    row = b.job(job)
    assert row["status"] == "paused" and row["pending_reason"] == "paused by tester"
    assert row["attempt"] == 0 and b.task(lease["task_id"])["state"] == "queued"
    assert b.history(job) == ["job.created", "job.started", "job.pausing", "job.paused"]
    b.sql("UPDATE jobs SET status = 'completed' WHERE id = %s", other)
    b.sql("UPDATE tasks SET state = 'done' WHERE job_id = %s", other)
    b.driver.resume(job)
    again = b.driver.take(slot=2)
    assert again["task_id"] == lease["task_id"] and again["epoch"] == 2
    assert again["records"] == {"export.volume": "vol-1"}, "what was made is known to the next"
    b.driver.finish(again, export_result())
    b.wait_status(job, "completed")


def test_a_paused_job_can_be_cancelled_with_and_without_a_worker(bench):
    b = bench()
    idle, busy = b.driver.submit(priority=90), b.driver.submit()
    first = b.driver.take()
    assert first["job_id"] == idle
    b.driver.pause(idle)
    b.driver.on(first, "yield")
    b.driver.cancel(idle)
    assert b.job(idle)["status"] == "cancelled" and b.job(idle)["pending_reason"] == ""
    second = b.driver.take()
    assert second["job_id"] == busy
    b.driver.on(second, "record", key="snapshot", value="snap-1")
    b.driver.pause(busy)
    b.driver.cancel(busy)
    assert b.job(busy)["status"] == "cancelling"
    b.driver.on(second, "yield")
    assert b.job(busy)["status"] == "cancelled"
    release = b.driver.take(transfer=False, kinds=["release"])
    assert release["records"] == {"snapshot": "snap-1"}, "what it made is taken away"


def test_a_job_that_is_done_before_its_worker_hears_of_the_pause(bench):
    b = bench()
    job = b.driver.submit(convert=True)
    lease = b.driver.take()
    b.driver.pause(job)
    b.driver.finish(lease, export_result())
    assert b.job(job)["status"] == "paused"
    waits = b.driver.ask("bridge", role="bridge", provider="", kinds=["convert"])
    last = b.driver.submit()
    assert b.driver.take(slot=1)["job_id"] == last
    assert waits.waits(), "the conversion is held"
    b.driver.resume(job)
    assert waits.get(10)["kind"] == "convert"


def test_a_lost_lease_of_a_paused_job_comes_back_paused(bench):
    b = bench()
    job = b.driver.submit()
    lease = b.driver.take()
    b.driver.pause(job)
    b.expire(lease)
    b.wait_state(lease["task_id"], "queued")
    assert b.job(job)["status"] == "paused"
    assert b.driver.ask().waits()


# ---- the queue as a whole ----

PAUSED = ("INSERT INTO settings (key, value) VALUES ('queue.paused', jsonb_build_object("
          "'by', 'ann', 'reason', 'storage work', 'since', now()))")


def test_a_paused_queue_starts_nothing_and_ends_what_runs(bench):
    b = bench()
    running = b.driver.submit()
    lease = b.driver.take()
    b.sql(PAUSED)
    job = b.driver.submit()
    waits = b.driver.ask(slot=1)
    b.wait_reason(job, "the queue is paused by ann since .* UTC: storage work")
    assert waits.waits()
    task = b.control_task("vm_info")
    listing = b.driver.take(transfer=False, kinds=["vm_info"])
    assert listing["task_id"] == task, "listings go on"
    assert b.driver.on(lease, "renew")["controls"] == []
    b.driver.finish(lease, export_result())
    b.wait_status(running, "completed")
    assert waits.waits()
    b.sql("DELETE FROM settings WHERE key = 'queue.paused'")
    b.driver.call("changed")
    assert waits.get(10)["job_id"] == job


def test_a_drained_worker_hands_back_and_gets_nothing_until_it_is_resumed(bench):
    b = bench()
    job = b.driver.submit()
    lease = b.driver.take(instance="w1")
    b.sql("UPDATE workers SET drained_at = now(), drained_by = 'ann' WHERE instance = 'w1'")
    wait_for(lambda: told(b.driver, lease["task_id"], DRAIN), 10, "the worker is told")
    assert b.driver.on(lease, "renew")["controls"] == [{"task_id": lease["task_id"],
                                                        "kind": DRAIN}]
    mine = b.driver.ask("w1", slot=1)
    b.driver.on(lease, "yield")
    b.wait_reason(job, "all connected workers that could take it are drained by users")
    assert mine.waits()
    again = b.driver.take(instance="w2")
    assert again["task_id"] == lease["task_id"] and again["attempt"] == 0
    assert b.history(job)[-2:] == ["job.yielded", "job.resumed"]
    other = b.driver.submit()
    assert mine.waits()
    b.sql("UPDATE workers SET drained_at = NULL, drained_by = '' WHERE instance = 'w1'")
    b.driver.call("changed")
    assert mine.get(10)["job_id"] == other

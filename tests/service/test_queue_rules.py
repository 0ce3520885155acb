"""What holds a job back, and what lets it go: pause and resume."""
from tests.harness.driver import export_result
from tests.harness.scheduler import bench  # noqa: F401
from tests.harness.wait import wait_for

PAUSE = 2  # enum ControlKind of proto/hypersdk.proto


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

"""Time windows of jobs: what waits for them, and what becomes of running work when they end.
The clock of a test is the job's own windows: another row of them, looked at now, is another time."""
import datetime
import json

from tests.harness.driver import export_result
from tests.harness.scheduler import bench  # noqa: F401
from tests.harness.wait import wait_for

CANCEL, PAUSE = 1, 2  # enum ControlKind of proto/hypersdk.proto


def hours(start, end):
    """One window of today and every day, in hours from now."""
    now = datetime.datetime.now(datetime.timezone.utc)

    def time(offset):
        return (now + datetime.timedelta(hours=offset)).strftime("%H:%M")
    return [{"start_time": time(start), "end_time": time(end), "timezone": "UTC",
             "days": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]}]


OPEN, SHUT = hours(-2, 2), hours(2, 6)


def turn(b, job, windows):
    """As if the clock had gone on to where its windows are like these."""
    b.sql("UPDATE jobs SET time_windows = %s::jsonb, window_at = CASE WHEN window_at IS NULL THEN"
          " NULL ELSE now() END WHERE id = %s", json.dumps(windows), job)


def hold_of(b, job):
    return b.sql("SELECT hold FROM tasks WHERE job_id = %s AND state = 'queued'", job)[0]["hold"]


def told(b, lease, kind):
    wait_for(lambda: [a for a in b.driver.announcements if a["announce"] == "control" and
                      a["task_id"] == lease["task_id"] and a["kind"] == kind],
             what="the worker is told")


def test_a_job_waits_for_its_window_and_then_starts(bench):
    b = bench()
    job = b.driver.submit(priority=90, time_windows=SHUT)
    other = b.driver.submit(priority=1)
    b.wait_reason(job, "outside its time windows: waits until 20.* UTC")
    at = b.sql("SELECT to_char(window_at AT TIME ZONE 'UTC', 'HH24:MI:SS') AS time,"
               " window_at < created_at + interval '1 day' AS next FROM jobs WHERE id = %s", job)[0]
    assert at == {"time": SHUT[0]["start_time"] + ":00", "next": True}, "the next opening"
    assert hold_of(b, job) == "window"
    assert b.driver.take()["job_id"] == other
    waits = b.driver.ask(slot=1)
    assert waits.waits()
    turn(b, job, OPEN)
    assert waits.lease()["job_id"] == job
    assert b.job(job)["pending_reason"] == ""


def test_a_job_in_its_window_starts_at_once(bench):
    b = bench()
    job = b.driver.submit(time_windows=SHUT + OPEN)
    assert b.driver.take()["job_id"] == job


def test_a_window_that_is_over_starts_nothing_between_two_looks(bench):
    b = bench(config={"scheduler": {"poll_interval": "60s"}})
    job = b.driver.submit()
    b.sql("UPDATE jobs SET time_windows = %s::jsonb, window_open = true,"
          " window_at = now() + interval '1 hour' WHERE id = %s", json.dumps(SHUT), job)
    other = b.suite.postgres.connect(b.suite.database)
    try:
        other.cursor().execute("BEGIN; LOCK TABLE providers")
        asks = b.driver.ask()
        wait_for(lambda: b.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                               " AND application_name = 'scheduler dispatch'"), 20, "a claim has begun")
        b.sql("UPDATE jobs SET window_at = clock_timestamp() WHERE id = %s", job)
    finally:
        other.close()
    later = b.driver.submit()
    assert asks.get(10)["job_id"] == later, "nobody has looked at it, and yet it does not start"


def test_what_has_begun_goes_on_to_its_end(bench):
    b = bench()
    job = b.driver.submit(time_windows=OPEN, convert=True)
    lease = b.driver.take()
    turn(b, job, SHUT)
    assert b.driver.on(lease, "renew")["controls"] == []
    b.driver.on(lease, "yield")  # a worker that drains
    again = b.driver.take(slot=1)
    assert again["task_id"] == lease["task_id"]
    b.driver.finish(again, export_result())
    convert = b.driver.take(instance="bridge", role="bridge", provider="", kinds=["convert"])
    assert convert["job_id"] == job, "with all its tasks"


def test_running_work_is_handed_back_and_resumed_in_the_next_window(bench):
    b = bench()
    job = b.driver.submit(time_windows=OPEN, on_window_end="pause")
    lease = b.driver.take()
    b.driver.on(lease, "record", key="export.volume", value="vol-1")
    turn(b, job, SHUT)
    told(b, lease, PAUSE)
    assert b.driver.on(lease, "renew")["controls"] == [{"task_id": lease["task_id"],
                                                        "kind": PAUSE}]
    b.driver.on(lease, "yield")
    b.wait_reason(job, "outside its time windows")
    row = b.job(job)
    assert row["status"] == "pending" and row["attempt"] == 0
    b.driver.pause(job)  # neither a pause nor its end lets it slip through
    b.driver.resume(job)
    waits = b.driver.ask(slot=1)
    assert waits.waits()
    wait_for(lambda: hold_of(b, job) == "window", what="it is held again")
    turn(b, job, OPEN)
    again = waits.lease()
    assert again["task_id"] == lease["task_id"] and again["epoch"] == 2
    assert again["records"] == {"export.volume": "vol-1"}, "it goes on from where it was"
    b.driver.finish(again, export_result())
    b.wait_status(job, "completed")


def test_running_work_is_cancelled_and_what_waits_waits_on(bench):
    b = bench()
    job = b.driver.submit(priority=90, time_windows=OPEN, on_window_end="cancel")
    later = b.driver.submit(time_windows=OPEN, on_window_end="cancel")
    lease = b.driver.take()
    assert lease["job_id"] == job
    turn(b, job, SHUT)
    turn(b, later, SHUT)
    told(b, lease, CANCEL)
    assert b.job(job)["cancel_reason"] == "its time window ended"
    b.driver.on(lease, "fail", code="cancelled", message="the job was cancelled")
    assert b.job(job)["status"] == "cancelled"
    b.wait_reason(later, "outside its time windows")
    assert b.job(later)["status"] == "pending", "it has not begun"


def test_a_retry_waits_for_the_window_again(bench):
    b = bench()
    job = b.driver.submit(time_windows=OPEN, on_window_end="cancel", max_attempts=1)
    lease = b.driver.take()
    b.driver.on(lease, "fail", code="internal", message="broken")
    assert b.job(job)["status"] == "failed"
    b.sql("UPDATE jobs SET time_windows = %s::jsonb WHERE id = %s", json.dumps(SHUT), job)
    b.driver.retry(job)
    b.wait_reason(job, "outside its time windows")
    assert b.driver.ask(slot=1).waits() and b.job(job)["status"] == "pending"
    turn(b, job, OPEN)
    b.wait_status(job, "running")


def test_dependencies_first_and_then_the_window(bench):
    b = bench()
    first = b.driver.submit()
    job = b.driver.submit(time_windows=SHUT, depends_on=[
        {"job_id": first, "required_state": "completed"}])
    assert hold_of(b, job) == "depends"
    b.driver.finish(b.driver.take(), export_result())
    wait_for(lambda: hold_of(b, job) == "window", what="it waits for its window")
    waits = b.driver.ask(slot=1)
    assert waits.waits()
    turn(b, job, OPEN)
    assert waits.lease()["job_id"] == job


def test_windows_whose_zone_is_gone_stay_shut_and_others_open(bench):
    b = bench()
    lost = b.driver.submit(time_windows=[dict(OPEN[0], timezone="Europe/Atlantis")])
    job = b.driver.submit(time_windows=OPEN)
    assert b.driver.take()["job_id"] == job
    assert "Atlantis" in b.suite["scheduler"].wait_event("reaper_failed")[-1]["error"]
    assert hold_of(b, lost) == "window"


def test_it_starts_when_the_minute_comes(bench):
    """With the real clock: a window that opens with the next minute."""
    b = bench()
    now = b.sql("SELECT now() AS t")[0]["t"]
    if now.second > 40:
        now += datetime.timedelta(minutes=1)
    minute = (now + datetime.timedelta(minutes=1)).astimezone(datetime.timezone.utc)
    end = minute + datetime.timedelta(hours=1)
    job = b.driver.submit(time_windows=[dict(OPEN[0], start_time=minute.strftime("%H:%M"),
                                             end_time=end.strftime("%H:%M"))])
    b.wait_reason(job, "outside its time windows")
    assert b.driver.take(180)["job_id"] == job
    started = b.sql("SELECT date_trunc('minute', started_at) AS m FROM jobs")[0]
    assert started["m"] == minute.replace(second=0, microsecond=0)

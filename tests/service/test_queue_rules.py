"""What holds a job back, and what lets it go: pauses, drains."""

import pytest

from tests.harness.driver import export_result
from tests.harness.scheduler import PUBLISHED, bench  # noqa: F401
from tests.harness.wait import wait_for

CANCEL, PAUSE, DRAIN = 1, 2, 5  # enum ControlKind of proto/hypersdk.proto


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
    assert waits.lease()["job_id"] == held
    assert b.job(held)["pending_reason"] == ""
    assert b.history(held) == ["job.created", "job.paused", "job.continued", "job.started"]


def test_a_running_job_is_handed_back_and_its_slot_is_free(bench):
    b = bench(config={"export": {"provider_limit": 1}})
    job = b.driver.submit()
    lease = b.driver.take()
    b.driver.on(lease, "record", key="export.volume", value="vol-1")
    b.driver.pause(job)
    wait_for(lambda: told(b.driver, lease["task_id"], PAUSE), what="the worker is told")
    renewed = b.driver.on(lease, "renew", phase="exporting")
    assert not renewed["lost"] and renewed["controls"] == [{"task_id": lease["task_id"], "kind": PAUSE}]
    assert b.job(job)["status"] == "paused"
    other = b.driver.submit()
    waits = b.driver.ask(slot=1)
    b.wait_reason(other, "limit of 1 exports")
    assert b.driver.on(lease, "yield")["refused"] == ""
    assert waits.lease()["job_id"] == other, "the slot of the paused job is free"
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
    assert waits.lease()["kind"] == "convert"


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
    assert waits.lease()["job_id"] == job


def test_a_drained_worker_hands_back_and_gets_nothing_until_it_is_resumed(bench):
    b = bench()
    job = b.driver.submit()
    lease = b.driver.take(instance="w1")
    b.sql("UPDATE workers SET drained_at = now(), drained_by = 'ann' WHERE instance = 'w1'")
    wait_for(lambda: told(b.driver, lease["task_id"], DRAIN), what="the worker is told")
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
    assert mine.lease()["job_id"] == other


# ---- order: priority and age ----

def order(b, jobs):
    """In which order a worker gets them."""
    taken = [b.driver.take(slot=i, slots=len(jobs) + 1)["job_id"] for i in range(len(jobs))]
    return [jobs.index(job) for job in taken]


def aged(b, job, minutes):
    """As if it had been submitted so long ago."""
    b.sql("UPDATE tasks SET rank = rank - %s WHERE job_id = %s", minutes * 60000, job)


def test_a_low_priority_rises_with_waiting_and_is_not_starved(bench):
    b = bench(config={"scheduler": {"priority_aging": "1m"}})
    low, mid, high = (b.driver.submit(priority=p) for p in (10, 50, 90))
    aged(b, low, 60)  # 10 + 60 > 50, not > 90
    assert order(b, [low, mid, high]) == [2, 0, 1]
    assert b.job(low)["priority"] == 10, "the job's own priority stays"
    again = [b.driver.submit(priority=p) for p in (90, 10)]
    aged(b, again[1], 81)
    assert order(b, again) == [1, 0]


def test_without_aging_priority_alone_counts_and_a_new_weight_reorders(bench):
    b = bench(config={"scheduler": {"priority_aging": "0"}})
    low, high = b.driver.submit(priority=10), b.driver.submit(priority=11)
    b.sql("UPDATE tasks SET created_at = now() - interval '2 days',"
          " rank = queue_rank(now() - interval '2 days', priority) WHERE job_id = %s", low)
    config = b.suite.config("scheduler")
    config["scheduler"]["priority_aging"] = "1m"
    b.suite["scheduler"].stop()
    first = b.sql("SELECT job_id FROM tasks ORDER BY rank")
    assert first[0]["job_id"] == high
    b.suite.write_config("scheduler", config)
    b.suite["scheduler"].start()
    wait_for(lambda: b.suite.ready("scheduler"), what=b.suite.tails)
    assert order(b, [low, high]) == [0, 1]


# ---- limits ----

def test_a_provider_may_have_a_limit_of_its_own(bench):
    b = bench(config={"export": {"provider_limit": 1}})
    b.sql("UPDATE providers SET settings = settings || '{\"export_limit\": 2}'"
          " WHERE name = 'vsphere'")
    jobs = [b.driver.submit() for _ in range(3)]
    others = [b.driver.submit(provider="other") for _ in range(2)]
    leases = [b.driver.take(slot=i, slots=9) for i in range(3)]
    assert [x["job_id"] for x in leases] == [jobs[0], jobs[1], others[0]]
    assert leases[0]["settings"] == {"host": "vc"}, "a limit is no setting of the worker"
    b.wait_reason(jobs[2], r"limit of 2 exports at a time for provider vsphere .*its export_limit")
    b.wait_reason(others[1], r"limit of 1 exports .* provider other .*export.provider_limit")


def test_exports_from_one_host_are_limited(bench):
    b = bench(config={"export": {"host_limit": 1}})
    b.sql("INSERT INTO inventory_state (provider, generation, completed_at)"
          " VALUES ('vsphere', 'g1', now())")
    for name, host in (("a", "esx1"), ("b", "esx1"), ("c", "esx2")):
        b.sql("INSERT INTO inventory_vms (provider, generation, id, name, path, vm) VALUES"
              " ('vsphere', 'g1', %s, %s, %s, jsonb_build_object('host', %s::text))",
              f"vm-{name}", name, f"/dc/vm/{name}", host)
    first, second, elsewhere, unknown = (
        b.driver.submit(vm_path=p) for p in ("/dc/vm/a", "vm-b", "c", "/dc/vm/new"))
    assert [b.tasks(j)[0]["source_host"] for j in (first, second, elsewhere, unknown)] == \
        ["esx1", "esx1", "esx2", ""]
    leases = [b.driver.take(slot=i, slots=9) for i in range(3)]
    assert [x["job_id"] for x in leases] == [first, elsewhere, unknown]
    b.wait_reason(second, r"limit of 1 exports at a time from host esx1 .*export.host_limit")
    waits = b.driver.ask(slot=5, slots=9)
    b.driver.finish(leases[0], export_result())
    assert waits.lease()["job_id"] == second


def test_a_group_has_a_limit_over_all_providers(bench):
    b = bench()
    jobs = [b.driver.submit(group="policy nightly", group_limit=2, provider=p, priority=90)
            for p in ("vsphere", "other", "vsphere", "other")]
    free = b.driver.submit(priority=1)
    leases = [b.driver.take(slot=i, slots=9) for i in range(3)]
    assert [x["job_id"] for x in leases] == [jobs[0], jobs[1], free]
    for job in jobs[2:]:
        b.wait_reason(job, "limit of 2 exports at a time of policy nightly is reached")
    waits = b.driver.ask(slot=5, slots=9)
    assert waits.waits()
    b.driver.finish(leases[1], export_result())
    assert waits.lease()["job_id"] == jobs[2]


def reads(b, changed):
    """Rows of tasks that were read and changed so far, once the changes are counted: both are together."""
    def counted():
        row = b.sql("SELECT seq_tup_read + idx_tup_fetch AS rows, n_tup_upd AS changed FROM pg_stat_user_tables"
                    " WHERE relname = 'tasks'")[0]
        return row if row["changed"] >= changed else None
    return wait_for(counted, 30, "the statistics of tasks")


def test_a_claim_reads_few_of_50000_tasks_before_it(bench):
    """What is held, or waits at a limit, is passed over by the index."""
    b = bench(config={"export": {"provider_limit": 1, "host_limit": 1}})
    b.sql("UPDATE providers SET settings = settings || '{\"export_limit\": 100}'"
          " WHERE name = 'vsphere'")
    b.sql("INSERT INTO jobs (id, provider, vm_path, definition) SELECT 'j' || i, 'vsphere', '',"
          " '{}' FROM generate_series(1, 50000) i")
    b.sql("INSERT INTO tasks (id, job_id, kind, class, role, provider_kind, provider, spec, rank,"
          " hold, source_host, queue_group, queue_limit)"
          " SELECT 't' || i, 'j' || i, 'export', 'transfer', 'exporter', 'vsphere', 'vsphere',"
          " '{}', i, CASE WHEN i % 4 = 0 THEN 'paused' ELSE '' END, 'esx' || i % 50, CASE WHEN"
          " i % 3 = 0 THEN 'g' || i % 5 ELSE '' END, 1 FROM generate_series(1, 50000) i")
    b.sql("ANALYZE tasks")
    b.sql("ANALYZE jobs")
    leases = [b.driver.take(slot=i, slots=60) for i in range(40)]
    hosts = [b.task(x["task_id"])["source_host"] for x in leases]
    assert len(set(hosts)) == 40
    before = reads(b, 0)
    for lease in leases[:20]:  # a slot gets free, and the next is taken at once
        waits = b.driver.ask(slot=50, slots=60)
        b.driver.on(lease, "yield")
        again = waits.get(10)
        assert "task_id" in again
        b.sql("UPDATE tasks SET state = 'done' WHERE id = %s", again["task_id"])
    # each pass over them all would be 37,500 more
    assert reads(b, before["changed"] + 60)["rows"] - before["rows"] < 20 * 5000


def behind_an_old_snapshot(b, gone):
    """A transaction that still sees so many tasks waiting, before all others, that are done."""
    b.sql("INSERT INTO tasks (id, kind, class, role, provider_kind, provider, spec, rank) SELECT"
          " 't' || i, 'export', 'transfer', 'exporter', 'vsphere', 'vsphere', '{}', i"
          " FROM generate_series(1, %s) i", gone)
    b.driver.submit(provider="other")
    old = b.suite.postgres.connect(b.suite.database)
    old.cursor().execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM settings")
    b.sql("UPDATE tasks SET state = 'done'")
    b.sql("ANALYZE tasks")
    return old


@pytest.mark.heavy
def test_behind_an_old_snapshot_nothing_is_lost_and_limits_hold(bench):
    """Also what comes in before the place where most looks start then."""
    b = bench(config={"export": {"provider_limit": 1000}})
    b.sql("UPDATE providers SET settings = '{\"export_limit\": 1}' WHERE name = 'other'")
    gone, leases = 200000, []

    def take():
        leases.append(b.driver.take(slot=len(leases) % 50, slots=60))
        return leases[-1]

    def take_until(job):
        """There is always something else to hand out."""
        while take()["job_id"] != job:
            b.driver.submit()
            assert len(leases) < 3000, "it was never found"
        return leases[-1]

    old = behind_an_old_snapshot(b, gone)
    late = b.suite.postgres.connect(b.suite.database)
    try:
        late.cursor().execute("BEGIN; INSERT INTO job_events (job_id, event, status) SELECT id,"
                              " 'job.late', 'pending' FROM jobs LIMIT 1")
        for _ in range(40):
            b.driver.submit()
        for _ in range(30):
            take()
        take_until(b.driver.submit(priority=90))
        b.driver.on(leases[0], "yield")
        take_until(leases[0]["job_id"])
        first, second = (b.driver.submit(provider="other", priority=99) for _ in range(2))
        lease = take_until(first)
        for _ in range(20):
            b.driver.submit()
            assert take()["job_id"] != second, "over the limit"
        b.driver.finish(lease, export_result())
        take_until(second)
        late.cursor().execute("COMMIT")
        wait_for(lambda: b.sql(f"SELECT 1 FROM job_events WHERE event = 'job.late' AND {PUBLISHED}"),
                 what="an event of a lower id than others is published")
    finally:
        late.close()
        old.close()


QUEUES = (("bridge", "transfer", "convert", "hyper2kvm"), ("exporter", "control", "inventory", "vsphere"))


def queue_one(b, queue, number, rank):
    role, task_class, kind, provider = queue
    if task_class == "control":
        b.sql("INSERT INTO tasks (id, kind, class, role, provider_kind, provider, spec, expires_at, rank)"
              " VALUES (%s, %s, %s, %s, %s, 'vsphere', '{}', now() + interval '1 hour', " + rank + ")",
              f"one-{number}", kind, task_class, role, provider)
        return f"one-{number}"
    job = b.driver.submit()
    return b.sql("UPDATE tasks SET role = %s, kind = %s, provider_kind = %s, rank = " + rank +
                 " WHERE job_id = %s RETURNING id", role, kind, provider, job)[0]["id"]


@pytest.mark.heavy
def test_behind_an_old_snapshot_bridges_and_control_tasks_pass_over_it_seldom(bench):
    """And find what comes in before the place where they start."""
    b = bench()
    gone, claims = 300000, 40
    for role, task_class, kind, provider in QUEUES:
        b.sql("INSERT INTO tasks (id, kind, class, role, provider_kind, provider, spec, rank) SELECT %s || i,"
              " %s, %s, %s, %s, 'vsphere', '{}', i FROM generate_series(1, %s) i", role, kind, task_class,
              role, provider, gone)
    old = b.suite.postgres.connect(b.suite.database)
    try:
        old.cursor().execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM settings")
        b.sql("UPDATE tasks SET state = 'done'")
        b.sql("ANALYZE tasks")

        def passed_over():
            return b.sql("SELECT idx_tup_read FROM pg_stat_user_indexes"
                         " WHERE indexrelname = 'tasks_queue'")[0]["idx_tup_read"] / gone

        def take(queue, number, rank):
            role, task_class, kind, provider = queue
            task = queue_one(b, queue, number, rank)
            b.driver.call("changed")
            lease = b.driver.take(instance=f"w-{role}", kinds=(kind,), transfer=task_class == "transfer",
                                  role=role, provider=provider, slot=number % 50, slots=60)
            assert lease["task_id"] == task

        for queue in QUEUES:
            before = passed_over()
            for number in range(claims):
                take(queue, number, "queue_rank(now(), 50)")
            assert passed_over() - before < claims / 2, f"times, in {claims} claims"
            take(queue, claims, "0")
    finally:
        old.close()


# ---- deadlines and dependencies ----

def soon(b, seconds):
    return b.sql("SELECT to_char((now() + make_interval(secs => %s)) AT TIME ZONE 'UTC',"
                 " 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') AS t", seconds)[0]["t"]


def late(b, job):
    """As if its deadline had come."""
    b.sql("UPDATE jobs SET deadline = now() - interval '1 ms' WHERE id = %s", job)


def test_a_job_that_waits_beyond_its_deadline_fails(bench):
    b = bench()
    job, other = (b.driver.submit(finish_by=soon(b, 3600)) for _ in range(2))
    b.driver.pause(other)
    late(b, job)
    b.wait_status(job, "failed")
    row = b.job(job)
    assert row["error_code"] == "deadline" and "not done by its deadline, 20" in row["error"]
    assert "deadline has passed; submit it anew" in b.driver.retry(job)["error"]
    assert b.job(other)["status"] == "paused"
    assert [r["event"] for r in b.outbox(job)] == ["job.failed"]


def test_the_worker_of_a_late_job_is_told_and_then_it_fails(bench):
    b = bench()
    job = b.driver.submit(finish_by=soon(b, 3600), convert=True)
    lease = b.driver.take()
    b.driver.on(lease, "record", key="snapshot", value="snap-1")
    late(b, job)
    wait_for(lambda: told(b.driver, lease["task_id"], CANCEL), what="the worker is told")
    assert b.job(job)["status"] == "cancelling" and b.job(job)["error_code"] == "deadline"
    assert not b.driver.on(lease, "permit")["granted"]
    ended = b.driver.on(lease, "fail", code="cancelled", message="the job was cancelled")
    assert not ended["lost"] and ended["refused"] == ""
    row = b.job(job)
    assert row["status"] == "failed" and row["error_code"] == "deadline"
    assert "deadline" in row["error"] and row["completed_at"]
    assert [t["state"] for t in b.tasks(job)] == ["failed", "cancelled"]
    release = b.driver.take(transfer=False, kinds=["release"])
    assert release["records"] == {"snapshot": "snap-1"}


def test_a_job_waits_for_others_and_says_for_which(bench):
    b = bench()
    first = b.driver.submit()
    after = b.driver.submit(priority=90, depends_on=[
        {"job_id": first, "required_state": "completed"}])
    b.wait_reason(after, f"waits for job {first} to be completed, it is pending")
    lease = b.driver.take()
    assert lease["job_id"] == first
    waits = b.driver.ask(slot=1)
    b.wait_reason(after, "it is running")
    b.driver.pause(after)  # a pause does not let it slip through
    b.driver.resume(after)
    assert waits.waits()
    b.driver.finish(lease, export_result())
    assert waits.lease()["job_id"] == after


def test_what_can_never_be_met_fails_with_the_reason(bench):
    b = bench()
    first, gone = b.driver.submit(), b.driver.submit()
    on_failure = b.driver.submit(depends_on=[{"job_id": first, "required_state": "failed"}])
    at_end = b.driver.submit(depends_on=[{"job_id": first, "required_state": "final"}])
    needs = b.driver.submit(depends_on=[{"job_id": first, "required_state": "completed"}])
    hasty = b.driver.submit(depends_on=[{"job_id": gone, "required_state": "completed",
                                         "timeout_ms": 1500}])
    orphan = b.driver.submit(depends_on=[{"job_id": gone, "required_state": "completed"}])
    b.wait_status(hasty, "failed")
    assert f"job {gone} was not completed in time: it is pending" in b.job(hasty)["error"]
    b.driver.cancel(first)
    b.wait_status(needs, "failed")
    row = b.job(needs)
    assert row["error_code"] == "dependency"
    assert f"waits for job {first} to end as completed, but that is cancelled" in row["error"]
    b.wait_status(on_failure, "failed")
    b.driver.cancel(gone)
    b.wait_status(orphan, "failed")
    assert b.driver.take()["job_id"] == at_end
    answer = b.driver.call("submit", provider="vsphere", provider_kind="vsphere", vm_path="/x",
                           definition={}, export_spec={}, priority=1, max_attempts=1,
                           retry_initial_ms=1, retry_max_ms=1, trace_id="",
                           role="hypersdk_gateway",
                           depends_on=[{"job_id": "none", "required_state": "final"}])
    assert "job 'none' does not exist" in answer["error"]

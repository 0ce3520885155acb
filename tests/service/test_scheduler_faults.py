"""The scheduler when it, a second one, PostgreSQL or Redis goes away and comes back: nothing is
lost, doubled or stuck, and nobody is told a falsehood."""
import json
import os
import random
import signal
import subprocess
import threading
import time

from tests.harness.driver import export_result
from tests.harness.scheduler import PUBLISHED, bench  # noqa: F401
from tests.harness.wait import free_port, wait_for


def ready(b, process="scheduler"):
    wait_for(lambda: b.suite.ready(process), what=b.suite.tails)


def unique_result(number):
    result = export_result()
    result["export"]["id"] = f"exp-{number:016x}"
    return result


# ---- the scheduler itself ----

def test_a_lease_outlives_a_killed_scheduler(bench):
    b = bench()
    job = b.driver.submit()
    lease = b.driver.take()
    line = {"number": 1, "at_ms": 1, "level": "info", "phase": "", "message": "one"}
    b.driver.on(lease, "renew", lines=[line])
    b.driver.on(lease, "record", key="snapshot", value="s-1")
    b.suite["scheduler"].kill()
    b.suite["scheduler"].start()
    renewed = b.driver.on(lease, "renew", lines=[line, dict(line, number=2)])
    assert not renewed["lost"] and renewed["lines_stored"] == 2
    b.driver.on(lease, "progress", job_id=job, bytes_done=7, bytes_total=10)
    wait_for(lambda: b.suite.redis.command("HGET", f"hypersdk:progress:{job}", "json"))
    b.driver.finish(lease, export_result())
    assert b.job(job)["status"] == "completed"
    assert b.sql("SELECT count(*) AS n FROM job_logs")[0]["n"] == 2


def test_an_end_whose_answer_was_lost_with_the_scheduler_is_done_once(bench):
    b = bench()
    jobs = [b.driver.submit() for _ in range(6)]
    for i in range(6):
        lease = b.driver.take()
        b.driver.send("finish", task_id=lease["task_id"], epoch=lease["epoch"],
                      token=lease["token"], instance="w1", result=json.dumps(unique_result(i)),
                      message_id=f"msg-{i}")
        if i % 2 == 0:
            b.suite["scheduler"].kill()
            b.suite["scheduler"].start()
        answer = b.driver.finish(lease, unique_result(i), message_id=f"msg-{i}")
        assert not answer["lost"] and answer["refused"] == ""
    assert all(b.job(j)["status"] == "completed" for j in jobs)
    assert b.total("hypersdk_jobs_total", status="completed", provider="vsphere") == 6
    assert b.sql("SELECT count(*) AS n FROM outbox WHERE event = 'job.completed'")[0]["n"] == 6


def test_twenty_jobs_survive_a_scheduler_that_is_killed_again_and_again(bench):
    # leases that were given to nobody run out by themselves; a worker that loses one goes on
    b = bench(config={"scheduler": {"lease": "7s"}})
    jobs = [b.driver.submit() for _ in range(20)]
    stop = threading.Event()
    problems = []

    def work(instance, numbers):
        try:
            while not stop.is_set():
                answer = b.driver.ask(instance, timeout_ms=3000).get()
                if answer.get("reply") != "task_lease":
                    continue
                answer["instance"] = instance
                b.driver.on(answer, "record", key="k", value="v")
                b.driver.on(answer, "permit")
                done = b.driver.finish(answer, unique_result(next(numbers)))
                assert done["refused"] == "", done
        except Exception as e:
            problems.append(e)

    threads = [threading.Thread(target=work, args=(f"w{i}", iter(range(i * 1000, i * 1000 + 999))))
               for i in range(3)]
    for t in threads:
        t.start()
    dice = random.Random(7)

    def left():
        return b.sql("SELECT count(*) AS n FROM jobs WHERE status <> 'completed'")[0]["n"]

    def explain():
        open_tasks = b.sql("SELECT t.id, t.state, t.epoch, t.worker, t.lease_until - now() AS left,"
                           " now() - t.updated_at AS ago, r.key FROM tasks t LEFT JOIN task_records"
                           " r ON r.task_id = t.id WHERE t.state <> 'done'")
        return f"{open_tasks}\n{b.suite.tails()}"

    try:
        for _ in range(5):
            before = left()
            wait_for(lambda: left() < before or left() == 0, 60,
                     lambda: f"{problems} {explain()}")
            time.sleep(dice.random() * 0.1)
            b.suite["scheduler"].kill()
            # a lease that was committed but never sent ends early here, not after 12 s
            b.sql("UPDATE tasks SET lease_until = now() - interval '6 seconds'"
                  " WHERE state = 'leased' AND NOT EXISTS (SELECT 1 FROM task_records r"
                  " WHERE r.task_id = tasks.id)")
            b.suite["scheduler"].start()
        wait_for(lambda: left() == 0, 120, b.suite.tails)
    finally:
        stop.set()
        for t in threads:
            t.join(130)
    assert not problems, problems
    assert b.total("hypersdk_jobs_total", status="completed", provider="vsphere") == len(jobs)
    assert b.sql("SELECT count(*) AS n FROM outbox WHERE event = 'job.completed'")[0]["n"] == 20
    ends = b.sql("SELECT job_id, count(*) AS n FROM job_events WHERE event = 'job.completed'"
                 " GROUP BY job_id")
    assert len(ends) == 20 and all(e["n"] == 1 for e in ends)


def test_sigterm_sends_parked_workers_away_and_gives_the_leader_row_back(bench):
    b = bench()
    parked = [b.driver.parked(slot=i) for i in range(3)]
    assert b.suite["scheduler"].stop() == 0
    answers = [p.get() for p in parked]
    assert all(a["reply"] == "no_task" and a["retry_after_ms"] > 0 for a in answers), answers
    assert b.sql("SELECT until <= clock_timestamp() AS free FROM leader")[0]["free"]


# ---- two schedulers ----

def two(bench):
    """Leader and standby with addresses of their own."""
    names = ("lease", "events", "announce")
    addresses = {n: [f"tcp://127.0.0.1:{free_port()}" for _ in range(2)] for n in names}
    b = bench(config={"bus": addresses})
    settings = b.suite.config("scheduler-2")
    for name in names:
        settings["bus"][f"listen_{name}"] = addresses[name][1]
    b.suite.add("scheduler-2", settings)
    b.suite["scheduler-2"].wait_event("standing_by")
    return b


def leader(b):
    return b.sql("SELECT holder, epoch FROM leader")[0]


def test_a_standby_waits_and_takes_over_from_a_killed_leader(bench):
    b = two(bench)
    assert not b.suite.ready("scheduler-2")
    first = leader(b)
    job = b.driver.submit()
    lease = b.driver.take()
    b.suite["scheduler"].kill()
    ready(b, "scheduler-2")
    second = leader(b)
    assert second["epoch"] > first["epoch"] and second["holder"] != first["holder"]
    assert not b.driver.on(lease, "renew")["lost"]
    b.driver.finish(lease, export_result())
    assert b.job(job)["status"] == "completed"
    other = b.driver.submit()
    assert b.driver.take()["job_id"] == other
    b.suite["scheduler"].start()
    wait_for(lambda: len(b.suite["scheduler"].events("standing_by")) > 0,
             what="old one stands by")
    assert leader(b)["holder"] == second["holder"]


def test_a_leader_that_slept_starts_anew_as_a_standby_and_did_no_harm(bench):
    b = two(bench)
    jobs = [b.driver.submit() for _ in range(2)]
    lease = b.driver.take()
    b.suite["scheduler"].pause()
    ready(b, "scheduler-2")
    b.suite["scheduler"].resume()
    b.suite["scheduler"].wait_event("leader_lost")
    wait_for(lambda: len(b.suite["scheduler"].events("service_started")) >= 2,
             what="started anew")
    assert not b.driver.on(lease, "renew")["lost"]
    other = b.driver.take(slot=1)
    assert {lease["job_id"], other["job_id"]} == set(jobs)
    for i, x in enumerate((lease, other)):
        b.driver.finish(x, unique_result(i))
    assert all(b.job(j)["status"] == "completed" for j in jobs)
    assert b.total("hypersdk_jobs_total", status="completed", provider="vsphere") == 2


def test_a_standby_on_the_same_addresses_waits_until_they_are_free(bench):
    b = bench()
    b.suite.add("scheduler-2")
    b.suite["scheduler-2"].wait_event("standing_by")
    assert b.suite["scheduler"].stop() == 0
    ready(b, "scheduler-2")
    job = b.driver.submit()
    assert b.driver.take()["job_id"] == job


# ---- PostgreSQL ----

def test_a_postgresql_restart_loses_nothing_and_nobody_is_told_a_falsehood(bench):
    b = bench(own_postgres=True)
    job = b.driver.submit()
    lease = b.driver.take()
    fields = dict(task_id=lease["task_id"], epoch=lease["epoch"], token=lease["token"],
                  instance="w1")
    b.suite.postgres.stop("immediate")
    for op, more in (("renew", {}), ("record", {"key": "k", "value": "v"}), ("permit", {}),
                     ("finish", {"result": json.dumps(export_result())})):
        answer = b.driver.call(op, timeout_ms=4000, **fields, **more)
        assert answer.get("again") or answer.get("code") == "timeout", answer
        assert not answer.get("lost") and not answer.get("granted")
    b.suite.postgres.start()
    renewed = b.driver.on(lease, "renew")
    assert not renewed["lost"]
    b.driver.finish(lease, export_result())
    assert b.job(job)["status"] == "completed"
    ready(b)
    second = b.driver.submit()
    assert b.driver.take()["job_id"] == second


def test_the_scheduler_may_start_before_postgresql(bench):
    b = bench(own_postgres=True)
    assert b.suite["scheduler"].stop() == 0
    b.suite.postgres.stop()
    b.suite["scheduler"].start()
    b.suite["scheduler"].wait_event("waiting_for_database")
    assert not b.suite.ready("scheduler")
    b.suite.postgres.start()
    ready(b)


def test_a_scheduler_ends_although_postgresql_hangs(bench):
    b = bench(own_postgres=True)
    b.suite.postgres.signal(signal.SIGSTOP)
    try:
        assert b.suite["scheduler"].stop() == 0
    finally:
        b.suite.postgres.signal(signal.SIGCONT)
    b.suite["scheduler"].start()
    ready(b)


def test_a_connection_cut_in_the_middle_is_healed(bench):
    b = bench()
    job = b.driver.submit()
    lease = b.driver.take()
    for i in range(5):
        b.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE"
              " 'scheduler%%' AND datname = %s", b.suite.database)
        assert not b.driver.on(lease, "renew")["lost"]
    b.driver.finish(lease, export_result())
    assert b.job(job)["status"] == "completed"


def test_rows_that_someone_holds_locked_hold_up_nobody_else(bench):
    b = bench(config={"scheduler": {"lease": "60s"}})
    jobs = [b.driver.submit() for _ in range(7)]
    leases = [b.driver.take(slot=i, slots=8) for i in range(7)]
    holder = b.suite.postgres.connect(b.suite.database)
    try:
        holder.autocommit = False
        with holder.cursor() as cursor:  # more than the threads that answer requests
            cursor.execute("SELECT t.id FROM tasks t JOIN jobs j ON j.id = t.job_id"
                           " WHERE t.id = ANY(%s) FOR UPDATE", ([x["task_id"] for x in leases[:6]],))
        for _ in range(3):
            refs = [dict(task_id=x["task_id"], epoch=x["epoch"], token=x["token"], instance="w1",
                         timeout_ms=60000) for x in leases]
            asked = [b.driver.send("renew", **ref) for ref in refs]
            free = b.driver.call("renew", **refs[6])  # the rows stay locked meanwhile
            assert free.get("reply") == "renew" and not free["lost"], free
            for pending in asked[:6]:
                answer = pending.get()
                assert answer.get("again") and not answer.get("lost"), answer
        assert b.driver.finish(leases[6], unique_result(6))["lost"] is False
        submitted = b.driver.submit()  # new work goes on, too
        assert b.driver.take(slot=7, slots=8)["job_id"] == submitted
    finally:
        holder.close()
    for i, lease in enumerate(leases[:6]):
        assert not b.driver.finish(lease, unique_result(i))["lost"]
    assert all(b.job(j)["status"] == "completed" for j in jobs)


# ---- Redis ----

class Listener:
    """Everything that is published, by redis-cli."""

    def __init__(self, redis):
        self.child = subprocess.Popen(
            ["redis-cli", "-h", "127.0.0.1", "-p", str(redis.port), "SUBSCRIBE",
             "hypersdk:events"], stdout=subprocess.PIPE, text=True,
            env=dict(os.environ, REDISCLI_AUTH=redis.password))
        self.events = []
        self.subscribed = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        assert self.subscribed.wait(60)

    def _read(self):
        for line in self.child.stdout:
            if line.startswith("{"):
                self.events.append(json.loads(line))
            elif line.strip() == "subscribe":
                self.subscribed.set()

    def of(self, job_id):
        return [e["type"] for e in self.events if e["job_id"] == job_id
                and e["type"] != "job.progress"]

    def stop(self):
        self.child.send_signal(signal.SIGTERM)
        self.child.wait(60)
        self.child.stdout.close()


def test_history_is_published_in_order_and_progress_with_it(bench):
    b = bench()
    listener = Listener(b.suite.redis)
    job = b.driver.submit()
    lease = b.driver.take()
    b.driver.on(lease, "progress", job_id=job, phase="exporting", bytes_done=5, bytes_total=10)
    wait_for(lambda: any(e["type"] == "job.progress" for e in listener.events), what="progress")
    b.driver.finish(lease, export_result())
    wait_for(lambda: "job.completed" in listener.of(job), what="end published")
    listener.stop()
    assert listener.of(job) == ["job.created", "job.started", "job.completed"]
    numbers = [e["seq"] for e in listener.events if "seq" in e]
    assert numbers == sorted(numbers)
    progress = next(e for e in listener.events if e["type"] == "job.progress")
    assert progress["progress"] == 50 and progress["status"] == "running"
    assert progress["vm_name"] == "web" and progress["phase"] == "exporting"
    end = next(e for e in listener.events if e["type"] == "job.completed")
    assert end["status"] == "completed" and end["vm_name"] == "web" and end["percentage"] == 100.0


def test_each_event_is_published_once_in_whatever_order_transactions_end(bench):
    """Also of a backlog of several pages, which a new leader finds, and then nothing of it again."""
    b = bench()
    job = b.driver.submit()
    wait_for(lambda: b.sql(f"SELECT 1 FROM job_events WHERE {PUBLISHED}"), what="its first event")
    many = ("INSERT INTO job_events (job_id, event, status) SELECT %s, 'job.many', 'pending'"
            " FROM generate_series(1, %s)")
    listener = Listener(b.suite.redis)
    open_ones = [b.suite.postgres.connect(b.suite.database) for _ in range(2)]

    def seen():
        return sorted(e["seq"] for e in listener.events if "seq" in e)

    def rows():
        return [r["id"] for r in b.sql("SELECT id FROM job_events WHERE event <> 'job.created' ORDER BY id")]

    def all_published():
        wait_for(lambda: len(seen()) >= len(rows()), what=lambda: f"{len(seen())} of {len(rows())}")
        wait_for(lambda: not b.sql(f"SELECT 1 FROM job_events WHERE NOT {PUBLISHED}"), what="position")
        assert seen() == rows()

    try:
        open_ones[0].cursor().execute("BEGIN;" + many, (job, 1))
        b.sql(many, job, 3)
        all_published()
        b.suite["scheduler"].kill()
        for i in range(12):
            b.sql(many, job, 110)
            if i == 2:
                open_ones[1].cursor().execute("BEGIN;" + many, (job, 2))
        b.suite["scheduler"].start()
        all_published()
        for late in open_ones:
            late.cursor().execute("COMMIT")
            all_published()
    finally:
        for late in open_ones:
            late.close()
        listener.stop()


def test_a_copied_database_goes_on_publishing(bench):
    """Its position is of another cluster, ahead of all transactions of this one."""
    b = bench()
    b.suite["scheduler"].kill()
    b.sql("UPDATE published_position SET position = '900000000:900000000:'")
    b.suite["scheduler"].start()
    wait_for(lambda: b.sql("SELECT 1 FROM published_position WHERE pg_snapshot_xmax(position)"
                           " <= pg_snapshot_xmax(pg_current_snapshot())"), what="it begins anew")
    listener = Listener(b.suite.redis)
    job = b.driver.submit()
    wait_for(lambda: listener.of(job) == ["job.created"], what="its event")
    listener.stop()


def test_without_redis_a_backlog_of_pages_is_looked_at_now_and_then(bench):
    """Not again and again without a pause, because there was more than one page of it."""
    b = bench()
    b.suite.redis.stop()
    job = b.driver.submit()
    b.sql("INSERT INTO job_events (job_id, event, status) SELECT %s, 'job.progress', 'running'"
          " FROM generate_series(1, 1200)", job)
    wait_for(lambda: b.suite["scheduler"].events("publish_failed"), what="Redis is missed")

    def looks():
        return b.sql("SELECT idx_scan AS n FROM pg_stat_user_indexes"
                     " WHERE indexrelname = 'job_events_xid'")[0]["n"]
    before = looks()
    led = b.sql("SELECT until AS at FROM leader")[0]["at"]
    wait_for(lambda: b.sql("SELECT until > %s::timestamptz + interval '4 seconds' AS later"
                           " FROM leader", led)[0]["later"], what="it leads on")
    assert looks() - before < 50  # one for each tick of 250 ms
    b.suite.redis.start()
    wait_for(lambda: not b.sql(f"SELECT 1 FROM job_events WHERE NOT {PUBLISHED}"), what="published")
    ready(b)


def test_without_redis_work_goes_on_and_events_are_published_when_it_is_back(bench):
    b = bench()
    b.suite.redis.stop()
    job = b.driver.submit()
    lease = b.driver.take()
    b.driver.on(lease, "progress", job_id=job, bytes_done=5, bytes_total=10)
    wait_for(lambda: b.job(job)["progress"], what="progress in the row")
    b.driver.finish(lease, export_result())
    assert b.job(job)["status"] == "completed"
    assert b.sql(f"SELECT 1 FROM job_events WHERE {PUBLISHED}") == []
    b.suite.redis.start()
    wait_for(lambda: not b.sql(f"SELECT 1 FROM job_events WHERE NOT {PUBLISHED}"), what="published")
    ready(b)

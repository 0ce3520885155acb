"""Figures of the queue: a real scheduler on a PostgreSQL of its own, workers and submitters over the
bus (tests/helpers/queue_load.c), also with a million finished jobs and 200,000 queued ones."""
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

from tests.bench.figures import figure, show
from tests.harness.process import BIN
from tests.harness.suite import Suite

LOAD = BIN.parent / "helpers" / "queue_load"
FINISHED = 1_000_000
QUEUED = 200_000
WORKERS = 64
SNAPSHOT_SECONDS = int(os.environ.get("SNAPSHOT_SECONDS", "45"))  # the goal speaks of 300
JOBS = 5000  # per figure

FINISHED_JOBS = """
INSERT INTO jobs (id, provider, vm_path, vm_name, output_path, format, definition, status, result,
    submitted_by, created_at, started_at, completed_at)
SELECT 'old-' || i, 'vsphere', '/DC0/vm/vm-' || i %% 5000, 'vm-' || i %% 5000, '/exports/' || i, 'qcow2',
    '{"vm_path": "x", "format": "qcow2", "options": {"parallel_downloads": 4}}',
    CASE WHEN i %% 20 = 0 THEN 'failed' ELSE 'completed' END,
    '{"total_size": 1000000, "files": [{"name": "disk-0.qcow2", "size": 1000000}]}', 'load', at, at, at
FROM (SELECT i, now() - (%s - i) * interval '5 seconds' AS at FROM generate_series(1, %s) i) s;
INSERT INTO tasks (id, job_id, kind, class, role, provider_kind, provider, spec, state)
SELECT 'task-old-' || i, 'old-' || i, 'export', 'transfer', 'exporter', 'vsphere', 'vsphere', '{}',
    'done' FROM generate_series(1, %s) i;
INSERT INTO job_events (job_id, event, status, xid)
SELECT 'old-' || i, 'job.completed', 'completed', '0' FROM generate_series(1, %s) i;
"""

QUEUED_JOBS = """
INSERT INTO jobs (id, provider, vm_path, vm_name, definition, submitted_by, priority)
SELECT 'wait-' || i, 'vsphere', '/DC0/vm/vm-' || i, 'vm-' || i, '{"vm_path": "x"}', 'load', 10
FROM generate_series(%s, %s) i;
INSERT INTO tasks (id, job_id, kind, class, role, provider_kind, provider, spec, priority, rank)
SELECT 'task-wait-' || i, 'wait-' || i, 'export', 'transfer', 'exporter', 'vsphere', 'vsphere', '{}', 10,
    queue_rank(now(), 10) FROM generate_series(%s, %s) i;
"""


def fdatasync_rate(directory, seconds=2.0):
    """Appends of one page, each made durable: what one commit costs at least."""
    path = pathlib.Path(directory) / "fdatasync"
    with open(path, "wb", buffering=0) as f:
        end, count = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            f.write(b"x" * 8192)
            os.fdatasync(f.fileno())
            count += 1
    path.unlink()
    return count / seconds


def load(suite, mode, jobs, number, workers=WORKERS):
    done = subprocess.run([LOAD, suite.directory / "scheduler.yaml", mode, str(workers), str(jobs),
                           str(number)], capture_output=True, text=True, timeout=900)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def p99(samples):
    return sorted(samples)[int(len(samples) * 0.99) - 1]


def list_latencies(suite, path, count=200):
    samples = []
    for _ in range(count):
        start = time.monotonic()
        suite.client.get(path)
        samples.append((time.monotonic() - start) * 1000)
    return samples


def lists(suite):
    """Against the same call for one job by its id."""
    one = statistics.median(list_latencies(suite, "/api/v1/jobs/old-5"))
    for name, query in (("newest", ""), ("failed", "?status=failed"), ("pending", "?status=pending"),
                        ("one_vm", "?vm=vm-17"), ("provider", "?provider=vsphere"), ("stats", None)):
        path = "/api/v1/jobs/stats" if query is None else "/api/v1/jobs" + query
        yield figure(f"list_{name}_p99", p99(list_latencies(suite, path)), "ms", one, "<=50ms")


def old_snapshot(suite, before):
    """Someone's transaction keeps a snapshot for SNAPSHOT_SECONDS while the queue works."""
    connection = suite.postgres.connect(suite.database)
    try:
        with connection.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT count(*) FROM settings")
            end = time.monotonic() + SNAPSHOT_SECONDS
            rates = []
            while time.monotonic() < end:
                rates.append(load(suite, "throughput", 2000, 50)["jobs_per_second"])
    finally:
        connection.close()
    yield figure("queue_under_old_snapshot", rates[-1], "jobs/s", before, ">=0.5")


def processor_seconds(pid, with_ended_children=False):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    own = fields[11:15] if with_ended_children else fields[11:13]
    return sum(map(int, own)) / os.sysconf("SC_CLK_TCK")


def database_seconds(suite):
    main = (suite.postgres.directory / "postgres/data/postmaster.pid").read_text().split()[0]
    seconds = processor_seconds(main, with_ended_children=True)
    for child in subprocess.run(["ps", "-o", "pid=", "--ppid", main], capture_output=True, text=True,
                                check=True).stdout.split():
        try:
            seconds += processor_seconds(child)
        except FileNotFoundError:
            continue  # it ended meanwhile
    return seconds


def usage(suite):
    """Commits, times that the log of the database was made durable, and seconds: of the clock, of all
    processors when they were busy, and what of that PostgreSQL, the scheduler and the load took."""
    rows = suite.sql("SELECT (SELECT xact_commit FROM pg_stat_database WHERE datname ="
                     " current_database()) AS commits, wal_sync AS syncs FROM pg_stat_wal")[0]
    machine = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _, _, irq, softirq, steal = map(int, machine)
    times = os.times()
    return {"commits": rows["commits"], "syncs": rows["syncs"], "clock": time.monotonic(),
            "busy": (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK"),
            "database": database_seconds(suite), "scheduler": processor_seconds(suite["scheduler"].pid),
            "load": times.children_user + times.children_system}


def measured(suite, mode, jobs, number):
    """What load() found, and what it used."""
    before = usage(suite)
    found = load(suite, mode, jobs, number)
    after = usage(suite)
    return found, {key: after[key] - before[key] for key in before}


def per_job(used, jobs, syncs_per_second):
    """What a job costs: says whether the disk or the processors are the limit."""
    return (f"per job: {used['commits'] / jobs:.2f} commits, {used['syncs'] / jobs:.2f} syncs of the log"
            f" ({used['syncs'] / jobs / syncs_per_second * 1e6:.0f} us of the disk),"
            f" {used['database'] / jobs * 1e6:.0f} us of processor time in PostgreSQL,"
            f" {used['scheduler'] / jobs * 1e6:.0f} us in the scheduler")


def shares(used):
    """Who had the processors."""
    whole = used["clock"] * os.cpu_count()
    rest = max(0, used["busy"] - used["database"] - used["scheduler"] - used["load"])
    return (f"{os.cpu_count()} processors {used['busy'] / whole:.0%} busy: PostgreSQL"
            f" {used['database'] / whole:.0%}, scheduler {used['scheduler'] / whole:.0%}, workers and"
            f" submitters {used['load'] / whole:.0%}, the system and others {rest / whole:.0%}")


def started(paced):
    return (f"a start: {paced['start_p50_ms']:.1f} ms at the median; a commit: {paced['commit_p50_ms']:.1f}"
            f" ms at the median, {paced['commit_p99_ms']:.1f} ms at the 99th percentile")


def processor_limit(used, jobs, syncs_per_second):
    """Jobs per second if the processors did nothing else than PostgreSQL's and the scheduler's part."""
    seconds = used["database"] + used["scheduler"]
    disk = jobs / used["syncs"] * syncs_per_second if used["syncs"] else 0
    processors = os.cpu_count() * jobs / seconds
    return figure("queue_throughput_batch50_limit", processors, "jobs/s", syncs_per_second, "-",
                  notes=[f"that is the processors' limit, the disk's is {disk:.0f} jobs/s", shares(used)])


def fill(suite, first, last):
    """Jobs that wait; the gateway starts anew, else it would tell its clients all that came by SQL."""
    suite.sql(QUEUED_JOBS, first, last, first, last)
    suite.sql("ANALYZE")
    suite["api-gateway"].stop()
    suite["api-gateway"].start()
    suite.wait_ready()


def queue_figures():
    with tempfile.TemporaryDirectory(prefix="hs-bench-") as directory:
        suite = Suite(directory, services=["scheduler", "api-gateway"],
                      config={"export": {"provider_limit": 1000}}, durable=True)
        suite.start()
        try:
            suite.wait_ready()
            suite.sql("INSERT INTO providers (name, kind) VALUES ('vsphere', 'vsphere')")
            syncs = fdatasync_rate(directory)
            empty, used = measured(suite, "throughput", JOBS, 50)
            yield figure("queue_throughput_batch50", empty["jobs_per_second"], "jobs/s", syncs, ">=3",
                         notes=[per_job(used, JOBS, syncs)])
            yield processor_limit(used, JOBS, syncs)
            alone = load(suite, "throughput", JOBS, 1)["jobs_per_second"]
            rate = int(min(1000, alone / 2))  # half of what the machine carries of jobs like these
            paced, used = measured(suite, "latency", rate * 5, rate)
            yield figure(f"enqueue_to_start_p99_at_{rate}", paced["start_p99_ms"], "ms",
                         paced["commit_p50_ms"], "<=3", 2, notes=[started(paced), shares(used)])
            suite.sql(FINISHED_JOBS, FINISHED, FINISHED, FINISHED, FINISHED)
            fill(suite, 1, 10000)
            slow = load(suite, "latency", rate * 5, max(1, min(100, rate // 2)), workers=16)
            yield figure("claim_p99_million_finished", slow["start_p99_ms"], "ms",
                         paced["start_p99_ms"], "<=10ms", 2)
            yield from lists(suite)
            fill(suite, 10001, QUEUED)
            full = load(suite, "throughput", JOBS, 50)["jobs_per_second"]
            yield figure("queue_throughput_full", full, "jobs/s", empty["jobs_per_second"], ">=0.8")
            yield from old_snapshot(suite, full)
        finally:
            suite.stop()


if __name__ == "__main__":  # the figures of the queue alone
    for f in queue_figures():
        show(f)

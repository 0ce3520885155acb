"""The real processes under a steady stream of small jobs while one thing after another breaks (make
test-full): nothing is lost or doubled, every byte is right, and the stream goes on. HSDK_CHAOS_SEED
runs the order of one run again."""
import os
import random
import time

import pytest

from tests.fakes.receiver import Receiver
from tests.harness import chaos, images
from tests.harness.wait import wait_for

SEED = int(os.environ.get("HSDK_CHAOS_SEED", "1"))
ROWS_HELD = 20  # seconds; under the time a worker may write without a renewal
FAULTS = {
    **{f"kill {n}": (lambda s, n=n: chaos.restart(s, n))
       for n in chaos.WORKERS + chaos.GATEWAYS + ("hyper2kvm-bridge", "notifier",
                                                  "metrics-exporter")},
    "kill the leader": lambda s: chaos.restart(s, chaos.leading(s)),
    "stop the leader": lambda s: stop_leader(s),
    "restart PostgreSQL": lambda s: chaos.restart_postgres(s, "fast"),
    "crash PostgreSQL": lambda s: chaos.restart_postgres(s, "immediate"),
    "end all backends": chaos.end_backends,
    "no connection left": lambda s: chaos.exhaust_connections(s, 15),
    "rows held": lambda s: chaos.hold_rows(s, ROWS_HELD),
    "Redis down": lambda s: chaos.without_redis(s, 60),
}


def stop_leader(suite):
    """SIGSTOP; later it wakes up, believing that it leads."""
    name = chaos.leading(suite)
    other = {"scheduler": "scheduler-2", "scheduler-2": "scheduler"}[name]
    lost = len(suite[name].events("leader_lost"))
    suite[name].pause()
    wait_for(lambda: chaos._ready(suite, other), 30, suite.tails)
    suite[name].resume()
    wait_for(lambda: len(suite[name].events("leader_lost")) > lost, 30, suite.tails)


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.stop()


def log(suite):
    return {name: process.events() for name, process in suite.processes.items()}


def check_end(suite, sim, stream, receiver, seen):
    """What must be true of all that was ever accepted. seen: lines of the log before."""
    exports = set(stream.accepted)
    every = exports | set(stream.conversions)
    rows = suite.sql("SELECT id, status, idempotency_key FROM jobs")
    assert {r["id"] for r in rows} == every, "jobs that nobody was told of, or lost ones"
    assert {r["status"] for r in rows} == {"completed"}
    ends = suite.sql("SELECT job_id, count(*) AS n FROM job_events WHERE event = 'job.completed'"
                     " GROUP BY job_id")
    assert {e["job_id"] for e in ends} == every and all(e["n"] == 1 for e in ends)

    def delivered():
        return suite.sql("SELECT d.id, d.state, o.job_id FROM outbox o LEFT JOIN deliveries d"
                         " ON d.outbox_id = o.id WHERE o.event = 'job.completed'")

    wait_for(lambda: all(d["state"] == "delivered" for d in delivered()), 120,
             lambda: f"{delivered()}\n{suite.tails()}")
    assert sorted(d["job_id"] for d in delivered()) == sorted(every)
    told = {}  # delivery -> job; a notifier killed in between may say the same once more
    for request in receiver.requests:
        assert told.setdefault(request.json["delivery_id"], request.json["job_id"]) == \
            request.json["job_id"]
    assert sorted(told.values()) == sorted(every), "one delivery each"
    for lane in range(chaos.LANES):
        wait_for(lambda i=lane: sim.snapshots(f"lane{i}") == [], 60, "no snapshot is left")
    wait_for(lambda: images.leftovers(suite.exports) == [], 60,
             lambda: images.leftovers(suite.exports))
    bad = [e for name, events in log(suite).items() for e in events[seen[name]:]
           if e.get("error_code") == "internal"]
    assert not bad, bad[:5]


def test_nothing_is_lost_whatever_breaks(make_suite, make_vsphere, tmp_path, receiver):
    suite, sim, disks = chaos.start(make_suite, make_vsphere, tmp_path)
    suite.sql("INSERT INTO webhooks (id, url, events, retry, timeout_ms, origin)"
              " VALUES ('wh', %s, '{job.completed}', 10, 10000, 'api')", receiver.url)
    seen = {name: len(events) for name, events in log(suite).items()}  # before the schema, too
    stream = chaos.Stream(suite, disks)
    wanted = os.environ.get("HSDK_CHAOS", "")
    order = [f for f in FAULTS if wanted in f]
    random.Random(SEED).shuffle(order)
    try:
        before = stream.steady()
        for fault in order:
            begun = time.monotonic()
            FAULTS[fault](suite)
            took = time.monotonic() - begun
            back = stream.recovered(before, begun)
            print(f"{fault}: {took:.1f} s, full speed {back:.1f} s after its begin, {before:.2f} jobs/s,"
                  f" {stream.refusals} answers 503 so far", flush=True)
            stream.wait_rounds(2)
    finally:
        stream.stop()
    stream.check()
    check_end(suite, sim, stream, receiver, seen)

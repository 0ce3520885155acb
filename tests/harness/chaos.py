"""A steady stream of small jobs through a suite with leader and standby, and what may go wrong
meanwhile. tests/heavy/test_chaos.py breaks things and looks; tests/bench measures how fast
throughput is back."""
import contextlib
import pathlib
import random
import shutil
import threading
import time

import psycopg2
import requests

from . import images
from .client import Client
from .schedulers import add_standby, bus_section
from .vsphere import make_image, vm
from .wait import wait_for

MB = 1 << 20
DISK_BYTES = 2 * MB
LANES = 6             # jobs at a time, each on a VM of its own
ASK_AGAIN = 0.2       # seconds between two looks of a lane
ACCEPT_SECONDS = 180  # so long a lane tries to have its job accepted, or to see its end
CONVERT_EVERY = 4     # every so many exports of a lane are converted, too
WORKERS = ("exporter-vsphere", "exporter-vsphere-2", "exporter-vsphere-3")
GATEWAYS = ("api-gateway", "api-gateway-2")


def start(make_suite, make_vsphere, directory):
    """PostgreSQL, Redis, two schedulers, two gateways, three exporters, bridge, notifier."""
    suite = make_suite(own_postgres=True, gateways=2, exporters=3,
                       config={"bus": bus_section(pathlib.Path(directory) / "bus"),
                               "scheduler": {"lease": "30s"},
                               "webhooks": {"allow_private": True}})
    add_standby(suite)
    disks = [make_image(pathlib.Path(directory) / f"disk{i}.raw", DISK_BYTES,
                        [(i * 65536, MB)], seed=i) for i in range(LANES)]
    sim = make_vsphere([vm(f"lane{i}", disk) for i, disk in enumerate(disks)])
    suite.add_vsphere(sim)
    return suite, sim, disks


class Stream:
    """One thread per lane: submit, wait for the end, compare every byte, again. A gateway that does
    not answer, or answers 503, is asked again; anything else that is not right is a problem."""

    def __init__(self, suite, disks):
        self.suite = suite
        self.disks = disks
        self.accepted = {}   # job id -> idempotency key
        self.conversions = []
        self.ended = []      # monotonic time of each end
        self.rounds = [0] * len(disks)
        self.problems = []
        self.refusals = 0    # answers 503
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self._lane, args=(i,), daemon=True)
                        for i in range(len(disks))]
        for thread in self.threads:
            thread.start()

    # ---- one lane ----

    def _request(self, clients, method, path, body=None, good=(200,), **kwargs):
        """The answer, sooner or later."""
        until = time.monotonic() + ACCEPT_SECONDS
        last = None
        while time.monotonic() < until:
            client = random.choice(clients)
            try:
                answer = client.request(method, path, body, timeout=40, **kwargs)
            except requests.RequestException as e:
                last = repr(e)
            else:
                if answer.status_code in good:
                    return answer.json()
                last = f"{answer.status_code} {answer.text[:500]}"
                assert answer.status_code == 503, f"{method} {path}: {last}"
                assert answer.headers.get("Retry-After"), f"503 without Retry-After: {last}"
                with self.lock:
                    self.refusals += 1
            time.sleep(ASK_AGAIN)
        raise AssertionError(f"{method} {path}: not within {ACCEPT_SECONDS} s; last: {last}")

    def _wait_end(self, clients, job):
        until = time.monotonic() + ACCEPT_SECONDS
        while time.monotonic() < until:
            status = self._request(clients, "GET", f"/api/v1/jobs/{job}")
            if status["status"] in ("completed", "failed", "cancelled"):
                assert status["status"] == "completed", f"{job}: {status}"
                return status
            time.sleep(ASK_AGAIN)
        raise AssertionError(f"{job} did not end within {ACCEPT_SECONDS} s: {status}")

    def _submit(self, clients, path, body, key, good):
        answer = self._request(clients, "POST", path, body, good, headers={"Idempotency-Key": key})
        with self.lock:
            self.accepted[answer["job_id"]] = key
        return answer["job_id"]

    def _round(self, clients, lane, number):
        convert = number % CONVERT_EVERY == 0
        name = f"lane{lane}"
        job = self._submit(clients, "/api/v1/jobs",
                           {"vm_path": name, "format": "ovf" if convert else "raw",
                            "output_path": f"{name}/{number}"}, f"{name}-{number}", (200, 201))
        result = self._wait_end(clients, job)["result"]
        directory = pathlib.Path(result["output_path"])
        images.check_digests(directory)
        if convert:
            out = self.suite.directory / "images" / f"{name}-{number}"
            answer = self._request(clients, "POST", "/convert",
                                   {"source_path": result["ovf_path"], "output_path": str(out),
                                    "conversion_options": {"format": "qcow2"}}, (200, 202),
                                   headers={"Idempotency-Key": f"convert-{name}-{number}"})
            with self.lock:
                self.conversions.append(answer["job_id"])
            self._wait_end(clients, answer["job_id"])
            images.compare(self.disks[lane], out / f"{name}-disk1.qcow2", "qcow2")
            shutil.rmtree(out)
        else:
            image = directory / f"{name}-disk1.raw"
            assert image.read_bytes() == self.disks[lane].read_bytes(), f"{image} differs"
        shutil.rmtree(directory)

    def _lane(self, lane):
        clients = [Client(self.suite.url(g)) for g in GATEWAYS]
        number = 0
        while not self.stopping.is_set():
            number += 1
            try:
                self._round(clients, lane, number)
            except Exception as e:  # a lane that is wrong once stays visible, the others go on
                with self.lock:
                    self.problems.append(f"lane {lane} round {number}: {e}")
                return
            with self.lock:
                self.ended.append(time.monotonic())
                self.rounds[lane] = number

    # ---- looking at it ----

    def per_second(self, seconds):
        since = time.monotonic() - seconds
        with self.lock:
            return sum(t >= since for t in self.ended) / seconds

    def steady(self, seconds=10):
        """Jobs per second, once every lane has done two."""
        wait_for(lambda: self.problems or min(self.rounds) >= 2, 120, self.explain)
        self.check()
        until = time.monotonic() + seconds
        wait_for(lambda: time.monotonic() >= until, seconds + 5, "some seconds")
        return self.per_second(seconds)

    def wait_rounds(self, count=2, deadline=240):
        """Every lane has begun and ended `count` jobs from now on, less the one under way."""
        before = list(self.rounds)
        wait_for(lambda: self.problems or all(now >= was + count for now, was in
                                              zip(self.rounds, before)), deadline, self.explain)
        self.check()

    def recovered(self, rate, since, share=0.8, window=5, deadline=240):
        """Seconds from `since` (monotonic) to the first `window` seconds in which at least `share`
        of `rate` jobs per second ended."""
        def begin():
            with self.lock:
                ends = [t for t in self.ended if t >= since]
            now = time.monotonic()
            for start in [since] + ends:
                if start + window > now:
                    return None
                if sum(start <= t < start + window for t in ends) >= share * rate * window:
                    return start
            return None

        start = wait_for(lambda: self.problems or begin(), deadline, self.explain)
        self.check()
        return start - since

    def explain(self):
        waiting = "?"
        with contextlib.suppress(Exception):
            waiting = self.suite.sql("SELECT j.id, j.status, j.pending_reason, t.state, t.epoch,"
                                     " t.worker, t.lease_until - now() AS lease_left FROM jobs j"
                                     " JOIN tasks t ON t.job_id = j.id"
                                     " WHERE j.status NOT IN ('completed')")
        return f"rounds {self.rounds}, problems {self.problems}, open {waiting}\n" \
               f"{self.suite.tails()}"

    def check(self):
        assert not self.problems, "\n".join(self.problems) + "\n" + self.suite.tails()

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join(ACCEPT_SECONDS + 60)
            assert not thread.is_alive(), self.explain()


# ---- what goes wrong ----

def leading(suite):
    return next(n for n in ("scheduler", "scheduler-2")
                if suite[n].alive() and _ready(suite, n))


def _ready(suite, name):
    with contextlib.suppress(Exception):
        return suite.ready(name)
    return False


def restart(suite, name):
    """kill -9, and its supervisor starts it again."""
    suite[name].kill()
    suite[name].start()


def restart_postgres(suite, mode):
    suite.postgres.stop(mode)
    suite.postgres.start()


def end_backends(suite, times=5):
    for _ in range(times):
        suite.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                  " WHERE pid <> pg_backend_pid() AND datname = %s", suite.database)
        time.sleep(0.5)


@contextlib.contextmanager
def held(connections):
    try:
        yield connections
    finally:
        for connection in connections:
            with contextlib.suppress(psycopg2.Error):
                connection.close()


def exhaust_connections(suite, seconds):
    """Someone else takes every free connection; ours are cut, so that they need new ones."""
    until = time.monotonic() + seconds
    with held([]) as taken:
        def take_all():
            with contextlib.suppress(psycopg2.OperationalError):
                while time.monotonic() < until:
                    taken.append(suite.postgres.connect(suite.database, "hypersdk_app"))

        take_all()
        admin = suite.postgres.connect(suite.database)
        taken.append(admin)
        with admin.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname"
                           " = %s AND application_name LIKE 'api-gateway%%'", (suite.database,))
        while time.monotonic() < until:
            take_all()
            time.sleep(0.2)


def hold_rows(suite, seconds):
    """Forgotten transactions: an old snapshot, and locks on the rows of what runs."""
    with held([suite.postgres.connect(suite.database) for _ in range(2)]) as (reader, holder):
        for connection in (reader, holder):
            connection.autocommit = False
        with reader.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT count(*) FROM job_events")
        with holder.cursor() as cursor:
            cursor.execute("SELECT t.id FROM tasks t JOIN jobs j ON j.id = t.job_id WHERE t.state"
                           " IN ('leased', 'finishing') LIMIT 3 FOR UPDATE SKIP LOCKED")
        time.sleep(seconds)


def without_redis(suite, seconds):
    suite.redis.stop()
    time.sleep(seconds)
    suite.redis.start()

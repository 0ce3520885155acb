"""A scheduler with scripted workers for service tests.

    from tests.harness.scheduler import bench  # noqa: F401  (a fixture)
"""
import json
import re

import pytest

from .driver import Driver
from .wait import wait_for

# a webhook: what none wants is in no outbox
WANTS_ALL = ("INSERT INTO webhooks (id, url, events, origin) VALUES ('all', 'http://127.0.0.1:9/',"
             " '{*}', 'api')")
# of a row of job_events
PUBLISHED = "pg_visible_in_snapshot(xid, (SELECT position FROM published_position))"


@pytest.fixture
def bench(make_suite):
    """Function that starts a scheduler; .suite, .driver, .job(id), .task(job) on the result."""
    benches = []

    def make(**options):
        benches.append(Bench(make_suite, **options))
        return benches[-1]

    yield make
    for b in benches:
        b.stop()
    for b in benches:
        b.check()


class Bench:
    def __init__(self, make_suite, **options):
        config = options.setdefault("config", {})
        config.setdefault("retry", {"initial_delay": "200ms"})
        # scripted workers do not renew by themselves: nothing is lost but by expire()
        config["scheduler"] = {"lease": "120s", **config.get("scheduler", {})}
        self.suite = make_suite(services=["scheduler"], **options)
        self.drivers = []
        wait_for(lambda: self.suite.ready("scheduler"), 60, self.suite.tails)
        self.suite.sql("INSERT INTO providers (name, kind, settings) VALUES ('vsphere', 'vsphere',"
                       " '{\"host\": \"vc\"}'), ('other', 'vsphere', '{}')")
        self.suite.sql(WANTS_ALL)
        self.driver = self.more()

    def more(self):
        """A further worker process."""
        self.drivers.append(Driver(self.suite.directory / "scheduler.yaml"))
        return self.drivers[-1]

    def check(self):
        """Nothing went wrong that only a mistake in the program explains."""
        bad = [e for p in self.suite.processes.values() for e in p.events()
               if e.get("error_code") == "internal" and e["event"] != "task_log"]
        assert not bad, bad

    def stop(self):
        for driver in self.drivers:
            driver.stop()

    def sql(self, query, *params):
        return self.suite.sql(query, *params)

    def job(self, job_id):
        return self.sql("SELECT * FROM jobs WHERE id = %s", job_id)[0]

    def tasks(self, job_id):
        return self.sql("SELECT * FROM tasks WHERE job_id = %s ORDER BY ordinal", job_id)

    def task(self, task_id):
        return self.sql("SELECT * FROM tasks WHERE id = %s", task_id)[0]

    def history(self, job_id):
        return [r["event"] for r in self.sql("SELECT event FROM job_events WHERE job_id = %s"
                                             " ORDER BY id", job_id)]

    def outbox(self, job_id):
        return self.sql("SELECT event, payload FROM outbox WHERE job_id = %s ORDER BY id", job_id)

    def total(self, name, **labels):
        rows = self.sql("SELECT value FROM metric_totals WHERE name = %s AND labels = %s::jsonb",
                        name, json.dumps(labels))
        return rows[0]["value"] if rows else 0

    def hears(self, lease):
        """The driver hears announcements from now on: what is sent before it has connected is lost,
        only controls are repeated."""
        self.sql("UPDATE workers SET drained_at = now(), drained_by = 'test'")
        wait_for(lambda: [a for a in self.driver.announcements
                          if a.get("task_id") == lease["task_id"]], what="a control message")
        self.sql("UPDATE workers SET drained_at = NULL, drained_by = ''")

    def expire(self, lease, seconds=6):
        """As if the worker had been silent until `seconds` after its lease."""
        self.sql("UPDATE tasks SET lease_until = now() - make_interval(secs => %s) WHERE id = %s",
                 seconds, lease["task_id"])

    def wait_state(self, task_id, state, deadline=60):
        wait_for(lambda: self.task(task_id)["state"] == state, deadline,
                 lambda: f"task {state}: {self.task(task_id)}\n{self.suite.tails()}")

    def wait_status(self, job_id, status, deadline=60):
        wait_for(lambda: self.job(job_id)["status"] == status, deadline,
                 lambda: f"job {status}: {self.job(job_id)}\n{self.suite.tails()}")

    def wait_reason(self, job_id, pattern, deadline=60):
        return wait_for(lambda: re.search(pattern, self.job(job_id)["pending_reason"]), deadline,
                        lambda: f"reason {pattern}: {self.job(job_id)['pending_reason']}")

    def control_task(self, kind="inventory", provider="vsphere", spec=None, expires="1 hour"):
        self.sql("INSERT INTO tasks (id, kind, class, role, provider_kind, provider, spec,"
                 " expires_at) VALUES (%s, %s, 'control', 'exporter', 'vsphere', %s, %s,"
                 " now() + %s::interval)", f"task-{kind}", kind, provider,
                 json.dumps(spec or {}), expires)
        self.driver.call("changed")
        return f"task-{kind}"

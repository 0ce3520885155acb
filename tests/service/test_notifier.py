"""notifier: from outbox rows to POSTs, with receivers that are slow, down, gone or private."""
import hashlib
import hmac
import json
import signal
import threading

import pytest

from tests.fakes.receiver import Receiver
from tests.harness.schema import apply_schema
from tests.harness.seal import seal, write_key
from tests.harness.wait import free_port, wait_for

SEVEN = {"event", "timestamp", "job_id", "vm_name", "status", "duration_seconds", "exported_files"}
EXTRAS = {"delivery_id", "provider", "vm_path", "total_size", "error", "manifest_path",
          "schedule_id"}
PAYLOAD = {"event": "job.completed", "timestamp": "2026-03-01T03:10:09Z", "job_id": "job-1",
           "vm_name": "web-03", "status": "completed", "duration_seconds": 812,
           "exported_files": ["/exports/web-03/web-03.ovf"]}


@pytest.fixture
def receivers():
    started = []

    def make(*args, **kwargs):
        started.append(Receiver(*args, **kwargs))
        return started[-1]

    yield make
    for receiver in started:
        if receiver.hold is not None:
            receiver.hold.set()
        receiver.stop()


@pytest.fixture
def notifier(make_suite):
    """Function: a suite with nothing but the schema and `count` notifiers."""

    def make(count=1, drain="5s", **webhooks):
        suite = make_suite(services=["notifier"], start=False,
                           config={"webhooks": {"allow_private": True, **webhooks},
                                   "daemon": {"drain_ms": drain}})
        apply_schema(suite.postgres, suite.database)
        for i in range(1, count + 1):
            suite.add("notifier" if i == 1 else f"notifier-{i}")
        for name in suite.processes:
            wait_for(lambda n=name: suite.ready(n), what=suite.tails)
        return suite

    return make


def add_webhook(suite, url, events=("job.completed", "job.failed"), name="wh", retry=3,
                timeout_ms=60000, sealed=None):
    suite.sql("INSERT INTO webhooks (id, url, events, retry, timeout_ms, sealed)"
              " VALUES (%s, %s, %s, %s, %s, %s)", name, url, list(events), retry, timeout_ms,
              sealed)


def add_event(suite, event="job.completed", job="job-1", **payload):
    body = {**PAYLOAD, "event": event, "job_id": job, **payload}
    suite.sql("INSERT INTO outbox (event, job_id, payload) VALUES (%s, %s, %s)", event, job,
              json.dumps(body))


def deliveries(suite, state=None):
    rows = suite.sql("SELECT * FROM deliveries ORDER BY id")
    return [r for r in rows if state is None or r["state"] == state]


def wait_deliveries(suite, state, count=1, deadline=120):
    return wait_for(lambda: len(deliveries(suite, state)) == count and deliveries(suite, state),
                    deadline, lambda: f"{count} {state}: {deliveries(suite)}\n{suite.tails()}")


def total(suite, result):
    rows = suite.sql("SELECT value FROM metric_totals WHERE name ="
                     " 'hypersdk_webhook_deliveries_total' AND labels->>'result' = %s", result)
    return rows[0]["value"] if rows else 0


def test_the_flat_payload_arrives_once(notifier, receivers):
    suite, receiver = notifier(), receivers()
    add_webhook(suite, receiver.url)
    add_event(suite, total_size=7, internal_key="never shown")
    row = wait_deliveries(suite, "delivered")[0]
    assert len(receiver.requests) == 1
    request = receiver.requests[0]
    assert SEVEN <= set(request.json) <= SEVEN | EXTRAS
    assert {k: request.json[k] for k in SEVEN} == PAYLOAD
    assert isinstance(request.json["duration_seconds"], int)
    assert request.json["total_size"] == 7 and "internal_key" not in request.json
    assert request.json["delivery_id"] == str(row["id"])
    assert request.headers["content-type"] == "application/json"
    assert request.headers["x-hypersdk-event"] == "job.completed"
    assert (row["attempt"], row["http_status"], row["error"]) == (1, 204, "")
    assert total(suite, "delivered") == 1
    assert suite["notifier"].wait_event("webhook_delivered")[0]["job_id"] == "job-1"


def test_a_webhook_gets_the_events_that_it_wants(notifier, receivers):
    suite = notifier()
    some, all_of_them = receivers(), receivers()
    add_webhook(suite, some.url, ["job.failed"], "some")
    add_webhook(suite, all_of_them.url, ["*"], "all")
    for event in ("job.created", "job.failed", "job.completed"):
        add_event(suite, event)
    wait_deliveries(suite, "delivered", 4)
    assert [r.json["event"] for r in some.requests] == ["job.failed"]
    assert sorted(r.json["event"] for r in all_of_them.requests) == ["job.completed",
                                                                     "job.created", "job.failed"]
    assert suite.sql("SELECT count(*) AS n FROM outbox WHERE expanded_at IS NULL") == [{"n": 0}]


def test_sealed_headers_and_signature_are_sent_and_never_logged(notifier, receivers):
    suite, receiver = notifier(), receivers()
    key = write_key(suite.directory / "keys", "notify")
    secrets = {"headers": {"Authorization": "Bearer t0ken-of-test"}, "secret": "sign-me"}
    add_webhook(suite, receiver.url, sealed=seal(key, json.dumps(secrets).encode()))
    add_event(suite)
    wait_deliveries(suite, "delivered")
    request = receiver.requests[0]
    assert request.headers["authorization"] == "Bearer t0ken-of-test"
    wanted = hmac.new(b"sign-me", request.body, hashlib.sha256).hexdigest()
    assert request.headers["x-hypersdk-signature"] == f"sha256={wanted}"
    assert "t0ken" not in suite["notifier"].output() and "sign-me" not in suite["notifier"].output()


def test_a_wrong_key_is_a_clear_failure(notifier, receivers):
    suite, receiver = notifier(), receivers()
    key = write_key(suite.directory / "keys", "notify")
    add_webhook(suite, receiver.url, sealed=seal(key, b'{"headers": {}}'))
    write_key(suite.directory / "keys", "notify")  # another one
    add_event(suite)
    row = wait_deliveries(suite, "failed")[0]
    assert "sealed with key" in row["error"] and receiver.requests == []


def test_a_receiver_that_is_down_gets_it_later(notifier, receivers):
    suite, port = notifier(), free_port()
    add_webhook(suite, f"http://127.0.0.1:{port}/hook", retry=50)
    add_event(suite)
    wait_for(lambda: deliveries(suite)[0]["attempt"] >= 1)
    assert deliveries(suite)[0]["state"] == "pending"
    receiver = receivers(port=port)
    row = wait_deliveries(suite, "delivered")[0]
    assert len(receiver.requests) == 1 and row["attempt"] >= 2
    assert total(suite, "retried") == row["attempt"] - 1
    event = suite["notifier"].events("webhook_attempt_failed")[0]
    assert event["retry_in_ms"] >= 500 and "refused" in event["error"].lower()


def test_retries_back_off_and_end(notifier, receivers):
    suite, receiver = notifier(), receivers([500])
    add_webhook(suite, receiver.url, retry=2)
    add_event(suite)
    row = wait_deliveries(suite, "failed")[0]
    times = [r.at for r in receiver.requests]
    assert len(times) == 3 and row["attempt"] == 3 and row["http_status"] == 500
    assert times[1] - times[0] >= 0.5 and times[2] - times[1] >= 1.0
    assert len({r.json["delivery_id"] for r in receiver.requests}) == 1
    assert (total(suite, "retried"), total(suite, "failed")) == (2, 1)
    suite["notifier"].wait_event("webhook_failed")


def test_410_disables_the_webhook_and_gives_up_what_waits(notifier, receivers):
    suite, receiver = notifier(), receivers([410])
    add_webhook(suite, receiver.url)
    add_event(suite)
    wait_deliveries(suite, "failed")
    assert suite.sql("SELECT enabled FROM webhooks") == [{"enabled": False}]
    add_event(suite, job="job-2")
    wait_for(lambda: suite.sql("SELECT count(*) AS n FROM outbox WHERE expanded_at IS NULL")
             == [{"n": 0}])
    assert len(receiver.requests) == 1 and len(deliveries(suite)) == 1
    assert total(suite, "gone") == 1


def test_private_targets_are_refused_unless_allowed(notifier, receivers):
    suite, receiver = notifier(allow_private=False), receivers()
    urls = [receiver.url, receiver.url.replace("127.0.0.1", "localhost"), "http://[::1]:9/x",
            "http://169.254.169.254/latest/meta-data", "http://10.0.0.1/x"]
    for i, url in enumerate(urls):
        add_webhook(suite, url, name=f"wh-{i}")
    add_event(suite)
    rows = wait_deliveries(suite, "failed", len(urls))
    assert all("private" in r["error"] and r["attempt"] == 1 for r in rows), rows
    assert receiver.requests == []


def test_other_protocols_and_redirects_are_not_followed(notifier, receivers):
    suite, receiver = notifier(), receivers([302])
    add_webhook(suite, "file:///etc/passwd", name="file")
    add_webhook(suite, receiver.url, name="moved", retry=0)
    add_event(suite)
    rows = wait_deliveries(suite, "failed", 2)
    assert {r["http_status"] for r in rows} == {None, 302}


def test_an_attempt_has_its_own_time_limit(notifier, receivers):
    suite, receiver = notifier(), receivers()
    receiver.hold = threading.Event()
    add_webhook(suite, receiver.url, retry=0, timeout_ms=300)
    add_event(suite)
    row = wait_deliveries(suite, "failed")[0]
    assert "no answer in time" in row["error"]


def test_a_silent_receiver_does_not_hold_up_others(notifier, receivers):
    suite = notifier()
    silent, quick = receivers(), receivers()
    silent.hold = threading.Event()
    add_webhook(suite, silent.url, name="silent", timeout_ms=600000)
    for i in range(20):
        add_event(suite, job=f"job-{i}")
    # those that are not spread yet would go to the quick one, too
    wait_for(lambda: suite.sql("SELECT 1 FROM outbox WHERE expanded_at IS NULL") == [])
    wait_for(lambda: len(silent.requests) >= 2)
    add_webhook(suite, quick.url, name="quick")
    add_event(suite, job="job-late")
    wait_for(lambda: len(quick.requests) == 1, what=suite.tails)
    assert len(silent.requests) == 2  # however many senders were idle when the events came
    silent.hold.set()
    wait_deliveries(suite, "delivered", 22)


def test_a_killed_notifier_loses_nothing(notifier, receivers):
    suite, receiver = notifier(), receivers()
    receiver.hold = threading.Event()
    add_webhook(suite, receiver.url)
    for i in range(5):
        add_event(suite, job=f"job-{i}")
    wait_for(lambda: receiver.requests)
    suite["notifier"].kill()
    suite.sql("UPDATE deliveries SET claimed_until = now() WHERE claimed_until IS NOT NULL")
    add_event(suite, job="job-5")
    receiver.hold.set()
    receiver.hold = None
    suite["notifier"].start()
    wait_deliveries(suite, "delivered", 6)
    assert {r.json["job_id"] for r in receiver.requests} == {f"job-{i}" for i in range(6)}


def test_two_notifiers_share_without_doubles(notifier, receivers):
    suite, receiver = notifier(count=2), receivers()
    receiver.hold = threading.Event()
    for i in range(6):
        add_webhook(suite, receiver.url, name=f"wh-{i}")
    for i in range(10):
        add_event(suite, job=f"job-{i}")
    wait_for(lambda: len(receiver.requests) == 8)  # all senders of both are at it
    receiver.hold.set()
    wait_deliveries(suite, "delivered", 60)
    assert len(receiver.requests) == 60
    assert len({r.json["delivery_id"] for r in receiver.requests}) == 60
    for process in suite.processes.values():
        process.wait_event("webhook_delivered")


def test_sigterm_finishes_the_running_attempt(notifier, receivers):
    suite, receiver = notifier(drain="120s"), receivers()
    receiver.hold = threading.Event()
    add_webhook(suite, receiver.url)
    add_event(suite)
    wait_for(lambda: receiver.requests)
    suite["notifier"].signal(signal.SIGTERM)
    suite["notifier"].wait_event("service_stopping")
    receiver.hold.set()
    assert suite["notifier"].child.wait(120) == 0
    assert [d["state"] for d in deliveries(suite)] == ["delivered"]
    assert len(receiver.requests) == 1


def test_the_drain_hands_a_hanging_attempt_back(notifier, receivers):
    suite, receiver = notifier(), receivers()
    receiver.hold = threading.Event()
    add_webhook(suite, receiver.url, timeout_ms=600000)
    add_event(suite)
    wait_for(lambda: receiver.requests)
    assert suite["notifier"].stop() == 0
    row = deliveries(suite)[0]
    assert (row["state"], row["attempt"], row["claimed_until"]) == ("pending", 0, None)


def test_webhooks_off_sends_nothing(notifier, receivers):
    suite, receiver = notifier(enabled=False), receivers()
    add_webhook(suite, receiver.url)
    add_event(suite)
    wait_for(lambda: suite.sql("SELECT count(*) AS n FROM outbox WHERE expanded_at IS NULL")
             == [{"n": 0}])
    assert deliveries(suite) == [] and receiver.requests == []


def test_it_waits_for_the_database_and_outlives_it(make_suite, receivers):
    suite = make_suite(own_postgres=True, services=["notifier"], start=False,
                       config={"webhooks": {"allow_private": True}})
    receiver = receivers()
    suite.add("notifier")

    def reason():
        answer = suite.admin("notifier").request("GET", "/readyz")
        return answer.status_code == 503 and answer.json()["reason"]

    wait_for(lambda: "waiting for the schema" in reason(), what=suite.tails)
    apply_schema(suite.postgres, suite.database)
    wait_for(lambda: suite.ready("notifier"))
    add_webhook(suite, receiver.url)
    suite.postgres.stop("immediate")
    wait_for(lambda: not suite.ready("notifier"))
    suite.postgres.start()
    add_event(suite)
    wait_deliveries(suite, "delivered")
    wait_for(lambda: suite.ready("notifier"))


def test_the_heartbeat_is_in_the_services_table(notifier):
    suite = notifier()
    row = wait_for(lambda: suite.sql("SELECT name, instance FROM services WHERE now() - seen_at <"
                                     " interval '15 seconds'"), what="a fresh heartbeat")[0]
    assert row["name"] == "notifier"
    assert row["instance"] == suite["notifier"].events("service_started")[0]["instance"]

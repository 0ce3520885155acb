"""What every service binary shares: arguments, admin port, signals, drain. Shown with the notifier,
which needs least around it."""
import signal
import socket
import subprocess
import threading

import pytest
import requests

from tests.fakes.receiver import Receiver
from tests.harness.process import BIN, Process
from tests.harness.schema import apply_schema
from tests.harness.wait import wait_for

SERVICES = ["scheduler", "api-gateway", "exporter-vsphere", "hyper2kvm-bridge", "notifier",
            "metrics-exporter"]


def run(service, *arguments):
    if not (BIN / service).exists():
        pytest.skip(f"{service} is not built")
    return subprocess.run([BIN / service, *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("service", SERVICES)
def test_help_and_version_need_nothing(service):
    done = run(service, "--help")
    assert done.returncode == 0 and done.stderr == ""
    for word in (service, "--config", "--check-config", "--version", "SIGTERM", "daemon:", "bus:",
                 "drain_ms"):
        assert word in done.stdout, word
    done = run(service, "--version")
    assert done.returncode == 0 and done.stdout.split()[0] == service


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("arguments", [["--nonsense"], ["stray"], ["--config"]])
def test_wrong_arguments_exit_64(service, arguments):
    done = run(service, *arguments)
    assert done.returncode == 64 and arguments[0] in done.stderr
    assert done.stdout == ""


def test_all_problems_of_the_file_come_together(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("daemon:\n  drain_ms: soon\n  log_level: loud\nadmin:\n  notifier: ''\n"
                    "database:\n  pool_size: 0\n")
    done = run("notifier", "--config", path)
    assert done.returncode == 64
    for text in (f"{path}:2: daemon.drain_ms", f"{path}:5: admin.notifier",
                 f"{path}:7: database.pool_size", "database: url: is required"):
        assert text in done.stderr, text


@pytest.fixture
def notifier(make_suite):
    def make(drain="5s"):
        suite = make_suite(services=["notifier"], start=False,
                           config={"daemon": {"drain_ms": drain}})
        apply_schema(suite.postgres, suite.database)
        suite.add("notifier")
        wait_for(lambda: suite.ready("notifier"), what=suite.tails)
        return suite

    return make


def test_the_admin_port_tells_about_the_process(notifier):
    suite = notifier()
    admin, process = suite.admin("notifier"), suite["notifier"]
    listening = process.events("admin_listening")[0]
    assert listening["port"] == suite.port("admin notifier")
    health = admin.request("GET", "/healthz")
    assert health.status_code == 200 and health.json()["service"] == "notifier"
    assert health.json()["instance"] == process.events("service_started")[0]["instance"]
    ready = admin.request("GET", "/readyz").json()
    assert ready["ready"] and ready["conditions"]["database"]["ready"]
    metrics = admin.request("GET", "/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "process_resident_memory_bytes " in metrics.text
    assert admin.request("HEAD", "/healthz").status_code == 200
    assert admin.request("POST", "/healthz", "x" * 100000).status_code == 405
    assert admin.request("GET", "/other").status_code == 404
    assert admin.request("GET", "/" + "a" * 40000).status_code in (414, 431)


def test_many_silent_connections_do_not_stop_the_probes(notifier):
    suite = notifier()
    port = suite.port("admin notifier")
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(30)]
    try:
        assert requests.get(f"http://127.0.0.1:{port}/healthz", timeout=60).ok
    finally:
        for s in held:
            s.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_ends_with_0(notifier, number):
    process = notifier()["notifier"]
    process.signal(number)
    assert process.child.wait(60) == 0
    names = [e["event"] for e in process.events()]
    assert names.index("service_stopping") < names.index("service_stopped")
    assert process.events("service_stopping")[0]["signal"] == signal.Signals(number).name


def test_sighup_does_not_end_it(notifier):
    suite = notifier()
    suite["notifier"].signal(signal.SIGHUP)
    suite["notifier"].wait_event("reload_requested")
    assert suite.ready("notifier")


@pytest.fixture
def stuck(notifier):
    """A notifier in the middle of an attempt that never ends by itself."""
    receiver = Receiver()
    receiver.hold = threading.Event()

    def make(drain):
        suite = notifier(drain)
        suite.sql("INSERT INTO webhooks (id, url, events, timeout_ms)"
                  " VALUES ('w', %s, '{*}', 600000)", receiver.url)
        suite.sql("INSERT INTO outbox (event, job_id, payload) VALUES ('test', '', '{}')")
        wait_for(lambda: receiver.requests)
        return suite

    yield make
    receiver.hold.set()
    receiver.stop()


def test_while_draining_it_is_not_ready_and_a_second_signal_ends_it_at_once(stuck):
    suite = stuck("300s")
    process = suite["notifier"]
    process.signal(signal.SIGTERM)
    process.wait_event("service_stopping")
    answer = suite.admin("notifier").request("GET", "/readyz")
    assert answer.status_code == 503 and answer.json()["reason"] == "stopping"
    assert suite.admin("notifier").request("GET", "/healthz").ok
    process.signal(signal.SIGTERM)
    assert process.child.wait(240) == 1, "not 0, as at the end of the drain"
    assert process.events("service_killed")


def test_a_taken_admin_port_is_a_clear_end(notifier, tmp_path):
    suite = notifier()
    path = suite.directory / "notifier.yaml"
    second = Process("second", [BIN / "notifier", "--config", path], tmp_path / "second.log")
    second.start()
    assert second.child.wait(60) == 1
    error = second.events("service_failed")[0]["error"]
    assert str(suite.port("admin notifier")) in error and "in use" in error


def test_children_of_a_shell_get_no_surprise_from_sigpipe(notifier):
    """A reader of the log that goes away does not take the service with it."""
    suite = notifier()
    process = suite["notifier"]
    process.stop()
    path = suite.directory / "notifier.yaml"
    child = subprocess.Popen([BIN / "notifier", "--config", path], stderr=subprocess.PIPE,
                             stdout=subprocess.DEVNULL)
    try:
        child.stderr.readline()
        child.stderr.close()
        wait_for(lambda: suite.admin("notifier").request("GET", "/readyz").ok)
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0
    finally:
        child.kill()
        child.wait()

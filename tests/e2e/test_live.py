"""Live events of a real export, as clients of two gateways see them."""
import pytest

from tests.harness.gateways import Socket, wait_subscribed
from tests.harness.vsphere import make_image, vm
from tests.harness.wait import wait_for

MB = 1 << 20


@pytest.fixture
def sim(make_vsphere, tmp_path):
    disk = make_image(tmp_path / "disk.raw", 64 * MB, [(0, 24 * MB)])
    return make_vsphere([vm("web", disk)], rate=8 * MB)


def test_two_gateways_show_one_export_alike(make_suite, sim):
    suite = make_suite(gateways=2)
    suite.add_vsphere(sim)
    wait_subscribed(suite, 2)
    sockets = [Socket(suite.url(g), timeout=60) for g in ("api-gateway", "api-gateway-2")]
    for s in sockets:
        s.until("hello")  # from here on nothing is missed
    sse = suite.client.events(topics="jobs", timeout=60)
    next(sse)
    job = suite.client.submit(vm_path="web", format="qcow2")
    log = suite.client.request("GET", f"/jobs/logs/{job}?follow=true", stream=True)
    for s in sockets:
        end = s.until("job.completed", job_id=job)
        assert end["status"] == "completed" and end["percentage"] == 100.0
        assert [k for _, k in s.states()][:2] == ["job.created", "job.started"]
        progress = [m for m in s.seen if m["type"] == "job.progress"]
        bytes_seen = [m["bytes_transferred"] for m in progress]
        assert len(progress) > 3 and bytes_seen == sorted(bytes_seen) and bytes_seen[-1] > MB
        assert all(m["job_id"] == job and 0 <= m["percentage"] <= 100 for m in progress)
    assert sockets[0].states() == sockets[1].states()
    for event in sse:
        if event["type"] == "job.completed":
            break
    lines = log.text.splitlines()  # ends because the job is over
    stored = suite.sql("SELECT count(*) AS n FROM job_logs WHERE job_id = %s", job)[0]["n"]
    assert len(lines) == stored and stored > 3


def test_a_client_of_a_killed_gateway_misses_no_state(make_suite, sim):
    suite = make_suite()
    suite.add_vsphere(sim)
    wait_subscribed(suite)
    s = Socket(suite.url(), timeout=60)
    s.until("hello")
    job = suite.client.submit(vm_path="web", format="raw")
    s.until("job.progress", job_id=job)
    seen = s.states()
    suite["api-gateway"].kill()
    suite["api-gateway"].start()
    wait_for(lambda: suite.ready("api-gateway"), 60)
    suite.wait_job(job, "completed")
    again = Socket(suite.url(), f"/ws?resume_from={max(seq for seq, _ in seen)}", timeout=60)
    again.until("job.completed", job_id=job)
    rows = suite.sql("SELECT id, event FROM job_events WHERE job_id = %s ORDER BY id", job)
    assert sorted(set(seen + again.states())) == [(r["id"], r["event"]) for r in rows]

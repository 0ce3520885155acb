"""The adaptive limit in the running suite: it falls while the source answers late, and rises again
(make test-full: a step takes ten seconds)."""
import threading

import pytest

from tests.fakes.vsphere import Disk, FakeVsphere, Vm
from tests.harness.wait import wait_for

MB = 1 << 20
LATE = 0.4  # seconds: over twice the usual answer and what a scheduler adds, and no limit by itself


@pytest.fixture
def source(tmp_path):
    server = FakeVsphere(tmp_path, [Vm("vm-1", "web", [Disk(2000, b"\x01" * (800 * MB),
                                                            "[ds 1] web/web.vmdk")])])
    yield server
    server.stop()


def test_it_falls_when_answers_come_late_and_rises_again(make_suite, source):
    late, pause = threading.Event(), threading.Event()

    def hook(request, path):
        if late.is_set():
            pause.wait(LATE)
        return False  # and the usual answer

    source.folder = hook
    suite = make_suite(config={"export": {"chunk_size": 4 * MB}})
    suite.client.post("/api/v1/providers", dict(source.settings(), name="vsphere", kind="vsphere"))
    job = suite.client.submit(vm_path="web", format="raw", adaptive_bandwidth=True,
                              bandwidth_min_mbps=1, bandwidth_max_mbps=12, bandwidth_burst_mb=1)

    def rate():  # moving average of 10 s
        return suite.client.get(f"/api/v1/jobs/{job}/progress")["rate_bytes_per_second"] / MB

    wait_for(lambda: rate() > 5.5, 60, lambda: f"{rate()}\n{suite.explain(job)}")
    late.set()
    wait_for(lambda: 0 < rate() < 3.5, 200, lambda: f"{rate()}\n{suite.explain(job)}")
    progress = suite.client.job(job)["progress"]
    assert progress["limited_by"] == "rate_limit", progress
    late.clear()
    wait_for(lambda: rate() > 4.5, 400, lambda: f"{rate()}\n{suite.explain(job)}")
    suite.client.post(f"/api/v1/jobs/{job}/cancel", {})
    suite.wait_job(job, "cancelled")

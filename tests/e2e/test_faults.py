"""Processes die in the middle of an export; nothing is lost, doubled or left to a hand."""
import pathlib

import pytest

from tests.harness import images
from tests.harness.vsphere import make_image, vm
from tests.harness.wait import wait_for

MB = 1 << 20


@pytest.fixture
def disk(tmp_path):
    return make_image(tmp_path / "disk.raw", 96 * MB, [(i * 8 * MB + 777 * 512, 5 * MB)
                                                       for i in range(11)])


@pytest.fixture
def sim(make_vsphere, disk):
    return make_vsphere([vm("web", disk)])


def running_export(suite, sim, megabytes=16):
    """An export that has copied some megabytes and is held."""
    sim.set_rate(8 * MB)
    job = suite.client.submit(vm_path="web", format="qcow2")
    suite.wait_bytes(job, megabytes * MB)
    sim.hold()
    return job


def check_result(suite, sim, disk, job, deadline=120):
    done = suite.wait_job(job, "completed", deadline=deadline)
    image = pathlib.Path(done["result"]["output_path"]) / "web-disk1.qcow2"
    images.check(image, "qcow2")
    images.compare(disk, image, "qcow2")
    images.check_digests(image.parent)
    wait_for(lambda: sim.snapshots("web") == [], 60, "no snapshot is left")
    assert images.leftovers(suite.exports) == []
    return done


@pytest.mark.parametrize("victim", ["exporter-vsphere", "scheduler", "api-gateway", "notifier",
                                    "metrics-exporter", "hyper2kvm-bridge"])
def test_kill_9_during_an_export(make_suite, sim, disk, victim):
    suite = make_suite()
    suite.add_vsphere(sim)
    job = running_export(suite, sim)
    suite[victim].kill()
    suite[victim].start()
    sim.set_rate(0)
    suite.wait_ready()
    done = check_result(suite, sim, disk, job)
    assert done["attempt"] == 0, "a crash is no failed attempt"


def test_a_dead_worker_is_replaced_by_another_that_goes_on(make_suite, sim, disk):
    suite = make_suite()
    suite.add_vsphere(sim)
    job = running_export(suite, sim, 50)  # a checkpoint or two behind it
    before = sim.stats()["bytes"]
    suite["exporter-vsphere"].kill()
    suite.add("exporter-vsphere-2")
    sim.set_rate(0)
    check_result(suite, sim, disk, job)
    # it went on from the journal: what a checkpoint stands for was not read again
    assert sim.stats()["bytes"] - before < 96 * MB
    assert "gone on at" in suite.client.request("GET", f"/jobs/logs/{job}").text


def test_postgres_restart_during_an_export(make_suite, sim, disk):
    suite = make_suite(own_postgres=True)
    suite.add_vsphere(sim)
    job = running_export(suite, sim)
    suite.postgres.stop("immediate")
    suite.postgres.start()
    sim.set_rate(0)
    check_result(suite, sim, disk, job)


def test_redis_restart_during_an_export(make_suite, sim, disk):
    suite = make_suite()
    suite.add_vsphere(sim)
    job = running_export(suite, sim)
    suite.redis.stop()
    assert suite.client.get(f"/jobs/progress/{job}")["status"] == "running"
    suite.redis.start()
    sim.set_rate(0)
    check_result(suite, sim, disk, job)


def test_everything_dies_at_once(make_suite, sim, disk):
    suite = make_suite(own_postgres=True)
    suite.add_vsphere(sim)
    job = running_export(suite, sim)
    suite.kill_all()
    suite.postgres.stop("immediate")
    suite.redis.stop()
    suite.postgres.start()
    suite.redis.start()
    for process in suite.processes.values():
        process.start()
    sim.set_rate(0)
    suite.wait_ready()
    check_result(suite, sim, disk, job)


def test_two_workers_share_ten_jobs(make_suite, make_vsphere, disk):
    # one VM each: the simulator confuses the files of a VM with several snapshots
    sim = make_vsphere([vm(f"web{i}", disk) for i in range(10)])
    suite = make_suite(exporters=2)
    suite.add_vsphere(sim)
    sim.set_rate(60 * MB)
    jobs = [suite.client.submit(vm_path=f"web{i}", format="raw", verify=False) for i in range(10)]
    done = [suite.wait_job(job, "completed", deadline=120) for job in jobs]
    workers = {d["worker_id"] for d in done}
    assert len(workers) == 2, workers
    for i, d in enumerate(done):
        assert d["attempt"] == 0
        images.compare(disk, suite.exports / f"web{i}" / f"web{i}-disk1.raw", "raw")


def test_a_drained_worker_hands_its_task_over(make_suite, sim, disk):
    suite = make_suite()
    suite.add_vsphere(sim)
    job = running_export(suite, sim)
    suite.add("exporter-vsphere-2")
    assert suite["exporter-vsphere"].stop() == 0
    sim.set_rate(0)
    done = check_result(suite, sim, disk, job)
    assert done["attempt"] == 0

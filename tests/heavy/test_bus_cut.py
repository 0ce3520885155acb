"""The leader's network is cut, silently: the standby leads, workers and gateways find it, and the old
leader does no harm when it is back (make test-full; needs the right to make network namespaces)."""
import pytest

from tests.harness import images
from tests.harness.netns import Network, why_not
from tests.harness.process import BIN, Process
from tests.harness.schedulers import add_standby, bus_section, leader
from tests.harness.vsphere import make_image, vm
from tests.harness.wait import wait_for

MB = 1 << 20


@pytest.fixture
def network():
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    network = Network()
    try:
        yield network
    finally:
        network.remove()


@pytest.fixture
def disk(tmp_path):
    return make_image(tmp_path / "disk.raw", 96 * MB, [(i * 8 * MB + 777 * 512, 5 * MB)
                                                       for i in range(11)])


def add_inside(suite, network):
    """The first scheduler, in a network of its own; it reaches PostgreSQL and Redis through it."""
    settings = suite.config("scheduler")
    for key in ("url", "owner_url"):
        settings["database"][key] = settings["database"][key].replace(
            f"127.0.0.1:{suite.postgres.port}",
            f"{network.outside}:{network.forward(suite.postgres.port)}")
    settings["redis"]["address"] = f"{network.outside}:{network.forward(suite.redis.port)}"
    path = suite.write_config("scheduler", settings)
    suite.processes["scheduler"] = Process(
        "scheduler", network.argv(BIN / "scheduler", "--config", path),
        suite.directory / "scheduler.log").start()
    suite["scheduler"].wait_event("leader_acquired")


def check_done(suite, disk, job, name):
    assert suite.wait_job(job, "completed", deadline=120)["attempt"] == 0
    images.compare(disk, suite.exports / name / f"{name}-disk1.raw", "raw")
    assert [r["epoch"] for r in suite.sql("SELECT epoch FROM tasks WHERE job_id = %s", job)] == [1]


@pytest.mark.parametrize("scheme", ["tcp", "tls+tcp"])
def test_a_leader_that_is_cut_off_is_replaced_and_does_no_harm(network, make_suite, make_vsphere,
                                                               tmp_path, disk, scheme):
    section = bus_section(tmp_path / "bus", scheme, hosts=(network.inside, "127.0.0.1"))
    suite = make_suite(start=False, gateways=2, exporters=2,
                       config={"bus": section, "scheduler": {"lease": "30s"}})
    sim = make_vsphere([vm(f"web{i}", disk) for i in range(4)])
    add_inside(suite, network)
    add_standby(suite)
    for name in ("api-gateway", "api-gateway-2", "exporter-vsphere", "exporter-vsphere-2"):
        suite.add(name)
    suite.connect()
    for name in set(suite.processes) - {"scheduler", "scheduler-2"}:
        wait_for(lambda n=name: suite.ready(n), 60, suite.tails)
    suite.add_vsphere(sim)
    first = leader(suite)
    sim.set_rate(8 * MB)
    running = suite.client.submit(vm_path="web0", format="raw")
    suite.wait_bytes(running, 10 * MB)

    network.cut()
    wait_for(lambda: suite.ready("scheduler-2"), 60, suite.tails)
    second = leader(suite)
    assert second["epoch"] > first["epoch"]
    suite["scheduler"].wait_event("leader_lost")
    new = [suite.client.submit(vm_path=f"web{i}", format="raw", verify=False) for i in (1, 2)]
    for job in new:
        suite.wait_job(job, "running", "completed")
    sim.set_rate(0)
    for job, name in zip([running] + new, ("web0", "web1", "web2")):
        check_done(suite, disk, job, name)

    network.heal()
    wait_for(lambda: suite["scheduler"].events("standing_by"), 60, suite.tails)
    assert leader(suite)["holder"] == second["holder"]
    suite["scheduler-2"].kill()
    wait_for(lambda: leader(suite)["alive"] and leader(suite)["holder"] != second["holder"], 60,
             suite.tails)
    check_done(suite, disk, suite.client.submit(vm_path="web3", format="raw"), "web3")
    assert all(len(suite[n].events("task_failed")) == 0
               for n in ("exporter-vsphere", "exporter-vsphere-2"))

"""Leader and standby under a running suite: workers and gateways find the new leader by themselves,
and no export is begun twice."""
import pytest

from tests.harness import images
from tests.harness.schedulers import add_standby, bus_section, leader, wait_leads
from tests.harness.vsphere import make_image, vm
from tests.harness.wait import wait_for

MB = 1 << 20


@pytest.fixture
def disk(tmp_path):
    return make_image(tmp_path / "disk.raw", 96 * MB, [(i * 8 * MB + 777 * 512, 5 * MB)
                                                       for i in range(11)])


@pytest.fixture
def suite(request, make_suite, make_vsphere, tmp_path, disk):
    """Two schedulers, two gateways, two exporters."""
    # the real length of a lease: it outlives the change of the leader
    suite = make_suite(config={"bus": bus_section(tmp_path / "bus", request.param),
                               "scheduler": {"lease": "30s"}}, gateways=2, exporters=2)
    add_standby(suite)
    suite.sim = make_vsphere([vm(f"web{i}", disk) for i in range(4)])
    suite.add_vsphere(suite.sim)
    return suite


def check_done(suite, disk, job, name):
    done = suite.wait_job(job, "completed", deadline=120)
    assert done["attempt"] == 0
    images.compare(disk, suite.exports / name / f"{name}-disk1.raw", "raw")
    images.check_digests(suite.exports / name)


def epochs(suite, job):
    return [r["epoch"] for r in suite.sql("SELECT epoch FROM tasks WHERE job_id = %s", job)]


@pytest.mark.parametrize("suite,end", [("tcp", "kill"), ("tls+tcp", "pause")],
                         indirect=["suite"])
def test_the_standby_leads_and_everyone_finds_it(suite, disk, end):
    first = leader(suite)
    suite.sim.set_rate(8 * MB)
    running = suite.client.submit(vm_path="web0", format="raw")
    suite.wait_bytes(running, 10 * MB)
    getattr(suite["scheduler"], end)()
    wait_leads(suite, "scheduler-2")
    second = leader(suite)
    assert second["epoch"] > first["epoch"] and second["holder"] != first["holder"]

    # new work reaches the same workers, from both gateways, while the old one runs on
    new = [suite.client.submit(vm_path="web1", format="raw", verify=False)]
    suite.client.url = suite.url("api-gateway-2")
    new.append(suite.client.submit(vm_path="web2", format="raw", verify=False))
    for job in new:
        suite.wait_job(job, "running", "completed")
    # a listing needs the new leader, too: it is a control task
    listed = {v["name"] for v in suite.client.get("/vms/list?provider=vsphere&refresh=true")}
    assert {f"web{i}" for i in range(4)} <= listed
    suite.sim.set_rate(0)
    for job, name in zip([running] + new, ("web0", "web1", "web2")):
        check_done(suite, disk, job, name)
        assert epochs(suite, job) == [1], "its lease went on; it was not given out twice"

    # the old one comes back as the standby, and takes over again
    if end == "pause":
        suite["scheduler"].resume()
        suite["scheduler"].wait_event("leader_lost")
    else:
        suite["scheduler"].start()
    wait_for(lambda: len(suite["scheduler"].events("standing_by")) > 0, 60, "stands by")
    assert leader(suite)["holder"] == second["holder"]
    suite["scheduler-2"].kill()
    wait_leads(suite, "scheduler")
    check_done(suite, disk, suite.client.submit(vm_path="web3", format="raw"), "web3")

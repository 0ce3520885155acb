"""A backup policy over 50 VMs: all exported, queued, converted in the background, told one by one."""
import pytest

from tests.fakes.hyper2kvm_daemon import Daemon
from tests.harness.vsphere import make_image, vm
from tests.harness.wait import wait_for

MB = 1 << 20
COUNT = 50


@pytest.fixture
def suite(make_suite, make_vsphere, tmp_path):
    disk = make_image(tmp_path / "disk.raw", MB, [(0, MB // 4)])
    vms = [vm(f"prod-{i:02}", disk, folder="production", tags=["env:production"])
           for i in range(COUNT)]
    vms += [vm("scratch-1", disk, folder="production", tags=["env:production"]),
            vm("elsewhere", disk, tags=["env:test"])]
    suite = make_suite(config={"hyper2kvm": {
        "daemon_enabled": True, "path": "/nonexistent/hyper2kvm"}})
    daemon = Daemon(suite.directory / "watch", suite.directory / "images").start()
    suite.add_vsphere(make_vsphere(vms))
    suite.daemon = daemon
    yield suite
    daemon.stop()


def test_fifty_vms_are_exported_queued_and_converted(suite):
    made = suite.client.post("/backup-policies/create", {
        "name": "nightly", "schedule": "0 2 * * *", "timezone": "Europe/Berlin",
        "vm_filter": {"tags": ["production"], "exclude": ["scratch-*"]},
        "export_options": {"format": "ovf", "output_path": "nightly", "verify": False},
        "retention": {"count": 2},
        "hyper2kvm_integration": {"enabled": True, "daemon_mode": True}}, status=201)
    assert made["matching_vms"] == COUNT
    path = f"/api/v1/backup-policies/{made['id']}"
    shown = suite.client.post(path + "/preview", status=200)
    assert len(shown["vms"]) == COUNT and "scratch-1" not in [v["name"] for v in shown["vms"]]
    suite.sql("UPDATE schedules SET next_run_at = now() - interval '1 second'")  # it is 2 o'clock

    def ended():
        runs = suite.client.get(path)["runs"]
        return runs and runs[0]["status"] in ("ok", "failed")
    wait_for(ended, 270, lambda: f"{suite.client.get(path)}\n{suite.tails()}", interval=1)
    run = suite.client.get(path)["runs"][0]
    assert run["status"] == "ok" and not run["manual"] and run["jobs"] == COUNT, run
    assert {r["status"] for r in run["results"]} == {"completed"}
    assert sorted(r["vm_name"] for r in run["results"]) == [f"prod-{i:02}" for i in range(COUNT)]
    assert len(suite.daemon.names) == COUNT, "each was queued for the daemon, once"
    jobs = [suite.client.job(r["job_id"]) for r in run["results"]]
    assert len({j["result"]["output_path"] for j in jobs}) == COUNT
    assert all(j["result"]["conversion"]["output_files"] for j in jobs)
    assert len(suite.sql("SELECT 1 FROM exports")) == COUNT


def test_one_vm_that_always_fails_does_not_keep_the_others_old_exports(make_suite, make_vsphere,
                                                                       tmp_path):
    images = {n: make_image(tmp_path / f"{n}.raw", MB, [(0, MB // 4)]) for n in ("good", "bad")}
    suite = make_suite()
    suite.add_vsphere(make_vsphere([vm(n, disk, folder="f", power="off")
                                    for n, disk in images.items()]))
    made = suite.client.post("/backup-policies/create", {
        "name": "p", "schedule": "0 2 * * *", "vm_filter": {"folder": "f"},
        "export_options": {"format": "qcow2", "output_path": "p"}, "retention": {"count": 1}},
        status=201)
    path = f"/api/v1/backup-policies/{made['id']}"

    def run(status):
        suite.client.post(path + "/run", status=202)
        wait_for(lambda: suite.client.get(path)["runs"][0]["status"] not in ("queued", "running"),
                 120, suite.tails, interval=0.2)
        last = suite.client.get(path)["runs"][0]
        assert last["status"] == status, last
        wait_for(lambda: not suite.sql("SELECT 1 FROM jobs WHERE status IN ('pending', 'running')"),
                 60, suite.tails)
        return {n: sorted(p.parent.name for p in suite.exports.glob(f"p/*/{n}/*/export.json"))
                for n in images}

    first = run("ok")
    assert {len(v) for v in first.values()} == {1}
    images["bad"].unlink()
    second = run("failed")
    assert second["bad"] == first["bad"] and len(second["good"]) == 1
    assert second["good"] != first["good"], "the new one stays, the old one is gone"

"""The vSphere provider against the govmomi simulator: third-party code that speaks its SOAP."""
import hashlib
import os
import ssl

import pytest

from tests.harness.provider import Refused
from tests.harness.vsphere import make_image, vm

MIB = 1 << 20


@pytest.fixture
def image(tmp_path):
    return make_image(tmp_path / "web.raw", 8 * MIB,
                      [(0, MIB), (5 * MIB, 100_000), (8 * MIB - 512, 512)])


@pytest.fixture
def sim(make_vsphere, tmp_path, image):
    second = make_image(tmp_path / "second.raw", 3 * MIB, [(MIB, 1000)], seed=2)
    return make_vsphere([vm("web", image, second, firmware="efi", folder="prod",
                            tags=["env:production", "env:pci", "owner:team a/ä"]),
                         vm("stopped", image, power="off", cpus=2, memory=512,
                            tags=["env:production"]),
                         vm("twin", image, folder="a"), vm("twin", image, folder="b")])


@pytest.fixture
def driver(make_driver, sim, tmp_path):
    d = make_driver("vsphere")
    d.open(settings=settings(sim), records=str(tmp_path / "records"))
    return d


def settings(sim, **changes):
    facts = {k: v for k, v in sim.settings().items() if k not in ("name", "kind")}
    return {k: v for k, v in dict(facts, **changes).items() if v is not None}


def refused(code, call, **arguments):
    with pytest.raises(Refused) as caught:
        call(**arguments)
    assert caught.value.code == code, str(caught.value)
    return caught.value.message


def find(driver, name):
    return driver.find(vm=name)["id"]


def check(driver, chosen):
    driver.open(settings=chosen)
    answer = driver.check()
    driver.close()
    return answer["reachable"], answer["authenticated"], answer["message"]


# ---- access ----

def test_check_tells_version_and_success(driver):
    answer = driver.check()
    assert answer["reachable"] and answer["authenticated"] and answer["message"] == ""
    assert "VMware vCenter Server" in answer["version"]


def test_wrong_password_is_reachable_but_not_authenticated(make_driver, sim):
    reachable, authenticated, message = check(make_driver("vsphere"), settings(sim, password="no"))
    assert reachable and not authenticated
    assert "refuses user 'user'" in message and "no" not in message.split("'")


def test_nobody_listening_is_not_reachable(make_driver, sim):
    sim.stop()
    reachable, authenticated, message = check(make_driver("vsphere"), settings(sim))
    assert not reachable and not authenticated
    assert sim.host.split(":")[0] in message or "connect" in message.lower(), message


def test_untrusted_certificate_is_refused_and_its_thumbprint_told(make_driver, sim):
    reachable, _, message = check(make_driver("vsphere"), settings(sim, ca_file=None))
    assert not reachable
    assert "not trusted" in message and "thumbprint" in message


def test_right_pin_is_enough(make_driver, sim):
    reachable, authenticated, message = check(
        make_driver("vsphere"), settings(sim, ca_file=None, thumbprint=sim.thumbprint()))
    assert reachable and authenticated, message


def test_wrong_pin_is_refused_even_with_the_right_ca(make_driver, sim):
    der = ssl.PEM_cert_to_DER_cert(sim.cert.read_text())
    presented = hashlib.sha256(der).hexdigest().upper()
    wrong = ":".join(["00"] * 20)
    reachable, _, message = check(make_driver("vsphere"), settings(sim, thumbprint=wrong))
    assert not reachable and presented in message.replace(":", "")


def test_settings_are_checked_before_any_connection(make_driver):
    d = make_driver("vsphere")
    base = {"host": "vc", "username": "u", "password": "p"}
    assert "host" in refused("invalid", d.open, settings={"username": "u", "password": "p"})
    assert "colour" in refused("invalid", d.open, settings=dict(base, colour="red"))
    assert "https" in refused("invalid", d.open, settings=dict(base, host="http://vc"))
    assert "password is missing" in refused("invalid", d.open, settings=dict(base, password=""))
    assert "not into the address" in refused("invalid", d.open, settings=dict(base, host="https://u:p@vc"))


def test_session_is_made_again_after_the_server_forgot_it(driver, sim):
    web = find(driver, "web")
    sim.process.stop()
    sim.start()  # the same port, all sessions gone
    assert driver.get(vm=web)["vm"]["name"] == "web"
    assert driver.list()["pages"]


def test_readers_log_in_again_too(driver, sim, image, tmp_path):
    """The simulator asks for no login at /folder; the fake does, see the other file. Here: reading
    goes on after a restart of the server."""
    driver.prepare(vm=find(driver, "stopped"), options={"job_id": "job-1"})
    sim.process.stop()
    sim.start()
    driver.copy(disk=0, readers=3, chunk=MIB, file=str(tmp_path / "out"))
    assert digest(tmp_path / "out") == digest(image)


# ---- inventory ----

def test_listing_has_all_vms_with_their_facts(driver):
    vms = [v for page in driver.list()["pages"] for v in page]
    by_path = {v["path"]: v for v in vms}
    assert {"/DC0/vm/prod/web", "/DC0/vm/stopped", "/DC0/vm/a/twin", "/DC0/vm/b/twin",
            "/DC0/vm/DC0_H0_VM0"} <= set(by_path)
    web = by_path["/DC0/vm/prod/web"]
    assert web["power_state"] == "poweredOn" and web["firmware"] == "uefi"
    assert [d["capacity_bytes"] for d in web["disks"]] == [8 * MIB, 3 * MIB]
    assert web["storage_bytes"] == 11 * MIB
    assert by_path["/DC0/vm/stopped"]["num_cpu"] == 2


def test_vm_info_is_complete(driver):
    web = driver.get(vm=find(driver, "web"))["vm"]
    disk, card = web["disks"][0], web["nics"][0]
    assert web["path"] == "/DC0/vm/prod/web" and web["datacenter"] == "DC0"
    assert web["host"].startswith("DC0_")  # a name, no id
    assert web["guest_id"] == "debian10_64Guest" and web["memory_mb"] == 256
    assert len(web["bios_uuid"]) == 36 and len(web["instance_uuid"]) == 36
    assert disk["source_path"] == "[LocalDS_0] web/web.vmdk" and disk["id"] == "2000"
    assert (disk["controller_type"], disk["controller_model"], disk["unit"]) == ("scsi", "pvscsi", 0)
    assert disk["thin"] and disk["skip_reason"] == ""
    assert card["mac"].startswith("00:50:56:00:de:") and card["model"] == "vmxnet3"
    assert card["network"] == "VM Network"


def test_listing_knows_the_cluster_of_a_host_that_has_one(driver):
    clusters = {v["name"]: v["cluster"] for page in driver.list()["pages"] for v in page}
    assert clusters["DC0_C0_RP0_VM0"] == "DC0_C0" and clusters["DC0_H0_VM0"] == ""


def test_tags_are_read_from_the_rest_api(driver, sim):
    web, stopped, bare = find(driver, "web"), find(driver, "stopped"), find(driver, "DC0_H0_VM0")
    tags = {k: v["tags"] for k, v in driver.tags(vms=[web, stopped, bare]).items()}
    assert {k: sorted(v) for k, v in tags[web].items()} == {"env": ["pci", "production"],
                                                            "owner": ["team a/ä"]}
    assert tags[stopped] == {"env": ["production"]} and tags[bare] == {}
    sim.set_rest_status(503)
    assert "HTTP 503" in refused("unavailable", driver.tags, vms=[web])


def test_without_a_rest_api_there_are_no_tags_and_it_is_said(driver, sim):
    sim.set_rest_status(404)
    assert "no REST API" in refused("not_available", driver.tags, vms=["vm-1"])
    sim.set_rest_status(403)
    assert "may not read tags" in refused("denied", driver.tags, vms=["vm-1"])
    sim.set_rest_status(0)
    assert driver.tags(vms=["vm-none"]) == {"vm-none": {"tags": {}}}


def test_vm_is_found_by_id_path_and_name(driver):
    web = find(driver, "web")
    assert find(driver, web) == web and find(driver, "/DC0/vm/prod/web") == web
    assert find(driver, "/DC0/vm/a/twin") != find(driver, "/DC0/vm/b/twin")
    message = refused("conflict", driver.find, vm="twin")
    assert "names 2 VMs" in message and "/DC0/vm/a/twin" in message
    assert "/DC0/vm/prod/web" in refused("not_found", driver.find, vm="WEB")


def test_unknown_id_is_not_found(driver):
    refused("not_found", driver.get, vm="vm-99999")
    refused("not_found", driver.get, vm="../../etc")


def test_datacenter_setting_limits_what_is_seen(make_driver, sim):
    d = make_driver("vsphere")
    d.open(settings=settings(sim, datacenter="DC0"))
    assert d.list()["pages"]
    d.close()
    d.open(settings=settings(sim, datacenter="elsewhere"))
    assert "there is: DC0" in refused("not_found", d.list)


def test_esxi_host_works_like_a_vcenter(make_vsphere, make_driver, image, tmp_path):
    esx = make_vsphere([vm("web", image)], mode="esx", name="esx")
    d = make_driver("vsphere")
    d.open(settings=settings(esx))
    web = find(d, "web")
    assert d.get(vm=web)["vm"]["path"] == "/ha-datacenter/vm/web"
    assert "kept by vCenter only" in refused("not_available", d.tags, vms=[web])
    d.prepare(vm=web, options={"job_id": "job-1"})
    d.copy(disk=0, readers=2, chunk=MIB, file=str(tmp_path / "out"))
    assert digest(tmp_path / "out") == digest(image)
    d.release()


# ---- disks ----

def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_running_vm_is_read_under_a_snapshot_that_goes_away(driver, sim, image, tmp_path):
    web = find(driver, "web")
    prepared = driver.prepare(vm=web, options={"job_id": "job-1"})
    assert prepared["method"] == "snapshot-folder"
    assert sim.snapshots("web") == ["hypersdk-job-1"]
    driver.copy(disk=0, readers=4, chunk=MIB, file=str(tmp_path / "out"))
    assert digest(tmp_path / "out") == digest(image)
    assert driver.mark(disk=0)["mark"] == prepared["disks"][0]["mark"]
    assert driver.mark(disk=1)["mark"] == prepared["disks"][1]["mark"]
    driver.release()
    assert sim.snapshots("web") == []
    driver.release()  # once more is no fault


def test_stopped_vm_is_read_directly(driver, sim, image, tmp_path):
    prepared = driver.prepare(vm=find(driver, "stopped"), options={"job_id": "job-1"})
    assert prepared["method"] == "folder" and sim.snapshots("stopped") == []
    assert "power=poweredOff" in prepared["disks"][0]["mark"]
    driver.copy(disk=0, readers=1, chunk=MIB, file=str(tmp_path / "out"))
    assert digest(tmp_path / "out") == digest(image)
    assert driver.records()["records"] == {}


def test_stopped_vm_gets_a_snapshot_when_asked_for(driver, sim):
    prepared = driver.prepare(vm=find(driver, "stopped"),
                              options={"job_id": "job-1", "snapshot": True, "snapshot_name": "mine"})
    assert prepared["method"] == "snapshot-folder" and sim.snapshots("stopped") == ["mine"]
    driver.release()
    assert sim.snapshots("stopped") == []


def test_snapshot_that_is_wanted_stays(driver, sim):
    driver.prepare(vm=find(driver, "web"), options={"job_id": "job-1", "delete_snapshot": False})
    driver.release(keep=True)
    assert sim.snapshots("web") == ["hypersdk-job-1"]
    driver.release()  # a dead job keeps nothing
    assert sim.snapshots("web") == []


def test_ranges_of_any_place_and_size(driver, image):
    driver.prepare(vm=find(driver, "stopped"), options={"job_id": "job-1"})
    data = image.read_bytes()
    for offset, length in [(0, 1), (1, 4096), (MIB - 1, 2), (8 * MIB - 1, 1), (5 * MIB - 7, 1000), (0, 0)]:
        answer = driver.read(disk=0, offset=offset, length=length)
        assert bytes.fromhex(answer["hex"]) == data[offset:offset + length]


def test_image_that_is_written_to_is_noticed(driver, image):
    driver.prepare(vm=find(driver, "stopped"), options={"job_id": "job-1"})
    with open(image, "r+b") as f:
        f.write(b"changed")
    os.utime(image, (1, 1))
    assert "modified" in refused("source_changed", driver.read, disk=0, offset=0, length=10)
    refused("source_changed", driver.mark, disk=0)


def test_image_that_grows_is_noticed(driver, image):
    driver.prepare(vm=find(driver, "web"), options={"job_id": "job-1"})
    with open(image, "ab") as f:
        f.write(b"more")
    assert "bytes" in refused("source_changed", driver.read, disk=0, offset=0, length=10)
    refused("source_changed", driver.mark, disk=0)
    driver.release()


def test_vm_started_meanwhile_is_noticed(driver, sim):
    prepared = driver.prepare(vm=find(driver, "stopped"), options={"job_id": "job-1"})
    power_on(sim, "stopped")
    assert driver.mark(disk=0)["mark"] != prepared["disks"][0]["mark"]


def power_on(sim, name):
    run_task(sim, name, lambda vm: vm.PowerOn())


def run_task(sim, name, start):
    from pyVim.connect import Disconnect, SmartConnect
    from pyVim.task import WaitForTask
    from pyVmomi import vim
    context = ssl.create_default_context(cafile=str(sim.cert))
    host, port = sim.host.split(":")
    session = SmartConnect(host=host, port=int(port), user=sim.user, pwd=sim.password,
                           sslContext=context)
    try:
        content = session.RetrieveContent()
        view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
        WaitForTask(start(next(v for v in view.view if v.name == name)), session)
    finally:
        Disconnect(session)


def test_snapshot_deleted_by_someone_else_is_noticed(driver, sim):
    driver.prepare(vm=find(driver, "web"), options={"job_id": "job-1"})
    run_task(sim, "web", lambda vm: vm.RemoveAllSnapshots())
    assert "deleted by someone else" in refused("source_changed", driver.mark, disk=0)
    driver.release()


# ---- crashes ----

@pytest.mark.parametrize("key,when", [("snapshot_vm", "before"), ("snapshot_intent", "before"),
                                      ("snapshot_intent", "after"), ("snapshot", "before"),
                                      ("snapshot", "after")])
def test_after_a_crash_another_process_goes_on_and_cleans_up(make_driver, sim, tmp_path, key, when):
    records = str(tmp_path / "records")
    first = make_driver("vsphere")
    first.open(settings=settings(sim), records=records)
    web = find(first, "web")
    first.die(at=key, when=when)
    with pytest.raises(AssertionError):
        first.prepare(vm=web, options={"job_id": "job-1"})
    assert first.died() == 9

    second = make_driver("vsphere")
    second.open(settings=settings(sim), records=records)
    second.prepare(vm=web, options={"job_id": "job-1"})
    assert sim.snapshots("web") == ["hypersdk-job-1"]  # one, not two
    second.release()
    assert sim.snapshots("web") == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_after_a_crash_release_alone_leaves_nothing(make_driver, sim, tmp_path, when):
    records = str(tmp_path / "records")
    first = make_driver("vsphere")
    first.open(settings=settings(sim), records=records)
    first.die(at="snapshot", when=when)
    with pytest.raises(AssertionError):
        first.prepare(vm=find(first, "web"), options={"job_id": "job-1"})
    assert sim.snapshots("web") == ["hypersdk-job-1"]
    second = make_driver("vsphere")
    second.open(settings=settings(sim), records=records)
    second.release()
    assert sim.snapshots("web") == []


def test_cancelled_reads_end_within_their_chunk(driver, sim, tmp_path):
    driver.prepare(vm=find(driver, "web"), options={"job_id": "job-1"})
    sim.set_rate(10_000)  # 14 minutes
    driver.cancel(after_ms=300)
    refused("cancelled", driver.copy, disk=0, readers=2, chunk=MIB, file=str(tmp_path / "out"))
    assert not any((tmp_path / "out").read_bytes())
    driver.release()  # tidying up goes on although it is cancelled
    assert sim.snapshots("web") == []


def test_change_tracking_is_switched_and_changes_are_asked_for(driver, sim):
    """The simulator keeps the setting, gives no change ids, and does not know the query."""
    web = find(driver, "web")
    before = driver.get(vm=web)["vm"]["cbt_enabled"]
    assert driver.track(vm=web, on=not before, job_id="job-1")["changed"] is True
    assert driver.get(vm=web)["vm"]["cbt_enabled"] is not before
    assert sim.snapshots("web") == []
    frozen = driver.prepare(vm=web, options={"job_id": "job-1"})
    assert [d["change_id"] for d in frozen["vm"]["disks"]] == ["", ""]
    assert "tracking is off" in refused("not_available", driver.changes, disk=0, since="52 d0/1", offset=0)
    driver.release()

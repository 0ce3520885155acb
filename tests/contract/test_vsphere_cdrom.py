"""CD-ROM drives taken from a VM: by the vSphere provider against a server made by hand (fakes/vsphere.py),
and against the govmomi simulator."""
import pytest

from tests.fakes.vsphere import Cdrom, Disk, FakeVsphere, Vm, fault
from tests.harness.provider import Refused
from tests.harness.vsphere import make_image, vm

DRIVES = ["CD/DVD drive 1: ISO file '[ds 1] iso/deb ian.iso'", "CD/DVD drive 2: host device '/dev/sr0'"]


@pytest.fixture
def fake(tmp_path):
    server = FakeVsphere(tmp_path, [Vm("vm-1", "web", [Disk(2000, b"x" * 4096, "[ds 1] web/web.vmdk")], cdroms=[
        Cdrom(3000, iso="[ds 1] iso/deb ian.iso"), Cdrom(3001, device="/dev/sr0")])])
    yield server
    server.stop()


@pytest.fixture
def web(fake):
    return fake.vms["vm-1"]


@pytest.fixture
def start(make_driver, fake, tmp_path):
    def start():
        driver = make_driver("vsphere")
        driver.open(settings=fake.settings(), records=str(tmp_path / "records"))
        return driver
    return start


def remove(driver, vm="vm-1"):
    return driver.eject(vm=vm)["drives"]


def refused(driver):
    with pytest.raises(Refused) as caught:
        remove(driver)
    return caught.value.code, caught.value.message


def test_the_simulator_has_lost_the_drive(make_driver, make_vsphere, tmp_path):
    sim = make_vsphere([vm("web", make_image(tmp_path / "web.raw", 1 << 20, []))])
    driver = make_driver("vsphere")
    driver.open(settings={k: v for k, v in sim.settings().items() if k not in ("name", "kind")},
                records=str(tmp_path / "records"))
    web = driver.find(vm="web")["id"]
    before = sim.look("web", lambda item: sorted(d.key for d in item.config.hardware.device))
    assert remove(driver, web) == [], "there is none"
    sim.add_cdrom("web", "[datastore] iso/a.iso")
    [label] = sim.cdroms("web")
    assert remove(driver, web) == [f"{label}: ISO file '[datastore] iso/a.iso'"]
    assert sim.cdroms("web") == []
    after = sim.look("web", lambda item: sorted(d.key for d in item.config.hardware.device))
    assert set(before) <= set(after), "nothing else went"


def test_all_drives_go_in_one_call(start, fake, web):
    assert remove(start()) == DRIVES
    assert web.cdroms == [] and fake.count("ReconfigVM_Task") == 1


def test_a_running_vm_keeps_its_drives_and_the_way_out_is_said(start, fake, web):
    driver = start()
    web.power = "poweredOn"
    code, message = refused(driver)
    assert code == "conflict" and "InvalidPowerState" in message
    assert "shut it down first" in message and "leave remove_cdrom out" in message
    assert len(web.cdroms) == 2 and driver.records()["records"]["cdrom"] == ""
    drives, web.cdroms = web.cdroms, []
    assert remove(driver) == [], "it was not us"
    web.power, web.cdroms = "poweredOff", drives
    assert remove(driver) == DRIVES and web.cdroms == []


def test_what_a_running_vm_can_lose_it_loses(start, web):
    web.power, web.cdroms = "poweredOn", [Cdrom(16000, iso="[ds 1] a.iso", controller=15000)]
    assert remove(start()) == ["CD/DVD drive 1: ISO file '[ds 1] a.iso'"] and web.cdroms == []


@pytest.mark.parametrize("kind, detail, code, says", [
    ("NoPermission", "<privilegeId>VirtualMachine.Config.AddRemoveDevice</privilegeId>", "denied",
     "AddRemoveDevice"),
    ("GenericVmConfigFault", "", "conflict", "removing the CD-ROM drives"),
    ("TaskInProgress", "", "unavailable", "TaskInProgress"),
])
def test_other_refusals_are_told_as_they_are(start, fake, web, kind, detail, code, says):
    driver = start()
    fake.task_faults["ReconfigVM_Task"] = [fault(kind, "no", detail)]
    told = refused(driver)
    assert told[0] == code and says in told[1] and "powered on" not in told[1]
    assert len(web.cdroms) == 2 and remove(driver) == DRIVES


@pytest.mark.parametrize("raw, says", [("suspended", "resume it or power it off"),
                                       ("template", "convert it to a VM")])
def test_a_vm_that_cannot_be_exported_is_not_edited(start, fake, web, raw, says):
    if raw == "template":
        web.facts["config.template"] = "true"
    else:
        web.power = raw
    code, message = refused(start())
    assert code == "not_available" and says in message
    assert fake.count("ReconfigVM_Task") == 0


def test_somebody_else_may_be_quicker(start, fake, web):
    driver = start()

    def gone(call, request):
        web.cdroms = []
        raise fault("InvalidDeviceSpec", "Invalid configuration for device '0'.")

    fake.do_ReconfigVM_Task = gone
    assert remove(driver) == DRIVES


@pytest.mark.parametrize("gone", [False, True], ids=["before the call", "behind the call"])
def test_a_worker_that_dies_on_the_way_is_followed_by_one_that_goes_on(start, fake, web, gone):
    first = start()
    first.die(at="cdrom", when="after")
    with pytest.raises(AssertionError):
        remove(first)
    assert first.died() == 9 and len(web.cdroms) == 2
    if gone:
        web.cdroms = []
    assert remove(start()) == DRIVES
    assert web.cdroms == [] and fake.count("ReconfigVM_Task") == (0 if gone else 1)

"""Changed block tracking of the vSphere provider against a server made by hand (fakes/vsphere.py),
which tells the truth in pieces, has forgotten, or lies."""
import pytest

from tests.fakes.vsphere import CBT_BLOCK, Disk, FakeVsphere, Vm, fault, window
from tests.harness.provider import Refused
from tests.harness.vsphere import pseudo_random

MIB = 1 << 20
SIZE = 8 * MIB
SERIES = "52 d0 eb 0c 1b 61 3e 0e-2a 83 9a"


@pytest.fixture
def fake(tmp_path):
    server = FakeVsphere(tmp_path, [
        Vm("vm-1", "web", [Disk(2000, pseudo_random(SIZE, "a"), "[ds 1] web/web.vmdk", cbt=SERIES),
                           Disk(2001, pseudo_random(MIB, "b"), "[ds 1] web/b.vmdk", unit=1)],
           power="poweredOn"),
        Vm("vm-2", "off", [Disk(2000, pseudo_random(MIB, "c"), "[ds 1] off/off.vmdk", cbt=SERIES)]),
    ])
    yield server
    server.stop()


@pytest.fixture
def disk(fake):
    return fake.vms["vm-1"].disks[0]


@pytest.fixture
def driver(make_driver, fake, tmp_path):
    d = make_driver("vsphere")
    d.open(settings=fake.settings(), records=str(tmp_path / "records"))
    return d


def freeze(driver, vm="vm-1", job="job-1", **options):
    """The change ids of the frozen disks."""
    answer = driver.prepare(vm=vm, options=dict({"job_id": job}, **options))
    return [d["change_id"] for d in answer["vm"]["disks"]]


@pytest.fixture
def since(driver, disk):
    """The id of a first export; then the guest wrote, and the disk is frozen again."""
    first = freeze(driver)[0]
    driver.release()
    disk.write(10, b"x" * 100)
    disk.write(3 * MIB - 1, b"yy")
    disk.write(SIZE - 1, b"z")
    freeze(driver, job="job-2")
    return first


WRITTEN = [[0, CBT_BLOCK], [3 * MIB - CBT_BLOCK, 2 * CBT_BLOCK], [SIZE - CBT_BLOCK, CBT_BLOCK]]


def ask(driver, since, **arguments):
    return driver.changes(**{"disk": 0, "since": since, "offset": 0, **arguments})


def refused(driver, since, **arguments):
    with pytest.raises(Refused) as caught:
        ask(driver, since, **arguments)
    return caught.value.code, caught.value.message


def test_what_was_written_since_is_told(driver, fake, since):
    assert since == SERIES + "/2"
    assert ask(driver, since) == {"extents": WRITTEN, "end": SIZE}
    query = fake.change_queries[0]
    assert query["snapshot"] in fake.vms["vm-1"].snapshots and query["since"] == since


def test_an_answer_in_windows_is_gone_on_with(driver, fake, since):
    fake.change_window = 3 * MIB
    assert ask(driver, since) == {"extents": [WRITTEN[0], [3 * MIB - CBT_BLOCK, CBT_BLOCK]], "end": 3 * MIB}
    assert ask(driver, since, offset=3 * MIB) == {"extents": [[3 * MIB, CBT_BLOCK]], "end": 6 * MIB}
    assert ask(driver, since, offset=6 * MIB) == {"extents": [WRITTEN[2]], "end": SIZE}


def test_a_long_answer_is_cut_where_it_can_be_gone_on_with(driver, since):
    assert ask(driver, since, room=1) == {"extents": WRITTEN[:1], "end": WRITTEN[1][0]}
    assert ask(driver, since, room=2, offset=WRITTEN[1][0]) == {"extents": WRITTEN[1:], "end": SIZE}


def test_nothing_changed(driver, fake, disk):
    first = freeze(driver)[0]
    driver.release()
    freeze(driver, job="job-2")
    assert ask(driver, first) == {"extents": [], "end": SIZE}


def test_a_write_during_the_export_belongs_to_the_next_one(driver, disk):
    first = freeze(driver)[0]
    disk.write(MIB, b"during")
    driver.release()
    second = freeze(driver, job="job-2")[0]
    assert ask(driver, first)["extents"] == [[MIB, CBT_BLOCK]]
    driver.release()
    freeze(driver, job="job-3")
    assert ask(driver, second)["extents"] == []


@pytest.mark.parametrize("answer, says", [
    (fault("FileFault", "Error caused by file web-ctk.vmdk", "<file>web-ctk.vmdk</file>"), "web-ctk.vmdk"),
    (fault("InvalidArgument", "not correct: changeId", "<invalidProperty>changeId</invalidProperty>"),
     "changeId"),
])
def test_an_id_that_the_server_forgot_means_comparing_all(driver, fake, since, answer, says):
    fake.faults["QueryChangedDiskAreas"] = [answer]
    code, message = refused(driver, since)
    assert code == "not_available" and since in message and says in message
    assert fake.count("QueryChangedDiskAreas") == 1  # no second try
    assert ask(driver, since)["end"] == SIZE


def test_ids_of_another_series_or_of_the_future_are_not_asked_for(driver, fake, disk, since):
    for other, says in [("52 00/2", "began anew"), (SERIES + "/9", "went back"), ("nonsense", "no change id"),
                        (SERIES + "/-1", "no change id"), ("*", "no change id"), ("/3", "no change id")]:
        code, message = refused(driver, other)
        assert code == "not_available" and says in message, message
    assert fake.change_queries == []


def test_a_disk_without_tracking_has_no_id(driver, fake, since):
    assert freeze(driver, job="job-2") == [SERIES + "/3", ""]
    code, message = refused(driver, since, disk=1)
    assert code == "not_available" and "tracking is off" in message
    assert fake.change_queries == []


def test_a_vm_that_is_off_can_be_asked_but_nothing_is_built_on_its_id(driver, fake, since):
    off = fake.vms["vm-2"].disks[0]
    driver.release()
    driver.close()
    driver.open(settings=fake.settings(), records="")  # of another task
    first = freeze(driver, vm="vm-2", job="job-3", snapshot=True)[0]
    assert first == SERIES + "/2"
    driver.release()
    driver.close()
    driver.open(settings=fake.settings(), records="")
    off.write(CBT_BLOCK, b"x")
    assert freeze(driver, vm="vm-2", job="job-4") == [""]
    assert ask(driver, first) == {"extents": [[CBT_BLOCK, CBT_BLOCK]], "end": MIB}
    assert fake.change_queries[-1]["snapshot"] is None
    code, message = refused(driver, SERIES + "/7")
    assert code == "not_available" and "went back" in message


@pytest.mark.parametrize("text", [
    window(0, SIZE, [(0, 2 * MIB), (MIB, 2 * MIB)]),          # overlapping
    window(0, SIZE, [(2 * MIB, MIB), (0, MIB)]),              # out of order
    window(0, SIZE, [(SIZE - MIB, 2 * MIB)]),                 # over the end of the disk
    window(0, SIZE, [(2 * SIZE, MIB)]),
    window(0, SIZE, [(1 << 62, 1 << 62)]),
    window(0, MIB, [(MIB, MIB)]),                             # behind the window
    window(0, 2 * SIZE, []),                                  # the window itself
    window(MIB, MIB, [(MIB, MIB)]),                           # not from where it was asked
    window(0, 0, []),
    window(0, SIZE, [(-1, MIB)]), window(0, SIZE, [(0, -1)]), window(0, -1, []),
    window(0, SIZE, [("", MIB)]), window(0, SIZE, [("0x10", MIB)]),
    "<startOffset>0</startOffset>", "",
])
def test_a_server_that_lies_is_not_believed(driver, fake, since, text):
    fake.changes = lambda query: text
    assert refused(driver, since)[0] == "protocol"


def test_an_answer_from_the_middle_that_goes_back_is_not_believed(driver, fake, since):
    fake.changes = lambda query: window(4 * MIB, MIB, [(0, MIB)])
    assert refused(driver, since, offset=4 * MIB)[0] == "protocol"


def test_a_missing_privilege_is_said(driver, fake, since):
    fake.faults["QueryChangedDiskAreas"] = [fault("NoPermission", "Permission was denied",
                                                  "<privilegeId>VirtualMachine.Provisioning.DiskRandomRead</privilegeId>")]
    code, message = refused(driver, since)
    assert code == "denied" and "VirtualMachine.Provisioning" in message


def test_an_expired_session_is_logged_in_again(driver, fake, since):
    fake.expire_sessions()
    assert ask(driver, since)["extents"] == WRITTEN


def test_nothing_is_built_on_the_id_of_a_disk_with_an_older_snapshot(driver, fake, disk):
    """The VM may go back to it, and the numbers rise again."""
    disk.extra = "<parent><fileName>[ds 1] web/older.vmdk</fileName></parent>"
    answer = driver.prepare(vm="vm-1", options={"job_id": "job-1"})
    assert answer["method"] == "snapshot-nfc" and disk.frozen_id == SERIES + "/2"
    assert [d["change_id"] for d in answer["vm"]["disks"]] == ["", ""]
    driver.release()


# ---- switching it on and off ----

def track(driver, vm="vm-1", on=True):
    return driver.track(vm=vm, on=on, job_id="job-9")["changed"]


def test_tracking_reaches_the_disks_with_a_snapshot_that_is_removed(driver, fake):
    vm = fake.vms["vm-1"]
    vm.disks[0].series = None
    assert track(driver) is True
    assert driver.get(vm="vm-1")["vm"]["cbt_enabled"] is True
    assert fake.count("ReconfigVM_Task") == 1 and vm.snapshots == {}
    ids = freeze(driver, job="job-9")
    assert all("/2" in i for i in ids) and ids[0] != ids[1]
    driver.release()
    driver.close()
    driver.open(settings=fake.settings(), records="")
    assert track(driver) is False  # it is on
    assert fake.count("ReconfigVM_Task") == 1 and fake.count("CreateSnapshot_Task") == 2
    assert track(driver, on=False) is True
    assert vm.snapshots == {} and [d.series for d in vm.disks] == [None, None]


def test_a_vm_with_snapshots_keeps_its_tracking_as_it_is(driver, fake):
    vm = fake.vms["vm-1"]
    vm.snapshots["snapshot-1"] = ("before the update", "by hand")
    with pytest.raises(Refused) as caught:
        track(driver)
    assert caught.value.code == "not_available" and "delete or consolidate" in caught.value.message
    assert fake.count("ReconfigVM_Task") == 0 and list(vm.snapshots) == ["snapshot-1"]


@pytest.mark.parametrize("path, value, code, says", [
    ("capability.changeTrackingSupported", "false", "not_available", "hardware version 7"),
    ("runtime.connectionState", "disconnected", "unavailable", "not connected"),
])
def test_a_vm_that_cannot_track_is_left_alone(driver, fake, path, value, code, says):
    fake.vms["vm-1"].facts[path] = value
    with pytest.raises(Refused) as caught:
        track(driver)
    assert caught.value.code == code and says in caught.value.message
    assert fake.count("ReconfigVM_Task") == 0


def test_a_refused_reconfiguration_is_said_and_leaves_nothing(driver, fake):
    fake.faults["ReconfigVM_Task"] = [fault("NoPermission", "Permission was denied",
                                            "<privilegeId>VirtualMachine.Config.ChangeTracking</privilegeId>")]
    with pytest.raises(Refused) as caught:
        track(driver)
    assert caught.value.code == "denied" and "VirtualMachine.Config.ChangeTracking" in caught.value.message
    assert fake.count("CreateSnapshot_Task") == 0
    assert track(driver) is True  # the next lease goes on


@pytest.mark.parametrize("key, when", [("tracking", "after"), ("snapshot_intent", "after"),
                                       ("snapshot", "before"), ("snapshot", "after")])
def test_a_worker_that_dies_on_the_way_is_followed_by_one_that_goes_on(make_driver, fake, tmp_path, key, when):
    vm = fake.vms["vm-1"]
    vm.disks[0].series = None
    records = str(tmp_path / "records")
    first = make_driver("vsphere")
    first.open(settings=fake.settings(), records=records)
    first.die(at=key, when=when)
    with pytest.raises(AssertionError):
        track(first)
    assert first.died() == 9
    second = make_driver("vsphere")
    second.open(settings=fake.settings(), records=records)
    assert track(second) is True
    assert vm.snapshots == {} and vm.facts["config.changeTrackingEnabled"] == "true"
    assert fake.count("ReconfigVM_Task") == 1 and fake.count("CreateSnapshot_Task") == 1
    assert all(d.series is not None for d in vm.disks)
    assert track(second) is True  # asked again by the same task: nothing more happens
    assert fake.count("CreateSnapshot_Task") == 1

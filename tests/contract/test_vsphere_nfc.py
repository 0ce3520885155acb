"""Method nfc of the vSphere provider: export leases of a server made by hand (fakes/vsphere_nfc.py),
that keeps its promises and breaks them."""
import hashlib
import json
import ssl
import threading

import pytest

from tests.fakes.vsphere import Disk, FakeVsphere, Vm, fault
from tests.fakes.vsphere_nfc import SECTOR, stream_optimized
from tests.harness.provider import Refused
from tests.harness.vsphere import pseudo_random
from tests.harness.wait import wait_for

MIB = 1 << 20
# data, holes inside of pieces and over tables, an end that is no whole grain
FIRST = (pseudo_random(3 * MIB, "a") + bytes(40 * MIB) + pseudo_random(100_000 // 512 * 512, "b") +
         bytes(5 * MIB) + b"text " * 60_000 + bytes(212) + bytes(7 * 512) + pseudo_random(512, "c"))
FIRST = FIRST + bytes(-len(FIRST) % 512)
SECOND = pseudo_random(2 * MIB, "second")


@pytest.fixture
def fake(tmp_path):
    server = FakeVsphere(tmp_path, [
        Vm("vm-1", "web", [Disk(2000, FIRST, "[ds 1] web/web.vmdk"),
                           Disk(2001, SECOND, "[ds 1] web/web_1.vmdk", unit=1)],
           power="poweredOn"),
    ])
    yield server
    server.stop()


@pytest.fixture
def driver(make_driver, fake, tmp_path):
    d = make_driver("vsphere")
    d.open(settings=fake.settings(), records=str(tmp_path / "records"))
    return d


def prepare(driver, **options):
    return driver.prepare(vm="vm-1", options=dict({"job_id": "job-1", "method": "nfc"}, **options))


def refused(code, call, **arguments):
    with pytest.raises(Refused) as caught:
        call(**arguments)
    assert caught.value.code == code, str(caught.value)
    return caught.value.message


def pull(driver, tmp_path, disk=0, **more):
    path = tmp_path / f"disk-{disk}"
    driver.pull(disk=disk, file=str(path), **more)
    return path.read_bytes()


def states(fake):
    return [lease.state for lease in fake.leases.values()]


def aborted(fake):
    return [getattr(lease, "aborted", False) for lease in fake.leases.values()]


def lease_record(driver):
    return driver.records()["records"].get("nfc_lease", "")


# ---- a server that keeps its promises ----

def test_both_disks_come_whole_each_by_a_lease_of_its_own(driver, fake, tmp_path):
    fake.lease_looks = 3
    frozen = prepare(driver)
    assert frozen["method"] == "snapshot-nfc" and len(fake.vms["vm-1"].snapshots) == 1
    assert [d["size"] for d in frozen["disks"]] == [len(FIRST), len(SECOND)]
    assert pull(driver, tmp_path, 1) == SECOND
    assert pull(driver, tmp_path, 0) == FIRST
    assert states(fake) == ["done", "done"] and lease_record(driver) == ""
    assert all(lease.percents for lease in fake.leases.values()), "no HttpNfcLeaseProgress"
    assert fake.count("HttpNfcLeaseGetManifest") == 2
    assert not fake.folder_requests, "the datastore was not asked"
    assert driver.mark(disk=0)["mark"] == frozen["disks"][0]["mark"]
    driver.release()
    assert not fake.vms["vm-1"].snapshots


def test_a_stopped_vm_gets_a_snapshot_too(driver, fake, tmp_path):
    fake.vms["vm-1"].power = "poweredOff"
    assert prepare(driver)["method"] == "snapshot-nfc"
    assert pull(driver, tmp_path) == FIRST
    driver.release()
    assert not fake.vms["vm-1"].snapshots


def test_older_snapshots_are_no_hindrance(driver, fake, tmp_path):
    fake.vms["vm-1"].snapshots["snapshot-9"] = ("by hand", "")
    for disk in fake.vms["vm-1"].disks:
        disk.extra = "<parent><fileName>[ds 1] web/base.vmdk</fileName></parent>"
    prepare(driver)
    assert pull(driver, tmp_path) == FIRST
    driver.release()
    assert list(fake.vms["vm-1"].snapshots) == ["snapshot-9"]


def renewed(fake, count):
    """The lease has been renewed so often. It says 1 s, and gives a busy machine some more."""
    wait_for(lambda: [lease for lease in fake.leases.values() if len(lease.percents) >= count],
             what=f"{count} renewals")


def test_the_lease_is_renewed_while_nobody_reads(driver, fake, tmp_path):
    fake.lease_timeout, fake.lease_patience = 1, 15
    prepare(driver)
    go_on = tmp_path / "go-on"

    def watch():
        renewed(fake, 8)
        go_on.touch()

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert pull(driver, tmp_path, pause_until=str(go_on)) == FIRST
    watcher.join()


def test_slow_streams_outlive_the_lease_timeout(driver, fake, tmp_path):
    fake.lease_timeout, fake.lease_patience, fake.nfc_rate = 1, 15, 1 * MIB
    fake.nfc_pauses = [(len(stream_optimized(FIRST)) - 1, lambda: renewed(fake, 8))]
    prepare(driver)
    assert pull(driver, tmp_path) == FIRST
    percents = next(iter(fake.leases.values())).percents
    assert percents == sorted(percents) and percents[-1] > 0


def test_no_manifest_is_no_error(driver, fake, tmp_path):
    fake.nfc_manifest = None
    prepare(driver)
    assert pull(driver, tmp_path) == FIRST
    fake.nfc_manifest = lambda key, sha1, size, capacity: (
        f"<returnval><key>{key}</key><checksum>{sha1}</checksum><checksumType>sha1</checksumType>"
        f"<size>{size}</size></returnval>")
    assert pull(driver, tmp_path) == FIRST


# ---- whose address is it ----

def thumbprint(fake):
    der = ssl.PEM_cert_to_DER_cert(fake.cert.read_text())
    digest = hashlib.sha1(der).hexdigest().upper()
    return ":".join(digest[i:i + 2] for i in range(0, 40, 2))


def test_another_host_gets_no_cookie_and_must_have_the_lease_s_certificate(driver, fake, tmp_path):
    (tmp_path / "esx").mkdir()
    other = FakeVsphere(tmp_path / "esx", [])
    try:
        fake.nfc_host = other.host
        fake.nfc_thumbprint = thumbprint(other)
        prepare(driver)
        # it wants a cookie, as ours would: so it refuses, which shows that none came
        assert "VApp.Export" in refused("denied", pull, driver=driver, tmp_path=tmp_path)
        assert other.nfc_requests and not any(cookie for _, cookie in other.nfc_requests)
        fake.nfc_thumbprint = "AA:" * 19 + "AA"
        before = len(other.nfc_requests)
        message = refused("denied", pull, driver=driver, tmp_path=tmp_path)
        assert "certificate" in message and len(other.nfc_requests) == before
        assert aborted(fake) == [True, True]
    finally:
        other.stop()


def test_the_own_host_by_name_gets_the_cookie(driver, fake, tmp_path):
    fake.nfc_host, fake.nfc_thumbprint = None, thumbprint(fake)
    prepare(driver)
    assert pull(driver, tmp_path) == FIRST
    assert all(cookie for _, cookie in fake.nfc_requests)


def test_disks_are_told_apart_by_the_end_of_the_key_only(driver, fake, tmp_path):
    fake.nfc_key = lambda vm, disk: f"/vm-77/ParaVirtualSCSIController0:{disk.unit + 10}"
    prepare(driver)
    assert "no address for 'Hard disk 1'" in refused("protocol", pull, driver=driver,
                                                     tmp_path=tmp_path)
    fake.nfc_key = lambda vm, disk: "/vm-1/ParaVirtualSCSIController0:0"  # two of one name
    assert "no address" in refused("protocol", pull, driver=driver, tmp_path=tmp_path)
    assert aborted(fake) == [True, True]


# ---- a server that breaks them ----

def test_a_cut_stream_is_tried_again_in_a_new_lease(driver, fake, tmp_path):
    fake.nfc_cuts = [2 * MIB, len(stream_optimized(FIRST)) - SECTOR]
    prepare(driver)
    assert "broke off" in refused("unavailable", pull, driver=driver, tmp_path=tmp_path)
    # even without the last sector only
    refused("unavailable", pull, driver=driver, tmp_path=tmp_path)
    assert pull(driver, tmp_path) == FIRST
    assert aborted(fake) == [True, True, False] and states(fake)[2] == "done"


def test_a_stream_that_ends_early_by_the_protocol_is_cut_as_well(driver, fake, tmp_path):
    fake.nfc_damage = [lambda data: data[:2 * MIB], lambda data: data[:-SECTOR]]
    prepare(driver)
    for _ in range(2):
        assert "was cut" in refused("unavailable", pull, driver=driver, tmp_path=tmp_path)
    assert pull(driver, tmp_path) == FIRST


@pytest.mark.parametrize("damage,words", [
    (lambda data: stream_optimized(FIRST + bytes(SECTOR)), "hardware says"),
    (lambda data: data[:130 * SECTOR] + b"\xff" * 64 + data[130 * SECTOR + 64:], "inflate"),
    (lambda data: data[:-2 * SECTOR] + b"KDMX" + data[-2 * SECTOR + 4:], "footer"),
    (lambda data: data + b"more", "goes on behind"),
])
def test_wrong_streams_are_refused(driver, fake, tmp_path, damage, words):
    fake.nfc_damage = [damage]
    prepare(driver)
    assert words in refused("corrupt", pull, driver=driver, tmp_path=tmp_path)
    assert aborted(fake) == [True] and lease_record(driver) == ""


@pytest.mark.parametrize("entry,words", [
    (lambda key, sha1, size, capacity: FakeVsphere.nfc_entry(key, "0" * 40, size, capacity), "SHA-1"),
    (lambda key, sha1, size, capacity: FakeVsphere.nfc_entry(key, sha1, size + 1, capacity), "bytes"),
    (lambda key, sha1, size, capacity: FakeVsphere.nfc_entry(key, sha1, size, capacity * 2), "a disk of"),
])
def test_what_the_host_sent_must_be_what_arrived(driver, fake, tmp_path, entry, words):
    fake.nfc_manifest = entry
    prepare(driver)
    assert words in refused("corrupt", pull, driver=driver, tmp_path=tmp_path)
    assert aborted(fake) == [True]


def test_a_lease_in_state_error_says_why(driver, fake, tmp_path):
    fake.lease_faults = [fault("NoPermission", "no VApp.Export"), fault("FileLocked", "held")]
    prepare(driver)
    assert "no VApp.Export" in refused("denied", pull, driver=driver, tmp_path=tmp_path)
    assert "held" in refused("unavailable", pull, driver=driver, tmp_path=tmp_path)
    assert pull(driver, tmp_path) == FIRST


def test_a_lease_that_cannot_be_renewed_is_lost_and_said_so(driver, fake, tmp_path):
    fake.lease_timeout, fake.lease_patience = 1, 300  # the client itself finds out
    fake.nfc_rate = 64 * 1024  # it would take long
    fake.faults["HttpNfcLeaseProgress"] = [None] + [fault("HostCommunication", "gone")] * 500
    prepare(driver)
    message = refused("unavailable", pull, driver=driver, tmp_path=tmp_path)
    assert "lease was lost" in message and "gone" in message


def test_a_host_that_is_silent_for_a_while_is_waited_for(driver, fake, tmp_path):
    """It reads zeros and leaves them out."""
    fake.lease_timeout, fake.lease_patience = 1, 15
    fake.nfc_pauses = [(MIB, lambda: renewed(fake, 12))]
    prepare(driver)
    assert pull(driver, tmp_path) == FIRST


def test_a_silent_host_whose_lease_is_gone_is_not(driver, fake, tmp_path):
    silent = threading.Event()
    fake.nfc_pauses = [(MIB, silent.wait)]
    fake.lease_timeout, fake.lease_patience = 4, 300
    fake.faults["HttpNfcLeaseProgress"] = [None, None, fault("ManagedObjectNotFound", "no such lease")]
    prepare(driver)
    message = refused("unavailable", pull, driver=driver, tmp_path=tmp_path)
    silent.set()
    assert "lease was lost" in message and "no such lease" in message


# ---- crashes, cancels ----

def test_the_next_process_aborts_the_lease_of_a_killed_one(make_driver, fake, tmp_path):
    records = str(tmp_path / "records")
    first = make_driver("vsphere")
    first.open(settings=fake.settings(), records=records)
    prepare(first)
    with pytest.raises(AssertionError, match="ended"):
        first.pull(disk=0, file=str(tmp_path / "x"), stop_at=2 * MIB)
    assert states(fake) == ["ready"]
    second = make_driver("vsphere")
    second.open(settings=fake.settings(), records=records)
    prepare(second)
    assert aborted(fake) == [True]
    assert pull(second, tmp_path) == FIRST
    assert len(fake.vms["vm-1"].snapshots) == 1
    second.release()
    assert not fake.vms["vm-1"].snapshots


def test_release_aborts_by_the_records_alone(make_driver, fake, tmp_path):
    records = str(tmp_path / "records")
    first = make_driver("vsphere")
    first.open(settings=fake.settings(), records=records)
    prepare(first)
    with pytest.raises(AssertionError, match="ended"):
        first.pull(disk=0, file=str(tmp_path / "x"), stop_at=2 * MIB)
    second = make_driver("vsphere")
    second.open(settings=fake.settings(), records=records)
    second.release()
    assert aborted(fake) == [True] and not fake.vms["vm-1"].snapshots


def test_a_lease_that_is_over_already_is_no_hindrance(make_driver, fake, tmp_path):
    records = str(tmp_path / "records")
    (tmp_path / "records").write_text(json.dumps({"nfc_lease": "session[52]lease-1"}))
    driver = make_driver("vsphere")
    driver.open(settings=fake.settings(), records=records)
    prepare(driver)
    assert lease_record(driver) == ""
    assert pull(driver, tmp_path) == FIRST


def test_cancel_ends_the_stream_and_the_lease(driver, fake, tmp_path):
    fake.nfc_rate = 16 * 1024  # by itself it would not end
    prepare(driver)
    driver.cancel(after_ms=700)
    refused("cancelled", pull, driver=driver, tmp_path=tmp_path)
    assert fake.nfc_sent_bytes < len(*fake.streams.values())
    assert aborted(fake) == [True] and lease_record(driver) == ""


# ---- chosen by itself ----

def test_disks_without_flat_files_come_by_nfc(driver, fake, tmp_path):
    for disk in fake.vms["vm-1"].disks:
        data = disk.data
        fake.streams["vm-1", disk.key] = stream_optimized(data)
        disk.data = None
    frozen = prepare(driver, method="")
    assert frozen["method"] == "snapshot-nfc" and len(fake.vms["vm-1"].snapshots) == 1
    assert pull(driver, tmp_path, 1) == SECOND
    assert driver.records()["records"]["method"] == "nfc"
    # what was chosen stays, whatever the datastore says later
    fake.vms["vm-1"].disks[0].data, fake.vms["vm-1"].disks[1].data = FIRST, SECOND
    assert prepare(driver, method="")["method"] == "snapshot-nfc"
    driver.release()


def test_flat_files_are_preferred(driver, fake):
    assert prepare(driver, method="")["method"] == "snapshot-folder"
    assert not fake.leases
    driver.release()

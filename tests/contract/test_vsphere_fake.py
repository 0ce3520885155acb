"""The vSphere provider against a server made by hand that breaks its promises (fakes/vsphere.py)."""
import hashlib
import time

import pytest

from tests.fakes.vsphere import Disk, FakeVsphere, Vm, descriptor, fault, nic
from tests.harness.provider import Refused
from tests.harness.vsphere import pseudo_random

MIB = 1 << 20
DATA = pseudo_random(3 * MIB, "disk")
FLAT = "[ds 1] web/web-flat.vmdk"


@pytest.fixture
def fake(tmp_path):
    server = FakeVsphere(tmp_path, [
        Vm("vm-1", "web", [Disk(2000, DATA, "[ds 1] web/web.vmdk")], power="poweredOn",
           nics=nic(4000, "00:50:56:AA:BB:01") + nic(4001, "00-50-56-aa-bb-02",
                                                      portgroup="dvportgroup-9",
                                                      kind="VirtualE1000e")),
        Vm("vm-2", "off%2fline & co", [Disk(2000, DATA, "[ds 1] off line+&/d.vmdk")],
           parent="group-v10"),
        Vm("vm-3", "far", [Disk(2000, DATA, "[ds 1] far/far.vmdk")], parent="group-v23"),
    ])
    yield server
    server.stop()


@pytest.fixture
def driver(make_driver, fake, tmp_path):
    d = make_driver("vsphere")
    d.open(settings=fake.settings(), records=str(tmp_path / "records"))
    return d


def refused(code, call, **arguments):
    with pytest.raises(Refused) as caught:
        call(**arguments)
    assert caught.value.code == code, str(caught.value)
    return caught.value.message


def prepare(driver, vm="vm-1", **options):
    return driver.prepare(vm=vm, options=dict({"job_id": "job-1"}, **options))


def read(driver, offset=0, length=MIB, stream=False):
    return driver.read(disk=0, offset=offset, length=length, stream=stream)


def same(answer, offset=0, length=MIB):
    return answer["sha256"] == hashlib.sha256(DATA[offset:offset + length]).hexdigest()


# ---- sessions ----

def test_login_is_made_again_after_every_few_calls(driver, fake):
    fake.session_calls = 4  # what the first one needs
    for _ in range(6):
        assert driver.get(vm="vm-1")["vm"]["name"] == "web"
    assert fake.count("Login") > 2


def test_listing_whose_session_expires_can_be_tried_again(driver, fake):
    fake.page_objects = 1
    driver.list()
    fake.faults["ContinueRetrievePropertiesEx"] = [None] * 8 + [fault("NotAuthenticated")]
    fake.expire_sessions()
    time_out = [call for call in range(4)]
    for _ in time_out:
        try:
            pages = driver.list()["pages"]
            break
        except Refused as e:
            assert e.code == "unavailable", str(e)
    assert [v["id"] for page in pages for v in page] == ["vm-1", "vm-2", "vm-3"]


def test_account_that_is_locked_meanwhile_is_denied(driver, fake):
    driver.get(vm="vm-1")
    fake.expire_sessions()
    fake.password = "changed"
    assert "session expired" in refused("denied", driver.get, vm="vm-1")


def test_session_is_closed_at_the_end(driver, fake):
    driver.get(vm="vm-1")
    assert len(fake.sessions) == 1
    driver.close()
    assert not fake.sessions and not fake.views


def test_readers_get_a_new_login_when_the_cookie_is_refused(driver, fake):
    prepare(driver)
    before = fake.count("Login")
    fake.expire_sessions()
    for stream in (False, True):
        assert same(read(driver, stream=stream))
    assert fake.count("Login") == before + 1
    driver.release()


def test_many_readers_share_one_new_login(driver, fake, tmp_path):
    prepare(driver)
    fake.expire_sessions()
    before = fake.count("Login")
    driver.copy(disk=0, readers=8, chunk=64 * 1024, file=str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == DATA
    assert fake.count("Login") == before + 1
    driver.release()


def test_folder_that_always_refuses_names_the_privileges(driver, fake):
    prepare(driver)
    fake.folder = lambda request, path: fake.answer(request, 403, b"") or True
    assert "Datastore.Browse" in refused("denied", driver.read, disk=0, offset=0, length=10)


# ---- what is not SOAP ----

@pytest.mark.parametrize("status,body,code", [
    (200, b"<html><body>It works!</body></html>", "protocol"),
    (200, b"", "protocol"),
    (200, b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY a 'b'>]><x>&a;</x>", "protocol"),
    (200, b'<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/">'
          b'<soapenv:Body/></soapenv:Envelope>', "protocol"),
    (200, b"<x>" * 300 + b"</x>" * 300, "protocol"),
    (404, b"not here", "protocol"),
    (503, b"busy", "unavailable"),
    (500, b"<html>proxy error</html>", "unavailable"),
    (401, b"", "denied"),
])
def test_answers_that_are_no_soap_are_told_apart(driver, fake, status, body, code):
    fake.raw_reply = (status, body)
    refused(code, driver.get, vm="vm-1")
    fake.raw_reply = None
    assert driver.get(vm="vm-1")["vm"]["name"] == "web"


# ---- inventory ----

def test_pages_are_followed_to_the_end(driver, fake):
    fake.page_objects = 2
    vms = [v["id"] for page in driver.list()["pages"] for v in page]
    assert vms == ["vm-1", "vm-2", "vm-3"]
    assert not fake.pages and not fake.views


def test_names_and_paths_are_unescaped(driver):
    by_id = {v["id"]: v for page in driver.list()["pages"] for v in page}
    assert by_id["vm-2"]["name"] == "off/line & co"
    assert by_id["vm-2"]["path"] == "/DC0/vm/prod/old/off/line & co"
    assert by_id["vm-3"]["path"] == "/DC 1/vm/far"


def test_networks_of_distributed_switches_have_their_names(driver):
    nics = driver.get(vm="vm-1")["vm"]["nics"]
    assert [(n["mac"], n["network"], n["model"]) for n in nics] == [
        ("00:50:56:aa:bb:01", "VM Network", "vmxnet3"), ("00:50:56:aa:bb:02", "prod-net", "e1000e")]


def test_only_one_datacenter_when_so_configured(make_driver, fake):
    d = make_driver("vsphere")
    d.open(settings=fake.settings(datacenter="DC 1"))
    assert [v["id"] for page in d.list()["pages"] for v in page] == ["vm-3"]
    assert "limited to 'DC 1'" in refused("not_found", d.get, vm="vm-1")


def test_properties_that_are_hidden_do_not_hide_the_vm(driver, fake):
    fake.vms["vm-1"].hidden = {"config.hardware.device", "guest.net", "layoutEx"}
    vms = {v["id"]: v for page in driver.list()["pages"] for v in page}
    assert vms["vm-1"]["disks"] == [] and vms["vm-1"]["name"] == "web"
    assert "read-only access" in refused("denied", prepare, driver=driver)


def test_vm_with_an_odd_disk_does_not_hide_the_others(driver, fake):
    fake.vms["vm-2"].disks[0].capacity = 0
    vms = {v["id"]: v for page in driver.list()["pages"] for v in page}
    assert set(vms) == {"vm-1", "vm-2", "vm-3"}
    assert "no sane capacity" in refused("protocol", driver.get, vm="vm-2")


def test_disks_come_in_the_order_the_firmware_tries_them(driver, fake):
    fake.vms["vm-1"].disks = [Disk(2004, DATA, "[ds 1] e.vmdk", controller=200),
                              Disk(2003, DATA, "[ds 1] d.vmdk", controller=15000),
                              Disk(2001, DATA, "[ds 1] b.vmdk", unit=1),
                              Disk(2000, DATA, "[ds 1] a.vmdk", unit=0)]
    ids = [d["id"] for d in driver.get(vm="vm-1")["vm"]["disks"]]
    assert ids == ["2000", "2001", "2003", "2004"]
    fake.vms["vm-1"].raw["config.bootOptions"] = (
        '<bootOrder xsi:type="VirtualMachineBootOptionsBootableDiskDevice"><deviceKey>2003'
        '</deviceKey></bootOrder>')
    assert driver.get(vm="vm-1")["vm"]["disks"][0]["id"] == "2003"


@pytest.mark.parametrize("disk,reason", [
    (dict(kind="VirtualDiskRawDiskMappingVer1BackingInfo",
          extra="<compatibilityMode>physicalMode</compatibilityMode>"), "physical-mode RDM"),
    (dict(kind="VirtualDiskRawDiskMappingVer1BackingInfo",
          extra="<compatibilityMode>virtualMode</compatibilityMode>"), "raw device mapping"),
    (dict(kind="VirtualDiskSeSparseBackingInfo"), "no flat file"),
    (dict(extra="<sharing>sharingMultiWriter</sharing>"), "multi-writer"),
    (dict(extra="<keyId><keyId>k</keyId></keyId>"), "encrypted"),
    (dict(mode="independent_persistent"), "independent"),
])
def test_disk_that_cannot_be_read_is_told_and_never_left_out(driver, fake, disk, reason):
    fake.vms["vm-1"].disks.append(Disk(2001, DATA, "[ds 1] web/two.vmdk", unit=1, **disk))
    told = driver.get(vm="vm-1")["vm"]["disks"][1]["skip_reason"]
    assert reason in told
    assert reason in refused("not_available", prepare, driver=driver)
    assert fake.count("CreateSnapshot_Task") == 0


def test_independent_disk_of_a_stopped_vm_can_be_read(driver, fake):
    fake.vms["vm-2"].disks[0].mode = "independent_persistent"
    assert prepare(driver, "vm-2")["method"] == "folder"
    assert "independent" in refused("not_available", prepare, driver=driver, vm="vm-2", snapshot=True)


@pytest.mark.parametrize("facts,raw,power,code,words", [
    ({"config.template": "true"}, {}, None, "not_available", "is a template"),
    ({"runtime.connectionState": "disconnected"}, {}, None, "unavailable", "not connected"),
    ({}, {"runtime.question": "<id>1</id>"}, None, "conflict", "waits for an answer"),
    ({}, {}, "suspended", "not_available", "suspended"),
    ({}, {}, "strange", "protocol", "power state"),
])
def test_vm_in_a_state_that_forbids_exports(driver, fake, facts, raw, power, code, words):
    vm = fake.vms["vm-1"]
    vm.facts.update(facts)
    vm.raw.update(raw)
    vm.power = power or vm.power
    assert words in refused(code, prepare, driver=driver)


# ---- snapshots ----

def test_older_snapshots_are_noticed_before_one_is_made(driver, fake):
    fake.vms["vm-1"].snapshots["snapshot-9"] = ("by hand", "")
    fake.vms["vm-1"].disks[0].has_delta = True
    fake.faults["CreateSnapshot_Task"] = [fault("TaskInProgress")]
    refused("unavailable", prepare, driver=driver)
    assert "older snapshots" in by_nfc(driver)


@pytest.mark.parametrize("planned,code,words", [
    (fault("NoPermission", detail="<privilegeId>VirtualMachine.State.CreateSnapshot</privilegeId>"),
     "denied", "VirtualMachine.State.CreateSnapshot"),
    (fault("RestrictedVersion"), "not_available", "licence"),
    (fault("TaskInProgress"), "unavailable", "TaskInProgress"),
    (fault("SomethingNew", "odd"), "conflict", "SomethingNew"),
])
def test_fault_of_the_call_says_what_to_do(driver, fake, planned, code, words):
    fake.faults["CreateSnapshot_Task"] = [planned]
    assert words in refused(code, prepare, driver=driver)
    driver.release()
    assert not fake.vms["vm-1"].snapshots


@pytest.mark.parametrize("planned,code,words", [
    (fault("FilesystemQuiesceFault"), "conflict", "without quiescing"),
    (fault("TooManySnapshotLevels"), "limit", "consolidate old snapshots"),
    (fault("NoDiskSpace"), "limit", "datastore"),
])
def test_fault_of_the_task_says_what_to_do(driver, fake, planned, code, words):
    fake.task_faults["CreateSnapshot_Task"] = [planned]
    assert words in refused(code, prepare, driver=driver, snapshot_quiesce=True)
    assert prepare(driver)["method"] == "snapshot-folder"  # the next try works
    driver.release()


@pytest.mark.parametrize("memory,quiesce", [(True, False), (False, True), (False, False)])
def test_snapshot_is_made_as_asked_for(driver, fake, memory, quiesce):
    prepare(driver, snapshot=True, snapshot_name="before the move", snapshot_memory=memory,
            snapshot_quiesce=quiesce)
    assert fake.snapshot_options == [(str(memory).lower(), str(quiesce).lower())]
    assert [name for name, _ in fake.vms["vm-1"].snapshots.values()] == ["before the move"]
    driver.release()


def test_lost_answer_makes_no_second_snapshot(driver, fake):
    """The server made it, the answer was lost, the task runs still when it is tried again."""
    fake.task_looks = 3
    fake.faults["RetrievePropertiesEx"] = []

    def drop_first_look():
        refused("unavailable", prepare, driver=driver)

    fake.faults["CreateSnapshot_Task"] = [None]
    original = fake.do_RetrievePropertiesEx
    state = {"failed": False}

    def flaky(call, request):
        if fake.count("CreateSnapshot_Task") == 1 and not state["failed"]:
            state["failed"] = True
            raise fault("HostCommunication")
        return original(call, request)

    fake.do_RetrievePropertiesEx = flaky
    drop_first_look()
    fake.vms["vm-1"].raw["recentTask"] = "".join(
        f'<ManagedObjectReference type="Task">{t}</ManagedObjectReference>' for t in fake.tasks)
    assert prepare(driver)["method"] == "snapshot-folder"
    assert len(fake.vms["vm-1"].snapshots) == 1 and fake.count("CreateSnapshot_Task") == 1
    driver.release()
    assert not fake.vms["vm-1"].snapshots


def test_locked_file_is_waited_for_when_the_snapshot_goes(driver, fake):
    prepare(driver)
    fake.task_faults["RemoveSnapshot_Task"] = [fault("FileLocked"), fault("TaskInProgress")]
    driver.release()
    assert not fake.vms["vm-1"].snapshots and fake.count("RemoveSnapshot_Task") == 3


def test_disks_are_consolidated_when_the_server_wants_it(driver, fake):
    prepare(driver)
    fake.vms["vm-1"].consolidation_needed = ["true"]
    driver.release()
    assert fake.count("ConsolidateVMDisks_Task") == 1


def test_no_consolidation_when_it_is_not_wanted(driver, fake):
    prepare(driver, consolidate=False)
    fake.vms["vm-1"].consolidation_needed = ["true"]
    driver.release()
    assert fake.count("ConsolidateVMDisks_Task") == 0


def test_snapshot_that_takes_too_long_is_found_and_removed_later(driver, fake):
    fake.task_looks = 1_000_000
    message = refused("timeout", prepare, driver=driver, timeout_ms=300)
    assert "still runs" in message
    task = next(iter(fake.tasks))
    fake.vms["vm-1"].raw["recentTask"] = f'<ManagedObjectReference type="Task">{task}</ManagedObjectReference>'
    fake.tasks[task]["looks"] = fake.task_looks = 2
    driver.release()
    assert not fake.vms["vm-1"].snapshots


def test_vm_deleted_meanwhile_needs_no_release(driver, fake):
    prepare(driver)
    del fake.vms["vm-1"]
    driver.release()


def test_cancel_while_the_snapshot_is_made_leaves_none(driver, fake):
    fake.task_looks = 1_000_000
    driver.cancel(after_ms=300)
    refused("cancelled", prepare, driver=driver)
    for task in fake.tasks.values():
        task["looks"] = 0
    fake.vms["vm-1"].raw["recentTask"] = "".join(
        f'<ManagedObjectReference type="Task">{t}</ManagedObjectReference>' for t in fake.tasks)
    fake.task_looks = 2  # the removal need not take as long
    driver.release()
    assert not fake.vms["vm-1"].snapshots


# ---- where the bytes are ----

def test_names_with_special_characters_are_encoded_as_the_server_wants(driver, fake):
    prepare(driver, "vm-2")
    assert same(read(driver))
    fake.api_type = "HostAgent"  # an ESXi takes one encoding only
    prepare(driver, "vm-3")
    assert same(read(driver))


def by_nfc(driver):
    """The VM is prepared for NFC instead; why."""
    assert prepare(driver)["method"] == "snapshot-nfc"
    records = driver.records()["records"]
    assert records["method"] == "nfc"
    return records["no_file"]


@pytest.mark.parametrize("text,words", [
    (dict(parent="fffffffe"), "parent disk"),
    (dict(extent='RW 6144 VMFS "vsan://52a9"'), "vSAN"),
    (dict(extent='RW 6144 SESPARSE "web-sesparse.vmdk"'), "SESPARSE"),
    (dict(extent='RW 6144 VMFS "../other/x-flat.vmdk"'), "another folder"),
    (dict(extent='RW 3072 VMFS "a-flat.vmdk"\nRW 3072 VMFS "b-flat.vmdk"'), "2 extents"),
])
def test_descriptor_of_something_else_is_not_read(driver, fake, text, words):
    disk = fake.vms["vm-1"].disks[0]
    disk.descriptor = descriptor(disk, **text)
    assert words in by_nfc(driver)
    assert fake.count("CreateSnapshot_Task") == 1
    driver.release()
    assert not fake.vms["vm-1"].snapshots


def test_descriptor_of_another_size_is_refused(driver, fake):
    disk = fake.vms["vm-1"].disks[0]
    disk.descriptor = descriptor(disk, extent='RW 7000 VMFS "web-flat.vmdk"')
    assert "descriptor says" in refused("corrupt", prepare, driver=driver)
    driver.release()


def test_without_a_descriptor_the_name_says_where_the_bytes_are(driver, fake):
    fake.vms["vm-1"].disks[0].descriptor = b"this is no descriptor"
    prepare(driver)
    assert same(read(driver))
    driver.release()


def test_datastore_without_flat_files_is_explained_when_nfc_fails_too(driver, fake, tmp_path):
    fake.vms["vm-1"].disks[0].data = None
    fake.vms["vm-1"].disks[0].capacity = 3 * MIB
    assert "vSAN" in by_nfc(driver)
    fake.faults["ExportSnapshot"] = [fault("NoPermission", "VApp.Export is missing")]
    message = refused("denied", driver.pull, disk=0, file=str(tmp_path / "x"))
    assert "vSAN" in message and "VApp.Export" in message
    driver.release()


def test_file_of_another_size_than_the_disk_is_refused(driver, fake):
    fake.vms["vm-1"].disks[0].capacity = 4 * MIB
    fake.vms["vm-1"].disks[0].descriptor = b"none"
    assert "hardware says" in refused("corrupt", prepare, driver=driver)
    driver.release()


# ---- a server that cannot be trusted with ranges ----

def only_flat(answer):
    """A hook for the flat file's ranges; everything else is served as usual."""
    return lambda request, path: bool(path == FLAT and request.headers.get("Range") and
                                      (answer(request) or True))


def cut(fake):
    def answer(request):
        request.send_response(206)
        request.send_header("Content-Range", f"bytes 0-{MIB - 1}/{len(DATA)}")
        request.send_header("Content-Length", str(MIB))
        request.end_headers()
        request.wfile.write(DATA[:1000])
        request.close_connection = True
    return answer


LIES = {
    "ignores ranges": (lambda f: lambda r: f.answer(r, 200, DATA), "protocol", "ignores range"),
    "cuts": (cut, "unavailable", "after 1000 of 1048576"),
    "wrong range": (lambda f: lambda r: f.serve(r, FLAT, DATA, Content_Range=f"bytes 1-{MIB}/{len(DATA)}"),
                    "protocol", "the server sends 1 to"),
    "shorter range": (lambda f: lambda r: f.answer(r, 206, DATA[:10], Content_Range=f"bytes 0-9/{len(DATA)}"),
                      "protocol", "asked for 1048576 bytes"),
    "no range": (lambda f: lambda r: f.serve(r, FLAT, DATA, Content_Range=None), "protocol",
                 "does not say which"),
    "nonsense range": (lambda f: lambda r: f.serve(r, FLAT, DATA, Content_Range="bytes 5-2/x"),
                       "protocol", "does not say which"),
    "other size": (lambda f: lambda r: f.serve(r, FLAT, DATA, Content_Range=f"bytes 0-{MIB - 1}/999999999"),
                   "source_changed", "it has 999999999 bytes"),
    "other etag": (lambda f: lambda r: f.serve(r, FLAT, DATA, ETag='"new"'), "source_changed", "ETag"),
    "other time": (lambda f: lambda r: f.serve(r, FLAT, DATA, Last_Modified="Tue, 02 Jun 2026 10:00:00 GMT"),
                   "source_changed", "modified"),
    "compresses": (lambda f: lambda r: f.serve(r, FLAT, DATA, Content_Encoding="gzip"), "protocol",
                   "compresses"),
    "gone": (lambda f: lambda r: f.answer(r, 404, b""), "source_changed", "is gone"),
    "ends earlier": (lambda f: lambda r: f.answer(r, 416, b""), "source_changed", "ends before"),
    "busy": (lambda f: lambda r: f.answer(r, 503, b"x" * 100_000), "unavailable", "HTTP 503"),
    "elsewhere": (lambda f: lambda r: f.answer(r, 302, b"", Location="https://example.com/"),
                  "protocol", "HTTP 302"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("lie", LIES)
def test_lie_about_a_range_is_noticed(driver, fake, lie, stream):
    make, code, words = LIES[lie]
    fake.etags[FLAT] = '"old"'
    prepare(driver)
    fake.folder = only_flat(make(fake))
    assert words in refused(code, driver.read, disk=0, offset=0, length=MIB, stream=stream)
    fake.folder = None
    assert same(read(driver, stream=stream))  # the next read is not harmed
    driver.release()


@pytest.mark.parametrize("change,words", [
    (lambda f: setattr(f, "modified", "Tue, 02 Jun 2026 10:00:00 GMT"), "modified"),
    (lambda f: f.etags.update({FLAT: '"new"'}), "ETag"),
    (lambda f: setattr(f.vms["vm-1"].disks[0], "data", DATA + b"more"), "bytes"),
    (lambda f: setattr(f.vms["vm-1"].disks[0], "data", None), "gone"),
])
def test_change_is_noticed_after_the_last_byte(driver, fake, change, words):
    fake.etags[FLAT] = '"old"'
    prepared = prepare(driver)
    assert driver.mark(disk=0)["mark"] == prepared["disks"][0]["mark"]
    change(fake)
    assert words in refused("source_changed", driver.mark, disk=0)


def test_slow_server_is_left_when_the_job_is_cancelled(driver, fake):
    prepare(driver)
    sent = []

    def trickle(request):
        request.send_response(206)
        request.send_header("Content-Range", f"bytes 0-{MIB - 1}/{len(DATA)}")
        request.send_header("Content-Length", str(MIB))
        request.end_headers()
        try:
            for i in range(MIB):
                request.wfile.write(DATA[i:i + 1])
                sent.append(i)
                time.sleep(0.05)  # 14 hours
        except OSError:
            request.close_connection = True

    fake.folder = only_flat(trickle)
    driver.cancel(after_ms=300)
    refused("cancelled", driver.read, disk=0, offset=0, length=MIB)
    assert len(sent) < 500  # a silent server is given up after 30 s


# ---- secrets ----

def test_password_is_in_no_log_and_no_error(driver, fake, tmp_path):
    driver.get(vm="vm-1")
    fake.faults["RetrievePropertiesEx"] = [fault("InvalidArgument", "bad")]
    message = refused("protocol", driver.get, vm="vm-1")
    driver.close()
    log = (tmp_path / "driver.log").read_text()
    for text in (message, log):
        assert fake.password not in text and "session-1" not in text


# ---- tags ----

@pytest.fixture
def tagged(fake):
    fake.rest_categories = {"urn:c:1": "env", "urn:c:2": "owner"}
    fake.rest_names = {"urn:t:1": ("urn:c:1", "production"), "urn:t:2": ("urn:c:2", "ops"),
                       "urn:t:3": ("urn:c:1", "pci")}
    fake.rest_tags = {"vm-1": ["urn:t:1", "urn:t:2", "urn:t:3"], "vm-3": ["urn:t:1", "urn:t:gone"]}
    return fake


@pytest.mark.parametrize("dialects", [{"/rest", "/api"}, {"/rest"}, {"/api"}])
def test_tags_come_by_either_api_and_each_name_once(driver, tagged, dialects):
    tagged.rest_dialects = dialects
    for _ in range(2):
        tags = {k: v["tags"] for k, v in driver.tags(vms=["vm-1", "vm-2", "vm-3"]).items()}
        assert tags == {"vm-1": {"env": ["production", "pci"], "owner": ["ops"]}, "vm-2": {},
                        "vm-3": {"env": ["production"]}}  # the deleted tag is none
    asked = [path for method, path in tagged.rest_calls if method == "GET"]
    assert len(asked) == 6 and len(set(asked)) == 6
    assert tagged.rest_sessions
    driver.close()
    assert not tagged.rest_sessions, "the login was ended"


def test_an_esxi_host_has_no_tags(make_driver, tagged):
    tagged.api_type = "HostAgent"
    d = make_driver("vsphere")
    d.open(settings=tagged.settings())
    assert "kept by vCenter only" in refused("not_available", d.tags, vms=["vm-1"])
    assert tagged.rest_calls == []


@pytest.mark.parametrize("status, body, code, text", [
    (401, b"", "denied", "may not read tags"),
    (500, b"", "unavailable", "HTTP 500"),
    (200, b"<html>", "invalid", "malformed JSON"),
    (200, b'{"values": []}', "protocol", "no 'value'"),
    (200, b'{"value": {}}', "protocol", "no list"),
    (200, b'{"value": [{"object_id": {"id": "vm-1"}, "tag_ids": [7]}]}', "protocol", "no text"),
    (200, b'{"value": [{"object_id": {"id": "vm-1"}, "tag_ids": ["../x"]}]}', "protocol",
     "no id of a tag"),
    (200, b'{"value": [{"object_id": {"id": "vm-9"}, "tag_ids": ["urn:t:1"]}]}', None, ""),
])
def test_odd_answers_about_tags(driver, tagged, status, body, code, text):
    assert driver.tags(vms=["vm-2"])
    tagged.rest_raw = (status, body)
    if code is None:
        assert driver.tags(vms=["vm-1"]) == {"vm-1": {"tags": {}}}
    else:
        assert text in refused(code, driver.tags, vms=["vm-1"])

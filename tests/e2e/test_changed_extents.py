"""Incremental exports that read only what the source says has changed (vSphere changed block
tracking), against a server made by hand: the simulator has no QueryChangedDiskAreas."""
import concurrent.futures
import json
import pathlib
import random

import pytest

from tests.e2e.test_restore_points import hyperexport
from tests.fakes.vsphere import Disk, FakeVsphere, Vm, fault, window
from tests.harness import images
from tests.harness.vsphere import pseudo_random
from tests.harness.wait import wait_for

MB = 1 << 20
SIZE = 24 * MB
SERIES = "52 d0 eb 0c 1b 61 3e 0e-2a 83 9a"
FLAT = "[ds 1] web/web-flat.vmdk"


@pytest.fixture
def disk():
    data = bytearray(SIZE)
    data[:MB] = pseudo_random(MB, "a")
    data[5 * MB - 4096:11 * MB] = pseudo_random(6 * MB + 4096, "b")
    return Disk(2000, bytes(data), "[ds 1] web/web.vmdk", cbt=SERIES)


@pytest.fixture
def fake(tmp_path, disk):
    server = FakeVsphere(tmp_path, [Vm("vm-1", "web", [disk], power="poweredOn")])
    yield server
    server.stop()


@pytest.fixture
def suite(make_suite, fake):
    suite = make_suite()
    suite.client.post("/api/v1/providers", dict(fake.settings(), name="vsphere", kind="vsphere"))
    return suite


def guest_writes(disk, seed):
    """Data and zeros at odd places; the MiB that are touched."""
    numbers = random.Random(seed)
    touched = set()
    for i in range(5):
        size = numbers.randrange(1, 150000)
        offset = numbers.randrange(SIZE - size)
        disk.write(offset, bytes(size) if i % 3 == 0 else numbers.randbytes(size))
        touched |= set(range(offset // MB, (offset + size - 1) // MB + 1))
    return touched


def export(suite, **fields):
    job = suite.client.submit(vm_path="web", incremental=True, **fields)
    return suite.wait_job(job, "completed")["result"]


def served(fake, action):
    """What action() gives, and how many bytes of the disk were sent meanwhile."""
    fake.served.clear()
    result = action()
    return result, fake.served.get(FLAT, 0)


def image_of(result, suffix="qcow2"):
    return pathlib.Path(result["output_path"]) / f"web-disk1.{suffix}"


def disk_of(result):
    return result["incremental"]["disks"][0]


def compare(tmp_path, disk, result, suffix="qcow2"):
    then = tmp_path / "then.raw"
    then.write_bytes(disk.data)
    images.compare(then, image_of(result, suffix), suffix)


def log_of(suite):
    job = suite.sql("SELECT id FROM jobs ORDER BY created_at DESC LIMIT 1")[0]["id"]
    return [line["message"] for line in suite.client.get(f"/api/v1/jobs/{job}/logs")["logs"]]


def test_every_point_is_the_disk_at_its_time_and_only_changes_are_read(suite, fake, disk, tmp_path):
    points = []
    fake.change_window = 7 * MB  # answers come in four pieces, not at MiB of our choice
    for i in range(5):
        touched = guest_writes(disk, i) if i > 0 else set(range(24))
        then = tmp_path / f"then-{i}.raw"
        then.write_bytes(disk.data)
        result, count = served(fake, lambda: export(suite))
        points.append((result, then))
        assert disk_of(result)["incremental_mode"] == ("full" if i == 0 else "changed_extents")
        assert count == len(touched) * MB == result["transferred_bytes"]
    for i, (result, then) in enumerate(points):
        images.check(image_of(result), "qcow2")
        images.compare(then, image_of(result), "qcow2")
        assert images.check_digests(result["output_path"]) >= 1
        assert result["verified"] is True
    ids = [r["change_id"] for r in suite.sql(
        "SELECT d.change_id FROM export_disks d JOIN exports e ON e.id = d.export_id ORDER BY e.created_at")]
    assert ids == [f"{SERIES}/{i + 2}" for i in range(5)]
    assert [q["since"] for q in fake.change_queries[::4]] == ids[:4]
    record = json.loads((image_of(points[4][0]).parent / "export.json").read_text())
    assert record["disks"][0]["change_id"] == ids[4]
    assert any("(changed_extents)" in line for line in log_of(suite))
    for export_id in [r["id"] for r in suite.sql("SELECT id FROM exports")]:
        verify = suite.client.post(f"/api/v1/exports/{export_id}/verify", status=202)["job_id"]
        assert suite.wait_job(verify, "completed")["result"]["intact"] is True
    assert images.leftovers(suite.exports) == []


def test_the_command_line_and_the_capabilities_tell_of_it(suite, fake, disk):
    wait_for(lambda: suite.client.get("/capabilities")["features"]["cbt"] is True, 60,
             "the worker's capabilities")
    export(suite)
    disk.write(5 * MB, b"changed")
    told = hyperexport(suite, "--vm", "web", "--incremental", "--quiet")
    assert told.returncode == 0, told.stderr
    assert f"disk.1.incremental_mode=changed_extents\ndisk.1.changed={MB}\n" in told.stdout
    fake.faults["QueryChangedDiskAreas"] = [fault("FileFault", "web-ctk.vmdk is gone")]
    told = hyperexport(suite, "--vm", "web", "--incremental", "--quiet")
    assert "disk.1.incremental_mode=leaf_compare\ndisk.1.incremental_reason=" in told.stdout
    assert "web-ctk.vmdk is gone" in told.stdout and "disk.1.changed=0\n" in told.stdout
    shown = hyperexport(suite, "--vm", "web", "--incremental")
    assert "changed_extents; 0 B changed" in shown.stdout, shown.stdout


def test_what_is_written_during_an_export_is_in_the_next_one(suite, fake, disk, tmp_path):
    export(suite)
    before = disk.data

    def write_once(request, path):
        if request.command == "GET" and path == FLAT and not disk.delta:
            disk.write(9 * MB, b"written meanwhile")
        return False

    disk.write(2 * MB, b"written before")
    fake.folder = write_once
    second = export(suite)
    fake.folder = None
    expected = tmp_path / "second.raw"
    expected.write_bytes(before[:2 * MB] + b"written before" + before[2 * MB + 14:])
    images.compare(expected, image_of(second), "qcow2")
    third, count = served(fake, lambda: export(suite))
    assert count == MB and disk_of(third)["changed_bytes"] == MB
    compare(tmp_path, disk, third)


@pytest.mark.parametrize("lie, says", [
    (fault("FileFault", "Error caused by file web-ctk.vmdk"), "web-ctk.vmdk"),
    (fault("InvalidArgument", "A specified parameter was not correct: changeId",
           "<invalidProperty>changeId</invalidProperty>"), "changeId"),
    (window(0, SIZE, [(0, 2 * MB), (MB, 2 * MB)]), "does not lie between"),
    (window(0, SIZE, [(SIZE - MB, 2 * MB)]), "does not lie between"),
    (window(0, 2 * SIZE, []), "no answer from"),
    ("", "startOffset"),
])
def test_without_a_true_answer_all_is_read_and_compared(suite, fake, disk, tmp_path, lie, says):
    export(suite)
    guest_writes(disk, 3)

    def changes(query):
        if isinstance(lie, str):
            return lie
        raise lie

    fake.changes = changes
    result, count = served(fake, lambda: export(suite))
    assert disk_of(result)["incremental_mode"] == "leaf_compare"
    assert says in disk_of(result)["incremental_reason"] and count == SIZE
    assert any("(leaf_compare): " in line and says in line for line in log_of(suite))
    compare(tmp_path, disk, result)
    fake.changes = None
    disk.write(0, b"again")
    result, count = served(fake, lambda: export(suite))
    assert disk_of(result)["incremental_mode"] == "changed_extents" and count == MB
    compare(tmp_path, disk, result)


def test_what_makes_the_ids_useless_is_said(suite, fake, disk, tmp_path):
    export(suite)
    disk.write(MB, b"new series")
    disk.series, disk.sequence, disk.tracked = "52 00 00", 7, []
    result = export(suite)
    assert "began anew" in disk_of(result)["incremental_reason"]
    compare(tmp_path, disk, result)
    disk.data = disk.data[:4 * MB] + b"reverted" + disk.data[4 * MB + 8:]
    disk.sequence, disk.tracked = 2, []
    result = export(suite)
    assert "went back to an earlier state" in disk_of(result)["incremental_reason"]
    compare(tmp_path, disk, result)
    disk.series = None
    disk.data = disk.data[:6 * MB] + b"untracked" + disk.data[6 * MB + 9:]
    result = export(suite)
    assert "tracking is off" in disk_of(result)["incremental_reason"]
    compare(tmp_path, disk, result)
    disk.series = SERIES
    result = export(suite)
    assert "has no change id" in disk_of(result)["incremental_reason"]
    disk.data, disk.capacity = disk.data + b"grown" + bytes(MB - 5), SIZE + MB
    result = export(suite)
    assert disk_of(result)["incremental_mode"] == "full"
    assert "another size" in disk_of(result)["incremental_reason"]
    compare(tmp_path, disk, result)


@pytest.mark.parametrize("chosen, suffix", [("raw", "raw"), ("ovf", "vmdk")])
def test_whole_disks_are_read_from_the_export_before_where_nothing_changed(suite, fake, disk, tmp_path,
                                                                           chosen, suffix):
    first = export(suite, format=chosen)
    second, count = served(fake, lambda: export(suite, format=chosen))
    assert count == 0 and disk_of(second)["shared"] is True
    assert image_of(first, suffix).samefile(image_of(second, suffix))
    disk.write(7 * MB + 3, b"changed")
    disk.write(20 * MB, pseudo_random(MB, "new"))
    third, count = served(fake, lambda: export(suite, format=chosen))
    assert count == 2 * MB and disk_of(third)["shared"] is False
    assert disk_of(third)["incremental_mode"] == "changed_extents"
    assert not image_of(second, suffix).samefile(image_of(third, suffix))
    compare(tmp_path, disk, third, suffix)
    assert images.check_digests(third["output_path"]) >= 1
    assert images.leftovers(suite.exports) == []


def test_a_byte_that_flipped_in_the_export_before_does_not_spread(suite, fake, disk):
    first = export(suite, format="raw", verify=False)
    with open(image_of(first, "raw"), "r+b") as file:
        file.seek(6 * MB)
        byte = file.read(1)
        file.seek(6 * MB)
        file.write(bytes([byte[0] ^ 1]))
    disk.write(9 * MB, b"changed")
    job = suite.client.submit(vm_path="web", incremental=True, format="raw", verify=False)
    failed = suite.wait_job(job, "failed")
    assert "does not hold what it should" in failed["error"] and "force_full" in failed["error"]
    assert fake.vms["vm-1"].snapshots == {}


def test_a_killed_worker_goes_on_with_what_changed(suite, fake, disk, tmp_path):
    export(suite)
    guest_writes(disk, 7)
    held = []

    def hold(request, path):
        if request.command == "GET" and path == FLAT and not held:
            held.append(True)
            suite["exporter-vsphere"].kill()
        return False

    fake.folder = hold
    job = suite.client.submit(vm_path="web", incremental=True)
    wait_for(lambda: held, 60, lambda: suite.explain(job))
    suite["exporter-vsphere"].child.wait(60)
    suite["exporter-vsphere"].start()
    result = suite.wait_job(job, "completed", deadline=120)["result"]
    assert held and disk_of(result)["incremental_mode"] == "changed_extents"
    images.check(image_of(result), "qcow2")
    compare(tmp_path, disk, result)


# ---- beforehand ----

def analyze(suite, **fields):
    return suite.client.post("/incremental/analyze", {"vm_path": "web", **fields})


def test_what_changed_of_a_vm_that_is_off_is_told_beforehand(suite, fake, disk):
    full = analyze(suite)
    assert full["possible"] is False and full["changed_bytes"] == SIZE and fake.change_queries == []
    export(suite)
    disk.write(3 * MB - 1, b"over the edge")
    fake.vms["vm-1"].power = "poweredOff"
    told, count = served(fake, lambda: analyze(suite))
    assert count == 0 and told["possible"] is True
    assert told["changed_bytes"] == told["disks"][0]["changed_bytes"] == told["read_bytes"] == 2 * MB
    assert told["saving_percent"] == 91 and "changed_reason" not in told
    quiet = hyperexport(suite, "--vm", "web", "--incremental-info", "--quiet")
    assert f"changed_bytes={2 * MB}\n" in quiet.stdout and f"disk.1.changed={2 * MB}\n" in quiet.stdout
    assert "saving_percent=91\n" in quiet.stdout
    boxed = hyperexport(suite, "--vm", "web", "--incremental-info")
    assert "2.0 MB" in boxed.stdout and "Not known" not in boxed.stdout, boxed.stdout
    assert fake.count("CreateSnapshot_Task") == 1  # the export's
    result = export(suite)
    assert disk_of(result)["incremental_mode"] == "changed_extents" and result["transferred_bytes"] == 2 * MB


def test_a_vm_that_runs_is_asked_by_a_snapshot_of_its_own_only_when_wanted(suite, fake, disk):
    export(suite)
    disk.write(7 * MB, b"changed")
    made = fake.count("CreateSnapshot_Task")
    told = analyze(suite)
    assert told["changed_bytes"] is None and told["saving_percent"] is None and told["read_bytes"] == SIZE
    assert "temporary_snapshot" in told["changed_reason"]
    assert told["disks"][0]["changed_reason"] == told["changed_reason"]
    assert fake.count("CreateSnapshot_Task") == made and fake.change_queries == []
    quiet = hyperexport(suite, "--vm", "web", "--incremental-info", "--quiet")
    assert "changed_bytes=unknown\n" in quiet.stdout and "changed_reason=the VM is not powered off" in quiet.stdout
    told, count = served(fake, lambda: analyze(suite, temporary_snapshot=True))
    assert told["changed_bytes"] == MB and count == 0
    quiet = hyperexport(suite, "--vm", "web", "--incremental-info", "--snapshot", "--quiet")
    assert f"changed_bytes={MB}\n" in quiet.stdout, quiet.stderr
    assert fake.count("CreateSnapshot_Task") == made + 2 and fake.vms["vm-1"].snapshots == {}
    fake.faults["QueryChangedDiskAreas"] = [fault("FileFault", "web-ctk.vmdk is gone")]
    told = analyze(suite, temporary_snapshot=True)
    assert told["changed_bytes"] is None and "web-ctk.vmdk is gone" in told["changed_reason"]
    assert fake.vms["vm-1"].snapshots == {}
    fake.faults["CreateSnapshot_Task"] = [fault("NoPermission", "Permission was denied")]
    told = analyze(suite, temporary_snapshot=True)
    assert told["changed_bytes"] is None and "NoPermission" in told["changed_reason"]


def test_the_snapshot_of_a_question_does_not_outlive_it(suite, fake, disk):
    export(suite)
    disk.write(MB, b"changed")
    tries = []

    def kill(query):
        tries.append(dict(fake.vms["vm-1"].snapshots))
        if len(tries) == 1:
            suite["exporter-vsphere"].kill()

    fake.changes = kill
    with concurrent.futures.ThreadPoolExecutor() as pool:
        asked = pool.submit(analyze, suite, temporary_snapshot=True)
        suite["exporter-vsphere"].child.wait(60)
        suite["exporter-vsphere"].start()
        assert asked.result(60)["changed_bytes"] == MB
    assert tries[0] == tries[1] != {}  # the second lease went on with the first one's snapshot
    assert fake.vms["vm-1"].snapshots == {}


def test_a_snapshot_of_a_question_that_cannot_be_removed_is_removed_later(suite, fake, disk):
    export(suite)
    fake.task_faults["RemoveSnapshot_Task"] = [fault("InvalidState", "not now")]
    failed = suite.client.request("POST", "/incremental/analyze", {"vm_path": "web", "temporary_snapshot": True})
    assert failed.status_code == 422 and "is removed later" in failed.text, failed.text
    wait_for(lambda: fake.vms["vm-1"].snapshots == {}, 60, "the snapshot to be removed by a release")
    assert suite.sql("SELECT count(*) AS n FROM tasks WHERE kind = 'release'")[0]["n"] == 1


# ---- switching tracking on and off ----

def test_tracking_is_switched_over_rest_and_never_silently(suite, fake, disk):
    vm = fake.vms["vm-1"]
    disk.series = None
    export(suite)
    assert fake.count("ReconfigVM_Task") == 0
    state = suite.client.get("/cbt/status?vm_path=web")
    assert state["cbt_enabled"] is False and state["disks"][0]["tracked"] is False
    made = fake.count("CreateSnapshot_Task")
    state = suite.client.post("/cbt/enable", {"vm_path": "web"})
    assert state["success"] is True and state["changed"] is True and state["cbt_enabled"] is True
    assert state["disks"] == [{"disk_id": "2000", "label": "Hard disk 1", "tracked": True,
                               "change_id": f"{disk.series}/1"}]
    assert fake.count("CreateSnapshot_Task") == made + 1 and vm.snapshots == {}
    assert suite.client.put("/api/v1/vms/vm-1/cbt")["changed"] is False
    assert suite.client.post("/cbt/status", {"vm_path": "vm-1"})["cbt_enabled"] is True
    assert suite.client.get("/api/v1/vms/vm-1/cbt")["disks"][0]["tracked"] is True
    assert suite.client.get("/api/v1/vms/vm-1")["vm_info"]["cbt_enabled"] is True
    state = suite.client.delete("/api/v1/vms/vm-1/cbt")
    assert state["cbt_enabled"] is False and state["changed"] is True and disk.series is None
    vm.snapshots["snapshot-1"] = ("by hand", "")
    refused = suite.client.request("POST", "/cbt/enable", {"vm_path": "web"})
    assert refused.status_code == 422 and "delete or consolidate" in refused.text
    unknown = suite.client.request("POST", "/cbt/disable", {"vm_path": "we"})
    assert unknown.status_code == 422 and unknown.json().get("field") == "vm_path", unknown.text
    rows = suite.sql("SELECT action FROM audit.audit_log WHERE action LIKE 'vm.cbt\\_%able'")
    assert {r["action"] for r in rows} == {"vm.cbt_enable", "vm.cbt_disable"}


def test_an_export_switches_it_on_when_it_is_asked_to(suite, fake, disk, tmp_path):
    disk.series = None
    told = hyperexport(suite, "--vm", "web", "--incremental", "--enable-cbt", "--quiet")
    assert told.returncode == 0, told.stderr
    assert any("change tracking was switched on for the VM, as asked" in line for line in log_of(suite))
    ids = suite.sql("SELECT change_id FROM export_disks")
    assert ids[0]["change_id"] == f"{disk.series}/2"  # the export's own snapshot knows it already
    disk.write(4 * MB, b"changed")
    result, count = served(fake, lambda: export(suite, enable_cbt=True))
    assert count == MB and disk_of(result)["incremental_mode"] == "changed_extents"
    assert "change tracking is on already" in log_of(suite)
    assert fake.count("ReconfigVM_Task") == 1 and fake.vms["vm-1"].snapshots == {}
    compare(tmp_path, disk, result)


def test_a_worker_killed_while_switching_leaves_no_snapshot(suite, fake, disk):
    disk.series = None
    killed = []

    def kill(self, call, request, plain=type(fake).do_RemoveSnapshot_Task):
        if not killed:
            killed.append(True)
            suite["exporter-vsphere"].kill()
        return plain(self, call, request)

    fake.do_RemoveSnapshot_Task = lambda call, request: kill(fake, call, request)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        asked = pool.submit(suite.client.post, "/cbt/enable", {"vm_path": "web"})
        suite["exporter-vsphere"].child.wait(60)
        suite["exporter-vsphere"].start()
        assert asked.result(60)["cbt_enabled"] is True
    assert killed and fake.vms["vm-1"].snapshots == {} and disk.series is not None
    assert fake.count("ReconfigVM_Task") == 1


def test_a_question_makes_no_snapshot_where_an_export_would(suite, fake, disk):
    """Without a flat file an export comes as a stream of a snapshot; a question does not."""
    export(suite)
    vm = fake.vms["vm-1"]
    vm.power = "poweredOff"
    made = fake.count("CreateSnapshot_Task")
    vm.snapshots["snapshot-1"] = ("by hand", "")
    disk.freeze()
    told = analyze(suite)
    assert told["changed_bytes"] is None and "snapshots" in told["changed_reason"], told
    assert told["read_bytes"] == SIZE
    assert fake.count("CreateSnapshot_Task") == made and list(vm.snapshots) == ["snapshot-1"]

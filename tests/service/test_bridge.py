"""hyper2kvm-bridge: real bridge, scheduler and PostgreSQL; hyper2kvm is scripted, and real in one
test."""
import json
import pathlib
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET

import pytest

from tests.fakes.hyper2kvm_daemon import Daemon
from tests.harness import images
from tests.harness.bridge import BRIDGE, Conversions, Export, Program, alive, start_bridges
from tests.harness.process import ROOT
from tests.harness.wait import wait_for



@pytest.fixture
def bridge(make_suite):
    """Function: scheduler and `bridges` bridges; settings go into the section hyper2kvm."""

    def make(bridges=1, **settings):
        settings.setdefault("path", "/nonexistent/hyper2kvm")
        return start_bridges(make_suite, Conversions, bridges, hyper2kvm=settings)

    return make


@pytest.fixture
def export(tmp_path):
    def make(**options):
        return Export(tmp_path / "suite" / "exports", **options)

    (tmp_path / "suite" / "exports").mkdir(parents=True)
    return make


@pytest.fixture
def program(tmp_path):
    return lambda mode="success", **scenario: Program(tmp_path / "h2k", mode, **scenario)


@pytest.fixture
def daemon(tmp_path):
    started = []

    def make(mode="ok"):
        suite = tmp_path / "suite"
        started.append(Daemon(suite / "watch", suite / "images", mode).start())
        return started[-1]

    yield make
    for one in started:
        one.stop()


def check_domain(path):
    """Accepted by libvirt's schema and by its test driver; the parsed XML."""
    text = pathlib.Path(path).read_text()
    if shutil.which("virt-xml-validate"):
        done = subprocess.run(["virt-xml-validate", path, "domain"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    if shutil.which("virsh"):
        defined = pathlib.Path(path).parent.parent / "as-test-domain.xml"
        defined.write_text(re.sub(r"<domain type='\w+'", "<domain type='test'", text, count=1))
        done = subprocess.run(["virsh", "-c", "test:///default", "define", defined],
                              capture_output=True, text=True)
        defined.unlink()
        assert done.returncode == 0, done.stdout + done.stderr
    return ET.fromstring(text)


def disks_of(domain):
    return [(d.find("source").get("file"), d.find("target").get("bus"))
            for d in domain.findall("devices/disk")]


# ---- the built-in path ----


def test_the_builtin_path_puts_a_domain_next_to_the_qcow2(bridge, export):
    c, e = bridge(), export(disks=2)
    job = c.submit(e)
    result = c.conversion(job)
    assert result["path_used"] == "builtin"
    assert result["output_files"] == [str(i) for i in e.images]
    assert result["domain_xml"] == str(e.directory / "web-03.xml")
    assert any("guest not changed" in x for x in result["not_done"])
    assert any("not installed" in x and "built-in" in x for x in result["warnings"])
    domain = check_domain(result["domain_xml"])
    assert disks_of(domain) == [(str(i), "scsi") for i in e.images]
    assert domain.find("devices/interface/mac").get("address") == "00:50:56:aa:bb:01"
    assert domain.find("uuid").text == e.manifest["vm"]["uuid"]
    assert e.state() == e.before
    assert c.published() == [] and c.staged() == []
    assert any("converted by the builtin path" in x for x in c.lines(job))


def test_a_uefi_guest_gets_a_uefi_domain(bridge, export):
    c, e = bridge(), export(firmware="uefi")
    domain = check_domain(c.conversion(c.submit(e))["domain_xml"])
    assert domain.find("os").get("firmware") == "efi"


def test_of_a_vmdk_export_the_qcow2_beside_it_is_taken(bridge, export):
    c, e = bridge(), export()
    vmdk = e.directory / "web-03-disk1.vmdk"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o",
                    "subformat=streamOptimized", e.raws[0], vmdk], check=True)
    e.manifest["disks"][0].update(source_format="vmdk", local_path=str(vmdk),
                                  relative_path=vmdk.name, bytes=vmdk.stat().st_size,
                                  checksum="sha256:" + images.sha256(vmdk))
    e.write_manifest()
    result = c.conversion(c.submit(e))
    assert result["output_files"] == [str(e.images[0])]
    e.images[0].unlink()
    result = c.conversion(c.submit(e))
    assert result["output_files"] == [str(c.images / "web-03" / "web-03-disk1.qcow2")]
    images.compare(e.raws[0], result["output_files"][0], "qcow2")


def test_fallback_fail_fails_without_hyper2kvm(bridge, export):
    c, e = bridge(fallback="fail"), export()
    code, text = c.failure(c.submit(e))
    assert code == "not_found" and "fallback is 'fail'" in text and "not installed" in text
    assert e.state() == e.before


def test_the_builtin_path_writes_raw_when_asked(bridge, export):
    c, e = bridge(), export(disks=2)
    result = c.conversion(c.submit(e, target_format="raw"))
    assert result["path_used"] == "builtin"
    for raw, made in zip(e.raws, result["output_files"]):
        assert made.endswith(".raw")
        images.compare(raw, made, "raw")
    assert e.state() == e.before and c.staged() == []


@pytest.mark.parametrize("kind", ["backing", "data_file"])
def test_an_image_that_names_other_files_is_refused(bridge, export, kind):
    """It could bring any file of this machine into the guest."""
    c, e = bridge(), export()
    e.images[0].unlink()
    if kind == "backing":
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd",
                        e.images[0]], check=True)
    else:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o",
                        f"data_file={e.raws[0]},data_file_raw=on", e.images[0], "4M"], check=True)
    code, text = c.failure(c.submit(e))
    assert (code, kind) in (("denied", "backing"), ("not_available", "data_file")), text
    assert "backing file" in text or "another file" in text


def test_files_outside_the_allowed_directories_are_refused(bridge, export, tmp_path):
    c, e = bridge(), export()
    elsewhere = tmp_path / "elsewhere.qcow2"
    shutil.copy(e.images[0], elsewhere)
    e.images[0].unlink()
    e.images[0].symlink_to(elsewhere)
    assert c.failure(c.submit(e))[0] == "denied"
    assert c.failure(c.submit(e, path=tmp_path))[0] == "denied"
    e.manifest["disks"][0]["local_path"] = str(elsewhere)
    e.write_manifest()
    assert c.failure(c.submit(e))[0] == "denied"


def test_a_broken_manifest_is_a_clear_failure(bridge, export):
    c, e = bridge(), export()
    for manifest in ("{", "[]", '{"manifest_version": "1.0"}',
                     '{"manifest_version": "1.0", "disks": "disk"}',
                     '{"manifest_version": "2.0", "disks": [{}]}'):
        e.manifest_path.write_text(manifest)
        code, text = c.failure(c.submit(e))
        assert code == "invalid" and text, manifest


# ---- a direct call ----


def test_a_direct_call_publishes_fixed_images(bridge, export, program):
    p = program()
    c, e = bridge(path=str(p.path)), export(disks=2)
    job = c.submit(e)
    result = c.conversion(job)
    target = c.images / "web-03"
    assert result["path_used"] == "direct" and result["not_done"] == []
    assert result["output_files"] == [str(target / f"web-03-disk{i}.qcow2") for i in (1, 2)]
    images.compare(e.fixed(0, 0x55), target / "web-03-disk1.qcow2", "qcow2")
    images.compare(e.raws[1], target / "web-03-disk2.qcow2", "qcow2")
    assert "backing-filename" not in images.info(target / "web-03-disk1.qcow2", "qcow2")
    assert e.state() == e.before, "the export was written to"
    domain = check_domain(result["domain_xml"])
    assert disks_of(domain) == [(f, "virtio") for f in result["output_files"]]
    assert json.loads(pathlib.Path(result["report"]).read_text())["pipeline"]["success"] is True
    assert sorted(x.name for x in target.iterdir()) == [
        "artifact-manifest.json", "conversion.json", "hyper2kvm-report.json", "web-03-disk1.qcow2",
        "web-03-disk2.qcow2", "web-03.xml"]
    assert target.stat().st_mode & 0o777 == 0o751
    assert c.published() == ["web-03"] and c.staged() == []
    assert any("🚀 INFO" in x and "Stage: FIX" in x for x in c.lines(job))


def test_what_hyper2kvm_is_given(bridge, export, program):
    p = program()
    extra = {"hooks": {"pre_fix": [{"type": "script", "script": "/bin/true"}]},
             "profile": "evil", "libvirt_integration": {"enabled": True},
             "configuration": {"users": []}}
    c, e = bridge(path=str(p.path)), export(disks=2, hints=[5, 0], manifest=extra)
    result = c.conversion(c.submit(e, stages={"inspect": False}))
    call, = p.calls()
    given = call["manifest"]
    assert set(given) == {"manifest_version", "source", "vm", "disks", "nics", "pipeline", "output",
                          "options", "input", "output_format", "compress", "flatten"}
    assert [d["id"] for d in given["disks"]] == ["disk-1", "disk-0"], "boot disk first"
    assert given["input"] == given["pipeline"]["load"]["source_path"]
    assert given["input"].endswith("/disk-1.vmdk")
    assert {k: v["enabled"] for k, v in given["pipeline"].items() if k != "load"} == {
        "inspect": False, "fix": True, "convert": True, "validate": True}
    assert given["pipeline"]["fix"]["fstab_mode"] == "stabilize-all"
    assert "compress_level" not in given["pipeline"]["convert"]
    for disk in given["disks"]:
        assert disk["source_format"] == "qcow2" and "checksum" not in disk
        assert ".hypersdk-stage" in disk["local_path"]
    env = call["env"]
    assert env["LIBGUESTFS_BACKEND"] == "direct" and env["LC_ALL"] == "C.UTF-8"
    assert env["TMPDIR"].startswith(str(c.images))
    # the boot disk of the manifest's second place was fixed, and is the first image
    images.compare(e.fixed(1, 0x55), result["output_files"][0], "qcow2")


def test_raw_images_come_from_hyper2kvm(bridge, export, program):
    p = program()
    c, e = bridge(path=str(p.path)), export()
    result = c.conversion(c.submit(e, target_format="raw"))
    assert result["output_files"] == [str(c.images / "web-03" / "web-03-disk1.raw")]
    images.compare(e.fixed(0, 0x55), result["output_files"][0], "raw")
    check_domain(result["domain_xml"])


def test_without_stage_convert_the_bridge_copies(bridge, export, program):
    p = program()
    c, e = bridge(path=str(p.path)), export(disks=2)
    result = c.conversion(c.submit(e, stages={"convert": False}))
    images.compare(e.fixed(0, 0x55), result["output_files"][0], "qcow2")
    images.compare(e.raws[1], result["output_files"][1], "qcow2")


def test_without_stage_fix_the_guest_gets_its_old_devices(bridge, export, program):
    p = program()
    c, e = bridge(path=str(p.path)), export()
    result = c.conversion(c.submit(e, stages={"fix": False}))
    assert any("switched off" in x for x in result["not_done"])
    assert disks_of(check_domain(result["domain_xml"]))[0][1] == "scsi"
    images.compare(e.raws[0], result["output_files"][0], "qcow2")


def test_a_fix_that_could_not_write_is_not_believed(bridge, export, program):
    p = program("read_only")
    c, e = bridge(path=str(p.path)), export()
    result = c.conversion(c.submit(e))
    assert any("converted, not fixed" in x for x in result["not_done"])
    assert disks_of(check_domain(result["domain_xml"]))[0][1] == "scsi"


LIES = [("no_artifact", "left no"), ("no_report", "report of hyper2kvm"),
        ("report_false", "reports a failure"), ("too_few", "made 1 images of 2 disks"),
        ("corrupt", "converted image of disk 2"), ("fail", "status 1"), ("signal", "signal 9")]


def test_hyper2kvm_that_fails_or_lies_is_found_out(bridge, export, program):
    p = program()
    c, e = bridge(path=str(p.path)), export(disks=2)
    for mode, words in LIES:
        p.set(mode)
        text = c.failure(c.submit(e))[1]
        assert words in text, mode
        assert c.published() == [] and c.staged() == [], mode
    assert e.state() == e.before


def test_hyper2kvm_that_does_not_end_is_ended_with_its_children(bridge, export, program):
    p = program("hang")
    c, e = bridge(path=str(p.path)), export()
    for seconds in (2, 20, 60):  # on a busy machine it may need some until it hangs
        code, text = c.failure(c.submit(e, timeout_ms=seconds * 1000))
        assert code == "timeout" and f"did not end within {seconds} s" in text
        if p.pids():
            break
    assert len(p.pids()) == 2 and not any(alive(pid) for pid in p.pids())
    assert c.published() == [] and c.staged() == []


def test_silent_hyper2kvm_is_given_up(bridge, export, program):
    p = program("silent")
    c, e = bridge(path=str(p.path), stuck_after="1s"), export()
    code, text = c.failure(c.submit(e))
    assert code == "timeout" and "printed nothing" in text
    assert p.running() == []


def test_cancel_ends_the_group_and_leaves_nothing(bridge, export, program):
    p = program("hang")
    c, e = bridge(path=str(p.path)), export()
    job = c.submit(e)
    pids = p.wait_pids()
    wait_for(lambda: any("hangs now" in x for x in c.lines(job)))
    c.cancel(job)
    c.wait(job, "cancelled")
    assert not any(alive(pid) for pid in pids)
    assert c.published() == [] and c.staged() == []
    assert e.state() == e.before


def test_a_flood_of_lines_is_bounded(bridge, export, program):
    p = program("flood")
    c, e = bridge(path=str(p.path)), export()
    job = c.submit(e)
    c.conversion(job, 120)
    lines = c.lines(job)
    assert 5000 <= len(lines) < 5100
    assert any(re.search(r"printed \d+ more lines", x) for x in lines)


def test_hyper2kvm_without_manifests_is_not_used(bridge, export, program):
    p = program(old=True)
    c, e = bridge(path=str(p.path)), export()
    result = c.conversion(c.submit(e))
    assert result["path_used"] == "builtin" and p.calls() == []
    assert any("0.1.0 or later" in x for x in result["warnings"])


def test_an_import_that_exists_is_not_touched(bridge, export, program):
    p = program()
    c, e = bridge(path=str(p.path)), export()
    old = c.images / "web-03"
    old.mkdir()
    (old / "web-03-disk1.qcow2").write_text("of last year")
    job = c.submit(e)
    result = c.conversion(job)
    target = c.images / f"web-03-{job}"
    assert result["output_files"] == [str(target / "web-03-disk1.qcow2")]
    assert disks_of(check_domain(result["domain_xml"]))[0][0] == result["output_files"][0]
    assert [x.name for x in old.iterdir()] == ["web-03-disk1.qcow2"]
    assert (old / "web-03-disk1.qcow2").read_text() == "of last year"


def test_what_was_published_is_not_done_twice(bridge, export, program):
    p = program()
    c, e = bridge(path=str(p.path)), export()
    job = c.submit(e)
    first = c.conversion(job)
    c.again(job)
    wait_for(lambda: any("converted already" in x for x in c.lines(job)))
    assert c.conversion(job) == first
    assert len(p.calls()) == 1 and c.published() == ["web-03"]


def test_odd_names_of_vms_and_jobs_stay_below_the_directory(bridge, export, program):
    p = program()
    c, e = bridge(path=str(p.path)), export()
    e.name = "../web: 03/é <x>"
    job = c.submit(e, job="../../job")
    result = c.conversion(job)
    assert pathlib.Path(result["output_files"][0]).parent.parent == c.images
    check_domain(result["domain_xml"])


# ---- faults of the bridge itself ----


def test_another_bridge_goes_on_after_kill_9(bridge, export, program):
    p = program("hang")
    c, e = bridge(path=str(p.path)), export()
    job = c.submit(e)
    pids = p.wait_pids()
    c.suite[BRIDGE].kill()
    assert all(alive(pid) for pid in pids), "the test is about what is left behind"
    p.set("success")
    c.expire(job)
    c.suite.add(f"{BRIDGE}-2")
    wait_for(lambda: not any(alive(pid) for pid in pids), what="the orphaned hyper2kvm is ended")
    result = c.conversion(job)
    images.compare(e.fixed(0, 0x55), result["output_files"][0], "qcow2")
    assert c.published() == ["web-03"] and c.staged() == []
    assert e.state() == e.before
    assert c.task(job)["attempt"] == 0, "a lost lease is no attempt"


def test_sigterm_hands_the_conversion_back(bridge, export, program):
    p = program("hang")
    c, e = bridge(path=str(p.path)), export()
    job = c.submit(e)
    pids = p.wait_pids()
    assert c.suite[BRIDGE].stop() == 0
    assert not any(alive(pid) for pid in pids)
    assert c.staged() == [] and c.task(job)["state"] == "queued"
    p.set("success")
    c.suite[BRIDGE].start()
    c.conversion(job)


def test_two_bridges_share_the_work(bridge, export, program):
    p = program()
    c, e = bridge(bridges=2, path=str(p.path)), export()
    jobs = [c.submit(e) for _ in range(6)]
    results = [c.conversion(job, 120) for job in jobs]
    assert len({r["domain_xml"] for r in results}) == 6
    assert len(c.published()) == 6 and c.staged() == []


# ---- the daemon's queue ----


def queue_of(bridge, **settings):
    return bridge(daemon_enabled=True, **settings)


def test_the_queue_takes_the_boot_disk_and_we_copy_the_rest(bridge, export, daemon):
    c, e, d = queue_of(bridge), export(disks=2), daemon()
    job = c.submit(e, daemon=True, instance="vsphere")
    result = c.conversion(job)
    assert result["path_used"] == "queue" and result["not_done"] == []
    images.compare(e.fixed(0, 0x66), result["output_files"][0], "qcow2")
    images.compare(e.raws[1], result["output_files"][1], "qcow2")
    assert [str(c.images / "web-03" / f"web-03-disk{i}.qcow2") for i in (1, 2)] \
        == result["output_files"]
    assert disks_of(check_domain(result["domain_xml"]))[0][1] == "virtio"
    document, = d.documents
    assert document["manifest_version"] == "1.0" and document["flatten"] is True
    assert document["pipeline"]["load"]["source_type"] == "vmdk"
    assert d.names == [f"{job}-0-1.json"]
    assert e.state() == e.before
    # the daemon's own directory of the job is gone, its date directory may stay
    assert c.staged() == [] and not list(c.images.rglob("working-flattened*"))
    assert any("queued for hyper2kvm@vsphere" in x for x in c.lines(job))


def test_daemon_mode_off_or_no_daemon_calls_directly(bridge, export, program, daemon):
    p, d = program(), daemon("idle")
    c, e = queue_of(bridge, path=str(p.path)), export()
    assert c.conversion(c.submit(e, daemon=False))["path_used"] == "direct"
    assert d.waiting() == []


def test_a_failed_conversion_of_the_daemon_tells_why(bridge, export, daemon):
    c, e, d = queue_of(bridge), export(), daemon("failed")
    code, text = c.failure(c.submit(e, daemon=True))
    assert "no root file system in the image" in text
    assert len(d.documents) == 1 and e.state() == e.before
    assert c.staged() == []


def test_a_daemon_that_is_done_without_an_image_is_not_believed(bridge, export, daemon):
    c, e = queue_of(bridge), export()
    daemon("no_output")
    code, text = c.failure(c.submit(e, daemon=True))
    assert "to_output" in text


def test_a_daemon_that_never_comes_is_passed_over(bridge, export, program, daemon):
    p, d = program(), daemon("idle")
    c, e = queue_of(bridge, path=str(p.path), stuck_after="4s"), export()  # the program's, too
    result = c.conversion(c.submit(e, daemon=True))
    assert result["path_used"] == "direct"
    assert any("no sign of life" in x and "direct call" in x for x in result["warnings"])
    assert d.waiting() == [], "the file was taken back"


def test_a_daemon_that_hangs_is_passed_over(bridge, export, daemon):
    c, e, d = queue_of(bridge, stuck_after="2s"), export(), daemon("stuck")
    for _ in range(5):  # on a busy machine it may be given up before it takes the file
        result = c.conversion(c.submit(e, daemon=True))
        assert result["path_used"] == "builtin"
        if d.names:
            break
    assert len(d.processing()) == 1, "what the daemon holds is left to it"
    assert e.state() == e.before


def test_a_daemon_that_hangs_is_restarted(bridge, export, daemon):
    """What it had begun is queued anew, under another name; what waited is simply taken."""
    d = daemon("stuck")
    c = queue_of(bridge, stuck_after="3s", restart_command=["touch", str(d.watch / "restart")])
    first, second = export(disks=2), Export(c.suite.exports, name="db-01")
    jobs = [c.submit(e, daemon=True) for e in (first, second)]
    for job, e in zip(jobs, (first, second)):
        result = c.conversion(job)
        assert result["path_used"] == "queue"
        assert not any("restart" in x for x in result["warnings"])
        images.compare(e.fixed(0, 0x66), result["output_files"][0], "qcow2")
        assert e.state() == e.before
    calls = [x for job in jobs for x in c.lines(job) if "calling touch" in x]
    assert len(calls) == 1, "one restart cures both"
    assert len(d.names) == 3 and len(set(d.names)) == 3
    assert d.processing() == [] and d.waiting() == [] and c.staged() == []


@pytest.mark.parametrize("command", ["hangs_again", "fails", "absent"])
def test_a_restart_that_does_not_help_is_told(bridge, export, daemon, command):
    d = daemon("stuck")
    d.after = "stuck"
    words = {"hangs_again": ["touch", str(d.watch / "restart")], "fails": ["sh", "-c", "echo why; exit 3"],
             "absent": ["/nonexistent/systemctl", "restart"]}[command]
    c, e = queue_of(bridge, stuck_after="1s", restart_command=words), export()
    job = c.submit(e, daemon=True)
    result = c.conversion(job)
    assert result["path_used"] == "builtin"
    assert any("no sign of life" in x for x in result["warnings"])
    told = {"hangs_again": "", "fails": "ended with 3: why", "absent": "/nonexistent/systemctl"}
    assert any(told[command] in x for x in result["warnings"])
    calls = [x for x in c.lines(job) if "calling " in x]
    assert len(calls) == (2 if command == "hangs_again" else 1)
    # each time anew what it had begun; given up before it took a file, it had begun nothing
    assert len(d.names) <= (3 if command == "hangs_again" else 1) and len(set(d.names)) == len(d.names)
    assert e.state() == e.before and c.staged() == []


def test_a_batch_of_fifty_goes_through_the_queue(bridge, daemon, tmp_path):
    (tmp_path / "suite" / "exports").mkdir(parents=True)
    d = daemon()
    c = bridge(bridges=2, daemon_enabled=True)
    exports = [Export(c.suite.exports, name=f"vm-{i:02}") for i in range(50)]
    jobs = [c.submit(e, daemon=True) for e in exports]
    for job, e in zip(jobs, exports):
        result = c.conversion(job, 300)
        assert result["path_used"] == "queue", result["warnings"]
        image, = result["output_files"]
        assert image == str(c.images / e.name / f"{e.name}-disk1.qcow2")
        images.compare(e.fixed(0, 0x66), image, "qcow2")
    assert len(set(d.names)) == 50
    assert set(c.published()) >= {e.name for e in exports}
    assert c.staged() == [] and d.waiting() == [] and d.processing() == []


def test_a_daemon_that_loses_the_file_is_passed_over(bridge, export, daemon):
    c, e = queue_of(bridge), export()
    daemon("vanish")
    result = c.conversion(c.submit(e, daemon=True))
    assert result["path_used"] == "builtin" and any("is gone" in x for x in result["warnings"])


def test_a_slow_daemon_is_waited_for(bridge, export, daemon):
    c, e, d = queue_of(bridge, stuck_after="3s"), export(), daemon("busy")
    job = c.submit(e, daemon=True)
    wait_for(lambda: any("works on" in x for x in c.lines(job)))
    started = c.suite.sql("SELECT now() AS t")[0]["t"]
    wait_for(lambda: (c.suite.sql("SELECT now() AS t")[0]["t"] - started).total_seconds() > 4,
             interval=0.5)
    d.release.set()
    assert c.conversion(job)["path_used"] == "queue"


def test_a_missing_watch_directory_is_passed_over(bridge, export, tmp_path):
    c = queue_of(bridge, watch_dir=str(tmp_path / "nowhere"))
    result = c.conversion(c.submit(export(), daemon=True))
    assert result["path_used"] == "builtin"
    assert any("does not exist" in x for x in result["warnings"])


def test_cancel_takes_a_queued_file_back(bridge, export, daemon):
    c, e, d = queue_of(bridge), export(), daemon("idle")
    job = c.submit(e, daemon=True)
    wait_for(d.waiting)
    c.cancel(job)
    c.wait(job, "cancelled")
    assert d.waiting() == [] and c.published() == [] and c.staged() == []


@pytest.mark.parametrize("how", ["sigterm", "kill"])
def test_the_next_bridge_goes_on_with_what_is_queued(bridge, export, daemon, how):
    c, e, d = queue_of(bridge), export(disks=2), daemon("busy")
    job = c.submit(e, daemon=True)
    wait_for(lambda: any("works on" in x for x in c.lines(job)))
    if how == "kill":
        c.suite[BRIDGE].kill()
        c.expire(job)
    else:
        assert c.suite[BRIDGE].stop() == 0
    d.release.set()
    wait_for(lambda: d.processing() == [])
    c.suite.add(f"{BRIDGE}-2")
    result = c.conversion(job)
    assert result["path_used"] == "queue" and len(d.names) == 1
    assert any("going on with" in x for x in c.lines(job))
    images.compare(e.fixed(0, 0x66), result["output_files"][0], "qcow2")
    images.compare(e.raws[1], result["output_files"][1], "qcow2")
    assert c.staged() == [] and e.state() == e.before


# ---- settings ----


@pytest.mark.parametrize("settings,words", [
    ({"fallback": "maybe"}, "fallback"),
    ({"default_format": "vdi"}, "default_format"),
    ({"output_dir": "images"}, "absolute"),
])
def test_wrong_settings_are_refused_at_start(make_suite, settings, words):
    suite = make_suite(services=[], start=False, config={"hyper2kvm": settings})
    suite.add(BRIDGE)
    assert suite[BRIDGE].child.wait(60) == 64
    assert words in suite[BRIDGE].output()


# ---- the real one ----


def test_the_real_hyper2kvm_converts(bridge, export, real_hyper2kvm):
    c, e = bridge(path=str(real_hyper2kvm)), export(disks=2)
    job = c.submit(e, stages={"fix": False})
    result = c.conversion(job, 120)
    assert result["path_used"] == "direct", result["warnings"]
    for raw, image in zip(e.raws, result["output_files"]):
        images.check(image, "qcow2")
        images.compare(raw, image, "qcow2")
    report = json.loads(pathlib.Path(result["report"]).read_text())
    assert len(report["artifacts"]) == 2
    assert e.state() == e.before and c.staged() == []

"""Imports into libvirt: real bridge, scheduler and PostgreSQL; libvirt's mock driver, which forgets
everything with the bridge, and a real libvirtd with QEMU, where effects are read back."""
import json
import os
import shutil
import subprocess
import xml.etree.ElementTree as ET

import pytest

from tests.harness import images
from tests.harness.bridge import BRIDGE, Export, Imports, start_bridges
from tests.harness.wait import wait_for

ODD_NAME = "Straße \"5\" <web> & 'söhne'"


@pytest.fixture
def importer(make_suite):
    """Function: scheduler and one bridge; settings go into the section libvirt."""

    def make(**settings):
        settings.setdefault("uri", "test:///default")
        settings.setdefault("timeout", "60s")  # QEMU may be slow
        return start_bridges(make_suite, Imports, libvirt=settings)

    return make


@pytest.fixture
def on_qemu(importer, libvirtd):
    """Function: the same, into the private libvirtd's pool."""

    def make(**settings):
        settings = {"uri": libvirtd.uri, "pool": "images", "network": "user",
                    "domain_type": "qemu", **settings}
        return importer(**settings)

    return make


@pytest.fixture
def export(tmp_path):
    def make(**options):
        return Export(tmp_path / "suite" / "exports", **options)

    (tmp_path / "suite" / "exports").mkdir(parents=True)
    return make


def wait_available(c):
    wait_for(lambda: c.suite[BRIDGE].events("libvirt_reachable"), what=c.suite.tails)


# ---- the mock driver ----


def test_an_export_becomes_a_domain(importer, export):
    c, e = importer(), export(disks=2, hints=[1, 0])
    domain = c.imported(c.submit_import(manifest_path=str(e.manifest_path)))
    assert (domain["name"], domain["state"], domain["type"]) == ("web-03", "shutoff", "test")
    assert (domain["cpus"], domain["memory_mb"], domain["autostart"]) == (2, 1024, False)
    assert domain["uuid"] == e.manifest["vm"]["uuid"]
    assert [(d["file"], d["bus"], d["format"]) for d in domain["disks"]] == [
        (str(e.images[1]), "scsi", "qcow2"), (str(e.images[0]), "scsi", "qcow2")]
    assert [(n["mac"], n["source"]) for n in domain["nics"]] == [("00:50:56:aa:bb:01", "default")]
    assert domain["in_place"] is True and domain["volumes"] == []
    assert any("'VM Network' of the source is not mapped" in w for w in domain["warnings"])


def test_images_alone_are_enough_with_a_word_about_the_machine(importer, export):
    c, e = importer(), export(disks=2)
    domain = c.imported(c.submit_import(disks=[str(i) for i in e.images], vm_name="mine", vcpus=3,
                                        memory_mb=512, firmware="uefi",
                                        libvirt={"network": "default", "start": True}))
    assert (domain["name"], domain["cpus"], domain["memory_mb"]) == ("mine", 3, 512)
    assert [d["bus"] for d in domain["disks"]] == ["sata", "sata"], "no word about controllers"
    assert domain["state"] == "running" and domain["warnings"] == [
        w for w in domain["warnings"] if "UEFI" in w]


def test_networks_go_where_the_map_or_the_job_says(importer, export):
    c = importer(networks=["VM Network=bridge:br7", "other=network:nat"])
    e = export(manifest={"nics": [{"id": f"nic-{i}", "mac": f"00:50:56:aa:bb:0{i}", "network": n}
                                  for i, n in enumerate(["VM Network", "other", "third"])]})
    domain = c.imported(c.submit_import(manifest_path=str(e.manifest_path)))
    assert [(n["type"], n["source"]) for n in domain["nics"]] == [
        ("bridge", "br7"), ("network", "nat"), ("network", "default")]
    domain = c.imported(c.submit_import(manifest_path=str(e.manifest_path), vm_name="b",
                                        libvirt={"bridge": "br9"}))
    assert {(n["type"], n["source"]) for n in domain["nics"]} == {("bridge", "br9")}


def test_a_taken_name_is_a_clear_failure_unless_told_otherwise(importer, export):
    c, e = importer(), export()
    wait_available(c)  # its connection keeps the mock driver's domains
    spec = {"manifest_path": str(e.manifest_path)}
    first = c.imported(c.submit_import(**spec))
    code, text = c.failure(c.submit_import(**spec))
    assert code == "conflict" and "'web-03' exists already" in text and "if_exists" in text
    renamed = c.imported(c.submit_import(**spec, libvirt={"if_exists": "rename"}))
    assert renamed["name"] == "web-03-2" and renamed["uuid"] != first["uuid"]
    assert any("a new one is used" in w for w in renamed["warnings"])
    replaced = c.imported(c.submit_import(**spec, memory_mb=256, libvirt={"if_exists": "replace"}))
    assert replaced["uuid"] == first["uuid"] and replaced["replaced"] is True
    assert replaced["memory_mb"] == 256
    code, text = c.failure(c.submit_import(vm_name="test", **spec,
                                           libvirt={"if_exists": "replace"}))
    assert code == "conflict" and "not imported by this suite" in text
    c.imported(c.submit_import(vm_name="web-03-2", **spec,
                               libvirt={"if_exists": "replace", "start": True}))
    code, text = c.failure(c.submit_import(vm_name="web-03-2", **spec,
                                           libvirt={"if_exists": "replace"}))
    assert code == "conflict" and "runs" in text


def test_what_stands_on_others_or_lies_elsewhere_is_refused(importer, export, tmp_path):
    c, e = importer(), export()
    elsewhere = tmp_path / "elsewhere.qcow2"
    shutil.copy(e.images[0], elsewhere)
    machine = {"vm_name": "x", "memory_mb": 64, "vcpus": 1}
    assert c.failure(c.submit_import(disks=[str(elsewhere)], **machine))[0] == "denied"
    overlay = e.directory / "overlay.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", e.images[0].name,
                    overlay], check=True, cwd=e.directory)
    code, text = c.failure(c.submit_import(disks=[str(overlay)], **machine))
    assert code == "not_available" and "flatten" in text
    code, text = c.failure(c.submit_import(disks=[str(e.images[0])], **machine,
                                           libvirt={"uri": "qemu+ssh://x/?command=/bin/true"}))
    assert code == "denied" and "allowed_uris" in text
    (e.directory / "export.json").write_text(json.dumps({"incremental": {}}))
    code, text = c.failure(c.submit_import(disks=[str(e.images[0])], **machine))
    assert code == "conflict" and "restore point" in text


def test_an_export_in_use_is_marked_and_the_mark_goes_with_a_failure(importer, export):
    c, e = importer(), export()
    (e.directory / "export.json").write_text("{}")
    mark = e.directory / ".hypersdk-domain"
    job = c.submit_import(manifest_path=str(e.manifest_path))
    assert any("can be verified no more" in w for w in c.imported(job)["warnings"])
    assert mark.read_text() == job + "\n"
    mark.unlink()
    wait_available(c)
    c.failure(c.submit_import(manifest_path=str(e.manifest_path), vm_name="y",
                              libvirt={"pool": "none such"}))
    assert not mark.exists()


def test_a_file_that_another_export_has_too_is_no_domains(importer, export):
    c, e = importer(), export()
    (e.directory / "export.json").write_text("{}")
    (e.directory.parent / "other.qcow2").hardlink_to(e.images[0])
    code, text = c.failure(c.submit_import(manifest_path=str(e.manifest_path)))
    assert code == "conflict" and "another export" in text and "storage pool" in text
    wait_for(lambda: not (e.directory / ".hypersdk-domain").exists())


def test_libvirt_that_is_away_is_tried_again_and_the_capability_says_so(importer, export, tmp_path):
    c, e = importer(uri=f"qemu+unix:///session?socket={tmp_path}/none"), export()
    job = c.submit_import(manifest_path=str(e.manifest_path), max_attempts=2)
    code, text = c.failure(job)
    assert code == "unavailable" and "none" in text
    assert c.job(job)["attempt"] == 2
    record = wait_for(lambda: c.suite.sql(
        "SELECT capabilities FROM workers WHERE role = 'bridge'"
        " AND capabilities->'libvirt'->>'error' LIKE '%%Failed to connect%%'"))
    assert record[0]["capabilities"]["features"] == {"libvirt_import": False}
    assert "none" in c.suite[BRIDGE].events("libvirt_unreachable")[0]["error"]


# ---- QEMU ----


def test_images_become_volumes_and_the_guest_starts(on_qemu, libvirtd, export):
    c, e = on_qemu(), export(name=ODD_NAME.replace("/", "_"), disks=3)
    domain = c.imported(c.submit_import(manifest_path=str(e.manifest_path),
                                        libvirt={"start": True, "autostart": True}))
    assert (domain["name"], domain["state"], domain["type"]) == (ODD_NAME, "running", "qemu")
    assert domain["autostart"] is True and domain["in_place"] is False
    text = libvirtd.domains()[ODD_NAME]
    xml = ET.fromstring(text)
    files = [d.find("source").get("file") for d in xml.findall("devices/disk")]
    assert [v["path"] for v in domain["volumes"]] == files
    assert sorted(os.path.basename(f) for f in files) == libvirtd.volumes()
    assert xml.find("devices/interface/mac").get("address") == "00:50:56:aa:bb:01"
    origin = xml.find("metadata/{urn:hypersdk:import}import")
    assert origin.get("vm-name") == ODD_NAME and origin.get("export") == str(e.directory)
    assert e.state() == e.before, "the export was written to"
    libvirtd.connect().lookupByName(ODD_NAME).destroy()
    for raw, file in zip(e.raws, files):
        images.compare(raw, file, "qcow2")


def test_what_libvirt_refuses_to_start_leaves_nothing_behind(on_qemu, libvirtd, export):
    c, e = on_qemu(), export(disks=2)
    job = c.submit_import(manifest_path=str(e.manifest_path), memory_mb=64 * 1024 * 1024 - 1,
                          libvirt={"start": True})
    code, text = c.failure(job)
    assert code == "internal" and "starting domain" in text, text
    assert libvirtd.domains() == {} and libvirtd.volumes() == []
    assert e.state() == e.before


def test_what_was_replaced_comes_back_when_the_new_one_does_not_start(on_qemu, libvirtd, export):
    c, e = on_qemu(), export()
    c.imported(c.submit_import(manifest_path=str(e.manifest_path)))
    before, volumes = libvirtd.domains(), libvirtd.volumes()
    code, _ = c.failure(c.submit_import(manifest_path=str(e.manifest_path),
                                        memory_mb=64 * 1024 * 1024 - 1,
                                        libvirt={"if_exists": "replace", "start": True}))
    assert code == "internal"
    assert libvirtd.domains() == before and libvirtd.volumes() == volumes


def test_a_missing_pool_is_a_clear_failure(on_qemu, libvirtd, export):
    c, e = on_qemu(), export()
    job = c.submit_import(manifest_path=str(e.manifest_path), libvirt={"pool": "none"})
    code, text = c.failure(job)
    assert code == "not_found" and "storage pool 'none'" in text
    assert c.job(job)["phase"] == "importing", "it failed before the first renewal"
    assert libvirtd.domains() == {}


# ---- kills ----


def volume_state(libvirtd):
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in libvirtd.pool.iterdir()}


def test_a_kill_while_an_image_is_sent_sends_it_anew(on_qemu, libvirtd, export):
    c, e = on_qemu(), export(disks=2)
    job = f"job-{'a' * 12}"
    with c.held("task_records", "NEW.key = 'import.volume.1' AND NEW.value LIKE '%true%'") as held:
        c.submit_import(job=job, manifest_path=str(e.manifest_path))
        held.reached()
        before = volume_state(libvirtd)
        c.suite[BRIDGE].kill()
        held.refuse()
    c.expire(job)
    c.suite[BRIDGE].start()
    domain = c.imported(job)
    after = volume_state(libvirtd)
    assert len(before) == 2 and set(before) == set(after)
    first, second = sorted(before)
    assert after[first] == before[first], "a complete image was sent again"
    assert after[second] != before[second]
    for raw, file in zip(e.raws, [d["file"] for d in domain["disks"]]):
        images.compare(raw, file, "qcow2")
    assert list(libvirtd.domains()) == ["web-03"]


def test_a_kill_before_and_after_the_define_makes_one_domain(on_qemu, libvirtd, export):
    c, e = on_qemu(), export()
    job = f"job-{'b' * 12}"
    with c.held("task_records", "NEW.key = 'import.domain'") as held:
        c.submit_import(job=job, manifest_path=str(e.manifest_path), libvirt={"start": True})
        held.reached()
        volumes = volume_state(libvirtd)
        assert libvirtd.domains() == {}
        c.suite[BRIDGE].kill()
        held.refuse()
    c.expire(job)
    with c.held("tasks", "NEW.kind = 'import' AND NEW.state = 'done'") as held:
        c.suite[BRIDGE].start()
        held.reached()
        running = libvirtd.connect().lookupByName("web-03").ID()
        c.suite[BRIDGE].kill()
        held.refuse()
    c.expire(job)
    c.suite[BRIDGE].start()
    domain = c.imported(job)
    assert domain["id"] == running, "the guest was started anew"
    assert list(libvirtd.domains()) == ["web-03"]
    assert set(volume_state(libvirtd)) == set(volumes)
    assert [v["path"] for v in domain["volumes"]] == [d["file"] for d in domain["disks"]]


def test_a_cancel_in_the_middle_takes_everything_back(on_qemu, libvirtd, export):
    c, e = on_qemu(timeout="240s"), export(disks=2)
    job = f"job-{'c' * 12}"
    with c.held("task_records", "NEW.key = 'import.domain'") as held:
        c.submit_import(job=job, manifest_path=str(e.manifest_path), libvirt={"start": True})
        held.reached()
        assert len(libvirtd.volumes()) == 2
        libvirtd.process.pause()  # the bridge waits in the define
    c.cancel(job)
    for _ in range(2):  # the answer to the first renewal tells the bridge
        lease = c.task(job)["lease_until"]
        wait_for(lambda: c.task(job)["lease_until"] > lease, what=c.suite.tails)
    libvirtd.process.resume()
    c.wait(job, "cancelled")
    assert libvirtd.volumes() == [] and libvirtd.domains() == {}
    assert any("is defined" in x for x in c.lines(job)), "it was to be taken back"


def test_a_libvirtd_that_dies_in_the_middle_is_waited_for(on_qemu, libvirtd, export):
    c, e = on_qemu(), export()
    job = f"job-{'d' * 12}"
    with c.held("task_records", "NEW.key = 'import.domain'") as held:
        c.submit_import(job=job, max_attempts=100, manifest_path=str(e.manifest_path))
        held.reached()
        volumes = volume_state(libvirtd)
        libvirtd.process.kill()
    wait_for(lambda: c.job(job)["attempt"] > 0, what=c.suite.tails)
    libvirtd.start()
    c.imported(job)
    assert volume_state(libvirtd) == volumes and list(libvirtd.domains()) == ["web-03"]


def test_a_libvirtd_that_hangs_holds_no_slot_and_leaves_nothing(on_qemu, libvirtd, export):
    """What it was told before it was given up is taken back when it comes to itself."""
    c, e = on_qemu(timeout="2s"), export()  # what needs longer on a busy machine is tried again
    job = f"job-{'e' * 12}"
    with c.held("task_records", "NEW.key = 'import.domain'") as held:
        c.submit_import(job=job, manifest_path=str(e.manifest_path), max_attempts=100)
        held.reached()
        c.suite.sql("UPDATE jobs SET max_attempts = 1 WHERE id = %s", job)
        assert len(libvirtd.volumes()) == 1
        libvirtd.process.pause()
    code, text = c.failure(job)
    assert code in ("unavailable", "timeout"), text
    code, text = c.failure(c.submit_import(manifest_path=str(e.manifest_path)))
    assert code in ("unavailable", "timeout"), text
    libvirtd.process.resume()
    wait_for(lambda: [r["state"] for r in c.release(job)] == ["done"], 120,
             lambda: f"{c.release(job)}\n{c.suite.tails()}")
    assert libvirtd.volumes() == [] and libvirtd.domains() == {}
    last = c.submit_import(manifest_path=str(e.manifest_path), max_attempts=100)
    assert c.imported(last)["name"] == "web-03"


def test_what_libvirt_says_is_told(on_qemu, export):
    c, e = on_qemu(), export()
    code, text = c.failure(c.submit_import(manifest_path=str(e.manifest_path),
                                           libvirt={"start": True, "network": "gone"}))
    assert code == "not_found" and "starting domain 'web-03': " in text and "'gone'" in text, text


def test_a_job_that_died_with_its_bridge_is_swept(on_qemu, libvirtd, export):
    c, e = on_qemu(), export()
    job = f"job-{'f' * 12}"
    with c.held("tasks", "NEW.kind = 'import' AND NEW.state = 'done'") as held:
        c.submit_import(job=job, manifest_path=str(e.manifest_path))
        held.reached()
        assert list(libvirtd.domains()) == ["web-03"]
        c.suite[BRIDGE].when_killed = None  # its lease lives on until the cancel has come
        c.suite[BRIDGE].kill()
        held.refuse()
    c.cancel(job)
    c.expire(job)
    c.suite[BRIDGE].start()
    c.wait(job, "cancelled")
    wait_for(lambda: [r["state"] for r in c.release(job)] == ["done"], what=c.suite.tails)
    assert libvirtd.volumes() == [] and libvirtd.domains() == {}

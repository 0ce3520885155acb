"""The optional virt-v2v step of the built-in path: real bridge, virt-v2v-in-place is scripted, and
real in tests/e2e/test_virt_v2v.py."""
import os
import pathlib
import xml.etree.ElementTree as ET

import pytest

from tests.harness import images
from tests.harness.bridge import BRIDGE, Conversions, Export, Program, alive, start_bridges


@pytest.fixture
def export(tmp_path):
    (tmp_path / "suite" / "exports").mkdir(parents=True)
    return lambda **options: Export(tmp_path / "suite" / "exports", **options)


@pytest.fixture
def v2v(tmp_path):
    return Program(tmp_path / "v2v", "success", "virt-v2v-in-place")


@pytest.fixture
def bridge(make_suite, v2v):
    def make(virt_v2v=None, **settings):
        settings = {"path": "/nonexistent/hyper2kvm", "virt_v2v": virt_v2v or str(v2v.path),
                    **settings}
        return start_bridges(make_suite, Conversions, hyper2kvm=settings)

    return make


def buses(result):
    domain = ET.parse(result["domain_xml"])
    return [d.find("target").get("bus") for d in domain.findall("devices/disk")]


def mended(c, e, result):
    assert result["path_used"] == "virt-v2v"
    images.compare(e.fixed(0, 0x66), result["output_files"][0], "qcow2")
    images.compare(e.raws[1], result["output_files"][1], "qcow2")
    assert e.state() == e.before, "the export was written to"
    assert c.staged() == []


def test_virt_v2v_mends_work_copies_and_the_guest_gets_virtio(bridge, export, v2v):
    c, e = bridge(), export(disks=2)
    job = c.submit(e)
    result = c.conversion(job)
    mended(c, e, result)
    assert result["guest_fixed"] is True and result["not_done"] == []
    assert buses(result) == ["virtio", "virtio"]
    assert result["output_files"] == [str(c.images / "web-03" / f"web-03-disk{i}.qcow2")
                                      for i in (1, 2)]
    call, = v2v.calls()
    given = ET.fromstring(call["xml"])
    assert all(".hypersdk-stage" in d.find("source").get("file") and
               d.find("driver").get("type") == "qcow2" for d in given.findall("devices/disk"))
    assert given.find("devices/interface/mac").get("address") == "00:50:56:aa:bb:01"
    assert call["env"]["LIBGUESTFS_BACKEND"] == "direct"
    assert call["env"]["VIRT_V2V_TMPDIR"].startswith(str(c.images))
    assert any("virt-v2v: [   0.0] Setting up the source" in x for x in c.lines(job))


def test_it_is_found_on_path(bridge, export, v2v, monkeypatch):
    monkeypatch.setenv("PATH", f"{v2v.directory}{os.pathsep}{os.environ['PATH']}")
    c, e = bridge("auto"), export(disks=2)
    mended(c, e, c.conversion(c.submit(e)))


def test_a_guest_without_virtio_drivers_keeps_its_devices(bridge, export, v2v):
    v2v.set("no_virtio")
    c, e = bridge(), export(disks=2)
    result = c.conversion(c.submit(e))
    mended(c, e, result)
    assert result["guest_fixed"] is False and buses(result) == ["scsi", "scsi"]
    assert any("no virtio drivers" in x for x in result["not_done"])


@pytest.mark.parametrize("mode, words", [("unknown", "could not detect the source guest"),
                                         ("signal", "ended by signal 9"),
                                         ("old", "does not know libvirtxml")])
def test_where_it_gives_up_the_guest_stays_as_it_was(bridge, export, v2v, mode, words):
    v2v.set(mode)
    c, e = bridge(), export()
    result = c.conversion(c.submit(e))
    assert result["path_used"] == "builtin" and result["guest_fixed"] is False
    assert any(words in x for x in result["warnings"])
    assert result["output_files"] == [str(e.images[0])]
    assert any("guest not changed" in x for x in result["not_done"])
    assert e.state() == e.before and c.staged() == [] and c.published() == []


@pytest.mark.parametrize("how", ["never", "stage", "fail"])
def test_it_is_not_called_when_nobody_wants_it(bridge, export, v2v, how):
    """Switched off, no fix wanted, or hyper2kvm only."""
    c = bridge("never" if how == "never" else None,
               fallback="fail" if how == "fail" else "builtin")
    e = export()
    job = c.submit(e, **({"stages": {"fix": False}} if how == "stage" else {}))
    if how == "fail":
        assert c.failure(job)[0] == "not_found"
    else:
        assert c.conversion(job)["path_used"] == "builtin"
    assert v2v.calls() == []


def test_an_absent_virt_v2v_that_was_named_is_told(bridge, export):
    c, e = bridge("/nonexistent/virt-v2v-in-place"), export()
    result = c.conversion(c.submit(e))
    assert result["path_used"] == "builtin"
    assert any("/nonexistent/virt-v2v-in-place" in x for x in result["warnings"])


def test_cancel_ends_it_with_its_children(bridge, export, v2v):
    v2v.set("hang")
    c, e = bridge(), export()
    job = c.submit(e)
    pids = v2v.wait_pids()
    c.cancel(job)
    c.wait(job, "cancelled")
    assert not any(alive(pid) for pid in pids)
    assert c.published() == [] and c.staged() == [] and e.state() == e.before


def test_kill_of_the_bridge_leaves_no_virt_v2v_behind(bridge, export, v2v):
    v2v.set("hang")
    c, e = bridge(), export(disks=2)
    job = c.submit(e)
    pids = v2v.wait_pids()
    c.suite[BRIDGE].kill()
    v2v.set("success")
    c.expire(job)
    c.suite[BRIDGE].start()
    mended(c, e, c.conversion(job))
    assert not any(alive(pid) for pid in pids)
    assert len(v2v.calls()) == 2
    assert pathlib.Path(c.images / "web-03" / "web-03.xml").exists()

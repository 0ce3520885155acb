"""Conversions of what is no export of ours: OVF, OVA and single images, by hyper2kvm-bridge."""
import os
import pathlib
import shutil
import subprocess
import tarfile
import xml.etree.ElementTree as ET

import pytest

from tests.harness import images
from tests.harness.bridge import BRIDGE, Conversions, Export, Program, start_bridges
from tests.harness.vsphere import make_image
from tests.harness.wait import wait_for

MB = 1 << 20
MACHINE = {"vm_name": "mail", "memory_mb": 512, "vcpus": 3}

OVF = """<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
 <References>{files}</References>
 <DiskSection><Info>disks</Info>{disks}</DiskSection>
 <NetworkSection><Info>nets</Info><Network ovf:name="Büro &amp; co"/></NetworkSection>
 <VirtualSystem ovf:id="shop"><Info>a machine</Info><Name>shop &amp; co</Name>
  <OperatingSystemSection ovf:id="112" vmw:osType="windows9Server64Guest"
   xmlns:vmw="http://www.vmware.com/schema/ovf"><Info>guest</Info>
   <Description>Microsoft Windows Server 2016</Description></OperatingSystemSection>
  <VirtualHardwareSection><Info>hardware</Info>
   <Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ElementName>cpu</rasd:ElementName>
    <rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
   <Item><rasd:InstanceID>2</rasd:InstanceID><rasd:ElementName>memory</rasd:ElementName>
    <rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits>
    <rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>768</rasd:VirtualQuantity></Item>
   <Item><rasd:InstanceID>3</rasd:InstanceID><rasd:ElementName>scsi</rasd:ElementName>
    <rasd:ResourceSubType>lsilogicsas</rasd:ResourceSubType>
    <rasd:ResourceType>6</rasd:ResourceType></Item>
   <Item><rasd:Address>00-50-56-AA-BB-07</rasd:Address><rasd:Connection>Büro &amp; co</rasd:Connection>
    <rasd:InstanceID>4</rasd:InstanceID><rasd:ElementName>card 1</rasd:ElementName>
    <rasd:ResourceSubType>VmxNet3</rasd:ResourceSubType><rasd:ResourceType>10</rasd:ResourceType></Item>
   <Item><rasd:Address>7</rasd:Address><rasd:InstanceID>5</rasd:InstanceID>
    <rasd:ElementName>card 2</rasd:ElementName>
    <rasd:ResourceSubType>PCNet32</rasd:ResourceSubType><rasd:ResourceType>10</rasd:ResourceType></Item>{items}
  </VirtualHardwareSection></VirtualSystem></Envelope>"""


@pytest.fixture
def bridge(make_suite):
    def make(**settings):
        settings.setdefault("path", "/nonexistent/hyper2kvm")
        return start_bridges(make_suite, Conversions, hyper2kvm=settings)

    return make


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "suite" / "exports"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def raws(tmp_path):
    return [make_image(tmp_path / f"{i}.raw", 12 * MB, [(0, 70000), (7 * MB + 512, MB)], seed=i)
            for i in range(2)]


def convert(source, target, target_format, *options):
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", target_format, *options, source, target],
                   check=True)
    return target


def write_ovf(directory, raws):
    """shop.ovf with streamOptimized disks beside it."""
    disks = [convert(raw, directory / f"shop-{i}.vmdk", "vmdk", "-o", "subformat=streamOptimized")
             for i, raw in enumerate(raws)]
    text = OVF.format(
        files="".join(f'<File ovf:id="f{i}" ovf:href="{d.name}" ovf:size="{d.stat().st_size}"/>'
                      for i, d in enumerate(disks)),
        disks="".join(f'<Disk ovf:diskId="d{i}" ovf:fileRef="f{i}" ovf:capacity="{12 * MB}"'
                      ' ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>'
                      for i in range(len(disks))),
        items="".join(f"<Item><rasd:AddressOnParent>{i}</rasd:AddressOnParent>"
                      f"<rasd:ElementName>disk {i}</rasd:ElementName>"
                      f"<rasd:HostResource>ovf:/disk/d{i}</rasd:HostResource>"
                      f"<rasd:InstanceID>{10 + i}</rasd:InstanceID><rasd:Parent>3</rasd:Parent>"
                      "<rasd:ResourceType>17</rasd:ResourceType></Item>" for i in range(len(disks))))
    path = directory / "shop.ovf"
    path.write_text(text)
    return path, disks


def state(directory):
    return {p.name: (p.stat().st_mtime_ns, images.sha256(p)) for p in directory.iterdir()}


@pytest.mark.parametrize("package", ["ovf", "ova"])
def test_an_ovf_of_strangers_becomes_images_and_a_domain(bridge, base, raws, package):
    c = bridge()
    path, disks = write_ovf(base, raws)
    if package == "ova":
        ova = base / "shop.ova"
        with tarfile.open(ova, "w", format=tarfile.USTAR_FORMAT) as tar:
            for member in [path, *disks]:
                tar.add(member, member.name)
                member.unlink()
        path = ova
    before = state(base)
    result = c.conversion(c.submit_source(path))
    assert result["path_used"] == "builtin"
    assert [pathlib.Path(f).name for f in result["output_files"]] == [
        "shop & co-disk1.qcow2", "shop & co-disk2.qcow2"]
    for raw, made in zip(raws, result["output_files"]):
        images.check(made, "qcow2")
        images.compare(raw, made, "qcow2")
    domain = pathlib.Path(result["domain_xml"]).read_text()
    assert "shop &amp; co" in domain and "<memory unit='KiB'>786432<" in domain
    devices = ET.fromstring(domain).find("devices")
    assert [d.find("target").get("bus") for d in devices.findall("disk")] == ["scsi", "scsi"]
    assert devices.find("controller[@type='scsi']").get("model") == "lsisas1068"
    cards = devices.findall("interface")
    assert [c.find("model").get("type") for c in cards] == ["vmxnet3", "e1000"]
    assert cards[0].find("mac").get("address") == "00:50:56:aa:bb:07"
    assert cards[1].find("mac") is None, "what is no address is not taken for one"
    assert "<clock offset='localtime'>" in domain, "a Windows guest"
    assert any("Büro & co" in w and "not mapped" in w for w in result["warnings"])
    assert state(base) == before and c.staged() == []


@pytest.mark.parametrize("form,options", [
    ("vmdk", ["-o", "subformat=streamOptimized"]), ("vmdk", ["-o", "subformat=monolithicFlat"]),
    ("vmdk", ["-o", "subformat=monolithicSparse"]), ("qcow2", []), ("raw", [])])
def test_one_image_becomes_a_machine(bridge, base, raws, form, options):
    c = bridge()
    source = convert(raws[0], base / f"disk.{form}", form, *options)
    job = c.submit_source(source, machine=MACHINE)
    result = c.conversion(job)
    assert result["output_files"] == [str(c.images / "mail" / "mail-disk1.qcow2")]
    images.compare(raws[0], result["output_files"][0], "qcow2")
    domain = pathlib.Path(result["domain_xml"]).read_text()
    assert "'KiB'>524288<" in domain and ">3</vcpu>" in domain


def test_compressed_images_are_smaller(bridge, base, tmp_path):
    c = bridge()
    source = base / "text.raw"
    source.write_bytes(b"all work and no play " * 200000)
    source.write_bytes(source.read_bytes()[:4 * MB // 2])
    plain = c.conversion(c.submit_source(source, machine={**MACHINE, "vm_name": "a"}))["output_files"][0]
    small = c.conversion(c.submit_source(source, machine={**MACHINE, "vm_name": "b"}, compression="zstd"))
    small = small["output_files"][0]
    images.compare(source, small, "qcow2")
    assert pathlib.Path(small).stat().st_size < pathlib.Path(plain).stat().st_size / 4


def test_hyper2kvm_works_on_overlays_of_foreign_images(bridge, base, raws, tmp_path):
    program = Program(tmp_path / "h2k")
    c = bridge(path=str(program.path))
    path, disks = write_ovf(base, raws)
    before = state(base)
    result = c.conversion(c.submit_source(path))
    assert result["path_used"] == "direct"
    assert len(result["output_files"]) == 2
    assert state(base) == before and c.staged() == []
    # the program changes the first bytes and leaves the rest
    images.check(result["output_files"][0], "qcow2")
    made = tmp_path / "made.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", result["output_files"][0], made], check=True)
    assert made.read_bytes()[MB:] == raws[0].read_bytes()[MB:]


def test_a_name_for_the_result_must_be_free(bridge, base, raws):
    c = bridge()
    source = convert(raws[0], base / "disk.qcow2", "qcow2")
    machine = {**MACHINE, "output_name": "here"}
    result = c.conversion(c.submit_source(source, machine=machine))
    assert result["output_files"] == [str(c.images / "here" / "mail-disk1.qcow2")]
    code, text = c.failure(c.submit_source(source, machine=machine))
    assert code == "conflict" and "here" in text and c.staged() == []


def test_what_cannot_be_read_is_refused_with_a_reason(bridge, base, raws, tmp_path):
    c = bridge()
    vhdx = convert(raws[0], base / "disk.vhdx", "vhdx")
    code, text = c.failure(c.submit_source(vhdx))
    assert code == "not_available" and "disk.vhdx" in text
    code, text = c.failure(c.submit_source(base / "none.ovf"))
    assert code == "not_found" and "none.ovf" in text
    shutil.copy(raws[0], tmp_path / "outside.raw")
    assert c.failure(c.submit_source(tmp_path / "outside.raw"))[0] == "denied"
    path, disks = write_ovf(base, raws)
    disks[1].unlink()
    code, text = c.failure(c.submit_source(path))
    assert code == "not_found" and disks[1].name in text
    code, text = c.failure(c.submit_source(convert(raws[0], base / "one.qcow2", "qcow2")))
    assert code == "invalid" and "memory_mb" in text
    path.write_text("<Envelope/>")
    assert c.failure(c.submit_source(path))[0] in ("corrupt", "invalid")
    assert c.published() == [] and c.staged() == []


def test_a_cut_image_is_no_conversion(bridge, base, raws):
    c = bridge()
    source = convert(raws[0], base / "disk.vmdk", "vmdk", "-o", "subformat=streamOptimized")
    with open(source, "r+b") as file:
        file.truncate(source.stat().st_size // 2)
    code, text = c.failure(c.submit_source(source, machine=MACHINE))
    assert code == "corrupt" and text.count("disk.vmdk") == 1
    assert c.published() == [] and c.staged() == []


def test_a_manifest_that_was_sent_in(bridge, base):
    c = bridge()
    e = Export(base, disks=2)
    result = c.conversion(c.submit_source(e.manifest))
    # an export's images stay its own
    assert result["output_files"] == [str(c.images / "web-03" / f"web-03-disk{i}.qcow2")
                                      for i in (1, 2)]
    for raw, made in zip(e.raws, result["output_files"]):
        images.compare(raw, made, "qcow2")
    assert e.state() == e.before


def slow_qemu_img(tmp_path):
    """A directory with one that converts a megabyte per second, so that there is a middle."""
    directory = tmp_path / "slow"
    directory.mkdir()
    program = directory / "qemu-img"
    program.write_text(f'#!/bin/sh\n[ "$1" = convert ] || exec {shutil.which("qemu-img")} "$@"\n'
                       f'shift\nexec {shutil.which("qemu-img")} convert -r 1M "$@"\n')
    program.chmod(0o755)
    return directory


@pytest.mark.parametrize("signal", ["kill", "term"])
def test_a_bridge_that_ends_in_the_middle_loses_nothing(bridge, base, tmp_path, signal, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{slow_qemu_img(tmp_path)}{os.pathsep}{os.environ['PATH']}")
        c = bridge()
    raw = make_image(tmp_path / "big.raw", 70 * MB, [(i * 7 * MB, 6 * MB) for i in range(10)])
    source = base / "big.raw"
    raw.rename(source)
    job = c.submit_source(source, max_attempts=3, machine=MACHINE)

    def written():
        files = list((c.images / ".hypersdk-stage").glob("*/out/*.qcow2"))
        return files and files[0].stat().st_blocks * 512 > 2 * MB

    wait_for(written, what="the conversion writes")
    process = c.suite[BRIDGE]
    if signal == "kill":
        process.kill()
        c.expire(job)
    else:
        process.stop()
    assert c.published() == []
    process.start()
    result = c.conversion(job)
    images.check(result["output_files"][0], "qcow2")
    images.compare(source, result["output_files"][0], "qcow2")
    assert c.staged() == []


def test_what_does_not_fit_is_refused_before_the_first_byte(bridge, base):
    """An image that says that all of it holds data, and takes hardly any space itself."""
    c = bridge()
    size = shutil.disk_usage(base).free + (64 << 30)
    source = base / "big.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", source,
                    str(size // MB * MB)], check=True)
    code, text = c.failure(c.submit_source(source, machine=MACHINE))
    assert code == "limit" and "not enough space" in text and "GiB free" in text
    assert c.published() == [] and c.staged() == []

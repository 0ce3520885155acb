"""A guest that boots goes through the whole suite, and boots again from what came out."""
import os
import pathlib

import pytest

from tests.harness import guest, images
from tests.harness.vsphere import make_image, vm

MB = 1 << 20
EVERYTHING = os.environ.get("HSDK_BOOTS") == "all"  # make test-full


def cases():
    """firmware, disks, name"""
    yield "bios", 1, "demo-guest"
    if EVERYTHING:
        yield "uefi", 1, "demo-guest"
        yield "bios", 3, "drei Plätze"
        yield "uefi", 3, "a 'b' & <c> \"d\""


@pytest.mark.parametrize("firmware,disks,name", cases())
def test_what_was_exported_boots(make_suite, make_vsphere, tmp_path, firmware, disks, name):
    if firmware == "uefi" and not (guest.OVMF / "OVMF_CODE_4M.fd").exists():
        pytest.skip("the package ovmf is not installed")
    sources = [guest.build()]
    for i in range(1, disks):
        sources.append(make_image(tmp_path / f"data{i}.raw", 16 * MB, [(3 * MB, MB)], seed=i))
    sim = make_vsphere([vm(name, *sources, firmware=guest.VSPHERE[firmware])])
    suite = make_suite()
    suite.add_vsphere(sim)
    job = suite.client.submit(vm_path=name, hyper2kvm_integration={"enabled": True})
    result = suite.wait_job(job, "completed", deadline=180)["result"]
    made = [pathlib.Path(p) for p in result["conversion"]["output_files"] if p.endswith(".qcow2")]
    assert len(made) == disks
    for source, image in zip(sources, made):
        images.compare(source, image, "qcow2")
    text = guest.boot(made, tmp_path / "console.log", firmware)
    assert guest.firmware(text) == firmware

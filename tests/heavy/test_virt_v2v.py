"""A real virt-v2v: it reads our OVA, and mends a real Debian on the built-in path. Minutes without
KVM, so it belongs to `make test-full`."""
import pathlib
import shutil
import subprocess
import xml.etree.ElementTree as ET

import pytest

from tests.harness import debian_guest, guest, images
from tests.harness.vsphere import make_image, vm

MB = 1 << 20
MEND_SECONDS = 1500  # 4 minutes on two cores without KVM
missing = [p for p in ("virt-v2v", "virt-v2v-in-place", "nbdkit") if shutil.which(p) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_virt_v2v_reads_our_ova(make_suite, make_vsphere, tmp_path, firmware):
    """What it says about the source before it would convert it."""
    data = make_image(tmp_path / "data.raw", 16 * MB, [(3 * MB, MB)])
    sim = make_vsphere([vm("web 'ü' <1>", guest.build(), data, firmware=guest.VSPHERE[firmware],
                           cpus=2, memory=512)])
    suite = make_suite()
    suite.add_vsphere(sim)
    result = suite.wait_job(suite.client.submit(vm_path="web 'ü' <1>", format="ova"),
                            "completed", deadline=180)["result"]
    ova, = pathlib.Path(result["output_path"]).glob("*.ova")
    done = subprocess.run(["virt-v2v", "-i", "ova", "--print-source", ova], capture_output=True,
                          text=True, timeout=120, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8",
                                                       "LIBGUESTFS_BACKEND": "direct"})
    assert done.returncode == 0, done.stdout + done.stderr
    text = " ".join(done.stdout.split())
    assert "source name: web 'ü' <1>" in text
    assert "memory: 536870912 (bytes)" in text and "nr vCPUs: 2" in text
    assert text.count("[scsi]") == 2, text
    assert ("uefi" in text) == (firmware == "uefi"), text


def test_virt_v2v_mends_a_debian(make_suite, make_vsphere, tmp_path, monkeypatch):
    # a /dev/kvm that can be opened proves nothing: inside of another machine it may hang
    monkeypatch.setenv("LIBGUESTFS_BACKEND_SETTINGS", "force_tcg")
    absent = debian_guest.missing()
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)}")
    disk = debian_guest.build()
    suite = make_suite(config={"hyper2kvm": {"virt_v2v": "auto",
                                             "path": "/nonexistent/hyper2kvm"}})
    suite.add_vsphere(make_vsphere([vm("debian", disk, memory=512)]))
    job = suite.client.submit(vm_path="debian", hyper2kvm_integration={"enabled": True})
    result = suite.wait_job(job, "completed", deadline=MEND_SECONDS)["result"]
    conversion = result["conversion"]
    assert conversion["path_used"] == "virt-v2v", conversion["warnings"]
    assert conversion["guest_fixed"] is True
    image, = conversion["output_files"]
    images.check(image, "qcow2")
    buses = [d.find("target").get("bus")
             for d in ET.parse(conversion["domain_xml"]).findall("devices/disk")]
    assert buses == ["virtio"]
    export, = pathlib.Path(result["output_path"]).glob("*.qcow2")
    images.compare(disk, export, "qcow2")  # the export is as it was
    before = debian_guest.look(export, "qcow2", tmp_path, "ls -l /usr/lib")
    after = debian_guest.look(image, "qcow2", tmp_path, "ls -l /usr/lib")
    assert "virt-sysprep" not in before and "virt-sysprep" in after

"""examples/hyper2kvm-demo.sh walks the whole integration."""
import re
import subprocess

import pytest

from tests.harness import images
from tests.harness.process import ROOT
from tests.harness.vsphere import make_image, vm

MB = 1 << 20


@pytest.fixture
def disk(tmp_path):
    return make_image(tmp_path / "disk.raw", 8 * MB, [(0, MB), (5 * MB, MB)])


def run(suite, *arguments, **environment):
    return subprocess.run([ROOT / "examples" / "hyper2kvm-demo.sh", "--daemon-url", suite.client.url,
                           *arguments], capture_output=True, text=True, timeout=120,
                          env={"PATH": "/usr/bin:/bin", **environment})


def test_the_demo_ends_in_a_domain(make_suite, make_vsphere, libvirtd, disk):
    suite = make_suite(config={"hyper2kvm": {"path": "/nonexistent/hyper2kvm"},
                               "libvirt": {"uri": libvirtd.uri, "network": "user",
                                           "domain_type": "qemu"}})
    suite.add_vsphere(make_vsphere([vm("web 'ü'", disk)]))
    done = run(suite, "--vm", "web 'ü'", "--import")
    assert done.returncode == 0, done.stdout + done.stderr
    image = re.search(r"^image +(.*)$", done.stdout, re.M).group(1)
    images.compare(disk, image, "qcow2")
    assert re.search(r"^path used +builtin$", done.stdout, re.M)
    assert "web 'ü'" in libvirtd.domains()
    assert done.stdout.endswith("done\n") and done.stderr == ""


def test_the_demo_says_what_is_wrong(make_suite, make_vsphere, disk):
    suite = make_suite(dev=False)
    done = run(suite)
    assert done.returncode == 1 and "401" in done.stderr
    done = run(suite, HYPERSDK_API_KEY="no such key")
    assert done.returncode == 1 and "no such key" not in done.stdout + done.stderr
    suite.client.url = "http://127.0.0.1:1"
    done = run(suite)
    assert done.returncode == 1 and "no answer from http://127.0.0.1:1" in done.stderr

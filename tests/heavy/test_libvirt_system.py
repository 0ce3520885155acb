"""A libvirtd of the system (qemu:///system), alone in a mount namespace, reached by a remote URI
(qemu+tcp): an import ends in a domain there. Needs root (make test-full)."""
import os
import pathlib
import shutil
import xml.etree.ElementTree as ET

import pytest

from tests.harness import images
from tests.harness.process import Process
from tests.harness.vsphere import make_image, vm
from tests.harness.wait import free_port, wait_for

MB = 1 << 20
missing = [p for p in ("libvirtd", "unshare", "qemu-system-x86_64") if shutil.which(p) is None]
pytestmark = [pytest.mark.skipif(bool(missing), reason=f"not installed: {missing}"),
              pytest.mark.skipif(os.getuid() != 0, reason="only root has a libvirtd of the system")]

# its state and sockets are its own; everything else is as it is
NAMESPACE = """
for dir in /run /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt; do
    mkdir -p $dir && mount -t tmpfs none $dir || exit 1
done
printf 'user = "root"\\ngroup = "root"\\nsecurity_driver = "none"\\nremember_owner = 0\\nstdio_handler = "file"\\n' \\
    > /etc/libvirt/qemu.conf
for file in passwd group; do # the user that QEMU would run as must exist, whoever it runs as
    { grep -v ^libvirt-qemu: /etc/$file; echo libvirt-qemu:x:64055:$(test $file = passwd && echo 64055::/:/bin/false); } \
        > /run/$file && mount --bind /run/$file /etc/$file || exit 1
done
exec libvirtd --listen --config "$1"
"""


@pytest.fixture
def system(tmp_path):
    """(URI, directory of the pool "images")"""
    libvirt = pytest.importorskip("libvirt", reason="python3-libvirt is not installed")
    port = free_port()
    config = tmp_path / "libvirtd.conf"
    config.write_text(f'listen_tls = 0\nlisten_tcp = 1\ntcp_port = "{port}"\n'
                      'listen_addr = "127.0.0.1"\nauth_tcp = "none"\n')
    pool = tmp_path / "pool"
    pool.mkdir()
    process = Process("libvirtd", ["unshare", "--mount", "sh", "-c", NAMESPACE, "sh", config],
                      tmp_path / "libvirtd.log").start()
    uri = f"qemu+tcp://127.0.0.1:{port}/system"
    libvirt.registerErrorHandler(lambda *_: None, None)

    def connect():
        assert process.alive(), process.tail()
        try:
            return libvirt.open(uri)
        except libvirt.libvirtError:
            return None

    try:
        connection = wait_for(connect, 60, process.tail)
        connection.storagePoolDefineXML(f"<pool type='dir'><name>images</name>"
                                        f"<target><path>{pool}</path></target></pool>").create()
        yield uri, pool, connection
        for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            domain.destroy()
    finally:
        process.kill()


def test_an_import_ends_in_a_domain_of_the_system(make_suite, make_vsphere, system, tmp_path):
    uri, pool, connection = system
    disk = make_image(tmp_path / "disk.raw", 16 * MB, [(0, MB), (9 * MB + 512, 2 * MB)])
    suite = make_suite(config={"libvirt": {"uri": uri, "pool": "images", "network": "user",
                                           "domain_type": "qemu"}})
    suite.add_vsphere(make_vsphere([vm("web 'ü' <1>", disk)]))
    job = suite.client.submit(vm_path="web 'ü' <1>", hyper2kvm_integration={"enabled": True},
                              libvirt={"start": True, "autostart": True})
    domain = suite.wait_job(job, "completed")["result"]["libvirt_domain"]
    there = connection.lookupByName("web 'ü' <1>")
    assert domain["uri"] == uri and there.isActive() and there.autostart()
    files = [d.find("source").get("file")
             for d in ET.fromstring(there.XMLDesc()).findall("devices/disk")]
    assert [pathlib.Path(f).parent for f in files] == [pool]
    listed = suite.client.get("/api/v1/libvirt/domains")["domains"]
    assert [d["name"] for d in listed] == ["web 'ü' <1>"]
    there.destroy()
    images.compare(disk, files[0], "qcow2")

"""The real hyper2kvm as a daemon: a queued job, and its known stall, which the bridge cures by
hyper2kvm.restart_command (make test-full; minutes without KVM)."""
import json
import pathlib
import shutil
import subprocess
import threading
import uuid

import pytest

from tests.harness import debian_guest, images
from tests.harness.bridge import Conversions, start_bridges
from tests.harness.process import Process
from tests.harness.wait import wait_for

MIB = 1 << 20
PART_MIB = 64
FILES = {"etc/fstab": "/dev/sda1 / ext4 defaults 0 1\n", "etc/debian_version": "12.5\n",
         "etc/os-release": 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12"\n',
         "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "bin/sh": "", "boot/vmlinuz": ""}
CONVERTS = 300  # seconds; 40 on two idle cores
# After its first minute the daemon blocks at the end of a job (hyper2kvm-contract.md 6.6).
BLOCKS_AFTER = 61
programs = [p for p in ("mkfs.ext4", "sfdisk", "debugfs") if shutil.which(p) is None]
pytestmark = pytest.mark.skipif(bool(programs), reason=f"not installed: {programs}")


class Export:
    """An export by hand of a guest that hyper2kvm recognises; it is small enough for many."""

    def __init__(self, base, name):
        self.name = name
        self.directory = base / name
        root = base.parent / f"{name}-root"
        for file, text in FILES.items():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(text)
        (root / "var" / "lib").mkdir(parents=True)
        self.directory.mkdir(parents=True)
        part, self.raw = base.parent / f"{name}.part", base.parent / f"{name}.raw"
        debian_guest.run("truncate", "-s", f"{PART_MIB}M", part)
        debian_guest.run("mkfs.ext4", "-q", "-F", "-d", root, part)
        debian_guest.run("truncate", "-s", f"{PART_MIB + 2}M", self.raw)
        subprocess.run(["sfdisk", "-q", self.raw], input="2048,,L,*\n", text=True, check=True)
        debian_guest.run("dd", f"if={part}", f"of={self.raw}", "bs=1M", "seek=1", "conv=notrunc",
                         "status=none")
        self.image = self.directory / f"{name}-disk1.qcow2"
        debian_guest.run("qemu-img", "convert", "-O", "qcow2", self.raw, self.image)
        self.manifest_path = self.directory / "artifact-manifest.json"
        self.manifest_path.write_text(json.dumps({
            "manifest_version": "1.0", "source": {"provider": "vsphere", "vm_name": name},
            "vm": {"cpu": 1, "mem_gb": 1, "memory_mb": 512, "firmware": "bios", "os_hint": "linux",
                   "uuid": str(uuid.uuid4())},
            "disks": [{"id": "disk-0", "source_format": "qcow2", "local_path": str(self.image),
                       "bytes": self.image.stat().st_size,
                       "checksum": "sha256:" + images.sha256(self.image),
                       "boot_order_hint": 0, "disk_type": "boot"}]}))
        self.before = images.sha256(self.image)


class RealDaemon:
    """Started anew whenever the file `restart` appears, by SIGKILL: it does not heed SIGTERM."""

    def __init__(self, program, suite):
        self.restart = suite.directory / "restart"
        config = suite.directory / "daemon.yaml"
        config.write_text(json.dumps({
            "command": "daemon", "workflow_mode": True, "workflow_dir": str(suite.directory / "watch"),
            "output_dir": str(suite.directory / "images"), "max_concurrent_jobs": 1,
            "to_output": "disk.qcow2", "out_format": "qcow2", "flatten": True}))
        self.process = Process("hyper2kvm", [program, "--config", config],
                               suite.directory / "hyper2kvm.log",
                               env={"LIBGUESTFS_BACKEND": "direct", "HYPER2KVM_GUESTFS_BACKEND":
                                    "libguestfs", "LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"})
        self.restarts = 0
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def start(self):
        self.process.start()
        self._ready()
        self.thread.start()
        return self

    def _ready(self):
        wait_for(lambda: self.process.output().count("daemon ready") > self.restarts, 60,
                 self.process.tail)

    def _watch(self):
        while not self.ending.wait(0.2):
            if self.restart.exists():
                self.process.kill()
                self.process.start()
                self.restarts += 1
                self.restart.unlink()

    def stop(self):
        self.ending.set()
        self.thread.join(20)
        self.process.kill()


def test_the_real_daemon_converts_and_its_stall_is_cured(make_suite, tmp_path, real_hyper2kvm):
    restart = tmp_path / "suite" / "restart"
    c = start_bridges(make_suite, Conversions, hyper2kvm={
        "path": "/nonexistent/hyper2kvm", "daemon_enabled": True, "stuck_after": "100s",
        "restart_command": ["touch", str(restart)]})
    exports = [Export(pathlib.Path(c.suite.exports), f"guest-{i}") for i in range(3)]
    daemon = RealDaemon(real_hyper2kvm, c.suite).start()
    since = threading.Event()
    threading.Timer(BLOCKS_AFTER, since.set).start()
    try:
        check(c, exports[0], c.submit(exports[0], daemon=True))
        since.wait()
        check(c, exports[1], c.submit(exports[1], daemon=True))  # it blocks when this is done
        job = c.submit(exports[2], daemon=True)
        check(c, exports[2], job)
        assert daemon.restarts == 1
        assert any("daemon hangs: calling touch" in x for x in c.lines(job))
    finally:
        daemon.stop()


def check(c, export, job):
    result = c.conversion(job, CONVERTS)
    assert result["path_used"] == "queue", (result["warnings"], c.lines(job))
    image, = result["output_files"]
    images.check(image, "qcow2")
    fstab = debian_guest.look(image, "qcow2", c.suite.directory, "cat /etc/fstab")
    assert "ext4" in fstab and "/dev/sda1 " not in fstab, fstab  # hyper2kvm makes names stable
    assert images.sha256(export.image) == export.before
    assert c.staged() == []

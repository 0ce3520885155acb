"""A vSphere simulator with disk images behind its VMs."""
import hashlib
import json
import pathlib
import ssl
import subprocess
import urllib.request

from .process import ROOT, Process
from .wait import GiveUp, free_port, wait_for

PROGRAM = ROOT / "build" / "peers" / "vsphere-sim"


def make_image(path, size, chunks, seed=1):
    """A sparse file of `size` bytes with pseudo-random bytes at `chunks`: [(offset, length)]."""
    with open(path, "wb") as f:
        f.truncate(size)
        for i, (offset, length) in enumerate(chunks):
            f.seek(offset)
            f.write(pseudo_random(length, f"{seed}/{i}"))
    return pathlib.Path(path)


def pseudo_random(length, seed):
    """Reproducible bytes that do not compress."""
    return hashlib.shake_256(str(seed).encode()).digest(length)


def make_certificate(directory, name="vcenter"):
    """(certificate, key) for 127.0.0.1 and localhost; self-signed EC."""
    cert, key = pathlib.Path(directory) / f"{name}.pem", pathlib.Path(directory) / f"{name}.key"
    if not cert.exists():
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                        "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", cert,
                        "-days", "30", "-subj", f"/CN={name}", "-addext",
                        "subjectAltName=IP:127.0.0.1,DNS:localhost"], check=True,
                       capture_output=True)
    return cert, key


def vm(name, *disks, firmware="bios", power="on", folder="", cpus=1, memory=256, tags=()):
    """The -vm argument of one VM; tags: "category:name"."""
    parts = [f"name={name}", f"firmware={firmware}", f"power={power}", f"cpus={cpus}",
             f"memory={memory}"]
    if folder:
        parts.append(f"folder={folder}")
    return ",".join(parts + [f"tag={t}" for t in tags] + [f"disk={d}" for d in disks])


class Vsphere:
    """vms: results of vm(). mode "vpx" (vCenter) or "esx". rate: bytes per second of all disk
    reads together, 0 = unlimited. user/password are the only accepted account."""

    def __init__(self, directory, vms=(), mode="vpx", rate=0, machines=2, name="vcenter",
                 user="user", password="pass"):
        self.directory = pathlib.Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.cert, key = make_certificate(self.directory, name)
        self.user, self.password = user, password
        argv = [PROGRAM, "-mode", mode, "-cert", self.cert, "-key", key, "-rate", rate,
                "-machines", machines, "-user", user, "-password", password]
        for item in vms:
            argv += ["-vm", item]
        self.ready_file = self.directory / f"{name}.ready"
        self.argv = argv
        self.name = name
        self.process = None
        self.url = self.datastore = None

    def start(self):
        assert PROGRAM.exists(), "build it: make peers"
        # the same port again; meanwhile the kernel gives it to nobody
        listen = f"127.0.0.1:{free_port()}" if self.url is None else self.host
        self.process = Process(self.name, self.argv + ["-listen", listen],
                               self.directory / f"{self.name}.log",
                               env={"TMPDIR": str(self.directory)})
        before = len(self.process.output())
        self.process.start()

        def ready():
            if not self.process.alive():
                raise GiveUp(self.process.tail())
            for line in self.process.output()[before:].splitlines():
                if line.startswith("{"):
                    return json.loads(line)
            return None

        facts = wait_for(ready, 60, f"{self.name} ready")
        self.url, self.datastore = facts["url"], pathlib.Path(facts["datastore"])
        return self

    @property
    def host(self):
        """host:port"""
        return self.url.split("/")[2]

    def thumbprint(self):
        """SHA-1 of the certificate as vSphere writes it."""
        der = ssl.PEM_cert_to_DER_cert(self.cert.read_text())
        digest = hashlib.sha1(der).hexdigest().upper()
        return ":".join(digest[i:i + 2] for i in range(0, 40, 2))

    def _open(self, path, method="GET"):
        context = ssl.create_default_context(cafile=str(self.cert))
        request = urllib.request.Request(f"https://{self.host}{path}", method=method)
        with urllib.request.urlopen(request, context=context, timeout=60) as answer:
            return answer.read()

    def set_rate(self, bytes_per_second):
        self._open(f"/_sim/rate?bytes={bytes_per_second}", "POST")

    def hold(self):
        """Transfers stay under way, but none comes to an end until another rate is set."""
        self.set_rate(64 << 10)

    def set_rest_status(self, status):
        """The REST API (tags) answers this; 0: as it should."""
        self._open(f"/_sim/rest?status={status}", "POST")

    def set_guest(self, mode):
        """"deaf": guests are asked to shut down and do not; "notools": they cannot be asked."""
        self._open(f"/_sim/guest?mode={mode}", "POST")

    def set_snapshots(self, mode):
        """"refuse": none can be made; "ok"."""
        self._open(f"/_sim/snapshots?mode={mode}", "POST")

    def stats(self):
        """bytes, requests, ranges served by /folder; running requests."""
        return json.loads(self._open("/_sim/stats"))

    def settings(self, name="vsphere"):
        """Body of POST /api/v1/providers."""
        return {"name": name, "kind": "vsphere", "host": self.host, "username": self.user,
                "password": self.password, "ca_file": str(self.cert)}

    def snapshots(self, vm_name):
        """Names of a VM's snapshots, asked by an independent client (pyvmomi)."""
        return self.look(vm_name, lambda item: [
            s.name for s in _walk(item.snapshot.rootSnapshotList if item.snapshot else [])])

    def power(self, vm_name):
        """"poweredOn" or "poweredOff"."""
        return self.look(vm_name, lambda item: str(item.runtime.powerState))

    def cdroms(self, vm_name):
        """Labels of a VM's CD-ROM drives."""
        from pyVmomi import vim
        return self.look(vm_name, lambda item: [d.deviceInfo.label for d in item.config.hardware.device
                                                if isinstance(d, vim.vm.device.VirtualCdrom)])

    def add_cdrom(self, vm_name, iso):
        """One more drive at an IDE controller (which comes with it), with "[ds] path" in it."""
        from pyVim.task import WaitForTask
        from pyVmomi import vim

        def add(device):
            return vim.vm.device.VirtualDeviceSpec(operation="add", device=device)

        ide = vim.vm.device.VirtualIDEController(key=-1, busNumber=0)
        drive = vim.vm.device.VirtualCdrom(
            key=-2, controllerKey=-1, unitNumber=0,
            backing=vim.vm.device.VirtualCdrom.IsoBackingInfo(fileName=iso))
        spec = vim.vm.ConfigSpec(deviceChange=[add(ide), add(drive)])
        self.look(vm_name, lambda item: WaitForTask(item.ReconfigVM_Task(spec)))

    def look(self, vm_name, what):
        from pyVim.connect import Disconnect, SmartConnect
        from pyVmomi import vim
        context = ssl.create_default_context(cafile=str(self.cert))
        host, port = self.host.split(":")
        session = SmartConnect(host=host, port=int(port), user=self.user, pwd=self.password,
                               sslContext=context)
        try:
            content = session.RetrieveContent()
            view = content.viewManager.CreateContainerView(content.rootFolder,
                                                           [vim.VirtualMachine], True)
            for item in view.view:
                if item.name == vm_name:
                    return what(item)
            raise KeyError(vm_name)
        finally:
            Disconnect(session)

    def stop(self):
        if self.process is not None:
            self.process.stop()


def _walk(nodes):
    for node in nodes:
        yield node
        yield from _walk(node.childSnapshotList)

"""A libvirtd of the test's own, as an unprivileged user, with a storage pool "images"."""
import contextlib
import os
import pathlib
import pwd
import shutil
import tempfile

from .process import Process
from .wait import GiveUp, wait_for

POOL = "images"


class Libvirtd:
    PROGRAMS = ("libvirtd", "setpriv", "qemu-system-x86_64")

    def __init__(self):
        # socket paths are limited to 107 bytes, and the user must get there
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="lv-"))
        for name in ("run", "cfg", "cache", "home", POOL):
            (self.directory / name).mkdir()
        self.directory.chmod(0o755)
        (self.directory / "run").chmod(0o700)
        self.pool = self.directory / POOL
        user = []
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            for path in self.directory.iterdir():
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
            user = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}",
                    "--clear-groups"]
        self.env = {"XDG_RUNTIME_DIR": str(self.directory / "run"),
                    "XDG_CONFIG_HOME": str(self.directory / "cfg"),
                    "XDG_CACHE_HOME": str(self.directory / "cache"),
                    "HOME": str(self.directory / "home")}
        self.socket = self.directory / "run" / "libvirt" / "libvirt-sock"
        self.uri = f"qemu+unix:///session?socket={self.socket}"
        self.process = Process("libvirtd", [*user, "libvirtd"],
                               self.directory / "libvirtd.log", env=self.env, cwd="/")

    def start(self):
        self.process.start()
        wait_for(self.answers, 60, self.process.tail)
        return self

    def answers(self):
        if not self.process.alive():
            raise GiveUp(self.process.tail())
        self.connect().close()
        return True

    def start_with_pool(self):
        self.start()
        c = self.connect()
        pool = c.storagePoolDefineXML(f"<pool type='dir'><name>{POOL}</name>"
                                      f"<target><path>{self.pool}</path></target></pool>")
        pool.setAutostart(1)
        pool.create()
        c.close()
        return self

    def connect(self):
        import libvirt
        libvirt.registerErrorHandler(lambda *_: None, None)
        return libvirt.open(self.uri)

    def domains(self):
        """Name -> XML text."""
        c = self.connect()
        try:
            return {d.name(): d.XMLDesc() for d in c.listAllDomains()}
        finally:
            c.close()

    def volumes(self):
        return sorted(p.name for p in self.pool.iterdir())

    def remove(self):
        """Ends the domains, the daemon, and removes everything."""
        import libvirt
        try:
            if not self.process.alive():
                self.start()
            self.process.resume()
            c = self.connect()
            for domain in c.listAllDomains():
                with contextlib.suppress(libvirt.libvirtError):  # it is off, or just went
                    domain.destroy()
            c.close()
        finally:
            self.process.stop()
            shutil.rmtree(self.directory, ignore_errors=True)

    def boot(self, name, marker, deadline=180):
        """Starts the domain and reads its serial console until the marker; the text."""
        import libvirt
        import threading
        c = self.connect()
        domain = c.lookupByName(name)
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        stream = c.newStream(0)
        domain.openConsole(None, stream, 0)
        text = bytearray()

        def read():
            try:
                while piece := stream.recv(4096):
                    text.extend(piece)
            except libvirt.libvirtError:
                pass  # the guest is off

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        # over a connection of its own: a call beside a stream that is being read can wait for ever
        other = self.connect()
        other.lookupByName(name).resume()
        other.close()
        wait_for(lambda: marker.encode() in text or not reader.is_alive(), deadline,
                 lambda: f"{marker}: {bytes(text[-2000:])}")
        assert marker.encode() in text, bytes(text[-2000:])
        return text.decode(errors="replace")

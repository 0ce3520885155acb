"""A network of its own for one process, which can be cut silently: packets go to a machine that is
not there, nobody is told."""
import os
import socket
import subprocess
import threading


def _ip(*words, check=True):
    return subprocess.run(["ip", *map(str, words)], check=check, capture_output=True, text=True)


def why_not():
    """Why this machine cannot do it; None: it can."""
    try:
        done = _ip("netns", "add", f"hs-probe-{os.getpid()}", check=False)
    except FileNotFoundError:
        return "the program ip is not installed (apt-get install iproute2)"
    if done.returncode != 0:
        return f"no right to make network namespaces: {done.stderr.strip()}"
    _ip("netns", "del", f"hs-probe-{os.getpid()}")
    return None


class Network:
    """Outside: .outside, inside: .inside (addresses); .argv(...) runs a program inside."""

    number = 0

    def __init__(self):
        Network.number += 1
        tag = f"{os.getpid() % 100000}-{Network.number}"
        self.name, self.link, self.peer = f"hs-{tag}", f"hsa{tag}", f"hsb{tag}"
        # 198.18.0.0/15 is for tests of networks; a /30 of it each
        base = (os.getpid() * 4 + Network.number * 4096) % 130000 // 4 * 4
        self.outside, self.inside = (f"198.{18 + base // 65536}.{base // 256 % 256}.{base % 256 + i}"
                                     for i in (1, 2))
        _ip("netns", "add", self.name)
        _ip("link", "add", self.link, "type", "veth", "peer", "name", self.peer, "netns", self.name)
        _ip("addr", "add", f"{self.outside}/30", "dev", self.link)
        _ip("link", "set", self.link, "up")
        self._inside("addr", "add", f"{self.inside}/30", "dev", self.peer)
        self._inside("link", "set", self.peer, "up")
        self._inside("link", "set", "lo", "up")
        self.forwards = []

    def _inside(self, *words):
        _ip("-n", self.name, *words)

    def argv(self, *words):
        return ["ip", "netns", "exec", self.name, *words]

    def cut(self):
        for run, address, device in ((_ip, self.inside, self.link),
                                     (self._inside, self.outside, self.peer)):
            run("neigh", "replace", address, "lladdr", "02:00:00:00:00:01", "dev", device, "nud",
                "permanent")

    def heal(self):
        for run, address, device in ((_ip, self.inside, self.link),
                                     (self._inside, self.outside, self.peer)):
            run("neigh", "del", address, "dev", device)

    def forward(self, port):
        """The port outside that leads from the inside to 127.0.0.1:port."""
        listener = socket.create_server((self.outside, 0))
        self.forwards.append(listener)
        threading.Thread(target=self._accept, args=(listener, port), daemon=True).start()
        return listener.getsockname()[1]

    @staticmethod
    def _accept(listener, port):
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", port))
            except OSError:
                client.close()
                continue
            for a, b in ((client, server), (server, client)):
                threading.Thread(target=Network._copy, args=(a, b), daemon=True).start()

    @staticmethod
    def _copy(source, target):
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def remove(self):
        for listener in self.forwards:
            listener.close()
        _ip("link", "del", self.link, check=False)
        _ip("netns", "del", self.name, check=False)

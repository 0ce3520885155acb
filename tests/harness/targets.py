"""Places that take uploads: OpenStack Swift with its S3 layer (checks signatures), OpenSSH's sshd."""
import json
import os
import pathlib
import shutil
import subprocess
import urllib.request

from .process import Process
from .wait import GiveUp, free_port, wait_for

KEYS = ("catch_errors gatekeeper healthcheck cache listing_formats bulk tempurl s3api tempauth copy "
        "slo dlo versioned_writes symlink proxy-logging proxy-server")

# A busy machine's node that answers late is none that is down; there is no other one.
PATIENT = "conn_timeout = 20\nnode_timeout = 60\n"


def missing(*programs):
    """Those that are not installed, as a text; "" when all are."""
    path = os.environ.get("PATH", "") + ":/usr/sbin"
    return ", ".join(p for p in programs if shutil.which(p, path=path) is None)


class Swift:
    """account, container, object and proxy server of one replica, no checks of other nodes."""

    PROGRAMS = ("swift-proxy-server", "swift-account-server", "swift-container-server",
                "swift-object-server", "memcached")
    ACCESS, SECRET, REGION = "test:tester", "testing", "us-east-1"

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.port, self.cache = free_port(), free_port()
        self.processes = []
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def _files(self):
        d, ports = self.directory, {}
        etc = d / "etc"
        for path in (etc, d / "srv" / "d1", d / "cache"):
            path.mkdir(parents=True)
        (etc / "swift.conf").write_text(
            "[swift-hash]\nswift_hash_path_prefix = p\nswift_hash_path_suffix = s\n"
            "[storage-policy:0]\nname = gold\ndefault = yes\n")
        for kind in ("account", "container", "object"):
            port = free_port()
            (etc / f"{kind}-server.conf").write_text(
                f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\nuser = root\n"
                f"swift_dir = {etc}\ndevices = {d}/srv\nmount_check = false\nworkers = 0\n"
                f"recon_cache_path = {d}/cache\n{PATIENT}container_update_timeout = 60\n"
                f"[pipeline:main]\npipeline = {kind}-server\n"
                f"[app:{kind}-server]\nuse = egg:swift#{kind}\n")
            ports[kind] = port
        self._rings(etc, ports)
        filters = {
            "tempauth": "use = egg:swift#tempauth\nuser_test_tester = testing .admin",
            "s3api": f"use = egg:swift#s3api\nlocation = {self.REGION}\n"
                     "max_upload_part_num = 10000",
            "cache": f"use = egg:swift#memcache\nmemcache_servers = 127.0.0.1:{self.cache}",
            "versioned_writes": "use = egg:swift#versioned_writes\n"
                                "allow_object_versioning = true"}
        for name in ("catch_errors", "gatekeeper", "healthcheck", "listing_formats", "bulk",
                     "tempurl", "copy", "slo", "dlo", "symlink", "proxy-logging"):
            filters[name] = f"use = egg:swift#{name.replace('-', '_')}"
        (etc / "proxy-server.conf").write_text(
            f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {self.port}\nuser = root\n"
            f"swift_dir = {etc}\nworkers = 0\n[pipeline:main]\npipeline = {KEYS}\n"
            "[app:proxy-server]\nuse = egg:swift#proxy\nallow_account_management = true\n"
            f"account_autocreate = true\nerror_suppression_limit = 1000000\n{PATIENT}"
            + "".join(f"[filter:{n}]\n{t}\n" for n, t in filters.items()))

    @staticmethod
    def _rings(etc, ports):
        """As nine calls of swift-ring-builder do it, in one process."""
        code = ("import json, sys; from swift.common.ring import RingBuilder\n"
                "for kind, port in json.loads(sys.argv[1]).items():\n"
                "    ring = RingBuilder(4, 1, 0)\n"
                "    ring.add_dev({'region': 1, 'zone': 1, 'ip': '127.0.0.1', 'port': port,"
                " 'device': 'd1', 'weight': 1})\n"
                "    ring.rebalance()\n"
                "    ring.get_ring().save(kind + '.ring.gz')\n")
        subprocess.run(["/usr/bin/python3", "-c", code, json.dumps(ports)], cwd=etc, check=True,
                       capture_output=True, timeout=120)

    def start(self):
        """Its five ports were free a moment ago; when one is taken meanwhile it tries others."""
        for attempt in range(3):
            try:
                return self._start()
            except GiveUp:
                self.stop()
                if attempt == 2:
                    raise
                shutil.rmtree(self.directory)
                self.__init__(self.directory)

    def _start(self):
        self._files()
        self._run("memcached", ["memcached", "-u", "nobody", "-l", "127.0.0.1", "-p", self.cache,
                                "-U", "0"])
        for kind in ("account", "container", "object", "proxy"):
            self._run(kind, [f"swift-{kind}-server",
                             self.directory / "etc" / f"{kind}-server.conf"])
        wait_for(self._healthy, 120, lambda: "Swift answers\n" + self.tails())
        return self

    def _run(self, name, argv):
        env = {"SWIFT_DIR": str(self.directory / "etc")}
        self.processes.append(
            Process(name, argv, self.directory / f"{name}.log", env=env).start())

    def _healthy(self):
        dead = [p for p in self.processes if not p.alive()]
        if dead:
            raise GiveUp(self.tails())
        return urllib.request.urlopen(self.endpoint + "/healthcheck", timeout=20).status == 200

    def tails(self):
        return "\n".join(p.tail() for p in self.processes)

    def stop(self):
        for process in reversed(self.processes):
            process.kill()

    def client(self):
        """An independent client."""
        import boto3
        from botocore.config import Config
        return boto3.client("s3", endpoint_url=self.endpoint, region_name=self.REGION,
                            aws_access_key_id=self.ACCESS, aws_secret_access_key=self.SECRET,
                            config=Config(s3={"addressing_style": "path"},
                                          signature_version="s3v4"))

    def entry(self, url, **more):
        """An entry of the configuration's `uploads`."""
        return {"url": url, "endpoint": self.endpoint, "access_key_id": self.ACCESS,
                "secret_access_key": self.SECRET, **more}


class Sshd:
    """root logs in with a key; files go below `root`."""

    PROGRAMS = ("sshd", "ssh-keygen")

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.root = self.directory / "files"
        self.port = free_port()
        self.process = None

    def start(self, key_type="ed25519"):
        self.root.mkdir(parents=True)
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", key_type, "-N", "", "-f",
                            self.directory / name], check=True)
        (self.directory / "authorized").write_text((self.directory / "user.pub").read_text())
        host = (self.directory / "host.pub").read_text().split()[:2]
        (self.directory / "known_hosts").write_text(
            f"[127.0.0.1]:{self.port} {' '.join(host)}\n")
        (self.directory / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.directory}/host\n"
            f"PidFile {self.directory}/pid\nAuthorizedKeysFile {self.directory}/authorized\n"
            "StrictModes no\nPasswordAuthentication no\nUsePAM no\n"
            "Subsystem sftp internal-sftp\n")
        pathlib.Path("/run/sshd").mkdir(exist_ok=True)
        self.process = Process("sshd", ["/usr/sbin/sshd", "-D", "-e", "-f",
                                        self.directory / "sshd_config"],
                               self.directory / "sshd.log").start()
        wait_for(lambda: "listening" in self.process.output(), 60, self.process.tail)
        return self

    def stop(self):
        if self.process is not None:
            self.process.kill()

    def url(self, path=""):
        return f"sftp://root@127.0.0.1:{self.port}{self.root}{path}"

    def entry(self, **more):
        return {"url": f"sftp://127.0.0.1:{self.port}{self.root}", "username": "root",
                "key_file": str(self.directory / "user"),
                "known_hosts": str(self.directory / "known_hosts"), **more}

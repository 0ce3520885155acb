"""The whole suite under test: stores, services, client.

    suite = Suite(tmp_path, postgres=shared_cluster)     # or postgres=None: a cluster of its own
    suite.start()                                        # scheduler, gateway, exporter, ...
    suite.add_vsphere(sim)                               # provider "vsphere"
    job = suite.client.submit(vm_path="web", format="qcow2")
    suite.wait_job(job, "completed")
    suite["exporter-vsphere"].kill()
    suite["exporter-vsphere"].start()
    suite.stop()

Everything listens on free ports of 127.0.0.1 or on ipc sockets below the suite's directory.
"""
import contextlib
import json
import pathlib
import secrets
import shutil
import tempfile
import uuid

import psycopg2
import psycopg2.extras

from .client import Client
from .process import BIN, Process
from .stores import Postgres, Redis
from .wait import GiveUp, free_port, wait_for

SERVICES = ["scheduler", "api-gateway", "exporter-vsphere", "hyper2kvm-bridge", "notifier",
            "metrics-exporter"]
ADMIN_KEYS = {"scheduler": "scheduler", "api-gateway": "api_gateway",
              "exporter-vsphere": "exporter", "hyper2kvm-bridge": "hyper2kvm_bridge",
              "notifier": "notifier", "metrics-exporter": "metrics_exporter"}
FINAL = ("completed", "failed", "cancelled")


class Suite:
    """services: which binaries start() starts; those not built yet are left out (`built`).
    bus: "ipc" or "tcp". dev: no login. config: {section: {key: value}} laid over the defaults.
    gateways, exporters: how many processes of each; further ones are named "api-gateway-2" ...
    durable: commits of its own cluster wait for the disk."""

    def __init__(self, directory, postgres=None, redis=None, services=None, bus="ipc", dev=True,
                 config=None, gateways=1, exporters=1, durable=False):
        self.directory = pathlib.Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o755)
        self.own_postgres = postgres is None
        self.own_redis = redis is None
        self.postgres = postgres or Postgres(self.directory / "pg", durable)
        self.redis = redis or Redis(self.directory / "redis")
        self.database = "hypersdk" if self.own_postgres else f"t{uuid.uuid4().hex[:12]}"
        self.wanted = list(SERVICES if services is None else services)
        self.built = [s for s in self.wanted if (BIN / s).exists()]
        self.dev = dev
        self.exports = self.directory / "exports"
        self.processes = {}
        self.ports = {}
        self.overrides = config or {}
        self.counts = {"api-gateway": gateways, "exporter-vsphere": exporters}
        # socket paths are limited to 107 bytes, so not below the test's directory
        self.sockets = pathlib.Path(tempfile.mkdtemp(prefix="hs-"))
        self.bus = bus
        self.bus_addresses = self._bus_addresses()
        self.client = None

    # ---- configuration ----

    def _bus_addresses(self):
        if self.bus == "tcp":
            return [f"tcp://127.0.0.1:{free_port()}" for _ in range(3)]
        return [f"ipc://{self.sockets}/{name}" for name in ("lease", "events", "bus")]

    def port(self, name):
        """The port of a process's REST API or admin server; stays the same over restarts."""
        if name not in self.ports:
            self.ports[name] = free_port()
        return self.ports[name]

    def config(self, process):
        """The settings of one process as a dict; replicas differ in their ports only."""
        service = self.service_of(process)
        lease, events, announce = self.bus_addresses
        admin = {key: "127.0.0.1:0" for key in ADMIN_KEYS.values()}
        admin[ADMIN_KEYS[service]] = f"127.0.0.1:{self.port('admin ' + process)}"
        url = f"postgresql://{{}}127.0.0.1:{self.postgres.port}/{self.database}"
        owner = f"hypersdk_owner:{self.postgres.password('hypersdk_owner')}@"
        settings = {
            "daemon": {"address": f"127.0.0.1:{self.port(process)}", "dev_mode": self.dev,
                       "drain_ms": "5s"},
            "database": {"url": url.format("hypersdk_app@"), "owner_url": url.format(owner),
                         "password": self.postgres.password("hypersdk_app")},
            "redis": {"address": f"127.0.0.1:{self.redis.port}", "password": self.redis.password},
            "bus": {"lease": [lease], "events": [events], "announce": [announce]},
            "admin": admin,
            "secrets": {"key_dir": str(self.directory / "keys")},
            "export": {"base_path": str(self.exports)},
            "hyper2kvm": {"watch_dir": str(self.directory / "watch"),
                          "output_dir": str(self.directory / "images"),
                          "virt_v2v": "never", "poll_interval": "200ms"},
            "webhooks": {"allow_private": True},
            "metrics": {"address": f"127.0.0.1:{self.port('metrics')}"},
            "retry": {"initial_delay": "200ms", "max_delay": "2s"},
            "scheduler": {"poll_interval": "200ms"},
        }
        if service == "api-gateway":
            settings["secrets"]["master_key_file"] = str(self.directory / "master.key")
        for section, values in self.overrides.items():
            if isinstance(values, dict):
                settings.setdefault(section, {}).update(values)
            else:
                settings[section] = values
        return settings

    def write_config(self, process, settings=None):
        """Writes and returns the file of a process. JSON is YAML."""
        path = self.directory / f"{process}.yaml"
        path.write_text(json.dumps(settings or self.config(process), indent=1))
        path.chmod(0o600)
        return path

    # ---- processes ----

    @staticmethod
    def service_of(process):
        head, _, tail = process.rpartition("-")
        return head if tail.isdigit() else process

    def __getitem__(self, process):
        return self.processes[process]

    def add(self, process, settings=None, env=None):
        """Declares and starts one more process: "exporter-vsphere-2"."""
        service = self.service_of(process)
        path = self.write_config(process, settings)
        self.processes[process] = Process(process, [BIN / service, "--config", path],
                                          self.directory / f"{process}.log", env=env)
        if "lease" not in self.overrides.get("scheduler", {}):
            self.processes[process].when_killed = self.end_leases
        return self.processes[process].start()

    def end_leases(self, pid):
        """A lease is as long as for users, so that a busy machine renews it in time. Those of a
        process that was killed are made to have run out, with the margin that the scheduler leaves:
        nobody waits for the clock. A test that sets scheduler.lease means the real end."""
        with contextlib.suppress(psycopg2.OperationalError):  # its database may be down
            self.sql("UPDATE tasks SET lease_until = now() - interval '6 s' WHERE state IN"
                     " ('leased', 'finishing') AND worker LIKE %s", f"%-{pid}-%")

    def prepare(self):
        """Stores, keys, directories; no service yet."""
        for name in ("exports", "watch", "images", "keys"):
            (self.directory / name).mkdir(exist_ok=True)
        if self.postgres.port is None:
            self.postgres.start()
        if self.redis.port is None:
            self.redis.start()
        if not self.own_postgres:
            self.postgres.create_database(self.database)
        master = self.directory / "master.key"
        if not master.exists():
            master.write_text(secrets.token_hex(32) + "\n")
            master.chmod(0o600)
        if "api-gateway" in self.built and not list((self.directory / "keys").glob("*.key")):
            self.export_keys()
        return self

    def export_keys(self):
        path = self.write_config("api-gateway")
        log = self.directory / "export-keys.log"
        status = Process("export-keys", [BIN / "api-gateway", "--config", path, "--export-keys",
                                         self.directory / "keys"], log).start().child.wait(60)
        assert status == 0, log.read_text()

    def start(self, wait=True):
        self.prepare()
        for service in self.built:
            for i in range(1, self.counts.get(service, 1) + 1):
                self.add(service if i == 1 else f"{service}-{i}")
        if "api-gateway" in self.built:
            self.connect()
            if wait:
                self.wait_ready()
        return self

    def connect(self):
        """A client of the first gateway."""
        self.client = Client(self.url())
        return self.client

    def url(self, gateway="api-gateway"):
        return f"http://127.0.0.1:{self.port(gateway)}"

    def wait_ready(self, deadline=120):
        for name in self.processes:
            wait_for(lambda n=name: self.ready(n), deadline,
                     lambda: f"{name} ready\n{self.tails()}")
        if self.client is not None:
            wait_for(lambda: self.client.request("GET", "/health").ok, deadline, "gateway healthy")

    def admin(self, process):
        """A client of a process's admin server."""
        return Client(f"http://127.0.0.1:{self.port('admin ' + process)}")

    def ready(self, process):
        if not self[process].alive():
            raise GiveUp(self[process].tail())
        return self.admin(process).request("GET", "/readyz", timeout=30).ok

    def kill_all(self):
        for process in self.processes.values():
            process.kill()

    def stop(self):
        """Ends everything; problems of single processes do not leave the others behind."""
        problems = []
        for process in reversed(list(self.processes.values())):
            try:
                process.stop()
            except AssertionError as e:
                problems.append(str(e))
        if self.own_redis:
            self.redis.stop()
        if self.own_postgres:
            self.postgres.remove()
        else:
            self.postgres.drop_database(self.database)
        shutil.rmtree(self.sockets, ignore_errors=True)
        assert not problems, "\n".join(problems)

    def tails(self):
        return "\n".join(p.tail() for p in self.processes.values())

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    # ---- jobs and data ----

    def sql(self, query, *params):
        """Rows as dicts, as the superuser."""
        connection = self.postgres.connect(self.database)
        try:
            with connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
                cursor.execute(query, params or None)
                return [dict(r) for r in cursor.fetchall()] if cursor.description else []
        finally:
            connection.close()

    def add_vsphere(self, sim, name="vsphere"):
        return self.client.post("/api/v1/providers", sim.settings(name))

    def wait_job(self, job_id, *states, deadline=120):
        """Waits for one of the states (default: any final one); the job. A job that ends
        otherwise fails at once, with its log."""
        wanted = states or FINAL

        def look():
            job = self.client.job(job_id)
            status = job.get("substatus") or job["status"]
            if status in wanted or job["status"] in wanted:
                return job
            if job["status"] in FINAL:
                raise GiveUp(self.explain(job_id))
            return None

        try:
            return wait_for(look, deadline, f"job {job_id} {wanted}")
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.explain(job_id)}\n{self.tails()}") from None

    def wait_phase(self, job_id, phase, deadline=60):
        return wait_for(lambda: self.client.job(job_id)["phase"] == phase, deadline,
                        f"job {job_id} in phase {phase}")

    def wait_bytes(self, job_id, count, deadline=60):
        """Until so many bytes of the job came from the source."""
        return wait_for(lambda: self.client.get(f"/jobs/progress/{job_id}")["bytes_transferred"]
                        >= count, deadline, f"job {job_id}: {count} bytes")

    def explain(self, job_id):
        """The job and its log as text, as far as the gateway tells them."""
        text = ""
        try:
            text = json.dumps(self.client.job(job_id), indent=1)[:4000]
            lines = self.client.get(f"/jobs/logs/{job_id}?tail=50").get("logs", [])
            return text + "\n" + "\n".join(
                f"{x['timestamp']} {x['level']} {x['message']}" for x in lines)
        except Exception as e:
            return f"{text}\n(no log of {job_id}: {e})"

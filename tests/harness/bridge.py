"""Conversions and imports without the rest of the suite: scheduler, bridges, exports made by hand."""
import contextlib
import json
import pathlib
import shutil
import subprocess
import uuid

from .images import sha256
from .process import ROOT
from .vsphere import make_image
from .wait import GiveUp, wait_for

FINAL = ("completed", "failed", "cancelled")
DISK_BYTES = 4 << 20
BRIDGE = "hyper2kvm-bridge"


class Export:
    """A finished export below `base`: one qcow2 per disk and artifact-manifest.json. `raws` are the
    contents."""

    def __init__(self, base, name="web-03", disks=1, firmware="bios", hints=None, manifest=None):
        self.directory = pathlib.Path(base) / name
        self.directory.mkdir(parents=True)
        self.name = name
        self.raws, self.images = [], []
        content = self.directory.parent / f".{name}-raw"
        content.mkdir()
        entries = []
        for i in range(disks):
            raw = make_image(content / f"{i}.raw", DISK_BYTES, [(0, 70000), (2 << 20, 5000)],
                             seed=f"{name}/{i}")
            image = self.directory / f"{name}-disk{i + 1}.qcow2"
            subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image], check=True)
            self.raws.append(raw)
            self.images.append(image)
            entries.append({"id": f"disk-{i}", "source_format": "qcow2", "bytes": image.stat().st_size,
                            "local_path": str(image), "relative_path": image.name,
                            "checksum": "sha256:" + sha256(image), "capacity_bytes": DISK_BYTES,
                            "boot_order_hint": hints[i] if hints else i,
                            "controller_model": "pvscsi", "controller": f"scsi0:{i}",
                            "disk_type": "boot" if i == 0 else "data"})
        self.manifest = {
            "manifest_version": "1.0",
            "source": {"provider": "vsphere", "vm_name": name},
            "vm": {"cpu": 2, "mem_gb": 1, "memory_mb": 1024, "firmware": firmware,
                   "os_hint": "linux", "uuid": str(uuid.uuid4())},
            "disks": entries,
            "nics": [{"id": "nic-0", "mac": "00:50:56:aa:bb:01", "network": "VM Network",
                      "model": "vmxnet3"}],
            "pipeline": {"inspect": {"enabled": True},
                         "fix": {"enabled": True, "fstab_mode": "stabilize-all"},
                         "convert": {"enabled": True, "compress_level": 6},
                         "validate": {"enabled": True}},
            **(manifest or {}),
        }
        self.write_manifest()
        self.before = self.state()

    @property
    def manifest_path(self):
        return self.directory / "artifact-manifest.json"

    def write_manifest(self):
        self.manifest_path.write_text(json.dumps(self.manifest))

    def state(self):
        """What nobody may change: names, bytes and modification times."""
        return {p.name: (p.stat().st_mtime_ns, sha256(p)) for p in sorted(self.directory.iterdir())
                if p.suffix != ".xml"}

    def fixed(self, index, pattern):
        """A raw file: the content with `pattern` in its first 4 KiB, as the fakes fix it."""
        path = self.raws[index].with_suffix(".fixed")
        shutil.copy(self.raws[index], path)
        with open(path, "r+b") as f:
            f.write(bytes([pattern]) * 4096)
        return path


class Program:
    """A scripted program of tests/fakes in a directory of its own."""

    def __init__(self, directory, mode="success", name="hyper2kvm", **scenario):
        self.directory = pathlib.Path(directory)
        self.directory.mkdir()
        self.path = self.directory / name
        shutil.copy(ROOT / "tests" / "fakes" / name, self.path)
        self.set(mode, **scenario)

    def set(self, mode, **scenario):
        (self.directory / "scenario.json").write_text(json.dumps({"mode": mode, **scenario}))

    def calls(self):
        path = self.directory / "calls.jsonl"
        return [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []

    def wait_pids(self, deadline=60):
        """The processes of a hanging call."""
        return wait_for(self.pids, deadline, f"{self.path.name} hangs")

    def pids(self):
        path = self.directory / "pids.json"
        return json.loads(path.read_text()) if path.exists() else []

    def running(self):
        """Its processes, however early in their life."""
        name = str(self.path).encode()
        return [p.parent.name for p in pathlib.Path("/proc").glob("[0-9]*/cmdline")
                if name in read_quietly(p).split(b"\0")]

    def forget_pids(self):
        (self.directory / "pids.json").unlink()


def read_quietly(path):
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


def alive(pid):
    """Does it run (a zombie does not)?"""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rsplit(")", 1)[1].split()[0] not in "ZX"


def start_bridges(make_suite, kind, bridges=1, **config):
    """Scheduler and bridges; kind: Conversions or Imports. config: sections as Suite takes them. A
    lease lasts: who takes a bridge away ends it by expire()."""
    config.setdefault("scheduler", {}).setdefault("lease", "60s")
    suite = make_suite(services=["scheduler"], config=config)
    wait_for(lambda: suite.ready("scheduler"), 60, suite.tails)
    for i in range(1, bridges + 1):
        suite.add(BRIDGE if i == 1 else f"{BRIDGE}-{i}")
    for name in suite.processes:
        wait_for(lambda n=name: suite.ready(n), 60, suite.tails)
    return kind(suite)


def expire(suite, condition, *params):
    """As if the dead worker of these tasks had been silent until after its lease. Its last renewal may
    be on its way still: until the scheduler has taken them back. Before another worker is started:
    that one's lease would be taken away, too."""
    epochs = {r["id"]: r["epoch"] for r in suite.sql(
        f"SELECT id, epoch FROM tasks WHERE state IN ('leased', 'finishing') AND {condition}", *params)}
    for task, epoch in epochs.items():
        wait_for(lambda: not suite.sql(
            "UPDATE tasks SET lease_until = now() - interval '6 s' WHERE id = %s AND epoch = %s"
            " AND state IN ('leased', 'finishing') RETURNING 1", task, epoch),
            what=f"{task} is taken back", interval=0.2)


class Conversions:
    """Jobs that consist of one conversion, put into the database of a suite."""

    def __init__(self, suite):
        self.suite = suite
        self.images = suite.directory / "images"
        self.watch = suite.directory / "watch"

    def submit(self, export, daemon=False, max_attempts=1, job=None, path=None, **options):
        spec = {"vm_name": export.name, "export_path": str(path or export.directory),
                "manifest_path": str(export.manifest_path),
                "hyper2kvm": {"daemon_mode": daemon, **options}}
        return self.insert(spec, export.name, max_attempts, job)

    def submit_source(self, source, daemon=False, max_attempts=1, machine=None, **options):
        """source: a path, or a manifest as a dictionary. machine: vm_name, memory_mb ..."""
        what = {"manifest": source} if isinstance(source, dict) else {"source_path": str(source)}
        spec = {**what, **(machine or {}), "hyper2kvm": {"daemon_mode": daemon, **options}}
        return self.insert(spec, "", max_attempts)

    def insert(self, spec, name, max_attempts, job=None):
        job = job or f"job-{uuid.uuid4().hex[:12]}"
        spec = {"job_id": job, **spec}
        self.suite.sql(
            "WITH j AS (INSERT INTO jobs (id, kind, provider, vm_path, vm_name, definition,"
            " max_attempts, retry_initial_ms, retry_max_ms)"
            " VALUES (%s, 'convert', 'vsphere', 'vm', %s, '{}', %s, 200, 500) RETURNING id)"
            " INSERT INTO tasks (id, job_id, kind, class, role, spec)"
            " SELECT 'task-' || id, id, 'convert', 'transfer', 'bridge', %s::jsonb FROM j",
            job, name, max_attempts, json.dumps(spec))
        return job

    def expire(self, job):
        expire(self.suite, "job_id = %s", job)

    def job(self, job):
        return self.suite.sql("SELECT * FROM jobs WHERE id = %s", job)[0]

    def task(self, job):
        return self.suite.sql("SELECT * FROM tasks WHERE job_id = %s", job)[0]

    def lines(self, job):
        return [r["message"] for r in self.suite.sql(
            "SELECT message FROM job_logs WHERE job_id = %s ORDER BY id", job)]

    def cancel(self, job):
        self.suite.sql("UPDATE jobs SET status = 'cancelling' WHERE id = %s", job)
        self.suite.sql("UPDATE tasks SET cancel = true WHERE job_id = %s", job)

    def again(self, job):
        """The task's end was never told: it is leased anew."""
        self.suite.sql("UPDATE jobs SET status = 'pending', completed_at = NULL WHERE id = %s", job)
        self.suite.sql("UPDATE tasks SET state = 'queued', token = NULL WHERE job_id = %s", job)

    def wait(self, job, status="completed", deadline=120):
        """The job; AssertionError with its log when it ends otherwise."""

        def look():
            row = self.job(job)
            if row["status"] == status:
                return row
            if row["status"] in FINAL:
                raise GiveUp(self.explain(job))
            return None

        try:
            return wait_for(look, deadline, f"{job} {status}")
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.explain(job)}\n{self.suite.tails()}") from None

    def explain(self, job):
        row = self.job(job)
        return (f"{row['status']} {row['error_code']}: {row['error']}\n"
                + "\n".join(self.lines(job)))

    def conversion(self, job, deadline=120):
        """The result of a job that completes."""
        self.wait(job, deadline=deadline)
        return self.task(job)["result"]["conversion"]

    def failure(self, job, deadline=120):
        """Code and text of a job that fails."""
        row = self.wait(job, "failed", deadline)
        return row["error_code"], row["error"]

    def published(self):
        """Names below the image directory, without what only the bridge looks at."""
        return sorted(p.name for p in self.images.iterdir() if not p.name.startswith(".hypersdk"))

    def staged(self):
        """Work areas that exist."""
        path = self.images / ".hypersdk-stage"
        return sorted(p.name for p in path.iterdir()) if path.exists() else []


class Imports(Conversions):
    """The same for jobs that consist of one import."""

    def submit_import(self, max_attempts=1, job=None, **spec):
        job = job or f"job-{uuid.uuid4().hex[:12]}"
        self.suite.sql(
            "WITH j AS (INSERT INTO jobs (id, kind, provider, vm_path, vm_name, definition,"
            " max_attempts, retry_initial_ms, retry_max_ms)"
            " VALUES (%s, 'import', '', 'vm', 'vm', '{}', %s, 200, 500) RETURNING id)"
            " INSERT INTO tasks (id, job_id, kind, class, role, spec)"
            " SELECT 'task-' || id, id, 'import', 'transfer', 'bridge', %s::jsonb FROM j",
            job, max_attempts, json.dumps({"job_id": job, **spec}))
        return job

    def imported(self, job, deadline=120):
        """What a job that completes says of its domain."""
        self.wait(job, deadline=deadline)
        return self.task(job)["result"]["libvirt_domain"]

    @contextlib.contextmanager
    def held(self, table, condition):
        """Rows of the table that meet the condition (of NEW) wait to be written. `reached` waits for
        the first; after `refuse` they are not written at all, else when the block ends."""
        sql = self.suite.sql
        connection = self.suite.postgres.connect(self.suite.database)
        waiting = ("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database ="
                   " (SELECT oid FROM pg_database WHERE datname = current_database())")

        class Held:
            @staticmethod
            def reached():
                wait_for(lambda: sql(waiting), 60, f"{table}: {condition}")

            @staticmethod
            def refuse():
                sql("UPDATE held_back SET refuse = true")

        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(4711)")
        sql("CREATE TABLE held_back (refuse boolean)")
        sql("INSERT INTO held_back VALUES (false)")
        sql("CREATE FUNCTION held_back() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN"
            " PERFORM pg_advisory_xact_lock_shared(4711);"
            " IF (SELECT refuse FROM held_back) THEN RAISE 'refused by the test'; END IF;"
            " RETURN NEW; END $$")
        sql(f"CREATE TRIGGER held_back BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW"
            f" WHEN ({condition}) EXECUTE FUNCTION held_back()")
        try:
            yield Held
        finally:
            connection.close()
            wait_for(lambda: not sql(waiting), 60, "statements that waited")
            sql(f"DROP TRIGGER held_back ON {table}")
            sql("DROP FUNCTION held_back")
            sql("DROP TABLE held_back")

    def release(self, job):
        """The release of a dead job's task."""
        return self.suite.sql("SELECT * FROM tasks WHERE kind = 'release'"
                              " AND spec->>'task_id' = %s", f"task-{job}")

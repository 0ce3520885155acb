"""Scripted workers on the real bus, through build/<variant>/helpers/worker_driver."""
import json
import queue
import subprocess
import threading
import time

from .process import BIN
from .wait import wait_for

DRIVER = BIN.parent / "helpers" / "worker_driver"
ROLE = "hypersdk_gateway"


class Pending:
    """The answer to one command, sooner or later."""

    def __init__(self, command, driver):
        self.command = command
        self.driver = driver
        self.box = queue.Queue()

    def get(self, deadline=60):
        try:
            return self.box.get(timeout=deadline)
        except queue.Empty:
            raise AssertionError(f"no answer within {deadline} s to {self.command}") from None

    def __repr__(self):
        return f"Pending({self.command})"

    def waits(self):
        """No answer so far, or sent away without a task, as after 20 s."""
        with self.box.mutex:
            return all(answer.get("reply") == "no_task" for answer in self.box.queue)

    def lease(self, deadline=60):
        """What a parked request gets in the end: who is sent away without a task, or hears nothing
        of a scheduler that starts anew, asks again."""
        end = time.monotonic() + deadline
        command = {k: v for k, v in self.command.items() if k not in ("id", "op")}
        answer = self.get(deadline)
        while (answer.get("reply") == "no_task" or answer.get("code") in ("timeout", "unavailable")) \
                and time.monotonic() < end:
            time.sleep(0.05)
            answer = self.driver.send("lease", **command).get(deadline)
        assert answer.get("reply") == "task_lease", answer
        answer["instance"] = command["instance"]
        return answer


class Driver:
    def __init__(self, config):
        self.child = subprocess.Popen([str(DRIVER), str(config)], stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, text=True)
        self.pending = {}
        self.announcements = []
        self.number = 0
        self.known = set()
        self.lock = threading.Lock()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.child.stdout:
            item = json.loads(line)
            if "announce" in item:
                self.announcements.append(item)
            else:
                self.pending.pop(item["id"]).box.put(item)

    def send(self, op, **fields):
        with self.lock:
            self.number += 1
            command = dict(fields, id=self.number, op=op)
            pending = self.pending[self.number] = Pending(command, self)
            self.child.stdin.write(json.dumps(command) + "\n")
            self.child.stdin.flush()
        return pending

    def call(self, op, deadline=60, **fields):
        return self.send(op, **fields).get(deadline)

    def kill(self):
        """As kill -9 of a worker: its connections end, its parked requests stay behind."""
        self.child.kill()
        self.child.wait(60)
        self.child.stdin.close()

    def stop(self):
        if self.child.poll() is None:
            self.child.stdin.close()
            self.child.wait(60)

    # ---- workers ----

    def ask(self, instance="w1", kinds=("export",), transfer=True, role="exporter",
            provider="vsphere", volumes=("vol-1",), slot=0, slots=4, timeout_ms=40000, **more):
        """Parks a lease request. A worker that was not known is answered at once, so it asks
        for nothing first."""
        fields = {"instance": instance, "role": role, "provider": provider,
                  "volumes": list(volumes), "slots_total": slots, "version": "1.0.0",
                  "class": "transfer" if transfer else "control"}
        if instance not in self.known:
            self.known.add(instance)
            wait_for(lambda: self.call("lease", kinds=[], slot=slots - 1, timeout_ms=timeout_ms,
                                       **fields).get("reply") == "no_task", what="the scheduler answers")
        return self.send("lease", kinds=list(kinds), slot=slot, timeout_ms=timeout_ms, **fields,
                         **more)

    def parked(self, **more):
        """A request that waits at the scheduler: of two for the same slot the first is sent away."""
        pair = [self.ask(**more), self.ask(**more)]
        wait_for(lambda: any(not p.box.empty() for p in pair), what="one of two requests is sent away")
        return next(p for p in pair if p.box.empty())

    def take(self, deadline=60, **more):
        """A lease."""
        return self.ask(**more).lease(deadline)

    def on(self, lease, op, **fields):
        """A message under the lease's authority, repeated while the scheduler says "again"."""
        def once():
            answer = self.call(op, task_id=lease["task_id"], epoch=lease["epoch"],
                               token=lease["token"], instance=lease["instance"], **fields)
            if answer.get("again") or answer.get("code") in ("timeout", "unavailable"):
                return None  # as a worker would: once more, with what it has
            assert "error" not in answer, answer
            return answer
        return wait_for(once, what=f"an answer to {op}")

    def finish(self, lease, result, **more):
        return self.on(lease, "finish", result=json.dumps(result), **more)

    # ---- jobs ----

    def submit(self, provider="vsphere", convert=False, **more):
        fields = {"provider": provider, "provider_kind": "vsphere", "vm_path": "/dc/vm/web",
                  "definition": {"vm_path": "/dc/vm/web"}, "export_spec": {"vm": "web"},
                  "priority": 50, "max_attempts": 3, "retry_initial_ms": 200,
                  "retry_max_ms": 1000, "trace_id": "", "role": ROLE}
        if convert:
            fields["convert_spec"] = {"export_path": "/exports/x", "hyper2kvm": {}}
        fields.update(more)
        answer = self.call("submit", **fields)
        assert "error" not in answer, answer
        self.call("changed")
        return answer["job_id"]

    def cancel(self, job_id, **more):
        answer = self.call("cancel", job_id=job_id, role=ROLE, **more)
        self.call("changed")
        return answer

    def pause(self, job_id, **more):
        answer = self.call("pause", job_id=job_id, role=ROLE, **more)
        self.call("changed")
        return answer

    def resume(self, job_id):
        answer = self.call("resume", job_id=job_id, role=ROLE)
        self.call("changed")
        return answer

    def retry(self, job_id):
        answer = self.call("retry", job_id=job_id, role=ROLE)
        self.call("changed")
        return answer


def export_result(**more):
    """What an export task reports (docs/tasks.md)."""
    result = {
        "vm_name": "web", "format": "qcow2", "method": "folder", "output_path": "/exports/x",
        "manifest_path": "/exports/x/artifact-manifest.json",
        "files": [{"name": "web-disk1.qcow2", "size": 5, "sha256": "ab", "type": "disk"}],
        "exported_files": ["/exports/x/web-disk1.qcow2"], "total_size": 5,
        "transferred_bytes": 5, "duration_seconds": 1.5, "checksums": {}, "verified": True,
        "warnings": [],
        "export": {"id": "exp-0123456789abcdef", "volume": "vol-1", "vm_id": "vm-1",
                   "vm_name": "web", "format": "qcow2", "path": "/exports/x", "total_size": 5,
                   "created_at": "2026-03-01T00:00:00Z",
                   "manifest": {"vm": {"name": "web", "os_hint": "linux"}},
                   "disks": [{"disk_id": "disk-0", "file": "web-disk1.qcow2", "size_bytes": 5,
                              "capacity_bytes": 1024, "sha256": "ab", "root": "r",
                              "change_id": ""}]},
    }
    result.update(more)
    return result

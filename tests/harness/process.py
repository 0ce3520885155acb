"""One child process with its output in a file."""
import json
import os
import pathlib
import signal
import subprocess
import time

from .wait import wait_for

ROOT = pathlib.Path(__file__).resolve().parents[2]
VARIANT = os.environ.get("VARIANT", "release")
BIN = ROOT / "build" / VARIANT / "bin"


class Process:
    """argv runs in its own process group, stdout and stderr go to `log` (appended)."""

    def __init__(self, name, argv, log, env=None, cwd=None):
        self.name = name
        self.argv = [str(a) for a in argv]
        self.log = pathlib.Path(log)
        self.env = env
        self.cwd = cwd
        self.child = None
        self.when_killed = None  # function of the pid

    def start(self):
        assert not self.alive(), f"{self.name} runs already"
        environment = dict(os.environ)
        environment.update(self.env or {})
        with open(self.log, "ab") as out:
            self.child = subprocess.Popen(self.argv, stdout=out, stderr=out, env=environment,
                                          stdin=subprocess.DEVNULL, cwd=self.cwd,
                                          start_new_session=True)
        return self

    def alive(self):
        return self.child is not None and self.child.poll() is None

    @property
    def pid(self):
        return self.child.pid

    def signal(self, number):
        self.child.send_signal(number)

    def kill(self):
        """kill -9 and reap."""
        child = self.child  # another thread may start the next one as soon as this has ended
        if child is None:
            return None
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
        status = child.wait(60)
        if self.when_killed is not None:
            self.when_killed(child.pid)
        return status

    def pause(self):
        self.child.send_signal(signal.SIGSTOP)

    def resume(self):
        self.child.send_signal(signal.SIGCONT)

    def stop(self, deadline=90):
        """SIGTERM; the exit status. Takes longer than `deadline`: AssertionError, and it is killed."""
        if self.child is None:
            return None
        if self.alive():
            self.child.send_signal(signal.SIGTERM)
            self.child.send_signal(signal.SIGCONT)  # one that was paused would never end
        try:
            return self.child.wait(deadline)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end within {deadline} s of SIGTERM\n"
                                 + self.tail()) from None

    def restart(self):
        self.stop()
        return self.start()

    def output(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def tail(self, lines=40):
        return f"--- {self.name} ({self.log})\n" + "\n".join(self.output().splitlines()[-lines:])

    def events(self, name=None):
        """The JSON log lines (all, or those of one event)."""
        found = []
        for line in self.output().splitlines():
            try:
                item = json.loads(line)
            except ValueError:
                continue
            if isinstance(item, dict) and (name is None or item.get("event") == name):
                found.append(item)
        return found

    def wait_event(self, name, deadline=60):
        return wait_for(lambda: self.events(name), deadline,
                        lambda: f"event {name} of {self.name}\n{self.tail()}")

    def cpu_seconds(self):
        """That all its threads have worked so far, to the nanosecond."""
        return time.clock_gettime((~self.pid << 3) | 2)  # see clock_getcpuclockid(3)

    def rss(self):
        """Resident memory in bytes."""
        with open(f"/proc/{self.pid}/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE")

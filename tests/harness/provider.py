"""A provider's vtable behind a command loop (tests/contract/driver.c)."""
import json
import os
import pathlib
import select
import subprocess
import time

from .process import ROOT, VARIANT

TAIL_LINES = 20


class Refused(Exception):
    """The provider's error: code (slug of common/error.h) and message."""

    def __init__(self, code, message):
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Driver:
    """One process, one session. `d.check()`, `d.read(disk=0, ...)` send a command by that name and
    return its answer; an error of the provider is raised as Refused."""

    def __init__(self, kind, directory):
        self.directory = pathlib.Path(directory)
        program = ROOT / "build" / VARIANT / "contract" / f"driver-{kind}"
        assert program.exists(), "build it: make drivers"
        self.log = self.directory / "driver.log"
        with open(self.log, "ab") as log:
            self.child = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                          stderr=log, bufsize=0)
        self.rest = b""

    def __getattr__(self, op):
        if op.startswith("_"):
            raise AttributeError(op)

        def call(**arguments):
            return self._command(dict(arguments, op=op))
        return call

    def _command(self, command, deadline=120):
        self.child.stdin.write(json.dumps(command).encode() + b"\n")
        until = time.monotonic() + deadline
        while b"\n" not in self.rest:
            ready, _, _ = select.select([self.child.stdout], [], [], until - time.monotonic())
            if not ready:
                raise AssertionError(f"{command['op']}: no answer in {deadline} s\n{self._tail()}")
            data = os.read(self.child.stdout.fileno(), 1 << 20)
            if not data:
                raise AssertionError(f"{command['op']}: the driver ended with "
                                     f"{self.child.wait(60)}\n{self._tail()}")
            self.rest += data
        line, _, self.rest = self.rest.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise Refused(answer["error"]["code"], answer["error"]["message"])
        return answer["ok"]

    def _tail(self):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])

    def end(self):
        """Closes the session and the process; its exit status."""
        if self.child.poll() is None:
            self.child.stdin.close()
            try:
                return self.child.wait(60)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait(60)
                raise AssertionError("the driver does not end\n" + self._tail()) from None
        return self.child.returncode

    def died(self):
        """After a command that ends the process: its exit status."""
        return self.child.wait(60)

"""Waiting for conditions with a deadline: tests never sleep for a guessed time."""
import os
import random
import socket
import time


class GiveUp(AssertionError):
    """Raised by a condition that can never become true: wait_for stops at once."""


def wait_for(condition, deadline=60.0, what=None, interval=0.05):
    """Calls condition until its result is true and returns it. Exceptions count as "not yet",
    but GiveUp ends the waiting. After `deadline` seconds: AssertionError with `what` (a text, or
    a function that makes it then) and the last exception or result. A deadline is there for what is
    broken: nothing is proven by its length, and no machine that works may be too slow for it."""
    end = time.monotonic() + deadline
    while True:
        problem = None
        result = None
        try:
            result = condition()
        except GiveUp:
            raise
        except Exception as e:  # the peer may not be up yet
            problem = e
        if result:
            return result
        if time.monotonic() >= end:
            last = repr(problem) if problem is not None else repr(result)
            text = what() if callable(what) else what or condition
            raise AssertionError(f"not within {deadline} s: {text}; last: {last[:2000]}")
        time.sleep(interval)


# Below the kernel's range for outgoing connections, which could take a port between our look and
# its use; each test process that runs beside others has a part of it for itself. As many parts as
# run.py starts workers at most.
PORTS_FIRST, PORTS_EACH, PORT_PARTS = 10000, 3600, 6
_part = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % PORT_PARTS
_next_port = random.randrange(PORTS_EACH)


def free_port():
    """A port of 127.0.0.1 that is free and was not given out here lately."""
    global _next_port
    for _ in range(PORTS_EACH):
        port = PORTS_FIRST + _part * PORTS_EACH + _next_port
        _next_port = (_next_port + 1) % PORTS_EACH
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise AssertionError("no free port")

"""Waiting for conditions with a deadline: tests never sleep for a guessed time."""
import socket
import time


class GiveUp(AssertionError):
    """Raised by a condition that can never become true: wait_for stops at once."""


def wait_for(condition, deadline=30.0, what=None, interval=0.05):
    """Calls condition until its result is true and returns it. Exceptions count as "not yet",
    but GiveUp ends the waiting. After `deadline` seconds: AssertionError with `what` (a text, or
    a function that makes it then) and the last exception or result."""
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


def free_port():
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

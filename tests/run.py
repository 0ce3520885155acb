#!/usr/bin/python3
"""Runs the tests and sums them up: the last line is "N passed, N failed, N skipped".

  tests/run.py              everything that `make test` promises
  tests/run.py unit:asan    only these parts: unit:release unit:asan sim fuzz lint contract service e2e

Everything was built before. Logs and results lie in build/test. Exit status 0 when nothing failed.
"""
import concurrent.futures
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree

ROOT = pathlib.Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "test"
PARTS = ["unit:release", "unit:asan", "sim", "fuzz", "lint", "contract", "service", "e2e"]
UNIT_SECONDS_MAX = 300
# Service tests mostly wait: for leases that run out, back-offs, processes that drain.
PYTEST_WORKERS = min(4, (os.cpu_count() or 1) + 1)
PART_SECONDS_MAX = 1500


class Result:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.notes = []

    def add(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.notes += other.notes


def run(argv, log, seconds, env=None):
    """Exit status (None: it took too long, and its process group was ended) and output."""
    with open(log, "wb") as out:  # no pipe: a process that is left behind would keep it open
        child = subprocess.Popen(argv, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT,
                                 stdin=subprocess.DEVNULL, start_new_session=True,
                                 env=dict(os.environ, **(env or {})))
        try:
            status = child.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            status = None
    return status, log.read_text(errors="replace")


def unit_program(program):
    """One cmocka program: its own counts; a crash is one failure."""
    result = Result()
    name = str(program.relative_to(ROOT / "build"))
    status, text = run([program], OUT / (name.replace("/", "-") + ".log"), UNIT_SECONDS_MAX,
                       {"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"})
    counts = {k: sum(map(int, re.findall(rf"\[  {k} +\] (\d+) test", text)))
              for k in ("PASSED", "FAILED", "SKIPPED")}
    result.passed, result.failed, result.skipped = counts.values()
    if status != 0:
        result.failed = max(1, result.failed)
        why = "took too long" if status is None else f"exit status {status}"
        result.notes.append(f"{name}: {why}\n" + tail(text, 30))
    return result


def unit(variant):
    result = Result()
    programs = sorted(p for p in (ROOT / "build" / variant / "unit").rglob("test_*")
                      if p.is_file() and os.access(p, os.X_OK)
                      and (ROOT / "tests/unit" / p.relative_to(ROOT / "build" / variant / "unit")
                           ).with_suffix(".c").exists())
    if not programs:
        result.failed += 1
        result.notes.append(f"no unit tests are built: build/{variant}/unit")
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for one in pool.map(unit_program, programs):
            result.add(one)
    return result


def tail(text, lines):
    return "\n".join("    " + x for x in text.splitlines()[-lines:])


def pytest(folder):
    result = Result()
    if not list((ROOT / "tests" / folder).glob("test_*.py")):
        return result
    xml_file = OUT / f"{folder}.xml"
    xml_file.unlink(missing_ok=True)
    status, text = run(["/usr/bin/python3", "-m", "pytest", "-q", "-rsfE", "-p", "no:cacheprovider",
                        "-n", str(PYTEST_WORKERS), "--dist", "loadgroup",
                        f"--junitxml={xml_file}", f"tests/{folder}"],
                       OUT / f"{folder}.log", PART_SECONDS_MAX)
    if xml_file.exists():
        for suite in xml.etree.ElementTree.parse(xml_file).getroot().iter("testsuite"):
            bad = int(suite.get("failures")) + int(suite.get("errors"))
            skipped = int(suite.get("skipped"))
            result.failed += bad
            result.skipped += skipped
            result.passed += max(0, int(suite.get("tests")) - bad - skipped)
    if status != 0 and result.failed == 0:
        result.failed += 1
    if status != 0:
        result.notes.append(f"tests/{folder}:\n" + tail(text, 150))
    result.notes += [x for x in text.splitlines() if x.startswith("SKIPPED")]
    return result


def make_target(target, pattern):
    """A make target that prints one line per check: "ok ..." or "FAILED ..."."""
    result = Result()
    status, text = run(["make", "--no-print-directory", "-k", "-j2", target], OUT / f"{target}.log",
                       PART_SECONDS_MAX)
    result.passed = len(re.findall(rf"^{pattern}", text, re.M))
    result.failed = len(re.findall(r"^FAILED", text, re.M))
    if status != 0:
        result.failed = max(1, result.failed)
        result.notes.append(f"make {target}:\n" + tail(text, 60))
    return result


def part(name):
    kind, _, variant = name.partition(":")
    if kind == "unit":
        return unit(variant or "release")
    if kind in ("contract", "service", "e2e"):
        return pytest(kind)
    if kind == "lint":
        return make_target("lint-quick", "ok")
    if kind == "sim":
        return make_target("sim-check", "ok")
    if kind == "fuzz":
        if not (ROOT / "mk" / "fuzz.mk").exists():
            return Result()
        return make_target("fuzz-replay", "ok")
    sys.exit(f"unknown part '{name}' ({', '.join(PARTS)})")


def main():
    names = sys.argv[1:]
    if "--help" in names:
        print(__doc__)
        return 0
    OUT.mkdir(parents=True, exist_ok=True)
    total = Result()
    for name in names or PARTS:
        start = time.monotonic()
        result = part(name)
        total.add(result)
        print(f"{name:14} {result.passed} passed, {result.failed} failed, {result.skipped} skipped"
              f"  ({time.monotonic() - start:.0f} s)", flush=True)
        for note in result.notes:
            print(note, flush=True)
    line = f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped"
    (OUT / "summary").write_text(line + "\n")
    print(line)
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())

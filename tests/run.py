#!/usr/bin/python3
"""Runs the tests and sums them up: the last line is "N passed, N failed, N skipped".

Two lanes run beside each other: what computes (unit programs, simulation, fuzz inputs, lint), and
pytest, whose tests mostly wait. contract, service and e2e are one pytest run, so no worker idles
between them.

  tests/run.py              everything that `make test` promises
  tests/run.py unit:asan    only these parts: unit:asan unit:release sim fuzz lint contract service e2e

Unit programs run under ASan and UBSan; as users get them, without, in `make test-full`.

Everything was built before. Logs and results lie in build/test. Exit status 0 when nothing failed.
"""
import concurrent.futures
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree

ROOT = pathlib.Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "test"
PARTS = ["unit:asan", "sim", "fuzz", "lint", "contract", "service", "e2e"]
PYTEST_PARTS = ["contract", "service", "e2e"]
UNIT_SECONDS_MAX = 600  # the longest computes for a minute; the other lane takes its share
# Tests of services compute for a third of their time and wait for the rest: for leases that run
# out, back-offs, processes that drain. More than six want more memory than a small machine has.
PYTEST_WORKERS = min(6, 2 * (os.cpu_count() or 1) + 1)
PART_SECONDS_MAX = 1500
PRINT = threading.Lock()


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


def pytest_counts(xml_file):
    """Result and seconds of tests by folder, from pytest's report."""
    results, seconds = {}, {}
    for case in xml.etree.ElementTree.parse(xml_file).getroot().iter("testcase"):
        # a file that cannot be read has no class, its module is the name
        name = case.get("classname") or case.get("name") or "?"
        folder = name.replace("/", ".").split(".")[1] if name.startswith("tests") else "?"
        result = results.setdefault(folder, Result())
        seconds[folder] = seconds.get(folder, 0) + float(case.get("time", 0))
        if case.find("failure") is not None or case.find("error") is not None:
            result.failed += 1
        elif case.find("skipped") is not None:
            result.skipped += 1
        else:
            result.passed += 1
    return results, seconds


def pytest(folders):
    """One run of these folders' tests; a Result for each, the notes in the last."""
    xml_file = OUT / "pytest.xml"
    xml_file.unlink(missing_ok=True)
    start = time.monotonic()
    status, text = run(["/usr/bin/python3", "-m", "pytest", "-q", "-rsfE", "-p", "no:cacheprovider",
                        "--import-mode=importlib",  # two folders have a test_schedules.py each
                        "-n", str(PYTEST_WORKERS), "--dist", "loadgroup", "--durations=40",
                        f"--junitxml={xml_file}", *(f"tests/{f}" for f in folders)],
                       OUT / "pytest.log", PART_SECONDS_MAX * len(folders))
    took = time.monotonic() - start
    results, seconds = pytest_counts(xml_file) if xml_file.exists() else ({}, {})
    rest = Result()
    if status != 0:
        if not any(r.failed for r in results.values()):
            rest.failed += 1
        rest.notes.append("pytest (build/test/pytest.log):\n" + tail(text, 250))
    rest.notes += [x for x in text.splitlines() if x.startswith("SKIPPED")]
    for folder, result in results.items():
        report(folder, result, f"{seconds[folder]:.0f} s of tests")
        rest.add(result)
    report("pytest", rest, f"{took:.0f} s, {PYTEST_WORKERS} workers")
    return rest


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
    if kind == "lint":
        return make_target("lint-quick", "ok")
    if kind == "sim":
        return make_target("sim-check", "ok")
    if kind == "fuzz":
        if not (ROOT / "mk" / "fuzz.mk").exists():
            return Result()
        return make_target("fuzz-replay", "ok")
    raise ValueError(name)


def report(name, result, remark):
    with PRINT:
        print(f"{name:14} {result.passed} passed, {result.failed} failed, {result.skipped} skipped"
              f"  ({remark})", flush=True)
        for note in result.notes:
            print(note, flush=True)


def computing(names):
    """The parts that are not pytest's, one after the other."""
    total = Result()
    for name in names:
        start = time.monotonic()
        result = part(name)
        total.add(result)
        report(name, result, f"{time.monotonic() - start:.0f} s")
    return total


def main():
    names = sys.argv[1:]
    if "--help" in names:
        print(__doc__)
        return 0
    names = names or PARTS
    unknown = [n for n in names if n.partition(":")[0] not in {p.partition(":")[0] for p in PARTS}]
    if unknown:
        sys.exit(f"unknown part '{unknown[0]}' ({', '.join(PARTS)})")
    OUT.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    total = Result()
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        lanes = [pool.submit(computing, [n for n in names if n not in PYTEST_PARTS])]
        folders = [n for n in PYTEST_PARTS if n in names]
        if folders:
            lanes.append(pool.submit(pytest, folders))
        for lane in lanes:
            total.add(lane.result())
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{time.monotonic() - start:.0f} s; {used.ru_utime + used.ru_stime:.0f} s of CPU time")
    line = f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped"
    (OUT / "summary").write_text(line + "\n")
    print(line)
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs the benchmark programs given as arguments, then measures what needs the whole suite, and
writes build/bench.json. One line per figure: name value unit reference ratio goal."""
import json
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from tests.harness.suite import SERVICES, Suite  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIELDS = ("name", "value", "unit", "reference", "ratio", "goal")


def figures_of(text):
    for line in text.splitlines():
        words = line.split()
        if len(words) == len(FIELDS):
            yield dict(zip(FIELDS, words))


def rss_kib(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise ValueError(f"no VmRSS for {pid}")


def idle_memory():
    """Resident memory of every process of an idle suite; the reference is their sum."""
    with tempfile.TemporaryDirectory(prefix="hs-bench-") as directory:
        suite = Suite(directory)
        suite.start()
        try:
            suite.wait_ready()
            sizes = {name: rss_kib(suite[name].pid) for name in SERVICES}
        finally:
            suite.stop()
    total = sum(sizes.values())
    for name, size in sizes.items():
        yield dict(zip(FIELDS, (f"idle_rss_{name.replace('-', '_')}", f"{size / 1024:.1f}", "MiB",
                                f"{total / 1024:.1f}", f"{size / total:.2f}", "-")))


def main(programs):
    figures = []
    failed = 0
    for program in programs:
        done = subprocess.run([program], stdout=subprocess.PIPE, text=True, check=False)
        failed += done.returncode != 0
        figures += figures_of(done.stdout)
    figures += idle_memory()
    for figure in figures:
        print(*(figure[field] for field in FIELDS))
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "bench.json").write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

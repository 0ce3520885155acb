"""Runs the benchmark programs given as arguments, then measures what needs the whole suite, and
writes build/bench.json."""
import json
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from tests.bench.chaos_figures import chaos_figures  # noqa: E402
from tests.bench.figures import FIELDS, show  # noqa: E402
from tests.bench.queue_figures import queue_figures  # noqa: E402
from tests.harness.suite import SERVICES, Suite  # noqa: E402
from tests.harness.vsphere import Vsphere, make_image, vm  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]


def figures_of(text):
    """Also lines "# name words": the notes of that figure."""
    figures = {}
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["#"]:
            figures[words[1]].setdefault("notes", []).append(" ".join(words[2:]))
        elif len(words) == len(FIELDS):
            figures[words[0]] = dict(zip(FIELDS, words))
    return figures.values()


def memory_kib(pid, what):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return int(line.split()[1])
    raise ValueError(f"no {what} for {pid}")


def idle_memory():
    """Resident memory of every process of an idle suite; the reference is their sum."""
    with tempfile.TemporaryDirectory(prefix="hs-bench-") as directory:
        suite = Suite(directory)
        suite.start()
        try:
            suite.wait_ready()
            sizes = {name: memory_kib(suite[name].pid, "VmRSS") for name in SERVICES}
        finally:
            suite.stop()
    total = sum(sizes.values())
    for name, size in sizes.items():
        yield dict(zip(FIELDS, (f"idle_rss_{name.replace('-', '_')}", f"{size / 1024:.1f}", "MiB",
                                f"{total / 1024:.1f}", f"{size / total:.2f}", "-")))


def export_memory():
    """Peak resident memory of the exporter during one export, for a small disk and for one that is
    far larger; the reference is 64 MiB and 16 MiB for each reader."""
    readers = 4
    limit = 64 + 16 * readers
    for name, size, enough in (("1gib", 1 << 30, None), ("32gib", 32 << 30, 8 << 30)):
        with tempfile.TemporaryDirectory(prefix="hs-bench-") as directory:
            disk = make_image(pathlib.Path(directory) / "disk.raw", size,
                              [(at << 20, 1 << 20) for at in range(0, 1024, 4)])
            sim = Vsphere(pathlib.Path(directory) / "sim", [vm("web", disk)]).start()
            suite = Suite(pathlib.Path(directory) / "suite")
            suite.start()
            try:
                suite.wait_ready()
                suite.add_vsphere(sim)
                job = suite.client.submit(vm_path="web", format="qcow2",
                                          options={"parallel_downloads": readers})
                if enough is None:
                    suite.wait_job(job, "completed", 300)
                else:
                    suite.wait_bytes(job, enough, 300)
                peak = memory_kib(suite["exporter-vsphere"].pid, "VmHWM")
            finally:
                suite.stop()
                sim.stop()
        yield dict(zip(FIELDS, (f"peak_rss_export_{name}", f"{peak / 1024:.1f}", "MiB", str(limit),
                                f"{peak / 1024 / limit:.2f}", "<=1")))


def main(programs):
    figures = []
    failed = 0
    for program in programs:
        done = subprocess.run([program], stdout=subprocess.PIPE, text=True, check=False)
        failed += done.returncode != 0
        figures += figures_of(done.stdout)
    figures += idle_memory()
    figures += export_memory()
    figures += queue_figures()
    figures += chaos_figures()
    for figure in figures:
        show(figure)
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "bench.json").write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

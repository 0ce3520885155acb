"""Fixtures shared by service and end-to-end tests."""
import fcntl
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from tests.harness.process import ROOT  # noqa: E402
from tests.harness.libvirtd import Libvirtd  # noqa: E402
from tests.harness.stores import Postgres  # noqa: E402
from tests.harness.suite import Suite  # noqa: E402
from tests.harness.targets import Sshd, Swift, missing  # noqa: E402
from tests.harness.vsphere import Vsphere  # noqa: E402


def pytest_configure(config):
    config.addinivalue_line("markers", "heavy: long proofs; only make test-full runs them")


def pytest_collection_modifyitems(config, items):
    """One Swift is enough: what uses it runs in the same worker. Heavy tests run when HSDK_HEAVY is
    set."""
    heavy = [i for i in items if i.get_closest_marker("heavy")
             and not os.environ.get("HSDK_HEAVY")]
    if heavy:
        config.hook.pytest_deselected(items=heavy)
        items[:] = [i for i in items if i not in heavy]
    for item in items:
        if "swift" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("swift"))


@pytest.fixture(scope="session")
def postgres(tmp_path_factory):
    """One cluster for all tests of a run; each Suite makes a database of its own in it."""
    cluster = Postgres(tmp_path_factory.mktemp("pg")).start()
    yield cluster
    cluster.remove()


@pytest.fixture
def make_suite(tmp_path, postgres):
    """Function that starts a Suite (arguments as there; own_postgres=True: a cluster that the test
    may stop and kill). Each has a Redis of its own: keys and channels carry no database name.
    All end with the test."""
    suites = []

    def make(name="suite", own_postgres=False, start=True, **options):
        if not own_postgres:
            options.setdefault("postgres", postgres)
        suite = Suite(tmp_path / name, **options)
        suites.append(suite)
        return suite.start() if start else suite.prepare()

    yield make
    problems = []
    for suite in suites:
        try:
            suite.stop()
        except AssertionError as e:
            problems.append(str(e))
    assert not problems, "\n".join(problems)


@pytest.fixture
def make_vsphere(tmp_path):
    """Function that starts a simulator (arguments of Vsphere after the directory)."""
    started = []

    def make(vms=(), name="vcenter", **options):
        sim = Vsphere(tmp_path / name, vms, name=name, **options).start()
        started.append(sim)
        return sim

    yield make
    for sim in started:
        sim.stop()


@pytest.fixture(scope="session")
def swift(tmp_path_factory):
    """One Swift for all tests of a run; tests use buckets of their own."""
    if missing(*Swift.PROGRAMS):
        pytest.skip(f"not installed: {missing(*Swift.PROGRAMS)}")
    server = Swift(tmp_path_factory.mktemp("swift"))
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def bucket(swift, request):
    """A bucket of the test's own."""
    name = "t" + hashlib.md5(request.node.nodeid.encode()).hexdigest()[:12]
    swift.client().create_bucket(Bucket=name)
    return name


@pytest.fixture
def sshd(tmp_path):
    if missing(*Sshd.PROGRAMS):
        pytest.skip(f"not installed: {missing(*Sshd.PROGRAMS)}")
    server = Sshd(tmp_path / "sshd")
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(scope="session")
def real_hyper2kvm():
    """Its program in a virtual environment below build/, made once for all workers; skipped when PyPI
    does not answer."""
    venv = ROOT / "build" / "hyper2kvm-venv"
    with open(venv.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        make_hyper2kvm(venv)
    return venv / "bin" / "hyper2kvm"


def make_hyper2kvm(venv):
    if not (venv / "ready").exists():
        shutil.rmtree(venv, ignore_errors=True)
        done = subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", venv],
                              capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"no virtual environment: {done.stdout.strip()[:200]}")
        done = subprocess.run([venv / "bin" / "pip", "install", "-q", "--retries", "1", "--timeout",
                               "10", "hyper2kvm==0.2.1", "rich", "watchdog"], capture_output=True,
                              text=True, timeout=300)
        if done.returncode != 0:
            pytest.skip(f"PyPI does not answer: {done.stderr.strip()[-200:]}")
        (venv / "ready").write_text("")


@pytest.fixture
def libvirtd():
    """A private qemu:///session daemon with a storage pool."""
    if missing(*Libvirtd.PROGRAMS):
        pytest.skip(f"not installed: {missing(*Libvirtd.PROGRAMS)}")
    pytest.importorskip("libvirt", reason="python3-libvirt is not installed")
    daemon = Libvirtd()
    try:
        yield daemon.start_with_pool()
    finally:
        daemon.remove()

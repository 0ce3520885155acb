"""How fast the suite is back: from the leader's end to the next one's first lease, and until as many
jobs per second end as before. The parts are those of tests/heavy/test_chaos.py."""
import datetime
import pathlib
import tempfile
import time

from tests.harness import chaos
from tests.harness.suite import Suite
from tests.harness.vsphere import Vsphere
from tests.harness.wait import wait_for

FAILOVER_SECONDS = 5  # the goal
OTHER = {"scheduler": "scheduler-2", "scheduler-2": "scheduler"}


def figure(name, value, reference, goal):
    return {"name": name, "value": f"{value:.2f}", "unit": "s", "reference": f"{reference:.2f}",
            "ratio": f"{value / reference:.2f}", "goal": goal}


def first_lease(suite, name, since):
    """Wall-clock seconds after `since` of the first lease that this scheduler gave out."""
    def look():
        for event in suite[name].events("task_leased"):
            at = datetime.datetime.fromisoformat(event["ts"].replace("Z", "+00:00")).timestamp()
            if at >= since:
                return at - since
        return None

    return wait_for(look, 60, suite.tails)


def failover(suite, how):
    name = chaos.leading(suite)
    since = time.time()
    getattr(suite[name], how)()
    took = first_lease(suite, OTHER[name], since)
    if how == "pause":
        suite[name].resume()
    else:
        suite[name].start()
    return took


def chaos_figures():
    with tempfile.TemporaryDirectory(prefix="hs-bench-") as directory:
        opened = []

        def make_suite(own_postgres, **options):
            opened.append(Suite(pathlib.Path(directory) / "suite", **options))
            return opened[-1].start()

        def make_vsphere(vms):
            opened.append(Vsphere(pathlib.Path(directory) / "sim", vms).start())
            return opened[-1]

        try:
            suite, _, disks = chaos.start(make_suite, make_vsphere, directory)
            stream = chaos.Stream(suite, disks)
            try:
                rate = stream.steady()
                for how in ("kill", "pause"):
                    yield figure(f"leader_failover_{how}", failover(suite, how), FAILOVER_SECONDS,
                                 "<=1")
                    stream.wait_rounds(2)
                for name, fault in (
                        ("postgres_crash", lambda: chaos.restart_postgres(suite, "immediate")),
                        ("backends_ended", lambda: chaos.end_backends(suite, 1)),
                        ("leader_killed", lambda: chaos.restart(suite, chaos.leading(suite)))):
                    since = time.monotonic()
                    fault()
                    away = max(time.monotonic() - since, 0.01)
                    yield figure(f"throughput_back_after_{name}", stream.recovered(rate, since),
                                 away, "-")
                    stream.wait_rounds(2)
            finally:
                stream.stop()
        finally:
            for item in reversed(opened):
                item.stop()

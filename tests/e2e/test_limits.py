"""Bandwidth limits through every process. A limit is an upper bound: what took at least as long as
the token bucket demands has kept it, however slow the machine is."""
import datetime
import signal
import subprocess

import pytest

from tests.harness import images
from tests.harness.process import BIN
from tests.harness.vsphere import make_image, vm
from tests.harness.wait import wait_for

MB = 1 << 20


@pytest.fixture
def disk(tmp_path):
    return make_image(tmp_path / "disk.raw", 24 * MB, [(0, 24 * MB)])


@pytest.fixture
def endless(tmp_path):
    """At 1 MB/s nobody sees its end."""
    return make_image(tmp_path / "endless.raw", 600 * MB, [(0, MB)])


@pytest.fixture
def suite(make_suite, make_vsphere, disk, endless):
    sim = make_vsphere([vm("off", disk, power="off"), vm("endless", endless, power="off")])
    suite = make_suite()
    suite.add_vsphere(sim)
    return suite


def limited_by(suite, job):
    return suite.client.job(job)["progress"]["limited_by"]


def wait_limited(suite, job):
    wait_for(lambda: limited_by(suite, job) == "rate_limit", 60, lambda: suite.explain(job))


def log_of(suite, job):
    answer = suite.client.request("GET", f"/api/v1/jobs/{job}/logs", headers={"Accept": "text/plain"})
    return answer.text


def test_an_export_keeps_its_limit_and_says_so(suite, disk):
    job = suite.client.submit(vm_path="off", format="raw", bandwidth_limit_mbps=8,
                              bandwidth_burst_mb=1)
    done = suite.wait_job(job, "completed")
    assert done["result"]["duration_seconds"] >= (24 - 1) / 8
    assert done["definition"]["bandwidth_limit_mbps"] == 8
    images.compare(disk, f"{done['result']['output_path']}/off-disk1.raw", "raw")
    assert "bandwidth of this job: 8.0 MB/s" in log_of(suite, job)


def test_the_command_line_limits_and_shows_it(suite):
    done = subprocess.run(
        [BIN / "hyperexport", "--vm", "off", "--format", "raw", "--bandwidth-limit", "8",
         "--bandwidth-burst=1", "--daemon-url", suite.url()],
        capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    job = suite.client.get("/api/v1/jobs")["jobs"][0]
    assert job["result"]["duration_seconds"] >= (24 - 1) / 8
    assert job["definition"]["bandwidth_burst_mb"] == 1


def test_an_adaptive_limit_starts_halfway(suite):
    job = suite.client.submit(vm_path="off", format="raw", adaptive_bandwidth=True,
                              bandwidth_min_mbps=2, bandwidth_max_mbps=14, bandwidth_burst_mb=1)
    done = suite.wait_job(job, "completed")
    assert done["result"]["duration_seconds"] >= (24 - 1) / 8
    assert "adaptive, 2.0 to 14.0 MB/s" in log_of(suite, job)


def test_a_workers_limit_is_changed_while_it_copies_and_outlives_it(suite, endless):
    def rate():  # moving average of 10 s
        return suite.client.get(f"/api/v1/jobs/{job}/progress")["rate_bytes_per_second"] / MB

    def hyperexport(*arguments):
        return subprocess.run([BIN / "hyperexport", "providers", "limit", "vsphere", *arguments,
                               "--daemon-url", suite.url()], capture_output=True, text=True)

    path = "/api/v1/workers/vsphere/bandwidth"
    job = suite.client.submit(vm_path="endless", format="raw", bandwidth_limit_mbps=10)
    wait_for(lambda: rate() > 4, 60, lambda: suite.explain(job))
    answer = suite.client.put(path, {"bandwidth_limit_mbps": 1, "bandwidth_burst_mb": 1})
    assert (answer["source"], answer["bandwidth_limit_mbps"]) == ("api", 1)
    worker = suite["exporter-vsphere"]
    wait_for(lambda: [e for e in worker.events("bandwidth_limit") if e["mb_per_second"] == 1], 60)
    wait_for(lambda: 0 < rate() < 2, 60, lambda: suite.explain(job))
    wait_limited(suite, job)
    worker.kill()
    told = len(worker.events("bandwidth_limit"))
    worker.start()
    wait_for(lambda: [e for e in worker.events("bandwidth_limit")[told:] if e["api"]], 60)
    shown = hyperexport()
    assert shown.stdout == "limit: vsphere 1 MB/s\n", shown.stderr
    suite.client.put(f"/api/v1/jobs/{job}/bandwidth", {"bandwidth_limit_mbps": 0})
    wait_limited(suite, job)
    done = hyperexport("config")
    assert done.stdout == "limit: vsphere by configuration\n", done.stderr
    done = suite.wait_job(job, "completed")  # ten minutes at the old limit
    images.compare(endless, f"{done['result']['output_path']}/endless-disk1.raw", "raw")
    assert hyperexport("7").stdout == "limit: vsphere 7 MB/s\n"
    assert suite.client.get(path)["bandwidth_limit_mbps"] == 7
    assert suite.client.request("PUT", "/api/v1/workers/vspere/bandwidth",
                                {"bandwidth_limit_mbps": 1}).status_code == 404
    actions = {r["action"] for r in suite.sql("SELECT action FROM audit.audit_log")}
    assert {"worker.bandwidth", "worker.bandwidth_reset"} <= actions


@pytest.mark.parametrize("way", ["rest", "cli"])
def test_a_limit_is_changed_while_the_job_runs(suite, endless, way):
    job = suite.client.submit(vm_path="endless", format="raw", bandwidth_limit_mbps=1,
                              bandwidth_burst_mb=1)
    wait_limited(suite, job)
    if way == "rest":
        answer = suite.client.put(f"/api/v1/jobs/{job}/bandwidth", {"bandwidth_limit_mbps": 0})
        assert answer["job_id"] == job and answer["bandwidth_limit_mbps"] == 0
    else:
        def shown():
            return subprocess.run([BIN / "hyperexport", "jobs", "get", job, "--quiet",
                                   "--daemon-url", suite.url()], capture_output=True, text=True).stdout
        wait_for(lambda: "limited_by=rate limit" in shown(), 60, shown)
        done = subprocess.run([BIN / "hyperexport", "jobs", "limit", job, "0", "--daemon-url",
                               suite.url()], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, f"limited: {job}\n"), done.stderr
    done = suite.wait_job(job, "completed")  # ten minutes at the old limit
    images.compare(endless, f"{done['result']['output_path']}/endless-disk1.raw", "raw")
    assert done["definition"]["bandwidth_limit_mbps"] == 0
    assert "bandwidth_burst_mb" not in done["definition"]
    events = [e["event"] for e in suite.client.get(f"/api/v1/jobs/{job}/history")["history"]]
    assert "job.bandwidth_changed" in events
    assert "bandwidth of this job: no limit" in log_of(suite, job)
    assert suite.sql("SELECT count(*) AS n FROM audit.audit_log WHERE action = 'job.bandwidth'"
                     " AND resource LIKE %s", f"%{job}")[0]["n"] == 1
    late = suite.client.put(f"/api/v1/jobs/{job}/bandwidth", {"bandwidth_limit_mbps": 5}, status=409)
    assert "completed" in late["error"]


def test_a_limit_can_be_lowered_and_holds_after_a_lost_lease(suite):
    job = suite.client.submit(vm_path="endless", format="raw", bandwidth_limit_mbps=1)
    wait_limited(suite, job)
    suite.client.put(f"/api/v1/jobs/{job}/bandwidth",
                     {"bandwidth_limit_mbps": 2, "adaptive_bandwidth": True})
    wait_for(lambda: "adaptive, 1.0 to 2.0 MB/s" in log_of(suite, job), 60, "the new limit is told")
    suite["exporter-vsphere"].kill()
    told = log_of(suite, job).count("adaptive, 1.0 to 2.0 MB/s")
    suite["exporter-vsphere"].start()
    wait_for(lambda: log_of(suite, job).count("adaptive, 1.0 to 2.0 MB/s") > told, 60,
             lambda: "the next lease has it, too\n" + suite.explain(job))
    suite.client.post("/jobs/cancel", {"job_ids": [job]})
    suite.wait_job(job, "cancelled")


@pytest.mark.parametrize("body,field", [
    ({}, "bandwidth_limit_mbps"),
    ({"bandwidth_limit_mbps": -1}, "bandwidth_limit_mbps"),
    ({"bandwidth_limit_mbps": 10, "bandwidth_min_mbps": 2}, "bandwidth_min_mbps"),
    ({"adaptive_bandwidth": True, "bandwidth_min_mbps": 200}, "bandwidth_min_mbps"),
    ({"bandwidth_limit_mbps": 0, "bandwidth_burst_mb": 2}, "bandwidth_burst_mb"),
    ({"bandwidth_limit_mbps": 10, "adaptive_bandwidth": True, "bandwidth_max_mbps": 20},
     "bandwidth_max_mbps"),
])
def test_settings_that_do_not_fit_together_are_refused(suite, body, field):
    answer = suite.client.request("PUT", "/api/v1/jobs/none/bandwidth", body)
    assert answer.status_code in (400, 422) and answer.json()["field"] == field


@pytest.mark.parametrize("setting", [{"bandwidth_limit_mbps": 8, "bandwidth_burst_mb": 1},
                                     {"bandwidth_profiles": ["daily 00:00-24:00 8"],
                                      "bandwidth_limit_mbps": 500, "bandwidth_burst_mb": 1}])
def test_the_workers_own_limit_holds_for_all_its_exports_together(make_suite, make_vsphere, disk,
                                                                  setting):
    sim = make_vsphere([vm("a", disk, power="off"), vm("b", disk, power="off")])
    suite = make_suite(config={"export": setting})
    suite.add_vsphere(sim)
    jobs = [suite.client.submit(vm_path=name, format="raw") for name in ("a", "b")]
    done = [suite.wait_job(job, "completed") for job in jobs]
    # one may begin later than the other
    begun, ended = (sorted(datetime.datetime.fromisoformat(d[k].replace("Z", "+00:00")) for d in done)
                    for k in ("started_at", "completed_at"))
    assert (ended[-1] - begun[0]).total_seconds() >= (2 * 24 - 1) / 8


def test_a_reload_changes_the_workers_limit_and_a_wrong_file_does_not(make_suite, make_vsphere,
                                                                      endless):
    sim = make_vsphere([vm("endless", endless, power="off")])
    suite = make_suite(config={"export": {"bandwidth_limit_mbps": 1}})
    suite.add_vsphere(sim)
    job = suite.client.submit(vm_path="endless", format="raw")
    wait_limited(suite, job)
    worker = suite["exporter-vsphere"]
    suite.overrides["export"]["bandwidth_profiles"] = ["someday 00:00-24:00 0"]
    suite.write_config("exporter-vsphere")
    worker.signal(signal.SIGHUP)
    worker.wait_event("config_reload_failed", 60)
    wait_limited(suite, job)
    suite.overrides["export"]["bandwidth_profiles"] = ["daily 00:00-24:00 0"]
    suite.write_config("exporter-vsphere")
    worker.signal(signal.SIGHUP)
    suite.wait_job(job, "completed")  # ten minutes at the old limit

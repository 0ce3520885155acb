"""metrics-exporter: the page itself, and a real Prometheus that scrapes it."""
import json
import os
import shutil
import urllib.parse

import pytest
import requests

from tests.harness.process import Process
from tests.harness.schema import apply_schema
from tests.harness.wait import free_port, wait_for

DURATION = "hypersdk_job_duration_seconds"


@pytest.fixture
def exporter(make_suite):
    suite = make_suite(services=["metrics-exporter"], start=False)
    apply_schema(suite.postgres, suite.database)
    suite.add("metrics-exporter")
    wait_for(lambda: suite.ready("metrics-exporter"), what=suite.tails)
    return suite


def page(suite):
    return requests.get(f"http://127.0.0.1:{suite.port('metrics')}/metrics", timeout=60)


def samples(suite):
    """{"name{labels}": value}; checks the shape of every line on the way."""
    answer = page(suite)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found, typed = {}, set()
    for line in answer.text.splitlines():
        if line.startswith("# TYPE "):
            name = line.split()[2]
            assert name not in typed, f"{name} has two families"
            typed.add(name)
        elif not line.startswith("#"):
            series, value = line.rsplit(" ", 1)
            assert series not in found, f"{series} is there twice"
            found[series] = float(value)
    return found


def wait_sample(suite, series, value, deadline=60):
    wait_for(lambda: samples(suite).get(series) == value, deadline,
             lambda: f"{series} {value}\n{page(suite).text}")


def add_total(suite, name, value, **labels):
    suite.sql("INSERT INTO metric_totals (name, labels, value) VALUES (%s, %s, %s)", name,
              json.dumps(labels), value)


def add_provider(suite, name="vsphere"):
    suite.sql("INSERT INTO providers (name, kind) VALUES (%s, 'vsphere')", name)


def add_job(suite, job, status):
    suite.sql("INSERT INTO jobs (id, provider, vm_path, definition, status)"
              " VALUES (%s, 'vsphere', '/x', '{}', %s)", job, status)


def test_the_four_seed_metrics_are_there_from_the_start(exporter):
    found = samples(exporter)
    for status in ("completed", "failed", "cancelled"):
        assert found[f'hypersdk_jobs_total{{status="{status}",provider=""}}'] == 0
    assert found[f'{DURATION}_count{{vm_type="",provider=""}}'] == 0
    assert found[f'{DURATION}_bucket{{vm_type="",provider="",le="+Inf"}}'] == 0
    assert found["hypersdk_vms_exported_total"] == 0
    assert found["hypersdk_bytes_exported_total"] == 0
    assert found["hypersdk_active_jobs"] == 0 and found["hypersdk_queued_jobs"] == 0
    assert found["hypersdk_scheduler_leading"] == 0
    assert [s for s in found if s.startswith("hypersdk_build_info{version=")]
    text = page(exporter).text
    for line in ("# TYPE hypersdk_jobs_total counter", f"# TYPE {DURATION} histogram",
                 "# TYPE hypersdk_vms_exported_total counter",
                 "# TYPE hypersdk_bytes_exported_total counter",
                 "# TYPE hypersdk_queued_jobs gauge"):
        assert line + "\n" in text


def test_totals_come_from_their_table(exporter):
    add_total(exporter, "hypersdk_jobs_total", 3, status="completed", provider="vsphere")
    add_total(exporter, "hypersdk_vms_exported_total", 3)
    add_total(exporter, "hypersdk_bytes_exported_total", 2**45)
    add_total(exporter, "hypersdk_webhook_deliveries_total", 4, result="delivered")
    add_total(exporter, "hypersdk_errors_total", 1, type="timeout", provider='q"uote\\')
    wait_sample(exporter, 'hypersdk_jobs_total{status="completed",provider="vsphere"}', 3)
    found = samples(exporter)
    assert found["hypersdk_vms_exported_total"] == 3
    assert found["hypersdk_bytes_exported_total"] == 2**45
    assert found['hypersdk_webhook_deliveries_total{result="delivered"}'] == 4
    assert found['hypersdk_webhook_deliveries_total{result="failed"}'] == 0
    assert found['hypersdk_errors_total{type="timeout",provider="q\\"uote\\\\"}'] == 1


def test_histograms_add_their_buckets_up(exporter):
    labels = {"vm_type": "linux", "provider": "vsphere"}
    add_total(exporter, f"{DURATION}_bucket", 2, le="10", **labels)
    add_total(exporter, f"{DURATION}_bucket", 1, le="600", **labels)
    add_total(exporter, f"{DURATION}_bucket", 1, le="+Inf", **labels)
    add_total(exporter, f"{DURATION}_bucket", 1, le="45", **labels)  # a bound of an older build
    add_total(exporter, f"{DURATION}_sum", 100600.5, **labels)
    add_total(exporter, f"{DURATION}_count", 5, **labels)
    text = 'vm_type="linux",provider="vsphere"'
    wait_sample(exporter, f"{DURATION}_count{{{text}}}", 5)
    found = samples(exporter)
    for le, count in (("1", 0), ("5", 0), ("10", 2), ("30", 2), ("45", 3), ("60", 3), ("300", 3),
                      ("600", 4), ("86400", 4), ("+Inf", 5)):
        assert found[f'{DURATION}_bucket{{{text},le="{le}"}}'] == count, le
    assert found[f"{DURATION}_sum{{{text}}}"] == 100600.5
    assert f'{DURATION}_count{{vm_type="",provider=""}}' not in found


def test_gauges_follow_the_tables(exporter):
    add_provider(exporter)
    for i, status in enumerate(["pending", "pending", "running", "paused", "cancelling",
                                "completed", "failed"]):
        add_job(exporter, f"job-{i}", status)
    exporter.sql("INSERT INTO tasks (id, kind, class, role, provider_kind, spec) VALUES"
                 " ('t1', 'export', 'transfer', 'exporter', 'vsphere', '{}')")
    exporter.sql("INSERT INTO workers (instance, role, provider, slots_transfer, slots_control)"
                 " VALUES ('w1', 'exporter', 'vsphere', 2, 4), ('w2', 'bridge', '', 1, 1)")
    exporter.sql("INSERT INTO inventory_state VALUES ('vsphere', 'g2', now())")
    for vm, generation, power, guest in [("a", "g2", "poweredOn", "Debian GNU/Linux 12"),
                                         ("b", "g2", "poweredOn", "Ubuntu Linux (64-bit)"),
                                         ("c", "g2", "poweredOff", "Microsoft Windows Server"),
                                         ("d", "g2", "poweredOff", ""),
                                         ("a", "g1", "poweredOn", "Debian")]:
        exporter.sql("INSERT INTO inventory_vms (provider, id, generation, name, path,"
                     " power_state, vm) VALUES ('vsphere', %s, %s, %s, '/p', %s, %s)", vm,
                     generation, vm, power, json.dumps({"guest_os": guest}))
    exporter.sql("INSERT INTO leader VALUES (1, 1, 's1', now() + interval '1 hour')")
    wait_sample(exporter, "hypersdk_scheduler_leading", 1)
    found = samples(exporter)
    assert found["hypersdk_queued_jobs"] == 2 and found["hypersdk_active_jobs"] == 3
    tasks = 'hypersdk_queued_tasks{{role="{}",provider="{}",class="{}"}}'
    assert found[tasks.format("exporter", "vsphere", "transfer")] == 1
    assert found[tasks.format("exporter", "vsphere", "control")] == 0
    assert found[tasks.format("bridge", "", "transfer")] == 0
    vms = 'hypersdk_vms_discovered{{provider="vsphere",power_state="{}",os_type="{}"}}'
    assert found[vms.format("poweredOn", "linux")] == 2
    assert found[vms.format("poweredOff", "windows")] == 1
    assert found[vms.format("poweredOff", "unknown")] == 1
    assert found['hypersdk_workers{role="exporter",provider="vsphere",state="up"}'] == 1
    slots = 'hypersdk_worker_slots{role="exporter",provider="vsphere",class="transfer"}'
    assert found[slots] == 2
    assert found['hypersdk_jobs_total{status="failed",provider="vsphere"}'] == 0


def test_a_malformed_row_is_left_out_and_told(exporter):
    add_total(exporter, "bad name", 1)
    add_total(exporter, "hypersdk_x_total", 1, **{"bad-label": "x"})
    add_total(exporter, "hypersdk_vms_exported_total", 1)
    wait_sample(exporter, "hypersdk_vms_exported_total", 1)
    assert "bad" not in page(exporter).text
    wait_for(lambda: len(exporter["metrics-exporter"].events("metric_row_refused")) >= 2)


def test_without_the_database_the_target_is_down(make_suite):
    suite = make_suite(own_postgres=True, services=["metrics-exporter"], start=False)
    apply_schema(suite.postgres, suite.database)
    suite.add("metrics-exporter")
    wait_for(lambda: suite.ready("metrics-exporter"), what=suite.tails)
    suite.postgres.stop("immediate")
    wait_for(lambda: page(suite).status_code == 503)
    assert "database" in page(suite).text
    assert suite["metrics-exporter"].alive()
    suite.postgres.start()
    wait_for(lambda: page(suite).status_code == 200)
    assert samples(suite)["hypersdk_vms_exported_total"] == 0


def test_other_paths_and_methods_are_refused(exporter):
    url = f"http://127.0.0.1:{exporter.port('metrics')}"
    assert requests.get(url + "/nothing", timeout=60).status_code == 404
    assert requests.post(url + "/metrics", data="x", timeout=60).status_code == 405
    assert requests.get(url + "/", timeout=60).status_code == 200


def test_its_role_may_read_only(exporter):
    pid = exporter.sql("SELECT count(*) AS n FROM pg_stat_activity WHERE datname = %s"
                       " AND application_name LIKE 'metrics-exporter-%%'", exporter.database)
    assert pid[0]["n"] >= 1
    rights = exporter.sql("SELECT has_table_privilege('hypersdk_metrics', 'jobs', 'UPDATE') AS u,"
                          " has_table_privilege('hypersdk_metrics', 'credentials', 'SELECT') AS s")
    assert rights == [{"u": False, "s": False}]


def test_a_real_prometheus_scrapes_it(exporter, tmp_path):
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("the package prometheus is not installed")
    add_total(exporter, "hypersdk_jobs_total", 5, status="completed", provider="vsphere")
    add_total(exporter, f"{DURATION}_bucket", 5, le="60", vm_type="linux", provider="vsphere")
    add_total(exporter, f"{DURATION}_sum", 200, vm_type="linux", provider="vsphere")
    add_total(exporter, f"{DURATION}_count", 5, vm_type="linux", provider="vsphere")
    port = free_port()
    config = tmp_path / "prometheus.yaml"
    config.write_text(json.dumps({
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [
            {"job_name": "hypersdk",
             "static_configs": [{"targets": [f"127.0.0.1:{exporter.port('metrics')}"]}]},
            {"job_name": "admin", "static_configs": [
                {"targets": [f"127.0.0.1:{exporter.port('admin metrics-exporter')}"]}]}]}))
    prometheus = Process("prometheus", [program, f"--config.file={config}",
                                        f"--storage.tsdb.path={tmp_path}/tsdb",
                                        f"--web.listen-address=127.0.0.1:{port}"],
                         tmp_path / "prometheus.log", env={"HOME": os.environ.get("HOME", "/")})
    prometheus.start()
    try:
        def query(expression):
            url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode(
                {"query": expression})
            answer = requests.get(url, timeout=60).json()
            assert answer["status"] == "success", answer
            return [(r["metric"], float(r["value"][1])) for r in answer["data"]["result"]]

        def wait_value(expression, fits):
            """A scrape that was too slow leaves a gap: until one was not."""
            wait_for(lambda: fits(query(expression)[0][1]), what=lambda: f"{expression}\n{prometheus.tail()}")

        wait_value('up{job="hypersdk"}', lambda v: v == 1)
        wait_value('up{job="admin"}', lambda v: v == 1)
        wait_value('hypersdk_jobs_total{status="completed",provider="vsphere"}', lambda v: v == 5)
        wait_value("hypersdk_vms_exported_total", lambda v: v == 0)
        wait_value("hypersdk_queued_jobs", lambda v: v == 0)
        wait_value(f"histogram_quantile(0.5, {DURATION}_bucket)", lambda v: 0 < v <= 60)
        wait_value('process_resident_memory_bytes{job="admin"}', lambda v: v > 0)
        metadata = requests.get(f"http://127.0.0.1:{port}/api/v1/metadata", timeout=60).json()
        types = {n: d[0]["type"] for n, d in metadata["data"].items() if n.startswith("hypersdk")}
        assert types["hypersdk_jobs_total"] == "counter" and types[DURATION] == "histogram"
        assert types["hypersdk_active_jobs"] == "gauge"
    finally:
        prometheus.stop()

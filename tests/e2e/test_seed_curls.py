"""The curl lines of the seeds, verbatim: bodies with comments, no content type, short paths. Only
where `localhost:8080` leads is changed, by curl's --connect-to. A line whose endpoint or fields come
later must be refused as not_available; it is then a visible skip."""
import json
import pathlib
import shutil
import subprocess

import pytest

from tests.harness import images
from tests.harness.vsphere import make_image, vm
from tests.harness.wait import wait_for

MB = 1 << 20

SIMPLE_SUBMIT = """curl http://localhost:8080/jobs/submit -d '{
  "vm_identifier": "vm-123",
  "provider": "vsphere",
  "hyper2kvm_integration": {"enabled": true}
}'"""
HEALTH = "curl http://localhost:8080/health"
LIST = """curl -X POST http://localhost:8080/vms/list \\
  -H "Content-Type: application/json" \\
  -d '{"provider": "vsphere"}'"""
SUBMIT_OVA = """curl -X POST http://localhost:8080/jobs/submit \\
  -H "Content-Type: application/json" \\
  -d '{
    "vm_identifier": "test-vm",
    "provider": "vsphere",
    "export_method": "ova",
    "export_path": "/exports/test-vm",
    "hyper2kvm_integration": {
      "enabled": true,
      "daemon_mode": true
    }
  }'"""
DIRECT = """curl -X POST http://localhost:8080/jobs/submit -d '{
  "vm_identifier": "test-app-vm",
  "provider": "vsphere",
  "hyper2kvm_integration": {
    "enabled": true,
    "daemon_mode": false,  # Direct call
    "auto_convert": true
  }
}'"""
POLICY = """curl -X POST http://localhost:8080/backup-policies/create -d '{
  "name": "production-migration",
  "vm_filter": {"tags": ["production"]},
  "schedule": "0 2 * * *",  # 2 AM daily
  "hyper2kvm_integration": {
    "enabled": true,
    "daemon_mode": true  # Queue-based
  }
}'"""
SCHEDULE = """curl -X POST http://localhost:8080/schedules/create -d '{
  "name": "dr-backup",
  "cron": "0 1 * * *",
  "job_definition": {
    "vm_identifier": "db-server",
    "export_method": "ova",
    "hyper2kvm_integration": {"enabled": true}
  },
  "retention": {"count": 7}  # Keep 7 days
}'"""
STATUS = "curl http://localhost:8080/status"
VALIDATE = """curl -X POST http://localhost:8080/providers/validate -d '{
  "provider": "vsphere"
}'"""
FEATURES = """curl -X POST http://localhost:8080/api/v1/jobs \\
  -H "Content-Type: application/json" \\
  -d '{
    "vm_path": "/Datacenter/vm/MyVM",
    "output_path": "/exports/MyVM",
    "snapshot": true,
    "incremental": true,
    "bandwidth_limit_mbps": 20,
    "email_notify": true
  }'"""


@pytest.fixture
def disk(tmp_path):
    return make_image(tmp_path / "disk.raw", 8 * MB, [(MB, 2 * MB)])


@pytest.fixture
def slash_exports():
    """/exports, which the seeds name; it goes again unless it was there before."""
    path = pathlib.Path("/exports")
    made = not path.exists()
    try:
        path.mkdir(exist_ok=True)
    except OSError as e:
        pytest.skip(f"/exports cannot be made: {e}")
    yield path
    if made:
        (path / ".hypersdk-volume").unlink(missing_ok=True)
        path.rmdir()


@pytest.fixture
def suite(make_suite, make_vsphere, disk, request):
    sim = make_vsphere([vm(n, disk, tags=["env:production"] if n == "test-app-vm" else [])
                        for n in ("vm-123", "test-vm", "test-app-vm")])
    more = [str(request.getfixturevalue("slash_exports"))] if "slash_exports" in \
        request.fixturenames else []
    suite = make_suite(config={"export": {"allowed_paths": more}})
    suite.add_vsphere(sim)
    return suite


@pytest.fixture
def curl(suite):
    def call(line):
        """(status, parsed answer) of a seed's line."""
        port = suite.port("api-gateway")
        options = (f"-sS --noproxy '*' --connect-to localhost:8080:127.0.0.1:{port} "
                   "-w '\\n%{http_code}'")
        done = subprocess.run(
            ["bash", "-c", f'curl() {{ command curl {options} "$@"; }}\n{line}'],
            capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr
        body, _, status = done.stdout.rpartition("\n")
        return int(status), json.loads(body)
    return call


def comes_later(status, answer, what):
    assert status in (404, 422) and answer["code"] == "not_available", (status, answer)
    pytest.skip(f"{what} is not available yet")


def test_health(curl):
    status, answer = curl(HEALTH)
    assert (status, answer["status"]) == (200, "healthy")


def test_list_is_a_bare_array(curl):
    status, answer = curl(LIST)
    assert status == 200 and isinstance(answer, list)
    assert {"vm-123", "test-vm", "test-app-vm"} <= {v["name"] for v in answer}


def test_submit_query_progress_and_logs(curl, suite):
    status, answer = curl(SIMPLE_SUBMIT)
    assert status == 200 and answer["status"] == "pending"
    job = answer["job_id"]
    suite.wait_job(job, *("completed", "failed"))
    status, answer = curl(f"curl http://localhost:8080/jobs/query?job_id={job}")
    assert status == 200 and answer["job_id"] == job and answer["jobs"][0]["job_id"] == job
    status, answer = curl(f"curl http://localhost:8080/jobs/progress/{job}")
    assert isinstance(answer["percentage"], (int, float))
    assert isinstance(answer["bytes_transferred"], int)
    logs = suite.client.request("GET", f"/jobs/logs/{job}?follow=true",
                                headers={"Accept": "text/plain"})
    assert logs.ok and logs.text.count("\n") > 1


def test_direct_conversion_in_one_operation(curl, suite, disk):
    status, answer = curl(DIRECT)
    assert status == 200, answer
    result = suite.wait_job(answer["job_id"], "completed")["result"]
    qcow2 = [f for f in result["conversion"]["output_files"] if f.endswith(".qcow2")]
    images.compare(disk, qcow2[0], "qcow2")


def test_status_shows_workers_and_queue(curl):
    status, answer = curl(STATUS)
    assert status == 200
    assert answer["workers"]["total"] >= 1 and answer["queue_depth"] == 0


def test_validate_checks_the_credentials(curl):
    status, answer = curl(VALIDATE)
    assert status == 200 and answer["valid"] is True and answer["provider"] == "vsphere"


def test_submit_ova_in_queue_mode(slash_exports, curl, suite, disk, tmp_path):
    directory = None
    try:
        status, answer = curl(SUBMIT_OVA)
        assert status == 200, answer
        result = suite.wait_job(answer["job_id"], "completed")["result"]
        directory = pathlib.Path(result["output_path"])
        assert slash_exports / "test-vm" in (directory, directory.parent)
        images.unpack_ova(directory / "test-vm.ova", tmp_path / "unpacked")
        images.compare(disk, tmp_path / "unpacked" / "test-vm-disk1.vmdk", "vmdk")
        # no hyper2kvm runs here, so its queue is passed over
        qcow2 = [f for f in result["conversion"]["output_files"] if f.endswith(".qcow2")]
        images.compare(disk, qcow2[0], "qcow2")
    finally:
        if directory is not None:
            shutil.rmtree(directory)
            if directory.parent != slash_exports and not any(directory.parent.iterdir()):
                directory.parent.rmdir()


def test_features_of_the_command_line_over_rest(curl):
    comes_later(*curl(FEATURES), "email_notify")


def test_backup_policy(curl, suite, disk):
    status, made = curl(POLICY)
    assert status == 201, made
    assert made["vm_filter"] == {"tags": ["production"]} and made["matching_vms"] == 1
    assert made["schedule"] == "0 2 * * *" and made["enabled"] and made["next_run"]
    path = f"/api/v1/backup-policies/{made['id']}"
    suite.sql("UPDATE schedules SET next_run_at = now() - interval '1 second'")  # it is 2 o'clock

    def ended():
        runs = suite.client.get(path)["runs"]
        return runs and runs[0]["status"] in ("ok", "failed")
    wait_for(ended, 120, suite.tails)
    run = suite.client.get(path)["runs"][0]
    assert run["status"] == "ok" and [r["vm_name"] for r in run["results"]] == ["test-app-vm"]
    result = suite.client.job(run["results"][0]["job_id"])["result"]
    qcow2 = [f for f in result["conversion"]["output_files"] if f.endswith(".qcow2")]
    images.compare(disk, qcow2[0], "qcow2")  # no hyper2kvm runs here, so its queue is passed over


def test_schedule(curl):
    status, answer = curl(SCHEDULE)
    assert status == 201, answer
    schedule = answer["schedule"]
    assert schedule["retention"] == {"count": 7} and schedule["enabled"] and schedule["next_run"]

"""The command line client against a scripted gateway: requests, output, exit statuses, signals."""
import json
import os
import pty
import re
import signal
import subprocess

import pytest

from tests.fakes.gateway import CutConnection, FakeGateway
from tests.harness.process import BIN, ROOT
from tests.harness.wait import free_port, wait_for

VM = {"id": "vm-42", "name": "web-03", "path": "/DC1/vm/prod/web-03", "provider": "vsphere",
      "power_state": "poweredOff", "guest_os": "Debian GNU/Linux 12 (64-bit)", "num_cpu": 2,
      "memory_mb": 4096, "storage_bytes": 138047488000, "firmware": "uefi"}
RESULT = {"output_path": "/exports/web-03", "total_size": 42 << 20, "transferred_bytes": 40 << 20,
          "duration_seconds": 4, "files": [{"name": "web-03.ovf"}, {"name": "web-03-disk1.vmdk"}],
          "manifest_path": "/exports/web-03/artifact-manifest.json"}


@pytest.fixture
def gateway():
    fake = FakeGateway()
    yield fake
    fake.close()


def environment(tmp_path, **extra):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HYPEREXPORT_", "HYPERSDK_"))}
    env.update(XDG_CONFIG_HOME=str(tmp_path / "home"), LC_ALL="C.UTF-8", **extra)
    return env


@pytest.fixture
def cli(gateway, tmp_path):
    def call(*args, env=None, url=True, stdin=None):
        argv = [BIN / "hyperexport", *args] + (["--daemon-url", gateway.url] if url else [])
        return subprocess.run(argv, capture_output=True, text=True, timeout=120, input=stdin,
                              env=environment(tmp_path, **(env or {})))
    return call


def job_answers(gateway, *states, **job):
    """The job goes through the states, one per look at its progress."""
    left = list(states)

    def progress(_):
        state = left.pop(0) if len(left) > 1 else left[0]
        return {"job_id": "job-1", "status": state, "phase": "exporting", "percentage": 45.0,
                "bytes_transferred": 5242880, "total_bytes": 11650844,
                "rate_bytes_per_second": 1048576, "eta_seconds": 6}

    gateway.answers["POST", "/api/v1/jobs"] = (201, {"job_id": "job-1", "status": "pending"})
    gateway.answers["GET", "/api/v1/jobs/job-1/progress"] = progress
    gateway.answers["GET", "/api/v1/jobs/job-1"] = lambda _: dict(
        {"job_id": "job-1", "status": left[0], "vm_name": "web-03", "phase": "",
         "result": RESULT}, **job)


def test_vm_info_is_the_box_of_the_reference(cli, gateway):
    gateway.answers["POST", "/vms/info"] = {"success": True, "vm_info": VM}
    done = cli("--vm", "web-03", "--vm-info")
    assert done.returncode == 0, done.stderr
    assert done.stdout == """\
┌─ VM Information ─────────────────────────────────┐
│ Property      │ Value                            │
├───────────────┼──────────────────────────────────┤
│ VM Name       │ web-03                           │
│ Power State   │ ● poweredOff                     │
│ Guest OS      │ Debian GNU/Linux 12 (64-bit)     │
│ Memory        │ 4096 MB (4.0 GB)                 │
│ vCPUs         │ 2                                │
│ Storage       │ 128.5 GB                         │
│ Path          │ /DC1/vm/prod/web-03              │
└──────────────────────────────────────────────────┘
"""
    assert gateway.asked("POST", "/vms/info")[0].body == {"vm_path": "web-03"}


def test_quiet_vm_info_has_the_seven_lines_in_order(cli, gateway):
    gateway.answers["POST", "/vms/info"] = {"success": True, "vm_info": dict(VM, name="a\nb=c")}
    done = cli("--vm", "web-03", "--vm-info", "--quiet", "--provider", "lab")
    assert done.stdout.splitlines()[:7] == [
        "name=a\\nb=c", "path=/DC1/vm/prod/web-03", "power_state=poweredOff",
        "guest_os=Debian GNU/Linux 12 (64-bit)", "cpu=2", "memory_mb=4096",
        "storage_bytes=138047488000"]
    assert gateway.asked("POST", "/vms/info")[0].body == {"vm_path": "web-03", "provider": "lab"}


def test_tags_and_cluster_are_shown(cli, gateway):
    tagged = dict(VM, cluster="C0", tags={"env": ["pci", "production"], "owner": ["ops"]})
    unknown = dict(VM, name="other", cluster="", tags=None, tags_unknown="HTTP 503")
    gateway.answers["POST", "/vms/info"] = {"vm_info": tagged}
    box = cli("--vm", "web-03", "--vm-info").stdout
    assert "│ Cluster       │ C0 " in box
    assert "│ Tags          │ env:pci, env:production, owner:ops │" in box
    assert cli("--vm", "web-03", "--vm-info", "--quiet").stdout.splitlines()[-2:] == [
        "cluster=C0", "tags=env:pci, env:production, owner:ops"]
    gateway.answers["POST", "/vms/info"] = {"vm_info": unknown}
    assert "tags=unknown: HTTP 503" in cli("--vm", "web-03", "--vm-info", "--quiet").stdout
    gateway.answers["GET", "/api/v1/vms"] = {"vms": [tagged, unknown], "total": 2}
    heading, first, second = cli("vms", "list").stdout.splitlines()
    assert heading.split()[-2:] == ["CLUSTER", "TAGS"]
    assert first.rstrip().endswith("C0       env:pci, env:production, owner:ops")
    assert second.rstrip().endswith("unknown")
    gateway.answers["GET", "/api/v1/vms"] = lambda r: {
        "vms": [tagged] if r.query.get("tags") == "env:pci,a b" else []}
    done = cli("vms", "list", "--cluster", "C 0", "--tag", "env:pci", "--tag", "a b", "--json")
    assert [v["name"] for v in json.loads(done.stdout)] == ["web-03"]
    assert gateway.asked("GET", "/api/v1/vms")[-1].query["cluster"] == "C 0"
    done = cli("vms", "info", "--vm", "web-03", "--tag", "env:pci")
    assert done.returncode == 64 and "--tag does not apply to 'vms info'" in done.stderr


def test_vm_info_waits_while_all_workers_are_busy(cli, gateway):
    answers = [(202, {"task_id": "task-1"}), {"success": True, "vm_info": VM}]
    gateway.answers["POST", "/vms/info"] = lambda _: answers.pop(0)
    assert cli("--vm", "web-03", "--vm-info").returncode == 0


def test_names_from_outside_cannot_steer_the_terminal(cli, gateway):
    gateway.answers["POST", "/vms/info"] = {"vm_info": dict(VM, name="\x1b[2Jx‮y")}
    done = cli("--vm", "web-03", "--vm-info")
    assert "\x1b" not in done.stdout and "‮" not in done.stdout
    assert "\\x1b[2Jx�y" in done.stdout


def test_an_export_sends_what_was_typed_and_nothing_else(cli, gateway):
    job_answers(gateway, "running", "completed")
    done = cli("--vm", "web-03", "--quiet")
    assert done.returncode == 0, done.stderr
    assert gateway.asked("POST", "/api/v1/jobs")[0].body == {"vm_path": "web-03"}
    assert done.stdout.splitlines()[0] == "success: web-03 exported to /exports/web-03 (42.0 MB)"
    cli("-vm", "web-03", "-format=qcow2", "--output", "x/y", "--provider", "lab",
        "--verify=false", "--convert", "--parallel", "8", "--snapshot", "--snapshot-name", "s",
        "--upload", "s3://b", "--upload-on-error", "continue", "--snapshot-on-error=continue", "--quiet")
    assert gateway.asked("POST", "/api/v1/jobs")[1].body == {
        "vm_path": "web-03", "format": "qcow2", "output_path": "x/y", "provider": "lab",
        "verify": False, "options": {"parallel_downloads": 8}, "snapshot": True,
        "snapshot_name": "s", "snapshot_on_error": "continue", "upload": "s3://b",
        "upload_on_error": "continue", "hyper2kvm_integration": {
            "enabled": True, "daemon_mode": False, "auto_convert": True}}


def test_libvirt_flags_go_into_the_job_and_the_domain_is_told(cli, gateway):
    domain = {"name": "web-03", "uri": "qemu:///system"}
    job_answers(gateway, "running", "completed", result=dict(RESULT, libvirt_domain=domain))
    done = cli("--vm", "web-03", "--pipeline", "--libvirt", "--quiet")
    assert done.returncode == 0 and "domain: web-03" in done.stdout.splitlines(), done.stderr
    assert gateway.asked("POST", "/api/v1/jobs")[0].body["libvirt"] == {}, "the server's own settings"
    done = cli("--vm", "web-03", "--convert", "--libvirt", "--libvirt-uri", "qemu:///session",
               "--libvirt-pool", "fast", "--libvirt-bridge", "br7", "--libvirt-autostart")
    assert "web-03" in done.stdout and "qemu:///system" in done.stdout, done.stdout
    assert gateway.asked("POST", "/api/v1/jobs")[1].body["libvirt"] == {
        "uri": "qemu:///session", "pool": "fast", "bridge": "br7", "autostart": True}
    for flags, words in ((["--libvirt"], "--libvirt needs --convert"),
                         (["--convert", "--libvirt-pool", "x"], "--libvirt-pool needs --libvirt"),
                         (["--libvirt-autostart", "--convert"], "--libvirt-autostart needs --libvirt")):
        done = cli("--vm", "web-03", *flags)
        assert done.returncode == 64 and words in done.stderr


@pytest.mark.parametrize("status", ["failed", "cancelled", "running"])
def test_resume_goes_on_with_the_newest_job(cli, gateway, status):
    job_answers(gateway, "running", "completed")
    gateway.answers["GET", "/api/v1/jobs"] = {"jobs": [{"job_id": "job-1", "status": status}]}
    gateway.answers["POST", "/api/v1/jobs/job-1/retry"] = (202, {"job_id": "job-1",
                                                                 "status": "pending"})
    done = cli("--vm", "web 03", "--provider", "lab", "--resume", "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("success: ")
    asked = gateway.asked("GET", "/api/v1/jobs")[0]
    assert asked.query == {"limit": "1", "vm": "web 03", "provider": "lab"}
    assert len(gateway.asked("POST", "/api/v1/jobs/job-1/retry")) == (status != "running")
    assert gateway.asked("POST", "/api/v1/jobs") == []


def test_resume_without_anything_to_go_on_with_says_so(cli, gateway):
    gateway.answers["GET", "/api/v1/jobs"] = {"jobs": []}
    done = cli("--vm", "web-03", "--resume")
    assert done.returncode == 2 and "no earlier export of 'web-03'" in done.stderr
    gateway.answers["GET", "/api/v1/jobs"] = {"jobs": [{"job_id": "j", "status": "completed"}]}
    done = cli("--vm", "web-03", "--resume")
    assert done.returncode == 2 and "is complete" in done.stderr
    done = cli("--vm", "web-03", "--resume", "--format", "raw")
    assert done.returncode == 64 and "--vm and --provider only" in done.stderr


def test_the_summary_tells_where_it_is(cli, gateway):
    job_answers(gateway, "running", "completed")
    done = cli("--vm", "web-03")
    assert "/exports/web-03" in done.stdout and "10.0 MB/s" in done.stdout
    assert "progress: exporting, 45.0%, 5.0 MB of 11.1 MB, 1.0 MB/s, ETA 6s" in done.stderr


def test_a_lost_answer_makes_no_second_job(cli, gateway):
    job_answers(gateway, "completed")
    answer = gateway.answers["POST", "/api/v1/jobs"]
    tries = []

    def submit(request):
        tries.append(request.headers["Idempotency-Key"])
        if len(tries) == 1:
            raise CutConnection
        return (503, {"error": "database", "code": "unavailable"}) if len(tries) == 2 else answer

    gateway.answers["POST", "/api/v1/jobs"] = submit
    assert cli("--vm", "web-03", "--quiet").returncode == 0
    assert len(tries) == 3 and len(set(tries)) == 1 and len(tries[0]) == 36
    assert cli("--vm", "web-03", "--quiet").returncode == 0
    assert tries[3] != tries[0]


def test_detach_prints_the_job_and_returns(cli, gateway):
    job_answers(gateway, "running")
    for flags in (["--detach"], ["--use-daemon"]):
        done = cli("--vm", "web-03", *flags)
        assert (done.returncode, done.stdout) == (0, "job-id: job-1\n")
    assert gateway.asked("GET", "/api/v1/jobs/job-1/progress") == []


@pytest.mark.parametrize("job,status", [
    ({"error_code": "internal", "phase": "exporting"}, 2),
    ({"error_code": "corrupt", "phase": "verifying"}, 4),
    ({"error_code": "unavailable", "phase": "converting"}, 6),
    ({"error_code": "denied", "phase": "connecting"}, 1),
    ({"error_code": "not_available", "phase": "discovering"}, 65),
    ({"error_code": "not_found", "phase": "discovering"}, 2),
])
def test_the_exit_status_tells_how_a_job_failed(cli, gateway, job, status):
    job_answers(gateway, "failed", error="it broke", **job)
    done = cli("--vm", "web-03", "--quiet")
    assert done.returncode == status
    assert done.stderr.startswith("error: it broke (job job-1")
    assert done.stdout == ""


def test_refusals_are_told_with_the_gateways_words(cli, gateway):
    for status, code, expected in [(400, "invalid", 64), (403, "denied", 1), (404, "not_found", 2),
                                   (422, "not_available", 65), (422, "conflict", 2)]:
        gateway.answers["POST", "/api/v1/jobs"] = (status, {"error": "the reason", "code": code})
        done = cli("--vm", "web-03")
        assert (done.returncode, done.stderr) == (expected, "error: the reason\n")


def test_without_a_gateway_it_says_how_to_start_one(cli):
    done = cli("--vm", "web-03", "--daemon-url", f"http://127.0.0.1:{free_port()}", url=False)
    assert done.returncode == 1
    assert "no gateway answers" in done.stderr and "make run" in done.stderr


def test_401_points_to_login(cli, gateway):
    gateway.answers["GET", "/status"] = (401, {"error": "no identity", "code": "denied"})
    done = cli("status")
    assert done.returncode == 1 and "hyperexport login" in done.stderr


def test_a_wrong_password_is_told_as_such(cli, gateway):
    gateway.answers["POST", "/api/v1/auth/login"] = (401, {"error": "wrong password", "code": "x"})
    done = cli("login", "--username", "ana", "--password-file", "-", stdin="no\n")
    assert (done.returncode, done.stderr) == (1, "error: wrong password\n")


def test_login_is_remembered_per_gateway(cli, gateway, tmp_path):
    gateway.answers["POST", "/api/v1/auth/login"] = {
        "token": "s.secret", "username": "ana", "expires_at": "2999-01-01T00:00:00Z"}
    gateway.answers["GET", "/status"] = {"version": "1"}
    done = cli("login", "--username", "ana", "--password-file", "-", stdin="hunter2\n")
    assert done.returncode == 0, done.stderr
    assert gateway.asked("POST", "/api/v1/auth/login")[0].body == {
        "username": "ana", "password": "hunter2"}
    file = tmp_path / "home" / "hypersdk" / "sessions.json"
    assert file.stat().st_mode & 0o777 == 0o600
    cli("status")
    assert gateway.asked("GET", "/status")[-1].headers["Authorization"] == "Bearer s.secret"
    cli("status", env={"HYPERSDK_TOKEN": "hk_key"})
    assert gateway.asked("GET", "/status")[-1].headers["X-API-Key"] == "hk_key"
    file.chmod(0o644)
    done = cli("status")
    assert done.returncode == 1 and "chmod 600" in done.stderr


def test_a_token_never_crosses_plain_http_to_another_machine(cli):
    done = cli("status", "--daemon-url", "http://192.0.2.1:8080", url=False,
               env={"HYPERSDK_TOKEN": "hk_key"})
    assert done.returncode == 1 and "plain http" in done.stderr


def test_jobs_list_quiet_and_all_pages(cli, gateway):
    def jobs(request):
        if "cursor" not in request.query:
            return {"jobs": [{"job_id": "job-2", "status": "running", "vm_name": "b"}],
                    "next_cursor": "c1"}
        return {"jobs": [{"job_id": "job-1", "status": "failed", "vm_path": "/x/a"}]}

    gateway.answers["GET", "/api/v1/jobs"] = jobs
    done = cli("jobs", "list", "--quiet")
    assert done.stdout == "job-2\trunning\tb\njob-1\tfailed\t/x/a\n"
    done = cli("--daemon-list", "running", "--quiet")
    assert gateway.asked("GET", "/api/v1/jobs")[-1].query["status"] == "running"
    assert json.loads(cli("jobs", "list", "--json").stdout)[1]["job_id"] == "job-1"


def test_cancel_tells_when_it_was_refused(cli, gateway):
    gateway.answers["POST", "/jobs/cancel"] = {"cancelled": ["job-1"], "failed": [], "errors": {}}
    done = cli("jobs", "cancel", "job-1")
    assert (done.returncode, done.stdout) == (0, "cancelled: job-1\n")
    gateway.answers["POST", "/jobs/cancel"] = {
        "cancelled": [], "failed": ["job-1"], "errors": {"job-1": "it is final"}}
    done = cli("--daemon-cancel", "job-1")
    assert done.returncode == 2 and "it is final" in done.stderr


def test_logs_are_passed_through(cli, gateway):
    gateway.answers["GET", "/api/v1/jobs/job-1/logs"] = "one\ntwo\n"
    assert cli("jobs", "logs", "job-1").stdout == "one\ntwo\n"
    assert cli("jobs", "logs", "job-1", "--follow").stdout == "one\ntwo\n"
    assert gateway.asked("GET", "/api/v1/jobs/job-1/logs")[-1].query["follow"] == "true"
    done = cli("jobs", "logs", "job-9")
    assert done.returncode == 2 and "error:" in done.stderr


def test_providers_add_sends_the_secret_in_the_body_only(cli, gateway):
    gateway.answers["POST", "/api/v1/providers"] = (201, {"name": "vsphere"})
    done = cli("providers", "add", "--url", "https://vc", "--username", "u",
               "--password-file", "-", "--thumbprint", "AA:BB", stdin="hunter2\n")
    assert done.returncode == 0, done.stderr
    assert gateway.asked("POST", "/api/v1/providers")[0].body == {
        "name": "vsphere", "kind": "vsphere", "host": "https://vc", "username": "u",
        "password": "hunter2", "thumbprint": "AA:BB"}
    assert "hunter2" not in done.stdout + done.stderr
    done = cli("providers", "add", "--url", "https://vc", "--username", "u", "--password", "x")
    assert done.returncode == 0 and "warning:" in done.stderr


def test_providers_validate_and_remove(cli, gateway):
    gateway.answers["POST", "/api/v1/providers/lab/validate"] = {
        "provider": "lab", "valid": False, "error": "login refused"}
    done = cli("providers", "validate", "lab")
    assert done.returncode == 1 and "login refused" in done.stderr
    gateway.answers["DELETE", "/api/v1/providers/lab"] = {"removed": "lab"}
    assert cli("providers", "remove", "lab").returncode == 2
    assert gateway.asked("DELETE", "/api/v1/providers/lab") == []
    assert cli("providers", "remove", "lab", "--yes").returncode == 0
    assert len(gateway.asked("DELETE", "/api/v1/providers/lab")) == 1


@pytest.mark.parametrize("number,status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cancels_the_own_job(gateway, tmp_path, number, status):
    job_answers(gateway, "running")
    cancelled = []

    def cancel(request):
        cancelled.append(request.body["job_ids"])
        job_answers(gateway, "cancelled")
        return {"cancelled": ["job-1"], "failed": [], "errors": {}}

    gateway.answers["POST", "/jobs/cancel"] = cancel
    child = subprocess.Popen([BIN / "hyperexport", "--vm", "web-03", "--daemon-url", gateway.url],
                             env=environment(tmp_path), stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)
    wait_for(lambda: gateway.asked("GET", "/api/v1/jobs/job-1/progress"), what="it follows")
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, cancelled) == (status, [["job-1"]]), err
    assert b"cancelled" in err


def test_a_signal_only_ends_the_watching_of_a_foreign_job(gateway, tmp_path):
    job_answers(gateway, "running")
    child = subprocess.Popen([BIN / "hyperexport", "jobs", "watch", "job-1", "--daemon-url",
                              gateway.url], env=environment(tmp_path), stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)
    wait_for(lambda: gateway.asked("GET", "/api/v1/jobs/job-1/progress"), what="it follows")
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130 and b"goes on" in err
    assert gateway.asked("POST", "/jobs/cancel") == []


def test_following_survives_a_gateway_that_is_away(cli, gateway):
    job_answers(gateway, "running", "completed")
    look = gateway.answers["GET", "/api/v1/jobs/job-1/progress"]
    calls = []

    def flaky(request):
        calls.append(1)
        if len(calls) == 2:
            raise CutConnection
        if len(calls) == 3:
            return 503, {"error": "database", "code": "unavailable"}
        return look(request)

    gateway.answers["GET", "/api/v1/jobs/job-1/progress"] = flaky
    done = cli("--vm", "web-03")
    assert done.returncode == 0
    assert "does not answer" in done.stderr and "answers again" in done.stderr


def test_a_terminal_gets_a_progress_bar(gateway, tmp_path):
    job_answers(gateway, "running", "running", "completed")
    master, slave = pty.openpty()
    child = subprocess.Popen([BIN / "hyperexport", "--vm", "web-03", "--daemon-url", gateway.url],
                             env=environment(tmp_path), stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    assert child.wait(60) == 0
    text = shown.decode()
    assert "\r" in text and "[███████░" in text and " 45.0%" in text
    assert "1.0 MB/s" in text and "ETA 6s" in text and "Export Completed" in text


def test_help_and_readme_tell_every_exit_status(cli):
    table = re.search(r"enum exit_status \{(.*?)\};", (ROOT / "services/hyperexport/api.h").read_text(), re.S)[1]
    for text in (cli("--help").stdout, (ROOT / "README.md").read_text()):
        told = re.search(r"Exit status: (.*?)\.\n", text, re.S)[1]
        assert [item.split()[0] for item in re.split(r",\s+(?=\d)", told)] == \
            re.findall(r"= (\d+)", table) + ["130/143"]


# ---- schedules ----

def test_a_schedule_carries_the_flags_of_the_export(cli, gateway):
    gateway.answers["POST", "/api/v1/schedules"] = (
        201, {"message": "schedule created", "schedule": {"id": "sch-1", "name": "n", "next_run": "soon"}})
    done = cli("--vm", "web", "--provider", "vc2", "--incremental", "--upload", "s3://b/x", "--snapshot",
               "--cleanup", "--cleanup-max-count", "3", "--daemon-schedule", "n:0 2 * * mon",
               "--timezone", "Asia/Tokyo")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "schedule-created: n\nnext run: soon\n"
    sent = gateway.requests[-1].body
    assert (sent["name"], sent["schedule"], sent["timezone"]) == ("n", "0 2 * * mon", "Asia/Tokyo")
    assert sent["job_template"] == {"vm_path": "web", "provider": "vc2", "incremental": True,
                                    "upload": "s3://b/x", "snapshot": True,
                                    "cleanup": {"max_count": 3}}


@pytest.mark.parametrize("args,text", [
    (["--vm", "x", "--daemon-schedule", "no-cron"], "must be name:cron"),
    (["--vm", "x", "--daemon-schedule", ":@daily"], "must be name:cron"),
    (["--vm", "x", "--daemon-schedule", "a:@daily", "--resume"], "--resume belongs to one export"),
    (["--vm", "x", "--timezone", "UTC"], "belongs to --daemon-schedule"),
    (["schedule", "explode"], "unknown command 'schedule explode'"),
    (["policy", "explode"], "unknown command 'policy explode'"),
    (["policy", "update", "x"], "needs a policy and a file"),
    (["template", "create", "x"], "needs a name and a YAML or JSON file"),
    (["template", "explode"], "unknown command 'template explode'"),
    (["policy", "runs", "x", "--depends-on", "y"], "--depends-on does not apply to 'policy runs'"),
    (["--vm", "x", "--daemon-schedule", "a:@daily", "--depends-on", ":final"], "must be ID[:STATE"),
    (["export", "web"], "--help lists what can be done"),
    (["schedule", "show"], "name or id")])
def test_wrong_calls_of_schedules_are_told_what_is_right(cli, gateway, args, text):
    gateway.answers["GET", "/api/v1/backup-policies"] = {"policies": [{"id": "pol-1", "name": "x"}]}
    done = cli(*args)
    assert done.returncode == 64 and text in done.stderr


def test_schedules_are_meant_by_name_or_id(cli, gateway):
    gateway.answers["GET", "/api/v1/schedules"] = lambda r: {
        "schedules": [{"id": "sch-9", "name": "nightly"}] if r.query.get("name") == "nightly" else []}
    for action in ("enable", "trigger"):
        gateway.answers["POST", f"/api/v1/schedules/sch-9/{action}"] = {"message": "done"}
    gateway.answers["DELETE", "/api/v1/schedules/sch-9"] = {"message": "schedule deleted"}
    for word, action in (("nightly", "enable"), ("sch-9", "trigger"), ("nightly", "delete")):
        done = cli("schedule", action, word, *(["--yes"] if action == "delete" else []))
        assert done.returncode == 0 and "sch-9" in done.stdout, done.stderr
    assert cli("schedule", "trigger", "nobody").returncode != 0


def test_what_the_runs_wait_for_may_be_named(cli, gateway):
    gateway.answers["GET", "/api/v1/schedules"] = lambda r: {
        "schedules": [{"id": "sch-9"}] if r.query.get("name") == "nightly" else []}
    gateway.answers["GET", "/api/v1/backup-policies"] = {"policies": [{"id": "pol-1", "name": "all"}]}
    gateway.answers["GET", "/api/v1/jobs/own"] = {"job_id": "own"}
    gateway.answers["POST", "/api/v1/schedules"] = (201, {"schedule": {"id": "sch-1"}})
    done = cli("--vm", "web", "--daemon-schedule", "n:@daily", "--depends-on",
               "nightly:final:6h, all,pol-1::90m", "--depends-on", "job-1:failed,own,sch-7")
    assert done.returncode == 0, done.stderr
    sent = gateway.requests[-1].body
    assert sent["depends_on"] == [
        {"schedule_id": "sch-9", "required_state": "final", "timeout": "6h"}, {"schedule_id": "pol-1"},
        {"schedule_id": "pol-1", "timeout": "90m"}, {"job_id": "job-1", "required_state": "failed"},
        {"job_id": "own"}, {"schedule_id": "sch-7"}]
    assert "depends_on" not in sent["job_template"]

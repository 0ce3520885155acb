"""Hooks before and after jobs, with every process real."""
import datetime

import pytest

from tests.fakes.receiver import Receiver
from tests.harness.bridge import alive
from tests.harness.vsphere import make_image, vm
from tests.harness.wait import wait_for

MB = 1 << 20


@pytest.fixture
def disk(tmp_path):
    return make_image(tmp_path / "disk.raw", 8 * MB, [(0, MB)])


@pytest.fixture
def scripts(tmp_path):
    """Function: writes a script for the bridge and returns its name."""
    directory = tmp_path / "scripts"
    directory.mkdir(mode=0o755)

    def make(name, text, mode=0o755):
        path = directory / name
        path.parent.mkdir(exist_ok=True, mode=0o755)
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(mode)
        return name

    make.directory = directory
    return make


@pytest.fixture
def make(make_suite, make_vsphere, disk, scripts):
    def make(**hooks):
        suite = make_suite(config={"hyper2kvm": {"path": "/nonexistent/hyper2kvm"},
                                   "hooks": {"scripts_dir": str(scripts.directory), **hooks}})
        suite.sim = make_vsphere([vm("web", disk, memory=512, cpus=2)])
        suite.add_vsphere(suite.sim)
        return suite

    return make


@pytest.fixture
def receiver():
    started = Receiver()
    yield started
    started.stop()


def refused(suite, status, **fields):
    answer = suite.client.request("POST", "/api/v1/jobs", {"vm_path": "web", **fields})
    assert answer.status_code == status, answer.text
    return answer.json()


def log_of(suite, job):
    return suite.client.request("GET", f"/jobs/logs/{job}").text


def history(suite, job):
    return suite.client.get(f"/api/v1/jobs/{job}/history")["history"]


def test_scripts_run_before_and_after_with_the_facts_of_the_job(make, scripts, tmp_path):
    suite = make()
    out = tmp_path / "facts"
    out.mkdir()
    scripts("pre.sh", f'/usr/bin/env > {out}/pre; echo "quiet $1 and $2"\n')
    scripts("sub/post.sh", f'/usr/bin/env > {out}/post; ls "$HYPERSDK_EXPORT_PATH" > {out}/files\n')
    job = suite.client.submit(
        vm_path="web", format="qcow2",
        pre_hooks=[{"type": "script", "command": "pre.sh", "args": ["a b", "$(id)"]}],
        post_hooks=[{"type": "script", "command": str(scripts.directory / "sub/post.sh")}])
    done = suite.wait_job(job, "completed")
    pre, post = (dict(line.split("=", 1) for line in (out / name).read_text().splitlines())
                 for name in ("pre", "post"))
    ours = {"PWD", "_", "SHLVL", "OLDPWD"}  # the shell's own
    assert {k for k in pre if not k.startswith("HYPERSDK_")} <= ours, pre
    assert (pre["HYPERSDK_JOB_ID"], pre["HYPERSDK_HOOK"], pre["HYPERSDK_ATTEMPT"]) == (job, "pre", "1")
    assert pre["HYPERSDK_VM_PATH"] == "web" and pre["HYPERSDK_PROVIDER"] == "vsphere"
    assert "HYPERSDK_EXPORT_PATH" not in pre
    assert post["HYPERSDK_EXPORT_PATH"] == done["result"]["output_path"]
    assert post["HYPERSDK_MANIFEST_PATH"] == done["result"]["manifest_path"]
    assert post["HYPERSDK_VM_NAME"] == "web" and post["HYPERSDK_FORMAT"] == "qcow2"
    assert "web-disk1.qcow2" in (out / "files").read_text()
    assert "pre.sh: quiet a b and $(id)" in log_of(suite, job)
    hooks = done["hooks"]
    assert [(h["when"], h["type"], h["state"], h["exit_status"]) for h in hooks] == [
        ("pre", "script", "done", 0), ("post", "script", "done", 0)]
    told = [e["detail"] for e in history(suite, job) if "exit_status" in e["detail"]]
    assert [(d["hook"], d["exit_status"]) for d in told] == [("pre", 0), ("post", 0)]
    kinds = [r["kind"] for r in suite.sql("SELECT kind FROM tasks WHERE job_id = %s ORDER BY ordinal",
                                          job)]
    assert kinds == ["script", "export", "script"]


def test_a_hook_that_fails_ends_the_job_or_not(make, scripts, tmp_path):
    suite = make()
    scripts("bad.sh", f'echo x >> {tmp_path}/runs; exit 7\n')
    hook = {"type": "script", "command": "bad.sh"}
    job = suite.client.submit(vm_path="web", pre_hooks=[hook])
    done = suite.wait_job(job, "failed")
    assert "exit status 7" in done["error"] and done["hooks"][0]["exit_status"] == 7
    assert not list(suite.exports.rglob("*.vmdk"))
    # retried as often as it says, then the job goes on without it; the same behind the export
    hook.update(on_error="continue", retry={"max_attempts": 3, "initial_delay": "100ms"})
    (tmp_path / "runs").unlink()
    job = suite.client.submit(vm_path="web", pre_hooks=[hook], post_hooks=[hook])
    done = suite.wait_job(job, "completed")
    assert not done.get("error")
    assert [(h["state"], h["attempt"], h["on_error"]) for h in done["hooks"]] == [
        ("failed", 3, "continue")] * 2
    assert (tmp_path / "runs").read_text() == "x\n" * 6
    events = [e["event"] for e in history(suite, job)]
    assert "job.hook_failed" in events and events[-1] == "job.completed"
    # the export stands when only what comes behind it fails, and a retry goes on there
    job = suite.client.submit(vm_path="web", output_path="kept", post_hooks=[
        {"type": "script", "command": "bad.sh"}])
    suite.wait_job(job, "failed")
    assert list((suite.exports / "kept").glob("*.ovf"))
    scripts("bad.sh", "exit 0\n")
    # a worker may still be removing what the last attempt left
    wait_for(lambda: suite.client.request("POST", f"/api/v1/jobs/{job}/retry", {}).ok, 60)
    done = suite.wait_job(job, "completed")
    epochs = suite.sql("SELECT kind, epoch FROM tasks WHERE job_id = %s ORDER BY ordinal", job)
    assert [(r["kind"], r["epoch"]) for r in epochs] == [("export", 1), ("script", 2)]


def test_a_script_has_limits(make, scripts, tmp_path):
    suite = make(memory_max="256M", files_max=32)
    # a child in the background, that ignores SIGTERM, goes with its group
    scripts("slow.sh", f'trap "" TERM; sleep 600 & echo $! > {tmp_path}/pid; echo begun; '
                       f'trap "echo told; exit 1" TERM; wait\n')
    job = suite.client.submit(vm_path="web", pre_hooks=[
        {"type": "script", "command": "slow.sh", "timeout": 3}])
    done = suite.wait_job(job, "failed")
    assert "did not end within 3 s" in done["error"] and done["error_code"] == "timeout"
    assert "slow.sh: told" in log_of(suite, job)
    assert not alive(int((tmp_path / "pid").read_text()))
    # memory and files
    scripts("limits.sh", 'ulimit -v; ulimit -n\n')
    job = suite.client.submit(vm_path="web", pre_hooks=[{"type": "script", "command": "limits.sh"}])
    suite.wait_job(job, "completed")
    log = log_of(suite, job)
    assert f"limits.sh: {256 * 1024}" in log and "limits.sh: 32" in log


def test_a_flood_of_output_is_cut(make, scripts):
    suite = make()
    scripts("flood.sh", 'i=0; while [ $i -lt 20000 ]; do echo "line $i"; i=$((i+1)); done\n')
    job = suite.client.submit(vm_path="web", pre_hooks=[{"type": "script", "command": "flood.sh"}])
    done = suite.wait_job(job, "completed")
    assert done["hooks"][0]["exit_status"] == 0
    lines = [r["message"] for r in suite.sql("SELECT message FROM job_logs WHERE job_id = %s", job)]
    assert sum("flood.sh: line" in line for line in lines) == 1000
    assert sum("the rest is not kept" in line for line in lines) == 1
    script = suite.sql("SELECT result FROM tasks WHERE job_id = %s AND kind = 'script'", job)[0]["result"]
    assert script["script"]["lines_dropped"] == 19000


def test_only_safe_files_of_the_directory_are_run(make, scripts, tmp_path):
    suite = make()
    outside = tmp_path / "outside.sh"
    outside.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    outside.chmod(0o755)
    for command in (str(outside), "../outside.sh", "sub/../../outside.sh"):
        answer = refused(suite, 422, pre_hooks=[{"type": "script", "command": command}])
        assert answer["field"] == "pre_hooks[0].command" and "hooks.scripts_dir" in answer["error"]
    (scripts.directory / "link.sh").symlink_to(outside)
    scripts("open.sh", f"touch {tmp_path}/ran\n", mode=0o775)
    scripts("plain.sh", f"touch {tmp_path}/ran\n", mode=0o644)
    scripts("wide/in.sh", f"touch {tmp_path}/ran\n")
    (scripts.directory / "wide").chmod(0o777)
    for command, words in (("link.sh", "is not inside"), ("open.sh", "written by others"),
                           ("plain.sh", "not executable"), ("wide/in.sh", "written by others"),
                           ("none.sh", "No such file")):
        job = suite.client.submit(vm_path="web", pre_hooks=[{"type": "script", "command": command}])
        assert words in suite.wait_job(job, "failed")["error"]
    assert not (tmp_path / "ran").exists()


def test_a_killed_bridge_leaves_no_script_behind_and_it_begins_anew(make, scripts, tmp_path):
    suite = make()
    scripts("long.sh", f'echo "$HYPERSDK_ATTEMPT $$" >> {tmp_path}/starts; '
                       f'[ "$HYPERSDK_ATTEMPT" = 1 ] && sleep 600; exit 0\n')
    job = suite.client.submit(vm_path="web", pre_hooks=[{"type": "script", "command": "long.sh"}])
    starts = tmp_path / "starts"
    wait_for(lambda: starts.exists() and starts.read_text().endswith("\n"), 60, suite.tails)
    first = int(starts.read_text().split()[1])
    wait_for(lambda: suite.sql("SELECT 1 FROM task_records WHERE key = 'script.child'"), 60)
    suite["hyper2kvm-bridge"].kill()
    suite["hyper2kvm-bridge"].start()
    done = suite.wait_job(job, "completed")
    assert [line.split()[0] for line in starts.read_text().splitlines()] == ["1", "2"]
    assert not alive(first)
    assert done["hooks"][0]["starts"] == 2 and done["hooks"][0]["attempt"] == 0


def test_a_cancel_ends_the_script(make, scripts, tmp_path):
    suite = make()
    scripts("long.sh", f"echo $$ > {tmp_path}/pid; sleep 600\n")
    job = suite.client.submit(vm_path="web", pre_hooks=[{"type": "script", "command": "long.sh"}])
    pid = tmp_path / "pid"
    wait_for(lambda: pid.exists() and pid.read_text().strip(), 60, suite.tails)
    suite.client.post(f"/api/v1/jobs/{job}/cancel")
    suite.wait_job(job, "cancelled")
    assert not alive(int(pid.read_text()))


def test_webhooks_are_steps_of_the_job(make, receiver):
    suite = make()
    receiver.answers = [500, 204]
    job = suite.client.submit(
        vm_path="web",
        pre_hooks=[{"type": "webhook", "url": receiver.url, "retry": {
            "max_attempts": 2, "initial_delay": "100ms"}}],
        post_hooks=[{"type": "webhook", "url": receiver.url, "body": {"text": "done"}}])
    done = suite.wait_job(job, "completed")
    first, again, last = receiver.requests
    assert first.json["job_id"] == again.json["job_id"] == job
    assert (again.json["event"], again.json["hook"], again.json["vm_name"]) == ("job.hook", "pre", "web")
    assert last.json == {"text": "done"} and last.headers["content-type"] == "application/json"
    assert [(h["http_status"], h["attempt"]) for h in done["hooks"]] == [(204, 1), (204, 0)]


def test_tokens_in_urls_of_webhooks_are_not_logged(make, receiver):
    suite = make()
    receiver.answers = [204, 500]
    url = receiver.url.rstrip("/") + "/hook-s3cret-path?token=s3cret-query#s3cret"
    job = suite.client.submit(vm_path="web", pre_hooks=[{"type": "webhook", "url": url},
                                                        {"type": "webhook", "url": url, "retry": 0}])
    done = suite.wait_job(job, "failed")
    assert receiver.requests[0].path == "/hook/hook-s3cret-path?token=s3cret-query"
    origin = "/".join(receiver.url.split("/")[:3])
    assert f"the receiver '{origin}' answered 500" in done["error"]
    lines = [line["message"] for line in suite.client.get(f"/api/v1/jobs/{job}/logs")["logs"]]
    assert f"webhook {origin} answered 204" in lines
    logged = "\n".join(p.output() for p in suite.processes.values())
    assert "hook" in logged and "s3cret" not in logged + "\n".join(lines) + done["error"]


def test_private_receivers_are_refused_unless_allowed(make_suite, make_vsphere, disk, receiver):
    suite = make_suite(config={"webhooks": {"allow_private": False}})
    suite.add_vsphere(make_vsphere([vm("web", disk)]))
    job = suite.client.submit(vm_path="web", pre_hooks=[{"type": "webhook", "url": receiver.url,
                                                         "retry": 5}])
    done = suite.wait_job(job, "failed")
    assert done["error_code"] == "denied" and done["hooks"][0]["attempt"] == 1
    assert receiver.requests == []


def test_a_wait_holds_the_next_step_back_without_a_slot(make, scripts, tmp_path):
    suite = make()
    stamps = tmp_path / "stamps"
    scripts("stamp.sh", f"echo x >> {stamps}\n")
    until = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
    job = suite.client.submit(
        vm_path="web",
        pre_hooks=[{"type": "wait", "until": until.isoformat()},
                   {"type": "script", "command": "stamp.sh"}],
        post_hooks=[{"type": "wait", "duration": "2h"}, {"type": "script", "command": "stamp.sh"}])

    def look(kind, ordinal):
        return suite.sql("SELECT state, not_before, not_before - now() AS wait FROM tasks WHERE"
                         " job_id = %s AND kind = %s AND ordinal = %s", job, kind, ordinal)[0]

    def its_time_comes(ordinal):
        suite.sql("UPDATE tasks SET not_before = now() WHERE job_id = %s AND ordinal = %s", job, ordinal)

    assert suite.client.job(job)["status"] == "pending"
    held = look("script", 0)
    assert held["state"] == "queued" and abs(held["not_before"] - until) < datetime.timedelta(seconds=1)
    its_time_comes(0)
    wait_for(lambda: look("export", 1)["state"] == "done", 60, suite.tails)
    held = look("script", 2)
    assert held["state"] == "queued" and datetime.timedelta(minutes=100) < held["wait"] <= \
        datetime.timedelta(hours=2), held
    assert stamps.read_text() == "x\n"
    its_time_comes(2)
    suite.wait_job(job, "completed")
    assert stamps.read_text() == "x\nx\n"


def test_what_cannot_be_done_is_refused(make):
    suite = make()
    script = {"type": "script", "command": "a.sh"}
    wrong = [
        (400, {"pre_hooks": [{"type": "scirpt"}]}, "pre_hooks[0].type", "did you mean 'script'"),
        (422, {"pre_hooks": [{"type": "convert"}]}, "pre_hooks[0].type", "post_hooks"),
        (422, {"post_hooks": [{"type": "email"}]}, "post_hooks[0].type", "not available"),
        (400, {"post_hooks": [{"type": "script"}]}, "post_hooks[0].command", "needs 'command'"),
        (400, {"post_hooks": [{**script, "on_error": "ignore"}]}, "post_hooks[0].on_error", "continue"),
        (400, {"post_hooks": [{**script, "shell": True}]}, "post_hooks[0].shell", "unknown field"),
        (422, {"post_hooks": [script, {"type": "wait", "duration": 5}]}, "post_hooks[1].type",
         "nothing that could wait"),
        (400, {"pre_hooks": [{"type": "wait"}]}, "pre_hooks[0].duration", "either"),
        (422, {"pre_hooks": [{"type": "snapshot"}, script]}, "pre_hooks[1].type", "put them last"),
        (422, {"post_hooks": [script, {"type": "upload", "destination": "s3://bkt/x"}]},
         "post_hooks[1].type", "before scripts"),
        (400, {"post_hooks": [{"type": "upload", "destination": "s3://bkt/x"}],
               "upload": "s3://bkt/y"}, "post_hooks[0].destination", "something else"),
        (400, {"post_hooks": [{"type": "webhook", "url": "ftp://h"}]}, "post_hooks[0].url", "http"),
    ]
    for status, fields, field, words in wrong:
        answer = refused(suite, status, **fields)
        assert answer["field"] == field and words in answer["error"], (fields, answer)


def test_snapshot_and_convert_hooks_are_the_jobs_own_steps(make, scripts, tmp_path):
    suite = make()
    scripts("disks.sh", f'echo "$HYPERSDK_DISKS" > {tmp_path}/disks\n')
    job = suite.client.submit(
        vm_path="web", delete_snapshot=False,
        pre_hooks=[{"type": "snapshot", "name": "before-move"}],
        post_hooks=[{"type": "convert", "format": "raw"}, {"type": "script", "command": "disks.sh"}])
    done = suite.wait_job(job, "completed")
    assert suite.sim.snapshots("web") == ["before-move"]
    files = done["result"]["conversion"]["output_files"]
    assert files[0].endswith(".raw") and (tmp_path / "disks").read_text().split() == files
    kinds = [r["kind"] for r in suite.sql("SELECT kind FROM tasks WHERE job_id = %s ORDER BY ordinal",
                                          job)]
    assert kinds == ["export", "convert", "script"]

"""An export goes to a target outside: through every process, to real servers."""
import datetime
import hashlib
import json
import os
import pathlib
import subprocess

import pytest

from tests.fakes.s3 import S3
from tests.harness import images
from tests.harness.process import BIN
from tests.harness.vsphere import make_image, vm
from tests.harness.wait import wait_for

MB = 1 << 20


@pytest.fixture
def disk(tmp_path):
    """Three parts of 16 MiB as raw."""
    return make_image(tmp_path / "disk.raw", 40 * MB, [(0, MB), (20 * MB, 4 * MB), (39 * MB, MB)])


@pytest.fixture
def sim(make_vsphere, disk):
    return make_vsphere([vm("web", disk)])


@pytest.fixture
def fake():
    """An S3 server that does what the test tells it."""
    server = S3().start()
    yield server
    server.stop()


def start(make_suite, sim, uploads, **options):
    suite = make_suite(config={"uploads": uploads}, **options)
    suite.add_vsphere(sim)
    return suite


def check_objects(result, read):
    """Every file of the export is there, as the result says; read(name) gives an object's bytes."""
    record = json.loads(read("export.json"))
    assert record["export_id"] == result["uploaded_to"].rsplit("/", 1)[1]
    for file in result["files"]:
        data = read(file["name"])
        assert len(data) == file["size"], file
        if "sha256" in file:
            assert hashlib.sha256(data).hexdigest() == file["sha256"], file


def test_export_to_s3(make_suite, sim, disk, swift, bucket, tmp_path):
    url = f"s3://{bucket}/nightly"
    suite = start(make_suite, sim, {"main": swift.entry(f"s3://{bucket}")})
    job = suite.client.submit(vm_path="web", format="raw", upload=url)
    result = suite.wait_job(job, "completed")["result"]
    prefix = result["uploaded_to"].removeprefix(f"s3://{bucket}/")
    assert prefix.startswith("nightly/web/exp-")
    assert sorted(result["uploaded"]) == sorted(
        f"s3://{bucket}/{prefix}/{f['name']}" for f in result["files"])
    client = swift.client()
    check_objects(result, lambda name: client.get_object(
        Bucket=bucket, Key=f"{prefix}/{name}")["Body"].read())
    back = tmp_path / "back.raw"
    client.download_file(bucket, f"{prefix}/web-disk1.raw", str(back))
    images.compare(disk, back, "raw")
    # the local export stays, and nothing unfinished anywhere
    images.compare(disk, pathlib.Path(result["output_path"]) / "web-disk1.raw", "raw")
    assert images.leftovers(suite.exports) == []
    assert not list(suite.exports.rglob(".hypersdk-upload*"))
    assert client.list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []
    artifacts = suite.client.get(f"/api/v1/jobs/{job}/artifacts")
    assert artifacts["uploaded"] == result["uploaded"]
    assert swift.SECRET not in suite.tails() and swift.SECRET not in json.dumps(
        suite.sql("SELECT spec FROM tasks"), default=str)


def test_export_to_an_ssh_server_without_local_copy(make_suite, sim, disk, sshd):
    suite = start(make_suite, sim, {"nas": sshd.entry()})
    job = suite.client.submit(vm_path="web", format="qcow2", upload=sshd.url(), keep_local=False)
    result = suite.wait_job(job, "completed")["result"]
    directory = sshd.root / "web" / result["uploaded_to"].rsplit("/", 1)[1]
    check_objects(result, lambda name: (directory / name).read_bytes())
    images.check(directory / "web-disk1.qcow2", "qcow2")
    images.compare(disk, directory / "web-disk1.qcow2", "qcow2")
    assert {p.name for p in directory.iterdir()} == {f["name"] for f in result["files"]}
    # nothing is left here, and nobody is told that it were
    assert result["local_kept"] is False and "manifest_path" not in result
    assert [p for p in suite.exports.rglob("*") if p.name != ".hypersdk-volume"] == []
    artifacts = suite.client.get(f"/api/v1/jobs/{job}/artifacts")
    assert {a["path"] for a in artifacts["artifacts"]} == {None}
    assert artifacts["export"]["path"] == result["uploaded_to"]


@pytest.mark.parametrize("kind", ["s3", "sftp"])
def test_an_upload_keeps_the_jobs_limit(make_suite, sim, disk, fake, sshd, kind):
    """Read and sent bytes come from one bucket; the upload alone is 40 MB."""
    entry, url = ((fake.entry("s3://bucket"), "s3://bucket/p") if kind == "s3" else
                  (sshd.entry(), sshd.url()))
    suite = start(make_suite, sim, {"main": entry})
    job = suite.client.submit(vm_path="web", format="raw", upload=url, bandwidth_limit_mbps=20,
                              bandwidth_burst_mb=1)
    done = suite.wait_job(job, "completed")
    started, ended = (datetime.datetime.fromisoformat(done[k].replace("Z", "+00:00"))
                      for k in ("started_at", "completed_at"))
    assert (ended - started).total_seconds() >= (40 + 40 - 1) / 20


def test_a_worker_killed_while_uploading_is_replaced_by_one_that_goes_on(make_suite, sim, disk,
                                                                         fake, tmp_path):
    entry = dict(fake.entry("s3://bucket"), parallel=1)
    suite = start(make_suite, sim, {"main": entry})
    fake.hold = 3
    job = suite.client.submit(vm_path="web", format="raw", upload="s3://bucket/p",
                              keep_local=False)
    wait_for(lambda: 2 in fake.puts, 60, lambda: suite.explain(job))
    suite.wait_phase(job, "uploading")
    state = suite.exports / "web" / ".hypersdk-upload.0"
    wait_for(lambda: any(p.read_text().count('"part":') == 2
                         for p in state.parent.glob(".hypersdk-upload.*")), 60, "two parts noted")
    suite["exporter-vsphere"].kill()
    fake.release()
    before = list(fake.puts)
    suite["exporter-vsphere"].start()
    result = suite.wait_job(job, "completed")["result"]
    assert not {1, 2} & set(fake.puts[len(before):]), "parts were sent again"
    prefix = result["uploaded_to"].removeprefix("s3://bucket/")
    check_objects(result, lambda name: fake.objects[f"{prefix}/{name}"][0])
    back = tmp_path / "back.raw"
    back.write_bytes(fake.objects[f"{prefix}/web-disk1.raw"][0])
    images.compare(disk, back, "raw")
    # the commit mark came last
    assert fake.puts[-1] == f"{prefix}/export.json"
    assert fake.uploads == {}
    assert [p for p in suite.exports.rglob("*") if p.name != ".hypersdk-volume"] == []


def test_a_worker_that_is_stopped_hands_the_upload_over(make_suite, sim, disk, fake):
    """SIGTERM: the task is yielded, and the next worker goes on: no part that was acknowledged is
    sent twice, and nothing is read again."""
    suite = start(make_suite, sim, {"main": dict(fake.entry("s3://bucket"), parallel=1)})
    fake.hold = 3
    job = suite.client.submit(vm_path="web", format="raw", upload="s3://bucket/p")
    wait_for(fake.held.is_set, 60, lambda: suite.explain(job))
    before = list(fake.puts)
    assert [p for p in before if isinstance(p, int)] == [1, 2]
    assert suite["exporter-vsphere"].stop() == 0
    assert suite.client.job(job)["status"] == "pending"
    told = [e["event"] for e in suite.client.get(f"/api/v1/jobs/{job}/history")["history"]]
    assert told[-1] == "job.yielded" and "job.lease_lost" not in told
    fake.release()
    suite["exporter-vsphere"].start()
    done = suite.wait_job(job, "completed")
    assert done["attempt"] == 0
    assert not {1, 2} & set(fake.puts[len(before):]), "parts were sent again"
    assert suite.explain(job).count("web-disk1.raw: 40.0 MiB") == 1, "the source was read again"
    prefix = done["result"]["uploaded_to"].removeprefix("s3://bucket/")
    check_objects(done["result"], lambda name: fake.objects[f"{prefix}/{name}"][0])
    assert fake.uploads == {}


def test_a_wrong_secret_fails_the_job_before_anything_is_read(make_suite, sim, swift, bucket):
    entry = dict(swift.entry(f"s3://{bucket}"), secret_access_key="Tr0ub4dor-wrong")
    suite = start(make_suite, sim, {"main": entry})
    job = suite.client.submit(vm_path="web", format="raw", upload=f"s3://{bucket}/x")
    done = suite.wait_job(job, "failed")
    assert (done["error_code"], done["phase"], done["attempt"]) == ("denied", "uploading", 1)
    assert "secret_access_key" in done["error"]
    assert list(suite.exports.rglob("*.raw*")) == [] and sim.snapshots("web") == []
    told = suite.tails() + suite.explain(job) + json.dumps(suite.client.job(job))
    assert "Tr0ub4dor" not in told


def test_an_upload_that_fails_leaves_the_export_and_a_retry_only_uploads(make_suite, sim, disk,
                                                                         fake, tmp_path):
    suite = start(make_suite, sim, {"main": fake.entry("s3://bucket")})
    fake.fault("status", part=2, status=403, code="AccessDenied", times=1000)
    env = dict(os.environ, XDG_CONFIG_HOME=str(tmp_path / "home"), HYPERSDK_URL=suite.url())
    done = subprocess.run([BIN / "hyperexport", "--vm", "web", "--format", "raw", "--quiet",
                           "--upload", "s3://bucket/p"], capture_output=True, text=True,
                          timeout=90, env=env)
    assert done.returncode == 5, done.stderr
    assert f"is complete in '{suite.exports}/web', its upload failed" in done.stderr
    images.compare(disk, suite.exports / "web" / "web-disk1.raw", "raw")
    assert (suite.exports / "web" / "export.json").exists()
    assert images.leftovers(suite.exports) == [] and sim.snapshots("web") == []
    assert not any(key.endswith("export.json") for key in fake.objects)
    fake.faults.clear()
    sim.stop()  # a retry needs the source no more
    job = suite.client.get("/api/v1/jobs")["jobs"][0]["job_id"]
    # a worker may still be removing what the last attempt left
    wait_for(lambda: suite.client.request("POST", f"/api/v1/jobs/{job}/retry", {}).ok, 60)
    result = suite.wait_job(job, "completed")["result"]
    prefix = result["uploaded_to"].removeprefix("s3://bucket/")
    check_objects(result, lambda name: fake.objects[f"{prefix}/{name}"][0])
    assert fake.puts.count(1) == 1
    assert not list(suite.exports.rglob(".hypersdk-upload*"))


def checker(suite, disk, fake):
    """Function: the job went on without its upload, which failed so."""
    def check(job, error, deadline=60):
        done = suite.wait_job(job, "completed", deadline=deadline)
        assert not done.get("error") and "uploaded_to" not in done["result"]
        assert [(h["when"], h["type"], h["state"], h["on_error"]) for h in done["hooks"]] == [
            ("post", "upload", "failed", "continue")]
        assert error in done["hooks"][0]["error"]
        assert any(error in w for w in done["result"]["warnings"])
        told = suite.client.get(f"/api/v1/jobs/{job}/history")["history"]
        failed = [e for e in told if e["event"] == "job.hook_failed"]
        assert [(e["detail"]["hook"], e["detail"]["task"]) for e in failed] == [("post", "upload")]
        assert error in failed[0]["detail"]["error"] and told[-1]["event"] == "job.completed"
        assert "goes on without it, as asked" in suite.client.request(
            "GET", f"/jobs/logs/{job}").text
        artifacts = suite.client.get(f"/api/v1/jobs/{job}/artifacts")
        assert "uploaded" not in artifacts
        assert artifacts["export"]["path"] == done["result"]["output_path"]
        images.compare(disk, pathlib.Path(done["result"]["output_path"]) / "web-disk1.raw", "raw")
        # nothing of it is at the target, nothing unfinished here
        assert fake.uploads == {} and fake.objects == {}
        assert images.leftovers(suite.exports) == []
        assert not list(suite.exports.rglob(".hypersdk-upload*"))
        return done

    return check


def test_an_upload_may_fail(make_suite, sim, disk, fake):
    """on_error: continue: the job ends complete and says everywhere that there is no upload."""
    suite = start(make_suite, sim, {"main": fake.entry("s3://bucket")})
    hook = {"type": "upload", "destination": "s3://bucket/p", "on_error": "continue"}
    check = checker(suite, disk, fake)
    # refused in the middle: no retry would help, and the local files stay after all
    fake.fault("status", part=2, status=403, code="AccessDenied", times=1000)
    job = suite.client.submit(vm_path="web", format="raw", keep_local=False, post_hooks=[hook])
    assert check(job, "403")["attempt"] == 0
    # at its last object, when the local export is finished already
    fake.faults.clear()
    fake.fault("status", key="export.json", status=403, code="AccessDenied", times=1000)
    job = suite.client.submit(vm_path="web", format="raw", output_path="second", post_hooks=[hook])
    check(job, "403")
    # nobody has credentials for it: known before anything is read
    job = suite.client.submit(vm_path="web", format="raw", output_path="third",
                              upload="s3://elsewhere/p", upload_on_error="continue")
    check(job, "elsewhere")
    # and one that works says nothing of all this
    fake.faults.clear()
    job = suite.client.submit(vm_path="web", format="raw", output_path="fourth", post_hooks=[hook])
    done = suite.wait_job(job, "completed")
    assert "hooks" not in done and "hooks_failed" not in done["result"]
    prefix = done["result"]["uploaded_to"].removeprefix("s3://bucket/")
    check_objects(done["result"], lambda name: fake.objects[f"{prefix}/{name}"][0])


@pytest.mark.heavy
def test_an_upload_is_given_up_in_the_last_attempt_only(make_suite, sim, disk, fake):
    suite = start(make_suite, sim, {"main": fake.entry("s3://bucket")})
    fake.fault("status", part=2, status=503, times=1000)
    job = suite.client.submit(vm_path="web", format="raw", upload="s3://bucket/p",
                              upload_on_error="continue",
                              retry={"max_attempts": 2, "initial_delay": "100ms"})
    assert checker(suite, disk, fake)(job, "503", deadline=240)["attempt"] == 1
    assert suite.explain(job).count("web-disk1.raw: 40.0 MiB") == 1, "the source was read again"


def test_a_cancel_with_discard_aborts_the_upload(make_suite, sim, fake):
    suite = start(make_suite, sim, {"main": dict(fake.entry("s3://bucket"), parallel=1)})
    fake.hold = 2
    job = suite.client.submit(vm_path="web", format="raw", upload="s3://bucket")
    wait_for(lambda: 1 in fake.puts, 60, lambda: suite.explain(job))
    suite.client.post("/jobs/cancel", {"job_ids": [job], "discard": True})
    suite.wait_job(job, "cancelled")
    fake.release()
    wait_for(lambda: fake.uploads == {}, 60, lambda: suite.explain(job))
    wait_for(lambda: not list(suite.exports.rglob("*.raw*")), 60, "partial files are removed")
    assert fake.objects == {}


def test_the_command_line_tells_where_the_copy_is(make_suite, sim, fake, tmp_path):
    suite = start(make_suite, sim, {"main": fake.entry("s3://bucket")})
    env = dict(os.environ, XDG_CONFIG_HOME=str(tmp_path / "home"), HYPERSDK_URL=suite.url())
    done = subprocess.run([BIN / "hyperexport", "--vm", "web", "--quiet", "--upload",
                           "s3://bucket/p", "--keep-local=false"], capture_output=True, text=True,
                          timeout=90, env=env)
    assert done.returncode == 0, done.stderr
    urls = [x.removeprefix("uploaded: ") for x in done.stdout.splitlines()
            if x.startswith("uploaded: ")]
    assert {u.removeprefix("s3://bucket/") for u in urls} == set(fake.objects)
    assert done.stdout.startswith("success: web exported to s3://bucket/p/web/exp-")
    done = subprocess.run([BIN / "hyperexport", "--vm", "web", "--format", "raw", "--quiet",
                           "--output", "kept", "--upload", "s3://elsewhere/p", "--upload-on-error",
                           "continue"], capture_output=True, text=True, timeout=90, env=env)
    assert done.returncode == 0 and done.stdout.startswith(
        f"success: web exported to {suite.exports}/kept"), done.stderr
    assert "went on without its upload" in done.stderr and "elsewhere" in done.stderr
    assert "uploaded: " not in done.stdout


def test_a_limit_that_comes_while_it_uploads_holds_it_back_and_is_told(make_suite, sim, fake):
    """At 1 MB/s its end would be seen by nobody; without the limit it comes."""
    suite = start(make_suite, sim, {"main": fake.entry("s3://bucket")})
    fake.hold = 1
    job = suite.client.submit(vm_path="web", format="raw", upload="s3://bucket")
    wait_for(fake.held.is_set, 60, lambda: suite.explain(job))
    path = f"/api/v1/jobs/{job}/bandwidth"
    suite.client.put(path, {"bandwidth_limit_mbps": 1, "bandwidth_burst_mb": 1})
    fake.release()
    wait_for(lambda: suite.client.job(job)["phase"] == "uploading" and
             suite.client.job(job)["progress"]["limited_by"] == "rate_limit", 60,
             lambda: suite.explain(job))
    progress = suite.client.job(job)["progress"]
    assert progress["total_bytes"] >= 40 * MB
    suite.client.put(path, {"bandwidth_limit_mbps": 0})
    suite.wait_job(job, "completed")

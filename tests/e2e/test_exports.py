"""Exports that exist: the catalogue, and reading one back later."""
import datetime
import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest

from tests.harness import images
from tests.harness.process import BIN
from tests.harness.vsphere import make_image, vm
from tests.harness.wait import wait_for

MB = 1 << 20
ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def disk(tmp_path):
    return make_image(tmp_path / "disk.raw", 32 * MB, [(0, MB), (5 * MB, 4 * MB), (31 * MB, MB)])


@pytest.fixture
def suite(make_suite, make_vsphere, disk):
    suite = make_suite()
    suite.add_vsphere(make_vsphere([vm("web", disk, power="off"), vm("db", disk, power="off")]))
    return suite


@pytest.fixture
def cli(suite, tmp_path):
    def call(*args, timeout=120, env=None):
        env = dict(os.environ, XDG_CONFIG_HOME=str(tmp_path / "home"), LC_ALL="C.UTF-8",
                   HYPERSDK_URL=suite.url(), **(env or {}))
        return subprocess.run([BIN / "hyperexport", *args], capture_output=True, text=True,
                              timeout=timeout, env=env)
    return call


def export(suite, **request):
    request.setdefault("vm_path", "web")
    done = suite.wait_job(suite.client.submit(**request), "completed")
    return pathlib.Path(done["result"]["output_path"]), done["job_id"]


def flip(path, offset):
    """One bit of the byte at an offset of a file."""
    with open(path, "r+b") as f:
        f.seek(offset)
        byte = f.read(1)[0]
        f.seek(offset)
        f.write(bytes([byte ^ 1]))


def test_the_catalogue_lists_what_stands_on_disk(suite, cli):
    web, job = export(suite, format="raw")
    db, _ = export(suite, vm_path="db", format="qcow2")
    listed = suite.client.get("/api/v1/exports")
    assert [e["vm_name"] for e in listed["exports"]] == ["db", "web"] and listed["total"] == 2
    one = listed["exports"][1]
    assert one["path"] == str(web) and one["job_id"] == job
    assert one["total_size"] == sum(f.stat().st_size for f in web.iterdir() if f.is_file())
    first = suite.client.get("/api/v1/exports?limit=1")
    rest = suite.client.get(f"/api/v1/exports?limit=1&cursor={first['next_cursor']}")
    assert first["exports"] + rest["exports"] == listed["exports"] and "next_cursor" not in rest
    assert suite.client.get("/api/v1/exports?vm=web")["exports"] == [one]
    assert suite.client.get("/api/v1/exports?provider=lab")["exports"] == []
    record = json.loads((web / "export.json").read_text())
    whole = suite.client.get(f"/api/v1/exports/{one['export_id']}")
    assert whole["disks"][0]["root"] == record["disks"][0]["root"]
    assert whole["manifest"]["vm"] and one["export_id"] == record["export_id"]
    assert suite.client.request("GET", "/api/v1/exports/exp-none").status_code == 404
    assert suite.client.request("GET", "/api/v1/exports?cursor=x").status_code == 400
    lines = cli("exports", "list", "--quiet", "--vm", "web").stdout.splitlines()
    assert lines == [f"{one['export_id']}\tweb\traw\t{web}"]
    assert f"path={db}" in cli("exports", "show", listed["exports"][0]["export_id"],
                               "--quiet").stdout


@pytest.mark.parametrize("form", ["ovf", "qcow2", "raw"])
def test_verify_names_the_flipped_mib(suite, cli, form):
    directory, _ = export(suite, format=form)
    export_id = suite.client.get("/api/v1/exports")["exports"][0]["export_id"]
    done = cli("exports", "verify", export_id, "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"verified: {directory} (")
    image = directory / f"web-disk1.{'vmdk' if form == 'ovf' else form}"
    flip(image, 6 * MB + 100 if form == "raw" else image.stat().st_size // 2)
    answer = suite.client.post(f"/api/v1/exports/{export_id}/verify", {}, status=202)
    job = suite.wait_job(answer["job_id"], "failed")
    assert job["error_code"] == "corrupt" and job["kind"] == "verify"
    found = {(p["file"], p["problem"]): p for p in job["result"]["problems"]}
    assert (image.name, "digest") in found and job["result"]["intact"] is False
    offsets = found[image.name, "content"]["offsets"]
    assert len(offsets) == 1 and offsets[0] % MB == 0
    if form == "raw":
        assert offsets == [6 * MB]
    again = cli("verify", str(directory))
    assert again.returncode == 4
    assert f"the first at offset {offsets[0]} of the disk" in again.stderr
    assert cli("--verify-only", directory.name, "--quiet").returncode == 4


def test_verify_names_missing_cut_and_foreign_files(suite, cli, tmp_path):
    directory, _ = export(suite, format="ovf")
    (directory / "notes.txt").write_text("mine")
    os.truncate(directory / "checksums.txt", 10)
    (directory / "manifest.yaml").unlink()
    flip(directory / "web-disk1.leaves", 70)
    answer = suite.client.post("/api/v1/exports/verify", {"path": "web"}, status=202)
    result = suite.wait_job(answer["job_id"], "failed")["result"]
    found = {(p["file"], p["problem"]) for p in result["problems"]}
    assert found >= {("checksums.txt", "size"), ("manifest.yaml", "missing"),
                     ("web-disk1.leaves", "digest"), ("web-disk1.leaves", "structure")}
    assert result["extra_files"] == ["notes.txt"]
    # without export.json: an OVF package like any other, checked by its own list
    package = suite.exports / "package"
    package.mkdir()
    for name in ("web.ovf", "web.mf", "web-disk1.vmdk"):
        shutil.copy(directory / name, package)
    assert cli("verify", "package", "--quiet").returncode == 0
    flip(package / "web-disk1.vmdk", 200000)
    done = cli("verify", "package", "--quiet")
    assert done.returncode == 4 and "SHA256 of 'web-disk1.vmdk'" in done.stderr
    (package / "web-disk1.vmdk").unlink()
    assert "web-disk1.vmdk" in cli("verify", "package").stderr
    (suite.exports / "empty").mkdir()
    assert cli("verify", "empty").returncode == 2
    outside = cli("verify", str(tmp_path))
    assert outside.returncode != 0 and "allowed" in outside.stderr


def test_a_third_party_checks_the_evidence_with_the_documented_command(suite, cli):
    text = (ROOT / "docs" / "evidence.md").read_text()
    command = re.search(r"^openssl pkeyutl .*$", text, re.M).group(0)
    digests = re.search(r"^jq -r .*$", text, re.M).group(0)
    directory, _ = export(suite, format="ovf")
    pem = suite.client.request("GET", "/api/v1/evidence/public-key")
    assert pem.ok and pem.headers["Content-Type"] == "application/x-pem-file"
    (directory / "hypersdk.pem").write_text(pem.text)

    def check():
        return subprocess.run(command.split(), cwd=directory, capture_output=True, text=True)

    done = check()
    assert done.returncode == 0 and "Signature Verified Successfully" in done.stdout, done.stderr
    if shutil.which("jq"):
        assert subprocess.run(digests, shell=True, cwd=directory, capture_output=True,
                              check=True).stdout.count(b": OK") >= 6
    evidence = json.loads((directory / "evidence.json").read_text())
    record = json.loads((directory / "export.json").read_text())
    assert evidence["source"]["vm_name"] == "web" and evidence["source"]["vm_id"]
    assert evidence["disks"][0]["root"] == record["disks"][0]["root"]
    assert evidence["tool"]["version"] and evidence["signed_at"] >= evidence["started_at"]
    assert {f["name"] for f in evidence["files"]} == \
        {f["name"] for f in record["files"]} - {"evidence.json", "evidence.sig"}
    key = suite.directory / "keys" / "evidence.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert "evidence=valid" in cli("verify", "web", "--quiet").stdout
    # someone changes an image and makes every list fit again, but has no key
    flip(directory / "evidence.json", 30)
    assert check().returncode != 0
    done = cli("verify", "web", "--quiet")
    assert done.returncode == 4 and "signature of evidence.json" in done.stderr
    flip(directory / "evidence.json", 30)
    record["source"]["vm_name"] = "other"
    (directory / "export.json").write_text(json.dumps(record))
    done = cli("verify", "web", "--quiet")
    assert done.returncode == 4 and "differ about 'source'" in done.stderr


# ---- clean-up ----

def age(directory, days):
    """Makes an export look so many days older."""
    path = directory / "export.json"
    record = json.loads(path.read_text())
    then = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=days)
    record["completed_at"] = then.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    whole = directory.parent / f".{record['export_id']}"  # a clean-up may read it just now
    whole.write_text(json.dumps(record))
    whole.rename(path)
    return record["export_id"]


def catalogue(suite):
    return {e["export_id"] for e in suite.client.get("/api/v1/exports")["exports"]}


def cleaned(suite, **policy):
    answer = suite.client.post("/api/v1/exports/cleanup", policy, status=202)
    result = suite.wait_job(answer["job_id"], "completed")["result"]
    return {d["export_id"]: d["reason"] for d in result["deleted"]}, result


def test_cleanup_by_every_rule(suite, cli):
    dirs = [export(suite, format="raw")[0] for _ in range(4)]
    ids = [age(d, days) for d, days in zip(dirs, (90, 60, 20, 0))]
    lone, _ = export(suite, vm_path="db", format="raw")
    lone_id = age(lone, 200)
    (dirs[0] / "mine.txt").write_text("not of the export")
    assert dirs[1].parent == dirs[0]  # later ones stand below the first
    every = set(ids) | {lone_id}
    # what would go is what goes; nothing is touched meanwhile
    listed, result = cleaned(suite, dry_run=True)
    assert listed == {ids[0]: "age", ids[1]: "age"} and result["dry_run"] is True
    assert [p["reason"] for p in result["preserved"]] == ["newest export of its VM"]
    assert catalogue(suite) == every and (dirs[0] / "web-disk1.raw").exists()
    listed, _ = cleaned(suite, dry_run=True, max_count=3)
    assert listed == {ids[0]: "count"}
    listed, _ = cleaned(suite, dry_run=True, max_count=3, per_vm=False)
    assert listed == {ids[0]: "count"}  # the only one of db is out of count's reach
    size = suite.client.get(f"/api/v1/exports/{ids[0]}")["total_size"]
    listed, _ = cleaned(suite, dry_run=True, max_size=4 * size + size // 2)
    assert listed == {ids[0]: "size"}
    listed, _ = cleaned(suite, dry_run=True, max_age="30d", preserve=[f"*{ids[1]}"])
    assert listed == {ids[0]: "age"}
    listed, _ = cleaned(suite, dry_run=True, max_age="1d", dir=str(dirs[1]))
    assert listed == {ids[1]: "age"}
    listed, _ = cleaned(suite, dry_run=True, min_free=1)
    assert listed == {}
    listed, _ = cleaned(suite, dry_run=True, min_free=(1 << 62))
    assert listed == {i: "free space" for i in ids[:3]}
    # a base that a younger export names stays; the record says so
    path = dirs[2] / "export.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(dict(record, incremental={"base_id": ids[1]})))
    done = cli("--cleanup-dry-run", "--cleanup-max-age", "30d", "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"cleanup: deleted=1 bytes={size_of(suite, ids[0])} preserved=2 dry_run=true",
        f"delete: {dirs[0]}\t{size_of(suite, ids[0])}\tage"]
    path.write_text(json.dumps(record))
    done = cli("--cleanup", "--cleanup-max-age", "30d", "--cleanup-preserve", "x*",
               "--cleanup-preserve", dirs[1].name, "--quiet")
    assert done.stdout.startswith("cleanup: deleted=1 "), done.stderr
    assert catalogue(suite) == every - {ids[0]}
    assert sorted(p.name for p in dirs[0].iterdir() if p.is_file()) == ["mine.txt"]
    assert cli("verify", str(dirs[1])).returncode in (0, 4) and lone.exists()
    # a removal that was cut short is finished, and the catalogue hears of it
    trash = dirs[1] / f".hypersdk-trash-{ids[1]}"
    trash.mkdir()
    (dirs[1] / "export.json").rename(trash / "export.json")
    listed, _ = cleaned(suite, max_age="3650d")
    assert listed == {ids[1]: "unfinished removal"} and not dirs[1].exists()
    assert catalogue(suite) == every - set(ids[:2])
    for limit, count in (("10d", 1), ("30d", 0)):
        done = cli("--cleanup-dry-run", "--quiet", env={"HYPEREXPORT_CLEANUP_MAX_AGE": limit})
        assert done.stdout.startswith(f"cleanup: deleted={count} "), done.stderr
    # limits of the environment; with an export, the clean-up comes after it
    done = cli("--vm", "web", "--format", "raw", "--cleanup", "--quiet",
               env={"HYPEREXPORT_CLEANUP_MAX_COUNT": "1"})
    assert done.returncode == 0 and "cleanup: deleted=2 " in done.stdout, done.stderr
    assert len(catalogue(suite)) == 2 and not dirs[2].exists()


def size_of(suite, export_id):
    """Bytes as the record has them: export.json was rewritten by the test."""
    directory = pathlib.Path(suite.client.get(f"/api/v1/exports/{export_id}")["path"])
    record = json.loads((directory / "export.json").read_text())
    return sum(f["size"] for f in record["files"]) + (directory / "export.json").stat().st_size


def test_cleanup_keeps_off_what_a_job_works_in(suite, make_vsphere):
    first, _ = export(suite, format="raw")
    second, _ = export(suite, format="raw")
    first_id = age(first, 90)
    suite.sql("INSERT INTO jobs (id, provider, vm_path, output_path, definition, status)"
              " VALUES ('job-other', 'vsphere', 'web', %s, '{}', 'running')", str(first))
    listed, result = cleaned(suite)
    assert listed == {} and result["preserved"][0]["reason"] == "in use by a job"
    suite.sql("UPDATE jobs SET status = 'completed' WHERE id = 'job-other'")
    assert cleaned(suite)[0] == {first_id: "age"} and second.exists()


def test_cleanup_repeats_by_schedule(make_suite, make_vsphere, disk):
    suite = make_suite(config={"cleanup": {"schedule": "1s", "max_age": "30d",
                                           "preserve": ["db"]}})
    suite.add_vsphere(make_vsphere([vm("web", disk, power="off"), vm("db", disk, power="off")]))
    dirs = [export(suite, format="raw", vm_path=name)[0] for name in ("web", "web", "db", "db")]
    for directory in (dirs[0], dirs[2]):
        age(directory, 90)
    wait_for(lambda: not (dirs[0] / "export.json").exists(), 60, "the configured clean-up")
    wait_for(lambda: len(catalogue(suite)) == 3, 60, "the catalogue follows")
    assert (dirs[2] / "export.json").exists()
    # over REST: wins, can be off, and has its own rules
    schedule = "/api/v1/exports/cleanup/schedule"
    put = suite.client.put(schedule, {"interval": "0s"}, status=200)
    assert put["interval_ms"] == 0
    wait_for(lambda: suite.sql("SELECT count(*) AS n FROM jobs WHERE kind = 'cleanup' AND status"
                               " NOT IN ('completed')")[0]["n"] == 0, 60, "no clean-up runs")
    before = suite.sql("SELECT count(*) AS n FROM jobs WHERE kind = 'cleanup'")[0]["n"]
    answer = suite.client.put(schedule, {"interval": "1h", "max_count": 1}, status=200)
    assert answer["max_count"] == 1 and suite.client.get(schedule)["interval_ms"] == 3600000
    wait_for(lambda: not (dirs[2] / "export.json").exists(), 60, "the clean-up of the row")
    wait_for(lambda: len(catalogue(suite)) == 2, 60, "the catalogue follows")
    assert suite.sql("SELECT count(*) AS n FROM jobs WHERE kind = 'cleanup'")[0]["n"] == before + 1
    assert suite.client.request("PUT", schedule, {"max_count": 1}).status_code == 400
    suite.client.delete(schedule, status=200)
    assert suite.client.request("GET", schedule).status_code == 404


def test_cleanup_schedule_of_the_command_line(suite, cli):
    done = cli("--cleanup-schedule", "24h", "--cleanup-max-size", "10GB", "--cleanup-min-free",
               "5M", "--cleanup-per-vm=false", "--quiet")
    assert done.stdout == "schedule-created: cleanup every 24h\n", done.stderr
    stored = suite.client.get("/api/v1/exports/cleanup/schedule")
    assert (stored["interval_ms"], stored["max_size"]) == (86400000, 10 << 30)
    assert (stored["min_free"], stored["per_vm"]) == (5 << 20, False)
    assert cli("--cleanup-max-size", "1").returncode == 64
    assert cli("--cleanup", "--daemon-status").returncode == 64


def test_a_flipped_byte_in_an_ova_is_found_in_its_member(suite, cli):
    directory, _ = export(suite, format="ova")
    good = cli("verify", str(directory))
    assert good.returncode == 0, good.stdout + good.stderr
    flip(directory / "web.ova", (directory / "web.ova").stat().st_size // 2)
    bad = cli("verify", str(directory))
    assert bad.returncode == 4
    assert "web-disk1.vmdk" in bad.stdout + bad.stderr and "web.ova" in bad.stdout + bad.stderr

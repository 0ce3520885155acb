"""Exports that exist: the catalogue, and reading one back later."""
import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest

from tests.harness.process import BIN
from tests.harness.vsphere import make_image, vm

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
    def call(*args, timeout=60):
        env = dict(os.environ, XDG_CONFIG_HOME=str(tmp_path / "home"), LC_ALL="C.UTF-8",
                   HYPERSDK_URL=suite.url())
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

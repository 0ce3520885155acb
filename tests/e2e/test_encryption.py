"""Exports encrypted at rest: with key files and passphrases, uploaded, killed, read back; and raw
images compressed."""
import json
import os
import pathlib
import subprocess

import pytest

from tests.harness import images
from tests.harness.process import BIN
from tests.harness.vsphere import make_image, vm
from tests.harness.wait import wait_for

MB = 1 << 20
PASSPHRASE = "Correct-Horse-Battery-9"


@pytest.fixture
def disk(tmp_path):
    return make_image(tmp_path / "disk.raw", 32 * MB, [(0, MB), (5 * MB, 4 * MB), (31 * MB, MB)])


@pytest.fixture
def keys(tmp_path):
    """Key files of the exporter: default and other."""
    directory = tmp_path / "export-keys"
    directory.mkdir(mode=0o700)
    for name in ("default", "other"):
        (directory / f"{name}.key").write_bytes(os.urandom(32))
        (directory / f"{name}.key").chmod(0o600)
    return directory


def hyperexport(suite, *args, env=None, stdin=None):
    env = {**os.environ, "XDG_CONFIG_HOME": str(suite.directory / "home"), "HYPERSDK_URL": suite.url(), **(env or {})}
    return subprocess.run([BIN / "hyperexport", *args], capture_output=True, text=True,
                          timeout=120, env=env, input=stdin)


def flip(path, offset):
    """One bit of the byte at an offset of a file."""
    with open(path, "r+b") as f:
        f.seek(offset)
        byte = f.read(1)[0]
        f.seek(offset)
        f.write(bytes([byte ^ 1]))


def at_rest(plain_offset):
    """Where a plain byte stands in the encrypted file (common/crypt_file.h)."""
    return 64 + plain_offset // 65536 * (65536 + 17) + 1 + plain_offset % 65536


def data_of(path):
    """Some of a disk that nothing else holds."""
    with open(path, "rb") as f:
        f.seek(6 * MB)
        return f.read(64)


def test_an_encrypted_export_and_its_way_back(make_suite, make_vsphere, disk, keys, tmp_path):
    suite = make_suite(config={"export": {"encryption_key_dir": str(keys)}})
    # (make_suite lays the section over the suite's own)
    suite.add_vsphere(make_vsphere([vm("web", disk, power="off")]))

    def cli(*args):
        return hyperexport(suite, *args)

    done = cli("--vm", "web", "--format", "ovf", "--encrypt", "--encrypt-key", "default", "--quiet")
    assert done.returncode == 0, done.stderr
    directory = suite.exports / "web"
    names = {p.name for p in directory.iterdir()}
    assert {n for n in names if not n.endswith(".enc")} == \
        {"export.json", "evidence.json", "evidence.sig"}
    assert "web-disk1.vmdk.enc" in names and b"KDMV" not in \
        (directory / "web-disk1.vmdk.enc").read_bytes()[:4096]
    one = suite.client.get("/api/v1/exports")["exports"][0]
    whole = suite.client.get(f"/api/v1/exports/{one['export_id']}")
    assert whole["manifest"]["vm"]["cpu"] and whole["disks"][0]["root"]
    told = cli("verify", "web", "--quiet").stdout
    assert "evidence=valid" in told and "content_checked=true" in told
    # back, without a gateway
    plain = tmp_path / "plain"
    done = hyperexport(suite, "decrypt", str(directory), str(plain), "--keyfile", str(keys / "default.key"),
                       env={"HYPERSDK_URL": "http://127.0.0.1:1"})
    assert done.returncode == 0, done.stderr
    images.compare(disk, plain / "web-disk1.vmdk", "vmdk")
    sums = subprocess.run(["sha256sum", "-c", "checksums.txt"], cwd=plain, capture_output=True)
    assert sums.returncode == 0 and sums.stdout.count(b": OK") >= 6
    record = json.loads((directory / "export.json").read_text())
    for file in record["files"]:
        if "plain_name" in file:
            assert images.sha256(plain / file["plain_name"]) == file["plain_sha256"]
    wrong = tmp_path / "wrong"
    done = cli("decrypt", str(directory), str(wrong), "--keyfile", str(keys / "other.key"))
    assert done.returncode == 1 and "another key" in done.stderr and not wrong.exists()
    flip(directory / "web-disk1.vmdk.enc", 100000)
    image = str(directory / "web-disk1.vmdk.enc")
    done = cli("decrypt", image, str(wrong), "--keyfile", str(keys / "default.key"))
    assert done.returncode == 4 and "damaged" in done.stderr and list(wrong.iterdir()) == []
    assert cli("verify", "web", "--quiet").returncode == 4
    # without the key the encrypted files are checked, and that is said
    (keys / "default.key").rename(keys / "away.key")
    flip(directory / "web-disk1.vmdk.enc", 100000)
    told = cli("verify", "web", "--quiet").stdout
    assert "content_checked=false" in told and "default.key" in told
    # what cannot be done is refused before anything is read
    missing = suite.wait_job(suite.client.submit(vm_path="web", format="raw",
                                                 encrypt={"key_ref": "nope"}), "failed")
    assert "nope.key" in missing["error"]
    (keys / "other.key").chmod(0o644)
    open_key = suite.wait_job(suite.client.submit(vm_path="web", format="raw",
                                                  encrypt={"key_ref": "other"}), "failed")
    assert "0600" in open_key["error"]
    assert suite.client.request("POST", "/api/v1/jobs", {
        "vm_path": "web", "encrypt": {"key_ref": "../x"}}).status_code == 400
    for more, why in (({"hyper2kvm_integration": {"enabled": True}}, "converter reads"),
                      ({"incremental": True, "format": "qcow2"}, "encrypted file system")):
        refused = suite.client.request("POST", "/api/v1/jobs",
                                       {"vm_path": "web", "encrypt": {}, **more})
        assert refused.status_code == 422 and why in refused.json()["error"]
    assert cli("--vm", "web", "--encrypt", "--encrypt-method", "gpg").returncode == 65
    assert cli("--vm", "web", "--keyfile", "x").returncode == 64


def test_a_passphrase_opens_the_export_and_shows_nowhere(make_suite, make_vsphere, disk, tmp_path):
    suite = make_suite()
    suite.add_vsphere(make_vsphere([vm("web", disk, power="off")]))
    secret = tmp_path / "secret"
    secret.write_text(PASSPHRASE + "\n")
    done = hyperexport(suite, "--vm", "web", "--format", "raw", "--encrypt", "--quiet",
                       env={"HYPEREXPORT_PASSPHRASE": PASSPHRASE})
    assert done.returncode == 0, done.stderr
    directory = suite.exports / "web"
    record = (directory / "export.json").read_text()
    assert json.loads(record)["encryption"] == {"method": "xchacha20poly1305", "key": "passphrase"}
    image = directory / "web-disk1.raw.enc"
    assert data_of(disk) not in image.read_bytes()
    job = suite.client.get("/api/v1/jobs")["jobs"][0]["job_id"]
    seen = {"tails": suite.tails(), "record": record, "job": json.dumps(suite.client.job(job)),
            "logs": suite.client.request("GET", f"/jobs/logs/{job}").text}
    for table in ("jobs", "tasks", "job_events", "job_logs", "audit.audit_log"):
        seen[table] = json.dumps(suite.sql(f"SELECT row_to_json(t)::text AS t FROM {table} t"))
    assert not [place for place, text in seen.items() if PASSPHRASE in text]
    # the sealed form is the worker's alone
    sealed = suite.sql("SELECT spec->>'sealed_passphrase' AS s FROM tasks")[0]["s"]
    assert len(sealed) > 2 * len(PASSPHRASE)
    assert not [place for place, text in seen.items() if sealed in text and place != "tasks"]
    # back: from a file, from the environment; a wrong one is told at once and leaves nothing
    plain = tmp_path / "plain"
    done = hyperexport(suite, "decrypt", str(directory), str(plain), "--passphrase-file",
                       str(secret))
    assert done.returncode == 0, done.stderr
    images.compare(disk, plain / "web-disk1.raw", "raw")
    done = hyperexport(suite, "--decrypt", str(image), "--passphrase-file", "-",
                       stdin=PASSPHRASE + "\n")
    assert done.returncode == 0 and (directory / "web-disk1.raw").exists(), done.stderr
    (directory / "web-disk1.raw").unlink()
    wrong = tmp_path / "wrong"
    done = hyperexport(suite, "decrypt", str(directory), str(wrong), "--passphrase", "Wrong-horse")
    assert done.returncode == 1 and "wrong passphrase" in done.stderr and not wrong.exists()
    assert "other users" in done.stderr
    # verify: all of it with the passphrase, the encrypted files without, and nothing pretended
    told = hyperexport(suite, "verify", "web", "--quiet", "--passphrase-file", str(secret))
    assert told.returncode == 0 and "content_checked=true" in told.stdout, told.stderr
    told = hyperexport(suite, "verify", "web", "--quiet")
    assert told.returncode == 0 and "content_checked=false" in told.stdout
    assert "no passphrase was given" in told.stdout
    answer = suite.client.post("/api/v1/exports/verify", {"path": "web", "passphrase": "Wrong-one"},
                               status=202)
    failed = suite.wait_job(answer["job_id"], "failed")
    assert failed["error_code"] == "denied" and "wrong passphrase" in failed["error"]
    # a flipped byte of MiB 7 is named as such
    flip(image, at_rest(7 * MB + 4711))
    export_id = json.loads(record)["export_id"]
    answer = suite.client.post(f"/api/v1/exports/{export_id}/verify",
                               {"passphrase": PASSPHRASE}, status=202)
    result = suite.wait_job(answer["job_id"], "failed")["result"]
    found = {(p["file"], p["problem"]): p for p in result["problems"]}
    assert found[image.name, "content"]["offsets"] == [7 * MB]
    assert (image.name, "digest") in found
    rows = json.dumps(suite.sql("SELECT row_to_json(t)::text AS t FROM jobs t") +
                      suite.sql("SELECT row_to_json(t)::text AS t FROM tasks t"))
    assert PASSPHRASE not in rows and PASSPHRASE not in suite.tails()


def test_passphrases_that_cannot_be_are_refused(make_suite, make_vsphere, disk):
    suite = make_suite()
    suite.add_vsphere(make_vsphere([vm("web", disk, power="off")]))
    for encrypt, field in (({"passphrase": "short"}, "encrypt.passphrase"),
                           ({"passphrase": PASSPHRASE, "key_ref": "default"},
                            "encrypt.passphrase")):
        refused = suite.client.request("POST", "/api/v1/jobs", {"vm_path": "web",
                                                                "encrypt": encrypt})
        assert refused.status_code == 400 and refused.json()["field"] == field
        assert PASSPHRASE not in refused.text and '"short"' not in refused.text
    assert hyperexport(suite, "--vm", "web", "--passphrase", PASSPHRASE).returncode == 64
    assert hyperexport(suite, "--vm", "web", "--encrypt", "--encrypt-key", "default",
                       "--passphrase", PASSPHRASE).returncode == 64


def test_what_is_uploaded_is_encrypted(make_suite, make_vsphere, disk, sshd, tmp_path):
    suite = make_suite(config={"uploads": {"nas": sshd.entry()}})
    suite.add_vsphere(make_vsphere([vm("web", disk, power="off")]))
    job = suite.client.submit(vm_path="web", format="qcow2", upload=sshd.url(), keep_local=False,
                              encrypt={"passphrase": PASSPHRASE})
    result = suite.wait_job(job, "completed")["result"]
    there = sshd.root / "web" / result["uploaded_to"].rsplit("/", 1)[1]
    assert {p.name for p in there.iterdir()} == {f["name"] for f in result["files"]}
    for file in result["files"]:
        data = (there / file["name"]).read_bytes()
        assert len(data) == file["size"] and data_of(disk) not in data
        assert file["name"].endswith(".enc") or file["type"] in ("evidence", "record")
    assert [p for p in suite.exports.rglob("*") if p.name != ".hypersdk-volume"] == []
    plain = tmp_path / "plain"
    done = hyperexport(suite, "decrypt", str(there), str(plain),
                       env={"HYPEREXPORT_PASSPHRASE": PASSPHRASE})
    assert done.returncode == 0, done.stderr
    images.check(plain / "web-disk1.qcow2", "qcow2")
    images.compare(disk, plain / "web-disk1.qcow2", "qcow2")


def test_a_worker_killed_while_encrypting_leaves_nothing_plain(make_suite, make_vsphere, tmp_path):
    disk = make_image(tmp_path / "big.raw", 48 * MB, [(0, 48 * MB)])
    sim = make_vsphere([vm("web", disk, power="off")], rate=16 * MB)
    suite = make_suite()
    suite.add_vsphere(sim)
    job = suite.client.submit(vm_path="web", format="raw", verify=False,
                              encrypt={"passphrase": PASSPHRASE})
    directory = suite.exports / "web"
    suite.wait_bytes(job, MB)
    suite["scheduler"].pause()  # nobody lets the export be finished
    sim.set_rate(0)
    wait_for(lambda: any(p.stat().st_size > 0 for p in directory.glob("web-disk1.raw.enc*")), 60,
             lambda: suite.explain(job))
    suite["exporter-vsphere"].kill()
    suite["scheduler"].kill()  # with the renewals that lie before it
    suite["scheduler"].start()
    names = {p.name for p in directory.iterdir()}
    assert "export.json" not in names and "web-disk1.raw.enc" not in names, names
    suite["exporter-vsphere"].start()
    suite.wait_job(job, "completed", deadline=120)
    kept = {p.name for p in directory.iterdir() if not p.name.endswith(".enc")}
    assert kept == {"export.json", "evidence.json", "evidence.sig"}
    assert images.leftovers(suite.exports) == []
    done = hyperexport(suite, "decrypt", str(directory), str(tmp_path / "plain"),
                       env={"HYPEREXPORT_PASSPHRASE": PASSPHRASE})
    assert done.returncode == 0, done.stderr
    images.compare(disk, tmp_path / "plain" / "web-disk1.raw", "raw")


# ---- compression of raw images ----

def test_a_compressed_raw_image_is_what_zstd_reads(make_suite, make_vsphere, disk, tmp_path):
    suite = make_suite()
    suite.add_vsphere(make_vsphere([vm("web", disk, power="off")]))
    done = hyperexport(suite, "--vm", "web", "--format", "raw", "--compress", "--quiet")
    assert done.returncode == 0, done.stderr
    directory = suite.exports / "web"
    image = directory / "web-disk1.raw.zst"
    assert not (directory / "web-disk1.raw").exists() and image.stat().st_size < 7 * MB
    record = json.loads((directory / "export.json").read_text())
    assert record["disks"][0]["sha256"] == images.sha256(image)
    manifest = json.loads((directory / "artifact-manifest.json").read_text())
    assert manifest["disks"][0]["source_format"] == "raw.zst"
    plain = tmp_path / "plain.raw"
    unpacked = subprocess.run(["zstd", "-q", "-d", image, "-o", plain], capture_output=True)
    assert unpacked.returncode == 0, unpacked.stderr
    images.compare(disk, plain, "raw")
    assert hyperexport(suite, "verify", "web", "--quiet").returncode == 0
    # a byte in the middle of MiB 6, found by the frames' sizes in the seek table
    data = image.read_bytes()
    table = data[-9 - 32 * 8:-9]
    sizes = [int.from_bytes(table[8 * i:8 * i + 4], "little") for i in range(32)]
    flip(image, sum(sizes[:6]) + sizes[6] // 2)
    answer = suite.client.post("/api/v1/exports/verify", {"path": "web"}, status=202)
    result = suite.wait_job(answer["job_id"], "failed")["result"]
    found = {(p["file"], p["problem"]): p for p in result["problems"]}
    assert found[image.name, "content"]["offsets"] == [6 * MB]
    assert (image.name, "digest") in found
    refused = suite.client.request("POST", "/api/v1/jobs", {"vm_path": "web", "format": "raw",
                                                            "compression": "zlib"})
    assert refused.status_code == 422 and "qcow2" in refused.json()["error"]


def test_a_raw_image_is_compressed_then_encrypted(make_suite, make_vsphere, disk, tmp_path):
    suite = make_suite()
    suite.add_vsphere(make_vsphere([vm("web", disk, power="off")]))
    job = suite.client.submit(vm_path="web", format="raw", compress=True, compression_level=1,
                              encrypt={"passphrase": PASSPHRASE})
    directory = pathlib.Path(suite.wait_job(job, "completed")["result"]["output_path"])
    env = {"HYPEREXPORT_PASSPHRASE": PASSPHRASE}
    assert "content_checked=true" in hyperexport(suite, "verify", "web", "--quiet", env=env).stdout
    plain = tmp_path / "plain"
    done = hyperexport(suite, "decrypt", str(directory), str(plain), env=env)
    assert done.returncode == 0, done.stderr
    subprocess.run(["zstd", "-q", "-d", plain / "web-disk1.raw.zst"], check=True)
    images.compare(disk, plain / "web-disk1.raw", "raw")

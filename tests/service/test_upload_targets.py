"""Upload targets against real servers, one file at a time, without the services around them."""
import hashlib
import json
import os
import pathlib
import subprocess

import pytest

from tests.fakes.s3 import S3
from tests.harness.process import ROOT, VARIANT
from tests.harness.targets import Sshd, missing
from tests.harness.vsphere import pseudo_random
from tests.harness.wait import wait_for

DRIVER = ROOT / "build" / VARIANT / "helpers" / "upload_driver"
MB = 1 << 20
NAME = "web/exp-0123456789abcdef/web-disk1.vmdk"


class Driver:
    """The uploads section and URL of one target."""

    def __init__(self, directory, uploads, url):
        self.directory, self.uploads, self.url = pathlib.Path(directory), uploads, url
        self.state = self.directory / "state"

    def spec(self, action, **more):
        path = self.directory / "spec.json"
        path.write_text(json.dumps({"uploads": self.uploads, "url": self.url, "action": action,
                                    "name": NAME, **more}))
        return path

    def run(self, action, env=None, **more):
        done = subprocess.run([DRIVER, self.spec(action, **more)], capture_output=True, text=True,
                              timeout=300, env=env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def upload(self, path, **more):
        return self.run("upload", file=str(path), state=str(self.state), **more)


@pytest.fixture
def big(tmp_path):
    """Three parts of 16 MiB, the last one short."""
    path = tmp_path / "big"
    path.write_bytes(pseudo_random(40 * MB + 12345, "big"))
    return path


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small"
    path.write_bytes(pseudo_random(70000, "small"))
    return path


def sha(data):
    return hashlib.sha256(data).hexdigest()


# ---- S3 ----

@pytest.fixture
def s3(swift, bucket, tmp_path):
    url = f"s3://{bucket}/backups"
    return Driver(tmp_path, {"main": swift.entry(url)}, url)


def stored(swift, bucket, name=NAME):
    return swift.client().get_object(Bucket=bucket, Key=f"backups/{name}")["Body"].read()


def test_an_independent_client_reads_back_what_was_uploaded(s3, swift, bucket, big, small):
    answer = s3.upload(big)
    assert answer == {"ok": True, "id": s3_id(s3)}
    assert sha(stored(swift, bucket)) == sha(big.read_bytes())
    s3.state.unlink()
    other = "web/exp-0123456789abcdef/ü b+c&d.ovf"
    assert s3.upload(small, name=other)["ok"]
    assert stored(swift, bucket, other) == small.read_bytes()
    assert swift.client().list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []


def s3_id(driver):
    return json.loads(driver.state.read_text().splitlines()[0])["id"]


def test_a_wrong_secret_is_told_and_not_shown(s3, swift, small):
    s3.uploads["main"]["secret_access_key"] = "Tr0ub4dor-wrong"
    answer = s3.upload(small)
    assert (answer["ok"], answer["code"]) == (False, "denied")
    assert "secret_access_key" in answer["error"] and "Tr0ub4dor" not in json.dumps(answer)


def test_a_bucket_that_is_missing_is_named(s3, swift, small):
    s3.url = s3.uploads["main"]["url"] = "s3://no-such-bucket/x"
    answer = s3.upload(small)
    assert answer["code"] == "not_found" and "no-such-bucket" in answer["error"]


def test_somebody_elses_object_is_not_replaced(s3, swift, bucket, small):
    client = swift.client()
    client.put_object(Bucket=bucket, Key=f"backups/{NAME}", Body=b"mine")
    answer = s3.upload(small)
    assert answer["code"] == "conflict" and NAME in answer["error"]
    assert stored(swift, bucket) == b"mine"


def test_parts_of_an_earlier_attempt_count_when_they_are_the_same(s3, swift, bucket, big):
    """The first attempt is made by another client: two right parts and a wrong one."""
    client, data = swift.client(), big.read_bytes()
    key, size = f"backups/{NAME}", 16 * MB
    upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    lines = [{"url": f"s3://{bucket}/backups", "name": NAME, "size": len(data), "part_size": size,
              "sha256": sha(data), "id": upload}]
    for i, body in enumerate([data[:size], b"x" * size, data[2 * size:]]):
        tag = client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=i + 1,
                                 Body=body)["ETag"].strip('"')
        lines.append({"part": i + 1, "sha256": sha(body), "tag": tag})
    s3.state.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"part": 2, "sh')
    assert s3.upload(big) == {"ok": True}  # no new upload was begun
    assert sha(stored(swift, bucket)) == sha(data)
    noted = [json.loads(line) for line in s3.state.read_text().splitlines()[4:]]
    assert [n["part"] for n in noted if "part" in n] == [2]


def test_uploads_of_dead_exports_are_swept(s3, swift, bucket):
    client = swift.client()
    for key in (f"backups/{NAME}", f"elsewhere/{NAME}", "backups/web/other/file"):
        client.create_multipart_upload(Bucket=bucket, Key=key)
    assert s3.run("sweep", age_ms=3600000) == {"ok": True, "swept": 0}
    # the server tells whole seconds
    wait_for(lambda: s3.run("sweep", age_ms=0) == {"ok": True, "swept": 1})
    left = {u["Key"] for u in client.list_multipart_uploads(Bucket=bucket)["Uploads"]}
    assert left == {f"elsewhere/{NAME}", "backups/web/other/file"}


def test_the_environment_has_credentials_when_no_entry_fits(s3, swift, bucket, small):
    s3.uploads = {"other": swift.entry("s3://another-bucket")}
    answer = s3.upload(small)
    assert answer["code"] == "denied" and "AWS_ACCESS_KEY_ID" in answer["error"]
    env = {"AWS_ACCESS_KEY_ID": swift.ACCESS, "AWS_SECRET_ACCESS_KEY": swift.SECRET,
           "AWS_ENDPOINT_URL": swift.endpoint, "AWS_REGION": swift.REGION}
    assert s3.upload(small, env=env)["ok"]
    assert stored(swift, bucket) == small.read_bytes()


# ---- an S3 server that lies ----

@pytest.fixture
def fake():
    server = S3().start()
    yield server
    server.stop()


@pytest.fixture
def lied(fake, tmp_path):
    return Driver(tmp_path, {"main": fake.entry("s3://bucket/p")}, "s3://bucket/p")


FAULTS = {
    "cut in the middle of a part": [("cut", {"part": 2})],
    "slow down, twice": [("status", {"part": 3, "status": 503, "times": 2})],
    "a digest that was damaged on the way": [
        ("status", {"part": 1, "status": 400, "code": "BadDigest"})],
    "200, then an error": [("complete-error", {})],
    "complete, but the answer is lost": [("complete-lost", {})],
    "an ETag of other bytes": [("etag", {"part": 2})],
    "everything": [("cut", {"part": 1}), ("status", {"part": 2, "status": 500}),
                   ("complete-error", {}), ("complete-lost", {})],
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_that_pass_are_survived(fake, lied, big, name):
    for kind, where in FAULTS[name]:
        fake.fault(kind, **where)
    answer = lied.upload(big)
    assert answer["ok"], answer
    assert all(f["times"] == 0 for f in fake.faults), "a fault was not met"
    assert sha(fake.objects[f"p/{NAME}"][0]) == sha(big.read_bytes())
    assert fake.uploads == {}


def test_an_etag_that_stays_wrong_is_no_upload(fake, lied, big):
    fake.fault("etag", part=2, times=100)
    answer = lied.upload(big)
    assert answer["code"] == "unavailable" and "other bytes" in answer["error"]
    assert fake.objects == {}


def test_the_region_is_learnt_from_the_server(fake, lied, small):
    fake.region = "eu-south-2"
    assert lied.upload(small)["ok"]
    assert len([r for r in fake.requests if r[0] == "GET"]) == 2  # refused once, then right


def test_a_clock_that_is_off_is_corrected_once(fake, lied, small):
    fake.clock = -7200
    assert lied.upload(small)["ok"]
    fake.clock = 7200
    assert lied.upload(small, name=NAME + "2")["ok"]


def test_a_killed_upload_goes_on_with_the_parts_that_are_there(fake, lied, tmp_path):
    path = tmp_path / "huge"
    path.write_bytes(pseudo_random(20 * MB, "huge") * 5)  # 7 parts of 16 MiB
    fake.page, fake.hold = 2, 5
    lied.uploads["main"]["parallel"] = 2
    spec = lied.spec("upload", file=str(path), state=str(lied.state))
    child = subprocess.Popen([DRIVER, spec], stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: lied.state.exists() and lied.state.read_text().count('"part":') == 4, 60,
                 "four parts noted")
    finally:
        child.kill()
        child.wait(60)
    assert sorted(fake.puts) == [1, 2, 3, 4]
    fake.release()
    answer = lied.upload(path)
    assert answer["ok"] and "id" not in answer, answer
    # of those that the killed one was at, the server may have kept none, one or both
    assert 7 in fake.puts[4:] and set(fake.puts[4:]) <= {5, 6, 7}
    assert sha(fake.objects[f"p/{NAME}"][0]) == sha(path.read_bytes())


def test_a_file_that_changed_after_its_verification_is_not_published(fake, lied, big):
    """The digest in the state is that of the export's record: the driver makes it anew, so the
    change happens while the upload runs."""
    fake.hold = 1
    spec = lied.spec("upload", file=str(big), state=str(lied.state))
    child = subprocess.Popen([DRIVER, spec], stdout=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: any(r[0] == "PUT" for r in fake.requests), 60, "a part is under way")
        with open(big, "r+b") as f:
            f.seek(5 * MB)
            f.write(b"changed")
        fake.release()
        answer = json.loads(child.communicate(timeout=60)[0])
    finally:
        child.kill()
        child.wait(60)
    assert not answer["ok"]
    assert fake.objects == {}


def test_an_upload_is_aborted_for_good(fake, lied, big):
    fake.fault("status", part=1, status=403, code="AccessDenied", times=100)
    answer = lied.upload(big)
    assert answer["code"] == "denied"
    assert len(fake.uploads) == 1
    assert lied.run("abort", id=answer["id"])["ok"]
    assert fake.uploads == {}
    assert lied.run("abort", id=answer["id"])["ok"]


def test_the_server_says_how_long_to_wait(fake, lied, big):
    """503 with Retry-After: the part comes again no earlier, by the server's own clock."""
    lied.uploads["main"]["parallel"] = 1
    fake.fault("status", part=2, status=503, retry_after=4)
    assert lied.upload(big)["ok"]
    first, second = [at for part, at in fake.arrivals if part == 2]
    assert 4 <= second - first


# ---- an S3 server that checks everything ----

@pytest.fixture
def strict():
    server = S3(strict=True).start()
    yield server
    server.stop()


def strict_driver(strict, tmp_path, **more):
    entry = dict(strict.entry("s3://bucket/p"), **more)
    return Driver(tmp_path, {"main": entry}, "s3://bucket/p")


def test_sha256_checksums_and_virtual_hosts_are_what_aws_documents(strict, tmp_path, big, small):
    driver = strict_driver(strict, tmp_path, checksum="sha256", path_style="false",
                           endpoint=strict.endpoint.replace("127.0.0.1", "localhost"),
                           session_token="token+/=")
    strict.fault("damage", part=2)
    other = "web/exp-0123456789abcdef/ü b+c&d (1)*~.ovf"
    answer = driver.upload(big)
    assert answer["ok"], answer
    assert strict.hosts == {"bucket.localhost"}
    assert sorted(strict.checked) == [1, 2, 3]
    assert sha(strict.objects[f"p/{NAME}"][0]) == sha(big.read_bytes())
    driver.state.unlink()
    assert driver.upload(small, name=other)["ok"]
    assert strict.objects[f"p/{other}"][0] == small.read_bytes()


def test_path_style_and_md5_are_signed_as_well(strict, tmp_path, big):
    driver = strict_driver(strict, tmp_path)
    answer = driver.upload(big)
    assert answer["ok"], answer
    assert strict.hosts == {"127.0.0.1"} and strict.checked == []
    assert sha(strict.objects[f"p/{NAME}"][0]) == sha(big.read_bytes())


def test_the_strict_server_refuses_a_wrong_secret(strict, tmp_path, small):
    driver = strict_driver(strict, tmp_path, secret_access_key="Tr0ub4dor-wrong")
    answer = driver.upload(small)
    assert answer["code"] == "denied" and "SignatureDoesNotMatch" in answer["error"]
    assert strict.objects == {}


# ---- SFTP ----

@pytest.fixture
def sftp(sshd, tmp_path):
    return Driver(tmp_path, {"nas": sshd.entry()}, sshd.url())


def test_a_file_goes_to_an_ssh_server(sftp, sshd, big):
    assert sftp.upload(big)["ok"]
    there = sshd.root / NAME
    assert sha(there.read_bytes()) == sha(big.read_bytes())
    assert list(sshd.root.rglob("*.part")) == []
    sftp.state.unlink()
    assert sftp.upload(big) == {"ok": True}  # there already: read back and left alone


def test_an_rsa_key_logs_in(tmp_path, small):
    server = Sshd(tmp_path / "rsa")
    if missing(*Sshd.PROGRAMS):
        pytest.skip(f"not installed: {missing(*Sshd.PROGRAMS)}")
    try:
        server.start("rsa")
        driver = Driver(tmp_path, {"nas": server.entry()}, server.url())
        assert driver.upload(small)["ok"]
    finally:
        server.stop()


def test_a_file_of_somebody_else_is_not_replaced(sftp, sshd, small):
    there = sshd.root / NAME
    there.parent.mkdir(parents=True)
    there.write_text("mine")
    assert sftp.upload(small)["code"] == "conflict"
    assert there.read_text() == "mine"


def test_an_unknown_host_key_gets_nothing(sftp, sshd, small):
    known = sshd.directory / "known_hosts"
    right = known.read_text()
    known.write_text("")
    answer = sftp.upload(small)
    assert answer["code"] == "denied" and "SHA256:" in answer["error"]
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", sshd.directory / "o"],
                   check=True)
    other = (sshd.directory / "o.pub").read_text().split()[1]
    known.write_text(right.replace(right.split()[2], other))
    answer = sftp.upload(small)
    assert answer["code"] == "denied" and "another host key" in answer["error"]
    assert list(sshd.root.rglob("*")) == []


def test_a_refused_key_is_told(sftp, sshd, small):
    (sshd.directory / "authorized").write_text("")
    answer = sftp.upload(small)
    assert answer["code"] == "denied" and "refuses the key of user 'root'" in answer["error"]


def test_parts_that_are_there_are_not_sent_again_but_checked(sftp, sshd, big):
    """State and .part of an earlier attempt: parts 1 and 3 right; then with a byte lost."""
    data, size = big.read_bytes(), 16 * MB
    part = sshd.root / (NAME + ".part")

    def prepare(flip):
        part.parent.mkdir(parents=True, exist_ok=True)
        half = bytearray(data)
        half[size:2 * size] = bytes(size)
        half[flip] ^= 1 if flip else 0
        part.write_bytes(half)
        lines = [{"url": sshd.url(), "name": NAME, "size": len(data), "part_size": size,
                  "sha256": sha(data), "id": ".part"}]
        for i in (0, 2):
            lines.append({"part": i + 1, "sha256": sha(data[i * size:(i + 1) * size]),
                          "tag": "stored"})
        sftp.state.write_text("".join(json.dumps(line) + "\n" for line in lines))

    prepare(flip=5)  # part 1 is not what the state says
    answer = sftp.upload(big)
    assert answer["code"] == "unavailable" and "came back changed" in answer["error"]
    assert not (sshd.root / NAME).exists()
    prepare(flip=0)
    assert sftp.upload(big)["ok"]
    assert sha((sshd.root / NAME).read_bytes()) == sha(data)
    noted = [json.loads(line) for line in sftp.state.read_text().splitlines()[3:]]
    assert [n["part"] for n in noted if "part" in n] == [2]


def test_old_part_files_of_exports_are_swept(sftp, sshd):
    old = sshd.root / (NAME + ".part")
    old.parent.mkdir(parents=True)
    other = sshd.root / "web" / "mine.part"
    for path in (old, other):
        path.write_text("x")
        os.utime(path, (1, 1))
    assert sftp.run("sweep", age_ms=3600000) == {"ok": True, "swept": 1}
    assert not old.exists() and other.exists()


def test_a_missing_directory_is_named(sftp, sshd, small):
    sftp.url = sshd.url("/not/there")
    answer = sftp.upload(small)
    assert answer["code"] == "not_found" and "not/there" in answer["error"]

"""Upload targets against real servers, one file at a time, without the services around them."""
import hashlib
import json
import pathlib
import subprocess

import pytest

from tests.harness.process import ROOT, VARIANT
from tests.harness.vsphere import pseudo_random

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
                              timeout=120, env=env)
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
def bucket(swift, request):
    name = "b" + hashlib.md5(request.node.name.encode()).hexdigest()[:12]
    swift.client().create_bucket(Bucket=name)
    return name


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

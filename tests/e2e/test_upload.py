"""An export goes to a target outside: through every process, to real servers."""
import hashlib
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


@pytest.fixture
def disk(tmp_path):
    """Three parts of 16 MiB as raw."""
    return make_image(tmp_path / "disk.raw", 40 * MB, [(0, MB), (20 * MB, 4 * MB), (39 * MB, MB)])


@pytest.fixture
def sim(make_vsphere, disk):
    return make_vsphere([vm("web", disk)])


@pytest.fixture
def bucket(swift, request):
    name = "e" + hashlib.md5(request.node.name.encode()).hexdigest()[:12]
    swift.client().create_bucket(Bucket=name)
    return name


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

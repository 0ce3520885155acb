"""Restore points: incremental exports of one VM through the whole suite."""
import json
import os
import pathlib
import random
import shutil
import subprocess

import pytest

from tests.harness import images
from tests.harness.process import BIN
from tests.harness.vsphere import make_image, vm

MB = 1 << 20


@pytest.fixture
def disk(tmp_path):
    return make_image(tmp_path / "disk.raw", 24 * MB, [(0, MB), (5 * MB - 4096, 6 * MB), (20 * MB, 2 * MB)])


@pytest.fixture
def suite(make_suite, make_vsphere, disk):
    sim = make_vsphere([vm("web", disk)])
    suite = make_suite()
    suite.add_vsphere(sim)
    suite.sim = sim
    return suite


def guest_writes(disk, seed):
    """Data and zeros at odd places of the image behind the VM."""
    numbers = random.Random(seed)
    with open(disk, "r+b") as file:
        for i in range(6):
            file.seek(numbers.randrange(24 * MB - 200000))
            size = numbers.randrange(1, 150000)
            file.write(bytes(size) if i % 3 == 0 else numbers.randbytes(size))


def export(suite, **fields):
    job = suite.client.submit(vm_path="web", incremental=True, **fields)
    return suite.wait_job(job, "completed")["result"]


def image_of(result):
    return pathlib.Path(result["output_path"]) / "web-disk1.qcow2"


def test_every_point_is_the_disk_at_its_time(suite, disk, tmp_path):
    points = []
    for i in range(5):
        if i > 0:
            guest_writes(disk, i)
        then = tmp_path / f"then-{i}.raw"
        shutil.copy(disk, then)
        points.append((export(suite), then))
    for i, (result, then) in enumerate(points):
        image = image_of(result)
        assert result["incremental"]["mode"] == ("full" if i == 0 else "leaf")
        assert image.parent.parent == suite.exports / "web"
        images.check(image, "qcow2")
        images.compare(then, image, "qcow2")
        assert images.check_digests(result["output_path"]) >= 1
    full, last = points[0][0], points[-1][0]
    assert last["incremental"]["changed_bytes"] < full["incremental"]["changed_bytes"]
    assert image_of(last).stat().st_size < image_of(full).stat().st_size / 3
    rows = suite.sql("SELECT id, base_id FROM exports ORDER BY created_at")
    assert [r["base_id"] for r in rows] == [""] + [r["id"] for r in rows[:-1]]
    assert images.leftovers(suite.exports) == []


def test_what_makes_a_full_point_is_said(suite, disk):
    first = export(suite)
    assert "there is no export of the VM" in first["incremental"]["reason"]
    forced = suite.wait_job(suite.client.submit(vm_path="web", force_full=True), "completed")["result"]
    assert forced["incremental"]["reason"] == "force_full was asked for"
    old = export(suite, incremental_max_age=0)
    assert "h old" in old["incremental"]["reason"]
    with open(image_of(old), "r+b") as file:
        file.seek(3 * 65536)
        byte = file.read(1)
        file.seek(3 * 65536)
        file.write(bytes([byte[0] ^ 1]))
    job = suite.client.submit(vm_path="web", incremental=True)
    damaged = suite.wait_job(job, "completed")["result"]
    assert "SHA-256" in damaged["incremental"]["reason"]
    images.compare(disk, image_of(damaged), "qcow2")
    log = suite.client.get(f"/api/v1/jobs/{job}/logs")
    assert any("full export: " in line["message"] for line in log["logs"])


def test_a_killed_worker_leaves_a_point_that_is_right(suite, disk):
    export(suite)
    guest_writes(disk, 7)
    suite.sim.set_rate(8 * MB)
    job = suite.client.submit(vm_path="web", incremental=True)
    suite.wait_bytes(job, 4 * MB)
    suite.sim.hold()
    suite["exporter-vsphere"].kill()
    suite.sim.set_rate(0)
    suite["exporter-vsphere"].start()
    result = suite.wait_job(job, "completed", deadline=120)["result"]
    assert result["incremental"]["mode"] == "leaf"
    images.check(image_of(result), "qcow2")
    images.compare(disk, image_of(result), "qcow2")


def hyperexport(suite, *arguments):
    return subprocess.run([BIN / "hyperexport", "--daemon-url", suite.url(), *arguments],
                          capture_output=True, text=True, timeout=120, cwd="/",
                          env={**os.environ, "HOME": str(suite.directory)})


def test_the_command_line_makes_and_foretells_points(suite, disk):
    before = hyperexport(suite, "--vm", "web", "--incremental-info", "--quiet")
    assert before.returncode == 0, before.stderr
    assert "possible=false\nreason=there is no export of the VM" in before.stdout
    done = hyperexport(suite, "--vm", "web", "--incremental", "--quiet")
    assert done.returncode == 0, done.stderr
    after = hyperexport(suite, "--vm", "web", "--incremental-info", "--quiet")
    assert "possible=true\n" in after.stdout and "changed_bytes=unknown\n" in after.stdout
    assert f"total_bytes={24 * MB}\n" in after.stdout and "disk.1.changed=unknown\n" in after.stdout
    shown = json.loads(hyperexport(suite, "--vm", "web", "--incremental-info", "--json").stdout)
    assert shown["base_id"] == suite.sql("SELECT id FROM exports")[0]["id"]
    forced = json.loads(hyperexport(suite, "--vm", "web", "--incremental-info", "--force-full",
                                    "--json").stdout)
    assert forced["possible"] is False and forced["reason"] == "force_full was asked for"
    refused = hyperexport(suite, "--vm", "web", "--incremental", "--format", "ova")
    assert refused.returncode == 65 and "an OVA is one file" in refused.stderr
    guest_writes(disk, 3)
    done = hyperexport(suite, "--vm", "web", "--incremental", "--incremental-max-age", "48h", "--quiet")
    assert done.returncode == 0, done.stderr
    rows = suite.sql("SELECT base_id FROM exports ORDER BY created_at")
    assert [r["base_id"] != "" for r in rows] == [False, True]
    vm_id = shown["vm_id"]
    answer = suite.client.post(f"/api/v1/vms/{vm_id}/incremental",
                               {"output_path": "web", "max_full_age_days": 1})
    assert answer["possible"] is True and len(answer["chain"]) == 2
    assert len(suite.sql("SELECT id FROM exports")) == 2


def test_pruning_survives_the_worker_and_keeps_the_younger_points(suite, disk, tmp_path):
    points = []
    for i in range(5):
        if i > 0:
            guest_writes(disk, 20 + i)
        then = tmp_path / f"then-{i}.raw"
        shutil.copy(disk, then)
        points.append((export(suite), then))
    ids = [r["id"] for r in suite.sql("SELECT id FROM exports ORDER BY created_at")]
    job = suite.client.post(f"/api/v1/exports/{ids[4]}/prune", {"keep": 2}, status=202)["job_id"]
    suite.wait_phase(job, "pruning")
    suite["exporter-vsphere"].kill()
    suite["exporter-vsphere"].start()
    result = suite.wait_job(job, "completed", deadline=120)["result"]
    assert result["removed"] == ids[:3]
    assert [p["id"] for p in result["points"]] == ids[3:]
    rows = suite.sql("SELECT id, base_id FROM exports ORDER BY created_at")
    assert [(r["id"], r["base_id"]) for r in rows] == [(ids[3], ""), (ids[4], ids[3])]
    for number, (point, then) in enumerate(points):
        if number < 3:
            assert not pathlib.Path(point["output_path"]).exists()
            continue
        images.check(image_of(point), "qcow2")
        images.compare(then, image_of(point), "qcow2")
        assert images.check_digests(point["output_path"]) >= 1
        verify = suite.client.post(f"/api/v1/exports/{ids[number]}/verify", status=202)["job_id"]
        assert suite.wait_job(verify, "completed")["result"]["intact"] is True
    guest_writes(disk, 31)
    assert export(suite)["incremental"]["base_id"] == ids[4]


def test_a_flattened_point_stands_alone_and_a_chain_is_checked(suite, disk):
    first = export(suite)
    guest_writes(disk, 41)
    second = export(suite)
    ids = [r["id"] for r in suite.sql("SELECT id FROM exports ORDER BY created_at")]
    checked = hyperexport(suite, "exports", "check", ids[0], "--quiet")
    assert checked.returncode == 0, checked.stderr
    flat = hyperexport(suite, "exports", "flatten", ids[1], "--quiet")
    assert flat.returncode == 0, flat.stderr
    shutil.rmtree(first["output_path"])
    images.check(image_of(second), "qcow2")
    images.compare(disk, image_of(second), "qcow2")
    assert suite.sql("SELECT base_id FROM exports WHERE id = %s", ids[1])[0]["base_id"] == ""
    assert hyperexport(suite, "exports", "prune", ids[1]).returncode == 64
    with open(image_of(second), "r+b") as file:
        file.seek(70000)
        file.write(b"x")
    damaged = hyperexport(suite, "exports", "check", ids[1], "--quiet")
    assert damaged.returncode != 0 and "SHA-256" in damaged.stderr + damaged.stdout

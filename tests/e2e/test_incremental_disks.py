"""Incremental exports of whole disks (every format but qcow2): files of unchanged disks stay."""
import json
import pathlib
import shutil

import pytest

from tests.e2e.test_restore_points import hyperexport
from tests.harness import images
from tests.harness.vsphere import make_image, vm

MB = 1 << 20
SUFFIX = {"vmdk": "vmdk", "raw": "raw", "ovf": "vmdk"}


@pytest.fixture
def disks(tmp_path):
    return [make_image(tmp_path / f"disk{n}.raw", 12 * MB, [(0, MB), (5 * MB - 4096, 3 * MB)], seed=n)
            for n in (1, 2)]


@pytest.fixture
def suite(make_suite, make_vsphere, disks):
    sim = make_vsphere([vm("web", *disks)])
    suite = make_suite()
    suite.add_vsphere(sim)
    suite.sim = sim
    return suite


def write(disk, offset, data):
    with open(disk, "r+b") as file:
        file.seek(offset)
        file.write(data)


def submit(suite, **fields):
    return suite.client.submit(**{"vm_path": "web", "incremental": True, **fields})


def export(suite, **fields):
    return suite.wait_job(submit(suite, **fields), "completed")["result"]


def file_of(result, number, suffix="raw"):
    return pathlib.Path(result["output_path"]) / f"web-disk{number}.{suffix}"


def verify(suite, result):
    export_id = json.loads((pathlib.Path(result["output_path"]) / "export.json").read_text())["export_id"]
    return suite.client.post(f"/api/v1/exports/{export_id}/verify", status=202)["job_id"]


@pytest.mark.parametrize("chosen", ["ovf", "raw"])
def test_an_unchanged_disk_keeps_its_file_and_a_changed_one_is_written_whole(suite, disks, chosen, tmp_path):
    suffix = SUFFIX[chosen]
    first = export(suite, format=chosen)
    assert first["incremental"]["mode"] == "full"
    before = tmp_path / "before.raw"
    shutil.copy(disks[1], before)
    write(disks[1], 7 * MB + 3, b"changed")
    job = submit(suite, format=chosen)
    second = suite.wait_job(job, "completed")["result"]
    record = json.loads((pathlib.Path(second["output_path"]) / "export.json").read_text())
    manifest = json.loads(pathlib.Path(second["manifest_path"]).read_text())
    base_id = suite.sql("SELECT id FROM exports ORDER BY created_at")[0]["id"]
    assert second["incremental"]["mode"] == "disk" and second["incremental"]["base_id"] == base_id
    assert second["incremental"]["changed_bytes"] == MB
    assert [d["shared"] for d in second["incremental"]["disks"]] == [True, False]
    kept = next(f for f in record["files"] if f["name"] == f"web-disk1.{suffix}")
    assert (pathlib.Path(second["output_path"]) / kept["shared_with"]).samefile(file_of(second, 1, suffix))
    assert kept["sha256"] == images.sha256(file_of(first, 1, suffix))
    noted = manifest["incremental"]["disks"][0]
    assert noted["shared_with"] == kept["shared_with"] and noted["checksum"] == "sha256:" + kept["sha256"]
    assert not file_of(first, 2, suffix).samefile(file_of(second, 2, suffix))
    for number in (1, 2):
        images.compare(disks[number - 1], file_of(second, number, suffix), SUFFIX[chosen])
    images.compare(before, file_of(first, 2, suffix), suffix)
    for result in (first, second):
        assert images.check_digests(result["output_path"]) >= 1
        assert suite.wait_job(verify(suite, result), "completed")["result"]["intact"] is True
    log = suite.client.get(f"/api/v1/jobs/{job}/logs")["logs"]
    assert any("unchanged since export" in line["message"] for line in log)
    assert images.leftovers(suite.exports) == []


def test_a_byte_that_flips_in_a_shared_file_is_named_and_the_next_export_is_full(suite, disks):
    export(suite, format="raw")
    second = export(suite, format="raw")
    assert [d["shared"] for d in second["incremental"]["disks"]] == [True, True]
    shared = file_of(second, 1)
    byte = shared.read_bytes()[6 * MB]
    write(shared, 6 * MB, bytes([byte ^ 1]))
    failed = suite.wait_job(verify(suite, second), "failed")
    problem = next(p for p in failed["result"]["problems"] if p["problem"] == "content")
    assert problem["file"] == "web-disk1.raw" and problem["offsets"] == [6 * MB]
    third = export(suite, format="raw")
    assert third["incremental"]["mode"] == "full" and "SHA-256" in third["incremental"]["reason"]
    images.compare(disks[0], file_of(third, 1), "raw")


def test_what_makes_every_disk_be_written_is_said(suite, disks):
    first = export(suite, format="raw")
    other = export(suite, format="vmdk")
    assert other["incremental"]["reason"] == "the export before has format raw, this one vmdk"
    forced = export(suite, format="raw", force_full=True)
    assert forced["incremental"]["reason"] == "force_full was asked for"
    assert not file_of(forced, 1).samefile(file_of(first, 1))
    file_of(forced, 2).unlink()
    missing = export(suite, format="raw")
    assert missing["incremental"]["mode"] == "full" and "web-disk2.raw" in missing["incremental"]["reason"]
    told = hyperexport(suite, "--vm", "web", "--incremental-info", "--format", "raw", "--quiet")
    assert "possible=true\n" in told.stdout, told.stdout + told.stderr
    old = export(suite, format="raw", incremental_max_age=0)
    assert "h old" in old["incremental"]["reason"]
    told = hyperexport(suite, "--vm", "web", "--incremental", "--format", "raw", "--quiet")
    assert told.returncode == 0, told.stderr


def test_cleanup_takes_the_base_and_leaves_what_shares_its_files_whole(suite, disks):
    results = []
    for number in range(3):
        write(disks[1], number * MB, bytes([number + 1]))
        results.append(export(suite, format="raw"))
    assert results[2]["incremental"]["disks"][0]["shared"] is True
    job = suite.client.post("/api/v1/exports/cleanup", {"max_count": 1, "dir": "web"}, status=202)["job_id"]
    result = suite.wait_job(job, "completed")["result"]
    assert result["deleted_count"] == 2
    # disk 1 exists once and stays; what goes are two disks and what lies beside them
    assert 24 * MB <= result["deleted_bytes"] < 25 * MB
    assert not pathlib.Path(results[0]["output_path"]).exists()
    assert suite.wait_job(verify(suite, results[2]), "completed")["result"]["intact"] is True
    for number in (1, 2):
        images.compare(disks[number - 1], file_of(results[2], number), "raw")


def test_files_that_a_domain_changes_are_not_shared(suite, disks):
    first = export(suite, format="raw")
    (pathlib.Path(first["output_path"]) / ".hypersdk-domain").write_text("job\n")
    second = export(suite, format="raw")
    assert [d["shared"] for d in second["incremental"]["disks"]] == [False, False]
    assert sum("a domain uses them" in w for w in second["warnings"]) == 2
    for number in (1, 2):
        assert not file_of(first, number).samefile(file_of(second, number))
        images.compare(disks[number - 1], file_of(second, number), "raw")
    assert images.leftovers(suite.exports) == []


def test_a_killed_worker_never_writes_into_the_files_of_the_base(suite, disks):
    first = export(suite, format="raw")
    before = [images.sha256(file_of(first, n)) for n in (1, 2)]
    write(disks[1], 11 * MB, b"changed")
    suite.sim.set_rate(8 * MB)
    job = submit(suite, format="raw")
    suite.wait_bytes(job, MB)
    suite.sim.hold()
    suite["exporter-vsphere"].kill()
    suite.sim.set_rate(0)
    suite["exporter-vsphere"].start()
    second = suite.wait_job(job, "completed", deadline=120)["result"]
    assert [d["shared"] for d in second["incremental"]["disks"]] == [True, False]
    assert [images.sha256(file_of(first, n)) for n in (1, 2)] == before
    for number in (1, 2):
        images.compare(disks[number - 1], file_of(second, number), "raw")
    assert images.leftovers(suite.exports) == []

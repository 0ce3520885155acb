"""stream_upload: disks go to the target while they are read, and no copy of them stays here."""
import hashlib
import json
import os
import pathlib
import subprocess
from types import SimpleNamespace

import pytest

from tests.fakes.s3 import S3
from tests.harness import images
from tests.harness.process import BIN
from tests.harness.vsphere import make_image, pseudo_random, vm
from tests.harness.wait import wait_for

MB = 1 << 20
PART = 16 * MB
WINDOW = 192 * MB  # UPLOAD_STREAM_WINDOW_BYTES
CHUNK = 10 * MB  # export.chunk_size
AT_ONCE = 4  # parts, a target's `parallel`


def random_disk(path, size, holes=(), soft=0):
    """Bytes that do not compress, but for the holes [(offset, length)], and `soft` bytes of each 64
    KiB."""
    block = bytearray(pseudo_random(MB + 4096, path.name))
    for at in range(0, MB, 64 << 10):
        block[at:at + soft] = b"s" * soft
    block = bytes(block)
    with open(path, "wb") as f:
        f.truncate(size)
        for at in range(0, size, MB):
            if not any(o <= at < o + n for o, n in holes):
                f.seek(at)
                shift = 0 if soft else at // MB % 4096
                f.write(block[shift:][:MB - 8] + at.to_bytes(8, "big"))
    return path


def heavy(*values):
    """Parameters of a test whose other ones are enough for every run."""
    return pytest.param(*values, marks=pytest.mark.heavy)


@pytest.fixture
def disk(tmp_path):
    return random_disk(tmp_path / "disk.raw", 160 * MB, [(48 * MB, 40 * MB)])


@pytest.fixture
def soft(tmp_path):
    """Takes two thirds when it is compressed."""
    return random_disk(tmp_path / "soft.raw", 160 * MB, soft=20 << 10)


@pytest.fixture
def small(tmp_path):
    """Two parts of 16 MiB and a bit, as raw."""
    return make_image(tmp_path / "small.raw", 40 * MB, [(0, MB), (20 * MB, 4 * MB), (39 * MB, MB)])


@pytest.fixture
def fake():
    server = S3().start()
    yield server
    server.stop()


@pytest.fixture(params=["swift", "sshd"])
def target(request):
    """A real server: .entry, .url, .read(result, name)."""
    if request.param == "sshd":
        server = request.getfixturevalue("sshd")
        return SimpleNamespace(
            entry=server.entry(), url=server.url(),
            read=lambda result, name: (server.root / "web" /
                                       result["uploaded_to"].rsplit("/", 1)[1] / name).read_bytes())
    server, name = request.getfixturevalue("swift"), request.getfixturevalue("bucket")
    client = server.client()

    def read(result, file):
        prefix = result["uploaded_to"].removeprefix(f"s3://{name}/")
        return client.get_object(Bucket=name, Key=f"{prefix}/{file}")["Body"].read()
    return SimpleNamespace(entry=server.entry(f"s3://{name}"), url=f"s3://{name}/nightly", read=read)


def start(make_suite, sim, uploads, **options):
    suite = make_suite(config={"uploads": uploads}, **options)
    suite.add_vsphere(sim)
    return suite


def stream(suite, url, **fields):
    return suite.client.submit(vm_path="web", upload=url, stream_upload=True, **fields)


def check_objects(result, read):
    """Every file of the export is there, as the result says."""
    record = json.loads(read("export.json"))
    assert record["export_id"] == result["uploaded_to"].rsplit("/", 1)[1]
    for file in result["files"]:
        data = read(file["name"])
        assert len(data) == file["size"], file
        if "sha256" in file:
            assert hashlib.sha256(data).hexdigest() == file["sha256"], file


def check_nothing_is_here(suite, result):
    assert result["local_kept"] is False and "manifest_path" not in result
    assert [p for p in suite.exports.rglob("*") if p.name != ".hypersdk-volume"] == []


def fake_reader(fake, result):
    prefix = result["uploaded_to"].removeprefix("s3://bucket/")
    return lambda name: fake.objects[f"{prefix}/{name}"][0]


def compare(tmp_path, read, name, disk, image_format):
    back = tmp_path / f"back-{name}"
    back.write_bytes(read(name))
    if image_format == "qcow2":
        images.check(back, "qcow2")
    images.compare(disk, back, image_format)


def compare_ova(tmp_path, package, disks):
    """By GNU tar, its digest list, and qemu-img."""
    names = images.unpack_ova(package, tmp_path / "unpacked")
    assert names == ["web.ovf", "web.mf"] + [f"web-disk{i + 1}.vmdk" for i in range(len(disks))]
    for number, disk in enumerate(disks, 1):
        images.compare(disk, tmp_path / "unpacked" / f"web-disk{number}.vmdk", "vmdk")


def spool(suite):
    """Bytes on disk of everything unfinished."""
    return sum(p.stat().st_blocks * 512 for p in suite.exports.rglob("*.partial*"))


def apparent(suite):
    return sum(p.stat().st_size for p in suite.exports.rglob("*.partial*"))


def noted(suite):
    """The numbers of parts whose bytes are gone from the spool, by the state files."""
    lines = [json.loads(line) for p in suite.exports.rglob(".hypersdk-upload.3*")
             for line in p.read_text().splitlines() if line.endswith("}")]
    return [n["part"] for n in lines if "part" in n and not n.get("local")]


@pytest.mark.parametrize("fields,name,image_format", [
    ({"format": "raw"}, "web-disk1.raw", "raw"),
    heavy({"format": "ovf"}, "web-disk1.vmdk", "vmdk"),
    ({"format": "qcow2"}, "web-disk1.qcow2", "qcow2"),
    heavy({"format": "raw", "compress": True}, "web-disk1.raw.zst", None)])
def test_to_s3(make_suite, make_vsphere, disk, swift, bucket, tmp_path, fields, name, image_format):
    suite = start(make_suite, make_vsphere([vm("web", disk)]),
                  {"main": swift.entry(f"s3://{bucket}")})
    job = stream(suite, f"s3://{bucket}/nightly", **fields)
    result = suite.wait_job(job, "completed")["result"]
    prefix = result["uploaded_to"].removeprefix(f"s3://{bucket}/")
    client = swift.client()

    def read(name):
        return client.get_object(Bucket=bucket, Key=f"{prefix}/{name}")["Body"].read()
    check_objects(result, read)
    if image_format is not None:
        compare(tmp_path, read, name, disk, image_format)
    else:
        back = tmp_path / name
        back.write_bytes(read(name))
        subprocess.run(["zstd", "-q", "-d", back, "-o", tmp_path / "back.raw"], check=True)
        images.compare(disk, tmp_path / "back.raw", "raw")
    check_nothing_is_here(suite, result)
    assert client.list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []
    assert "verified: " in suite.explain(job) and "at the target holds what was read" in \
        suite.explain(job)


@pytest.mark.parametrize("fields,image_format", [
    heavy({"format": "ovf"}, "vmdk"), heavy({"format": "qcow2", "compress": True}, "qcow2"),
    ({"format": "ova"}, None)])
def test_to_an_ssh_server(make_suite, make_vsphere, disk, small, sshd, tmp_path, fields,
                          image_format):
    suite = start(make_suite, make_vsphere([vm("web", disk, small)]), {"nas": sshd.entry()})
    job = stream(suite, sshd.url(), **fields)
    result = suite.wait_job(job, "completed", deadline=120)["result"]
    directory = sshd.root / "web" / result["uploaded_to"].rsplit("/", 1)[1]
    check_objects(result, lambda name: (directory / name).read_bytes())
    if image_format is None:
        compare_ova(tmp_path, directory / "web.ova", [disk, small])
    for number, source in enumerate((disk, small) if image_format else (), 1):
        image = directory / f"web-disk{number}.{image_format}"
        images.compare(source, image, image_format)
        if image_format == "qcow2":
            images.check(image, "qcow2")
    assert {p.name for p in directory.iterdir()} == {f["name"] for f in result["files"]}
    check_nothing_is_here(suite, result)


def assert_front_last(fake):
    """What changes until the end goes out when everything else is sent, or goes out beside it."""
    parts = [p for p in fake.puts if isinstance(p, int)]
    assert len(set(parts) - set(parts[:parts.index(1)])) <= AT_ONCE


def assert_not_again(fake, there, sent):
    """None of the parts that were there when `sent` requests had come was sent behind them."""
    assert not set(there) & {p for p in fake.puts[sent:] if isinstance(p, int)}, \
        "parts were sent again"


def end_worker(suite, how):
    """kill: -9; stop: SIGTERM, the task is handed back."""
    if how == "kill":
        suite["exporter-vsphere"].kill()
    else:
        assert suite["exporter-vsphere"].stop() == 0


@pytest.mark.parametrize("fields,name,image_format,ends", [
    heavy({"format": "raw"}, "web-disk1.raw", "raw", {3: "kill"}),
    heavy({"format": "vmdk"}, "web-disk1.vmdk", "vmdk", {1: "kill", 3: "stop", 5: "kill"}),
    ({"format": "qcow2"}, "web-disk1.qcow2", "qcow2", {1: "kill", 3: "stop", 5: "kill"}),
    heavy({"format": "qcow2", "compress": True}, "web-disk1.qcow2", "qcow2", {2: "kill", 4: "kill"}),
    heavy({"format": "raw", "compress": True}, "web-disk1.raw.zst", "zst", {1: "stop", 4: "stop"})])
def test_ended_again_and_again_it_goes_on(make_suite, make_vsphere, disk, soft, fake, tmp_path,
                                          fields, name, image_format, ends):
    """kill -9 and SIGTERM when parts are stored and gone from the spool: they are not sent again,
    what was not stored comes from spool or source, and the object is right."""
    disk = soft if fields == {"format": "qcow2", "compress": True} else disk
    sim = make_vsphere([vm("web", disk)], rate=12 * MB)
    suite = start(make_suite, sim, {"main": fake.entry("s3://bucket")})
    job = None
    for parts, how in ends.items():
        fake.hold_from(parts + 3)  # it does not come to its end before anyone looks
        if job is None:
            job = stream(suite, "s3://bucket/p", **fields)
        else:
            suite["exporter-vsphere"].start()
            wait_for(lambda: len(fake.puts) > sent, 90, lambda: suite.explain(job))
            assert_not_again(fake, there, sent)
        wait_for(lambda: len(noted(suite)) >= parts, 90, lambda: suite.explain(job))
        end_worker(suite, how)
        there, sent = noted(suite), len(fake.puts)
        assert spool(suite) <= apparent(suite) - (len(there) - 1) * PART + MB
        fake.release()
    suite["exporter-vsphere"].start()
    result = suite.wait_job(job, "completed", deadline=120)["result"]
    assert_not_again(fake, there, sent)
    assert "starts_over" not in suite.tails()
    read = fake_reader(fake, result)
    check_objects(result, read)
    if image_format == "zst":
        (tmp_path / name).write_bytes(read(name))
        subprocess.run(["zstd", "-q", "-d", tmp_path / name, "-o", tmp_path / "b.raw"], check=True)
        images.compare(disk, tmp_path / "b.raw", "raw")
    else:
        compare(tmp_path, read, name, disk, image_format)
    assert fake.puts[-1].endswith("/export.json"), "the commit mark came last"
    if image_format == "qcow2":
        assert_front_last(fake)
    assert fake.uploads == {}
    check_nothing_is_here(suite, result)


@pytest.mark.parametrize("ends", [{2: "kill", 5: "stop", 8: "kill"},
                                  heavy({1: "kill", 7: "kill"})])
def test_an_ova_ended_again_and_again(make_suite, make_vsphere, disk, fake, tmp_path, ends):
    """In the first disk and in the second: what is stored is not sent again, digests survive, and
    front and headers are right although they are written late."""
    second = random_disk(tmp_path / "second.raw", 56 * MB)
    sim = make_vsphere([vm("web", disk, second)], rate=12 * MB)
    suite = start(make_suite, sim, {"main": fake.entry("s3://bucket")})
    job = None
    for parts, how in ends.items():
        fake.hold_from(parts + 3)
        if job is None:
            job = stream(suite, "s3://bucket/p", format="ova")
        else:
            suite["exporter-vsphere"].start()
            wait_for(lambda: len(fake.puts) > sent, 90, lambda: suite.explain(job))
            assert_not_again(fake, there, sent)
        wait_for(lambda: len(noted(suite)) >= parts, 90, lambda: suite.explain(job))
        end_worker(suite, how)
        there, sent = noted(suite), len(fake.puts)
        assert spool(suite) <= apparent(suite) - (len(there) - 1) * PART + MB
        fake.release()
    suite["exporter-vsphere"].start()
    done = suite.wait_job(job, "completed", deadline=120)
    result = done["result"]
    assert_not_again(fake, there, sent)
    assert done["attempt"] == 0 and "starts_over" not in suite.tails()
    read = fake_reader(fake, result)
    check_objects(result, read)
    (tmp_path / "web.ova").write_bytes(read("web.ova"))
    compare_ova(tmp_path, tmp_path / "web.ova", [disk, second])
    assert_front_last(fake)
    assert fake.puts[-1].endswith("/export.json") and fake.uploads == {}
    check_nothing_is_here(suite, result)


@pytest.mark.parametrize("where,how", [
    heavy("last parts", "kill"), heavy("complete", "stop"), heavy("complete", "kill"),
    heavy("manifest.yaml", "stop"), heavy("manifest.yaml", "kill"), ("export.json", "kill")])
def test_an_ova_ended_behind_its_last_byte(make_suite, make_vsphere, disk, small, fake, tmp_path,
                                           where, how):
    sim = make_vsphere([vm("web", disk, small)])
    suite = start(make_suite, sim, {"main": dict(fake.entry("s3://bucket"), parallel=1)})
    if where == "last parts":
        fake.hold_part = 1
    elif where == "complete":
        fake.hold_complete = True
    else:
        fake.hold_key = where
    job = stream(suite, "s3://bucket/p", format="ova")
    wait_for(fake.held.is_set, 60, lambda: suite.explain(job))
    end_worker(suite, how)
    sent = list(fake.puts)  # without what is held: the dead one's request may yet be heard
    fake.release()
    assert {2, 3, 4, 5, 6, 7, 8} <= set(sent)
    suite["exporter-vsphere"].start()
    result = suite.wait_job(job, "completed", deadline=120)["result"]
    again = [p for p in fake.puts[len(sent):] if p in sent]
    assert again in ([], [1] if where == "last parts" else []), "sent again"
    read = fake_reader(fake, result)
    check_objects(result, read)
    (tmp_path / "web.ova").write_bytes(read("web.ova"))
    compare_ova(tmp_path, tmp_path / "web.ova", [disk, small])
    check_nothing_is_here(suite, result)


@pytest.mark.parametrize("lost", ["state", *map(heavy, ("upload", "journal", "note", "index"))])
def test_an_ova_of_which_something_is_lost_is_read_again(make_suite, make_vsphere, disk, small,
                                                         fake, tmp_path, lost):
    """In the second disk: then nothing is believed, and the package is right all the same."""
    second = random_disk(tmp_path / "second.raw", 56 * MB)
    sim = make_vsphere([vm("web", small, second)], rate=12 * MB)
    suite = start(make_suite, sim, {"main": fake.entry("s3://bucket")})
    fake.hold = 4  # the last part; the front goes out behind it
    job = stream(suite, "s3://bucket/p", format="ova", retry={"initial_delay": "200ms"})
    wait_for(lambda: len(noted(suite)) >= 2, 90, lambda: suite.explain(job))
    sim.hold()
    end_worker(suite, "stop")
    sim.set_rate(0)
    fake.release()
    assert list(suite.exports.rglob(".web-disk1.done"))
    if lost == "upload":
        fake.uploads.clear()
    else:
        pattern = {"state": ".hypersdk-upload.3*", "journal": ".web-disk2.journal",
                   "note": ".web-disk1.done", "index": "*.partial.*.index"}[lost]
        for path in list(suite.exports.rglob(pattern)):
            path.unlink()
    suite["exporter-vsphere"].start()
    result = suite.wait_job(job, "completed", deadline=120)["result"]
    read = fake_reader(fake, result)
    check_objects(result, read)
    (tmp_path / "web.ova").write_bytes(read("web.ova"))
    compare_ova(tmp_path, tmp_path / "web.ova", [small, second])
    assert fake.uploads == {}
    check_nothing_is_here(suite, result)


@pytest.mark.parametrize("where", [heavy("last parts"), "complete", heavy("manifest.yaml")])
@pytest.mark.parametrize("fields,name,image_format", [
    ({"format": "ovf"}, "web-disk1.vmdk", "vmdk"),
    heavy({"format": "qcow2"}, "web-disk1.qcow2", "qcow2")])
def test_ended_behind_the_last_byte(make_suite, make_vsphere, disk, fake, tmp_path, where, fields,
                                    name, image_format):
    """While the rest goes out, when the object is complete and nobody heard of it, and among the
    small files: nothing is read or sent twice."""
    sim = make_vsphere([vm("web", disk)])
    suite = start(make_suite, sim, {"main": dict(fake.entry("s3://bucket"), parallel=1)})
    how = "stop"
    first, last = ([2, 3, 4, 5, 6, 7, 8], 1) if fields["format"] == "qcow2" else \
        ([1, 2, 3, 4, 5, 6, 7], 8)
    if where == "last parts":
        fake.hold_part, how = last, "kill"
    elif where == "complete":
        fake.hold_complete = True
    else:
        fake.hold_key = where
    job = stream(suite, "s3://bucket/p", **fields)
    wait_for(fake.held.is_set, 60, lambda: suite.explain(job))
    end_worker(suite, how)
    sent = list(fake.puts)  # without what is held: the dead one's request may yet be heard
    fake.release()
    assert set(first) <= set(sent)
    suite["exporter-vsphere"].start()
    result = suite.wait_job(job, "completed", deadline=120)["result"]
    again = [p for p in fake.puts[len(sent):] if p in sent]
    assert again in ([], [last] if where == "last parts" else []), "sent again"
    read = fake_reader(fake, result)
    check_objects(result, read)
    compare(tmp_path, read, name, disk, image_format)
    assert fake.uploads == {}
    check_nothing_is_here(suite, result)


@pytest.mark.heavy
def test_an_ova_is_killed_while_a_target_takes_it(make_suite, make_vsphere, disk, target, tmp_path):
    """A real server, in the first disk, between the disks, and in the second one."""
    second = random_disk(tmp_path / "second.raw", 56 * MB)
    sim = make_vsphere([vm("web", disk, second)], rate=12 * MB)
    suite = start(make_suite, sim, {"main": target.entry})
    job = stream(suite, target.url, format="ova")
    for reached in (lambda: len(noted(suite)) >= 2,
                    lambda: list(suite.exports.rglob(".web-disk1.done")),
                    lambda: len(noted(suite)) >= 8):
        wait_for(reached, 90, lambda: suite.explain(job))
        suite["exporter-vsphere"].kill()
        there = noted(suite)
        suite["exporter-vsphere"].start()
        wait_for(lambda: len(noted(suite)) > len(there), 90, lambda: suite.explain(job))
        assert len(noted(suite)) == len(set(noted(suite))), "parts were sent again"
    done = suite.wait_job(job, "completed", deadline=120)
    assert done["attempt"] == 0 and "starts_over" not in suite.tails()
    check_objects(done["result"], lambda name: target.read(done["result"], name))
    (tmp_path / "web.ova").write_bytes(target.read(done["result"], "web.ova"))
    compare_ova(tmp_path, tmp_path / "web.ova", [disk, second])
    check_nothing_is_here(suite, done["result"])


@pytest.mark.heavy
def test_killed_while_an_ssh_server_takes_it(make_suite, make_vsphere, disk, sshd):
    sim = make_vsphere([vm("web", disk)], rate=12 * MB)
    suite = start(make_suite, sim, {"nas": sshd.entry()})
    job = stream(suite, sshd.url(), format="ovf")
    wait_for(lambda: len(noted(suite)) >= 3, 90, lambda: suite.explain(job))
    suite["exporter-vsphere"].kill()
    there = noted(suite)
    suite["exporter-vsphere"].start()
    wait_for(lambda: len(noted(suite)) > len(there), 90, lambda: suite.explain(job))
    assert len(noted(suite)) == len(set(noted(suite))), "parts were sent again"
    result = suite.wait_job(job, "completed", deadline=120)["result"]
    directory = sshd.root / "web" / result["uploaded_to"].rsplit("/", 1)[1]
    check_objects(result, lambda name: (directory / name).read_bytes())
    images.compare(disk, directory / "web-disk1.vmdk", "vmdk")
    check_nothing_is_here(suite, result)


def test_an_ssh_server_that_lost_bytes_gets_them_again(make_suite, make_vsphere, small, sshd):
    """A part that it had acknowledged, and that is gone here, comes back changed."""
    sim = make_vsphere([vm("web", small)], rate=4 * MB)
    suite = start(make_suite, sim, {"nas": sshd.entry()})
    job = stream(suite, sshd.url(), format="raw")
    wait_for(lambda: 1 in noted(suite), 60, lambda: suite.explain(job))
    sim.hold()
    end_worker(suite, "stop")
    [part] = sshd.root.rglob("*.part")
    with open(part, "r+b") as f:
        f.seek(4096)
        f.write(b"lost")
    sim.set_rate(0)
    suite["exporter-vsphere"].start()
    done = suite.wait_job(job, "completed", deadline=120)
    assert done["attempt"] == 1 and "came back changed" in suite.explain(job) + suite.tails()
    directory = sshd.root / "web" / done["result"]["uploaded_to"].rsplit("/", 1)[1]
    images.compare(small, directory / "web-disk1.raw", "raw")
    check_nothing_is_here(suite, done["result"])


@pytest.mark.parametrize("image_format", [heavy("raw"), "qcow2", heavy("ovf"), heavy("ova")])
def test_a_slow_target_holds_the_source_back(make_suite, make_vsphere, fake, tmp_path,
                                             image_format):
    disk = random_disk(tmp_path / "large.raw", 416 * MB)
    suite = start(make_suite, make_vsphere([vm("web", disk)]), {"main": fake.entry("s3://bucket")})
    fake.hold = 1
    job = stream(suite, "s3://bucket", format=image_format)
    # a slow disk makes a target wait, too: so both
    wait_for(lambda: suite.client.job(job)["progress"]["limited_by"] == "target" and
             spool(suite) >= WINDOW, 60, lambda: f"{spool(suite)}\n{suite.explain(job)}")
    over = {"qcow2": PART + 4 * (CHUNK + 8 * MB), "ova": 2 * PART}.get(image_format, 0)
    assert spool(suite) <= WINDOW + 2 * PART + MB + over
    fake.release()
    result = suite.wait_job(job, "completed", deadline=120)["result"]
    read = fake_reader(fake, result)
    if image_format == "ova":
        (tmp_path / "web.ova").write_bytes(read("web.ova"))
        compare_ova(tmp_path, tmp_path / "web.ova", [disk])
    else:
        suffix = "vmdk" if image_format == "ovf" else image_format
        compare(tmp_path, read, f"web-disk1.{suffix}", disk, suffix)
    check_nothing_is_here(suite, result)


@pytest.mark.heavy
@pytest.mark.parametrize("image_format,name", [
    ("raw", "web-disk1.raw"), ("qcow2", "web-disk1.qcow2"), ("ova", "web.ova")])
def test_killed_while_a_slow_target_holds_the_source_back(make_suite, make_vsphere, fake, tmp_path,
                                                          image_format, name):
    """The room here is full, and stays as large as it was: the next one sends before it reads."""
    disk = random_disk(tmp_path / "large.raw", 416 * MB)
    suite = start(make_suite, make_vsphere([vm("web", disk)]), {"main": fake.entry("s3://bucket")})
    fake.hold = 2 if image_format == "raw" else 3

    def waits():
        return suite.client.job(job)["progress"]["limited_by"] == "target"
    job = stream(suite, "s3://bucket", format=image_format)
    over = {"qcow2": 2 * PART + 4 * (CHUNK + 8 * MB), "ova": 2 * PART}.get(image_format, 0)
    for _ in range(2):
        wait_for(waits, 60, lambda: suite.explain(job))
        assert spool(suite) <= WINDOW + 2 * PART + MB + over
        puts = len(fake.arrivals)
        suite["exporter-vsphere"].kill()
        suite["exporter-vsphere"].start()
        wait_for(lambda: len(fake.arrivals) > puts, 90, lambda: suite.explain(job))
    fake.release()
    result = suite.wait_job(job, "completed", deadline=120)["result"]
    read = fake_reader(fake, result)
    check_objects(result, read)
    if image_format == "ova":
        (tmp_path / name).write_bytes(read(name))
        compare_ova(tmp_path, tmp_path / name, [disk])
    else:
        compare(tmp_path, read, name, disk, image_format)
    assert fake.uploads == {}
    check_nothing_is_here(suite, result)


def test_an_upload_that_is_refused_fails_the_job_and_leaves_nothing(make_suite, make_vsphere, small,
                                                                    fake, tmp_path):
    sim = make_vsphere([vm("web", small, small)])
    suite = start(make_suite, sim, {"main": dict(fake.entry("s3://bucket"), parallel=1)})
    fake.fault("status", part=3, status=403, code="AccessDenied", times=1000)
    job = stream(suite, "s3://bucket/p", format="raw")
    done = suite.wait_job(job, "failed")
    assert done["error_code"] == "denied" and "upload" in done["error"]
    assert fake.objects == {} and fake.uploads == {} and sim.snapshots("web") == []
    assert [p for p in suite.exports.rglob("*") if p.name != ".hypersdk-volume"] == []
    fake.faults.clear()
    # a worker may still be removing what the last attempt left
    wait_for(lambda: suite.client.request("POST", f"/api/v1/jobs/{job}/retry", {}).ok, 60)
    result = suite.wait_job(job, "completed")["result"]
    read = fake_reader(fake, result)
    check_objects(result, read)
    for name in ("web-disk1.raw", "web-disk2.raw"):
        compare(tmp_path, read, name, small, "raw")
    check_nothing_is_here(suite, result)


def test_the_second_disks_failure_takes_the_first_disks_object(make_suite, make_vsphere, small,
                                                               fake):
    """It is complete at the target when the second one is refused, and is no export alone."""
    sim = make_vsphere([vm("web", small, small)])
    suite = start(make_suite, sim, {"main": fake.entry("s3://bucket")})
    fake.fault("status", key="web-disk2.raw", part=2, status=403, code="AccessDenied", times=1000)
    job = stream(suite, "s3://bucket/p", format="raw", retry={"max_attempts": 1})
    suite.wait_job(job, "failed")
    completed = [key for method, key, query in fake.requests if method == "POST" and "uploadId" in query]
    assert [key.rsplit("/", 1)[1] for key in completed] == ["web-disk1.raw"]
    assert fake.objects == {} and fake.uploads == {}
    assert [p for p in suite.exports.rglob("*") if p.name != ".hypersdk-volume"] == []


@pytest.mark.parametrize("lost", [heavy("state"), "upload", heavy("journal"), heavy("index")])
@pytest.mark.parametrize("image_format", ["vmdk", heavy("qcow2")])
def test_what_one_side_lost_is_read_again(make_suite, make_vsphere, disk, fake, tmp_path, lost,
                                          image_format):
    """State file, the server's unfinished upload, the journal, or the image's index: without one of
    them nothing is believed, and the object is right all the same."""
    sim = make_vsphere([vm("web", disk)], rate=12 * MB)
    suite = start(make_suite, sim, {"main": fake.entry("s3://bucket")})
    fake.hold = 5
    job = stream(suite, "s3://bucket/p", format=image_format)
    wait_for(lambda: len(noted(suite)) >= 2, 90, lambda: suite.explain(job))
    sim.hold()
    end_worker(suite, "stop")
    sim.set_rate(0)
    fake.release()
    old = list(fake.uploads)
    if lost == "upload":
        fake.uploads.clear()
    else:
        pattern = {"state": ".hypersdk-upload.3*", "journal": ".web-disk1.journal",
                   "index": "*.partial.index"}[lost]
        [path] = suite.exports.rglob(pattern)
        path.unlink()
    suite["exporter-vsphere"].start()
    result = suite.wait_job(job, "completed", deadline=120)["result"]
    read = fake_reader(fake, result)
    check_objects(result, read)
    compare(tmp_path, read, f"web-disk1.{image_format}", disk, image_format)
    assert len(old) == 1 and fake.uploads == {}
    check_nothing_is_here(suite, result)


@pytest.mark.heavy
def test_the_server_forgets_the_upload_meanwhile(make_suite, make_vsphere, disk, fake, tmp_path):
    sim = make_vsphere([vm("web", disk)], rate=24 * MB)
    suite = start(make_suite, sim, {"main": fake.entry("s3://bucket")})
    job = stream(suite, "s3://bucket/p", format="raw")
    wait_for(lambda: len(noted(suite)) >= 2, 90, lambda: suite.explain(job))
    fake.uploads.clear()
    done = suite.wait_job(job, "completed", deadline=120)
    assert done["attempt"] == 1  # failures
    compare(tmp_path, fake_reader(fake, done["result"]), "web-disk1.raw", disk, "raw")
    check_nothing_is_here(suite, done["result"])


def test_other_bytes_at_the_target_are_noticed(make_suite, make_vsphere, small, fake):
    """The server says that all is well, and holds something else: reading it back tells."""
    suite = start(make_suite, make_vsphere([vm("web", small)]),
                  {"main": fake.entry("s3://bucket")})
    fake.fault("flip", times=1)
    job = stream(suite, "s3://bucket/p", format="raw", retry={"max_attempts": 1})
    done = suite.wait_job(job, "failed")
    assert done["error_code"] == "corrupt" and "at the target" in done["error"]
    assert fake.objects == {} and fake.uploads == {}


def test_a_cancel_with_discard_removes_what_is_there(make_suite, make_vsphere, small, fake):
    suite = start(make_suite, make_vsphere([vm("web", small, small)]),
                  {"main": fake.entry("s3://bucket")})
    fake.hold_key = "web-disk2.raw"
    job = stream(suite, "s3://bucket", format="raw")
    wait_for(lambda: len(fake.objects) == 1 and list(suite.exports.rglob(".hypersdk-upload.302")) and
             fake.held.is_set(), 60, lambda: suite.explain(job))
    suite.client.post("/jobs/cancel", {"job_ids": [job], "discard": True})
    suite.wait_job(job, "cancelled")
    fake.release()
    wait_for(lambda: fake.objects == {} and fake.uploads == {}, 60, lambda: suite.explain(job))
    wait_for(lambda: [p for p in suite.exports.rglob("*") if p.name != ".hypersdk-volume"] == [],
             30, "partial files are removed")


def test_from_the_command_line(make_suite, make_vsphere, small, fake, tmp_path):
    suite = start(make_suite, make_vsphere([vm("web", small)]),
                  {"main": fake.entry("s3://bucket")})
    env = dict(os.environ, XDG_CONFIG_HOME=str(tmp_path / "home"), HYPERSDK_URL=suite.url())

    def run(*args):
        return subprocess.run([BIN / "hyperexport", "--vm", "web", "--quiet", *args], env=env,
                              capture_output=True, text=True, timeout=90)
    done = run("--upload", "s3://bucket/p", "--stream-upload")
    assert done.returncode == 0, done.stderr
    urls = [x.removeprefix("uploaded: ") for x in done.stdout.splitlines()
            if x.startswith("uploaded: ")]
    assert {u.removeprefix("s3://bucket/") for u in urls} == set(fake.objects)
    refused = run("--upload", "s3://bucket/p", "--stream-upload", "--encrypt")
    assert refused.returncode != 0 and "'encrypt' reads them: leave out one" in refused.stderr

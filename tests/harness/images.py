"""Looking at disk images with other people's programs."""
import hashlib
import json
import pathlib
import re
import subprocess


def compare(source_raw, image, image_format):
    """AssertionError unless the image holds exactly the source's content."""
    done = subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", image_format, source_raw, image],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{image}: {done.stdout}{done.stderr}"


def check(image, image_format):
    done = subprocess.run(["qemu-img", "check", "-f", image_format, image], capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0, f"{image}: {done.stdout}{done.stderr}"


def info(image, image_format):
    done = subprocess.run(["qemu-img", "info", "-f", image_format, "--output", "json", image],
                          capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while piece := f.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def check_digests(directory):
    """Every line of the .mf and the manifest's checksums, by Python's own SHA-256. Number of
    lines."""
    directory = pathlib.Path(directory)
    count = 0
    for mf in directory.glob("*.mf"):
        for line in mf.read_text().splitlines():
            name, digest = re.fullmatch(r"SHA256\((.+)\)= ([0-9a-f]{64})", line).groups()
            assert sha256(directory / name) == digest, name
            count += 1
    manifest = json.loads((directory / "artifact-manifest.json").read_text())
    for disk in manifest["disks"]:
        assert disk["checksum"] == "sha256:" + sha256(disk["local_path"]), disk
        count += 1
    return count


def unpack_ova(path, directory):
    """With GNU tar, then by its digest list. The members' names, in order."""
    pathlib.Path(directory).mkdir(parents=True)
    names = subprocess.run(["tar", "tf", path], capture_output=True, text=True, check=True,
                           timeout=60).stdout.split()
    assert names[0].endswith(".ovf") and names[1].endswith(".mf"), names
    subprocess.run(["tar", "xf", path, "-C", directory], check=True, timeout=120)
    lines = (pathlib.Path(directory) / names[1]).read_text().splitlines()
    assert len(lines) == len(names) - 1
    for line in lines:
        name, digest = re.fullmatch(r"SHA256\((.+)\)= ([0-9a-f]{64})", line).groups()
        assert sha256(pathlib.Path(directory) / name) == digest, name
    return names


def leftovers(directory):
    """Files of an unfinished export below a directory."""
    return [str(p) for p in pathlib.Path(directory).rglob("*")
            if p.name.endswith((".partial", ".journal", ".part", ".index"))]

"""A small real Debian on a disk: with a package database, a kernel and a boot menu, which is what
virt-v2v wants of a guest that it mends."""
import fcntl
import pathlib
import shutil
import subprocess

from .process import ROOT

DIRECTORY = ROOT / "build" / "test" / "debian"
NEEDED = ("mmdebstrap", "mkfs.ext4", "sfdisk", "debugfs")
PACKAGES = "linux-image-cloud-amd64,initramfs-tools,grub-pc-bin,grub2-common"
MIB = 1 << 20
PART_BYTES, PART_OFFSET = 1100 * MIB, MIB
FILES = {"etc/fstab": "/dev/sda1 / ext4 defaults 0 1\n",
         "etc/default/grub": "GRUB_DEFAULT=0\n",
         "boot/grub/grub.cfg": "menuentry \"Debian\" {{\n linux /boot/{} root=/dev/sda1 ro\n}}\n"}


def missing():
    """Names of the programs that are not there."""
    return [p for p in NEEDED if shutil.which(p) is None]


def build():
    """Path of the raw disk, made once."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    disk = DIRECTORY / "disk.raw"
    with open(DIRECTORY.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not disk.exists():
            make(disk.with_suffix(".new"))
            disk.with_suffix(".new").rename(disk)
    return disk


def make(disk):
    root = DIRECTORY / "root"
    shutil.rmtree(root, ignore_errors=True)
    run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", "bookworm",
        f"{root}.tar")
    root.mkdir()
    run("tar", "-C", root, "-xf", f"{root}.tar", "--exclude=./dev/*")
    kernel = next((root / "boot").glob("vmlinuz-*")).name
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(kernel))
    part = DIRECTORY / "part.img"
    run("truncate", "-s", str(PART_BYTES), part)
    run("mkfs.ext4", "-q", "-F", "-d", root, part)
    run("truncate", "-s", str(PART_BYTES + 2 * PART_OFFSET), disk)
    subprocess.run(["sfdisk", "-q", disk], input="2048,,L,*\n", text=True, check=True)
    run("dd", f"if={part}", f"of={disk}", "bs=1M", f"seek={PART_OFFSET // MIB}",
        "conv=notrunc,sparse", "status=none")
    for path in (part, pathlib.Path(f"{root}.tar")):
        path.unlink()
    shutil.rmtree(root)


def look(image, image_format, directory, request):
    """What debugfs says to `request` about the root file system of an image."""
    raw, part = pathlib.Path(directory) / "look.raw", pathlib.Path(directory) / "look.part"
    run("qemu-img", "convert", "-f", image_format, "-O", "raw", image, raw)
    run("dd", f"if={raw}", f"of={part}", "bs=1M", f"skip={PART_OFFSET // MIB}",
        "conv=sparse", "status=none")
    return run("debugfs", "-R", request, part)


def run(*argv):
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{argv[0]}: {done.stdout}{done.stderr}"
    return done.stdout

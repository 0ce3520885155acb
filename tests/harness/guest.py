"""The demo guest: a disk that boots, checks its own files and says so on its serial console."""
import fcntl
import pathlib
import re
import subprocess

from .process import ROOT

DIRECTORY = ROOT / "build" / "test" / "guest"
OVMF = pathlib.Path("/usr/share/OVMF")
BOOT_SECONDS = 300  # 4 s here; machines without KVM can be slow, and others use them too
VSPHERE = {"bios": "bios", "uefi": "efi"}  # what that calls them
UP, DATA_OK = "DEMO-GUEST-UP", "DEMO-GUEST-DATA-OK hello from the demo guest"


def build():
    """Path of the raw disk, made once for all workers. AssertionError with the script's words."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    with open(DIRECTORY.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(["bash", ROOT / "deploy" / "demo" / "mkguest.sh", DIRECTORY],
                              capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    return DIRECTORY / "disk.raw"


def boot(images, log, firmware="bios"):
    """Runs QEMU without acceleration on qcow2 images, which stay as they are, until the guest
    powers off. What came on the serial console."""
    argv = ["qemu-system-x86_64", "-machine", "accel=tcg", "-m", "256", "-display", "none",
            "-monitor", "none", "-serial", f"file:{log}", "-no-reboot", "-nic", "none"]
    if firmware == "uefi":
        argv += ["-drive", f"if=pflash,format=raw,readonly=on,file={OVMF}/OVMF_CODE_4M.fd",
                 "-drive", f"if=pflash,format=raw,snapshot=on,file={OVMF}/OVMF_VARS_4M.fd"]
    for image in images:
        # a comma inside a value is written twice
        path = str(image).replace(",", ",,")
        argv += ["-drive", f"file={path},format=qcow2,if=virtio,snapshot=on"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=BOOT_SECONDS)
    text = console(log)
    assert DATA_OK in text, f"{text}\n{done.stderr}"
    return text


def console(log):
    return pathlib.Path(log).read_text(errors="replace").replace("\r", "")


def firmware(text):
    """"bios" or "uefi", as the guest found it."""
    return re.search(UP + r" firmware=(\w+)", text).group(1)

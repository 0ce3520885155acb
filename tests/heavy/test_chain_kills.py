"""Export, conversion and import of one VM while processes die at random moments of the whole chain
(make test-full). A seed that fails is run again by its number."""
import pathlib
import random
import shutil
import threading

import pytest

from tests.harness import images
from tests.harness.bridge import BRIDGE, Program
from tests.harness.vsphere import make_image, vm
from tests.harness.wait import wait_for

MB = 1 << 20
SIZE = 48 * MB
RATE = 12 * MB   # bytes per second from the source: the chain takes about six seconds
KILLS = 4        # per seed
GAP = (0.2, 2.5)  # seconds between them
VICTIMS = (BRIDGE, BRIDGE, "libvirtd", "libvirtd", "exporter-vsphere", "scheduler")


@pytest.mark.parametrize("direct", [False, True], ids=["builtin", "hyper2kvm"])
@pytest.mark.parametrize("seed", range(8))
def test_one_right_domain_comes_out_whoever_dies(make_suite, make_vsphere, libvirtd, tmp_path, seed,
                                                 direct):
    random_ = random.Random(f"{seed}/{direct}")
    program = Program(tmp_path / "h2k")
    raws = [make_image(tmp_path / f"{i}.raw", SIZE, [(0, 20 * MB), (40 * MB + 512, 5 * MB)],
                       seed=f"{seed}/{i}") for i in range(2)]
    suite = make_suite(config={
        "hyper2kvm": {"path": str(program.path) if direct else "/nonexistent/hyper2kvm"},
        "libvirt": {"uri": libvirtd.uri, "pool": "images", "network": "user",
                    "domain_type": "qemu", "timeout": "5s"},
        "retry": {"max_attempts": 50, "initial_delay": "200ms", "max_delay": "1s"}})
    suite.add_vsphere(make_vsphere([vm("web", *raws)], rate=RATE))
    job = suite.client.submit(vm_path="web", hyper2kvm_integration={"enabled": True,
                                                                    "daemon_mode": False}, libvirt={})
    pause = threading.Event()
    for _ in range(KILLS):
        pause.wait(random_.uniform(*GAP))  # this is the random moment
        victim = random_.choice(VICTIMS)
        process = libvirtd.process if victim == "libvirtd" else suite[victim]
        process.kill()
        pause.wait(random_.uniform(0, 1))
        libvirtd.start() if victim == "libvirtd" else process.start()
    result = suite.wait_job(job, "completed", deadline=180)["result"]

    domain = result["libvirt_domain"]
    assert list(libvirtd.domains()) == ["web"]
    assert result["conversion"]["path_used"] == ("direct" if direct else "builtin")
    files = [d["file"] for d in domain["disks"]]
    assert sorted(pathlib.Path(f).name for f in files) == libvirtd.volumes()
    for i, (raw, file) in enumerate(zip(raws, files)):
        images.check(file, "qcow2")
        images.compare(fixed(raw) if direct and i == 0 else raw, file, "qcow2")
    output = pathlib.Path(result["output_path"])
    assert images.leftovers(output) == []
    assert [p.name for p in output.parent.iterdir() if p.is_dir()] == [output.name]
    stage = suite.directory / "images" / ".hypersdk-stage"
    wait_for(lambda: not stage.exists() or list(stage.iterdir()) == [], 30, lambda: list(stage.iterdir()))
    verify = suite.client.post("/api/v1/exports/verify", {"path": str(output)}, status=202)["job_id"]
    assert suite.wait_job(verify, "completed")["result"]["intact"]


def fixed(raw):
    path = raw.with_suffix(".fixed")
    shutil.copy(raw, path)
    with open(path, "r+b") as f:
        f.write(b"\x55" * 4096)
    return path

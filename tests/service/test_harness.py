"""The harness itself: what the other tests rely on."""
from tests.harness.vsphere import make_image, vm


def test_stores_start_with_passwords(make_suite):
    suite = make_suite(services=[], start=False)
    assert suite.sql("SELECT current_user AS who") == [{"who": "hypersdk"}]
    assert suite.redis.command("PING") == "PONG"


def test_simulator_serves_the_image_behind_its_vm(make_vsphere, tmp_path):
    image = make_image(tmp_path / "disk.raw", 8 << 20, [(1 << 20, 4096)])
    sim = make_vsphere([vm("web", image, folder="prod")])
    flat = sim.datastore / "web" / "web-flat.vmdk"
    assert flat.read_bytes() == image.read_bytes()
    assert sim.snapshots("web") == []
    assert sim.stats()["requests"] == 0

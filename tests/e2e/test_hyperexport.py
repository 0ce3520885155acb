"""The command line client against the real suite."""
import json
import os
import signal
import subprocess

import pytest

from tests.harness import images
from tests.harness.process import BIN
from tests.harness.vsphere import make_image, vm
from tests.harness.wait import wait_for

MB = 1 << 20


@pytest.fixture
def disk(tmp_path):
    return make_image(tmp_path / "disk.raw", 32 * MB, [(0, MB), (20 * MB, 8 * MB)])


@pytest.fixture
def sim(make_vsphere, disk):
    return make_vsphere([vm("web", disk, cpus=2, memory=4096, tags=["env:production"]),
                         vm("off", disk, power="off")])


@pytest.fixture
def suite(make_suite, sim):
    return make_suite()


@pytest.fixture
def cli(suite, tmp_path):
    def call(*args, stdin=None, timeout=120):
        env = dict(os.environ, XDG_CONFIG_HOME=str(tmp_path / "home"), LC_ALL="C.UTF-8",
                   HYPERSDK_URL=suite.url())
        return subprocess.run([BIN / "hyperexport", *args], capture_output=True, text=True,
                              timeout=timeout, input=stdin, env=env)
    return call


def add_provider(cli, sim, name="vsphere"):
    done = cli("providers", "add", "--name", name, "--kind", "vsphere", "--url",
               f"https://{sim.host}", "--username", sim.user, "--password-file", "-", "--ca-file",
               str(sim.cert), stdin=sim.password + "\n")
    assert done.returncode == 0, done.stderr


def test_from_provider_to_export(cli, sim, suite, disk):
    add_provider(cli, sim)
    assert cli("providers", "validate", "vsphere").returncode == 0
    assert "\tvsphere\t" in cli("providers", "list", "--quiet").stdout
    listed = cli("vms", "list", "--quiet")
    assert "/DC0/vm/web" in listed.stdout, listed.stderr
    facts = cli("--vm", "web", "--vm-info", "--quiet").stdout.splitlines()
    assert facts[0] == "name=web" and facts[2] == "power_state=poweredOn"
    assert facts[4:7] == ["cpu=2", "memory_mb=4096", f"storage_bytes={32 * MB}"]
    box = cli("--vm", "web", "--vm-info").stdout
    assert "│ Power State   │ ● poweredOn" in box and "│ Tags          │ env:production" in box
    ready = {v["name"]: v for v in json.loads(cli("vms", "list", "--json").stdout)}
    assert ready["DC0_C0_RP0_VM0"]["cluster"] == "DC0_C0" and ready["DC0_C0_RP0_VM0"]["tags"] == {}
    assert ready["web"]["tags"] == {"env": ["production"]}
    tagged = cli("vms", "list", "--tag", "env:production").stdout.splitlines()
    assert len(tagged) == 2 and tagged[1].startswith("web ") and "env:production" in tagged[1]
    assert len(cli("vms", "list", "--tag", "production", "--tag", "pci").stdout.splitlines()) == 1
    clustered = json.loads(cli("vms", "list", "--cluster", "DC0_C0", "--json").stdout)
    assert clustered and {v["cluster"] for v in clustered} == {"DC0_C0"}
    done = cli("--vm", "web", "--format", "qcow2", "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"success: web exported to {suite.exports}/web (")
    images.compare(disk, suite.exports / "web" / "web-disk1.qcow2", "qcow2")
    listed = cli("jobs", "list", "--quiet").stdout.splitlines()
    assert len(listed) == 1 and listed[0].endswith("\tcompleted\tweb")
    job = listed[0].split("\t")[0]
    assert json.loads(cli("jobs", "get", job, "--json").stdout)["status"] == "completed"
    assert "export" in cli("jobs", "logs", job).stdout
    status = cli("status", "--quiet").stdout
    assert "completed_jobs=1" in status and "service.scheduler=up" in status


def test_a_second_vcenter_is_a_second_provider(cli, sim, suite, make_vsphere, tmp_path):
    other_disk = make_image(tmp_path / "other.raw", 8 * MB, [(MB, MB)], seed=2)
    other = make_vsphere([vm("db", other_disk)], name="other", password="else")
    add_provider(cli, sim)
    add_provider(cli, other, "lab")
    done = cli("--vm", "db", "--provider", "lab", "--format", "raw", "--quiet")
    assert done.returncode == 0, done.stderr
    images.compare(other_disk, suite.exports / "db" / "db-disk1.raw", "raw")
    assert cli("--vm", "db", "--format", "raw", "--quiet").returncode == 2
    assert cli("providers", "remove", "lab", "--yes").returncode == 0
    assert "lab" not in cli("providers", "list", "--quiet").stdout
    assert "else" not in suite.tails()


def test_interrupt_cancels_and_leaves_no_snapshot(cli, sim, suite, tmp_path):
    add_provider(cli, sim)
    sim.set_rate(MB)
    child = subprocess.Popen([BIN / "hyperexport", "--vm", "web", "--format", "raw",
                              "--daemon-url", suite.url()], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
    wait_for(lambda: sim.stats()["bytes"] > MB, 60, "bytes flow")
    sim.hold()  # a request under way would take ten minutes
    child.send_signal(signal.SIGINT)
    wait_for(lambda: sim.stats()["running"] == 0, 60, "the transfer stops")
    sim.set_rate(0)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    wait_for(lambda: sim.snapshots("web") == [], 60, "the snapshot is removed")
    assert suite.client.get("/api/v1/jobs")["jobs"][0]["status"] == "cancelled"


def test_resume_goes_on_where_the_interrupt_was(cli, sim, suite, disk):
    add_provider(cli, sim)
    sim.set_rate(2 * MB)
    child = subprocess.Popen([BIN / "hyperexport", "--vm", "off", "--format", "qcow2",
                              "--daemon-url", suite.url()], stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
    job = wait_for(lambda: suite.client.get("/api/v1/jobs")["jobs"], 60, "the job")[0]["job_id"]
    wait_for(lambda: list(suite.exports.rglob("*.journal")), 60, "a journal")
    wait_for(lambda: sim.stats()["bytes"] > 8 * MB, 60, "bytes flow")
    child.send_signal(signal.SIGINT)
    assert child.wait(60) == 130
    sim.set_rate(0)
    done = cli("--vm", "off", "--resume")
    assert done.returncode == 0, done.stderr + suite.tails()
    images.compare(disk, suite.exports / "off" / "off-disk1.qcow2", "qcow2")
    assert "gone on at" in cli("jobs", "logs", job).stdout


def test_login_and_the_three_roles(make_suite, sim, tmp_path):
    suite = make_suite(name="auth", dev=False)
    password = wait_for(lambda: [x for x in suite["api-gateway"].output().splitlines()
                                 if "was made with the password" in x],
                        20, "admin")[0].rsplit(" ", 1)[1]
    env = dict(os.environ, XDG_CONFIG_HOME=str(tmp_path / "home"), HYPERSDK_URL=suite.url())

    def cli(*args, stdin=None):
        return subprocess.run([BIN / "hyperexport", *args], capture_output=True, text=True,
                              timeout=60, input=stdin, env=env)

    refused = cli("status")
    assert refused.returncode == 1 and "hyperexport login" in refused.stderr
    wrong = cli("login", "--username", "admin", "--password-file", "-", stdin="nope\n")
    assert wrong.returncode == 1
    done = cli("login", "--username", "admin", "--password-file", "-", stdin=password + "\n")
    assert done.returncode == 0, done.stderr
    assert cli("status").returncode == 0
    add = cli("providers", "add", "--url", f"https://{sim.host}", "--username", "u",
              "--password-file", "-", stdin="p\n")
    assert add.returncode == 0, add.stderr


def test_an_export_becomes_a_domain_by_flags(make_suite, make_vsphere, libvirtd, disk, tmp_path):
    suite = make_suite(config={"libvirt": {"uri": "test:///default", "network": "user",
                                           "domain_type": "qemu", "allowed_uris": [libvirtd.uri]}})
    suite.add_vsphere(make_vsphere([vm("web", disk, power="off")]))

    def call(*args):
        env = dict(os.environ, XDG_CONFIG_HOME=str(tmp_path / "home"), LC_ALL="C.UTF-8",
                   HYPERSDK_URL=suite.url())
        return subprocess.run([BIN / "hyperexport", "--vm", "web", "--convert", "--libvirt", *args,
                               "--quiet"], capture_output=True, text=True, timeout=120, env=env)

    done = call("--libvirt-uri", libvirtd.uri, "--libvirt-pool", "images", "--libvirt-autostart",
                "--libvirt-bridge", "virbr0")
    assert done.returncode == 0 and "domain: web" in done.stdout.splitlines(), done.stderr
    domain = libvirtd.connect().lookupByName("web")
    text = domain.XMLDesc()
    assert domain.autostart() == 1 and "<source bridge='virbr0'/>" in text
    image, = libvirtd.volumes()
    assert f"<source file='{libvirtd.pool / image}'" in text
    images.compare(disk, libvirtd.pool / image, "qcow2")
    done = call("--libvirt-uri", "qemu+ssh://elsewhere/system")
    assert done.returncode != 0 and "allowed_uris" in done.stderr
    done = call("--libvirt-uri", libvirtd.uri, "--libvirt-pool", "images")
    assert done.returncode == 6 and "'web' exists already" in done.stderr, done.stderr
    assert libvirtd.volumes() == [image], "nothing is left of the second one"

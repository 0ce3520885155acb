"""The endpoints below /libvirt: real gateway, scheduler and bridge, over libvirt's mock driver and over
a libvirtd of the test's own, where every effect is read back through libvirt's own Python binding."""
import json
import os
import re
import subprocess
import threading
import time

import pytest
import requests

from tests.harness.bridge import BRIDGE, Imports, expire
from tests.harness.client import Client
from tests.harness.gateways import admin_password
from tests.harness.process import BIN
from tests.harness.wait import wait_for

API = "/api/v1/libvirt"
MOCK = "test:///default"
SERVICES = ["scheduler", "api-gateway", BRIDGE]


class Checked(Client):
    """Every answer of an endpoint below /libvirt is what the OpenAPI document says."""

    document = None

    def request(self, method, path, body=None, **kwargs):
        answer = super().request(method, path, body, **kwargs)
        if "libvirt" in path or path.startswith("/console"):
            if self.document is None:
                self.document = super().request("GET", "/openapi.json").json()
            self.check(method, path.split("?")[0], answer)
        return answer

    def check(self, method, path, answer):
        jsonschema = pytest.importorskip("jsonschema")
        paths = self.document["paths"]
        matching = [p for p in paths if method.lower() in paths[p]
                    and re.fullmatch(re.sub(r"{\w+}", "[^/]+", p), path)]
        if not matching:
            return  # not an endpoint
        found = min(matching, key=lambda p: p.count("{"))
        response = paths[found][method.lower()]["responses"][str(answer.status_code)]
        if "$ref" in response:
            response = self.document["components"]["responses"][response["$ref"].rsplit("/", 1)[1]]
        jsonschema.validate(answer.json(), {**response["content"]["application/json"]["schema"],
                                            "components": self.document["components"]})


@pytest.fixture
def make(make_suite):
    """Function: gateway, scheduler, bridge; settings go into the section libvirt."""

    def start(dev=True, **settings):
        settings.setdefault("uri", MOCK)
        settings.setdefault("timeout", "60s")  # QEMU may be slow
        suite = make_suite(services=SERVICES, dev=dev, config={
            "libvirt": settings, "scheduler": {"lease": "60s"}})
        suite.client = Checked(suite.url())
        wait_for(lambda: suite[BRIDGE].events("libvirt_reachable")
                 or suite[BRIDGE].events("libvirt_unreachable"), what=suite.tails)
        return suite

    return start


@pytest.fixture
def mock(make):
    """A client; libvirt's mock driver with its domain "test"."""
    return make().client


@pytest.fixture
def real(make, libvirtd):
    """A client over the private libvirtd."""
    return make(uri=libvirtd.uri).client


def refused(client, method, path, body=None, status=400):
    answer = client.request(method, path, body)
    assert answer.status_code == status, (method, path, answer.status_code, answer.text[:500])
    return answer.json()


def disk_xml(path, target="vda", extra=""):
    return (f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{path}'/>"
            f"<target dev='{target}' bus='virtio'/>{extra}</disk>")


def volume_xml(name, capacity=1 << 20, backing=None):
    below = (f"<backingStore><path>{backing}</path><format type='qcow2'/></backingStore>"
             if backing else "")
    return (f"<volume><name>{name}</name><capacity>{capacity}</capacity>"
            f"<target><format type='qcow2'/></target>{below}</volume>")


class Libvirt:
    """What the test does and reads behind the suite's back."""

    def __init__(self, libvirtd):
        self.c = libvirtd.connect()
        self.pool = self.c.storagePoolLookupByName("images")

    def volume(self, name, **options):
        return self.pool.createXML(volume_xml(name, **options)).path()

    def define(self, name, *disks, devices=""):
        return self.c.defineXML(
            f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>"
            f"<os><type arch='x86_64'>hvm</type></os><devices>{''.join(disks)}{devices}</devices>"
            "</domain>")

    def domain(self, name):
        return self.c.lookupByName(name)

    def names(self):
        return sorted(d.name() for d in self.c.listAllDomains())

    def volumes(self):
        self.pool.refresh()
        return sorted(v.name() for v in self.pool.listAllVolumes())


@pytest.fixture
def there(libvirtd):
    return Libvirt(libvirtd)


def route_table(suite):
    done = subprocess.run([BIN / "api-gateway", "--config", suite.write_config("api-gateway"),
                           "--routes"], capture_output=True, check=True)
    return [r for r in json.loads(done.stdout)
            if "/libvirt" in r["path"] or r["path"] == "/console/info"]


def login(suite, username, password):
    session = requests.post(suite.url() + "/api/login", timeout=60,
                            json={"username": username, "password": password})
    assert session.ok, session.text
    return Client(suite.url(), token=session.json()["token"])


def people(suite):
    """{role: client}; viewer and operator are called as their role."""
    clients = {"admin": login(suite, "admin", admin_password(suite))}
    for role in ("viewer", "operator"):
        clients["admin"].post("/api/v1/users", {"username": role, "password": f"{role}-password-1",
                                                "roles": [role]}, status=201)
        clients[role] = login(suite, role, f"{role}-password-1")
    return clients


# ---- reading ----


def test_what_libvirt_has_is_shown_by_both_families(mock):
    jsonschema = pytest.importorskip("jsonschema")
    document = mock.get("/openapi.json")
    pairs = {
        "LibvirtDomainList": ("/libvirt/domains", f"{API}/domains"),
        "LibvirtDomain": ("/libvirt/domain?name=test", f"{API}/domains/test"),
        "LibvirtSnapshotList": ("/libvirt/snapshots?domain=test", f"{API}/domains/test/snapshots"),
        "LibvirtPoolList": ("/libvirt/pools", f"{API}/pools"),
        "LibvirtVolumeList": ("/libvirt/volumes?pool=default-pool",
                              f"{API}/volumes?pool=default-pool&refresh=true"),
        "LibvirtNetworkList": ("/libvirt/networks", f"{API}/networks"),
        "LibvirtStats": ("/libvirt/stats?name=test", f"{API}/stats?vm_name=test"),
        "LibvirtStatsList": ("/libvirt/stats/all", f"{API}/stats"),
        "LibvirtConsole": ("/console/info?name=test", f"{API}/domains/test/console"),
    }
    shown = {}
    for schema, paths in pairs.items():
        answers = [mock.get(p, status=200) for p in paths]
        for answer in answers:
            jsonschema.validate(answer, {"$ref": f"#/components/schemas/{schema}",
                                         "components": document["components"]})
            answer.pop("timestamp")
            for stats in answer.get("domains", [answer]):
                stats.pop("cpu", None)  # its time goes on
        assert answers[0] == answers[1], schema
        shown[schema] = answers[0]
    domain = shown["LibvirtDomain"]
    assert shown["LibvirtDomainList"] == {"domains": [domain], "total": 1}
    assert (domain["name"], domain["state"], domain["cpus"], domain["memory_mb"]) == (
        "test", "running", 2, 8192)
    assert mock.get(f"{API}/domains/{domain['uuid']}")["name"] == "test", "a UUID is a name as well"
    assert [n["name"] for n in shown["LibvirtNetworkList"]["networks"]] == ["default"]
    pool = shown["LibvirtPoolList"]["pools"][0]
    assert (pool["name"], pool["state"], pool["path"]) == ("default-pool", "running", "/default-pool")
    assert shown["LibvirtStats"]["memory"]["maximum_bytes"] == 8 << 30


def test_it_is_what_libvirt_itself_says(real, there):
    path = there.volume("web.qcow2", capacity=5 << 20)
    vnc = "<graphics type='vnc' port='-1' autoport='yes' listen='127.0.0.1' passwd='geheim12'/>"
    domain = there.define("web", disk_xml(path), devices=vnc + "<console type='pty'/>")
    shown = real.get("/libvirt/domain?name=web")
    assert shown["uuid"] == domain.UUIDString() and shown["state"] == "shutoff" and shown["id"] is None
    assert [(d["file"], d["device"], d["target"]) for d in shown["disks"]] == [(path, "disk", "vda")]
    console = real.get(f"{API}/domains/web/console")
    assert (console["state"], console["graphics"][0]["port"]) == ("shutoff", None)
    domain.create()
    shown = real.get("/libvirt/domain?name=web")
    assert (shown["state"], shown["id"]) == ("running", domain.ID())
    answer = real.request("GET", f"{API}/domains/web/console")
    graphics = answer.json()["graphics"][0]
    assert f"port='{graphics['port']}'" in domain.XMLDesc() and "geheim12" not in answer.text
    assert graphics["url"] == f"vnc://127.0.0.1:{graphics['port']}"
    assert answer.json()["consoles"][0]["path"].startswith("/dev/pts/")
    stats = real.get("/libvirt/stats?name=web")
    assert stats["state"] == "running" and stats["cpu"]["time_ns"] > 0
    assert stats["memory"]["current_bytes"] == 64 << 20
    disk, = stats["disks"]
    assert (disk["name"], disk["path"], disk["capacity_bytes"]) == ("vda", path, 5 << 20)
    volume, = real.get("/libvirt/volumes?pool=images")["volumes"]
    assert (volume["name"], volume["path"], volume["format"], volume["capacity_bytes"]) == (
        "web.qcow2", path, "qcow2", 5 << 20)


def test_long_lists_have_pages(real, there):
    names = [f"vm-{i:02}" for i in range(7)]
    for name in reversed(names):
        there.define(name)
    seen, cursor = [], ""
    while True:
        page = real.get(f"{API}/domains?limit=3{cursor}")
        assert page["total"] == 7 and len(page["domains"]) <= 3
        seen += [d["name"] for d in page["domains"]]
        if "next_cursor" not in page:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == names


# ---- power ----


def act(client, action, name, status=200, **fields):
    """POST in both families in turn; the answer."""
    act.short = not act.short
    path = f"/libvirt/domain/{action}" if act.short else f"{API}/domains/{name}/{action}"
    body = {"name": name, **fields} if act.short else fields
    answer = client.request("POST", path, body)
    assert answer.status_code == status, (path, body, answer.status_code, answer.text)
    return answer.json()


act.short = False


def state(there, name):
    """Running, paused ... as libvirt's binding says."""
    import libvirt
    words = {libvirt.VIR_DOMAIN_RUNNING: "running", libvirt.VIR_DOMAIN_PAUSED: "paused",
             libvirt.VIR_DOMAIN_SHUTOFF: "shutoff"}
    return words[there.domain(name).state()[0]]


@pytest.mark.parametrize("short", [True, False])
def test_power_calls_change_what_libvirt_says_and_may_be_repeated(real, there, short):
    there.define("web")
    act.short = short
    steps = [("start", "running"), ("pause", "paused"), ("resume", "running"), ("reboot", "running"),
             ("destroy", "shutoff")]
    for action, after in steps:
        answer = act(real, action, "web")
        assert (answer["status"], answer["changed"], answer["state"], answer["domain"]) == (
            "success", True, after, "web"), answer
        assert state(there, "web") == after
        if action == "reboot":
            continue
        again = act(real, action, "web")
        assert (again["changed"], again["state"]) == (False, after), again
        assert state(there, "web") == after
    assert there.names() == ["web"], "destroy removes nothing"


def test_a_wrong_state_is_409_with_the_reason(real, there):
    there.define("web")
    for action in ("reboot", "pause", "resume"):
        answer = act(real, action, "web", 409)
        assert answer["code"] == "conflict" and "'web' is 'shutoff'" in answer["error"]
    assert act(real, "shutdown", "web")["changed"] is False
    act(real, "start", "web")
    act(real, "pause", "web")
    for action in ("start", "shutdown", "reboot"):
        assert "'web' is 'paused'" in act(real, action, "web", 409)["error"]
    assert state(there, "web") == "paused"
    there.define("lost", disk_xml(f"{there.pool.name()}/none.qcow2"))
    answer = act(real, "start", "lost", 422)
    assert answer["code"] == "libvirt_failed" and "none.qcow2" in answer["error"]
    there.define("nowhere", devices="<interface type='network'><source network='gone'/></interface>")
    assert act(real, "start", "nowhere", 409)["code"] == "conflict", "not 404: the domain is there"


def test_waiting_ends_with_the_state_or_says_that_the_guest_does_not_react(real, mock, there):
    assert act(mock, "shutdown", "test", wait=True, timeout="60s")["state"] == "shutoff"
    assert act(mock, "start", "test", wait=True)["state"] == "running"
    there.define("web")  # nothing to boot from: nobody hears the request
    act(real, "start", "web")
    assert act(real, "shutdown", "web")["message"].endswith("was asked to shut down")
    before = time.monotonic()
    answer = act(real, "shutdown", "web", 409, wait=True, timeout="2s")
    assert time.monotonic() - before >= 2
    assert "is 'running' after 2000 ms still" in answer["error"]
    assert act(real, "destroy", "web", wait=True)["state"] == "shutoff"


def test_a_domain_without_a_definition_is_gone_when_it_is_off(real, there):
    there.c.createXML("<domain type='qemu'><name>web</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>"
                      "<os><type arch='x86_64'>hvm</type></os></domain>")
    shown = real.get(f"{API}/domains/web")
    assert (shown["state"], shown["persistent"]) == ("running", False)
    assert act(real, "autostart", "web", 409, autostart=True)["code"] == "conflict"
    answer = act(real, "destroy", "web", wait=True)
    assert (answer["changed"], answer["state"]) == (True, "shutoff") and there.names() == []
    act(real, "destroy", "web", 404)


def test_autostart_is_switched(real, there):
    domain = there.define("web")
    for wanted, changed in ((True, True), (True, False), (False, True)):
        answer = act(real, "autostart", "web", autostart=wanted)
        assert (answer["autostart"], answer["changed"]) == (wanted, changed)
        assert domain.autostart() == wanted
        assert real.get(f"{API}/domains/web")["autostart"] is wanted
    assert refused(real, "POST", f"{API}/domains/web/autostart", {})["field"] == "autostart"


def test_bodies_of_actions_are_checked(make):
    suite = make()
    api = suite.client
    for body, field in (({"name": "a/b"}, "name"), ({}, "name"), ({"name": 7}, "name"),
                        ({"name": "test", "timeout": "0s", "wait": True}, "timeout"),
                        ({"name": "test", "timeout": 10 ** 12}, "timeout"),
                        ({"name": "test", "wait": "yes"}, "wait"),
                        ({"name": "test", "forced": True}, "forced"),
                        ({"name": "test", "vm_name": "other"}, "vm_name")):
        assert refused(api, "POST", "/libvirt/domain/start", body)["field"] == field, body
    for name in BAD_NAMES:
        body = {"name": "test", "snapshot_name": name}
        for action in ("create", "revert", "delete"):
            answer = refused(api, "POST", f"/libvirt/snapshot/{action}", body)
            assert answer["field"] == "snapshot_name", (action, name)
    assert refused(api, "POST", "/libvirt/snapshot/create",
                   {"name": "test", "description": "x" * 2000})["field"] == "description"
    assert "body and in the URL" in refused(api, "POST", "/libvirt/domain/start?name=test",
                                            {"name": "test"})["error"]
    assert refused(api, "POST", "/libvirt/domain/start", [])["code"] == "invalid"
    assert suite.sql("SELECT count(*) FROM tasks")[0]["count"] == 0
    for action in ("start", "destroy", "autostart"):
        act(api, action, "none", 404, **({"autostart": True} if action == "autostart" else {}))


# ---- snapshots ----


@pytest.mark.parametrize("short", [True, False])
def test_snapshots_are_made_shown_gone_back_to_and_removed(real, there, short):
    domain = there.define("web", disk_xml(there.volume("web.qcow2")))

    def snapshot(action, name, status=200, **fields):
        if short:
            return real.post(f"/libvirt/snapshot/{action}", {"domain_name": "web",
                                                            "snapshot_name": name, **fields}, status)
        base = f"{API}/domains/web/snapshots"
        if action == "create":
            return real.post(base, {"snapshot_name": name, **fields}, status)
        if action == "revert":
            return real.post(f"{base}/{name}/revert", fields, status)
        query = "&".join(f"{k}={str(v).lower()}" for k, v in fields.items())
        return real.delete(f"{base}/{name}?{query}", status)

    made = snapshot("create", "before", 201, description="<ä> & 'b'")
    assert made["snapshot"]["description"] == "<ä> & 'b'" and made["snapshot"]["current"] is True
    assert [s.getName() for s in domain.listAllSnapshots()] == ["before"]
    assert "already" in snapshot("create", "before", 409)["error"]
    snapshot("create", "after", 201)
    shown = real.get("/libvirt/snapshots?name=web")
    assert [(s["name"], s["parent"], s["current"]) for s in shown["snapshots"]] == [
        ("after", "before", True), ("before", "", False)]
    snapshot("revert", "before")
    assert domain.snapshotCurrent().getName() == "before"
    assert snapshot("revert", "none", 404)["code"] == "not_found"
    removed = snapshot("delete", "before", children=True)
    assert removed["removed"] == ["before", "after"] and domain.listAllSnapshots() == []
    assert snapshot("delete", "before", 404)["code"] == "not_found"


def test_a_snapshot_without_a_name_gets_one(real, there):
    domain = there.define("web", disk_xml(there.volume("web.qcow2")))
    made = real.post(f"{API}/domains/web/snapshots", {}, status=201)["snapshot"]
    assert re.fullmatch(r"snap-\d{8}-\d{6}", made["name"])
    assert [s.getName() for s in domain.listAllSnapshots()] == [made["name"]]


def test_disk_only_snapshots_write_into_a_new_file(real, there):
    path_of_base = there.volume("web.qcow2")
    there.define("web", disk_xml(path_of_base))
    real.post(f"{API}/domains/web/snapshots", {"snapshot_name": "s1", "disk_only": True}, status=201)
    shown = real.get(f"{API}/domains/web")["disks"][0]["file"]
    assert shown == path_of_base.removesuffix("qcow2") + "s1"
    answer = refused(real, "POST", f"{API}/domains/web/snapshots", {"quiesce": True})
    assert answer["field"] == "quiesce"
    # libvirt 9 cannot go back to such a one: its reason, and all is as it was
    answer = refused(real, "POST", f"{API}/domains/web/snapshots/s1/revert", status=422)
    assert "external" in answer["error"], answer
    # without the snapshot both files are one again
    there.define("other", disk_xml(there.volume("base.qcow2")))
    real.delete(f"{API}/domains/web/snapshots/s1")
    assert real.get(f"{API}/domains/web")["disks"][0]["file"] == path_of_base
    assert there.volumes() == ["base.qcow2", "web.qcow2"]
    # a new file goes with its domain, the one below is named and stays
    real.post(f"{API}/domains/other/snapshots", {"snapshot_name": "s2", "disk_only": True}, status=201)
    answer = real.delete(f"{API}/domains/other?remove_storage=true")
    assert [v["name"] for v in answer["removed"]["volumes"]] == ["base.s2"]
    assert [k["path"].rsplit("/")[-1] for k in answer["kept"]] == ["base.qcow2"]
    assert there.volumes() == ["base.qcow2", "web.qcow2"]


def test_a_bridge_that_dies_after_a_snapshot_makes_no_second_one(make, libvirtd, there):
    suite = make(uri=libvirtd.uri)
    domain = there.define("web", disk_xml(there.volume("web.qcow2")))
    answers = []

    def ask():
        answers.append(suite.client.request("POST", f"{API}/domains/web/snapshots", {}))

    asking = threading.Thread(target=ask)
    with Imports(suite).held("tasks", "NEW.kind = 'libvirt' AND NEW.state = 'done'") as held:
        asking.start()
        held.reached()
        made = [s.getName() for s in domain.listAllSnapshots()]
        assert len(made) == 1
        suite[BRIDGE].kill()
        held.refuse()
    expire(suite, "kind = 'libvirt'")
    suite[BRIDGE].start()
    asking.join(120)
    assert answers[0].status_code == 201 and answers[0].json()["snapshot"]["name"] == made[0]
    assert [s.getName() for s in domain.listAllSnapshots()] == made


# ---- removing domains ----


def test_a_domain_goes_and_its_storage_stays(make, libvirtd, there):
    suite = make(uri=libvirtd.uri)
    real = suite.client
    path = there.volume("web.qcow2")
    domain = there.define("web", disk_xml(path))
    uuid = domain.UUIDString()
    domain.create()
    answer = refused(real, "DELETE", f"{API}/domains/web", status=409)
    assert "'web' is 'running'" in answer["error"] and "force" in answer["error"]
    assert state(there, "web") == "running"
    answer = real.delete(f"{API}/domains/web?force=true", status=200)
    assert answer["removed"] == {"domain": "web", "uuid": uuid, "snapshots": [], "managed_save": False,
                                 "nvram": "", "volumes": []}
    assert (answer["status"], answer["kept"], answer["failed"]) == ("success", [], [])
    assert there.names() == [] and there.volumes() == ["web.qcow2"]
    assert refused(real, "DELETE", f"{API}/domains/web", status=404)["code"] == "not_found"
    rows = suite.sql("SELECT resource, result, details FROM audit.audit_log"
                     " WHERE action = 'libvirt.domain_delete' ORDER BY id")
    assert [(r["resource"], r["result"]) for r in rows] == [
        ("domain/web", "failure"), ("domain/web", "success"), ("domain/web", "failure")]
    assert json.loads(rows[1]["details"]["removed"]) == answer["removed"]
    assert f"domain 'web' ({uuid}) is removed" in suite[BRIDGE].output()


def test_a_domain_with_snapshots_and_saved_state_goes_as_a_whole(real, there):
    domain = there.define("web", disk_xml(there.volume("web.qcow2")))
    domain.snapshotCreateXML("<domainsnapshot><name>s1</name></domainsnapshot>")
    domain.create()
    domain.managedSave()
    removed = real.post("/libvirt/domain/delete", {"name": "web", "remove_storage": True})["removed"]
    assert (removed["snapshots"], removed["managed_save"]) == (["s1"], True)
    assert [v["name"] for v in removed["volumes"]] == ["web.qcow2"]
    assert there.names() == [] and there.volumes() == []


def qemu_img(*args):
    subprocess.run(["qemu-img", *args], check=True, capture_output=True)


def test_only_volumes_that_nothing_else_uses_are_removed(real, there, tmp_path):
    own, shared, base, linked, below, media, fixed = (
        there.volume(f"{n}.qcow2")
        for n in ("own", "shared", "base", "linked", "below", "media", "fixed"))
    overlay = there.volume("overlay.qcow2", backing=base)
    # of another domain, which is off: by a second name, and below an image that is in no pool
    link = tmp_path / "link.qcow2"
    link.symlink_to(linked)
    outside = tmp_path / "outside.qcow2"
    qemu_img("create", "-f", "qcow2", "-F", "qcow2", "-b", below, outside)
    foreign = tmp_path / "foreign.qcow2"
    qemu_img("create", "-f", "qcow2", foreign, "1M")
    there.define("other", disk_xml(shared), disk_xml(link, "vdb"), disk_xml(outside, "vdc"))
    there.define("upper", disk_xml(overlay))
    cd = (f"<disk type='file' device='cdrom'><source file='{media}'/><target dev='sda' bus='sata'/>"
          "</disk>")
    there.define("web", disk_xml(own), disk_xml(shared, "vdb"), disk_xml(base, "vdc"),
                 disk_xml(linked, "vdd"), disk_xml(below, "vde"), disk_xml(foreign, "vdf"),
                 disk_xml(fixed, "vdg", "<readonly/>"), devices=cd)
    before = there.volumes()
    answer = real.delete(f"{API}/domains/web?remove_storage=true", status=200)
    assert [v for v in answer["removed"]["volumes"]] == [
        {"pool": "images", "name": "own.qcow2", "path": own}]
    kept = {k["path"]: k["reason"] for k in answer["kept"]}
    assert "domain 'other' uses it" == kept.pop(shared) == kept.pop(linked) == kept.pop(below)
    assert re.fullmatch("(volume 'overlay.qcow2' of pool 'images'|domain 'upper') uses it",
                        kept.pop(base))
    assert "no volume of a storage pool" in kept.pop(str(foreign))
    assert "shared" in kept.pop(fixed) and kept == {}, "nothing is said of what is in a drive"
    assert there.volumes() == sorted(set(before) - {"own.qcow2"}) and foreign.exists()
    assert there.names() == ["other", "upper"] and answer["failed"] == []
    # the upper one: its image goes, what is below stays and is named
    answer = real.delete(f"{API}/domains/upper?remove_storage=true", status=200)
    assert [v["path"] for v in answer["removed"]["volumes"]] == [overlay]
    assert [k["path"] for k in answer["kept"]] == [base]
    assert "base.qcow2" in there.volumes() and "overlay.qcow2" not in there.volumes()


def test_images_of_an_export_are_never_removed(real, there, libvirtd):
    (libvirtd.pool / "export.json").write_text("{}")
    path = there.volume("web.qcow2")
    there.define("web", disk_xml(path))
    answer = real.delete(f"{API}/domains/web?remove_storage=true", status=200)
    assert answer["removed"]["volumes"] == [] and "export in" in answer["kept"][0]["reason"]
    assert "web.qcow2" in there.volumes()
    for method, path in (("DELETE", f"{API}/pools/images/volumes/web.qcow2"),
                         ("POST", f"{API}/pools/images/volumes/web.qcow2/resize")):
        body = {"capacity_bytes": 8 << 20} if method == "POST" else None
        assert "export" in refused(real, method, path, body, status=409)["error"]
    assert "web.qcow2" in there.volumes()


def test_a_volume_that_cannot_be_removed_is_told(real, there, libvirtd):
    path = there.volume("web.qcow2")
    there.define("web", disk_xml(path))
    libvirtd.pool.chmod(0o555)
    os.chown(libvirtd.pool, 0, 0)
    answer = real.delete(f"{API}/domains/web?remove_storage=true", status=200)
    assert answer["status"] == "partial" and answer["removed"]["volumes"] == []
    assert [f["path"] for f in answer["failed"]] == [path] and there.names() == []
    assert "Permission denied" in answer["failed"][0]["error"]
    assert (libvirtd.pool / "web.qcow2").exists()


def test_a_bridge_that_dies_in_a_deletion_touches_nobody_of_the_same_name(make, libvirtd, there):
    suite = make(uri=libvirtd.uri)
    first, second = there.volume("first.qcow2"), there.volume("second.qcow2")
    there.define("web", disk_xml(first))
    answers = []

    def ask():
        answers.append(suite.client.request("DELETE", f"{API}/domains/web?remove_storage=true"))

    asking = threading.Thread(target=ask)
    with Imports(suite).held("tasks", "NEW.kind = 'libvirt' AND NEW.state = 'done'") as held:
        asking.start()
        held.reached()
        assert there.names() == [] and there.volumes() == ["second.qcow2"]
        there.define("web", disk_xml(second))
        suite[BRIDGE].kill()
        held.refuse()
    expire(suite, "kind = 'libvirt'")
    suite[BRIDGE].start()
    asking.join(120)
    assert answers[0].status_code == 200, answers[0].text
    assert [v["path"] for v in answers[0].json()["removed"]["volumes"]] == [first]
    assert there.names() == ["web"] and there.volumes() == ["second.qcow2"]


# ---- volumes ----


@pytest.mark.parametrize("short", [True, False])
def test_volumes_are_made_made_larger_and_removed(real, there, short):
    base = f"{API}/pools/images/volumes"

    def ask(action, name, status, **fields):
        if short:
            return real.post(f"/libvirt/volume/{action}", {"pool": "images", "name": name, **fields},
                             status=status)
        if action == "create":
            return real.post(base, {"volume": name, **fields}, status=status)
        if action == "resize":
            return real.post(f"{base}/{name}/resize", fields, status=status)
        return real.delete(f"{base}/{name}", status=status)

    for name, format in (("a.qcow2", None), ("b.img", "raw")):
        made = ask("create", name, 201, capacity_bytes=3 << 20, **({"format": format} if format else {}))
        assert made["volume"]["format"] == (format or "qcow2")
        info = json.loads(subprocess.run(["qemu-img", "info", "-U", "--output=json",
                                          made["volume"]["path"]], capture_output=True).stdout)
        assert (info["format"], info["virtual-size"]) == (format or "qcow2", 3 << 20)
    assert there.volumes() == ["a.qcow2", "b.img"]
    assert "already" in ask("create", "a.qcow2", 409, capacity_bytes=1)["error"]
    for changed in (True, False):
        answer = ask("resize", "a.qcow2", 200, capacity_bytes=5 << 20)
        assert (answer["changed"], answer["volume"]["capacity_bytes"]) == (changed, 5 << 20)
    assert there.pool.storageVolLookupByName("a.qcow2").info()[1] == 5 << 20
    assert "never smaller" in ask("resize", "a.qcow2", 409, capacity_bytes=1 << 20)["error"]
    path = there.pool.storageVolLookupByName("a.qcow2").path()
    domain = there.define("web", disk_xml(path))
    answer = ask("delete", "a.qcow2", 409)
    assert "domain 'web' uses it" in answer["error"] and "a.qcow2" in there.volumes()
    domain.create()
    assert "domain 'web' uses it" in ask("resize", "a.qcow2", 409, capacity_bytes=9 << 20)["error"]
    domain.destroy()
    ask("resize", "a.qcow2", 200, capacity_bytes=9 << 20)
    domain.undefine()
    removed = ask("delete", "a.qcow2", 200)
    assert removed["removed"] == {"name": "a.qcow2", "path": path} and there.volumes() == ["b.img"]
    assert ask("delete", "a.qcow2", 404)["code"] == ask("resize", "a.qcow2", 404,
                                                       capacity_bytes=1)["code"] == "not_found"


def test_volumes_below_others_stay(real, there):
    base = there.volume("base.qcow2")
    there.volume("above.qcow2", backing=base)
    answer = refused(real, "DELETE", f"{API}/pools/images/volumes/base.qcow2", status=409)
    assert "volume 'above.qcow2' of pool 'images' uses it" in answer["error"]
    assert there.volumes() == ["above.qcow2", "base.qcow2"]


def test_bodies_about_volumes_are_checked(make):
    suite = make()
    good = {"pool": "default-pool", "name": "x", "capacity_bytes": 1024}
    for change, field in (({"name": "../x"}, "volume"), ({"name": ".."}, "volume"),
                          ({"pool": "<pool/>"}, "pool"), ({"capacity_bytes": 0}, "capacity_bytes"),
                          ({"capacity_bytes": 1 << 62}, "capacity_bytes"),
                          ({"capacity_bytes": -1}, "capacity_bytes"),
                          ({"capacity_bytes": "1G"}, "capacity_bytes"),
                          ({"format": "vmdk"}, "format"), ({"backing": "/etc/shadow"}, "backing")):
        answer = refused(suite.client, "POST", "/libvirt/volume/create", {**good, **change})
        assert answer["field"] in (field, "name"), (change, answer)
    assert suite.sql("SELECT count(*) FROM tasks")[0]["count"] == 0


# ---- many at once ----


def batch(client, operation, domains, short=True, **fields):
    body = {"domains": domains, **fields}
    if short:
        return client.post(f"/libvirt/batch/{operation}", body, status=200)
    return client.post(f"{API}/batch", {"operation": operation, **body}, status=200)


@pytest.mark.parametrize("short", [True, False])
def test_every_domain_of_a_batch_has_its_own_result(real, there, short):
    names = ["a", "b", "c"]
    for name in names:
        there.define(name, disk_xml(there.volume(f"{name}.qcow2")))
    there.domain("b").create()
    for operation, after, options in (("start", "running", {}), ("pause", "paused", {}),
                                      ("resume", "running", {}), ("reboot", "running", {"force": True}),
                                      ("stop", "shutoff", {"force": True}),
                                      ("start", "paused", {"paused": True})):
        answer = batch(real, operation, names + ["none"], short, **options)
        assert (answer["operation"], answer["total"], answer["successful"], answer["failed"]) == (
            operation, 4, 3, 1), answer
        assert [(r["domain"], r["success"]) for r in answer["results"]] == [
            ("a", True), ("b", True), ("c", True), ("none", False)]
        assert answer["results"][3]["code"] == "not_found" and "none" in answer["results"][3]["error"]
        assert {state(there, n) for n in names} == {after}, operation
    there.domain("a").destroy()
    there.domain("b").destroy()
    answer = batch(real, "snapshot", ["a", "b"], short, name_prefix="nightly", description="d")
    for name, result in zip("ab", answer["results"]):
        made = there.domain(name).listAllSnapshots()
        assert [s.getName() for s in made] == [result["snapshot"]["name"]]
        assert result["snapshot"]["name"].startswith("nightly-20")
    answer = batch(real, "delete", names, short, remove_storage=True)
    assert [r["success"] for r in answer["results"]] == [True, True, False]
    assert answer["results"][2]["code"] == "conflict" and "removed" not in answer["results"][2]
    assert there.names() == ["c"] and there.volumes() == ["c.qcow2"]
    assert batch(real, "delete", ["c"], short, remove_storage=True, force=True)["failed"] == 0
    assert there.names() == [] and there.volumes() == []


def test_batches_are_checked_as_a_whole(make):
    suite = make()
    for operation, body, field in (
            ("start", {"domains": []}, "domains"), ("start", {}, "domains"),
            ("start", {"domains": "test"}, "domains"), ("start", {"domains": ["test", "test"]}, "domains"),
            ("start", {"domains": ["test", "a/b"]}, "domains"), ("start", {"domains": [1]}, "domains"),
            ("start", {"domains": ["x" * 300]}, "domains"),
            ("start", {"domains": [f"d{i}" for i in range(101)]}, "domains"),
            ("start", {"domains": ["test"], "force": True}, "force"),
            ("pause", {"domains": ["test"], "paused": True}, "paused"),
            ("snapshot", {"domains": ["test"], "name_prefix": "a/b"}, "name_prefix"),
            ("explode", {"domains": ["test"]}, "operation")):
        for path, extra in ((f"/libvirt/batch/{operation}", {}), (f"{API}/batch", {"operation": operation})):
            assert refused(suite.client, "POST", path, {**body, **extra})["field"] == field, body
    assert refused(suite.client, "POST", f"{API}/batch", {"domains": ["test"]})["field"] == "operation"
    assert suite.sql("SELECT count(*) FROM tasks")[0]["count"] == 0


def test_a_libvirtd_that_hangs_in_a_batch_leaves_the_results_so_far(make, libvirtd, there):
    suite = make(uri=libvirtd.uri, timeout="6s")
    for name in "abc":
        there.define(name, disk_xml(there.volume(f"{name}.qcow2")))
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(batch(suite.client, "snapshot", ["a", "b", "c"])))
    with Imports(suite).held("task_records", "NEW.key = 'libvirt.1.0'") as held:
        asking.start()
        held.reached()
        libvirtd.process.pause()
    asking.join(120)
    libvirtd.process.resume()
    a, b, c = answers[0]["results"]
    assert (a["success"], b["success"], c["success"], answers[0]["failed"]) == (True, False, False, 2)
    assert b["code"] in ("timeout", "unavailable") and "not tried" in c["error"]
    assert [len(there.domain(n).listAllSnapshots()) for n in "ac"] == [1, 0]
    row = suite.sql("SELECT details FROM audit.audit_log WHERE action = 'libvirt.batch'")[0]
    assert row["details"]["operation"] == "snapshot" and row["details"]["failed"] == "2"
    assert json.loads(row["details"]["domains"]) == ["a", "b", "c"]


# ---- refusals ----


BAD_NAMES = ["-rf", "../../etc", "a/b", "a;b", "<domain/>", "a'b", "a&amp;b", "\u00e4", "a\nb", "..", "x" * 256]


def test_names_are_checked_before_anything_is_asked(make):
    suite = make()
    api = suite.client
    for name in BAD_NAMES:
        for path in ("/libvirt/domain", "/libvirt/snapshots", "/libvirt/console", "/libvirt/stats"):
            answer = api.request("GET", path, params={"name": name})
            assert (answer.status_code, answer.json()["field"]) == (400, "name"), (path, name)
        answer = api.request("GET", "/libvirt/volumes", params={"pool": name})
        assert (answer.status_code, answer.json()["field"]) == (400, "pool"), name
    assert refused(api, "GET", "/libvirt/domain")["field"] == "name"
    assert refused(api, "GET", "/libvirt/volumes")["field"] == "pool"
    assert "colour" in refused(api, "GET", "/libvirt/domains?colour=red")["error"]
    for limit in ("0", "1001", "-1", "99999999999999999999", "x"):
        assert refused(api, "GET", f"/libvirt/domains?limit={limit}")["field"] == "limit"
    both = refused(api, "GET", "/libvirt/domain?name=a&domain=b")
    assert "different value" in both["error"]
    assert "path" in refused(api, "GET", f"{API}/domains/test?name=other")["error"]
    denied = refused(api, "GET", "/libvirt/domains?uri=qemu%2Bssh://x/?command=/bin/true", status=422)
    assert denied["code"] == "denied" and "allowed_uris" in denied["error"]
    assert suite.sql("SELECT count(*) FROM tasks")[0]["count"] == 0


def test_what_libvirt_does_not_have_is_404(mock):
    for path in ("/libvirt/domain?name=none", f"{API}/domains/none", f"{API}/domains/none/snapshots",
                 "/libvirt/stats?name=none", "/libvirt/console?name=none",
                 f"{API}/domains/6695eb01-f6a4-8304-79aa-97f2502e1930",
                 "/libvirt/volumes?pool=none"):
        answer = refused(mock, "GET", path, status=404)
        assert answer["code"] == "not_found" and "none" in answer["error"] or MOCK in answer["error"]


def test_what_the_api_leaves_out_is_not_there(mock):
    for method, path in (("POST", "/libvirt/clone"), ("GET", "/libvirt/template/list"),
                         ("POST", f"{API}/backups"), ("POST", "/libvirt/backup/create")):
        assert refused(mock, method, path, status=404)["code"] == "not_found", path
    assert refused(mock, "POST", "/libvirt/network/create", status=404)["code"] == "not_available"
    assert not [p for p in mock.document["paths"] if "libvirt" in p
                and re.search("clone|template|backup", p)]


def test_other_connections_are_those_of_the_configuration(make, libvirtd):
    api = make(allowed_uris=[libvirtd.uri]).client
    pools = api.get("/libvirt/pools", params={"uri": libvirtd.uri})["pools"]
    assert [p["name"] for p in pools] == ["images"]
    assert [p["name"] for p in api.get("/libvirt/pools")["pools"]] == ["default-pool"]


def test_who_may_look_and_who_may_act(make):
    suite = make(dev=False)
    routes = route_table(suite)
    assert len(routes) >= 18
    clients = people(suite)
    for route in routes:
        path = re.sub(r"\{\w+\}", "test", route["path"])
        assert Client(suite.url()).request(route["method"], path).status_code == 401, path
        answer = clients["viewer"].request(route["method"], path)
        if route["permission"] == "libvirt.view":
            assert answer.status_code in (200, 400, 404), (path, answer.text)
        else:
            assert (answer.status_code, answer.json()["permission"]) == (403, "libvirt.manage"), path
    assert clients["operator"].get(f"{API}/domains/test/console")["state"] == "running"
    rows = suite.sql("SELECT action, result, resource FROM audit.audit_log WHERE \"user\" = 'viewer'"
                     " AND action = 'libvirt.domain_view' AND resource <> ''")
    assert {(r["result"], r["resource"]) for r in rows} == {("success", "domain/test")}


# ---- a libvirtd that is not there ----


def test_a_libvirtd_that_is_away_is_named_with_what_to_do(make, tmp_path):
    uri = f"qemu+unix:///session?socket={tmp_path}/none"
    suite = make(uri=uri)
    answer = suite.client.request("GET", "/libvirt/domains")
    assert (answer.status_code, answer.json()["code"]) == (503, "libvirt_unreachable")
    assert uri in answer.json()["error"] and "libvirtd must run" in answer.json()["error"]


def test_a_libvirtd_that_hangs_holds_nobody(make, libvirtd):
    suite = make(uri=libvirtd.uri, timeout="3s", allowed_uris=[MOCK])
    wait_for(lambda: suite.client.get("/libvirt/domains")["total"] == 0, what=suite.tails)
    libvirtd.process.pause()
    answer = suite.client.request("GET", "/libvirt/domains")  # 202 if the gateway gave up before the bridge
    assert (answer.status_code, answer.json()["code"]) == (503, "libvirt_unreachable"), answer.text
    assert libvirtd.uri in answer.json()["error"]
    wait_for(lambda: suite.client.get("/libvirt/domains", params={"uri": MOCK})["total"] == 1,
             what="others go on")
    libvirtd.process.resume()
    wait_for(lambda: suite.client.get("/libvirt/domains")["total"] == 0, what=suite.tails)


def test_without_a_bridge_the_answer_is_the_task(make):
    suite = make()
    suite[BRIDGE].stop()
    answer = suite.client.request("GET", f"{API}/domains/test")
    assert answer.status_code == 202
    task = answer.headers["Location"]
    suite[BRIDGE].start()
    done = wait_for(lambda: (t := suite.client.get(task))["state"] == "done" and t, what=suite.tails)
    assert done["result"]["answer"]["name"] == "test"

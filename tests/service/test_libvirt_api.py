"""The endpoints below /libvirt: real gateway, scheduler and bridge, over libvirt's mock driver and over
a libvirtd of the test's own, where every effect is read back through libvirt's own Python binding."""
import json
import re
import subprocess
import threading
import time

import pytest
import requests

from tests.harness.bridge import BRIDGE, Imports
from tests.harness.client import Client
from tests.harness.process import BIN
from tests.harness.wait import wait_for

API = "/api/v1/libvirt"
MOCK = "test:///default"
SERVICES = ["scheduler", "api-gateway", BRIDGE]


@pytest.fixture
def make(make_suite):
    """Function: gateway, scheduler, bridge; settings go into the section libvirt."""

    def start(dev=True, **settings):
        settings.setdefault("uri", MOCK)
        settings.setdefault("timeout", "3s")
        suite = make_suite(services=SERVICES, dev=dev, config={"libvirt": settings})
        wait_for(lambda: suite[BRIDGE].events("libvirt_reachable")
                 or suite[BRIDGE].events("libvirt_unreachable"), 30, suite.tails)
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
    session = requests.post(suite.url() + "/api/login", timeout=20,
                            json={"username": username, "password": password})
    assert session.ok, session.text
    return Client(suite.url(), token=session.json()["token"])


def people(suite):
    """{role: client}; viewer and operator are called as their role."""
    text = wait_for(lambda: re.search(r"password (\w+)", suite["api-gateway"].output()), 20)
    clients = {"admin": login(suite, "admin", text.group(1))}
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
    assert act(mock, "shutdown", "test", wait=True, timeout="5s")["state"] == "shutoff"
    assert act(mock, "start", "test", wait=True)["state"] == "running"
    there.define("web")  # nothing to boot from: nobody hears the request
    act(real, "start", "web")
    assert act(real, "shutdown", "web")["message"].endswith("was asked to shut down")
    before = time.monotonic()
    answer = act(real, "shutdown", "web", 409, wait=True, timeout="2s")
    assert 2 <= time.monotonic() - before < 15
    assert "is 'running' after 2000 ms still" in answer["error"]
    assert act(real, "destroy", "web", wait=True)["state"] == "shutoff"


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
    path = there.volume("web.qcow2")
    there.define("web", disk_xml(path))
    real.post(f"{API}/domains/web/snapshots", {"snapshot_name": "s1", "disk_only": True}, status=201)
    shown = real.get(f"{API}/domains/web")["disks"][0]["file"]
    assert shown == path.removesuffix("qcow2") + "s1"
    answer = refused(real, "POST", f"{API}/domains/web/snapshots", {"quiesce": True})
    assert answer["field"] == "quiesce"


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
    suite.sql("UPDATE tasks SET lease_until = now() - interval '6 s' WHERE kind = 'libvirt'")
    suite[BRIDGE].start()
    asking.join(60)
    assert answers[0].status_code == 201 and answers[0].json()["snapshot"]["name"] == made[0]
    assert [s.getName() for s in domain.listAllSnapshots()] == made


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
    suite = make(uri=libvirtd.uri, timeout="2s", allowed_uris=[MOCK])
    assert suite.client.get("/libvirt/domains")["total"] == 0
    libvirtd.process.pause()
    before = time.monotonic()
    answer = suite.client.request("GET", "/libvirt/domains")
    assert (answer.status_code, answer.json()["code"]) == (503, "libvirt_unreachable"), answer.text
    assert time.monotonic() - before < 15 and libvirtd.uri in answer.json()["error"]
    assert suite.client.get("/libvirt/domains", params={"uri": MOCK})["total"] == 1, "others go on"
    libvirtd.process.resume()
    assert suite.client.get("/libvirt/domains")["total"] == 0


def test_without_a_bridge_the_answer_is_the_task(make):
    suite = make()
    suite[BRIDGE].stop()
    before = time.monotonic()
    answer = suite.client.request("GET", f"{API}/domains/test")
    assert answer.status_code == 202 and time.monotonic() - before < 40
    task = answer.headers["Location"]
    suite[BRIDGE].start()
    done = wait_for(lambda: (t := suite.client.get(task))["state"] == "done" and t, 30, suite.tails)
    assert done["result"]["answer"]["name"] == "test"

"""The gateway's handlers against real PostgreSQL and Redis. The worker side is played by rows: a
thread answers control tasks as a script says, jobs move by UPDATE."""
import json
import re
import subprocess
import threading

import pytest
import requests

from tests.harness.client import Client
from tests.harness.gateways import admin_password
from tests.harness.process import BIN
from tests.harness.schema import apply_schema
from tests.harness.wait import wait_for

SECRET = "hunter2-Zx9-geheim"
OBJECT = "application/vnd.hypersdk.v1+json"


@pytest.fixture
def make_gateway(make_suite):
    def make(**options):
        suite = make_suite(services=["api-gateway"], start=False, **options)
        apply_schema(suite.postgres, suite.database)
        suite.add("api-gateway")
        suite.client = Client(suite.url())
        suite.wait_ready()
        return suite
    return make


@pytest.fixture
def gateway(make_gateway):
    return make_gateway()


@pytest.fixture
def api(gateway):
    return gateway.client


@pytest.fixture
def provider(gateway):
    """Provider "vsphere", without a check."""
    gateway.client.post("/api/v1/providers", {"kind": "vsphere", "host": "vc.example.com:443",
                                              "username": "u", "password": SECRET}, status=201)
    return "vsphere"


class Workers:
    """Answers control tasks: script maps a kind to a function (spec, task row) -> result, or an
    (error_code, message) tuple."""

    def __init__(self, suite, script):
        self.suite = suite
        self.script = script
        self.seen = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while not self.stop.wait(0.02):
            for task in self.suite.sql("SELECT * FROM tasks WHERE state = 'queued' AND job_id IS"
                                       " NULL ORDER BY seq"):
                self.seen.append(task)
                answer = self.script[task["kind"]](task["spec"], task)
                if isinstance(answer, tuple):
                    self.suite.sql("UPDATE tasks SET state = 'failed', error_code = %s, error = %s"
                                   " WHERE id = %s", answer[0], answer[1], task["id"])
                else:
                    self.suite.sql("UPDATE tasks SET state = 'done', result = %s WHERE id = %s",
                                   json.dumps(answer), task["id"])

    def close(self):
        self.stop.set()
        self.thread.join()


@pytest.fixture
def make_workers(gateway):
    made = []

    def make(**script):
        made.append(Workers(gateway, script))
        return made[-1]
    yield make
    for workers in made:
        workers.close()


def inventory(suite, *names, provider="vsphere", generation="g1", **facts):
    """A complete scan with these VMs."""
    for i, name in enumerate(names):
        vm = {"id": f"vm-{i + 1}", "name": name, "path": f"/DC0/vm/prod/{name}",
              "datacenter": "DC0", "power_state": "poweredOn", "memory_mb": 1024 * (i + 1),
              "num_cpu": i + 1, "disks": [], **facts}
        suite.sql("INSERT INTO inventory_vms (provider, id, generation, name, path, power_state, vm)"
                  " VALUES (%s, %s, %s, %s, %s, %s, %s)", provider, vm["id"], generation, name,
                  vm["path"], vm["power_state"], json.dumps(vm))
    suite.sql("INSERT INTO inventory_state (provider, generation, completed_at) VALUES"
              " (%s, %s, now()) ON CONFLICT (provider) DO UPDATE SET generation = %s,"
              " completed_at = now()", provider, generation, generation)


def refused(answer, status, field=None, code=None, text=None):
    """The one shape of errors."""
    body = answer.json()
    assert answer.status_code == status, answer.text
    assert {"error", "code", "timestamp", "request_id"} <= set(body), body
    if field is not None:
        assert body["field"] == field, body
    if code is not None:
        assert body["code"] == code, body
    if text is not None:
        assert text in body["error"], body
    return body


# ---- service ----

def test_health_is_open_and_says_healthy(api):
    for path in ("/health", "/api/v1/health"):
        answer = api.get(path, status=200)
        assert answer["status"] == "healthy" and answer["version"]


def test_ready_needs_the_database_only(make_gateway):
    gateway = make_gateway(own_postgres=True)
    answer = gateway.client.get("/health/ready", status=200)
    assert answer["checks"]["database"] == "up" and answer["checks"]["redis"] == "up"
    assert answer["checks"]["scheduler"] == "down" and answer["status"] == "degraded"
    gateway.redis.stop()
    wait_for(lambda: gateway.client.get("/health/ready")["checks"]["redis"] == "down")
    gateway.postgres.stop()
    answer = wait_for(lambda: (r := gateway.client.request("GET", "/health/ready")).status_code
                      == 503 and r.json())
    assert answer["status"] == "unready" and answer["checks"]["database"] == "down"
    assert gateway.client.get("/health")["status"] == "healthy"


def test_openapi_and_the_route_table_name_the_same(gateway):
    document = gateway.client.get("/openapi.json", status=200)
    assert gateway.client.get("/api/v1/openapi.json") == document
    assert document["openapi"].startswith("3.1.")
    path = gateway.write_config("api-gateway")
    done = subprocess.run([BIN / "api-gateway", "--config", path, "--routes"], capture_output=True,
                          text=True, check=True)
    routes = json.loads(done.stdout)
    table = {(r["path"], r["method"].lower()): r for r in routes}
    documented = {(path, method): operation for path, item in document["paths"].items()
                  for method, operation in item.items()}
    assert set(table) == set(documented)
    ids = [o["operationId"] for o in documented.values()]
    assert len(ids) == len(set(ids))
    for key, route in table.items():
        operation = documented[key]
        assert re.fullmatch(re.escape(route["operation"]) + r"(_\w+)?", operation["operationId"])
        if route["path"].startswith("/api/v1/"):
            assert operation["operationId"] == route["operation"], key
        assert operation.get("x-permission") == (route["permission"] or "").replace(".own", "") or \
            route["permission"] is None, key
        assert ("open" in route["flags"]) == (operation.get("security") == []), key
        named = set(re.findall(r"{(\w+)}", route["path"]))
        given = {resolve(document, p)["name"] for p in operation.get("parameters", [])
                 if resolve(document, p)["in"] == "path"}
        assert named == given, key


def resolve(document, node):
    while "$ref" in node:
        target = document
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        node = target
    return node


def test_every_reference_of_the_document_leads_somewhere(api):
    document = api.get("/openapi.json")

    def walk(node):
        if isinstance(node, dict):
            if "$ref" in node:
                resolve(document, node)
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)
    walk(document)


def test_answers_keep_the_documented_schemas(gateway, api, provider):
    jsonschema = pytest.importorskip("jsonschema")
    document = api.get("/openapi.json")
    job = api.submit(vm_path="web")
    inventory(gateway, "web", "db")
    checks = {"/api/v1/health": "Health", "/api/v1/status": "Status",
              "/api/v1/capabilities": "Capabilities", "/api/v1/jobs": "JobList",
              f"/api/v1/jobs/{job}": "Job", f"/api/v1/jobs/{job}/progress": "Progress",
              f"/api/v1/jobs/{job}/logs": "Logs", f"/api/v1/jobs/{job}/eta": "Eta",
              f"/api/v1/jobs/{job}/history": "History", "/api/v1/jobs/stats": "Stats",
              f"/api/v1/jobs/{job}/artifacts": "Artifacts", "/api/v1/vms": "VmList",
              "/api/v1/providers": "ProviderList", "/api/v1/providers/vsphere": "Provider"}
    for path, name in checks.items():
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        jsonschema.validate(api.get(path, status=200), schema)


def test_identity_answers_keep_the_documented_schemas(roles):
    jsonschema = pytest.importorskip("jsonschema")
    admin = roles[1]["admin"]
    document = admin.get("/openapi.json")
    admin.post("/api/v1/api-keys", {"name": "ci"}, status=201)
    for path, name in {"/api/v1/api-keys": "ApiKeyList", "/api/v1/sessions": "SessionList",
                       "/api/v1/audit": "AuditLog"}.items():
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        jsonschema.validate(admin.get(path, status=200), schema)
    users = admin.get("/api/v1/users")
    jsonschema.validate(users["users"][0], {"$ref": "#/components/schemas/User",
                                            "components": document["components"]})


def test_status_shows_workers_queue_and_reasons(gateway, api, provider):
    job = api.submit(vm_path="web")
    status = api.get("/status")
    assert status["queue_depth"] == 1 and status["pending_jobs"] == 1 and status["total_jobs"] == 1
    assert status["workers"]["total"] == 0 and status["services"]["scheduler"] == "down"
    assert status["services"]["exporter-vsphere"] == "down"
    assert status["services"]["api-gateway"] == "up"
    assert status["pending"] == [{"job_id": job, "provider": "vsphere",
                                  "reason": "no scheduler is running",
                                  "created_at": status["pending"][0]["created_at"]}]
    gateway.sql("INSERT INTO leader (epoch, holder, until) VALUES (1, 's', now() + interval '1 h')")
    gateway.sql("UPDATE jobs SET pending_reason = 'all slots are busy'")
    gateway.sql("INSERT INTO workers (instance, role, provider, slots_transfer, slots_control)"
                " VALUES ('w1', 'exporter', 'vsphere', 2, 4), ('w2', 'bridge', '', 1, 1)")
    gateway.sql("INSERT INTO workers (instance, role, provider, state)"
                " VALUES ('w3', 'exporter', 'vsphere', 'down')")
    gateway.sql("UPDATE tasks SET state = 'leased', worker = 'w1'")
    status = api.get("/status")
    assert status["pending"][0]["reason"] == "all slots are busy"
    assert status["queue_depth"] == 0 and status["active_workers"] == 1
    assert (status["workers"]["total"], status["workers"]["idle"]) == (2, 1)
    assert status["slots"] == {"transfer": {"total": 3, "busy": 1},
                               "control": {"total": 5, "busy": 0}}
    assert status["services"]["scheduler"] == status["services"]["exporter-vsphere"] == "up"
    assert status["services"]["hyper2kvm-bridge"] == "up"


def test_capabilities_say_what_connected_workers_say(gateway, api, provider):
    none = api.get("/capabilities")
    assert none["formats"] == []
    assert [name for name, there in sorted(none["features"].items()) if there] == \
        ["schedules", "templates", "workflows"], "what needs no worker"
    assert none["capabilities"]["auto"]["available"] is False
    record = {"formats": ["ovf", "raw", "nonsense"], "features": {"snapshot": True, "cbt": False},
              "methods": [{"name": "folder", "version": "1", "priority": 10}]}
    gateway.sql("INSERT INTO workers (instance, role, provider, capabilities)"
                " VALUES ('w1', 'exporter', 'vsphere', %s)", json.dumps(record))
    some = api.get("/capabilities")
    assert some["formats"] == ["ovf", "raw"]
    assert some["features"]["snapshot"] is True and some["features"]["cbt"] is False
    assert some["capabilities"]["folder"] == {"available": True, "version": "1", "priority": 10}
    kinds = {p["kind"]: p for p in some["providers"]}
    assert len(kinds) == 9
    assert kinds["vsphere"] == {"kind": "vsphere", "available": True, "workers": 1,
                                "configured": ["vsphere"]}
    assert kinds["aws"]["available"] is False


# ---- submit ----

def test_submit_writes_job_and_task_before_it_answers(gateway, api, provider):
    answer = api.post("/jobs/submit", {
        "vm_identifier": "app-test-07", "provider": "vsphere", "export_method": "raw",
        "export_path": "app-test-07", "priority": 70, "retry": {"max_attempts": 5},
        "metadata": {"owner": "ana"}, "hyper2kvm_integration": {"enabled": True}}, status=200)
    assert answer["status"] == "pending" and answer["job_ids"] == [answer["job_id"]]
    assert (answer["accepted"], answer["rejected"], answer["errors"]) == (1, 0, [])
    row = gateway.sql("SELECT * FROM jobs")[0]
    assert row["id"] == answer["job_id"] and row["format"] == "raw" and row["priority"] == 70
    assert row["max_attempts"] == 5 and row["output_path"] == f"{gateway.exports}/app-test-07"
    assert row["definition"]["vm_path"] == "app-test-07"
    assert row["definition"]["format"] == "raw" and "export_method" not in row["definition"]
    export, convert = gateway.sql("SELECT * FROM tasks ORDER BY ordinal")
    assert export["kind"] == "export" and export["provider_kind"] == "vsphere"
    assert export["spec"]["job_id"] == row["id"] and export["spec"]["convert"] is True
    assert export["spec"]["output_path"] == row["output_path"]
    assert convert["kind"] == "convert" and convert["state"] == "blocked"
    assert convert["spec"]["hyper2kvm"]["daemon_mode"] is True


def test_a_new_job_is_answered_as_pending_however_soon_it_starts(gateway, api, provider):
    """Leased between its commit and the answer; a repeat tells what it is now."""
    gateway.sql("CREATE FUNCTION leased() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS"
                " $$ BEGIN UPDATE jobs SET status = 'running' WHERE id = NEW.id; RETURN NULL; END $$")
    gateway.sql("CREATE TRIGGER leased AFTER INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION leased()")
    body = {"vm_path": "a"}
    first = api.request("POST", "/api/v1/jobs", body, headers={"Idempotency-Key": "k"})
    assert first.status_code == 201 and first.json()["status"] == "pending"
    assert gateway.sql("SELECT status FROM jobs")[0]["status"] == "running"
    again = api.request("POST", "/api/v1/jobs", body, headers={"Idempotency-Key": "k"})
    assert again.status_code == 200 and again.json()["status"] == "running"
    assert again.json()["job_id"] == first.json()["job_id"]


def test_the_resource_path_answers_201_with_location(api, provider):
    answer = api.request("POST", "/api/v1/jobs", {"vm_path": "a"})
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"/api/v1/jobs/{answer.json()['job_id']}"
    assert api.get(answer.headers["Location"])["vm_path"] == "a"


def test_bodies_may_be_yaml_or_untyped(api, provider):
    curl = "{\n \"vm_identifier\": \"a\",\n \"options\": {\"parallel_downloads\": 2}  # two\n}"
    for headers in ({"Content-Type": "application/x-www-form-urlencoded"},
                    {"Content-Type": "application/x-yaml"}):
        assert api.request("POST", "/jobs/submit", curl, headers=headers).status_code == 200
    answer = api.request("POST", "/jobs/submit", curl, headers={"Content-Type": "application/json"})
    refused(answer, 400)


@pytest.mark.parametrize("body, status, field, code", [
    ({}, 400, "vm_path", "invalid"),
    ({"vm_path": "a", "verfy": True}, 400, "verfy", "invalid"),
    ({"vm_path": "a", "vm": "b"}, 400, "vm", "invalid"),
    ({"vm_path": "a", "format": "ova", "incremental": True}, 422, "incremental", "not_available"),
    ({"vm_path": "a", "export_method": "vhdx"}, 422, "format", "not_available"),
    ({"vm_path": "a", "vcenter": {"password": SECRET}}, 422, "vcenter", "not_available"),
    ({"vm_path": "a", "output_path": "/etc/x"}, 422, "output_path", "denied"),
    ({"vm_path": "a", "provider": "nowhere"}, 422, "provider", "invalid"),
    ({"vm_path": "a", "options": {"parallel_downloads": 99}}, 400, "options.parallel_downloads",
     "invalid"),
])
def test_refused_submissions_name_the_field_and_leave_nothing(gateway, api, provider, body, status,
                                                              field, code):
    for path in ("/jobs/submit", "/api/v1/jobs"):
        answer = refused(api.request("POST", path, body), status, field, code)
    assert SECRET not in json.dumps(answer)
    assert gateway.sql("SELECT * FROM jobs") == []
    if field == "verfy":
        assert answer["candidates"] == ["verify"]
    if field == "provider":
        assert "vsphere" in answer["error"]


def test_disabled_providers_take_no_jobs(api, provider):
    api.put("/api/v1/providers/vsphere", {"host": "vc.example.com:443", "username": "u",
                                          "enabled": False}, status=200)
    refused(api.request("POST", "/jobs/submit", {"vm": "a"}), 422, "provider", "conflict")


def test_batches_tell_every_elements_fault(gateway, api, provider):
    jobs = [{"vm": "a"}, {"vm": "b", "nonsense": 1}, {"vm": "c", "upload": "gs://bucket"}, {"vm": "d"}]
    answer = api.request("POST", "/api/v1/jobs", jobs)
    body = answer.json()
    assert answer.status_code == 207 and (body["accepted"], body["rejected"]) == (2, 2)
    assert [(e["index"], e["field"], e["code"]) for e in body["errors"]] == \
        [(1, "nonsense", "invalid"), (2, "upload", "not_available")]
    assert "job_id" not in body and len(body["job_ids"]) == 2
    assert len(gateway.sql("SELECT * FROM jobs")) == 2
    answer = api.request("POST", "/jobs/submit", {"jobs": jobs[:2], "atomic": True})
    assert answer.status_code == 422 and answer.json()["accepted"] == 0
    refused(answer, 422)
    assert len(gateway.sql("SELECT * FROM jobs")) == 2
    answer = api.post("/jobs/submit", {"jobs": [jobs[0], jobs[3]], "atomic": True}, status=200)
    assert answer["accepted"] == 2 and len(gateway.sql("SELECT * FROM jobs")) == 4
    clash = {"jobs": [{"vm": "x", "id": "mine"}, {"vm": "y", "id": "mine"}], "atomic": True}
    assert api.request("POST", "/jobs/submit", clash).status_code == 422
    assert len(gateway.sql("SELECT * FROM jobs")) == 4


def test_ten_thousand_jobs_in_one_request(gateway, api, provider):
    jobs = [{"vm": f"vm-{i}", "id": f"bulk-{i}"} for i in range(10_000)]
    jobs[4321] = {"vm": "again", "id": "bulk-17"}  # taken by then
    jobs[9999] = {"vm": "odd", "nonsense": 1}
    answer = api.request("POST", "/api/v1/jobs", {"jobs": jobs}, timeout=120)
    body = answer.json()
    assert answer.status_code == 207 and (body["accepted"], body["rejected"]) == (9998, 2)
    assert [(e["index"], e["code"]) for e in body["errors"]] == [(9999, "invalid"), (4321, "conflict")]
    assert body["job_ids"] == [j["id"] for i, j in enumerate(jobs) if i not in (4321, 9999)]
    assert gateway.sql("SELECT count(*) AS tasks, count(DISTINCT t.job_id) AS jobs FROM jobs j"
                       " JOIN tasks t ON t.job_id = j.id WHERE t.state = 'queued'") == \
        [{"tasks": 9998, "jobs": 9998}]
    refused(api.request("POST", "/jobs/submit", jobs + jobs[:1]), 400, "jobs")


def rows_of(gateway, job):
    """Everything stored of a job but what differs between any two."""
    own = {"id", "seq", "job_id", "at", "xid", "created_at", "updated_at", "not_before", "rank", "trace_id",
           "timeout_at", "window_at"}
    plain = lambda rows: [{k: v for k, v in row.items() if k not in own} for row in rows]
    text = json.dumps([plain(gateway.sql(f"SELECT * FROM {table} WHERE {column} = %s ORDER BY {order}",
                                         job))
                       for table, column, order in (("jobs", "id", "seq"), ("tasks", "job_id", "ordinal"),
                                                    ("job_events", "job_id", "id"),
                                                    ("job_dependencies", "job_id", "on_job"))], default=str)
    return json.loads(text.replace(job, "THIS"))


def test_a_job_of_a_batch_is_stored_as_one_alone(gateway, api, provider):
    inventory(gateway, "web 01", host="esx-1")
    first = api.submit(vm_path="first")
    kinds = [{"vm": "vm-1"},  # of the inventory: its name, its host
             {"vm": "a", "priority": 70, "deadline": "2036-01-01T00:00:00Z",
              "depends_on": [{"job_id": first, "required_state": "final", "timeout": "1h"}]},
             {"vm": "b", "hyper2kvm_integration": {"enabled": True, "auto_convert": True},
              "libvirt": {"define": True}, "retry": {"max_attempts": 7, "initial_delay": "2s"},
              "pre_hooks": [{"type": "webhook", "url": "https://example.com/hook"}],
              "metadata": {"text": "\u00fc \"quoted\" \\ 'x' {y}"}},
             {"vm": "c", "time_windows": [{"days": ["mon"], "start": "01:00", "end": "02:00"}],
              "on_window_end": "cancel"}]
    alone = [api.post("/api/v1/jobs", kind, status=201)["job_id"] for kind in kinds]
    together = api.post("/api/v1/jobs", kinds, status=200)["job_ids"]
    for one, other in zip(alone, together):
        assert rows_of(gateway, one) == rows_of(gateway, other)
    assert [row["id"] for row in gateway.sql("SELECT id FROM jobs ORDER BY seq")] == \
        [first] + alone + together
    assert [row["job_id"] for row in gateway.sql("SELECT job_id FROM tasks WHERE source_host = 'esx-1'"
                                                 " ORDER BY seq")] == [alone[0], together[0]]
    assert [row["job_id"] for row in gateway.sql("SELECT job_id FROM job_events ORDER BY id")] == \
        [first] + alone + together


def test_each_job_of_a_batch_is_taken_or_refused_alone(gateway, api, provider):
    api.submit(vm_path="x", id="old")
    batch = [{"vm": "a", "id": "a"}, {"vm": "b", "id": "b", "depends_on": ["a", "old"]},
             {"vm": "c", "id": "c", "depends_on": ["nobody"]},
             {"vm": "d", "id": "d", "depends_on": ["c"]},    # refused as well, so not there
             {"vm": "e", "id": "e", "depends_on": ["f"]},    # stands behind it
             {"vm": "f", "id": "f"}, {"vm": "again", "id": "a"}, {"vm": "old", "id": "old"},
             {"vm": "g", "id": "g", "depends_on": ["g"]}, {"vm": "h", "provider": "none"}]
    answer = api.request("POST", "/api/v1/jobs", batch)
    body = answer.json()
    assert answer.status_code == 207 and body["job_ids"] == ["a", "b", "f"]
    faults = {e["index"]: (e["code"], e["error"]) for e in body["errors"]}
    assert {i: code for i, (code, _) in faults.items()} == \
        {2: "invalid", 3: "invalid", 4: "invalid", 6: "conflict", 7: "conflict", 8: "invalid",
         9: "invalid"}
    for index, name in ((2, "'nobody'"), (3, "'c'"), (4, "'f'"), (6, "'a'"), (7, "'old'"), (8, "'g'"),
                        (9, "'none'")):
        assert name in faults[index][1]
    assert gateway.sql("SELECT j.id, vm_path, hold, state, d.jobs FROM jobs j JOIN tasks t ON t.job_id ="
                       " j.id LEFT JOIN LATERAL (SELECT string_agg(on_job, ' ' ORDER BY on_job) AS jobs"
                       " FROM job_dependencies WHERE job_id = j.id) d ON true ORDER BY j.seq") == [
        {"id": "old", "vm_path": "x", "hold": "", "state": "queued", "jobs": None},
        {"id": "a", "vm_path": "a", "hold": "", "state": "queued", "jobs": None},
        {"id": "b", "vm_path": "b", "hold": "depends", "state": "queued", "jobs": "a old"},
        {"id": "f", "vm_path": "f", "hold": "", "state": "queued", "jobs": None}]
    assert len(gateway.sql("SELECT * FROM job_events")) == 4
    answer = api.request("POST", "/api/v1/jobs", {"jobs": batch[2:6], "atomic": True}).json()
    assert answer["accepted"] == 0 and [e["index"] for e in answer["errors"]] == [0, 1, 3]
    # again with a key: what was taken is not made twice, and another body is another request
    key = {"Idempotency-Key": "k"}
    batch = [{"vm": "n"}, {"vm": "o", "depends_on": ["nobody"]}, {"vm": "p", "id": "p", "depends_on": ["f"]}]
    once = api.request("POST", "/api/v1/jobs", batch, headers=key).json()
    again = api.request("POST", "/api/v1/jobs", batch, headers=key).json()
    assert once["job_ids"] == again["job_ids"] and [e["index"] for e in again["errors"]] == [1]
    other = api.request("POST", "/api/v1/jobs", batch[:1] + [{"vm": "q"}], headers=key).json()
    assert [(e["index"], e["code"]) for e in other["errors"]] == [(0, "conflict")]
    assert len(gateway.sql("SELECT * FROM jobs")) == 4 + 2 + 1


def test_own_ids_are_unique(api, provider):
    api.post("/jobs/submit", {"vm": "a", "id": "job.mine_1"}, status=200)
    refused(api.request("POST", "/jobs/submit", {"vm": "a", "id": "job.mine_1"}), 409,
            code="conflict")


def test_the_same_idempotency_key_makes_one_job(gateway, api, provider):
    key = {"Idempotency-Key": "abc"}
    first = api.request("POST", "/api/v1/jobs", {"vm": "a", "verify": False}, headers=key)
    again = api.request("POST", "/api/v1/jobs", b'{"verify":false, "vm":"a"}',
                        headers={**key, "Content-Type": "application/json"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["job_id"] == again.json()["job_id"]
    refused(api.request("POST", "/api/v1/jobs", {"vm": "b"}, headers=key), 409, code="conflict")
    batch = [{"vm": "a"}, {"vm": "b"}]
    key = {"Idempotency-Key": "batch"}
    first = api.post("/jobs/submit", batch, headers=key)
    assert api.post("/jobs/submit", batch, headers=key)["job_ids"] == first["job_ids"]
    assert len(gateway.sql("SELECT * FROM jobs")) == 3
    refused(api.request("POST", "/jobs/submit", {"vm": "a"}, headers={"Idempotency-Key": "x" * 201}),
            400, "Idempotency-Key")


def test_the_default_directory_has_the_inventorys_name(gateway, api, provider):
    inventory(gateway, "web 01")
    job = api.job(api.submit(vm_path="vm-1"))
    assert job["output_path"] == f"{gateway.exports}/web 01"


# ---- query and views ----

def test_query_pages_by_cursor_and_counts(gateway, api, provider):
    ids = [api.submit(vm_path=f"vm{i}") for i in range(7)]
    seen, cursor = [], None
    while True:
        page = api.get("/api/v1/jobs?limit=3" + (f"&cursor={cursor}" if cursor else ""))
        assert page["total"] == 7
        seen += [j["job_id"] for j in page["jobs"]]
        cursor = page.get("next_cursor")
        if not cursor:
            break
    assert seen == ids[::-1]
    oldest = api.get("/api/v1/jobs?limit=2&sort=created_at&offset=1")
    assert [j["job_id"] for j in oldest["jobs"]] == ids[1:3]
    rest = api.get(f"/api/v1/jobs?sort=created_at&cursor={oldest['next_cursor']}")
    assert [j["job_id"] for j in rest["jobs"]] == ids[3:]
    for bad in ("limit=0", "limit=1001", "offset=10001", "sort=name", "cursor=zz", "since=soon",
                "since=2026-02-29", "status=flying", "all=maybe",
                f"cursor={oldest['next_cursor']}"):
        refused(api.request("GET", f"/api/v1/jobs?{bad}"), 400, bad.split("=")[0])


def test_query_filters_alike_by_parameters_and_body(gateway, api, provider):
    ids = {s: api.submit(vm_path=f"{s}-vm") for s in
           ("pending", "running", "paused", "cancelling", "completed", "failed", "cancelled")}
    for status, job in ids.items():
        gateway.sql("UPDATE jobs SET status = %s WHERE id = %s", status, job)

    def both(parameters, body):
        one = api.get(f"/jobs/query?{parameters}")
        two = api.post("/jobs/query", body)
        assert [j["job_id"] for j in one["jobs"]] == [j["job_id"] for j in two["jobs"]]
        assert one["total"] == two["total"] == len(one["jobs"])
        return {j["job_id"] for j in one["jobs"]}

    assert both("status=running", {"status": ["running"]}) == \
        {ids["running"], ids["paused"], ids["cancelling"]}
    assert both("status=paused", {"status": "paused"}) == {ids["paused"]}
    assert both("status=completed,failed", {"status": ["completed", "failed"]}) == \
        {ids["completed"], ids["failed"]}
    assert both("all=true", {"all": True}) == set(ids.values())
    assert both("status=all", {"status": ["all"]}) == set(ids.values())
    assert both("vm=failed-vm", {"vm": "failed-vm"}) == {ids["failed"]}
    assert both("provider=other", {"provider": "other"}) == set()
    assert both(f"job_id={ids['failed']}&job_id={ids['pending']}",
                {"job_ids": [ids["failed"], ids["pending"]]}) == {ids["failed"], ids["pending"]}
    assert both("until=2020-01-01T00:00:00Z", {"until": "2020-01-01T00:00:00Z"}) == set()
    assert both("since=2020-01-01", {"since": "2020-01-01"}) == set(ids.values())
    single = api.get(f"/jobs/query?job_id={ids['paused']}")
    assert (single["job_id"], single["status"]) == (ids["paused"], "running")
    assert single["jobs"][0]["substatus"] == "paused" and single["percentage"] == 0
    refused(api.request("GET", "/jobs/query?job_id=none"), 404, code="not_found")
    refused(api.request("POST", "/jobs/query", {"stauts": []}), 400, "stauts")


RARE_JOBS = """
INSERT INTO jobs (id, provider, vm_path, definition, kind, status)
SELECT s || '-' || lpad(i::text, 2, '0'), 'vsphere', '/DC0/vm/a', '{}',
    CASE WHEN i = 7 THEN 'import' ELSE 'export' END, s
FROM generate_series(1, 12) i, unnest(ARRAY['failed', 'running', 'cancelling', 'pending']) s ORDER BY i, s DESC;
-- the two latest entries at once, else the later the earlier
INSERT INTO jobs (id, provider, vm_path, definition, status, submitted_by, created_at)
SELECT u || '-' || lpad(i::text, 2, '0'), 'vsphere', '/DC0/vm/a', '{}', 'completed', u,
    t::timestamptz + greatest(13 - i, 2) * interval '1 microsecond'
FROM generate_series(1, 12) i, (VALUES ('ana', '2021-01-01Z'), ('bob', '2099-01-01Z')) x(u, t) ORDER BY i;
INSERT INTO jobs (id, provider, vm_path, definition, status)
SELECT 'new-' || i, 'vsphere', '/DC0/vm/b', '{}', 'completed' FROM generate_series(1, 20000) i;
"""


def test_a_list_reads_no_more_than_its_jobs(gateway, api):
    """Few jobs of a state, a user or a time among many others: the same pages, and no passing over the many."""
    def pages(query):
        seen, cursor = [], ""
        while cursor is not None:
            page = api.get(f"/api/v1/jobs?limit=5&{query}" + (f"&cursor={cursor}" if cursor else ""))
            assert page["total"] in (12, 24)
            seen += [j["job_id"] for j in page["jobs"]]
            cursor = page.get("next_cursor")
        return seen

    def work():
        row = gateway.sql("SELECT seq_scan + idx_scan AS scans, seq_tup_read + idx_tup_fetch AS rows"
                          " FROM pg_stat_user_tables WHERE relname = 'jobs'")[0]
        return row["scans"], row["rows"]

    gateway.sql(RARE_JOBS)
    gateway.sql("ANALYZE jobs")
    before = work()
    numbers = [f"{i:02}" for i in range(1, 13)]
    for status in ("failed", "pending", "cancelling"):
        assert pages(f"status={status}&sort=created_at") == [f"{status}-{n}" for n in numbers]
        assert pages(f"status={status}&status={status}") == [f"{status}-{n}" for n in numbers[::-1]]
    by_time = ["11", "12"] + numbers[9::-1]
    for user, time in (("ana", "until=2022-01-01"), ("bob", "since=2098-01-01")):
        assert pages(f"submitted_by={user}&sort=created_at") == [f"{user}-{n}" for n in numbers]
        assert pages(f"submitted_by={user}") == [f"{user}-{n}" for n in numbers[::-1]]
        assert pages(f"{time}&sort=created_at") == [f"{user}-{n}" for n in by_time]
        assert pages(time) == [f"{user}-{n}" for n in by_time[::-1]]
    assert pages("status=pending&until=2098-01-01") == [f"pending-{n}" for n in numbers[::-1]]
    other = api.get("/api/v1/jobs?limit=5&since=2098-01-01")["next_cursor"]
    refused(api.request("GET", f"/api/v1/jobs?cursor={other}"), 400, "cursor")
    refused(api.request("GET", f"/api/v1/jobs?since=2098-01-01&cursor={other.split('.')[0]}"), 400, "cursor")
    both = [f"{s}-{n}" for n in numbers for s in ("running", "cancelling")]
    assert pages("status=running&sort=created_at") == both
    assert pages("status=running") == both[::-1]
    assert [j["job_id"] for j in api.get("/api/v1/imports?status=failed")["jobs"]] == ["failed-07"]

    def counted():
        """What a connection has read stands in the statistics a second later."""
        assert len(pages("status=running")) == 24 and len(pages("status=failed")) == 12
        assert api.get("/api/v1/imports")["total"] == 4
        return work()[0] - before[0] >= 60
    wait_for(counted)
    scans, rows = (b - a for a, b in zip(before, work()))
    assert rows < 100 * scans


def progress_document(done=5, total=20, **more):
    return {"phase": "exporting", "percentage": 100.0 * done / total, "bytes_transferred": done - 1,
            "bytes_done": done, "total_bytes": total, "rate_bytes_per_second": 1048576,
            "eta_seconds": 65, "limited_by": "source", "updated_at": "2026-03-01T00:00:00.000Z",
            "disks": [{"id": "2000", "file": "web-disk1.vmdk", "bytes": done, "total": total,
                       "percentage": 25.0, "state": "copying"}], **more}


def test_progress_comes_from_redis_then_from_the_row(gateway, api, provider):
    job = api.submit(vm_path="web")
    gateway.sql("UPDATE jobs SET status = 'running', phase = 'exporting', started_at = now(),"
                " progress = %s", json.dumps(progress_document(2)))
    stale = api.get(f"/jobs/progress/{job}")
    assert stale["bytes_done"] == 2 and stale["stale_since"] == "2026-03-01T00:00:00.000Z"
    gateway.redis.command("HSET", f"hypersdk:progress:{job}", "json",
                          json.dumps(progress_document(5)))
    live = api.get(f"/jobs/progress/{job}")
    assert "stale_since" not in live
    assert live["percentage"] == live["percent_complete"] == 25.0
    assert live["bytes_transferred"] == live["bytes_downloaded"] == 4
    assert (live["total_bytes"], live["files_done"], live["total_files"]) == (20, 0, 1)
    assert live["current_file"] == "web-disk1.vmdk" and live["transfer_rate_mbps"] == 1.0
    assert live["eta_seconds"] == 65 and live["estimated_remaining"] == "1m 5s"
    eta = api.get(f"/jobs/eta/{job}")["eta"]
    assert eta["time_remaining_seconds"] == 65 and eta["bytes_remaining"] == 15
    assert eta["basis"] == "bytes" and eta["estimated_completion"].endswith("Z")
    gateway.redis.stop()
    assert api.get(f"/api/v1/jobs/{job}/progress")["bytes_done"] == 2


def test_unknown_totals_give_nulls(gateway, api, provider):
    job = api.submit(vm_path="web")
    progress = api.get(f"/jobs/progress/{job}")
    assert progress["percentage"] == 0 and progress["bytes_transferred"] == 0
    assert progress["total_bytes"] is None and progress["eta_seconds"] is None
    eta = api.get(f"/jobs/eta/{job}")["eta"]
    assert eta["basis"] == "none" and eta["estimated_completion"] is None
    assert eta["bytes_remaining"] is None


def finish(suite, job):
    result = {"vm_name": "web", "format": "ovf", "method": "folder", "output_path": "/exports/web",
              "files": [{"name": "web.ovf", "size": 10, "sha256": "ab", "type": "ovf"},
                        {"name": "export.json", "size": 3, "type": "record"}],
              "exported_files": ["/exports/web/web.ovf"], "total_size": 13,
              "transferred_bytes": 77, "export": {"id": "exp-1"}}
    suite.sql("UPDATE jobs SET status = 'completed', started_at = now() - interval '900 s',"
              " completed_at = now(), vm_name = 'web', result = %s, progress = %s WHERE id = %s",
              json.dumps(result), json.dumps(progress_document(19)), job)
    suite.sql("INSERT INTO exports (id, job_id, provider, vm_id, vm_name, path, volume, format,"
              " total_size, manifest) VALUES ('exp-1', %s, 'vsphere', 'vm-1', 'web', '/exports/web',"
              " 'vol', 'ovf', 13, '{}')", job)
    suite.sql("INSERT INTO export_disks VALUES ('exp-1', '2000', 'web-disk1.vmdk', 5, 20, 'ab', 'r')")


def test_the_estimate_goes_by_similar_exports(gateway, api, provider):
    inventory(gateway, "web", "db", used_bytes=26)
    finish(gateway, api.submit(vm_path="/DC0/vm/prod/web"))
    job = api.submit(vm_path="/DC0/vm/prod/web")
    eta = api.get(f"/jobs/eta/{job}")["eta"]
    assert (eta["basis"], eta["similar"]) == ("history", {"by": "vm", "jobs": 1})
    assert eta["expected_duration_seconds"] == eta["time_remaining_seconds"] == 900
    assert eta["estimated_completion"] is None  # nobody knows when it begins
    gateway.sql("UPDATE jobs SET status = 'running', started_at = now() - interval '400 s'"
                " WHERE id = %s", job)
    eta = api.get(f"/jobs/eta/{job}")["eta"]
    assert 0 < eta["time_remaining_seconds"] <= 500 and eta["estimated_completion"].endswith("Z")
    gateway.sql("UPDATE jobs SET started_at = now() - interval '4000 s' WHERE id = %s", job)
    assert api.get(f"/jobs/eta/{job}")["eta"]["basis"] == "none"
    other = api.get(f"/jobs/eta/{api.submit(vm_path='db')}")["eta"]  # 13 bytes took 900 s
    assert other["similar"] == {"by": "provider", "jobs": 1}
    assert other["expected_duration_seconds"] == 1800
    strange = api.submit(vm_path="db", format="qcow2")
    assert api.get(f"/jobs/eta/{strange}")["eta"]["basis"] == "none"


def test_a_finished_job_shows_result_and_artifacts(gateway, api, provider):
    job = api.submit(vm_path="vm-1", format="ovf")
    finish(gateway, job)
    shown = api.job(job)
    assert shown["status"] == "completed" and shown["vm_name"] == "web"
    assert shown["method"] == "folder" and "export" not in shown["result"]
    assert shown["progress"]["percentage"] == 100 and shown["progress"]["bytes_transferred"] == 77
    assert shown["progress"]["elapsed_seconds"] == 900 and shown["progress"]["eta_seconds"] is None
    artifacts = api.get(f"/api/v1/jobs/{job}/artifacts")
    assert artifacts["artifacts"][0] == {"name": "web.ovf", "size": 10, "sha256": "ab",
                                         "type": "ovf", "path": "/exports/web/web.ovf"}
    assert artifacts["artifacts"][1]["sha256"] is None and artifacts["total_size"] == 13
    assert artifacts["export"]["id"] == "exp-1"
    assert artifacts["export"]["disks"][0]["root"] == "r"


def test_logs_as_json_and_text_under_filters(gateway, api, provider):
    job = api.submit(vm_path="web")
    for i, level in enumerate(["debug", "info", "warn", "error"] * 3):
        gateway.sql("INSERT INTO job_logs (job_id, at, level, phase, message) VALUES (%s,"
                    " timestamptz '2026-03-01' + %s * interval '1 min', %s, 'exporting', %s)",
                    job, i, level, f"line {i}")
    logs = api.get(f"/jobs/logs/{job}")
    assert logs["log_count"] == 12 and logs["logs"][0]["message"] == "line 0"
    assert [x["message"] for x in api.get(f"/jobs/logs/{job}?tail=2")["logs"]] == \
        ["line 10", "line 11"]
    assert len(api.get(f"/jobs/logs/{job}?level=warn")["logs"]) == 6
    assert len(api.get(f"/jobs/logs/{job}?since=2026-03-01T00:10:00Z")["logs"]) == 2
    text = api.request("GET", f"/jobs/logs/{job}?tail=1", headers={"Accept": "text/plain"})
    assert text.headers["Content-Type"].startswith("text/plain")
    assert text.text == "2026-03-01T00:11:00.000Z error [exporting] line 11\n"
    for bad in ("tail=x", "tail=10001", "level=loud", "since=yesterday", "follow=maybe"):
        refused(api.request("GET", f"/jobs/logs/{job}?{bad}"), 400, bad.split("=")[0])
    refused(api.request("GET", "/jobs/logs/none"), 404)


def test_followed_logs_end_with_the_job(gateway, api, provider):
    job = api.submit(vm_path="web")
    gateway.sql("INSERT INTO job_logs (job_id, at, level, message) VALUES (%s, now(), 'info', 'one')",
                job)
    lines = []

    def follow():
        answer = api.request("GET", f"/jobs/logs/{job}?follow=true", stream=True,
                             headers={"Accept": "text/plain"})
        lines.extend(answer.iter_lines())
        lines.append(b"end")
    thread = threading.Thread(target=follow)
    thread.start()
    wait_for(lambda: lines)
    gateway.sql("INSERT INTO job_logs (job_id, at, level, message) VALUES (%s, now(), 'info', 'two')",
                job)
    gateway.sql("UPDATE jobs SET status = 'failed', completed_at = now() WHERE id = %s", job)
    thread.join(60)
    assert [x.split()[-1] for x in lines] == [b"one", b"two", b"end"]


def test_history_and_stats(gateway, api, provider):
    job = api.submit(vm_path="web")
    gateway.sql("INSERT INTO job_events (job_id, event, status, actor, detail)"
                " VALUES (%s, 'job.started', 'running', 'w1', '{\"n\": 1}')", job)
    events = api.get(f"/api/v1/jobs/{job}/history")["history"]
    assert [e["event"] for e in events] == ["job.created", "job.started"]
    assert events[1]["detail"] == {"n": 1} and events[1]["actor"] == "w1"
    gateway.sql("UPDATE jobs SET status = 'paused'")
    gateway.sql("INSERT INTO metric_totals (name, value) VALUES"
                " ('hypersdk_bytes_exported_total', 9), ('hypersdk_vms_exported_total', 2)")
    stats = api.get("/jobs/stats")
    assert (stats["total_jobs"], stats["running_jobs"], stats["pending_jobs"]) == (1, 1, 0)
    assert (stats["bytes_exported"], stats["vms_exported"]) == (9, 2)


# ---- cancel, retry ----

def test_cancel_one_and_many(gateway, api, provider):
    a, b, c = (api.submit(vm_path=n) for n in "abc")
    gateway.sql("UPDATE jobs SET status = 'completed' WHERE id = %s", c)
    answer = api.post("/jobs/cancel", {"job_ids": [a, c, "none"], "reason": "no room",
                                       "discard": True}, status=200)
    assert answer["cancelled"] == [a] and answer["failed"] == [c, "none"]
    assert set(answer["errors"]) == {c, "none"}
    row = gateway.sql("SELECT * FROM jobs WHERE id = %s", a)[0]
    assert (row["status"], row["cancel_reason"], row["cancel_discard"]) == \
        ("cancelled", "no room", True)
    assert api.post(f"/api/v1/jobs/{b}/cancel", status=200)["cancelled"] == [b]
    refused(api.request("POST", f"/api/v1/jobs/{b}/cancel", {}), 409)
    refused(api.request("POST", "/api/v1/jobs/none/cancel", {}), 404)
    refused(api.request("POST", "/jobs/cancel", {}), 400, "job_ids")
    refused(api.request("POST", "/jobs/cancel", {"job_ids": [a], "why": 1}), 400, "why")
    d = api.submit(vm_path="d")
    assert api.post(f"/jobs/cancel?id={d}")["cancelled"] == [d]


def test_retry_of_failed_jobs_only(gateway, api, provider):
    job = api.submit(vm_path="a")
    refused(api.request("POST", f"/api/v1/jobs/{job}/retry", {}), 409)
    gateway.sql("UPDATE jobs SET status = 'failed'")
    gateway.sql("UPDATE tasks SET state = 'failed'")
    assert api.post(f"/api/v1/jobs/{job}/retry", status=202)["status"] == "pending"
    assert gateway.sql("SELECT status FROM jobs")[0]["status"] == "pending"
    refused(api.request("POST", f"/api/v1/jobs/{job}/retry", {"x": 1}), 400)
    refused(api.request("POST", "/api/v1/jobs/none/retry", {}), 404)


# ---- VMs ----

def test_the_short_list_is_a_bare_array_with_headers(gateway, api, provider):
    inventory(gateway, "a", "b", "c")
    answer = api.request("POST", "/vms/list", {"provider": "vsphere"})
    assert [v["name"] for v in answer.json()] == ["a", "b", "c"]
    assert answer.json()[0]["provider"] == "vsphere" and answer.headers["X-Total-Count"] == "3"
    page = api.request("GET", "/vms/list?limit=2")
    assert len(page.json()) == 2
    rest = api.request("GET", f"/vms/list?limit=2&cursor={page.headers['X-Next-Cursor']}")
    assert [v["name"] for v in rest.json()] == ["c"] and "X-Next-Cursor" not in rest.headers
    body = api.request("GET", "/vms/list", headers={"Accept": OBJECT}).json()
    assert body["total"] == 3 and len(body["vms"]) == 3
    body = api.get("/api/v1/vms?limit=1&offset=1")
    assert [v["name"] for v in body["vms"]] == ["b"] and body["total"] == 3
    refused(api.request("GET", "/api/v1/vms?cursor=00ff"), 400, "cursor")


@pytest.mark.parametrize("filter, names", [
    ({"name": "web-*"}, ["web-01", "web-02"]),
    ({"name": "w?b-01"}, ["web-01"]),
    ({"name": "web%"}, []),
    ({"name": "100%_sure"}, ["100%_sure"]),
    ({"folder": "/DC0/vm/prod"}, ["100%_sure", "web-01", "web-02"]),
    ({"folder": "prod"}, ["100%_sure", "web-01", "web-02"]),
    ({"folder": "pro"}, []),
    ({"datacenter": "DC1"}, []),
    ({"power_state": "poweredOff"}, []),
    ({"min_memory_mb": 2048}, ["100%_sure", "web-02"]),
    ({"min_cpus": 3}, ["100%_sure"]),
])
def test_list_filters(gateway, api, provider, filter, names):
    inventory(gateway, "web-01", "web-02", "100%_sure")
    found = api.post("/vms/list", {"filter": filter})
    assert sorted(v["name"] for v in found) == names
    assert sorted(v["name"] for v in api.request("GET", "/vms/list", params=filter).json()) == names


def test_list_refusals(api, provider):
    refused(api.request("POST", "/vms/list", {"provider": "nowhere"}), 422, "provider")
    refused(api.request("POST", "/vms/list", {"filter": {"power_state": "on"}}), 400)
    refused(api.request("POST", "/vms/list", {"filter": {"tags": [""]}}), 400, "filter.tags")
    refused(api.request("POST", "/vms/list", {"password": SECRET}), 400, "password")


def test_a_missing_or_old_inventory_is_read_first(gateway, api, provider, make_workers):
    def scan(spec, task):
        inventory(gateway, f"vm-of-{task['id'][:5]}", generation=task["id"])
        return {"count": 1}
    workers = make_workers(inventory=scan)
    first = api.get("/api/v1/vms")
    assert first["total"] == 1 and "stale_since" not in first
    task = gateway.sql("SELECT * FROM tasks")[0]
    assert (task["class"], task["role"], task["provider_kind"], task["provider"]) == \
        ("control", "exporter", "vsphere", "vsphere")
    assert task["expires_at"] is not None
    api.get("/api/v1/vms")
    assert len(workers.seen) == 1
    api.get("/api/v1/vms?refresh=true")
    assert len(workers.seen) == 2
    gateway.sql("UPDATE inventory_state SET completed_at = now() - interval '1 h'")
    api.get("/api/v1/vms")
    assert len(workers.seen) == 3


def test_an_old_list_is_better_than_none(gateway, api, provider, make_workers):
    make_workers(inventory=lambda *_: ("unavailable", "vCenter does not answer"))
    refused(api.request("GET", "/api/v1/vms"), 503, code="unavailable", text="vCenter")
    inventory(gateway, "a")
    gateway.sql("UPDATE inventory_state SET completed_at = now() - interval '1 h'")
    old = api.get("/api/v1/vms")
    assert old["total"] == 1 and old["stale_since"]
    refused(api.request("GET", "/api/v1/vms?refresh=1"), 503)


def test_info_asks_the_source(gateway, api, provider, make_workers):
    make_workers(vm_info=lambda spec, _: {"vm": {"id": "vm-1", "name": spec["vm"], "path": "/x"}})
    for answer in (api.post("/vms/info", {"vm_path": "web"}, status=200),
                   api.get("/vms/info?vm=web", status=200), api.get("/api/v1/vms/web", status=200)):
        assert answer["success"] is True and answer["vm_info"]["name"] == "web"
    assert api.get("/api/v1/vms/%2FDC0%2Fvm%2Fweb")["vm_info"]["name"] == "/DC0/vm/web"
    refused(api.request("POST", "/vms/info", {}), 400, "vm_path")


def test_unknown_and_ambiguous_vms_come_with_candidates(gateway, api, provider, make_workers):
    inventory(gateway, "web-01", "web-02", "db")
    make_workers(vm_info=lambda spec, _: ("not_found", f"no VM '{spec['vm']}'"))
    body = refused(api.request("POST", "/vms/info", {"vm": "web"}), 422, "vm_path", "not_found")
    assert [c["name"] for c in body["candidates"]] == ["web-01", "web-02"]


def test_a_task_that_takes_long_answers_202_and_can_be_asked_for(gateway, api, provider):
    answer = api.request("POST", "/vms/info", {"vm": "web", "wait": False})
    assert answer.status_code == 202
    task = answer.json()["task_id"]
    assert answer.headers["Location"] == f"/api/v1/tasks/{task}"
    assert api.get(f"/api/v1/tasks/{task}")["state"] == "queued"
    gateway.sql("UPDATE tasks SET state = 'done', result = '{\"vm\": {}}'")
    assert api.get(f"/api/v1/tasks/{task}")["result"] == {"vm": {}}
    assert api.request("POST", "/vms/info", {"vm": "web", "timeout": "100ms"}).status_code == 202
    refused(api.request("GET", "/api/v1/tasks/none"), 404)


# ---- providers ----

def test_add_show_change_and_remove_a_provider(gateway, api):
    answer = api.request("POST", "/api/v1/providers", {
        "name": "east", "kind": "vsphere", "host": "vc", "username": "u", "password": SECRET})
    assert answer.status_code == 201 and answer.headers["Location"] == "/api/v1/providers/east"
    body = answer.json()
    assert body["settings"] == {"host": "vc", "username": "u"} and body["origin"] == "api"
    assert body["credentials"]["key_id"] and body["enabled"] is True
    before = bytes(gateway.sql("SELECT sealed FROM credentials")[0]["sealed"])
    assert gateway.sql("SELECT audience FROM credentials")[0]["audience"] == "provider:vsphere"
    refused(api.request("POST", "/providers/add", {"name": "east", "kind": "vsphere", "host": "x"}),
            409, code="conflict")
    changed = api.put("/api/v1/providers/east", {"settings": {
        "host": "vc", "username": "u", "timeout": "10s"}, "enabled": False})
    assert changed["settings"]["timeout"] == "10s" and changed["enabled"] is False
    assert bytes(gateway.sql("SELECT sealed FROM credentials")[0]["sealed"]) == before
    refused(api.request("PUT", "/api/v1/providers/east", {"host": "evil", "username": "u"}), 422,
            "host", text="password")
    api.put("/api/v1/providers/east", {"host": "other", "username": "u", "password": "new"})
    assert bytes(gateway.sql("SELECT sealed FROM credentials")[0]["sealed"]) != before
    assert [p["name"] for p in api.get("/providers/list")["providers"]] == ["east"]
    api.put("/api/v1/providers/east", {"host": "other", "username": "u"})
    job = api.submit(vm_path="a", provider="east")
    refused(api.request("DELETE", "/api/v1/providers/east"), 409, code="conflict")
    api.post("/jobs/cancel", {"job_ids": [job]})
    api.delete("/api/v1/providers/east", status=200)
    assert gateway.sql("SELECT * FROM providers") == gateway.sql("SELECT * FROM credentials") == []
    refused(api.request("GET", "/api/v1/providers/east"), 404)


@pytest.mark.parametrize("body, status, field, code", [
    ({"host": "x"}, 400, "name", "invalid"),
    ({"name": "Bad Name", "kind": "vsphere"}, 400, "name", "invalid"),
    ({"name": "x", "host": "x"}, 400, "kind", "invalid"),
    ({"name": "x", "kind": "vspere"}, 400, "kind", "invalid"),
    ({"kind": "aws"}, 422, "kind", "not_available"),
    ({"kind": "vsphere", "hots": "x"}, 400, "hots", "invalid"),
    ({"kind": "vsphere", "host": ["x"]}, 400, "host", "invalid"),
    ({"kind": "vsphere", "host": "https://u:p@vc"}, 400, "host", "invalid"),
    ({"kind": "vsphere", "password_file": "/etc/shadow"}, 400, "password_file", "invalid"),
    ({"kind": "vsphere", "enabled": "yes"}, 400, "enabled", "invalid"),
    ({"kind": "vsphere", "host": "a", "settings": {"host": "b"}}, 400, "host", "invalid"),
])
def test_refused_providers(gateway, api, body, status, field, code):
    refused(api.request("POST", "/api/v1/providers", body), status, field, code)
    assert gateway.sql("SELECT * FROM providers") == []


def test_validate_runs_a_check(gateway, api, provider, make_workers):
    facts = {"valid": True, "reachable": True, "authenticated": True, "latency_ms": 4,
             "version": "8.0.2", "permissions_missing": [], "error": ""}
    workers = make_workers(validate=lambda *_: facts)
    answer = api.post("/providers/validate", {"provider": "vsphere"}, status=200)
    assert answer["valid"] is True and answer["provider"] == "vsphere"
    assert answer["version"] == "8.0.2" and workers.seen[0]["spec"] == {}
    assert api.post("/api/v1/providers/vsphere/validate")["valid"] is True
    api.post("/providers/validate", {"config": {"host": "new", "password": "p2"}})
    spec = workers.seen[-1]["spec"]
    assert spec["settings"] == {"host": "new", "username": "u"}
    assert len(bytes.fromhex(spec["sealed_secrets_hex"])) > 40
    api.post("/providers/validate", {"config": {"timeout": "5s"}})
    assert workers.seen[-1]["spec"]["sealed_secrets_hex"] == \
        bytes(gateway.sql("SELECT sealed FROM credentials")[0]["sealed"]).hex()
    count = len(workers.seen)
    refused(api.request("POST", "/providers/validate", {"config": {"host": "evil"}}), 422, "host")
    refused(api.request("POST", "/providers/validate", {"config": {"hots": "x"}}), 400, "hots")
    refused(api.request("POST", "/providers/validate", {"provider": "none"}), 422, "provider")
    assert len(workers.seen) == count


def test_a_check_that_finds_settings_or_login_bad_is_an_answer(api, provider, make_workers):
    make_workers(validate=lambda *_: ("denied", "login refused"))
    answer = api.post("/providers/validate", {}, status=200)
    assert answer["valid"] is False and answer["error"] == "login refused"


# ---- rights ----

def login(suite, username, password):
    session = requests.post(suite.url() + "/api/login",
                            json={"username": username, "password": password}, timeout=60)
    assert session.ok, session.text
    return Client(suite.url(), token=session.json()["token"])


@pytest.fixture
def roles(make_gateway):
    """(suite, {role: client}) with login."""
    suite = make_gateway(dev=False)
    admin = login(suite, "admin", admin_password(suite))
    clients = {"admin": admin}
    for name, role in (("op1", "operator"), ("op2", "operator"), ("eve", "viewer")):
        admin.post("/api/v1/users", {"username": name, "password": f"{name}-password-1",
                                     "roles": [role]}, status=201)
        clients[name] = login(suite, name, f"{name}-password-1")
    admin.post("/api/v1/providers", {"kind": "vsphere", "host": "vc", "password": SECRET})
    return suite, clients


def test_operators_cancel_their_own_jobs_only(roles):
    suite, who = roles
    job = who["op1"].submit(vm_path="a")
    assert who["eve"].job(job)["submitted_by"] == "op1"
    refused(who["op2"].request("POST", f"/api/v1/jobs/{job}/cancel", {}), 403, code="denied")
    answer = who["op2"].post("/jobs/cancel", {"job_ids": [job]})
    assert answer["failed"] == [job] and "job.cancel" in answer["errors"][job]
    assert who["op1"].post("/jobs/cancel", {"job_ids": [job]})["cancelled"] == [job]
    other = who["op2"].submit(vm_path="b")
    assert who["admin"].post(f"/api/v1/jobs/{other}/cancel")["cancelled"] == [other]
    refused(who["eve"].request("POST", "/jobs/submit", {"vm": "a"}), 403)
    refused(who["op1"].request("POST", "/api/v1/providers", {"kind": "vsphere"}), 403)
    refused(who["op1"].request("POST", "/providers/validate", {"config": {"timeout": "1s"}}), 403)


def test_deadlines_and_dependencies_are_checked_and_stored(roles):
    suite, who = roles
    first = who["op1"].submit(vm_path="a", deadline="2031-03-01T02:00:00+01:00")
    second = who["op1"].submit(vm_path="b", depends_on=[
        first, {"job_id": first, "required_state": "final", "timeout": "1h"}])
    row = suite.sql("SELECT deadline = '2031-03-01T01:00:00Z' AS d FROM jobs WHERE id = %s", first)
    assert row == [{"d": True}]
    needs = suite.sql("SELECT on_job, required FROM job_dependencies WHERE job_id = %s", second)
    assert needs == [{"on_job": first, "required": "completed"}]
    assert suite.sql("SELECT hold FROM tasks WHERE job_id = %s", second) == [{"hold": "depends"}]
    for fields, field in (({"deadline": "tomorrow"}, "deadline"),
                          ({"deadline": "2031-02-30T00:00:00Z"}, "deadline"),
                          ({"depends_on": [7]}, "depends_on"),
                          ({"depends_on": [{"state": "final"}]}, "depends_on.job_id"),
                          ({"depends_on": [{"job_id": first, "state": "done"}]},
                           "depends_on.required_state")):
        body = dict(fields, vm_path="x")
        assert refused(who["op1"].request("POST", "/api/v1/jobs", body), 400)["field"] == field
    answer = refused(who["op1"].request("POST", "/api/v1/jobs",
                                        {"vm_path": "x", "depends_on": ["none"]}), 400)
    assert "job 'none' does not exist" in answer["error"]


def test_who_may_hold_and_delete_jobs(roles):
    suite, who = roles
    job = who["op1"].submit(vm_path="a")
    for action in ("pause", "resume"):
        refused(who["op2"].request("POST", f"/api/v1/jobs/{job}/{action}", {}), 403, code="denied")
        refused(who["op1"].request("POST", f"/api/v1/jobs/none/{action}", {}), 404)
    refused(who["op1"].request("POST", f"/api/v1/jobs/{job}/pause", {"reasons": "x"}), 400)
    answer = who["op1"].post(f"/api/v1/jobs/{job}/pause", {"reason": "freeze"})
    assert (answer["status"], answer["substatus"]) == ("running", "paused")
    assert who["eve"].job(job)["pending_reason"] == "paused by op1: freeze"
    refused(who["op1"].request("POST", f"/api/v1/jobs/{job}/pause", {}), 409)
    assert who["admin"].post(f"/api/v1/jobs/{job}/resume")["status"] == "pending"
    refused(who["op1"].request("POST", f"/api/v1/jobs/{job}/resume"), 409)
    refused(who["op1"].request("DELETE", f"/api/v1/jobs/{job}"), 403)
    refused(who["admin"].request("DELETE", f"/api/v1/jobs/{job}"), 409)
    who["op1"].post(f"/api/v1/jobs/{job}/cancel")
    refused(who["op1"].request("POST", f"/api/v1/jobs/{job}/pause", {}), 409)
    assert who["admin"].delete(f"/api/v1/jobs/{job}")["deleted"] == job
    refused(who["eve"].request("GET", f"/api/v1/jobs/{job}"), 404)
    for table in ("tasks", "job_events"):
        assert suite.sql(f"SELECT 1 FROM {table} WHERE job_id = %s", job) == []


def test_who_may_hold_the_queue_and_drain_workers(roles):
    suite, who = roles
    suite.sql("INSERT INTO workers (instance, role, provider) VALUES ('w1', 'exporter', 'vsphere')")
    for path in ("queue/pause", "queue/resume", "workers/w1/drain", "workers/w1/resume"):
        refused(who["op1"].request("POST", f"/api/v1/{path}"), 403)
    assert who["eve"].get("/api/v1/queue")["paused"] is False
    assert who["admin"].post("/api/v1/queue/pause", {"reason": "x"})["paused_by"] == "admin"
    refused(who["admin"].request("POST", "/api/v1/queue/pause", {"why": "x"}), 400)
    assert who["eve"].get("/status")["queue"]["paused"] is True
    assert who["admin"].post("/api/v1/queue/resume")["paused"] is False
    assert who["admin"].post("/api/v1/workers/w1/drain")["drained"] is True
    assert who["eve"].get("/status")["workers"]["list"][0]["state"] == "drained"
    assert who["admin"].post("/api/v1/workers/w1/resume")["drained"] is False
    refused(who["admin"].request("POST", "/api/v1/workers/w1/resume"), 409)
    suite.sql("UPDATE workers SET state = 'down'")
    assert "is down" in refused(who["admin"].request("POST", "/api/v1/workers/w1/drain"), 409)["error"]


def test_a_job_that_removes_exports_needs_the_right_to(roles):
    suite, who = roles
    answer = refused(who["op1"].request("POST", "/api/v1/jobs", {"vm": "a", "cleanup": {"max_count": 3}}), 403)
    assert answer["field"] == "cleanup" and "job.delete" in answer["error"]
    job = who["admin"].submit(vm_path="a", cleanup={"max_age": "30d", "max_count": 3})
    spec = suite.sql("SELECT spec->'cleanup' AS c FROM tasks WHERE job_id = %s", job)[0]["c"]
    assert spec["max_age_ms"] == 30 * 86400000 and spec["max_count"] == 3 and spec["dir"].startswith("/")


def test_submitting_needs_vm_export_too(roles):
    suite, who = roles
    suite.sql("UPDATE roles SET permissions = array_remove(permissions, 'vm.export')"
              " WHERE name = 'operator'")
    body = refused(login(suite, "op1", "op1-password-1").request("POST", "/jobs/submit",
                                                                 {"vm": "a"}), 403)
    assert "vm.export" in body["error"]


# ---- configuration ----

def test_providers_and_webhooks_of_the_file_become_rows(make_gateway, tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_PASSWORD", SECRET)
    secret = tmp_path / "vc.password"
    secret.write_text(SECRET + "\n")
    config = {"providers": {
        "vsphere": {"enabled": True, "host": "vcenter.example.com", "username": "admin@vsphere.local",
                    "password_file": str(secret)},
        "lab": {"kind": "vsphere", "host": "lab", "username": "x", "password": "${LAB_PASSWORD}",
                "enabled": False}},
        "webhooks": {"endpoints": [
            {"url": "https://hooks.example.com/in", "events": ["job.completed", "job.failed"],
             "headers": {"Authorization": f"Bearer {SECRET}"}, "secret": SECRET},
            {"url": "https://app.example.com/done", "events": ["job.completed"], "retry": 5,
             "timeout": "3s"}]}}
    gateway = make_gateway(config=config)
    api = gateway.client
    wait_for(lambda: len(api.get("/providers/list")["providers"]) == 2
             == gateway.sql("SELECT count(*) AS n FROM webhooks")[0]["n"])
    rows = {p["name"]: p for p in api.get("/providers/list")["providers"]}
    assert rows["vsphere"]["origin"] == "config"
    assert rows["vsphere"]["settings"] == {"host": "vcenter.example.com",
                                           "username": "admin@vsphere.local"}
    assert rows["lab"]["enabled"] is False and rows["lab"]["credentials"]["key_id"]
    hooks = {w["url"]: w for w in gateway.sql("SELECT * FROM webhooks")}
    assert hooks["https://hooks.example.com/in"]["headers"] == {"Authorization": "***"}
    assert hooks["https://hooks.example.com/in"]["sealed"] is not None
    assert hooks["https://app.example.com/done"]["retry"] == 5
    assert hooks["https://app.example.com/done"]["timeout_ms"] == 3000
    refused(api.request("DELETE", "/api/v1/providers/lab"), 409)
    refused(api.request("PUT", "/api/v1/providers/lab", {"host": "x"}), 409)
    job = api.submit(vm_path="a")

    # another start with the same file changes nothing
    before = gateway.sql("SELECT * FROM credentials ORDER BY 1"), gateway.sql(
        "SELECT * FROM providers ORDER BY 1"), {w["id"] for w in hooks.values()}
    gateway["api-gateway"].restart()
    gateway.wait_ready()
    gateway["api-gateway"].signal(1)
    gateway["api-gateway"].wait_event("config_reloaded")
    assert before == (gateway.sql("SELECT * FROM credentials ORDER BY 1"),
                      gateway.sql("SELECT * FROM providers ORDER BY 1"),
                      {w["id"] for w in gateway.sql("SELECT id FROM webhooks")})

    # a wrong file changes nothing, a right one is taken
    gateway.overrides["providers"] = {"lab": {"kind": "vsphere", "hots": "x"}}
    gateway.write_config("api-gateway")
    gateway["api-gateway"].signal(1)
    gateway["api-gateway"].wait_event("config_reload_failed")
    assert len(gateway.sql("SELECT * FROM providers")) == 2
    gateway.overrides["providers"] = {"new": {"kind": "vsphere", "host": "n"}}
    gateway.overrides["webhooks"] = {"endpoints": []}
    gateway.write_config("api-gateway")
    gateway["api-gateway"].signal(1)
    wait_for(lambda: gateway.sql("SELECT 1 FROM providers WHERE name = 'new'")
             and not gateway.sql("SELECT 1 FROM webhooks"))
    rows = gateway.sql("SELECT name, enabled FROM providers ORDER BY 1")
    # a provider with an unfinished job is only switched off
    assert [(r["name"], r["enabled"]) for r in rows] == [("new", True), ("vsphere", False)]
    assert gateway.sql("SELECT * FROM webhooks") == [] and api.job(job)["status"] == "pending"


@pytest.mark.parametrize("section, text", [
    ({"providers": {"vsphere": {"kind": "aws"}}}, "not available"),
    ({"providers": {"Big": {"kind": "vsphere"}}}, "a name has"),
    ({"providers": {"vsphere": {"password_file": "/nonexistent/x"}}}, "password_file"),
    ({"webhooks": {"endpoints": [{"url": "ftp://x"}]}}, "http"),
    ({"webhooks": {"endpoints": [{"url": "https://u:p@x/"}]}}, "user name"),
    ({"webhooks": {"endpoints": [{"url": "https://x/", "events": ["job.complete"]}]}},
     "did you mean job.completed"),
    ({"webhooks": {"endpoints": [{"url": "https://x/", "events": ["vm.discovered"]}]}},
     "is not sent"),
    ({"webhooks": {"endpoints": [{"url": "https://x/", "headers": {"A b": "c"}}]}}, "header name"),
])
def test_check_config_finds_wrong_sections(make_suite, section, text):
    suite = make_suite(services=["api-gateway"], start=False)
    suite.overrides = section
    path = suite.write_config("api-gateway")
    done = subprocess.run([BIN / "api-gateway", "--config", path, "--check-config"],
                          capture_output=True, text=True)
    assert done.returncode == 64 and text in done.stderr + done.stdout, done.stderr


# ---- secrets ----

def test_secrets_are_nowhere(make_gateway):
    gateway = make_gateway(config={
        "providers": {"lab": {"kind": "vsphere", "host": "lab", "password": SECRET}},
        "webhooks": {"endpoints": [{"url": "https://x.example/", "secret": SECRET,
                                    "headers": {"X-Token": SECRET}}]}})
    api = gateway.client
    wait_for(lambda: gateway.sql("SELECT 1 FROM webhooks"))
    answers = []

    def call(method, path, body=None, **kwargs):
        answers.append(api.request(method, path, body, **kwargs).text)
    call("POST", "/api/v1/providers", {"kind": "vsphere", "host": "vc", "password": SECRET})
    call("PUT", "/api/v1/providers/vsphere", {"host": "vc2", "password": SECRET})
    call("POST", "/providers/add", {"name": "bad", "kind": "vsphere", "password": SECRET, "x": 1})
    call("POST", "/providers/add", {"name": "bad", "kind": "vsphere", "password": {"a": SECRET}})
    call("POST", "/jobs/submit", {"vm": "a", "metadata": {"password": SECRET, "d": {"token": SECRET}}})
    call("POST", "/jobs/submit", {"vm": "a", "vcenter": {"password": SECRET}})
    call("POST", "/vms/list", {"password": SECRET})
    task = threading.Thread(target=call, args=("POST", "/providers/validate",
                                               {"config": {"host": "n", "password": SECRET}}))
    task.start()
    wait_for(lambda: gateway.sql("UPDATE tasks SET state = 'done', result = '{\"valid\": false}'"
                                 " WHERE kind = 'validate' RETURNING 1"))
    task.join()
    for path in ("/providers/list", "/api/v1/providers/vsphere", "/api/v1/jobs", "/status",
                 "/capabilities", "/audit/logs"):
        call("GET", path)
    gateway["api-gateway"].stop()
    tables = gateway.sql("SELECT table_schema || '.' || table_name AS name FROM"
                         " information_schema.tables WHERE table_schema IN ('public', 'audit')")
    dump = ""
    for table in tables:
        dump += json.dumps(gateway.sql(f"SELECT * FROM {table['name']}"), default=lambda v: (
            bytes(v).hex() if isinstance(v, memoryview) else str(v)))
    assert "lab" in dump and "vc2" in dump
    for text in answers + [dump, gateway["api-gateway"].output()]:
        assert SECRET not in text and SECRET.encode().hex() not in text

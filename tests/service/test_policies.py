"""Backup policies: what is refused, which VMs are taken, and what a run does. Workers are scripted."""
import json

import pytest

from tests.harness.client import Client
from tests.harness.driver import export_result
from tests.harness.scheduler import bench  # noqa: F401
from tests.harness.wait import wait_for

POLICY = {"name": "nightly", "schedule": "0 2 * * *", "vm_filter": {"name": "*"}}
VMS = [("web-1", "/DC0/vm/prod/web-1", "poweredOn", "DC0"),
       ("web_2", "/DC0/vm/prod/web_2", "poweredOff", "DC0"),
       ("scratch-1", "/DC0/vm/prod/scratch-1", "poweredOn", "DC0"),
       ("db%1", "/DC1/vm/db%1", "poweredOn", "DC1")]


@pytest.fixture
def policies(bench):  # noqa: F811
    b = bench()
    b.suite.add("api-gateway")
    wait_for(lambda: b.suite.ready("api-gateway"), what=b.suite.tails)
    b.api = Client(b.suite.url())
    return b


def inventory(b, vms=VMS):
    for i, (name, path, power, datacenter) in enumerate(vms):
        b.sql("INSERT INTO inventory_vms (provider, id, generation, name, path, power_state, vm)"
              " VALUES ('vsphere', %s, 'g', %s, %s, %s, %s) ON CONFLICT DO NOTHING", f"vm-{i}", name,
              path, power, json.dumps({"name": name, "datacenter": datacenter}))
    b.sql("INSERT INTO inventory_state (provider, generation, completed_at) VALUES ('vsphere', 'g',"
          " now()) ON CONFLICT (provider) DO UPDATE SET completed_at ="
          " excluded.completed_at")


BAD = [
    ({"vm_filter": None}, 400, "'vm_filter' is missing"),
    ({"vm_filter": {}}, 422, "\"name\": \"*\" takes all"),
    ({"vm_filter": {"nam": "x"}}, 400, "did you mean 'vm_filter.name'"),
    ({"vm_filter": {"power_state": "on"}}, 400, "poweredOn"),
    ({"vm_filter": {"tags": ["production"]}}, 422, "tags of 'db%1': it was read before tags were"),
    ({"vm_filter": {"tags": []}}, 422, "\"name\": \"*\" takes all"),
    ({"vm_filter": {"tags": [7]}}, 400, "'vm_filter.tags' must be names"),
    ({"vm_filter": {"tags": {"env": []}}}, 400, "a category without a name"),
    ({"vm_filter": {"tags": 7}}, 400, "a list of names"),
    ({"vm_filter": {"cluster": "C0"}}, 422, "knows no cluster of any VM"),
    ({"vm_filter": {"name": "*", "provider": "nowhere"}}, 422, "nowhere"),
    ({"schedule": "0 2 * *"}, 400, "schedule"),
    ({"export_options": {"vm_path": "x"}}, 422, "named by 'vm_filter'"),
    ({"export_options": {"format": "zip"}}, 400, "'zip' is not known"),
    ({"export_options": {"encrypt": {"passphrase": "many words"}}}, 422, "keeps no secrets"),
    ({"hyper2kvm_integration": {"enabled": True, "target_format": "x"}}, 400, "'x' is not known"),
    ({"max_parallel": 0}, 400, "max_parallel"),
]


def test_what_is_wrong_is_refused_and_named(policies):
    inventory(policies)
    for change, status, text in BAD:
        answer = policies.api.post("/api/v1/backup-policies", dict(POLICY, **change), status=status)
        assert text in answer["error"], (change, answer)
    assert policies.api.get("/backup-policies/list")["policies"] == []
    policies.api.get("/api/v1/backup-policies/pol-none", status=404)


FILTERS = [
    ({"name": "*"}, ["web-1", "web_2", "scratch-1", "db%1"]),
    ({"name": "web?*"}, ["web-1", "web_2"]),
    ({"name": "web_2"}, ["web_2"]),
    ({"name": "db%1"}, ["db%1"]),
    ({"name": "%"}, []),
    ({"folder": "/DC0/vm/prod"}, ["web-1", "web_2", "scratch-1"]),
    ({"folder": "prod"}, ["web-1", "web_2", "scratch-1"]),
    ({"folder": "pro"}, []),
    ({"datacenter": "DC1"}, ["db%1"]),
    ({"power_state": "poweredOff"}, ["web_2"]),
    ({"name": "*", "exclude": ["scratch-*", "d?%1"]}, ["web-1", "web_2"]),
]


def test_a_filter_takes_what_it_says(policies):
    inventory(policies)
    made = policies.api.post("/backup-policies/create", POLICY, status=201)
    assert made["matching_vms"] == 4 and made["next_run"] and made["enabled"]
    path = f"/api/v1/backup-policies/{made['id']}"
    for vm_filter, names in FILTERS:
        policies.api.put(path, {"vm_filter": vm_filter}, status=200)
        shown = policies.api.post(path + "/preview", status=200)
        assert sorted(v["name"] for v in shown["vms"]) == sorted(names), vm_filter
    policies.api.delete(path, status=200)
    policies.api.get(path, status=404)


TAGGED = {"web-1": ({"env": ["production", "pci"], "owner": ["ops"]}, "C0"),
          "web_2": ({"env": ["test"], "owner": ["ops"]}, "C0"),
          "scratch-1": ({"state": ["production"]}, "C1"), "db%1": ({}, "")}

TAG_FILTERS = [
    ({"tags": ["production"]}, ["web-1", "scratch-1"]),
    ({"tags": ["env:production"]}, ["web-1"]),
    ({"tags": ["production", "ops"]}, ["web-1"]),
    ({"tags": "ops"}, ["web-1", "web_2"]),
    ({"tags": "ops,test"}, ["web_2"]),
    ({"tags": {"env": "production"}}, ["web-1"]),
    ({"tags": {"env": ["test", "pci"]}}, ["web-1", "web_2"]),
    ({"tags": {"env": ["test", "pci"], "owner": "dev"}}, []),
    ({"tags": ["Production"]}, []),
    ({"cluster": "C0"}, ["web-1", "web_2"]),
    ({"cluster": "C1", "tags": ["production"]}, ["scratch-1"]),
    ({"cluster": "C"}, []),
]


def tag(b, name, **facts):
    b.sql("UPDATE inventory_vms SET vm = vm || %s::jsonb WHERE name = %s", json.dumps(facts), name)


def test_tags_and_clusters_choose_vms_in_policies_and_lists(policies):
    b = policies
    inventory(b)
    for name, (tags, cluster) in TAGGED.items():
        tag(b, name, tags=tags, cluster=cluster)
    path = "/api/v1/backup-policies/" + b.api.post("/backup-policies/create", POLICY, status=201)["id"]
    for vm_filter, names in TAG_FILTERS:
        b.api.put(path, {"vm_filter": vm_filter}, status=200)
        shown = b.api.post(path + "/preview", status=200)
        assert sorted(v["name"] for v in shown["vms"]) == sorted(names), vm_filter
        listed = b.api.post("/vms/list", {"filter": vm_filter}, status=200)
        assert sorted(v["name"] for v in listed) == sorted(names), vm_filter
    listed = b.api.get("/api/v1/vms?tags=ops,test&cluster=C0", status=200)["vms"]
    assert [v["name"] for v in listed] == ["web_2"] and listed[0]["tags"] == TAGGED["web_2"][0]


def test_tags_that_are_not_known_are_an_error_that_names_the_cause(policies):
    b = policies
    inventory(b)
    for name, (tags, cluster) in TAGGED.items():
        tag(b, name, tags=tags, cluster=cluster)
    made = b.api.post("/api/v1/backup-policies", dict(POLICY, vm_filter={"tags": ["production"]}),
                      status=201)
    assert made["matching_vms"] == 2
    tag(b, "db%1", tags=None, tags_unknown="the REST API of 'https://vc' answers HTTP 503")
    path = f"/api/v1/backup-policies/{made['id']}"
    why = "does not know the tags of 'db%1': the REST API of 'https://vc' answers HTTP 503"
    for refused in (b.api.post(path + "/preview", status=422), b.api.post(path + "/run", status=422),
                    b.api.put(path, {"vm_filter": {"tags": ["x"]}}, status=422),
                    b.api.post("/vms/list", {"filter": {"tags": ["x"]}}, status=422),
                    b.api.post("/api/v1/backup-policies", dict(
                        POLICY, name="other", vm_filter={"tags": ["x"]}), status=422)):
        assert why in refused["error"] and refused["code"] == "not_available"
    shown = b.api.get(path, status=200)
    assert shown["matching_vms"] is None and why in shown["matching_error"]
    b.api.put(path, {"enabled": False}, status=200)
    b.api.put(path, {"enabled": True}, status=200)
    b.sql("UPDATE schedules SET next_run_at = now() - interval '1 second'")
    wait_for(lambda: b.api.get(path)["runs"], what=b.suite.tails)
    run = b.api.get(path)["runs"][0]
    assert run["status"] == "failed" and why in run["reason"] and run["jobs"] == 0
    b.api.post("/vms/list", {"filter": {"cluster": "C0"}}, status=200)


def test_a_policy_fires_over_a_fresh_inventory_and_tells_of_each_vm(policies):
    b = policies
    inventory(b, VMS[:1])
    made = b.api.post("/api/v1/backup-policies", dict(
        POLICY, vm_filter={"name": "web*"}, export_options={"format": "qcow2"}), status=201)
    assert made["matching_vms"] == 1
    b.sql("UPDATE inventory_state SET completed_at = now() - interval '1 hour'")
    b.sql("UPDATE schedules SET next_run_at = now() - interval '1 second'")
    scan = b.driver.take(transfer=False, kinds=["inventory"])
    assert b.sql("SELECT 1 FROM jobs") == [], "it waits for the inventory"
    inventory(b)  # meanwhile web_2 came
    b.driver.finish(scan, {"count": 4})
    wait_for(lambda: len(b.sql("SELECT 1 FROM jobs")) == 2, what=b.suite.tails)
    jobs = b.sql("SELECT * FROM jobs ORDER BY seq")
    assert [j["vm_path"] for j in jobs] == [VMS[0][1], VMS[1][1]]
    assert {j["policy_id"] for j in jobs} == {made["id"]} and {j["format"] for j in jobs} == {"qcow2"}
    assert len({j["output_path"] for j in jobs}) == 2
    b.driver.finish(b.driver.take(), export_result())
    b.driver.on(b.driver.take(), "fail", code="not_found", message="gone", retryable=False)
    path = f"/api/v1/backup-policies/{made['id']}"
    wait_for(lambda: b.api.get(path)["runs"][0]["status"] == "failed", what=b.suite.tails)
    run = b.api.get(path)["runs"][0]
    assert run["jobs"] == 2 and "1 of 2 jobs completed" in run["reason"]
    assert [(r["status"], r["error"]) for r in run["results"]] == [("completed", None),
                                                                  ("failed", "gone")]
    assert [r["job_id"] for r in run["results"]] == [j["id"] for j in jobs]
    again = b.api.post(path + "/run", status=202)
    assert len(again["job_ids"]) == 2
    refused = b.api.post(path + "/run", status=409)
    assert "under way" in refused["error"]
    b.api.put(path, {"vm_filter": {"name": "nothing"}, "overlap": "allow"}, status=200)
    empty = b.api.post(path + "/run", status=409)
    assert "no VM" in empty["error"]


def test_policies_and_schedules_wait_for_each_other(policies):
    b = policies
    inventory(b)
    plan = b.api.post("/schedules", {"name": "first", "cron": "0 0 1 1 *", "job_template": {
        "vm_path": "web"}}, status=201)["schedule"]["id"]
    made = b.api.post("/api/v1/backup-policies", dict(POLICY, vm_filter={"name": "web-1"}, depends_on=[
        {"schedule_id": plan}]), status=201)
    assert made["depends_on"][0]["schedule_id"] == plan
    last = b.api.post("/schedules", {"name": "last", "cron": "0 0 1 1 *", "job_template": {
        "vm_path": "db"}, "depends_on": [{"schedule_id": made["id"]}]}, status=201)["schedule"]["id"]
    b.sql("UPDATE schedules SET next_run_at = date_trunc('second', now())")
    lease = b.driver.take()
    wait_for(lambda: [r["status"] for r in b.sql("SELECT status FROM schedule_runs ORDER BY status")]
             == ["queued", "queued", "running"], what=b.suite.tails)
    b.sql("UPDATE inventory_state SET completed_at = now() - interval '1 hour'")
    b.driver.finish(lease, export_result())
    # the VMs are those that there are when it starts
    scan = b.driver.take(transfer=False, kinds=["inventory"])
    assert len(b.sql("SELECT 1 FROM jobs")) == 1
    inventory(b)
    b.driver.finish(scan, {"count": 4})
    lease = b.driver.take()
    assert b.job(lease["job_id"])["policy_id"] == made["id"]
    result = export_result()
    result["export"]["id"] = "exp-0000000000000002"
    b.driver.finish(lease, result)
    assert b.job(b.driver.take()["job_id"])["schedule_id"] == last


def test_a_policy_keeps_to_its_share_of_the_queue(policies):
    b = policies
    inventory(b)
    made = b.api.post("/api/v1/backup-policies", dict(POLICY, max_parallel=1), status=201)
    assert made["max_parallel"] == 1
    b.api.post(f"/api/v1/backup-policies/{made['id']}/run", status=202)
    other = b.driver.submit(priority=0)
    first = b.driver.take()
    assert b.job(first["job_id"])["policy_id"] == made["id"]
    assert b.driver.take(slot=1)["job_id"] == other, "one of the policy is enough"
    waits = b.driver.ask(slot=2)
    b.driver.finish(first, export_result())
    assert b.job(waits.lease()["job_id"])["policy_id"] == made["id"]


def test_vms_of_one_name_do_not_share_a_directory(policies):
    b = policies
    inventory(b, [("web", "/DC0/vm/a/web", "poweredOn", "DC0"), ("web", "/DC0/vm/b/web", "poweredOn", "DC0"),
                  ("db", "/DC0/vm/a/db", "poweredOn", "DC0")])
    made = b.api.post("/api/v1/backup-policies", POLICY, status=201)
    b.api.post(f"/api/v1/backup-policies/{made['id']}/run", status=202)
    jobs = b.sql("SELECT vm_path, output_path FROM jobs ORDER BY vm_path")
    dirs = {j["vm_path"]: j["output_path"].split("/")[-2] for j in jobs}
    assert dirs["/DC0/vm/a/db"] == "db"
    assert len(set(dirs.values())) == 3 and dirs["/DC0/vm/b/web"].startswith("web-")


def test_retention_goes_on_for_vms_that_were_exported(policies):
    b = policies
    inventory(b, [("ok", "/DC0/vm/a/ok", "poweredOn", "DC0"),
                  ("bad [1]*", "/DC0/vm/a/bad [1]*", "poweredOn", "DC0")])
    made = b.api.post("/api/v1/backup-policies", dict(POLICY, retention={"count": 2, "age_days": 9}),
                      status=201)
    path = f"/api/v1/backup-policies/{made['id']}"

    def run(*ends):
        """The jobs, by VM path, end so."""
        b.api.post(path + "/run", status=202)
        for _ in ends:
            lease = b.driver.take()
            if b.job(lease["job_id"])["vm_path"][10:].split(" ")[0] in ends:
                b.driver.on(lease, "record", key="export.volume", value="vol-1")
                b.driver.finish(lease, export_result())
            else:
                b.driver.on(lease, "fail", code="not_found", message="gone", retryable=False)
        wait_for(lambda: b.api.get(path)["runs"][0]["status"] in ("ok", "failed"), what=b.suite.tails)
        ids = b.sql("SELECT cleanup_job_ids AS ids, id FROM schedule_runs ORDER BY seq DESC LIMIT 1")[0]
        specs = [t["spec"] for t in b.sql("SELECT spec FROM tasks WHERE job_id = ANY (%s)", ids["ids"])]
        b.sql("UPDATE jobs SET status = 'cancelled' WHERE kind = 'cleanup'")
        b.sql("UPDATE tasks SET state = 'cancelled' WHERE kind = 'cleanup'")
        return specs

    all_good, = run("ok", "bad")
    assert "preserve" not in all_good and all_good["max_count"] == 2
    one_fails, = run("ok", "nobody")
    bad = b.sql("SELECT output_path FROM jobs WHERE vm_name LIKE 'bad%%' LIMIT 1")[0]["output_path"]
    assert one_fails["dir"] == all_good["dir"] and one_fails["max_age_ms"] == 9 * 86400000
    assert one_fails["preserve"] == [glob(bad.rsplit("/", 1)[0]), glob(bad.rsplit("/", 1)[0]) + "/*"]
    assert run("nobody", "nobody") == []


def glob(text):
    return "".join("\\" + c if c in "*?[\\" else c for c in text)

"""Workflows: what is refused, and what a run does when its jobs end, are cancelled, paused or fail,
and when the scheduler is killed. Workers are scripted."""
import hashlib
import json

import pytest

from tests.harness.client import Client
from tests.harness.driver import export_result
from tests.harness.gateways import add_user, start_gateways
from tests.harness.scheduler import bench  # noqa: F401
from tests.harness.wait import wait_for

WAIT = {"id": "w", "type": "wait", "duration": "10ms"}


def batch(step, *vms, **more):
    return dict({"id": step, "type": "batch", "vms": list(vms)}, **more)


@pytest.fixture
def flows(bench):  # noqa: F811
    def make(**options):
        b = bench(**options)
        b.suite.add("api-gateway")
        wait_for(lambda: b.suite.ready("api-gateway"), what=b.suite.tails)
        return Flows(b)
    return make


class Flows:
    def __init__(self, b):
        self.bench, self.driver, self.suite = b, b.driver, b.suite
        self.api = Client(b.suite.url())

    def start(self, *steps, name="w1"):
        made = self.api.post("/api/v1/workflows", {"name": name, "steps": list(steps)}, status=201)
        return self.api.post(f"/api/v1/workflows/{made['id']}/run", status=202)["run_id"]

    def run(self, run):
        return self.api.get(f"/api/v1/workflows/runs/{run}", status=200)

    def steps(self, run):
        return {s["id"]: s["status"] for s in self.run(run)["steps"]}

    def step(self, run, step):
        return next(s for s in self.run(run)["steps"] if s["id"] == step)

    def wait_steps(self, run, deadline=60, **states):
        wait_for(lambda: all(self.steps(run)[k] == v for k, v in states.items()), deadline,
                 lambda: f"{states}: {json.dumps(self.run(run), indent=1)}\n{self.suite.tails()}")

    def wait(self, run, status, deadline=60):
        wait_for(lambda: self.run(run)["status"] == status, deadline,
                 lambda: f"{status}: {json.dumps(self.run(run), indent=1)}\n{self.suite.tails()}")
        return self.run(run)

    def jobs(self, run):
        return self.bench.sql("SELECT * FROM jobs WHERE workflow_run_id = %s ORDER BY seq", run)

    def take(self, vm=None, slot=0):
        """The lease of the next job; vm: whose it must be."""
        lease = self.driver.take(slot=slot)
        job = self.bench.job(lease["job_id"])
        assert vm is None or job["vm_path"] == vm, job
        return lease

    def export(self, vm=None, slot=0):
        lease = self.take(vm, slot)
        name = self.bench.job(lease["job_id"])["vm_path"]
        result = export_result(vm_name=name)
        result["export"] = dict(result["export"], id=f"exp-{lease['job_id'][-16:]}", vm_name=name)
        self.driver.finish(lease, result)
        return lease["job_id"]

    def fail(self, vm=None, slot=0):
        lease = self.take(vm, slot)
        self.driver.on(lease, "fail", code="not_found", message="no such VM", retryable=False)
        return lease["job_id"]


# ---- definitions ----

BAD = [
    ([batch("a", "x", depends_on=["nope"])], 422, "step 'a'", "no step 'nope'"),
    ([batch("a", "x", depends_on=["b"]), batch("b", "y", depends_on=["a"])], 422, "step '",
     "waits for itself"),
    ([batch("a", "x", depends_on=["a"])], 422, "step 'a'", "waits for itself"),
    ([batch("a", "x"), batch("a", "y")], 422, "step 'a'", "same id"),
    ([batch("a", "x", "x")], 422, "step 'a'", "names 'x' twice"),
    ([batch("a")], 422, "step 'a'", "names no VM"),
    ([batch("a", "x", when="failure")], 422, "step 'a'", "'depends_on' is empty"),
    ([batch("a", "x", when="sometimes")], 422, "step 'a'", "success, failure or always"),
    ([batch("a", "x", job={"format": "zip"})], 400, "step 'a'", "'zip' is not known"),
    ([batch("a", "x", job={"vm": "y"})], 422, "step 'a'", "named by 'vms'"),
    ([batch("a", "x", job={"id": "job-1"})], 422, "step 'a'", "leave it out"),
    ([batch("a", "x", job={"provider": "nowhere"})], 422, "step 'a'", "nowhere"),
    ([batch("a", "x", job={"output_path": "/etc"})], 422, "step 'a'", "/etc"),
    ([batch("a", "x", job={"encrypt": {"passphrase": "long enough words"}})], 422, "step 'a'",
     "keeps no passphrase"),
    ([batch("a", "x", parallel=False, max_parallel=2)], 422, "step 'a'", "means nothing"),
    ([batch("a", "x", vmss=["y"])], 400, "step 'a'", "did you mean 'vms'"),
    ([{"id": "a", "type": "job"}], 422, "step 'a'", "'job' is missing"),
    ([{"id": "a", "type": "job", "job": {}}], 400, "step 'a'", "'vm_path' is missing"),
    ([{"id": "a", "type": "convert", "convert": {"source_path": "/etc/passwd"}}], 422, "step 'a'",
     "/etc/passwd"),
    ([{"id": "a", "type": "import", "import": {"export_id": "exp-none"}}], 404, "step 'a'",
     "does not exist"),
    ([{"id": "a", "type": "wait"}], 422, "step 'a'", "'duration' is missing"),
    ([{"id": "a", "type": "script"}], 422, "step 'a'", "'command' is missing"),
    ([{"id": "a", "type": "script", "command": "x.sh"}], 422, "step 'a'", "scripts_dir"),
    ([{"id": "a", "type": "webhook"}], 422, "step 'a'", "'url' is missing"),
    ([{"id": "a", "type": "webhook", "url": "ftp://h.example/"}], 400, "step 'a'", "http"),
    ([{"id": "a", "type": "webhook", "url": "https://h.example/", "retry": 100}], 400, "step 'a'",
     "0 to 99 repeats"),
    ([{"id": "a", "type": "webhook", "url": "https://h.example/", "timeout": "2h"}], 400,
     "step 'a'", "timeout"),
    ([{"id": "a", "type": "webhook", "url": "https://h.example/", "body": {"password": "x"}}], 422,
     "step 'a'", "has a secret"),
    ([{"id": "a", "type": "bach", "vms": ["x"]}], 422, "step 'a'", "did you mean 'batch'"),
    ([{"id": "a"}], 422, "step 'a'", "'type' is missing"),
    ([{"type": "wait", "duration": 1}], 422, "step '1'", "'id' must be"),
    (["x"], 422, "step '1'", "must be an object"),
    ([], 422, "", "1 to 64 steps"),
    ([dict(WAIT, id=f"w{i}") for i in range(65)], 422, "", "1 to 64 steps"),
    ([batch(f"b{i}", *[f"vm-{i}-{k}" for k in range(500)]) for i in range(3)], 422, "",
     "at most 1000"),
]


def test_what_is_wrong_is_refused_and_named(flows):
    f = flows()
    for steps, status, *texts in BAD:
        answer = f.api.post("/workflows", {"workflow": {"name": "bad", "steps": steps}},
                            status=status)
        assert all(t in answer["error"] for t in texts), (steps, answer)
    step = f.api.post("/workflows", {"name": "bad", "steps": [batch("a", "x", depends_on=["q"])]},
                      status=422)
    assert step["field"] == "steps.a.depends_on"
    for name in ("runs", "list", "a/b", ".x", "x" * 41):
        f.api.post("/workflows", {"name": name, "steps": [WAIT]}, status=400)
    assert f.api.get("/workflows")["workflows"] == []


def test_yaml_both_families_and_the_stored_form(flows):
    f = flows()
    text = ("workflow:\n  name: two\n  description: both\n  steps:\n"
            "    - {id: a, type: batch, vms: [x], job: {metadata: {db_password: geheim}}}\n"
            "    - {id: w, type: wait, duration: 1m, depends_on: [a], when: always}\n")
    answer = f.api.request("POST", "/workflows", data=text,
                           headers={"Content-Type": "application/yaml"})
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert answer.headers["Location"] == f"/api/v1/workflows/{made['id']}" and made["steps"] == 2
    again = f.api.post("/api/v1/workflows", {"name": "two", "steps": [WAIT]}, status=409)
    assert "'two' exists already" in again["error"]
    one = f.api.get("/workflows/two")
    assert one["id"] == made["id"] and one["description"] == "both" and one["runs"] == []
    assert [s["id"] for s in one["steps"]] == ["a", "w"] and one["steps"][1]["duration"] == "60000ms"
    assert "geheim" not in json.dumps(f.bench.sql("SELECT definition FROM workflows"))
    for path in ("/workflows", "/workflows/list", "/api/v1/workflows"):
        assert [w["name"] for w in f.api.get(path)["workflows"]] == ["two"]
    f.api.delete(f"/workflows/{made['id']}", status=200)
    f.api.get("/workflows/two", status=404)
    f.api.post("/workflows/two/run", status=404)
    f.api.get("/workflows/runs/run-none", status=404)


# ---- runs ----

def test_steps_run_in_order_and_beside_each_other(flows):
    f = flows()
    run = f.start(batch("dbs", "db-a", "db-b", parallel=False),
                  batch("apps", "app-a", "app-b", depends_on=["dbs"], job={"format": "qcow2"}),
                  {"id": "last", "type": "job", "job": {"vm_path": "web", "name": "the last"},
                   "depends_on": ["apps"]})
    f.wait_steps(run, dbs="running")
    wait_for(lambda: len(f.jobs(run)) == 1, what=f.suite.tails)
    f.export("db-a")
    wait_for(lambda: len(f.jobs(run)) == 2, what=f.suite.tails)
    assert f.steps(run) == {"dbs": "running", "apps": "waiting", "last": "waiting"}
    f.export("db-b")
    wait_for(lambda: len(f.jobs(run)) == 4, what=f.suite.tails)
    assert f.steps(run)["dbs"] == "completed"
    one, two = f.take("app-a"), f.take("app-b", slot=1)
    assert {f.bench.job(x["job_id"])["format"] for x in (one, two)} == {"qcow2"}
    for i, lease in enumerate((one, two)):
        result = export_result()
        result["export"] = dict(result["export"], id=f"exp-app-{i}")
        f.driver.finish(lease, result)
    wait_for(lambda: len(f.jobs(run)) == 5, what=f.suite.tails)
    assert f.jobs(run)[-1]["name"] == "the last"
    f.export("web")
    view = f.wait(run, "completed")
    assert {s["status"] for s in view["steps"]} == {"completed"}
    assert [len(s["job_ids"]) for s in view["steps"]] == [2, 2, 1]
    assert all(s["started_at"] and s["completed_at"] and not s["error"] for s in view["steps"])
    assert view["completed_at"] and view["workflow"] == "w1"
    assert {j["submitted_by"] for j in f.jobs(run)} == {view["submitted_by"]}
    assert f.api.get("/workflows/w1")["runs"][0]["run_id"] == run
    assert f.api.get("/workflows")["workflows"][0]["last_run"]["status"] == "completed"


def test_max_parallel_and_the_directories_of_a_batch(flows):
    f = flows()
    run = f.start(batch("b", "/dc/vm/x1", "x2", "x3", max_parallel=2,
                        job={"output_path": "nightly"}))
    wait_for(lambda: len(f.jobs(run)) == 2, what=f.suite.tails)
    first = f.take("/dc/vm/x1")
    rows = f.jobs(run)
    assert [r["output_path"].rsplit("/", 2)[1:] for r in rows] == [["nightly", "x1"],
                                                                  ["nightly", "x2"]]
    f.driver.finish(first, export_result())
    wait_for(lambda: len(f.jobs(run)) == 3, what=f.suite.tails)
    f.export("x2")
    f.export("x3")
    assert f.wait(run, "completed")["steps"][0]["items_completed"] == 3


def test_vms_of_one_name_in_several_folders_do_not_share_a_directory(flows):
    f = flows()
    vms = ("/dc/vm/one/web", "/dc/vm/two/web", "/dc/vm/one/db")
    run = f.start(batch("b", *vms, job={"output_path": "moved"}))
    wait_for(lambda: len(f.jobs(run)) == 3, what=f.suite.tails)
    names = [r["output_path"].rsplit("/", 1)[1] for r in f.jobs(run)]
    assert names == [f"web-{hashlib.sha256(vm.encode()).hexdigest()[:8]}" for vm in vms[:2]] + ["db"]


def test_a_failure_takes_its_way_and_a_retry_begins_there(flows):
    f = flows()
    run = f.start(batch("b", "good", "bad", parallel=False), batch("next", "n", depends_on=["b"]),
                  batch("rescue", "r", depends_on=["b"], when="failure"),
                  dict(WAIT, id="end", depends_on=["next"], when="always"))
    good = f.export("good")
    bad = f.fail("bad")
    rescue = f.export("r")
    view = f.wait(run, "failed")
    assert f.steps(run) == {"b": "failed", "next": "skipped", "rescue": "completed",
                            "end": "completed"}
    assert "1 of 2 failed" in view["steps"][0]["error"] and "no such VM" in view["steps"][0]["error"]
    assert "depends on" in view["steps"][1]["error"]
    f.api.post(f"/workflows/runs/{run}/retry", status=200)
    f.api.post(f"/workflows/runs/{run}/retry", status=409)
    wait_for(lambda: f.bench.job(bad)["status"] == "pending", what=f.suite.tails)
    assert f.export("bad") == bad, "the job that failed goes on"
    f.export("n")
    view = f.wait(run, "completed")
    assert f.steps(run) == {"b": "completed", "next": "completed", "rescue": "skipped",
                            "end": "completed"}
    assert f.step(run, "b")["job_ids"] == [good, bad] and f.step(run, "b")["attempt"] == 2
    assert f.step(run, "rescue")["job_ids"] == [rescue]
    assert len(f.jobs(run)) == 4
    refused = f.api.post(f"/workflows/runs/{run}/retry", status=409)
    assert "nothing in it failed" in refused["error"]


def test_a_retry_waits_for_what_a_worker_still_removes_and_not_for_a_deadline_that_passed(flows):
    f = flows()
    run = f.start(batch("a", "x"))
    lease = f.take("x")
    f.driver.on(lease, "record", key="snapshot", value="snapshot-7")
    f.driver.on(lease, "fail", code="corrupt", message="x", retryable=False)
    f.wait(run, "failed")
    release = f.driver.take(transfer=False, kinds=["release"])
    f.api.post(f"/workflows/runs/{run}/retry", status=200)
    f.wait_steps(run, a="running")  # the look that says so has tried the job, too
    assert f.bench.task(lease["task_id"])["state"] == "failed", "its snapshot is being removed"
    f.driver.finish(release, {"released": True})
    assert f.export("x") == lease["job_id"]
    f.wait(run, "completed")

    late = f.start(batch("a", "y", job={"deadline": "2026-01-01T00:00:00Z"}), name="w2")
    f.wait(late, "failed")
    f.api.post(f"/workflows/runs/{late}/retry", status=200)
    wait_for(lambda: f.run(late)["status"] == "failed" and f.step(late, "a")["attempt"] == 2,
             what=lambda: json.dumps(f.run(late)))
    assert "deadline of its job has passed" in f.step(late, "a")["error"]


def test_cancel_ends_jobs_and_what_waits(flows):
    f = flows()
    run = f.start(batch("b", "x1", "x2", "x3", max_parallel=2), batch("c", "y", depends_on=["b"]))
    wait_for(lambda: len(f.jobs(run)) == 2, what=f.suite.tails)
    lease = f.take("x1")
    first = next(r["id"] for r in f.jobs(run))
    f.api.request("POST", f"/api/v1/jobs/{first}/cancel", {"reason": "disk is bad"})
    view = f.api.post(f"/workflows/runs/{run}/cancel", status=200)
    assert view["status"] == "cancelling"
    assert [r["status"] for r in f.jobs(run)] == ["cancelling", "cancelled"]
    assert [r["cancel_reason"] for r in f.jobs(run)] == \
        ["disk is bad", "its workflow was cancelled"], "the second cancel changes nothing"
    f.api.post(f"/workflows/runs/{run}/cancel", status=409)
    refused = f.api.delete("/workflows/w1", status=409)
    assert "under way" in refused["error"]
    f.driver.on(lease, "yield")
    f.wait(run, "cancelled")
    assert f.steps(run) == {"b": "cancelled", "c": "cancelled"}
    assert len(f.jobs(run)) == 2, "nothing was started afterwards"
    f.api.post(f"/workflows/runs/{run}/retry", status=200)
    for vm in ("x1", "x2"):
        f.export(vm)
    f.export("x3")
    f.export("y")
    f.wait(run, "completed")
    assert len(f.jobs(run)) == 4
    f.api.delete("/workflows/w1", status=200)
    assert f.run(run)["status"] == "completed", "the run stays"


def test_pause_holds_jobs_and_steps(flows):
    f = flows()
    run = f.start(batch("a", "x1"), batch("b", "x2", depends_on=["a"]))
    wait_for(lambda: len(f.jobs(run)) == 1, what=f.suite.tails)
    assert f.api.post(f"/api/v1/workflows/runs/{run}/pause", status=200)["status"] == "paused"
    row = f.jobs(run)[0]
    assert row["status"] == "paused" and "workflow was paused" in row["pending_reason"]
    f.api.post(f"/api/v1/workflows/runs/{run}/pause", status=409)
    f.api.post(f"/api/v1/workflows/runs/{run}/resume", status=200)
    assert f.jobs(run)[0]["status"] == "pending"
    lease = f.take("x1")
    f.api.post(f"/api/v1/workflows/runs/{run}/pause", status=200)
    f.driver.finish(lease, export_result())
    f.wait_steps(run, a="completed")  # it was done before the pause reached it
    other = f.start(dict(WAIT, id="v"), dict(WAIT, depends_on=["v"]), name="other")
    f.wait(other, "completed")  # so the runs were looked at again
    assert f.steps(run)["b"] == "waiting" and len(f.jobs(run)) == 1
    f.api.post(f"/api/v1/workflows/runs/{run}/resume", status=200)
    f.export("x2")
    f.wait(run, "completed")


def test_a_kill_of_the_scheduler_starts_nothing_twice(flows):
    f = flows()
    vms = [f"vm-{i}" for i in range(120)]
    run = f.start(batch("b", *vms), dict(WAIT, depends_on=["b"]))
    for _ in range(4):
        f.suite["scheduler"].kill()
        f.suite["scheduler"].start()
        wait_for(lambda: f.suite.ready("scheduler"), what=f.suite.tails)
    wait_for(lambda: len(f.jobs(run)) == 120, what=f.suite.tails)
    assert sorted(r["vm_path"] for r in f.jobs(run)) == sorted(vms)
    f.bench.sql("UPDATE jobs SET status = 'completed' WHERE workflow_run_id = %s", run)
    f.wait(run, "completed")
    rows = f.bench.sql("SELECT job_id FROM workflow_items WHERE run_id = %s", run)
    assert len({r["job_id"] for r in rows}) == 120 == len(f.jobs(run))


def test_a_run_that_another_scheduler_works_on_is_left_to_it(flows):
    f = flows()
    made = f.api.post("/workflows", {"name": "w1", "steps": [batch("a", "x", "y")]}, status=201)
    other = f.suite.postgres.connect(f.suite.database)
    other.autocommit = False
    with other.cursor() as cursor:  # the other one: it has the run, and has started an item of it
        cursor.execute("LOCK TABLE workflow_items IN SHARE MODE")
        run = f.api.post(f"/workflows/{made['id']}/run", status=202)["run_id"]
        cursor.execute("SELECT 1 FROM workflow_runs WHERE id = %s FOR UPDATE", (run,))
        cursor.execute("INSERT INTO jobs (id, provider, vm_path, definition, workflow_run_id)"
                       " VALUES ('job-other', 'vsphere', 'x', '{}', %s)", (run,))
        cursor.execute("INSERT INTO workflow_items (run_id, step, item, attempt, job_id, state)"
                       " VALUES (%s, 0, 0, 1, 'job-other', 'active')", (run,))
    other.commit()
    other.close()
    wait_for(lambda: len(f.jobs(run)) == 2, what=f.suite.tails)
    assert [j["vm_path"] for j in f.jobs(run)] == ["x", "y"] and f.jobs(run)[0]["id"] == "job-other"


def test_a_request_that_is_refused_later_fails_its_item_alone(flows):
    f = flows()
    made = f.api.post("/workflows", {"name": "later", "steps": [
        batch("a", "x", job={"provider": "other"}), batch("b", "y")]}, status=201)
    run = f.api.post(f"/workflows/{made['id']}/run", status=202)["run_id"]
    wait_for(lambda: len(f.jobs(run)) == 2, what=f.suite.tails)
    f.fail("x")
    f.export("y")
    f.wait(run, "failed")
    f.bench.sql("DELETE FROM jobs WHERE provider = 'other'")
    f.bench.sql("UPDATE providers SET enabled = false WHERE name = 'other'")
    refused = f.api.post(f"/workflows/{made['id']}/run", status=422)
    assert "step 'a'" in refused["error"] and "disabled" in refused["error"]
    f.api.post(f"/workflows/runs/{run}/retry", status=200)
    wait_for(lambda: "disabled" in (f.step(run, "a")["error"] or ""), what=f.suite.tails)
    f.wait(run, "failed")
    assert f.step(run, "a")["job_ids"] == [] and f.steps(run)["b"] == "completed"


def test_who_may_do_what(make_suite):
    suite = start_gateways(make_suite, dev=False)
    suite.sql("INSERT INTO providers (name, kind, settings) VALUES ('vsphere', 'vsphere', '{}')")
    one, two = add_user(suite, "one", "operator"), add_user(suite, "two", "operator")
    viewer = add_user(suite, "looks", "viewer")
    steps = [batch("a", "x")]
    viewer.post("/workflows", {"name": "w", "steps": steps}, status=403)
    one.post("/workflows", {"name": "w", "steps": steps}, status=201)
    denied = one.post("/workflows", {"name": "v", "steps": [
        batch("a", "x", job={"cleanup": {"max_count": 1}})]}, status=403)
    assert "job.delete" in denied["error"] and "step 'a'" in denied["error"]
    viewer.post("/workflows/w/run", status=403)
    run = one.post("/workflows/w/run", status=202)["run_id"]
    assert viewer.get(f"/workflows/runs/{run}")["submitted_by"] == "one"
    for action in ("cancel", "pause", "retry"):
        denied = two.post(f"/workflows/runs/{run}/{action}", status=403)
        assert "another user" in denied["error"]
    one.post(f"/workflows/runs/{run}/pause", status=200)
    suite.client.post(f"/workflows/runs/{run}/cancel", status=200)

"""Templates of jobs: stored over REST and in files, rendered, and submitted."""
import datetime
import pathlib
import signal

import pytest

from tests.harness.process import ROOT
from tests.harness.vsphere import make_image, vm
from tests.harness.wait import wait_for

MB = 1 << 20
EXAMPLE = (ROOT / "examples" / "templates" / "linux-vm-export.yaml").read_text()
YAML = {"Content-Type": "application/yaml"}


@pytest.fixture
def suite(make_suite, make_vsphere, tmp_path):
    disk = make_image(tmp_path / "disk.raw", 8 * MB, [(0, MB)])
    directory = tmp_path / "templates"
    directory.mkdir()
    (directory / "nightly.yaml").write_text('name: "n-{{ .VMName }}"\nformat: raw\n')
    (directory / "wrong.yaml").write_text('name: "{{ .VMNme }}"\n')
    suite = make_suite(config={"hyper2kvm": {"path": "/nonexistent/hyper2kvm"},
                               "templates": {"dir": str(directory), "env": ["HYPERSDK_SITE"]}})
    suite.templates = directory
    suite.sim = make_vsphere([vm("web", disk, memory=512, cpus=2)])
    suite.add_vsphere(suite.sim)
    return suite


def refused(suite, status, method, path, body):
    answer = suite.client.request(method, path, body)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_the_example_is_stored_rendered_and_submitted(suite):
    path = "/api/v1/templates/linux-vm-export"
    stored = suite.client.request("PUT", path, EXAMPLE, headers=YAML)
    assert stored.status_code == 200, stored.text
    assert stored.json()["template"]["options"] == {"parallel_downloads": 8, "remove_cdrom": True}
    today = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    job = suite.client.post(f"{path}/render", {"vars": {"VMName": "../web-03", "VMPath": "/DC1/vm/web-03"}})
    assert job["output_path"] == f"_web-03/{today}" and job["vm_path"] == "/DC1/vm/web-03"
    assert job["pre_hooks"] == [{"type": "shutdown", "timeout": 300},
                                {"type": "snapshot", "name": f"pre-export-{today}"}]
    missing = refused(suite, 422, "POST", f"{path}/render", {"vars": {"VMName": "x"}})
    assert missing["field"] == "vm_path" and "VMPath" in missing["error"]
    # the job's own fields win, member by member
    suite.sim.add_cdrom("web", "[datastore] iso/debian-12.iso")
    assert suite.sim.power("web") == "poweredOn" and len(suite.sim.cdroms("web")) == 1
    job = suite.client.submit(template="linux-vm-export", vm_path="web", delete_snapshot=False,
                              options={"parallel_downloads": 2})
    done = suite.wait_job(job, "completed")
    assert done["name"] == "web-export"
    assert done["result"]["output_path"] == str(suite.exports / "web" / today)
    assert suite.sim.snapshots("web") == [f"pre-export-{today}"]
    assert suite.sim.power("web") == "poweredOff" and suite.sim.cdroms("web") == []
    lines = suite.client.request("GET", f"/jobs/logs/{job}").text
    steps = [lines.index(words) for words in ("the guest has shut down", "[datastore] iso/debian-12.iso",
                                              "snapshot created")]
    assert steps == sorted(steps), "the shutdown first, the snapshot last"
    assert pathlib.Path(done["result"]["conversion"]["output_files"][0]).suffix == ".qcow2"
    spec = suite.sql("SELECT spec FROM tasks WHERE job_id = %s AND kind = 'export'", job)[0]["spec"]
    assert spec["parallel"] == 2
    # nobody has credentials for its upload here: the job goes on without it
    assert done["definition"]["upload"] == "s3://vm-exports/web"
    assert [(h["type"], h["state"]) for h in done["hooks"]] == [("upload", "failed")]
    assert "s3://vm-exports/web" in done["hooks"][0]["error"] and "uploaded_to" not in done["result"]
    # nothing is left of it in what comes later
    suite.client.delete(path)
    gone = refused(suite, 422, "POST", "/api/v1/jobs", {"template": "linux-vm-export", "vm_path": "web"})
    assert gone["field"] == "template"


def test_templates_are_checked_when_they_are_stored(suite):
    wrong = [({"nmae": "x"}, 400, "nmae"), ({"name": "{{ .VMName"}, 422, "name"),
             ({"output_path": "/x/{{ .Env.HOME }}"}, 422, "output_path"),
             ({"id": "job-1"}, 422, "id"), ({"template": "other"}, 422, "template"),
             ({"encrypt": {"passphrase": "12345678"}}, 422, "passphrase")]
    for body, status, field in wrong:
        assert refused(suite, status, "PUT", "/api/v1/templates/t", body)["field"] == field
    refused(suite, 400, "PUT", "/api/v1/templates/-x", {"format": "raw"})
    made = suite.client.post("/api/v1/templates", {"name": "plain", "template": {"format": "raw"}},
                             status=201)
    assert made["template"] == {"format": "raw"} and made["origin"] == "api"
    refused(suite, 409, "POST", "/api/v1/templates", {"name": "plain", "template": {}})
    suite.client.post("/templates", {"name": "bare", "format": "qcow2"}, status=200)
    names = [t["name"] for t in suite.client.get("/templates")["templates"]]
    assert names == ["bare", "nightly", "plain"]


def test_files_are_templates_until_they_go(suite):
    client = suite.client
    assert client.get("/api/v1/templates/nightly")["origin"] == "config"
    assert "template_refused" in suite["api-gateway"].log.read_text()
    refused(suite, 409, "PUT", "/api/v1/templates/nightly", {"format": "raw"})
    refused(suite, 409, "DELETE", "/api/v1/templates/nightly", None)
    (suite.templates / "nightly.yaml").unlink()
    (suite.templates / "weekly.json").write_text('{"format": "ova"}')
    suite["api-gateway"].signal(signal.SIGHUP)
    wait_for(lambda: [t["name"] for t in client.get("/templates")["templates"]] == ["weekly"], 60,
             suite.tails)


def test_an_evil_name_stays_inside(suite):
    suite.client.put("/api/v1/templates/t", {"output_path": "{{ .VMPath }}/{{ .Provider }}", "format": "raw"})
    job = suite.client.submit(template="t", vm_path="../../../etc")
    place = suite.sql("SELECT output_path FROM jobs WHERE id = %s", job)[0]["output_path"]
    assert place == str(suite.exports / "_.._.._etc" / "vsphere")

"""Services that are started before the database has its schema."""
import json

from tests.harness.schema import apply_schema
from tests.harness.wait import wait_for

NAMES = ["notifier", "metrics-exporter", "api-gateway"]


def lines(suite, name):
    return [json.loads(line) for line in (suite.directory / f"{name}.log").read_text().splitlines()]


def test_they_wait_and_say_so_in_one_line(make_suite):
    suite = make_suite(own_postgres=True, services=NAMES, start=False)
    for name in NAMES:
        suite.add(name)
    client = suite.connect()
    for name in NAMES:
        wait_for(lambda n=name: any("waiting for the schema" in line.get("reason", "")
                                    for line in lines(suite, n)), what=suite.tails)
    # the gateway is there meanwhile, and what it cannot answer yet comes again
    wait_for(lambda: client.request("GET", "/health").status_code, what=suite.tails)
    answer = client.request("GET", "/api/v1/jobs")
    assert answer.status_code == 503 and "waiting for the schema" in answer.text, answer.text
    for name in NAMES:
        assert not suite.ready(name)
    apply_schema(suite.postgres, suite.database)
    for name in NAMES:
        wait_for(lambda n=name: suite.ready(n), what=suite.tails)
    assert client.get("/api/v1/jobs")["total"] == 0
    for name in NAMES:
        said = [line for line in lines(suite, name) if line["level"] in ("warn", "error")]
        assert not [line for line in said if line.get("error_code") == "internal"], said
        own = [line for line in said if "request_id" not in line
               and "schema" in line.get("error", "") + line.get("reason", "")]
        # applied file by file here: a look in between finds an older version, and says that
        first = sorted(line["event"] for line in own if "is at version" not in json.dumps(line))
        assert first == ["condition_not_ready"] + \
            ["waiting_for_database"] * (name == "api-gateway"), own
        assert "does not exist" not in json.dumps(own)

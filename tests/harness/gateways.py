"""Gateways alone, on the schema and a Redis: rows and messages come from the test."""
import json
import re
import time

import websocket

from .client import Client
from .schema import apply_schema
from .wait import wait_for

PASSWORD = re.compile(r"first start: user 'admin' was made with the password ([0-9a-f]{24})\n")
CHANNEL = "hypersdk:events"
UNTIL_SECONDS = 60
STATES = ("pending", "completed", "failed", "cancelled")


def start_gateways(make_suite, count=1, dev=True, ready=True, **options):
    """A suite of `count` gateways without any other service. With dev=False suite.client is the
    administrator."""
    suite = make_suite(services=["api-gateway"], start=False, dev=dev, **options)
    apply_schema(suite.postgres, suite.database)
    for i in range(1, count + 1):
        suite.add("api-gateway" if i == 1 else f"api-gateway-{i}")
    for name in suite.processes if ready else []:
        wait_for(lambda n=name: suite.ready(n), 60, lambda: suite.tails())
    suite.client = Client(suite.url())
    if not dev:
        suite.client = login(suite, "admin", admin_password(suite))
    return suite


def admin_password(suite):
    """The one that was printed at the first start."""
    found = wait_for(lambda: [m.group(1) for p in suite.processes.values()
                              for m in [PASSWORD.search(p.output())] if m], 60,
                     lambda: "the administrator's password\n" + suite.tails())
    assert len(found) == 1
    return found[0]


def login(suite, username, password):
    answer = Client(suite.url()).post("/api/login", {"username": username, "password": password})
    return Client(suite.url(), token=answer["token"])


def add_user(suite, username, *roles, password="correct horse"):
    """A user with roles, logged in."""
    suite.client.post("/api/v1/users", {"username": username, "password": password,
                                        "roles": list(roles)}, status=201)
    return login(suite, username, password)


def add_job(suite, job_id, status="pending", vm_name="web", submitted_by="dev"):
    suite.sql("INSERT INTO jobs (id, provider, vm_path, vm_name, definition, status, submitted_by)"
              " VALUES (%s, 'vsphere', %s, %s, '{}', %s, %s)", job_id, vm_name, vm_name, status,
              submitted_by)
    return job_id


def add_event(suite, job_id, event, status=None):
    """A row of job_events, with the job's status as the scheduler writes both; its id."""
    word = event.split(".")[1]
    status = status or (word if word in STATES else "running")
    suite.sql("UPDATE jobs SET status = %s WHERE id = %s", status, job_id)
    return suite.sql("INSERT INTO job_events (job_id, event, status) VALUES (%s, %s, %s)"
                     " RETURNING id", job_id, event, status)[0]["id"]


def publish(suite, **event):
    """A message as the scheduler publishes it; how many gateways got it."""
    return int(suite.redis.command("PUBLISH", CHANNEL, json.dumps(event)))


def wait_subscribed(suite, count=1):
    wait_for(lambda: int(suite.redis.command("PUBSUB", "NUMSUB", CHANNEL).split()[-1]) == count,
             60, "gateways subscribed to Redis")


def sse(answer):
    """Blocks of a text/event-stream as dicts."""
    block = {}
    for line in answer.iter_lines(chunk_size=1):
        line = line.decode()
        if not line:
            if block:
                yield block
            block = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            block[name] = value


class Socket:
    """One WebSocket client; messages are kept in the order of their arrival."""

    def __init__(self, url, path="/websocket", timeout=60, **options):
        self.socket = websocket.create_connection(url.replace("http", "ws", 1) + path,
                                                  timeout=timeout, **options)
        self.seen = []

    def send(self, **message):
        self.socket.send(json.dumps(message))

    def next(self):
        message = json.loads(self.socket.recv())
        self.seen.append(message)
        return message

    def until(self, kind, **fields):
        """Reads on to a message of this type with these members."""
        end = time.monotonic() + UNTIL_SECONDS
        while time.monotonic() < end:  # others, like the status, keep coming
            message = self.next()
            if message["type"] == kind and all(message.get(k) == v for k, v in fields.items()):
                return message
        raise AssertionError(f"no {kind} {fields} within {UNTIL_SECONDS} s: {self.seen[-20:]}")

    def states(self):
        """(seq, type) of the state events so far."""
        return [(m["seq"], m["type"]) for m in self.seen
                if m["type"].startswith("job.") and m["type"] not in ("job.progress", "job.log")]

    def closed(self):
        """Reads to the end; the close code."""
        while True:
            opcode, data = self.socket.recv_data()
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                return int.from_bytes(data[:2], "big")
            if opcode == websocket.ABNF.OPCODE_TEXT:
                self.seen.append(json.loads(data))

    def close(self):
        self.socket.close()

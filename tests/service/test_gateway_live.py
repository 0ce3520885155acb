"""api-gateway: WebSocket, SSE and followed logs. Rows and messages come from the test, as the
scheduler would write them."""
import json
import socket
import threading
from contextlib import closing

import pytest
import websocket

from tests.harness.gateways import (Socket, add_event, add_job, add_user, publish, sse, start_gateways,
                                    wait_subscribed)
from tests.harness.process import VARIANT
from tests.harness.wait import wait_for


HANDSHAKE = (b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
             b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")


@pytest.fixture
def gateway(make_suite):
    return lambda **options: start_gateways(make_suite, **options)


def emit(suite, job_id, event, **fields):
    """A state event the way it normally comes: the row, then the message. Its seq."""
    seq = add_event(suite, job_id, event)
    status = suite.sql("SELECT status FROM jobs WHERE id = %s", job_id)[0]["status"]
    publish(suite, type=event, seq=seq, job_id=job_id, status=status, **fields)
    return seq


def add_lines(suite, job_id, *messages, level="info", phase="exporting"):
    for message in messages:
        suite.sql("INSERT INTO job_logs (job_id, at, level, phase, message)"
                  " VALUES (%s, now(), %s, %s, %s)", job_id, level, phase, message)


# ---- events ----

def test_two_gateways_show_the_same_events(gateway):
    suite = gateway(count=2)
    wait_subscribed(suite, 2)
    one, two = Socket(suite.url()), Socket(suite.url("api-gateway-2"), "/api/v1/ws")
    for s in (one, two):
        hello = s.next()
        assert hello["type"] == "hello" and hello["version"] and hello["dev_mode"]
        assert sorted(hello["subscription"]) == ["jobs", "status"]
    job = add_job(suite, "job-1")
    with closing(suite.postgres.connect(suite.database)) as late:  # by Redis: nobody sees the row yet
        late.autocommit = False
        cursor = late.cursor()
        cursor.execute("INSERT INTO job_events (job_id, event, status) VALUES (%s, 'job.created',"
                       " 'pending') RETURNING id", (job,))
        sent = [(cursor.fetchone()[0], "job.created")]
        publish(suite, type="job.created", seq=sent[0][0], job_id=job, status="pending")
        one.until("job.created")
        late.commit()
    publish(suite, type="job.progress", job_id=job, status="running",
            phase="exporting", progress=45, percentage=45.0, bytes_transferred=5242880)
    progress = one.until("job.progress")
    assert progress["bytes_transferred"] == 5242880 and progress["seq"] == sent[0][0]
    sent.append((emit(suite, job, "job.running"), "job.running"))
    # this one only as a row: its message got lost
    sent.append((add_event(suite, job, "job.completed"), "job.completed"))
    for s in (one, two):
        last = s.until("job.completed", job_id=job)
        assert last["status"] == "completed" and last["vm_name"] == "web"
        assert s.states() == sent


def test_nothing_is_lost_while_redis_restarts(gateway):
    suite = gateway()
    wait_subscribed(suite)
    s = Socket(suite.url())
    job = add_job(suite, "job-1")
    sent = [emit(suite, job, "job.created")]
    s.until("job.created")
    suite.redis.stop()
    sent += [add_event(suite, job, f"job.step{i}", "running") for i in range(30)]
    suite.sql("UPDATE jobs SET progress = %s WHERE id = %s",
              json.dumps({"percentage": 12.5, "bytes_transferred": 99}), job)
    s.until("job.step29")
    assert s.until("job.progress")["bytes_transferred"] == 99  # from the row
    suite.redis.start()
    wait_subscribed(suite)
    sent.append(emit(suite, job, "job.completed"))
    s.until("job.completed")
    assert [seq for seq, _ in s.states()] == sent


def test_events_that_commit_out_of_order_are_all_shown_once(gateway):
    suite = gateway()
    wait_subscribed(suite)
    s = Socket(suite.url())
    job = add_job(suite, "job-1")
    late = suite.postgres.connect(suite.database)
    late.autocommit = False
    cursor = late.cursor()
    cursor.execute("INSERT INTO job_events (job_id, event, status) VALUES (%s, 'job.late',"
                   " 'running') RETURNING id", (job,))
    first = cursor.fetchone()[0]
    second = emit(suite, job, "job.running")
    s.until("job.running")
    late.commit()
    late.close()
    s.until("job.late")
    third = emit(suite, job, "job.completed")
    publish(suite, type="job.completed", seq=third, job_id=job, status="completed")  # twice
    s.until("job.completed")
    s.send(action="ping")
    s.until("pong")
    assert [seq for seq, _ in s.states()] == [second, first, third]


def test_a_client_that_comes_back_gets_what_it_missed(gateway):
    suite = gateway()
    wait_subscribed(suite)
    job = add_job(suite, "job-1")
    sent = [emit(suite, job, f"job.step{i}") for i in range(1, 4)]
    suite.sql("INSERT INTO job_events (job_id, event, status) SELECT 'job-1', 'job.many',"
              " 'running' FROM generate_series(1, 1200)")
    sent += [r["id"] for r in suite.sql("SELECT id FROM job_events WHERE event = 'job.many'"
                                        " ORDER BY id")]
    for path in (f"/ws?resume_from={sent[0]}", f"/ws?resume_from={sent[0]}&topics=job:job-1"):
        s = Socket(suite.url(), path)
        sent.append(emit(suite, job, "job.last"))
        while len(s.states()) < len(sent) - 1:
            s.next()
        assert sorted(seq for seq, _ in s.states()) == sent[1:]
    other = Socket(suite.url(), "/ws?topics=job:other")
    other.send(action="subscribe", resume_from=0, topics=["job:nothing"])
    assert sorted(other.until("subscribed")["topics"]) == ["job:nothing", "job:other"]
    other.send(action="ping")
    other.until("pong")
    assert other.states() == []


def test_what_the_replay_saw_first_does_not_come_again(gateway):
    suite = gateway()
    wait_subscribed(suite)
    job = add_job(suite, "job-1")
    watcher = Socket(suite.url(), "/ws")
    first = emit(suite, job, "job.step")
    while not watcher.states():
        watcher.next()
    # nobody is told of it: live, it comes when the feed looks by itself
    late = suite.sql("INSERT INTO job_events (job_id, event, status) VALUES ('job-1', 'job.late',"
                     " 'running') RETURNING id")[0]["id"]
    back = Socket(suite.url(), f"/ws?resume_from={first}")
    while not back.states():
        back.next()
    while late not in [seq for seq, _ in watcher.states()]:
        watcher.next()
    back.send(action="ping")
    back.until("pong")
    assert [seq for seq, _ in back.states()] == [late]


def test_topics_say_what_a_client_gets(gateway):
    suite = gateway()
    wait_subscribed(suite)
    s = Socket(suite.url())
    s.next()
    s.send(action="unsubscribe", topics=["jobs", "status"])
    assert s.until("unsubscribed")["topics"] == []
    s.send(action="subscribe", topics=["job:job-2"])
    assert s.until("subscribed")["topics"] == ["job:job-2"]
    for job in ("job-1", "job-2"):
        emit(suite, add_job(suite, job), "job.created")
    s.until("job.created", job_id="job-2")
    assert len(s.states()) == 1
    for bad in ({"action": "subscribe", "topics": ["everything"]}, {"action": "fly"},
                {"action": "subscribe", "topics": "jobs"}, {"action": "subscribe", "x": 1},
                {"action": "subscribe", "topics": ["job:a b"]}, {"action": "subscribe"},
                {"action": "subscribe", "topics": [f"job:{i}" for i in range(100)]}):
        s.send(**bad)
        assert s.until("error")["error"]
    s.socket.send("[" * 5000)
    assert s.until("error")["error"]
    s.socket.send_binary(b"\x00\xff")
    assert s.until("error")["error"]
    s.send(action="ping")
    assert s.until("pong")["timestamp"]


def test_status_comes_to_those_who_want_it(gateway):
    suite = gateway()
    s = Socket(suite.url(), "/ws?topics=status")
    status = s.until("status")
    assert set(status) >= {"version", "workers", "queue_depth", "services", "dev_mode"}
    # whoever comes now does not wait for the next one
    wait_for(lambda: s.until("status") == Socket(suite.url()).until("status"), what="the same status again")


def test_progress_after_the_end_is_not_shown(gateway):
    suite = gateway()
    wait_subscribed(suite)
    s = Socket(suite.url())
    job = add_job(suite, "job-1")
    seq = emit(suite, job, "job.completed")
    publish(suite, type="job.progress", seq=seq, job_id=job, status="running", percentage=99.0)
    s.until("job.completed")
    emit(suite, job, "job.pending")  # a retry
    publish(suite, type="job.progress", seq=seq + 1, job_id=job, status="running", percentage=1.0)
    assert s.until("job.progress")["percentage"] == 1.0


def test_nonsense_on_redis_stops_nothing(gateway):
    suite = gateway()
    wait_subscribed(suite)
    s = Socket(suite.url())
    job = add_job(suite, "job-1")
    for message in ("", "{", "7", "[]", '{"type":7}', '{"type":"job.x","seq":9223372036854775807}',
                    '{"type":"job.x","seq":-5}', '{"type":"a b"}', "[" * 10000,
                    '{"type":"job.progress","job_id":"../x"}', "x" * 60000):
        pipeline(suite, ["PUBLISH hypersdk:events " + json.dumps(message)])
    emit(suite, job, "job.completed")
    s.until("job.completed")


# ---- the handshake ----

def test_the_handshake_keeps_its_rules(gateway):
    suite = gateway(config={"security": {"allowed_origins": ["https://ui.example.net"]}})
    port = suite.port("api-gateway")

    def handshake(**changes):
        headers = {"Host": f"127.0.0.1:{port}", "Upgrade": "websocket", "Connection": "Upgrade",
                   "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13"}
        headers.update({k.replace("_", "-"): v for k, v in changes.items()})
        with socket.create_connection(("127.0.0.1", port), 60) as s:
            s.sendall(("GET /websocket HTTP/1.1\r\n" + "".join(
                f"{k}: {v}\r\n" for k, v in headers.items() if v is not None) + "\r\n").encode())
            return s.recv(4096).decode("latin-1")

    good = handshake()
    assert good.startswith("HTTP/1.1 101")
    assert "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in good  # RFC 6455 section 1.3
    assert handshake(Origin=f"http://127.0.0.1:{port}").startswith("HTTP/1.1 101")
    assert handshake(Origin="https://ui.example.net").startswith("HTTP/1.1 101")
    for origin in ("https://evil.example", "null", f"http://127.0.0.1:{port}.evil.example"):
        assert handshake(Origin=origin).startswith("HTTP/1.1 403"), origin
    old = handshake(Sec_WebSocket_Version="8")
    assert old.startswith("HTTP/1.1 426") and "Sec-WebSocket-Version: 13" in old
    assert handshake(Upgrade=None).startswith("HTTP/1.1 426")
    assert handshake(Sec_WebSocket_Key="short").startswith("HTTP/1.1 400")
    assert suite.client.request("GET", "/websocket").status_code == 426
    assert suite.client.request("GET", "/events", headers={"Origin": "https://evil.example"}
                                ).status_code == 403


def test_a_client_says_who_it_is_by_header_cookie_or_first_message(gateway):
    suite = gateway(dev=False)
    viewer = add_user(suite, "vic", "viewer")
    token = viewer.session.headers["Authorization"].split()[1]
    key = viewer.post("/api-keys/generate", {"name": "ws"}, status=201)["key"]
    url = suite.url()
    for options in ({"header": [f"Authorization: Bearer {token}"]},
                    {"header": [f"X-API-Key: {key}"]},
                    {"cookie": f"a=b; hypersdk_session={token}"}):
        hello = Socket(url, **options).next()
        assert hello["type"] == "hello" and hello["authenticated"], options

    s = Socket(url)
    hello = s.next()
    assert not hello["authenticated"] and hello["subscription"] == []
    s.send(action="subscribe", topics=["jobs"])
    assert s.until("error")["code"] == "denied"
    s.send(action="auth", token=token)
    hello = s.until("hello")
    assert hello["authenticated"] and "jobs" in hello["subscription"]
    emit(suite, add_job(suite, "job-1"), "job.created")
    s.until("job.created")

    wrong = Socket(url)
    wrong.send(action="auth", token="s." + "0" * 64)
    assert wrong.until("error")["code"] == "unauthenticated"
    assert wrong.closed() == 1008
    with pytest.raises(websocket.WebSocketBadStatusException) as refused:
        Socket(url, header=["Authorization: Bearer s." + "0" * 64])
    assert refused.value.status_code == 401
    rows = suite.sql('SELECT "user", result FROM audit.audit_log WHERE action = %s ORDER BY id',
                     "websocket.auth")
    assert [tuple(r.values()) for r in rows] == [("vic", "success"), ("", "denied")]
    # whoever says nothing is asked to leave
    silent = Socket(url)
    assert silent.closed() == 1008


def test_permissions_bound_the_topics(gateway):
    suite = gateway(dev=False, config={"roles": {"jobs": ["job.view"], "users": ["user.manage"]}})
    client = add_user(suite, "jo", "jobs")
    header = [f"Authorization: {client.session.headers['Authorization']}"]
    s = Socket(suite.url(), header=header)
    assert s.next()["subscription"] == ["jobs"]
    for topic, permission in (("status", "status.view"), ("schedules", "schedule.view")):
        s.send(action="subscribe", topics=[topic])
        refused = s.until("error")
        assert refused["code"] == "denied" and permission in refused["error"]
    nobody = add_user(suite, "uma", "users").session.headers["Authorization"]
    with pytest.raises(websocket.WebSocketBadStatusException) as refused:
        Socket(suite.url(), header=[f"Authorization: {nobody}"])
    assert refused.value.status_code == 403
    late = Socket(suite.url())
    late.send(action="auth", token=nobody.split()[1])
    assert late.closed() == 1008


def test_a_session_that_ends_takes_its_live_connections_along(gateway):
    suite = gateway(dev=False)
    client = add_user(suite, "vic", "viewer")
    s = Socket(suite.url(), timeout=60,
               header=[f"Authorization: {client.session.headers['Authorization']}"])
    s.next()
    client.post("/api/logout")
    assert s.closed() == 1008


def test_sigterm_says_goodbye(gateway):
    suite = gateway()
    s = Socket(suite.url())
    s.next()
    stream = suite.client.request("GET", "/events", stream=True)
    suite["api-gateway"].signal(15)
    assert s.closed() == 1001
    for _ in stream.iter_lines():
        pass
    assert suite["api-gateway"].child.wait(60) == 0


# ---- slow readers ----

def test_a_slow_reader_holds_up_nobody_and_is_closed(gateway):
    suite = gateway()
    wait_subscribed(suite)
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    slow.connect(("127.0.0.1", suite.port("api-gateway")))
    slow.sendall(HANDSHAKE)
    quick = Socket(suite.url())
    quick.next()
    suite.sql("INSERT INTO jobs (id, provider, vm_path, definition) SELECT 'job-' || i, 'v', 'v',"
              " '{}' FROM generate_series(1, 20) i")
    padding = "x" * 2000
    seen = 0
    before = suite["api-gateway"].rss()
    for turn in range(150):
        pipeline(suite, ["PUBLISH hypersdk:events " + json.dumps(json.dumps(
            {"type": "job.progress", "seq": 1, "job_id": f"job-{i}", "status": "running",
             "percentage": turn / 2, "pad": padding})) for i in range(1, 21)])
        while seen < (turn + 1) * 20:
            if quick.next()["type"] == "job.progress":
                seen += 1
    # 6 MB were sent; the slow one has at most its limit waiting, and then the newest of each job
    if VARIANT == "release":  # sanitizers keep what was freed
        assert suite["api-gateway"].rss() - before < 8 << 20
    # state events cannot be left out: it is closed instead
    count = 0
    for batch in range(1, 4):  # the other one shall never be slow itself, on any machine
        suite.sql("INSERT INTO job_events (job_id, event, status, detail) SELECT 'job-1',"
                  " 'job.many', 'running', '{}' FROM generate_series(1, 5000)")
        while count < batch * 5000:
            if quick.next()["type"] == "job.many":
                count += 1
    # it does not read, so it cannot be told why (1013: tests/unit/api-gateway/test_subscriber.c)
    slow.settimeout(60)
    total = 0
    while piece := slow.recv(1 << 16):
        total += len(piece)
    assert total < 3 << 20


def pipeline(suite, lines):
    """Commands to Redis without a process for each."""
    with socket.create_connection(("127.0.0.1", suite.redis.port)) as s:
        s.sendall(("\r\n".join([f"AUTH {suite.redis.password}"] + lines + ["QUIT"]) + "\r\n").encode())
        while s.recv(65536):
            pass


# ---- SSE ----

def test_sse_shows_the_same_events_and_resumes(gateway):
    suite = gateway()
    wait_subscribed(suite)
    job = add_job(suite, "job-1")
    watcher = Socket(suite.url())
    first = emit(suite, job, "job.created")
    watcher.until("job.created")  # it is through: who comes now does not see it any more
    answer = suite.client.request("GET", "/events?topics=jobs", stream=True)
    assert answer.headers["Content-Type"] == "text/event-stream"
    blocks = sse(answer)
    assert next(blocks)["event"] == "hello"
    second = emit(suite, job, "job.running")
    block = next(blocks)
    assert (block["event"], block["id"]) == ("job.running", str(second))
    assert json.loads(block["data"])["job_id"] == job
    answer.close()
    third = emit(suite, job, "job.completed")
    again = suite.client.request("GET", "/api/v1/events", stream=True,
                                 headers={"Last-Event-ID": str(first)})
    rows = (b for b in sse(again) if "id" in b)
    ids = [next(rows)["id"] for _ in range(2)]
    assert ids == [str(second), str(third)]
    again.close()
    assert suite.client.request("GET", "/events?topics=nothing").status_code == 400
    assert suite.client.request("GET", "/events?resume_from=x").status_code == 400
    assert suite.client.request("HEAD", "/events").status_code == 400


# ---- logs ----

def test_a_followed_log_ends_with_the_job_and_loses_no_line(gateway):
    suite = gateway()
    job = add_job(suite, "job-1", status="running")
    add_lines(suite, job, *[f"old {i}" for i in range(5)])
    results = {}

    def follow(name, query="", **headers):
        answer = suite.client.request("GET", f"/jobs/logs/{job}?follow=true{query}", stream=True,
                                      headers=headers)
        assert answer.status_code == 200, answer.text
        started.release()
        results[name] = (answer.headers["Content-Type"], answer.content.decode())

    started = threading.Semaphore(0)
    threads = [threading.Thread(target=follow, args=a, kwargs=k) for a, k in [
        (("text",), {}), (("sse",), {"Accept": "text/event-stream"}),
        (("ndjson",), {"Accept": "application/x-ndjson"}), (("tail", "&tail=2"), {}),
        (("none", "&tail=0"), {}), (("warn", "&level=warn"), {})]]
    for t in threads:
        t.start()
    for _ in threads:
        assert started.acquire(timeout=60)
    add_lines(suite, job, "a\nb \"quoted\" ä")
    add_lines(suite, job, "careful", level="warn")
    suite.sql("INSERT INTO job_logs (job_id, at, level, phase, message) SELECT 'job-1', now(),"
              " 'info', '', 'line ' || i FROM generate_series(1, 2000) i")
    suite.sql("UPDATE jobs SET status = 'completed' WHERE id = %s", job)
    for t in threads:
        t.join(60)
        assert not t.is_alive()
    kind, text = results["text"]
    lines = text.splitlines()
    assert kind.startswith("text/plain") and len(lines) == 2007
    assert lines[5].endswith('[exporting] a b "quoted" ä') and lines[-1].endswith("line 2000")
    assert [line.rsplit(" ", 1)[1] for line in lines[7:]] == [str(i) for i in range(1, 2001)]
    blocks = [b for b in results["sse"][1].split("\n\n") if b]
    assert blocks[-1].startswith("event: end") and '"completed"' in blocks[-1]
    assert len(blocks) == 2008 and all(b.startswith("event: job.log\n") for b in blocks[:-1])
    first = json.loads(results["ndjson"][1].splitlines()[5])
    assert first["message"] == 'a\nb "quoted" ä' and first["phase"] == "exporting"
    assert len(results["ndjson"][1].splitlines()) == 2007
    assert len(results["tail"][1].splitlines()) == 2004
    assert len(results["none"][1].splitlines()) == 2002
    assert len(results["warn"][1].splitlines()) == 1
    # of a job that is over: everything at once
    again = suite.client.request("GET", f"/jobs/logs/{job}?follow=true&tail=3")
    assert len(again.text.splitlines()) == 3


def test_websocket_clients_follow_logs_by_topic(gateway):
    suite = gateway()
    job = add_job(suite, "job-1", status="running")
    add_lines(suite, job, "before")
    s = Socket(suite.url(), f"/ws?topics=logs:{job}")
    assert s.until("job.log")["message"] == "before"
    add_lines(suite, job, "after", level="error")
    line = s.until("job.log")
    assert (line["message"], line["level"], line["job_id"]) == ("after", "error", job)
    s.send(action="unsubscribe", topics=[f"logs:{job}"])
    s.until("unsubscribed")
    add_lines(suite, job, "unheard")
    s.send(action="subscribe", topics=[f"logs:{add_job(suite, 'job-2')}"])
    add_lines(suite, "job-2", "heard")
    assert s.until("job.log")["message"] == "heard"


def test_followers_survive_a_restart_of_the_database(gateway):
    suite = gateway(own_postgres=True)
    job = add_job(suite, "job-1", status="running")
    s = Socket(suite.url(), f"/ws?topics=jobs,logs:{job}", timeout=60)
    add_lines(suite, job, "one")
    s.until("job.log")
    suite.postgres.stop("immediate")
    suite.postgres.start()
    add_lines(suite, job, "two")
    assert s.until("job.log")["message"] == "two"
    seq = add_event(suite, job, "job.completed")
    assert s.until("job.completed")["seq"] == seq


def test_streams_that_were_left_are_noticed(gateway):
    suite = gateway()

    def clients():
        text = suite.admin("api-gateway").request("GET", "/metrics").text
        return next((float(line.split()[1]) for line in text.splitlines()
                     if line.startswith("hypersdk_live_clients ")), None)

    streams = [suite.client.request("GET", "/events", stream=True) for _ in range(5)]
    sockets = [Socket(suite.url()) for _ in range(5)]
    wait_for(lambda: clients() == 10)
    for s in streams:
        s.close()
    for s in sockets:
        s.socket.sock.close()
    wait_for(lambda: clients() == 0)


def test_live_clients_are_limited(gateway):
    suite = gateway(config={"security": {"connections_per_ip_max": 0}})
    keep = []

    def open_one():
        s = socket.create_connection(("127.0.0.1", suite.port("api-gateway")))
        s.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        keep.append(s)
        return s.recv(12)

    answers = [open_one() for _ in range(1001)]
    assert answers[999] == b"HTTP/1.1 200" and answers[1000] == b"HTTP/1.1 503"
    assert suite.client.request("GET", "/roles/list").ok


def test_strangers_do_not_fill_the_house(gateway):
    suite = gateway(dev=False)
    token = suite.client.session.headers["Authorization"]
    strangers = []
    for _ in range(100):  # all together: each of them has ten seconds to say who it is
        s = socket.create_connection(("127.0.0.1", suite.port("api-gateway")), 60)
        s.sendall(HANDSHAKE)
        strangers.append(s)
    assert all(s.recv(12) == b"HTTP/1.1 101" for s in strangers)
    with pytest.raises(websocket.WebSocketBadStatusException) as refused:
        Socket(suite.url())
    assert refused.value.status_code == 503
    assert Socket(suite.url(), header=[f"Authorization: {token}"]).next()["authenticated"]
    for s in strangers:
        s.close()

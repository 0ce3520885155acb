"""api-gateway: limits, identity, permissions and audit, by the real binary from outside."""
import json
import re
import signal
import socket
import ssl
import subprocess
import time

import pytest

from tests.harness.client import Client
from tests.harness.gateways import add_user, admin_password, login, start_gateways
from tests.harness.process import BIN
from tests.harness.vsphere import make_certificate
from tests.harness.wait import wait_for


@pytest.fixture
def gateway(make_suite):
    return lambda **options: start_gateways(make_suite, **options)


def routes(suite):
    """The route table as the binary prints it."""
    done = subprocess.run([BIN / "api-gateway", "--config", suite.directory / "api-gateway.yaml",
                           "--routes"], capture_output=True, timeout=60)
    return json.loads(done.stdout)


def complete(answer):
    """Is a whole answer there, as far as its own length says?"""
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return end and (length is None or len(body) >= int(length.group(1)))


def raw(suite, data, timeout=60):
    """Sends bytes as they are; everything that comes back until the other side closes or is quiet."""
    with socket.create_connection(("127.0.0.1", suite.port("api-gateway")), timeout) as s:
        s.sendall(data)
        answer = b""
        while True:
            try:
                piece = s.recv(65536)
            except (ConnectionResetError, TimeoutError):
                break
            if not piece:
                break
            answer += piece
            if complete(answer):
                s.settimeout(1)
        return answer.decode("latin-1")


def status_of(answer):
    return int(answer.split(" ", 2)[1])


# ---- shape ----

def test_errors_have_one_shape(gateway):
    suite = gateway()
    for method, path, status, code in [
            ("GET", "/nothing", 404, "not_found"),
            ("GET", "/carbon/zones", 404, "not_available"),
            ("DELETE", "/users/list", 405, "method_not_allowed"),
            ("GET", "/api/v1/users/none", 404, "not_found"),
            ("POST", "/api/v1/users", 400, "invalid"),
            ("GET", "/audit/logs?limit=0", 400, "invalid"),
            ("GET", "/audit/logs?nonsense=1", 400, "invalid"),
            ("GET", "/api/v1/users/%00", 400, "invalid"),
            ("GET", "/api/v1/users/%ff", 400, "invalid")]:
        answer = suite.client.request(method, path)
        assert answer.status_code == status, (method, path, answer.text)
        body = answer.json()
        assert body["code"] == code, (method, path, body)
        assert body["error"] and body["request_id"] == answer.headers["X-Request-Id"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", body["timestamp"])
        if status == 405:
            assert answer.headers["Allow"] == "GET, HEAD, OPTIONS"


def test_malformed_urls_are_refused(gateway):
    suite = gateway()
    for target in ("/audit/logs?user=%zz", "/audit/logs?user=%0", "/api/v1/users/%zz",
                   "http://localhost/users/list", "*", "/audit/logs?" + "user=a&" * 150):
        answer = raw(suite, f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert status_of(answer) in (400, 404, 414), (target[:30], answer)


def test_head_options_and_trace(gateway):
    suite = gateway()
    head = suite.client.request("HEAD", "/roles/list")
    get = suite.client.request("GET", "/roles/list")
    assert head.status_code == 200 and head.content == b""
    assert head.headers["Content-Length"] == get.headers["Content-Length"]
    options = suite.client.request("OPTIONS", "/api/v1/users/x")
    assert options.status_code == 204
    assert options.headers["Allow"] == "GET, HEAD, PUT, DELETE, OPTIONS"
    assert suite.client.request("OPTIONS", "/nothing").status_code == 404
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    answer = suite.client.request("GET", "/roles/list", headers={"traceparent": trace})
    version, trace_id, parent, _ = answer.headers["traceparent"].split("-")
    assert trace_id == trace.split("-")[1] and parent != trace.split("-")[2]
    # a malformed one is replaced, not repeated
    answer = suite.client.request("GET", "/roles/list", headers={"traceparent": "00-zz-1-01"})
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", answer.headers["traceparent"])


def test_bodies_are_strict_json_or_anything_with_comments(gateway):
    suite = gateway()

    def post(body, content_type):
        return suite.client.request("POST", "/api/v1/users", body,
                                    headers={"Content-Type": content_type})

    commented = ('{ "username": "c1", # who\n "password": "correct horse", "roles": ["viewer"] }')
    assert post(commented, "application/json").status_code == 400
    assert post(commented, "application/x-www-form-urlencoded").status_code == 201
    assert post("username: c2\npassword: correct horse\nroles: [viewer]\n",
                "application/x-yaml").status_code == 201
    for body in ['{"username":"a","username":"b"}', "[" * 100000, '{"a":' * 100 + "1" + "}" * 100,
                 '"text"', "{", '{"username": 7, "password": "x", "roles": []}',
                 '{"surprise": 1}', "a: &x [1]\nb: *x\n"]:
        for content_type in ("application/json", "text/plain"):
            answer = post(body, content_type)
            assert answer.status_code == 400, (body[:40], content_type, answer.text)
    assert "surprise" in post('{"surprise": 1}', "application/json").json()["error"]
    get = suite.client.request("GET", "/users/list", "{}")
    assert get.status_code == 400 and "body" in get.json()["error"]


# ---- limits ----

def test_contradictory_lengths_are_refused_and_the_connection_ends(gateway):
    suite = gateway()
    smuggled = "GET /audit/logs HTTP/1.1\r\nHost: localhost\r\n\r\n"
    body = "5\r\nhello\r\n0\r\n\r\n"
    for lines in (["Content-Length: 4", "Transfer-Encoding: chunked"],
                  ["Transfer-Encoding: chunked", "Content-Length: 4"],
                  ["Content-Length: 5", "Content-Length: 60"],
                  ["Content-Length: 5", "Content-Length: 5"],
                  ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
                  ["Transfer-Encoding: gzip, chunked"]):
        head = "POST /api/v1/users HTTP/1.1\r\nHost: localhost\r\n" + "\r\n".join(lines) + "\r\n\r\n"
        answer = raw(suite, (head + body + smuggled).encode())
        assert answer == "" or status_of(answer) in (400, 413, 501), (lines, answer)
        assert answer.count("HTTP/1.1 ") <= 1, (lines, answer)
    assert suite.sql("SELECT count(*) AS n FROM audit.audit_log WHERE action = 'audit.query'")[0][
        "n"] == 0


def test_big_bodies_are_refused_before_they_are_read(gateway):
    suite = gateway(config={"security": {"max_request_size_mb": 1}})
    head = ("POST /api/v1/users HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
    answer = raw(suite, (head + "Content-Length: 1048577\r\n\r\n").encode())  # nothing follows
    assert status_of(answer) == 413 and '"too_large"' in answer
    assert status_of(raw(suite, (head + "Content-Length: 99999999999999999999\r\n\r\n").encode())
                     ) in (400, 413)
    # chunked: counted while it comes
    chunks = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    answer = raw(suite, (head + "Transfer-Encoding: chunked\r\n\r\n").encode() + chunks * 20
                 + b"0\r\n\r\n")
    assert status_of(answer) == 413
    row = suite.sql("SELECT * FROM audit.audit_log WHERE status = 413 ORDER BY id LIMIT 1")[0]
    assert row["action"] == "user.create" and row["result"] == "failure"


def test_without_a_credential_only_small_bodies_are_taken(gateway):
    suite = gateway(dev=False)
    answer = Client(suite.url()).request("POST", "/api/login", "x" * 70000)
    assert answer.status_code == 413


def test_long_headers_and_paths_are_refused(gateway):
    suite = gateway()
    big = "GET /roles/list HTTP/1.1\r\nHost: localhost\r\nX-Long: " + "a" * 40000 + "\r\n\r\n"
    assert status_of(raw(suite, big.encode())) == 431
    many = "".join(f"X-{i}: 1\r\n" for i in range(150))
    assert status_of(raw(suite, f"GET /roles/list HTTP/1.1\r\nHost: localhost\r\n{many}\r\n".encode())
                     ) == 431
    assert suite.client.request("GET", "/" + "a" * 5000).status_code == 414
    assert status_of(raw(suite, b"GET /roles/list HTTP/1.1\r\n\r\n")) == 400  # no Host


def test_slow_clients_are_cut_off_and_others_are_served(gateway):
    suite = gateway(config={"security": {"header_timeout": "2s"}})
    address = ("127.0.0.1", suite.port("api-gateway"))
    begin = time.monotonic()
    slow = [socket.create_connection(address) for _ in range(20)]
    late_body = socket.create_connection(address)
    late_body.sendall(b"POST /api/v1/users HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n")
    idle = socket.create_connection(address)
    alive = set(slow + [late_body, idle])
    for s in slow:
        s.sendall(b"GET /roles/list HTTP/1.1\r\nHost: localhost\r\n")

    def drip():
        """One byte now and then, as slowloris does."""
        for s in list(alive):
            try:
                if s is late_body:
                    s.sendall(b" ")
                elif s is not idle:
                    s.sendall(b"X-a: b\r\n")
                s.setblocking(False)
                if s.recv(1000) == b"":
                    alive.discard(s)
            except BlockingIOError:
                pass
            except OSError:
                alive.discard(s)
            finally:
                s.setblocking(True)
        assert suite.client.request("GET", "/roles/list").ok
        return not alive

    wait_for(drip, what=lambda: f"{len(alive)} slow connections still open", interval=0.2)
    assert time.monotonic() - begin > 1.5  # not at once either
    for s in slow + [late_body, idle]:
        s.close()


def test_rate_limit_answers_429_with_retry_after(gateway):
    suite = gateway(config={"security": {"rate_limit_per_min": 30}})
    begin = time.monotonic()
    count = 0
    while (answer := suite.client.request("GET", "/roles/list")).ok and count < 1000:
        count += 1
    assert 28 <= count <= 30 + (time.monotonic() - begin) / 2
    assert answer.status_code == 429 and answer.json()["code"] == "rate_limited"
    assert 1 <= int(answer.headers["Retry-After"]) <= 3


def test_connections_of_one_address_are_limited(gateway):
    suite = gateway(config={"security": {"connections_per_ip_max": 5}})
    address = ("127.0.0.1", suite.port("api-gateway"))
    held = [socket.create_connection(address) for _ in range(12)]

    def closed():
        count = 0
        for s in held:
            s.setblocking(False)
            try:
                count += s.recv(1) == b""
            except BlockingIOError:
                pass
            except OSError:
                count += 1
        return count == 7

    wait_for(closed, what="the excess closed")


# ---- dev mode ----

def test_dev_mode_wants_loopback(gateway, make_suite):
    suite = make_suite(services=[], start=False)
    for address in ("0.0.0.0:0", "[::]:0"):
        settings = suite.config("api-gateway")
        settings["daemon"]["address"] = address
        path = suite.write_config("api-gateway", settings)
        done = subprocess.run([BIN / "api-gateway", "--config", path], capture_output=True,
                              text=True, timeout=20)
        assert done.returncode == 64 and "loopback" in done.stderr
        settings["daemon"]["dev_mode"] = False
        path = suite.write_config("api-gateway", settings)
        done = subprocess.run([BIN / "api-gateway", "--check-config", "--config", path],
                              capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, done.stderr


def test_dev_mode_says_so_and_keeps_other_pages_out(gateway):
    suite = gateway(config={"security": {"allowed_origins": ["https://ui.example.net"]}})
    assert suite["api-gateway"].events("dev_mode")
    assert not suite.sql("SELECT 1 FROM users")
    host = f"127.0.0.1:{suite.port('api-gateway')}"

    def call(method="POST", **headers):
        return suite.client.request(method, "/api/v1/users", {} if method == "POST" else None,
                                    headers=headers)

    assert call().status_code == 400
    assert call(Origin=f"http://{host}").status_code == 400
    assert call(Origin="https://ui.example.net").status_code == 400
    for origin in ("https://evil.example", "null", "https://ui.example.net.evil.example",
                   f"http://{host}.evil.example"):
        refused = call(Origin=origin)
        assert refused.status_code == 403, origin
        assert "Access-Control-Allow-Origin" not in refused.headers
        assert "Access-Control-Allow-Origin" not in call("GET", Origin=origin).headers
    # a name that was rebound to this machine
    assert call(Host="evil.example").status_code == 403
    assert call("GET", Host="evil.example").status_code == 403
    assert call("GET", Host="localhost:1").ok
    preflight = call("OPTIONS", Origin="https://ui.example.net")
    assert preflight.headers["Access-Control-Allow-Origin"] == "https://ui.example.net"
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    assert "Access-Control-Allow-Origin" not in call("OPTIONS", Origin="https://x.example").headers


# ---- identity ----

def test_first_start_makes_one_administrator(gateway):
    suite = gateway(count=2, dev=False)
    assert len(suite.sql("SELECT 1 FROM users")) == 1
    password = admin_password(suite)
    events = [e for p in suite.processes.values() for e in p.events("admin_created")]
    assert len(events) == 1
    for process in suite.processes.values():
        for event in process.events():
            assert password not in json.dumps(event)
    before = suite["api-gateway"].output().count("first start")
    suite["api-gateway"].restart()
    wait_for(lambda: suite.ready("api-gateway"))
    login(suite, "admin", password)
    assert suite["api-gateway"].output().count("first start") == before
    assert suite.sql("SELECT password FROM users")[0]["password"].startswith("$argon2id$")


def test_sessions_end_by_logout_by_deletion_and_by_age(gateway):
    suite = gateway(dev=False)
    admin = suite.client
    ben = add_user(suite, "ben", "viewer")
    assert ben.get("/api/v1/api-keys") == {"api_keys": [], "total": 0}
    ben.post("/api/logout")
    assert ben.request("GET", "/api-keys/list").status_code == 401

    ben = login(suite, "ben", "correct horse")
    session = next(s for s in admin.get("/sessions/list")["sessions"] if s["username"] == "ben")
    assert set(session) == {"id", "username", "ip", "created_at", "expires_at"}
    admin.delete(f"/api/v1/sessions/{session['id']}", status=200)
    assert ben.request("GET", "/api-keys/list").status_code == 401
    admin.delete(f"/api/v1/sessions/{session['id']}", status=404)

    ben = login(suite, "ben", "correct horse")
    suite.sql("UPDATE sessions SET expires_at = now() - interval '1 second' WHERE user_id <>"
              " (SELECT id FROM users WHERE username = 'admin')")
    assert ben.request("GET", "/api-keys/list").status_code == 401
    # nothing that could be used is stored
    token = login(suite, "ben", "correct horse").session.headers["Authorization"].split()[1]
    rows = suite.sql("SELECT encode(token_hash, 'hex') AS h FROM sessions")
    assert all(token[2:] != r["h"] for r in rows)


def test_api_keys_are_shown_once_and_follow_their_user(gateway):
    suite = gateway(dev=False)
    ana = add_user(suite, "ana", "operator", "viewer")
    made = ana.post("/api-keys/generate", {"name": "ci", "roles": ["viewer"],
                                           "expires_in_days": 30}, status=201)
    key = Client(suite.url(), api_key=made["key"])
    listed = key.get("/api-keys/list")["api_keys"]
    assert [k["id"] for k in listed] == [made["id"]]
    assert "key" not in listed[0] and made["key"].startswith(listed[0]["prefix"])
    assert len(listed[0]["prefix"]) == 10 and listed[0]["last_used"]
    assert made["key"] not in json.dumps(suite.sql("SELECT row_to_json(k)::text AS t FROM api_keys k"))
    # not more than the user has
    assert ana.request("POST", "/api-keys/generate", {"roles": ["admin"]}).status_code == 403
    # a key cannot make keys with more than itself
    assert key.request("POST", "/api-keys/generate", {"roles": ["operator"]}).status_code == 403
    # a role that the user loses is lost to the key
    user = next(u for u in suite.client.get("/users/list")["users"] if u["username"] == "ana")
    suite.client.put(f"/api/v1/users/{user['id']}", {"roles": ["operator"]})
    suite.sql("UPDATE users SET roles = '{operator}' WHERE username = 'ana'")
    assert key.request("GET", "/events").status_code == 403
    suite.client.put(f"/api/v1/users/{user['id']}", {"status": "disabled"})
    assert key.request("GET", "/api-keys/list").status_code == 401
    suite.client.put(f"/api/v1/users/{user['id']}", {"status": "active"})
    assert key.request("GET", "/api-keys/list").ok
    # others' keys are not theirs to delete
    eve = add_user(suite, "eve", "viewer")
    assert eve.request("DELETE", f"/api/v1/api-keys/{made['id']}").status_code == 404
    suite.client.delete(f"/api/v1/api-keys/{made['id']}", status=200)
    assert key.request("GET", "/api-keys/list").status_code == 401


def test_wrong_credentials_are_401_wherever_they_stand(gateway):
    suite = gateway(dev=False)
    token = suite.client.session.headers["Authorization"].split()[1]
    for headers in ({}, {"Authorization": "Bearer s." + "0" * 64}, {"Authorization": "Bearer x"},
                    {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer " + "s." * 5000},
                    {"X-API-Key": token[:-1] + ("0" if token[-1] != "0" else "1")},
                    {"X-API-Key": "k." + "1" * 64}, {"Cookie": f"hypersdk_session={token}"}):
        answer = Client(suite.url()).request("GET", "/users/list", headers=headers)
        assert answer.status_code == 401, headers
        assert answer.json()["code"] == "unauthenticated"
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    # never in the URL
    assert Client(suite.url()).request("GET", f"/users/list?token={token}").status_code == 401
    assert Client(suite.url()).request("GET", f"/events?token={token}").status_code == 401


def test_login_backs_off_and_works_as_much_for_unknown_users(gateway):
    suite = gateway(dev=False, config={"security": {"login_attempts_per_min": 6}})
    add_user(suite, "ana", "viewer")

    def attempt(name, password="wrong password"):
        return Client(suite.url()).request("POST", "/api/login",
                                           {"username": name, "password": password})

    errors, spent = set(), {}
    for name in ("ana", "nobody"):
        before = suite["api-gateway"].cpu_seconds()
        for _ in range(5):
            answer = attempt(name)
            assert answer.status_code == 401
            errors.add(answer.json()["error"])
        spent[name] = suite["api-gateway"].cpu_seconds() - before
    assert len(errors) == 1
    assert 0.5 < spent["ana"] / spent["nobody"] < 2.0, spent

    def refused_for_long():
        """A try comes back every ten seconds: not one that comes before we have looked."""
        answer = attempt("ana")
        return answer.status_code == 429 and int(answer.headers["Retry-After"]) >= 6

    wait_for(refused_for_long, interval=1)  # not too many tries of this address
    # the right password is not better off, another user is
    assert attempt("ana", "correct horse").status_code == 429
    assert attempt("admin", admin_password(suite)).status_code == 200


def test_who_may_only_look_makes_no_snapshot_and_edits_no_vm(gateway):
    suite = gateway(dev=False, config={"roles": {"looker": ["vm.list", "job.create", "vm.export"]}})
    looker = add_user(suite, "lou", "looker")
    for path in ("/incremental/analyze", "/api/v1/vms/vm-1/incremental"):
        refused = looker.request("POST", path, {"vm_path": "web", "temporary_snapshot": True})
        assert refused.status_code == 403 and "vm.operate" in refused.text, refused.text
        plain = looker.request("POST", path, {"vm_path": "web", "temporary_snapshot": False})
        assert plain.status_code == 422 and "provider" in plain.text, plain.text
    for wish in ({"options": {"shutdown_vm": True}}, {"options": {"remove_cdrom": True}},
                 {"pre_hooks": [{"type": "shutdown"}]}):
        denied = looker.request("POST", "/api/v1/jobs", {"vm_path": "web", **wish})
        assert denied.status_code == 403 and "vm.operate" in denied.json()["error"], denied.text
    job = looker.request("POST", "/api/v1/jobs", {"vm_path": "web", "enable_cbt": True})
    assert job.status_code == 403 and "vm.operate" in job.text, job.text
    for method, path in (("POST", "/cbt/enable"), ("PUT", "/api/v1/vms/vm-1/cbt"),
                         ("POST", "/cbt/disable"), ("DELETE", "/api/v1/vms/vm-1/cbt")):
        assert looker.request(method, path, {"vm_path": "web"}).status_code == 403
    assert suite.sql("SELECT count(*) AS n FROM tasks")[0]["n"] == 0


def test_user_management_keeps_its_rules(gateway):
    suite = gateway(dev=False, config={"roles": {"keeper": ["user.manage", "job.view"]}})
    admin = suite.client
    created = admin.request("POST", "/users/create", {"username": "ben", "roles": ["viewer"],
                                                      "password": "correct horse",
                                                      "email": "ben@example.net"})
    assert created.status_code == 201
    ben = created.json()
    assert set(ben) == {"id", "username", "email", "roles", "status", "created_at", "last_login"}
    for body, status in [
            ({"username": "ben", "password": "correct horse", "roles": ["viewer"]}, 409),
            ({"username": "b n", "password": "correct horse", "roles": ["viewer"]}, 400),
            ({"username": "x", "password": "short", "roles": ["viewer"]}, 400),
            ({"username": "x", "password": "correct horse", "roles": []}, 400),
            ({"username": "x", "password": "correct horse", "roles": ["nope"]}, 422),
            ({"username": "x", "password": "correct horse", "roles": ["viewer"], "id": "u"}, 400)]:
        answer = admin.request("POST", "/api/v1/users", body)
        assert answer.status_code == status, (body, answer.text)
    # who may manage users cannot make one that may do more
    keeper = add_user(suite, "kim", "keeper")
    assert keeper.request("POST", "/api/v1/users", {
        "username": "x", "password": "correct horse", "roles": ["admin"]}).status_code == 403
    assert keeper.request("PUT", f"/api/v1/users/{ben['id']}", {"roles": ["admin"]}
                          ).status_code == 403
    # a new password ends the user's sessions
    client = login(suite, "ben", "correct horse")
    admin.put(f"/api/v1/users/{ben['id']}", {"password": "other horses"})
    assert client.request("GET", "/api-keys/list").status_code == 401
    assert admin.get(f"/api/v1/users/{ben['id']}")["roles"] == ["viewer"]
    # someone must be left
    me = next(u for u in admin.get("/users/list")["users"] if u["username"] == "admin")
    for answer in (admin.request("DELETE", f"/api/v1/users/{me['id']}"),
                   admin.request("PUT", f"/api/v1/users/{me['id']}", {"status": "disabled"}),
                   admin.request("PUT", f"/api/v1/users/{me['id']}", {"roles": ["viewer"]})):
        assert answer.status_code == 409, answer.text
    admin.delete(f"/api/v1/users/{ben['id']}", status=200)
    admin.delete(f"/api/v1/users/{ben['id']}", status=404)


def test_roles_of_the_configuration_win_over_the_table(gateway):
    suite = gateway(dev=False, config={"roles": {"viewer": ["audit.view"], "auditor": ["audit.view"]}})
    roles = {r["name"]: r for r in suite.client.get("/roles/list")["roles"]}
    assert roles["viewer"]["permissions"] == ["audit.view"] and roles["viewer"]["builtin"]
    assert not roles["auditor"]["builtin"] and "job.create" in roles["operator"]["permissions"]
    viewer = add_user(suite, "vic", "viewer")
    assert viewer.request("GET", "/audit/logs").ok
    assert viewer.request("GET", "/events").status_code == 403
    path = suite.write_config("api-gateway", dict(suite.config("api-gateway"),
                                                  roles={"x": ["job.fly"]}))
    done = subprocess.run([BIN / "api-gateway", "--check-config", "--config", path],
                          capture_output=True, text=True, timeout=20)
    assert done.returncode == 64 and "job.fly" in done.stderr


def test_every_route_asks_for_what_the_table_says(gateway):
    """Each route x {nobody, viewer, operator, admin}: 401 or 403 exactly where the table wants it.
    The calls themselves may fail: nothing behind them exists."""
    suite = gateway(dev=False)
    people = {"nobody": Client(suite.url()), "admin": suite.client,
              "viewer": add_user(suite, "vic", "viewer"),
              "operator": add_user(suite, "opa", "operator")}
    granted = {r["name"]: set(r["permissions"]) for r in suite.client.get("/roles/list")["roles"]}
    granted["nobody"] = set()
    checked = 0
    for route in routes(suite):
        open_to_all = "open" in route["flags"]
        path = re.sub(r"\{[a-z]+\}", "none", route["path"])
        if route["path"] in ("/api/logout", "/api/v1/auth/logout") or "slow" in route["flags"]:
            continue  # ends the session; waits for a worker
        for name, client in people.items():
            if open_to_all and name != "nobody":
                continue
            body = "[]" if route["method"] in ("POST", "PUT") else None
            answer = client.request(route["method"], path, body, stream="stream" in route["flags"])
            if answer.ok:
                answer.close()
            wanted = route["permission"]
            may = open_to_all or (wanted is None and name != "nobody") or wanted in granted[name] \
                or (wanted and wanted.endswith(".own") and wanted[:-4] in granted[name])
            if name == "nobody" and not open_to_all and "late_auth" not in route["flags"]:
                assert answer.status_code == 401, (name, route)
            elif name != "nobody" and not may:
                assert answer.status_code == 403, (name, route)
                assert answer.json()["permission"] == wanted
            else:
                assert answer.status_code not in (401, 403), (name, route)
            checked += 1
    assert checked > 60
    families = {}
    for route in routes(suite):
        assert "no_db" in route["flags"] or route["action"], route
        assert "open" in route["flags"] or route["permission"] or "self" in route["flags"], route
        families.setdefault(route["operation"], set()).add(
            (route["permission"], route["action"]))
    for operation, rights in families.items():
        assert len(rights) == 1, (operation, rights)


# ---- audit ----

def test_every_call_leaves_one_row(gateway):
    suite = gateway(dev=False)
    viewer = add_user(suite, "vic", "viewer")
    suite.sql("TRUNCATE audit.audit_log")
    anyone = Client(suite.url())
    calls = [
        (suite.client.request("GET", "/users/list?limit=1"), "admin", "user.list", "success"),
        (viewer.request("GET", "/users/list"), "vic", "user.list", "denied"),
        (anyone.request("GET", "/users/list"), "", "user.list", "denied"),
        (anyone.request("GET", "/no/such/thing"), "", "request.refused", "failure"),
        (viewer.request("DELETE", "/users/list"), "", "request.refused", "failure"),
        (suite.client.request("GET", "/api/v1/users/none"), "admin", "user.view", "failure"),
        (anyone.request("POST", "/api/login", {"username": "vic", "password": "correct horse"}),
         "vic", "auth.login", "success"),
        (anyone.request("POST", "/api/login", {"username": "vic", "password": "wrong horse"}),
         "", "auth.login", "denied")]
    rows = suite.sql("SELECT * FROM audit.audit_log ORDER BY id")
    assert len(rows) == len(calls)
    for row, (answer, user, action, result) in zip(rows, calls):
        assert (row["user"], row["action"], row["result"]) == (user, action, result), row
        assert row["request_id"] == answer.headers["X-Request-Id"]
        assert row["status"] == answer.status_code and row["ip"] == "127.0.0.1"
        assert "?" not in row["path"] and row["user_agent"].startswith("python-requests")
    assert rows[1]["details"]["permission"] == "user.manage"
    assert rows[5]["resource"] == "user/none"
    page = suite.client.get("/audit/logs?user=vic&result=denied")
    assert page["total"] == 1 and page["logs"][0]["details"]["error"] == "denied"
    assert set(page["logs"][0]) >= {"timestamp", "user", "action", "resource", "result", "ip",
                                    "details"}
    first = suite.client.get("/api/v1/audit?limit=2")
    second = suite.client.get(f"/api/v1/audit?limit=2&cursor={first['next_cursor']}")
    ids = [r["id"] for r in first["logs"] + second["logs"]]
    assert len(set(ids)) == 4 and ids == sorted(ids, reverse=True)
    assert suite.client.request("GET", "/audit/logs?since=2026-02-31").status_code == 400
    assert suite.client.get("/audit/logs?since=2001-01-01&until=2001-01-02")["total"] == 0


def test_secrets_are_in_no_row_no_log_and_no_answer(gateway):
    suite = gateway(dev=False)
    password, first = "hunter2-hunter2", admin_password(suite)
    client = add_user(suite, "ana", "operator", password=password)
    token = client.session.headers["Authorization"].split()[1]
    key = client.post("/api-keys/generate", {"name": "k"}, status=201)["key"]
    Client(suite.url(), api_key=key).get("/api-keys/list")
    client.request("POST", "/api/login", {"username": password, "password": token})
    client.request("POST", "/api/login", {"username": "ana", "password": {"a": password}})
    client.request("GET", f"/users/list?password={password}&token={token}")
    client.request("GET", "/users/list", headers={"X-API-Key": key + "0"})
    client.request("POST", "/api/v1/users", {"username": "x", "password": password, "roles": 7})
    texts = {"log": re.sub(r"first start: .*", "", suite["api-gateway"].output())}
    for table in ("users", "sessions", "api_keys", "audit.audit_log"):
        texts[table] = json.dumps(suite.sql(f"SELECT row_to_json(t)::text AS t FROM {table} t"))
    for path in ("/users/list", "/sessions/list", "/api-keys/list", "/audit/logs?limit=1000"):
        texts[path] = suite.client.request("GET", path).text
    for place, text in texts.items():
        for secret in (password, first, token, key, key + "0"):
            assert secret not in text, (place, secret)


def test_a_database_that_is_down_means_503_and_a_log_line_for_the_row(gateway):
    suite = gateway(own_postgres=True)
    suite.client.get("/users/list")
    suite.postgres.stop("immediate")
    answer = suite.client.request("GET", "/users/list")
    assert answer.status_code == 503 and answer.json()["code"] == "unavailable"
    assert answer.headers["Retry-After"] and "127.0.0.1" not in answer.json()["error"]
    line = suite["api-gateway"].wait_event("audit_not_stored")[-1]
    assert line["action"] == "user.list" and line["request_id"] == answer.headers["X-Request-Id"]
    suite.postgres.start()
    # every thread's connection died: none of them may stumble over it
    wait_for(lambda: suite.client.request("GET", "/users/list").ok)
    for _ in range(20):
        assert suite.client.request("GET", "/users/list").ok


# ---- the rest ----

def test_tls_is_spoken_with_a_certificate(gateway, tmp_path):
    certificate, key = make_certificate(tmp_path, "gateway")
    suite = gateway(config={"daemon": {"tls_cert_file": str(certificate), "tls_key_file": str(key)}})
    context = ssl.create_default_context(cafile=str(certificate))
    with socket.create_connection(("127.0.0.1", suite.port("api-gateway")), 60) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as s:
            assert s.version() in ("TLSv1.2", "TLSv1.3")
            s.sendall(b"GET /roles/list HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: s.recv(65536), b"")).decode()
    assert status_of(answer) == 200


def test_half_of_a_tls_pair_is_a_configuration_error(make_suite):
    suite = make_suite(services=[], start=False, config={"daemon": {"tls_cert_file": "/x.pem"}})
    done = subprocess.run([BIN / "api-gateway", "--check-config", "--config",
                           suite.write_config("api-gateway")], capture_output=True, text=True)
    assert done.returncode == 64 and "belong together" in done.stderr


def test_export_keys_writes_one_file_per_audience(make_suite, tmp_path):
    suite = make_suite(services=[], start=False)
    target = tmp_path / "deep" / "keys"
    done = subprocess.run([BIN / "api-gateway", "--config", suite.write_config("api-gateway"),
                           "--export-keys", target], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    names = {p.name for p in target.iterdir()}
    assert names == {f"provider-{k}.key" for k in (
        "vsphere", "aws", "azure", "gcp", "hyperv", "proxmox", "openstack", "oci", "alibaba")} | {
            "notify.key", "bridge.key", "upload.key", "evidence.key", "exports.key"}
    contents = {p.read_text() for p in target.iterdir()}
    assert len(contents) == len(names)
    assert all((p.stat().st_mode & 0o777) == 0o600 for p in target.iterdir())
    assert (suite.directory / "master.key").read_text().strip() not in "".join(contents)
    assert not any(c.strip() in done.stderr + done.stdout for c in contents)
    settings = suite.config("api-gateway")
    del settings["secrets"]["master_key_file"]
    done = subprocess.run([BIN / "api-gateway", "--config",
                           suite.write_config("api-gateway", settings), "--export-keys", target],
                          capture_output=True, text=True, timeout=20)
    assert done.returncode != 0 and "master_key" in done.stderr


def test_sigterm_finishes_what_was_begun(gateway):
    suite = gateway(dev=False, config={"daemon": {"drain_ms": "60s"}})
    body = b'{"username": "admin", "password": "wrong password"}'
    begun = []
    for _ in range(6):  # 0.1 s of hashing each, two at a time
        s = socket.create_connection(("127.0.0.1", suite.port("api-gateway")), 60)
        s.sendall(b"POST /api/login HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
                  b"Content-Length: %d\r\n\r\n" % len(body))
        assert s.recv(100).startswith(b"HTTP/1.1 100")
        begun.append(s)
    suite["api-gateway"].signal(signal.SIGTERM)
    suite["api-gateway"].wait_event("service_stopping")
    for s in begun:
        s.sendall(body)
    for s in begun:
        assert s.recv(4096).startswith(b"HTTP/1.1 401")
        s.close()
    assert suite["api-gateway"].child.wait(120) == 0

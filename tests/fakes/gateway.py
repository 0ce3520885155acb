"""A scripted gateway for tests of the command line client: answers what a test lays down, records
what it was asked. answers: {(method, path without query): answer or function(request)}."""
import http.server
import json
import threading
import urllib.parse


class Request:
    def __init__(self, method, path, query, headers, body):
        self.method, self.path, self.query = method, path, query
        self.headers, self.body = headers, body


class CutConnection(Exception):
    """Raised by an answer: the request was handled, but its answer is lost."""


class FakeGateway:
    def __init__(self):
        self.answers = {("GET", "/health"): {"status": "healthy"}}
        self.requests = []
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def handle_one(self):
                parts = urllib.parse.urlsplit(self.path)
                length = int(self.headers.get("Content-Length") or 0)
                raw = self.rfile.read(length)
                request = Request(self.command, urllib.parse.unquote(parts.path),
                                  dict(urllib.parse.parse_qsl(parts.query)), self.headers,
                                  json.loads(raw) if raw else None)
                fake.requests.append(request)
                answer = fake.answers.get((request.method, request.path),
                                          (404, {"error": f"no {parts.path}", "code": "not_found"}))
                try:
                    if callable(answer):
                        answer = answer(request)
                except CutConnection:
                    self.close_connection = True
                    return
                status, body = answer if isinstance(answer, tuple) else (200, answer)
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_DELETE = handle_one

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def asked(self, method, path):
        return [r for r in self.requests if (r.method, r.path) == (method, path)]

    def close(self):
        self.server.shutdown()
        self.server.server_close()

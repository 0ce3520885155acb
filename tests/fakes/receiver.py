"""A webhook receiver that records what it gets."""
import http.server
import json
import threading
import time


class Request:
    def __init__(self, handler, body):
        self.at = time.monotonic()
        self.path = handler.path
        self.headers = {name.lower(): value for name, value in handler.headers.items()}
        self.body = body
        self.json = json.loads(body)


class Receiver:
    """answers: status codes given in turn, the last one for ever. hold: an Event that requests
    wait for before they are answered."""

    def __init__(self, answers=(204,), port=0):
        self.requests = []
        self.answers = list(answers)
        self.hold = None
        self.lock = threading.Lock()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with receiver.lock:
                    receiver.requests.append(Request(self, body))
                    answers = receiver.answers
                    status = answers.pop(0) if len(answers) > 1 else answers[0]
                if receiver.hold is not None:
                    receiver.hold.wait(600)
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                except OSError:
                    pass  # the notifier was killed meanwhile

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hook"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

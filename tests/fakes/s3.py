"""An S3 server that lies: the faults that real ones show now and then, when asked for.

    fake = S3().start()
    fake.fault("cut", part=2)            # the connection ends in the middle of part 2, once
    fake.fault("status", part=1, status=503, times=2, retry_after=0)
    fake.fault("status", key="x.json", status=503) # of objects whose key ends so
    fake.fault("etag", part=3)           # another ETag than that of the bytes
    fake.fault("complete-error")         # 200, then <Error>
    fake.fault("complete-lost")          # done, but no answer
    fake.fault("flip")                   # completed, but a byte of it changes
    fake.region = "eu-south-2"           # the only one whose signatures it takes
    fake.clock = -3600                   # seconds that its clock is off
    fake.hold = 3                        # from this part on PUTs wait until release()
    fake.hold_part = 1                   # those of this part alone do
    fake.hold_key = "x.json"             # so do those of objects whose key ends so
    fake.hold_complete = True            # completed, but the answer waits

Signatures are looked at for region and date only; a strict server checks all of them, as AWS
documents it, and what is signed must hold: Host, every x-amz header, the body's SHA-256, and with
x-amz-checksum-algorithm the checksum of each part, when it comes and when the upload is completed.

    fake = S3(strict=True).start()       # also as <bucket>.localhost
    fake.fault("damage", part=2)         # a byte of the body changes on the way
"""
import base64
import calendar
import email.utils
import hashlib
import hmac
import http.server
import re
import threading
import time
import urllib.parse
from xml.sax.saxutils import escape


def md5(data):
    return hashlib.md5(data).hexdigest()


class S3:
    ACCESS, SECRET = "fake", "fake-secret"

    def __init__(self, page=1000, strict=False):
        self.strict, self.hosts, self.checked = strict, set(), []
        self.arrivals = []  # of PUTs: (part, monotonic)
        self.lock = threading.Lock()
        self.objects, self.uploads = {}, {}
        self.faults, self.puts, self.requests = [], [], []
        self.region, self.clock, self.page, self.hold = None, 0, page, None
        self.hold_part, self.hold_key, self.hold_complete = None, None, False
        self.conditions = True
        self.released, self.held = threading.Event(), threading.Event()
        self.server = None

    def start(self):
        handler = type("Handler", (Handler,), {"fake": self})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def stop(self):
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def entry(self, url, **more):
        return {"url": url, "endpoint": self.endpoint, "access_key_id": self.ACCESS,
                "secret_access_key": self.SECRET, **more}

    def fault(self, kind, times=1, **where):
        self.faults.append(dict(where, kind=kind, times=times))

    def take_fault(self, kinds, part=None, key=""):
        with self.lock:
            for fault in self.faults:
                if fault["kind"] in kinds and fault["times"] > 0 and \
                        fault.get("part") in (None, part) and \
                        key.endswith(fault.get("key", "")):
                    fault["times"] -= 1
                    return fault
        return None

    def hold_from(self, part):
        """Again, after a release()."""
        self.released.clear()
        self.held.clear()
        self.hold = part

    def release(self):
        self.hold = self.hold_part = self.hold_key = None
        self.hold_complete = False
        self.released.set()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake = None

    def log_message(self, *args):
        pass

    # ---- answers ----

    def answer(self, status, body="", headers=()):
        data = body.encode() if isinstance(body, str) else body
        self.send_response_only(status)
        self.send_header("Date", email.utils.formatdate(time.time() + self.fake.clock, usegmt=True))
        names = [n.lower() for n, _ in headers]
        for name, value in headers:
            self.send_header(name, value)
        if "content-length" not in names:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def error(self, status, code, headers=(), extra=""):
        self.answer(status, f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>m</Message>"
                            f"{extra}</Error>", headers)

    def cut(self):
        self.close_connection = True
        self.connection.shutdown(2)

    # ---- every request ----

    def handle_one(self):
        url = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        _, _, rest = url.path.partition("/")
        host = self.headers["Host"].split(":")[0]
        self.fake.hosts.add(host)
        if host.endswith(".localhost"):
            rest = host.removesuffix(".localhost") + "/" + rest
        self.bucket, _, key = rest.partition("/")
        self.key = urllib.parse.unquote(key)
        self.fake.requests.append((self.command, self.key, dict(self.query)))
        self.length = int(self.headers.get("Content-Length") or 0)
        if not self.believes():
            return
        getattr(self, "on_" + self.command.lower())()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_one

    def believes(self):
        scope = re.search(r"Credential=[^/]+/\d+/([^/]+)/s3", self.headers["Authorization"])
        date = calendar.timegm(time.strptime(self.headers["x-amz-date"], "%Y%m%dT%H%M%SZ"))
        if abs(date - time.time() - self.fake.clock) > 900:
            self.rfile.read(self.length)
            self.error(403, "RequestTimeTooSkewed")
            return False
        if self.fake.region and scope.group(1) != self.fake.region:
            self.rfile.read(self.length)
            self.error(400, "AuthorizationHeaderMalformed",
                       extra=f"<Region>{self.fake.region}</Region>")
            return False
        if self.fake.strict and not self.is_signed():
            self.rfile.read(self.length)
            self.error(403, "SignatureDoesNotMatch")
            return False
        return True

    def is_signed(self):
        """AWS Signature Version 4, from the bytes of the request as they came."""
        def quote(text):
            return urllib.parse.quote(text, safe="-_.~")
        given = dict(part.split("=", 1) for part in re.split(
            r",\s*", self.headers["Authorization"].removeprefix("AWS4-HMAC-SHA256 ")))
        access, date, region, service, end = given["Credential"].split("/")
        signed = given["SignedHeaders"].split(";")
        must = {"host"} | {n.lower() for n in self.headers if n.lower().startswith("x-amz-")} | \
            {n for n in ("content-md5",) if n in self.headers}
        path, _, _ = self.path.partition("?")
        if access != self.fake.ACCESS or (service, end) != ("s3", "aws4_request") or \
                not must <= set(signed) or signed != sorted(signed) or \
                not self.headers["x-amz-date"].startswith(date):
            return False
        query = "&".join(f"{quote(k)}={quote(v)}" for k, v in sorted(self.query.items()))
        headers = "".join(f"{n}:{' '.join(self.headers[n].split())}\n" for n in signed)
        request = "\n".join([self.command, path, query, headers, ";".join(signed),
                             self.headers["x-amz-content-sha256"]])
        scope = f"{date}/{region}/s3/aws4_request"
        text = "\n".join(["AWS4-HMAC-SHA256", self.headers["x-amz-date"], scope,
                          hashlib.sha256(request.encode()).hexdigest()])
        key = ("AWS4" + self.fake.SECRET).encode()
        for piece in (date, region, "s3", "aws4_request"):
            key = hmac.digest(key, piece.encode(), "sha256")
        return hmac.compare_digest(hmac.new(key, text.encode(), "sha256").hexdigest(),
                                   given["Signature"])

    # ---- objects and parts ----

    def on_put(self):
        part = int(self.query.get("partNumber", 0))
        self.fake.arrivals.append((part, time.monotonic()))
        fault = self.fake.take_fault(("cut", "status", "etag", "damage"), part, self.key)
        if fault and fault["kind"] == "cut":
            self.rfile.read(self.length // 2)
            return self.cut()
        if (self.fake.hold is not None and part >= self.fake.hold) or \
                (self.fake.hold_part is not None and part == self.fake.hold_part) or \
                (self.fake.hold_key is not None and self.key.endswith(self.fake.hold_key)):
            self.fake.held.set()
            self.fake.released.wait(600)
        body = self.rfile.read(self.length)
        if len(body) != self.length:
            return None
        if fault and fault["kind"] == "status":
            return self.error(fault["status"], fault.get("code", "SlowDown"),
                              [("Retry-After", str(fault.get("retry_after", 0)))])
        if fault and fault["kind"] == "damage":
            body, fault = bytes([body[0] ^ 1]) + body[1:], None
        if hashlib.sha256(body).hexdigest() != self.headers["x-amz-content-sha256"]:
            return self.error(400, "XAmzContentSHA256Mismatch")
        sent = self.headers.get("Content-MD5")
        if sent and base64.b64decode(sent) != hashlib.md5(body).digest():
            return self.error(400, "BadDigest")
        if part:
            return self.put_part(part, body, fault)
        if self.headers.get("If-None-Match") and self.fake.conditions and \
                self.key in self.fake.objects:
            return self.error(412, "PreconditionFailed")
        self.fake.puts.append(self.key)
        self.fake.objects[self.key] = (body, md5(body))
        return self.answer(200, headers=[("ETag", f'"{md5(body)}"')])

    def put_part(self, part, body, fault):
        upload = self.fake.uploads.get(self.query["uploadId"])
        if upload is None:
            return self.error(404, "NoSuchUpload")
        checksum = self.headers.get("x-amz-checksum-sha256")
        if upload["algorithm"] == "SHA256":
            if checksum != base64.b64encode(hashlib.sha256(body).digest()).decode():
                return self.error(400, "BadDigest")
            self.fake.checked.append(part)
        elif checksum:
            return self.error(400, "InvalidRequest")
        self.fake.puts.append(part)
        etag = md5(b"something else" if fault else body)
        upload["parts"][part] = (body, etag)
        return self.answer(200, headers=[("ETag", f'"{etag}"')])

    def on_head(self):
        if self.key not in self.fake.objects:
            return self.answer(404)
        body, etag = self.fake.objects[self.key]
        return self.answer(200, headers=[("Content-Length", str(len(body))),
                                         ("ETag", f'"{etag}"')])

    def on_get(self):
        if "uploads" in self.query:
            return self.list_uploads()
        if "uploadId" in self.query:
            return self.list_parts()
        if not self.key:
            return self.answer(200, "<ListBucketResult/>")
        if self.key not in self.fake.objects:
            return self.error(404, "NoSuchKey")
        body = self.fake.objects[self.key][0]
        first, last = re.match(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups()
        if int(first) >= len(body):
            return self.error(416, "InvalidRange")
        return self.answer(206, body[int(first):int(last) + 1])

    def list_parts(self):
        upload = self.fake.uploads.get(self.query["uploadId"])
        if upload is None:
            return self.error(404, "NoSuchUpload")
        after = int(self.query.get("part-number-marker") or 0)
        numbers = sorted(n for n in upload["parts"] if n > after)
        shown = numbers[:self.fake.page]
        parts = "".join(
            f"<Part><PartNumber>{n}</PartNumber><ETag>&quot;{upload['parts'][n][1]}&quot;</ETag>"
            f"<Size>{len(upload['parts'][n][0])}</Size></Part>" for n in shown)
        more = "true" if len(numbers) > len(shown) else "false"
        return self.answer(200, f"<ListPartsResult><UploadId>x</UploadId><NextPartNumberMarker>"
                                f"{shown[-1] if shown else 0}</NextPartNumberMarker>"
                                f"<IsTruncated>{more}</IsTruncated>{parts}</ListPartsResult>")

    def list_uploads(self):
        uploads = "".join(
            f"<Upload><Key>{escape(u['key'])}</Key><UploadId>{i}</UploadId><Initiated>"
            f"{time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime(u['time']))}</Initiated>"
            "</Upload>" for i, u in self.fake.uploads.items())
        return self.answer(200, "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>"
                                f"{uploads}</ListMultipartUploadsResult>")

    def on_post(self):
        body = self.rfile.read(self.length)
        if "uploads" in self.query:
            upload_id = f"u{len(self.fake.requests)}"
            self.fake.uploads[upload_id] = {
                "key": self.key, "parts": {}, "time": time.time(),
                "algorithm": self.headers.get("x-amz-checksum-algorithm")}
            return self.answer(200, "<InitiateMultipartUploadResult><UploadId>"
                                    f"{upload_id}</UploadId></InitiateMultipartUploadResult>")
        fault = self.fake.take_fault(("complete-error",))
        if fault:
            return self.answer(200, "  \n<Error><Code>InternalError</Code></Error>")
        return self.complete(body.decode())

    def complete(self, text):
        upload = self.fake.uploads.get(self.query["uploadId"])
        if upload is None:
            return self.error(404, "NoSuchUpload")
        wanted = [(int(n), e) for e, n in re.findall(
            r"<ETag>(?:\"|&quot;)(\w+)(?:\"|&quot;)</ETag><PartNumber>(\d+)</PartNumber>", text)]
        sums = re.findall(r"<ChecksumSHA256>([^<]*)</ChecksumSHA256></Part>", text)
        for number, etag in wanted:
            if upload["parts"].get(number, (b"", ""))[1] != etag:
                return self.error(400, "InvalidPart")
        if upload["algorithm"] == "SHA256" and sums != [
                base64.b64encode(hashlib.sha256(upload["parts"][n][0]).digest()).decode()
                for n, _ in wanted]:
            return self.error(400, "InvalidPart")
        data = b"".join(upload["parts"][n][0] for n, _ in wanted)
        etag = md5(b"".join(bytes.fromhex(e) for _, e in wanted)) + f"-{len(wanted)}"
        if self.fake.take_fault(("flip",)):
            data = data[:4096] + bytes([data[4096] ^ 1]) + data[4097:]
        self.fake.objects[self.key] = (data, etag)
        del self.fake.uploads[self.query["uploadId"]]
        if self.fake.take_fault(("complete-lost",)):
            return self.cut()
        if self.fake.hold_complete:
            self.fake.held.set()
            self.fake.released.wait(600)
        return self.answer(200, "<CompleteMultipartUploadResult><ETag>x</ETag>"
                                "</CompleteMultipartUploadResult>")

    def on_delete(self):
        if "uploadId" not in self.query:
            self.fake.objects.pop(self.key, None)
            return self.answer(204)
        if self.fake.uploads.pop(self.query["uploadId"], None) is None:
            return self.error(404, "NoSuchUpload")
        return self.answer(204)

"""The REST API of the fake vCenter, as far as tags go: the older one below /rest and the newer one
below /api, with paths and answers of the vSphere Automation API.

Script it by these attributes of the fake:
  rest_dialects = {"/rest", "/api"}     which of the two are there
  rest_tags = {vm id: [tag id, ...]}    what is attached
  rest_names = {tag id: (category id, name)}   a tag without an entry was deleted
  rest_categories = {category id: name}
  rest_raw = None                       (status, bytes): answers all but logins
"""
import base64
import json
import re


class Rest:
    def rest_init(self):
        self.rest_dialects = {"/rest", "/api"}
        self.rest_tags, self.rest_names, self.rest_categories = {}, {}, {}
        self.rest_raw = None
        self.rest_sessions = set()
        self.rest_calls = []  # (method, path)

    def rest(self, request):
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        with self.lock:
            self.rest_calls.append((request.command, request.path))
            status, value = self.rest_answer(request, body)
        if isinstance(value, bytes):
            self.answer(request, status, value)
            return
        wrapped = request.path.startswith("/rest/") and status < 300
        text = b"" if value is None else json.dumps({"value": value} if wrapped else value).encode()
        self.answer(request, status, text, Content_Type="application/json")

    def rest_answer(self, request, body):
        prefix = "/" + request.path.split("/")[1]
        path = request.path.replace("/rest/com/vmware", "").replace("/api", "").replace("?~", "?")
        if path == "/session":
            path = "/cis/session"
        if prefix not in self.rest_dialects:
            return 404, None
        if path == "/cis/session" and request.command == "POST":
            wanted = "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
            if request.headers.get("Authorization") != wanted:
                return 401, None
            self.rest_sessions.add("rest-1")
            return 201 if prefix == "/api" else 200, "rest-1"
        if request.headers.get("vmware-api-session-id") not in self.rest_sessions or \
                request.headers.get("Authorization"):
            return 401, None
        if path == "/cis/session":
            self.rest_sessions.clear()
            return 204, None
        if self.rest_raw is not None:
            return self.rest_raw
        if path == "/cis/tagging/tag-association?action=list-attached-tags-on-objects":
            return 200, [{"object_id": o, "tag_ids": self.rest_tags[o["id"]]}
                         for o in json.loads(body)["object_ids"] if o["id"] in self.rest_tags]
        found = re.fullmatch(r"/cis/tagging/(tag|category)/(?:id:)?(.+)", path)
        if found is None:
            return 404, None
        kind, id = found.groups()
        if kind == "category" and id in self.rest_categories:
            return 200, {"id": id, "name": self.rest_categories[id], "cardinality": "MULTIPLE"}
        if kind == "tag" and id in self.rest_names:
            category, name = self.rest_names[id]
            return 200, {"id": id, "category_id": category, "name": name, "description": ""}
        return 404, None

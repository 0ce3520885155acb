"""A plain HTTP client of the gateway, independent of the product's own code."""
import json

import requests


class Client:
    def __init__(self, url, token=None, api_key=None):
        self.url = url
        self.session = requests.Session()
        self.session.trust_env = False
        if token:
            self.session.headers["Authorization"] = f"Bearer {token}"
        if api_key:
            self.session.headers["X-API-Key"] = api_key

    def request(self, method, path, body=None, timeout=60, **kwargs):
        """The raw answer. body: dict or list (sent as JSON), bytes or str (as it is)."""
        if isinstance(body, (dict, list)):
            kwargs["json"] = body
        elif body is not None:
            kwargs["data"] = body
        return self.session.request(method, self.url + path, timeout=timeout, **kwargs)

    def _checked(self, method, path, body=None, status=None, **kwargs):
        answer = self.request(method, path, body, **kwargs)
        good = answer.status_code == status if status else answer.ok
        assert good, f"{method} {path}: {answer.status_code} {answer.text[:2000]}"
        return answer.json() if answer.content else None

    def get(self, path, status=None, **kwargs):
        return self._checked("GET", path, None, status, **kwargs)

    def post(self, path, body=None, status=None, **kwargs):
        return self._checked("POST", path, body if body is not None else {}, status, **kwargs)

    def put(self, path, body=None, status=None, **kwargs):
        return self._checked("PUT", path, body, status, **kwargs)

    def delete(self, path, status=None, **kwargs):
        return self._checked("DELETE", path, None, status, **kwargs)

    def submit(self, **fields):
        """Submits one export; its job id."""
        return self.post("/api/v1/jobs", fields, status=201)["job_id"]

    def job(self, job_id):
        return self.get(f"/api/v1/jobs/{job_id}")

    def events(self, topics=None, timeout=30):
        """Server-sent events as dicts, until the caller stops or nothing comes for `timeout` s."""
        with self.session.get(self.url + "/api/v1/events", stream=True, timeout=timeout,
                              params={"topics": topics} if topics else None) as answer:
            assert answer.ok, answer.text
            for line in answer.iter_lines():
                if line.startswith(b"data:"):
                    yield json.loads(line[5:])

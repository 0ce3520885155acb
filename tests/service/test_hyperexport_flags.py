"""No flag of the command line client is taken in silence: what a command lists has an effect there,
what it does not list is refused with the flag's name and the command's."""
import concurrent.futures
import functools
import json
import os
import queue
import re
import ssl
import subprocess

import pytest

from tests.fakes.gateway import FakeGateway
from tests.harness.process import BIN, ROOT
from tests.harness.vsphere import make_certificate

THREADS = 4
AT_ONCE = 19  # so many names fit into one refusal
# In place of an export, by the flags that are typed.
MODES = [["--decrypt={crypted}"], ["--daemon-watch=x1"], ["--daemon-list=all"],
         ["--daemon-cancel=x1"], ["--daemon-status"], ["--verify-only=/x"], ["--cleanup"]]
ARGUMENTS = {"MB/S": "5", "[MB/S|config]": "5", "KEEP": "2", "FILE": "{file}", "FILE|DIR": "{crypted}"}
VALUES = {"N": "7", "MB": "7", "MB/S": "7", "CRON": "n:@daily", "BYTES": "7", "NAME=VALUE": "A=b",
          "NAME:CRON": "n:@daily", "FORMAT": "raw", "METHOD": "nfc", "CODEC": "zlib", "KIND": "vsphere",
          "WHICH": "failed", "--on-window-end": "pause", "--snapshot-on-error": "continue",
          "--upload-on-error": "continue", "--encrypt-method": "xchacha20poly1305", "--decrypt": "{crypted}",
          "--daemon-url": "ftp://x", "--daemon-token-file": "{secret}", "--daemon-ca-file": "{ca}",
          "--password-file": "{secret}", "--passphrase-file": "/missing", "--keyfile": "/missing"}
# What a command cannot do without ...
NEEDED = {"vms info": ["--vm=web"], "providers add": ["--url=https://vc", "--username=u", "--password-file={secret}"],
          "login": ["--username=u", "--password-file={secret}"], "export": ["--vm=web"]}
# ... and what must be away when a flag that says the same is tried; or be there.
APART = {"--password": "--password-file", "--host": "--url", "--passphrase": "--keyfile",
         "--passphrase-file": "--keyfile"}
WITH = {("export", "--watch"): ["--use-daemon"]}
# Promises that nothing is asked and no progress shown: kept where there is neither. --yes is in the reference.
NO_CHANGE = {("export", "--yes")}
OVER_TLS = ["--daemon-ca-file", "--daemon-insecure", "--insecure"]
ANSWER = {"status": "completed", "job_id": "job-1", "run_id": "run-1", "id": "x1", "name": "x1", "valid": True,
          "possible": True, "token": "s.t", "username": "u", "expires_at": "2999-01-01T00:00:00Z", "result": {},
          "message": "done", "vm_info": {"name": "x1"}, "vms": [], "exports": [], "steps": [],
          "schedules": [{"id": "x1", "name": "x1"}], "jobs": [{"job_id": "job-1", "status": "failed"}],
          "policies": [{"id": "x1", "name": "x1"}],
          "runs": [{"run_id": "run-1", "status": "ok", "results": []}]}


class Anything(dict):
    looks = 0

    def get(self, key, _=None):
        if key == ("GET", "/api/v1/workflows/runs/x1"):  # has ended when looked at again
            self.looks += 1
            return dict(ANSWER, status="running" if self.looks == 1 else "completed")
        return ANSWER


class Client:
    def __init__(self, directory):
        ca, key = make_certificate(directory)
        self.files = {"ca": ca, "file": directory / "body.json", "secret": directory / "secret",
                      "crypted": directory / "disk.raw.enc"}
        self.files["file"].write_text('{"name": "x1"}')
        self.files["secret"].write_text("hunter2\n")
        self.files["crypted"].write_bytes(b"\0" * 4096)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("HYPEREXPORT_", "HYPERSDK_"))}
        self.env.update(XDG_CONFIG_HOME=str(directory / "home"), LC_ALL="C.UTF-8")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.files["ca"], key)
        self.idle = {False: queue.SimpleQueue(), True: queue.SimpleQueue()}
        for tls in [False, True] * THREADS:
            gateway = FakeGateway()
            gateway.answers = Anything()
            if tls:
                gateway.server.socket = context.wrap_socket(gateway.server.socket, server_side=True)
            self.idle[tls].put(gateway)

    def run(self, *args, url="http://127.0.0.1:1"):
        return subprocess.run([BIN / "hyperexport", *[a.format(**self.files) for a in args]], text=True,
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=60,
                              env=dict(self.env, HYPERSDK_URL=url), start_new_session=True)

    def outcome(self, *args, tls=False):
        """All that the call shows and sends."""
        gateway = self.idle[tls].get()
        gateway.requests.clear()
        gateway.answers.looks = 0
        done = self.run(*args, url=gateway.url.replace("http:", "https:" if tls else "http:"))
        sent = [(r.method, r.path, r.query, r.body, r.headers["X-API-Key"]) for r in gateway.requests]
        self.idle[tls].put(gateway)
        return done.returncode, done.stdout, done.stderr.replace(gateway.url.split(":")[-1], "PORT"), sent

    @functools.lru_cache(None)
    def usual(self, *args):
        return self.outcome(*args)

    def listed(self, *words):
        """{flag: its argument, None for a boolean} of a --help."""
        text = self.run(*words, "--help").stdout
        return {m[1]: m[2] for m in re.finditer(r"^  (--[a-z0-9-]+)(?: (\S+))? ", text, re.M)}

    def commands(self):
        """{name: words} of every sub-command and action."""
        found = {}
        for word in dict.fromkeys(re.findall(r"^  hyperexport ([a-z]+)\b", self.run("--help").stdout, re.M)):
            if word == "export":
                continue
            for usage in re.findall(r"^  hyperexport (.*)", self.run(word, "--help").stdout, re.M):
                words = [w for w in usage.split() if not w.startswith("[--") and w not in ("[TO]", "[REASON]")]
                name = " ".join(w for w in words if w.islower())
                found[name] = [w if w.islower() else ARGUMENTS.get(w, "x1") for w in words]
        return found


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    return Client(tmp_path_factory.mktemp("flags"))


@pytest.fixture(scope="module")
def flags(client):
    """Every flag of the table, as it can be typed."""
    known = client.listed()
    for name in client.commands():
        known.update(client.listed(*name.split()))
    for boolean, name in re.findall(r'LATER(_BOOL)?(?:_SECRET)?\("([^"]+)"',
                                    (ROOT / "services/hyperexport/flags_table.c").read_text()):
        known["--" + name] = None if boolean else "VALUE"
    assert len(known) > 150 and {"--watch", "--tag", "--batch"} <= set(known)
    return {name: name if argument is None else
            f"{name}={VALUES.get(name) or VALUES.get(argument, 'x2')}"
            for name, argument in known.items() if name not in ("--help", "--version")}


def taken(client, flags, name, words):
    """The flags that are not refused; a refusal names the flag, and the command or what excludes it."""
    left, names = [], list(flags)
    for i in range(0, len(names), AT_ONCE):
        some = names[i:i + AT_ONCE]
        done = client.run(*words, *[flags[f] for f in some])
        told = re.search(r"^error: (.*) do(?:es)? not apply to '(.*)' \(", done.stderr, re.M)
        if told:
            assert done.returncode == 64 and told[2] == name, done.stderr
        refused = told[1].split(", ") if told else []
        assert set(refused) <= set(some)
        left += [f for f in some if f not in refused]
    return left


def has_effect(client, flags, name, words, flag):
    if flag == "--quiet" or (name, flag) in NO_CHANGE:
        return True
    base = NEEDED.get(name, []) + WITH.get((name, flag), [])
    base = [b for b in base if b.split("=")[0] not in (flag, APART.get(flag))]
    if flag == "--json" and "delete" in name + name.replace("remove", "delete"):
        base = base + ["--yes"]
    tls = flag in OVER_TLS and (name, flag) != ("providers add", "--insecure")
    typed = "--kind=aws" if flag == "--kind" else flags[flag]  # vsphere is the default
    after = client.outcome(*words, *base, typed, tls=tls)
    if flag == "--json":
        text = after[1].strip()
        while text:
            text = text[json.JSONDecoder().raw_decode(text)[1]:].strip()
        return after[0] == 0 and after[1] != ""
    if tls:  # its certificate is nobody's: without the flag no request gets through
        return after[3] != []
    return after != client.usual(*words, *base)


def test_every_flag_has_an_effect_or_is_refused_with_the_commands_name(client, flags):
    commands = client.commands()
    assert len(commands) > 60
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        of = dict(zip(commands, pool.map(lambda c: taken(client, flags, c, commands[c]), commands)))
        for name in commands:
            assert set(of[name]) == set(client.listed(*name.split())) - {"--help", "--version"}, name
        first = {name.split()[0]: name for name in reversed(commands)}  # one function opens every connection
        tries = [(name, flag) for name in commands for flag in of[name]
                 if flag not in OVER_TLS or name in (first[name.split()[0]], "providers add")]
        effects = pool.map(lambda t: has_effect(client, flags, t[0], commands[t[0]], t[1]), tries)
        assert [" ".join(t) for t, effect in zip(tries, effects) if not effect] == []


def test_what_stands_in_for_an_export_takes_none_of_its_flags(client, flags):
    tasks = ["--vm", "--template", *[m[0].split("=")[0] for m in MODES if m != ["--cleanup"]]]

    def wrong(mode):
        name = mode[0].split("=")[0]
        for task in tasks:
            if task != name and not (name == "--cleanup" and task in ("--vm", "--template")):
                done = client.run(*mode, flags[task])
                assert done.returncode == 64 and task in done.stderr, (mode, task)
        rest = {f: v for f, v in flags.items() if f not in tasks and f != name}
        got = taken(client, rest, name, mode)
        assert "--format" not in got and "--batch" not in got
        return [(name, f) for f in got if not has_effect(client, flags, name, mode, f)]

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        assert sum(pool.map(wrong, MODES), []) == []


def test_every_flag_of_an_export_changes_it(client, flags):
    listed = [f for f in client.listed() if f not in ("--help", "--version")]
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        effects = pool.map(lambda f: has_effect(client, flags, "export", ["export"], f), listed)
        assert [f for f, effect in zip(listed, effects) if not effect] == []

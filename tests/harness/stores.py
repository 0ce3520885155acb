"""Private PostgreSQL and Redis. PostgreSQL comes by the script that `make run` uses."""
import contextlib
import os
import pathlib
import secrets
import socket
import subprocess

import psycopg2

from .process import ROOT, Process
from .schema import apply_schema
from .wait import GiveUp, free_port, wait_for

LOCAL = ROOT / "deploy" / "local"
TEMPLATE = "hypersdk_template"  # the database that others of a cluster are copies of


def _script(name, *args, **env):
    environment = dict(os.environ, **env)
    done = subprocess.run([str(LOCAL / name), *map(str, args)], capture_output=True, text=True,
                          env=environment, timeout=120)
    assert done.returncode == 0, f"{name} {args}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


class Postgres:
    """A cluster of its own in `directory`; runs as an unprivileged user, SCRAM passwords. durable:
    a commit waits for the disk, as it does for users."""

    def __init__(self, directory, durable=False):
        self.directory = pathlib.Path(directory)
        self.fsync = "on" if durable else "off"
        self.port = None
        self.has_template = False

    def start(self):
        self.port = int(_script("postgres.sh", "start", self.directory, self.port or free_port(),
                                PG_FSYNC=self.fsync))
        return self

    def stop(self, mode="fast"):
        """mode "immediate": as a crash."""
        _script("postgres.sh", "stop", self.directory, PG_STOP_MODE=mode)

    def signal(self, number):
        """To every process of the server: SIGSTOP leaves its connections open and unanswered."""
        main = int((self.directory / "postgres/data/postmaster.pid").read_text().split()[0])
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(main)], capture_output=True,
                                  text=True).stdout.split()
        for pid in [main] + [int(c) for c in children]:
            with contextlib.suppress(ProcessLookupError):  # one that ended meanwhile
                os.kill(pid, number)

    def password(self, user):
        for line in (self.directory / "pgpass").read_text().splitlines():
            fields = line.split(":")
            if fields[3] == user:
                return fields[4]
        raise KeyError(user)

    def remove(self):
        """Stops it and removes data that had to lie elsewhere."""
        self.stop("immediate")
        data = self.directory / "postgres"
        if data.is_symlink():
            subprocess.run(["rm", "-rf", os.path.realpath(data)], check=True)

    def connect(self, database="hypersdk", user="hypersdk"):
        connection = psycopg2.connect(host="127.0.0.1", port=self.port, dbname=database,
                                      user=user, password=self.password(user),
                                      connect_timeout=30)
        connection.autocommit = True
        return connection

    def _administer(self, statement):
        connection = self.connect("postgres")
        try:
            connection.cursor().execute(statement)
        finally:
            connection.close()

    def create_database(self, name):
        """One with the product's schema, as a first start leaves it: a copy is made sooner than
        migrations are applied."""
        if not self.has_template:
            self._administer(f'CREATE DATABASE "{TEMPLATE}" OWNER hypersdk_owner')
            apply_schema(self, TEMPLATE)
            self.has_template = True
        self._administer(f'CREATE DATABASE "{name}" OWNER hypersdk_owner TEMPLATE "{TEMPLATE}"')

    def drop_database(self, name):
        self._administer(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


class Redis:
    """One of 127.0.0.1 with a password and nothing on disk."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.port = None
        self.password = secrets.token_hex(16)
        self.process = None

    def start(self):
        """On the same port after a stop."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port = self.port or free_port()
        path = self.directory / "redis.conf"  # arguments are visible to everybody
        path.touch(mode=0o600)
        path.write_text(f'bind 127.0.0.1\nport {self.port}\nrequirepass {self.password}\n'
                        f'save ""\nappendonly no\ndir "{self.directory}"\nmaxmemory 256mb\n'
                        "maxmemory-policy allkeys-lru\n")
        self.process = Process("redis", ["redis-server", path], self.directory / "redis.log")
        self.process.start()
        wait_for(self._answers, 60, self.process.tail, interval=0.01)
        return self

    def _answers(self):
        if not self.process.alive():
            raise GiveUp(self.process.tail())
        with socket.create_connection(("127.0.0.1", self.port), 20) as s:
            s.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
            s.settimeout(20)
            answer = b""
            while not answer.endswith(b"+PONG\r\n"):
                more = s.recv(100)
                if not more:
                    return False
                answer += more
        return True

    def stop(self):
        if self.process is not None:
            self.process.kill()

    def command(self, *words):
        """redis-cli's answer as text."""
        done = subprocess.run(["redis-cli", "-h", "127.0.0.1", "-p", str(self.port), *map(str, words)],
                              capture_output=True, text=True, timeout=60,
                              env=dict(os.environ, REDISCLI_AUTH=self.password))
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

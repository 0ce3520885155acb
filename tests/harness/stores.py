"""Private PostgreSQL and Redis, by the scripts that `make run` uses."""
import os
import pathlib
import subprocess

import psycopg2

from .process import ROOT
from .wait import free_port

LOCAL = ROOT / "deploy" / "local"


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
                                      connect_timeout=5)
        connection.autocommit = True
        return connection

    def _administer(self, statement):
        connection = self.connect("postgres")
        try:
            connection.cursor().execute(statement)
        finally:
            connection.close()

    def create_database(self, name):
        self._administer(f'CREATE DATABASE "{name}" OWNER hypersdk_owner')

    def drop_database(self, name):
        self._administer(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


class Redis:
    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.port = None

    def start(self):
        self.port = int(_script("redis.sh", "start", self.directory, self.port or free_port()))
        return self

    def stop(self):
        _script("redis.sh", "stop", self.directory)

    @property
    def password(self):
        return (self.directory / "password").read_text().strip()

    def command(self, *words):
        """redis-cli's answer as text."""
        done = subprocess.run(["redis-cli", "-h", "127.0.0.1", "-p", str(self.port), *map(str, words)],
                              capture_output=True, text=True, timeout=20,
                              env=dict(os.environ, REDISCLI_AUTH=self.password))
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

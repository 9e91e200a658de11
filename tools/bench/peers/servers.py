"""The peers' brokers: private Redis and PostgreSQL servers, each in a folder of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from pathlib import Path

from tools.bench.peers.processes import Program, free_port

_START_S = 30
_PERSISTENCE = {
    "memory": ["--appendonly", "no"],
    "everysec": ["--appendonly", "yes", "--appendfsync", "everysec"],
    "always": ["--appendonly", "yes", "--appendfsync", "always"],
}
_POSTGRES = Path("/usr/lib/postgresql")


class Missing(Exception):
    """A program that a peer needs is not installed; the text says what to do."""


class Broker:
    """Nothing to run: what a peer without a server has."""

    def __init__(self, url: str = "") -> None:
        self.url = url
        self.version = ""

    def programs(self) -> list[Program]:
        """What is to be counted as the broker's."""
        return []

    def start(self) -> None:
        """Start it, or start it again on the same port and data."""

    def kill(self) -> None:
        """As by kill -9."""

    def stop(self) -> None:
        """For good."""


class _Server(Broker):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.port = free_port()
        self._program: Program | None = None

    def programs(self) -> list[Program]:
        return [self._program] if self._program else []

    def kill(self) -> None:
        for program in self.programs():
            program.kill()

    def stop(self) -> None:
        for program in self.programs():
            program.stop()

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _START_S
        while not self._ready():
            (program,) = self.programs()
            if not program.running or time.monotonic() > deadline:
                raise RuntimeError(f"a broker did not start: {program.tail()}")
            time.sleep(0.02)

    def _ready(self) -> bool:
        raise NotImplementedError


class Redis(_Server):
    """A Redis of one of the three durability classes."""

    def __init__(self, folder: Path, durability: str) -> None:
        super().__init__(folder)
        self._options = _PERSISTENCE[durability]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        found = shutil.which("redis-server")
        if found is None:
            raise Missing("redis-server is not here: apt-get install redis-server")
        self._found = found
        told = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
        self.version = "Redis " + told.stdout.partition("v=")[2].split()[0]

    def start(self) -> None:
        command = [self._found, "--bind", "127.0.0.1", "--port", str(self.port), "--save", ""]
        command += ["--dir", str(self.folder), "--loglevel", "warning", *self._options]
        self._program = Program(command, log=self.folder / "redis.log", cwd=self.folder)
        self._await_ready()

    def _ready(self) -> bool:
        # It takes connections while it still reads its file, and says so to a PING.
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as sock:
                sock.sendall(b"PING\r\n")
                return sock.recv(64).startswith(b"+PONG")
        except OSError:
            return False


class Postgres(_Server):
    """A PostgreSQL with its default durability; as root, run by the user ``postgres``
    or ``nobody``, since it refuses to be root's."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        binaries = sorted(_POSTGRES.glob("*/bin/postgres"))
        if not binaries:
            raise Missing("PostgreSQL is not here: apt-get install postgresql")
        self._bin = binaries[-1].parent
        self._data = folder / "data"
        self.url = f"host=127.0.0.1 port={self.port} user=peers dbname=postgres"
        told = subprocess.run(
            [binaries[-1], "--version"], capture_output=True, text=True, check=True
        )
        self.version = "PostgreSQL " + told.stdout.split()[2]

    def start(self) -> None:
        if not self._data.exists():
            self._initialise()
        command = [*_as_user(), str(self._bin / "postgres"), "-D", str(self._data)]
        command += ["-p", str(self.port), "-k", "", "-c", "listen_addresses=127.0.0.1"]
        command += ["-c", "shared_buffers=128MB", "-c", "log_min_messages=error"]
        self._program = Program(command, log=self.folder / "postgres.log", cwd=self.folder)
        self._await_ready()

    def _initialise(self) -> None:
        self._data.mkdir(mode=0o700)
        user = _user()
        if user is not None:
            os.chown(self._data, user.pw_uid, user.pw_gid)
        command = [*_as_user(), str(self._bin / "initdb"), "-D", str(self._data), "-U", "peers"]
        command += ["-A", "trust", "--no-sync", "--encoding=UTF8", "--locale=C"]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            # Most likely its user can't reach a folder above.
            raise RuntimeError(f"initdb failed: {done.stderr.strip()}")

    def _ready(self) -> bool:
        done = subprocess.run(
            [str(self._bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)],
            check=False,
        )
        return done.returncode == 0


def _user() -> pwd.struct_passwd | None:
    """Who runs PostgreSQL; None where we may run it ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise Missing("there is no user postgres or nobody to run PostgreSQL")


def _as_user() -> list[str]:
    user = _user()
    if user is None:
        return []
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--"]

"""MariaDB, Redis and nsqd as private processes of a test: a folder and a port of their
own, on the loopback interface only, ended by their process id.

Nothing here knows pytest (see `tests.support.services`), so that a benchmark or a
demo can use it too.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import trustme

from tests.support.examples import ReservedPort
from tests.support.guard import Guard

INSTALL = "apt-get install mariadb-server redis-server"
HOST = "127.0.0.1"
_START_S = 60.0
_STOP_S = 20.0
_POLL_S = 0.01

_NSQ_READY = rb"(?s)TCP: listening on.*HTTP: listening on|HTTP: listening on.*TCP: listening on"

_guard = Guard()


class ServerMissing(Exception):
    """A server's program is not installed here; the text says how to install it."""


class ServerFailed(Exception):
    """A server ended, or was not ready in time, when it was started."""


def find(*names: str, install: str = INSTALL) -> str:
    """The path of the first of these programs that is here.

    Raises:
        ServerMissing: none is.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    for name in names:
        found = shutil.which(name, path=path)
        if found is not None:
            return found
    raise ServerMissing(f"no {names[0]} here: {install}")


@dataclass(frozen=True)
class Certificates:
    """Files with which a server proves to be 127.0.0.1 and localhost."""

    ca: Path
    certificate: Path
    key: Path

    @classmethod
    def make(cls, folder: Path) -> Self:
        """Write them into a folder that is there."""
        authority = trustme.CA()
        leaf = authority.issue_cert(HOST, "localhost")
        made = cls(folder / "ca.pem", folder / "server.pem", folder / "server.key")
        authority.cert_pem.write_to_path(made.ca)
        leaf.cert_chain_pems[0].write_to_path(made.certificate)
        leaf.private_key_pem.write_to_path(made.key)
        return made

    def client_context(self) -> ssl.SSLContext:
        """What a client trusts that trusts these."""
        return ssl.create_default_context(cafile=str(self.ca))

    def server_context(self) -> ssl.SSLContext:
        """What a server of this process shows."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificate, self.key)
        return context


class Server:
    """A process that can be stopped, killed, frozen and started again on its port.

    The port is kept by a socket of ours between the starts, so nobody else is given it.
    Entered, it runs; left, it has ended.
    """

    ready = b""
    """What its log says once it serves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = HOST
        self.log_path = folder / "server.log"
        self._reserved = ExitStack()
        self.port = self.reserve()
        self._process: subprocess.Popen[bytes] | None = None

    def reserve(self) -> int:
        """A port for it that nobody else is given until `close`."""
        return self._reserved.enter_context(ReservedPort())

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server does not run"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def command(self) -> list[str]:
        """The command line that runs it in the foreground."""
        raise NotImplementedError

    def environ(self) -> dict[str, str]:
        """The environment that it runs in."""
        return dict(os.environ)

    def start(self) -> Self:
        """Start it, and wait until it serves. Data and port are as they were.

        Raises:
            ServerFailed: it ended, or was not ready in time; with the end of its log.
        """
        assert not self.running, "the server runs already"
        with self.log_path.open("ab") as log:
            before = log.tell()
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env=self.environ(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C at the tests is not for it
            )
        _guard.watch(self._process.pid)
        deadline = time.monotonic() + _START_S
        while not self._is_ready(before):
            ended = self._process.poll()
            if ended is None and time.monotonic() < deadline:
                _sleep()
                continue
            self.kill()
            what = "was not ready in time" if ended is None else f"ended with {ended}"
            raise ServerFailed(f"{type(self).__name__} {what}:\n{self.log()[-3000:]}")
        return self

    def _is_ready(self, before: int) -> bool:
        with self.log_path.open("rb") as log:
            log.seek(before)
            return re.search(self.ready, log.read()) is not None

    def stop(self) -> None:
        """End it in order (SIGTERM), or with SIGKILL when it takes too long."""
        if self._process is None:
            return
        self._process.terminate()
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._gone()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._gone()

    def _gone(self) -> None:
        assert self._process is not None
        self._process.wait()
        _guard.forget(self._process.pid)
        self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay and are accepted, and nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it for good, and give the port up."""
        try:
            self.stop()
        finally:
            self._reserved.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class MariaDB(Server):
    """A private MariaDB.

    Args:
        folder: an empty folder of its own.
        template: a data folder to copy, see `mariadb_template`.
        options: more options of the server, such as ``--innodb-flush-log-at-trx-commit=2``;
            they win over those given here. Read at every start.
        tls: offer TLS, with a certificate for 127.0.0.1 from ``certificates.ca``.
    """

    ready = rb"ready for connections"

    def __init__(
        self, folder: Path, template: Path, *, options: Sequence[str] = (), tls: bool = False
    ) -> None:
        super().__init__(folder)
        self.user = "root"
        self.password = secrets.token_hex(8)
        self.options = list(options)
        self.certificates = Certificates.make(folder) if tls else None
        self._data = folder / "data"
        self._databases = 0
        shutil.copytree(template, self._data)
        # Read at each start; it says the same each time.
        self._init = folder / "init.sql"
        self._init.write_text(f"SET PASSWORD FOR root@'{HOST}' = PASSWORD('{self.password}');\n")
        self._init.chmod(0o600)

    def command(self) -> list[str]:
        tls = []
        if self.certificates is not None:
            tls = [
                f"--ssl-ca={self.certificates.ca}",
                f"--ssl-cert={self.certificates.certificate}",
                f"--ssl-key={self.certificates.key}",
            ]
        return [
            find("mariadbd", "mysqld"),
            *_mariadb_basics(self._data),
            f"--bind-address={self.host}",
            f"--port={self.port}",
            "--socket=s",  # in the data folder: a longer path may be too long for a socket
            f"--init-file={self._init}",
            "--skip-name-resolve",
            "--skip-log-bin",
            "--character-set-server=utf8mb4",
            "--max-connections=200",
            "--performance-schema=OFF",
            "--innodb-buffer-pool-size=128M",
            "--innodb-log-file-size=48M",
            "--innodb-flush-log-at-trx-commit=1",
            "--innodb-buffer-pool-dump-at-shutdown=OFF",
            "--innodb-buffer-pool-load-at-startup=OFF",
            *tls,
            *self.options,
        ]

    def url(self, database: str, *, user: str | None = None, password: str | None = None) -> str:
        """``mysql://user:password@127.0.0.1:port/database``; root unless said otherwise."""
        user = self.user if user is None else user
        password = self.password if password is None else password
        return f"mysql://{user}:{password}@{self.address}/{database}"

    def create_database(self, name: str | None = None) -> str:
        """Make a fresh database; its `url`."""
        self._databases += 1
        name = name or f"taskd_{self._databases}_{secrets.token_hex(4)}"
        self.execute(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop the database that a URL names."""
        self.execute(f"DROP DATABASE IF EXISTS `{url.rpartition('/')[2]}`")

    def close(self) -> None:
        super().close()
        shutil.rmtree(self._data, ignore_errors=True)  # large, and the log tells more

    def create_user(self, name: str, privileges: str = "ALL", *, on: str = "*.*") -> str:
        """Make a user who logs in from 127.0.0.1; its password."""
        password = secrets.token_hex(8)
        self.execute(
            f"CREATE USER '{name}'@'{HOST}' IDENTIFIED BY '{password}';"
            f"GRANT {privileges} ON {on} TO '{name}'@'{HOST}'"
        )
        return password

    def execute(self, statements: str, *, database: str = "") -> list[list[str]]:
        """Run statements as root by the command line client; the rows' columns as text."""
        command = [find("mariadb", "mysql"), "--no-defaults", "--batch", "--skip-column-names"]
        command += ["--protocol=tcp", f"--host={self.host}", f"--port={self.port}"]
        command += [f"--user={self.user}", "--skip-ssl", f"--execute={statements}"]
        done = subprocess.run(
            [*command, database] if database else command,
            env={**os.environ, "MYSQL_PWD": self.password},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [line.split("\t") for line in done.stdout.splitlines()]


def mariadb_template(folder: Path) -> Path:
    """Make the data folder of a new MariaDB inside the folder, for servers to copy."""
    data = folder / "template"
    install = find("mariadb-install-db", "mysql_install_db")
    find("mariadbd", "mysqld")
    done = subprocess.run(
        [install, *_mariadb_basics(data), "--auth-root-authentication-method=normal",
         "--skip-test-db", "--innodb-log-file-size=4M"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise ServerFailed(f"mariadb-install-db:\n{done.stdout}{done.stderr}")
    return data


def _mariadb_basics(data: Path) -> list[str]:
    # It will not run as root unless told to; anybody else it runs as.
    user = ["--user=root"] if os.geteuid() == 0 else []
    return ["--no-defaults", *user, f"--datadir={data}"]


class Redis(Server):
    """A private Redis.

    Args:
        folder: an empty folder of its own.
        password: what clients have to AUTH with.
        tls: serve TLS, and only that, with a certificate from ``certificates.ca``.
        append_only: write every change to disk before it is answered, so that a kill
            loses nothing; else a stop loses everything.
        options: more options, such as ``--maxmemory``, ``1mb``.
    """

    ready = rb"Ready to accept connections"

    def __init__(
        self,
        folder: Path,
        *,
        password: str | None = None,
        tls: bool = False,
        append_only: bool = False,
        options: Sequence[str] = (),
    ) -> None:
        super().__init__(folder)
        self.password = password
        self.options = list(options)
        self.certificates = Certificates.make(folder) if tls else None
        self._append_only = append_only

    def command(self) -> list[str]:
        command = [find("redis-server"), "--bind", self.host, "--dir", str(self.folder)]
        command += ["--save", "", "--appendonly", "yes" if self._append_only else "no"]
        command += ["--appendfsync", "always"]
        if self.certificates is None:
            command += ["--port", str(self.port)]
        else:
            command += ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
            command += ["--tls-cert-file", str(self.certificates.certificate)]
            command += ["--tls-key-file", str(self.certificates.key)]
            command += ["--tls-ca-cert-file", str(self.certificates.ca)]
        if self.password is not None:
            command += ["--requirepass", self.password]
        return [*command, *self.options]

    @property
    def url(self) -> str:
        return self.database_url(0)

    def database_url(self, number: int) -> str:
        """``redis://`` or ``rediss://``, with the password if there is one."""
        scheme = "redis" if self.certificates is None else "rediss"
        who = "" if self.password is None else f":{self.password}@"
        return f"{scheme}://{who}{self.address}/{number}"

    def execute(self, *command: str) -> str:
        """Run one command by the command line client; its answer as text."""
        line = [find("redis-cli"), "-h", self.host, "-p", str(self.port), "-e"]
        if self.certificates is not None:
            line += ["--tls", "--cacert", str(self.certificates.ca)]
        environ = {**os.environ, "REDISCLI_AUTH": self.password or ""}
        if self.password is None:
            del environ["REDISCLI_AUTH"]
        done = subprocess.run(
            [*line, *command],
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()


class Nsqd:
    """An nsqd and a lookup that knows it, as processes: the real ones or the stand-in.
    What was published is gone after `kill`."""

    stand_in: bool
    """Whether it is `tests.support.nsqd`, and not the real one."""

    def __init__(self, daemon: Server, http_port: int, lookupd_port: int) -> None:
        self._daemon = daemon
        self._http_port = http_port
        self._lookupd_port = lookupd_port

    @property
    def address(self) -> str:
        """Where clients speak V2."""
        return self._daemon.address

    @property
    def lookupd(self) -> str:
        """Where the lookup answers HTTP."""
        return f"{HOST}:{self._lookupd_port}"

    @property
    def http(self) -> str:
        return f"{HOST}:{self._http_port}"

    @property
    def certificates(self) -> Certificates | None:
        """Those of its TLS, if it has it."""
        return self._daemon.certificates if isinstance(self._daemon, _StandIn) else None

    @property
    def running(self) -> bool:
        return self._daemon.running

    @property
    def pid(self) -> int:
        return self._daemon.pid

    def log(self) -> str:
        return self._daemon.log()

    def start(self) -> Self:
        self._daemon.start()
        return self

    def stop(self) -> None:
        self._daemon.stop()

    def kill(self) -> None:
        self._daemon.kill()

    def restart(self) -> None:
        self.stop()
        self.start()

    def freeze(self) -> None:
        self._daemon.freeze()

    def thaw(self) -> None:
        self._daemon.thaw()

    def stats(self) -> dict[str, Any]:
        """As ``/stats?format=json`` gives them: topics, channels, clients."""
        return dict(json.loads(self._request("GET", "/stats?format=json")))

    def channel(self, topic: str, name: str) -> dict[str, Any]:
        """The statistics of a channel; empty while there is none."""
        for each in self.stats()["topics"]:
            for channel in each["channels"] if each["topic_name"] == topic else ():
                if channel["channel_name"] == name:
                    return dict(channel)
        return {}

    def _request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        connection = http.client.HTTPConnection(HOST, self._http_port, timeout=10)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        assert response.status == 200, (response.status, data)
        return data

    def close(self) -> None:
        self._daemon.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class StandInNsqd(Nsqd):
    """The stand-in, which can be told to do wrong.

    Args:
        options: more of its options, see ``python -m tests.support.nsqd --help``.
        tls: agree to TLS, with a certificate for 127.0.0.1.
    """

    stand_in = True

    def __init__(self, folder: Path, *, options: Sequence[str] = (), tls: bool = False) -> None:
        daemon = _StandIn(folder, options, tls=tls)
        super().__init__(daemon, daemon.http_port, daemon.lookupd_port)

    def faults(self, **changes: object) -> None:
        """Switch faults by name; see `tests.support.nsqd_broker.Faults`."""
        self._request("POST", "/faults", json.dumps(changes).encode())

    def inject(self, raw: bytes) -> int:
        """Send bytes to every client, as if nsqd had; how many there were."""
        return int(json.loads(self._request("POST", "/inject", raw))["connections"])

    def cut(self) -> int:
        """Close every client's connection; how many there were."""
        return int(json.loads(self._request("POST", "/cut", b""))["connections"])


class _StandIn(Server):
    ready = rb"nsqd stand-in: tcp "

    def __init__(self, folder: Path, options: Sequence[str], *, tls: bool) -> None:
        super().__init__(folder)
        self.certificates = Certificates.make(folder) if tls else None
        self._options = list(options)
        self.http_port = self.reserve()
        self.lookupd_port = self.reserve()

    def command(self) -> list[str]:
        command = [sys.executable, "-m", "tests.support.nsqd", f"--tcp-port={self.port}"]
        command += [f"--http-port={self.http_port}", f"--lookupd-port={self.lookupd_port}"]
        if self.certificates is not None:
            command += [f"--tls-cert={self.certificates.certificate}"]
            command += [f"--tls-key={self.certificates.key}"]
        return [*command, *self._options]

    def environ(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


class RealNsqd(Nsqd):
    """The real nsqd, registered with the real nsqlookupd. `stop` keeps its messages on
    disk, as it does; the lookup runs on meanwhile."""

    stand_in = False

    def __init__(self, folder: Path) -> None:
        (folder / "lookupd").mkdir()
        self._lookup = _NsqlookupdProcess(folder / "lookupd")
        daemon = _NsqdProcess(folder, self._lookup)
        super().__init__(daemon, daemon.http_port, self._lookup.http_port)

    def start(self) -> Self:
        if not self._lookup.running:
            self._lookup.start()
        return super().start()

    def close(self) -> None:
        super().close()
        self._lookup.close()


class _NsqlookupdProcess(Server):
    ready = _NSQ_READY

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.http_port = self.reserve()

    def command(self) -> list[str]:
        return [
            find_nsq("nsqlookupd"),
            f"--tcp-address={self.address}",
            f"--http-address={HOST}:{self.http_port}",
            f"--broadcast-address={HOST}",
        ]


class _NsqdProcess(Server):
    ready = _NSQ_READY

    def __init__(self, folder: Path, lookup: _NsqlookupdProcess) -> None:
        super().__init__(folder)
        self._lookup = lookup
        self.http_port = self.reserve()

    def command(self) -> list[str]:
        return [
            find_nsq("nsqd"),
            f"--tcp-address={self.address}",
            f"--http-address={HOST}:{self.http_port}",
            f"--broadcast-address={HOST}",
            f"--lookupd-tcp-address={self._lookup.address}",
            f"--data-path={self.folder}",
        ]


def find_nsq(name: str) -> str:
    """The path of the real ``nsqd`` or ``nsqlookupd``: NSQD_BIN, NSQLOOKUPD_BIN, PATH.

    Raises:
        ServerMissing: there is none.
    """
    given = os.environ.get(f"{name.upper()}_BIN")
    return given or find(name, install="see https://nsq.io/deployment/installing.html")


def has_real_nsqd() -> bool:
    """Whether both programs of NSQ are here."""
    try:
        return bool(find_nsq("nsqd") and find_nsq("nsqlookupd"))
    except ServerMissing:
        return False


def _sleep() -> None:
    time.sleep(_POLL_S)  # noqa: TID251 - a synchronous wait for a process, under a deadline

"""A server as a private process of a test: a folder and a port of its own, on the loopback
interface only, ended by its process id."""

from __future__ import annotations

import os
import re
import shutil
import signal
import ssl
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import trustme

from tools.servers.guard import Guard
from tools.servers.reserved_port import ReservedPort

INSTALL = "apt-get install mariadb-server redis-server"
HOST = "127.0.0.1"
_START_S = 180.0
"""A MySQL on a busy machine takes a minute and more."""
_STOP_S = 60.0
_POLL_S = 0.01


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


def given_or_found(variable: str, *names: str, install: str = INSTALL) -> str:
    """The path that an environment variable gives, or else as `find`."""
    return os.environ.get(variable) or find(*names, install=install)


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


def _sleep() -> None:
    time.sleep(_POLL_S)  # noqa: TID251 - a synchronous wait for a process, under a deadline

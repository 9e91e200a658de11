"""A private Redis."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tools.servers.process import Certificates, Server, find, given_or_found


class Redis(Server):
    """A private Redis: that of REDIS_BIN, a Valkey perhaps, or of PATH.

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
        command = [
            given_or_found("REDIS_BIN", "redis-server"),
            "--bind",
            self.host,
            "--dir",
            str(self.folder),
        ]
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

"""What a private MariaDB and a private MySQL have in common."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from tools.servers.process import HOST, Certificates, Server, ServerFailed


class Database(Server):
    """A private MariaDB or MySQL.

    Args:
        folder: an empty folder of its own.
        template: a data folder to copy, see `make_template`.
        options: more options of the server, such as ``--innodb-flush-log-at-trx-commit=2``;
            they win over those given here. Read at every start.
        tls: offer TLS, with a certificate for 127.0.0.1 from ``certificates.ca``; else
            none, although newer servers would by themselves.
    """

    ready = rb"ready for connections\."
    name: ClassVar[str]
    """As people call it."""
    client_options: ClassVar[Sequence[str]]
    """Of the command line client, to talk to it in clear text."""

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
        self._init.write_text(self.root_login(self.password))
        self._init.chmod(0o600)

    @classmethod
    def make_template(cls, folder: Path) -> Path:
        """Make the data folder of a new server inside the folder, for servers to copy."""
        raise NotImplementedError

    @classmethod
    def program(cls) -> str:
        """The path of the server's program."""
        raise NotImplementedError

    @classmethod
    def client(cls) -> str:
        """The path of its command line client."""
        raise NotImplementedError

    @classmethod
    def basics(cls, data: Path) -> list[str]:
        """What every start says, the first included."""
        # It will not run as root unless told to; anybody else it runs as.
        user = ["--user=root"] if os.geteuid() == 0 else []
        # A server that starts deletes what looks like a temporary table, whosever it is.
        scratch = data.with_name(f"{data.name}-tmp")
        scratch.mkdir(exist_ok=True)
        return ["--no-defaults", *user, f"--datadir={data}", f"--tmpdir={scratch}"]

    def root_login(self, password: str) -> str:
        """Statements, one a line, after which root may come from 127.0.0.1."""
        raise NotImplementedError

    def own_options(self) -> list[str]:
        """Options that only this kind of server has."""
        raise NotImplementedError

    def without_tls(self) -> list[str]:
        """Options with which it offers none."""
        raise NotImplementedError

    def command(self) -> list[str]:
        tls = self.without_tls()
        if self.certificates is not None:
            tls = [
                f"--ssl-ca={self.certificates.ca}",
                f"--ssl-cert={self.certificates.certificate}",
                f"--ssl-key={self.certificates.key}",
            ]
        return [
            self.program(),
            *self.basics(self._data),
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
            "--innodb-flush-log-at-trx-commit=1",
            "--innodb-buffer-pool-dump-at-shutdown=OFF",
            "--innodb-buffer-pool-load-at-startup=OFF",
            *self.own_options(),
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
            f"DROP USER IF EXISTS '{name}'@'{HOST}';"
            f"CREATE USER '{name}'@'{HOST}' IDENTIFIED BY '{password}';"
            f"GRANT {privileges} ON {on} TO '{name}'@'{HOST}'"
        )
        return password

    def execute(self, statements: str, *, database: str = "") -> list[list[str]]:
        """Run statements as root by the command line client; the rows' columns as text."""
        command = [self.client(), "--no-defaults", "--batch", "--skip-column-names"]
        command += ["--protocol=tcp", f"--host={self.host}", f"--port={self.port}"]
        command += [f"--user={self.user}", *self.client_options, f"--execute={statements}"]
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


def run_installer(command: Sequence[str], *, failed: Callable[[], bool] = lambda: False) -> None:
    """Run what makes a data folder.

    Raises:
        ServerFailed: it ended with an error, or ``failed`` says so.
    """
    done = subprocess.run(
        list(command),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode or failed():
        raise ServerFailed(f"{command[0]}:\n{done.stdout}{done.stderr}")

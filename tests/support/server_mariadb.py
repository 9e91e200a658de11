"""A private MariaDB."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.server_process import HOST, Certificates, Server, ServerFailed, find


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
            f"CREATE OR REPLACE USER '{name}'@'{HOST}' IDENTIFIED BY '{password}';"
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
    # A server that starts deletes what looks like a temporary table, whosever it is.
    scratch = data.with_name(f"{data.name}-tmp")
    scratch.mkdir(exist_ok=True)
    return ["--no-defaults", *user, f"--datadir={data}", f"--tmpdir={scratch}"]

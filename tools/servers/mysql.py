"""A private MySQL."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

from tools.servers.database import Database, run_installer
from tools.servers.process import HOST, ServerMissing, find

_INSTALL = "make test-mysql brings one on Debian; elsewhere set MYSQLD_BIN"


class MySQL(Database):
    """A private MySQL: that of MYSQLD_BIN, or of PATH. See `Database`."""

    # Its plugins say the same of their own listeners.
    ready = rb"mysqld: ready for connections\.|/mysqld.*: ready for connections\."
    name = "MySQL"
    # The key with which the client hides a password that the server does not know yet.
    client_options = ("--ssl-mode=DISABLED", "--get-server-public-key")

    @classmethod
    def program(cls) -> str:
        path = os.environ.get("MYSQLD_BIN") or find("mysqld", install=_INSTALL)
        if not _is_mysql(path):
            raise ServerMissing(f"{path} is no MySQL: {_INSTALL}")
        return path

    @classmethod
    def client(cls) -> str:
        beside = Path(cls.program()).parents[1] / "bin" / "mysql"
        return str(beside) if beside.exists() else find("mysql", install=_INSTALL)

    @classmethod
    def basics(cls, data: Path) -> list[str]:
        # What it reads is beside it, wherever it was unpacked.
        base = Path(cls.program()).parents[1]
        return [*super().basics(data), f"--basedir={base}", "--mysqlx=OFF", "--secure-file-priv="]

    @classmethod
    def make_template(cls, folder: Path) -> Path:
        data = folder / "template"
        run_installer([cls.program(), *cls.basics(data), "--initialize-insecure"])
        return data

    def root_login(self, password: str) -> str:
        # Without names, root@localhost is who comes by the socket only.
        return (
            f"CREATE USER IF NOT EXISTS root@'{HOST}' IDENTIFIED BY '{password}';\n"
            f"GRANT ALL ON *.* TO root@'{HOST}' WITH GRANT OPTION;\n"
        )

    def own_options(self) -> list[str]:
        return ["--innodb-redo-log-capacity=96M"]

    def without_tls(self) -> list[str]:
        return ["--tls-version="]


@cache
def _is_mysql(path: str) -> bool:
    """MariaDB answers to the name, too."""
    try:
        told = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerMissing(f"{path} does not run ({error}): {_INSTALL}") from error
    return "MariaDB" not in told

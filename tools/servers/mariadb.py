"""A private MariaDB."""

from __future__ import annotations

import os
from pathlib import Path

from tools.servers.database import Database, run_installer
from tools.servers.process import HOST, find, given_or_found


class MariaDB(Database):
    """A private MariaDB: that of MARIADBD_BIN, or of PATH. See `Database`."""

    name = "MariaDB"
    client_options = ("--skip-ssl",)

    @classmethod
    def program(cls) -> str:
        return given_or_found("MARIADBD_BIN", "mariadbd", "mysqld")

    @classmethod
    def client(cls) -> str:
        return find("mariadb", "mysql")

    @classmethod
    def make_template(cls, folder: Path) -> Path:
        data = folder / "template"
        # A program that was given has its installer, and what that reads, beside it.
        beside = Path(cls.program()).resolve().parents[1]
        install = beside / "bin" / "mariadb-install-db"
        base = [f"--basedir={beside}"] if os.environ.get("MARIADBD_BIN") else []
        run_installer(
            [
                str(install) if base else find("mariadb-install-db", "mysql_install_db"),
                *cls.basics(data),
                *base,
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                "--innodb-log-file-size=4M",
            ]
        )
        return data

    def root_login(self, password: str) -> str:
        return f"SET PASSWORD FOR root@'{HOST}' = PASSWORD('{password}');\n"

    def own_options(self) -> list[str]:
        return ["--innodb-log-file-size=48M"]

    def without_tls(self) -> list[str]:
        return ["--skip-ssl"]

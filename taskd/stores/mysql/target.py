"""The address of a MySQL store, read from its URL."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from taskd.errors import InvalidInput

FORM = "mysql://USER:PASSWORD@HOST:PORT/DATABASE"
DEFAULT_PORT = 3306

_FILES = ("ca_file", "cert_file", "key_file")
_OPTIONS = ("tls", *_FILES)
_MAX_DATABASE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class MySQLTarget:
    """A database on a MySQL or MariaDB server, and the user to log in as."""

    host: str
    port: int = DEFAULT_PORT
    user: str
    password: str = field(default="", repr=False)
    database: str
    tls: bool = False
    """Whether to speak TLS and nothing else; the certificate and the host's name are
    verified."""
    ca_file: Path | None = None
    """Certificates to trust, in PEM; None: the system's."""
    cert_file: Path | None = None
    """Certificate to show to a server that asks for one, in PEM; its key is in `key_file`."""
    key_file: Path | None = None

    def __str__(self) -> str:
        """Return the target as messages name it: without the password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mysql://{self.user}@{host}:{self.port}/{self.database}"


def parse_mysql_url(text: str) -> MySQLTarget:
    """Read ``mysql://USER:PASSWORD@HOST:PORT/DATABASE?tls=true&ca_file=/PATH``.

    Characters that are reserved in a URL are percent-encoded, in the password above all.
    Port and password may be left out. ``ca_file`` implies ``tls``; so do ``cert_file`` and
    ``key_file``, which are given both or not at all.

    Raises:
        InvalidInput: it can't be used. Its message repeats nothing of the URL but
            the names of its options.
    """
    if not re.fullmatch(r"[!-~]+", text):
        raise _invalid("it holds characters that have to be percent-encoded")
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname
        user = unquote(parts.username or "", errors="strict")
        password = unquote(parts.password or "", errors="strict")
    except ValueError:
        # Without the cause: Python's message may repeat a part of the password.
        raise _invalid(
            "it can't be read (what is reserved is percent-encoded, as %40 for @)"
        ) from None
    if parts.scheme != "mysql" or parts.fragment:
        raise _invalid("it has another form")
    if not host:
        raise _invalid("the host is missing")
    if not user:
        raise _invalid("the user is missing")
    options = _options(parts)
    files = {name: _path(name, options.get(name)) for name in _FILES}
    if (files["cert_file"] is None) != (files["key_file"] is None):
        raise _invalid("cert_file and key_file are needed together")
    return MySQLTarget(
        host=host,
        port=DEFAULT_PORT if port is None else port,
        user=user,
        password=password,
        database=_database(parts.path),
        tls=_flag(options.get("tls"), default=any(files.values())),
        **files,
    )


def _invalid(why: str) -> InvalidInput:
    return InvalidInput("", f"must be {FORM}: {why}")


def _database(path: str) -> str:
    database = unquote(path.removeprefix("/"))
    if not database:
        raise _invalid("the database is missing")
    if "/" in path.removeprefix("/") or len(database) > _MAX_DATABASE:
        raise _invalid(f"the database is one name of at most {_MAX_DATABASE} characters")
    return database


def _options(parts: SplitResult) -> dict[str, str]:
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    options = dict(pairs)
    unknown = [name for name in options if name not in _OPTIONS]
    if unknown or len(options) != len(pairs):
        raise _invalid(f"after the ? stand {', '.join(_OPTIONS)}, once each, and nothing else")
    return options


def _flag(value: str | None, *, default: bool) -> bool:
    if value is None:
        return default
    if value not in {"true", "false"} or (default and value == "false"):
        raise _invalid("tls is true or false, and true where a file is given")
    return value == "true"


def _path(name: str, value: str | None) -> Path | None:
    if value is None:
        return None
    path = Path(value)
    if not path.is_absolute():
        raise _invalid(f"{name} is an absolute path")
    return path

"""The Redis URL: the server's address, the login, and the prefix of all keys.

``redis[s]://[[USER]:PASSWORD@]HOST[:PORT][/NUMBER][?prefix=…&ca_file=…]``
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from taskd.errors import InvalidInput
from taskd.runtime.text import NotText, refuse_other

DEFAULT_PORT = 6379
DEFAULT_PREFIX = "taskd"

_FILES = ("ca_file", "cert_file", "key_file")
_OPTIONS = frozenset({"prefix", *_FILES})
_PREFIX = re.compile(r"[A-Za-z0-9_.:{}-]{1,64}")
_NUMBER = re.compile(r"[0-9]{1,5}")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HIGHEST_PORT = 65_535


@dataclass(frozen=True, kw_only=True, slots=True)
class RedisTarget:
    """One Redis server, and the part of it that a cluster uses."""

    host: str
    port: int = DEFAULT_PORT
    number: int = 0
    """The database's number."""
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    """Whether the connection is encrypted, and the server's certificate verified."""
    ca_file: str | None = None
    """Certificates trusted instead of the system's."""
    cert_file: str | None = None
    """Certificate shown to a server that asks for one."""
    key_file: str | None = None
    prefix: str = DEFAULT_PREFIX
    """All keys and channels begin with it, so that clusters may share a server."""

    @property
    def address(self) -> str:
        """Host and port, as people write them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_redis_url(text: str) -> RedisTarget:
    """Read a Redis URL.

    Raises:
        InvalidInput: the URL can't be used; the message never contains the password.
    """
    if _BAD_ESCAPE.search(text):
        raise _bad("has a % that no two hexadecimal digits follow: write it as %25")
    if "#" in text:
        raise _bad("has a #: in a password, write it as %23")
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        # The error's text may quote the password: it is not passed on.
        raise _bad(
            "is no URL of the form redis://HOST:PORT/NUMBER; in a password, write "
            "each of / ? # @ : % [ ] as % and two hexadecimal digits"
        ) from None
    if url.scheme not in {"redis", "rediss"}:
        raise _bad("must begin with redis:// or rediss://")
    if not url.hostname:
        raise _bad("names no host")
    if port is not None and not 0 < port <= _HIGHEST_PORT:
        raise _bad(f"port: must be between 1 and {_HIGHEST_PORT}")
    user = unquote(url.username) if url.username else None
    password = unquote(url.password) if url.password else None
    if user is not None and password is None:
        raise _bad("names a user without a password: write redis://USER:PASSWORD@HOST")
    options = _options(url.query)
    _check_files(options, tls=url.scheme == "rediss")
    return RedisTarget(
        host=unquote(url.hostname),
        port=DEFAULT_PORT if port is None else port,
        number=_database(url.path),
        user=user,
        password=password,
        tls=url.scheme == "rediss",
        ca_file=options.get("ca_file"),
        cert_file=options.get("cert_file"),
        key_file=options.get("key_file"),
        prefix=options.get("prefix", DEFAULT_PREFIX),
    )


def _bad(problem: str) -> InvalidInput:
    return InvalidInput("url", problem)


def _database(path: str) -> int:
    number = path.removeprefix("/")
    if number and not _NUMBER.fullmatch(number):
        raise _bad("what follows the port must be the database's number, such as /0")
    return int(number or 0)


def _options(query: str) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    options = dict(pairs)
    if len(options) != len(pairs):
        raise _bad("gives an option twice")
    if options.keys() - _OPTIONS:
        # The option is not quoted: it may be the end of a password with a raw question mark.
        raise _bad(f"has an unknown option; known are {', '.join(sorted(_OPTIONS))}")
    if "prefix" in options and not _PREFIX.fullmatch(options["prefix"]):
        raise _bad("prefix: must be 1 to 64 letters, digits or any of _ . : { } -")
    return options


def _check_files(options: dict[str, str], *, tls: bool) -> None:
    for name in _FILES:
        if name not in options:
            continue
        if not tls:
            raise _bad(f"{name}: is only used with rediss://")
        try:
            with Path(options[name]).open("rb") as file:
                refuse_other(file.read(4))
        except NotText as error:
            raise _bad(f"{name}: {options[name]} {error}") from error
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise _bad(f"{name}: {options[name]} cannot be read: {reason}") from error
    if ("cert_file" in options) != ("key_file" in options):
        raise _bad("cert_file and key_file: are needed together")

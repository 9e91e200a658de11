"""Where NSQ is: reading an ``nsq://`` URL."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote

from taskd.errors import InvalidInput

NSQD_PORT = 4150
LOOKUPD_PORT = 4161

_FIELD = "url"
_SCHEME = "nsq://"
_NAME = re.compile(r"[.a-zA-Z0-9_-]{1,64}(#ephemeral)?")
"""The names that nsqd takes for topics and channels; at most 64 characters in all."""
_MAX_NAME = 64
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL}){{0,126}}\.?|\[[0-9A-Fa-f:.]{{2,45}}\]")
_PORT = re.compile(r"[0-9]{1,5}")
_MAX_PORT = 65535
_FILES = ("ca_file", "cert_file", "key_file")
_KEYS = ("topic", "channel", "lookupd", "tls", *_FILES)
_SWITCH = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """A server's address."""

    host: str
    """A name or an IP address, without brackets."""
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True, slots=True)
class NsqTarget:
    """Which nsqd to use, and how."""

    nsqds: tuple[Address, ...]
    """nsqd that are always used; may be empty if ``lookupds`` is not."""
    lookupds: tuple[Address, ...] = ()
    """nsqlookupd that are asked for further nsqd."""
    topic: str = "taskd"
    channel: str = "taskd"
    """All nodes of a cluster use the same, so that each message goes to one of them."""
    tls: bool = False
    """Encrypt, and verify each nsqd's certificate."""
    ca_file: Path | None = None
    """PEM certificates that are trusted beside the system's."""
    cert_file: Path | None = None
    """Certificate shown to an nsqd that asks for one."""
    key_file: Path | None = None
    secret: str | None = field(default=None, repr=False)
    """Sent with AUTH to an nsqd that asks for it."""


def parse_nsq_url(text: str) -> NsqTarget:
    """Take a URL apart: ``nsq://[:SECRET@]HOST[:PORT][,HOST[:PORT]…][?KEY=VALUE…]``.

    The keys: ``topic`` and ``channel`` (both "taskd" unless given), ``lookupd``
    (addresses of nsqlookupd's HTTP, port 4161 unless given, after commas or
    repeated; with it the host may be left out), ``tls`` (true or false), and
    ``ca_file``, ``cert_file`` and ``key_file`` (absolute paths, the last two together).

    Raises:
        InvalidInput: something in it can't be read. The secret is not repeated.
    """
    if not text.startswith(_SCHEME):
        raise _invalid("must begin with nsq://")
    rest, _, query = text.removeprefix(_SCHEME).partition("?")
    if "#" in rest:
        raise _invalid("must not have a fragment (#…); write a # in a name as %23")
    authority, slash, path = rest.partition("/")
    if path:
        raise _invalid(f"must have no path after the addresses: {slash}… is not understood")
    userinfo, at, hosts = authority.rpartition("@")
    settings = _settings(query)
    nsqds = _addresses(hosts, NSQD_PORT)
    lookupds = _addresses(settings.get("lookupd", ""), LOOKUPD_PORT)
    if not nsqds and not lookupds:
        raise _invalid("names no server: give nsq://HOST:PORT, or ?lookupd=HOST:PORT")
    tls = _flag("tls", settings.get("tls", "false"))
    return NsqTarget(
        nsqds=nsqds,
        lookupds=lookupds,
        topic=_name("topic", settings.get("topic", "taskd")),
        channel=_name("channel", settings.get("channel", "taskd")),
        tls=tls,
        **_files(settings, tls=tls),
        secret=_secret(userinfo) if at else None,
    )


def _settings(query: str) -> dict[str, str]:
    settings: dict[str, list[str]] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in _KEYS:
            raise _invalid(f"has an unknown key after the ?; known are {', '.join(_KEYS)}")
        if key in settings and key != "lookupd":
            raise _invalid(f"gives {key} twice")
        settings.setdefault(key, []).append(value)
    return {key: ",".join(values) for key, values in settings.items()}


def _addresses(text: str, default_port: int) -> tuple[Address, ...]:
    if not text:
        return ()
    addresses = (
        _address(part, default_port, number) for number, part in enumerate(text.split(","), start=1)
    )
    return tuple(dict.fromkeys(addresses))


def _address(text: str, default_port: int, number: int) -> Address:
    # The message does not repeat the text: it may be a secret in the wrong place.
    if text.startswith("["):
        host, bracket, port = text.partition("]")
        host += bracket
    else:
        host, colon, port = text.partition(":")
        port = colon + port
    if not _HOST.fullmatch(host):
        raise _invalid(
            f"has no valid host in its address number {number}: write HOST:PORT, "
            "and IPv6 as [::1]:PORT"
        )
    if not port:
        return Address(host.strip("[]"), default_port)
    if not port.startswith(":") or not _PORT.fullmatch(port[1:]):
        raise _invalid(f"has no valid port in its address number {number}")
    return make_address(host.strip("[]"), int(port[1:]))


def make_address(host: str, port: int) -> Address:
    """An address, once host and port are checked.

    Raises:
        InvalidInput: they are no address.
    """
    if not _HOST.fullmatch(f"[{host}]" if ":" in host else host):
        raise _invalid(f"has no valid host in {host!r}")
    if not 0 < port <= _MAX_PORT:
        raise _invalid(f"has a port out of range: {port}")
    return Address(host, port)


def _name(key: str, text: str) -> str:
    if len(text) > _MAX_NAME or not _NAME.fullmatch(text):
        raise _invalid(
            f"has a {key} that NSQ does not take: 1 to {_MAX_NAME} of a-z A-Z 0-9 . _ -, "
            "and #ephemeral at the end if wanted"
        )
    return text


def _flag(key: str, text: str) -> bool:
    value = _SWITCH.get(text)
    if value is None:
        raise _invalid(f"must give {key} as true or false")
    return value


def _files(settings: dict[str, str], *, tls: bool) -> dict[str, Path]:
    given = {name: Path(settings[name]) for name in _FILES if name in settings}
    for name, path in given.items():
        if not tls:
            raise _invalid(f"gives {name} without tls=true")
        if not path.is_absolute():
            raise _invalid(f"must give {name} as an absolute path, got {str(path)!r}")
    if ("cert_file" in given) != ("key_file" in given):
        raise _invalid("must give cert_file and key_file together")
    return given


def _secret(userinfo: str) -> str:
    user, colon, secret = userinfo.partition(":")
    if user or not colon or not secret:
        raise _invalid("must give NSQ's secret as :SECRET@ before the host, without a user name")
    return unquote(secret, errors="strict") if _decodable(secret) else secret


def _decodable(text: str) -> bool:
    try:
        unquote(text, errors="strict")
    except UnicodeDecodeError:
        return False
    return True


def _invalid(problem: str) -> InvalidInput:
    return InvalidInput(_FIELD, problem)

"""A linkUrl, taken apart once."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from taskd.delivery.egress import Egress
from taskd.errors import Denied, InvalidInput

MAX_URL = 2048
_MAX_HOST = 253
_MAX_LABEL = 63
_MAX_PORT = 65535

_FIELD = "linkUrl"
_SCHEMES = {"http": 80, "https": 443}
_NOT_IN_URL = re.compile(r"[\x00-\x20\x7f\\]")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?")
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")
_PORT = re.compile(r"[0-9]{1,5}")

# Letters that IDNA 2003, which the standard library has, and today's IDNA 2008 encode as
# different names.
_AMBIGUOUS = re.compile("[ßςẞ\u200c\u200d]")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a linkUrl leads."""

    scheme: str
    host: str
    """ASCII, lower case: a name, or an IP address without brackets."""
    port: int
    address: str | None
    """The host where it is an IP address, else None."""
    origin: str
    """Names the receiver without its path, which may hold secrets: ``https://host:port``."""
    host_header: str
    path: str = field(repr=False)
    """Path and query, as they go on the wire. May hold secrets of the app's owner."""

    @property
    def tls_name(self) -> str:
        """What the certificate must be valid for."""
        return self.host.rstrip(".")


@functools.lru_cache(maxsize=4096)
def parse_target(url: str) -> Target:
    """Take a linkUrl apart.

    A name that is not ASCII is encoded as in IDNA 2003; the few letters that
    IDNA 2008 reads otherwise are refused.

    Raises:
        InvalidInput: it is not an absolute http(s) URL that can be sent as it is.
    """
    if len(url) > MAX_URL:
        raise _invalid(f"must have at most {MAX_URL} characters, has {len(url)}")
    if (bad := _NOT_IN_URL.search(url)) is not None:
        raise _invalid(
            f"must not contain white space, control characters or backslashes, got {bad[0]!r} at "
            f"position {bad.start()}; percent-encode it"
        )
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in _SCHEMES:
        raise _invalid("must begin with http:// or https://")
    if "#" in rest:
        raise _invalid("must not have a fragment (#…): it is never sent")
    authority, path = _split_path(rest)
    if "@" in authority:
        raise _invalid("must not have a user name or password before the host")
    host_text, port = _split_port(authority, _SCHEMES[scheme])
    host, address = _parse_host(host_text)
    bracketed = f"[{host}]" if ":" in host else host
    return Target(
        scheme=scheme,
        host=host,
        port=port,
        address=address,
        origin=f"{scheme}://{bracketed}:{port}",
        host_header=bracketed if port == _SCHEMES[scheme] else f"{bracketed}:{port}",
        path=_check_path(path),
    )


def validate_link_url(url: str, egress: Egress) -> None:
    """Make sure that callbacks can be sent to this linkUrl, as far as can be told
    without resolving its name.

    Raises:
        InvalidInput: they can't.
    """
    target = parse_target(url)
    if target.address is not None:
        try:
            egress.check(target.address)
        except Denied as error:
            raise _invalid(str(error)) from error


def _invalid(problem: str) -> InvalidInput:
    return InvalidInput(_FIELD, problem)


def _split_path(rest: str) -> tuple[str, str]:
    end = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
    authority, path = rest[:end], rest[end:]
    return authority, path if path.startswith("/") else "/" + path


def _check_path(path: str) -> str:
    if not path.isascii():
        bad = next(character for character in path if not character.isascii())
        raise _invalid(f"must be ASCII after the host; percent-encode {bad!r}")
    return path


def _split_port(authority: str, default: int) -> tuple[str, int]:
    host, colon, text = authority.rpartition(":")
    if not colon or text.endswith("]"):
        return authority, default
    if not text:
        return host, default
    if _PORT.fullmatch(text) is None or not 1 <= int(text) <= _MAX_PORT:
        raise _invalid(f"must have a port from 1 to {_MAX_PORT}, got {text[:12]!r}")
    return host, int(text)


def _parse_host(text: str) -> tuple[str, str | None]:
    """The host in ASCII; then the same if it is an IP address, else None."""
    if text.startswith("["):
        return (_parse_v6(text),) * 2
    host = _to_ascii(text)
    labels = host.removesuffix(".").split(".")
    if _NUMBER.fullmatch(labels[-1]):
        # The C library would take 2130706433, 0x7f.1 and 0177.0.0.1 for addresses.
        try:
            address = str(IPv4Address(host))
        except AddressValueError:
            raise _invalid(
                f"has the host {host[:80]!r}; write an IPv4 address as four decimal numbers"
            ) from None
        return address, address
    for label in labels:
        if len(label) > _MAX_LABEL or _LABEL.fullmatch(label) is None:
            raise _invalid(f"must have a valid host name, got {text[:80]!r}")
    return host, None


def _parse_v6(text: str) -> str:
    if "%" in text:
        raise _invalid("must not have a scope id in its IPv6 address")
    try:
        return str(IPv6Address(text[1:].removesuffix("]") if text.endswith("]") else ""))
    except AddressValueError:
        raise _invalid(f"must have a valid IPv6 address in brackets, got {text[:80]!r}") from None


def _to_ascii(text: str) -> str:
    if not text or len(text) > _MAX_HOST:
        raise _invalid(f"must have a host of 1 to {_MAX_HOST} characters")
    if text.isascii():
        return text.lower()
    if (bad := _AMBIGUOUS.search(text)) is not None:
        raise _invalid(f"has {bad[0]!r} in its host; write the host in its xn-- form")
    try:
        host = text.encode("idna").decode("ascii").lower()
    except UnicodeError as error:
        raise _invalid(f"must have a valid host name, got {text[:80]!r}") from error
    if len(host) > _MAX_HOST:
        raise _invalid(f"must have a host of 1 to {_MAX_HOST} characters")
    return host

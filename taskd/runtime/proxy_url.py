"""The URL of a proxy: ``http://[USER[:PASSWORD]@]HOST:PORT``."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from urllib.parse import unquote_to_bytes

_URL = re.compile(
    r"http://(?:(?P<user>[^\s:@/?#]{1,255})(?::(?P<password>[^\s:@/?#]{0,1024}))?@)?"
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[A-Za-z0-9._-]{1,253})):(?P<port>[0-9]{1,5})/?",
    re.ASCII,
)
_MAX_PORT = 65_535


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that makes tunnels (HTTP's CONNECT)."""

    host: str
    """A name, or an IP address without brackets."""
    port: int
    address: str | None
    """The host if it is an IP address, else None."""
    authorization: str | None = field(repr=False)
    """The value of Proxy-Authorization; None without a user."""

    @property
    def name(self) -> str:
        """Its name in messages: its URL without user and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"the proxy http://{host}:{self.port}"


def parse_proxy(url: str) -> Proxy:
    """Take the URL of a proxy apart. User and password are percent-decoded.

    Raises:
        ValueError: it is no such URL. Has no message, as the URL may hold a password.
    """
    match = _URL.fullmatch(url)
    if match is None or not url.isascii() or not 1 <= int(match["port"]) <= _MAX_PORT:
        raise ValueError
    authorization = None
    if match["user"] is not None:
        login = unquote_to_bytes(match["user"]) + b":" + unquote_to_bytes(match["password"] or "")
        authorization = f"Basic {base64.b64encode(login).decode('ascii')}"
    host = (match["v6"] or match["name"]).lower()
    address: str | None = None
    try:
        address = str(IPv6Address(host) if match["v6"] else IPv4Address(host))
    except AddressValueError:
        if match["v6"]:
            raise ValueError from None
    return Proxy(address or host, int(match["port"]), address, authorization)

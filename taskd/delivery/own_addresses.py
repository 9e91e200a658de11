"""The addresses of this machine's own interfaces, as the kernel has them now.

They are read over rtnetlink (rtnetlink(7), RTM_GETADDR). That needs no file, which a
container may hide, and the answer is there before the call returns.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPV4LENGTH, IPv4Address, IPv4Network, IPv6Address

from taskd.runtime.logs import log_event

logger = logging.getLogger("taskd.egress")

FRESH_S = 2.0
"""How long what was read counts as true: an address may be added at any time."""

_HEADER = struct.Struct("=IHHII")
_ADDRESS = struct.Struct("=BBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_REQUEST_DUMP = 0x301
_INTERRUPTED = 0x10
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_LOOPBACK_INDEX = 1
"""Of the loopback interface, in every network namespace."""
_RECEIVED_BYTES = 65_536
_TRIES = 4


@dataclass(frozen=True, slots=True)
class Own:
    """What belongs to this machine's interfaces."""

    addresses: frozenset[bytes]
    """Packed."""
    networks: tuple[IPv4Network, ...] = ()
    """Networks of the loopback interface: every address in them is this machine's."""

    def has(self, address: IPv4Address | IPv6Address) -> bool:
        """Whether an address is one of them."""
        return address.packed in self.addresses or any(
            address in network for network in self.networks
        )


class OwnAddresses:
    """Knows the interfaces' addresses, at most `FRESH_S` old. While they can't be read, the
    last ones hold; if there are none, an address is tried by binding to it.

    Args:
        read: gives them. Raises `OSError`.
        now: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        read: Callable[[], Own] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read_own if read is None else read
        self._now = now
        self._own: Own | None = None
        self._read_at = float("-inf")
        self._told = False

    def has(self, address: IPv4Address | IPv6Address) -> bool:
        """Whether an address is this machine's."""
        now = self._now()
        if now - self._read_at >= FRESH_S:
            self._read_at = now
            try:
                self._own = self._read()
            except OSError as error:
                self._tell(error)
            else:
                self._told = False
        return can_bind(address) if self._own is None else self._own.has(address)

    def _tell(self, error: OSError) -> None:
        if not self._told:
            self._told = True
            log_event(
                logger,
                logging.WARNING,
                "the addresses of this machine's interfaces can't be read",
                reason=error.strerror or str(error),
            )


def can_bind(address: IPv4Address | IPv6Address) -> bool:
    """Whether the system lets a socket bind to this address, as to its own. If it can't
    say, that counts as yes."""
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((str(address), 0))
    except OSError as error:
        return error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
    return True


def read_own() -> Own:
    """The addresses of all interfaces.

    Raises:
        OSError: the kernel does not tell.
    """
    for _ in range(_TRIES):
        own = _read_once()
        if own is not None:
            return own
    raise OSError(errno.EBUSY, "they change all the time")


def _read_once() -> Own | None:
    """As `read_own`; None where they changed meanwhile."""
    addresses: set[bytes] = set()
    networks: set[IPv4Network] = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        length = _HEADER.size + _ADDRESS.size
        sock.sendto(
            _HEADER.pack(length, _RTM_GETADDR, _REQUEST_DUMP, 1, 0)
            + _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0),
            (0, 0),
        )
        while True:
            for kind, flags, payload in _messages(sock.recv(_RECEIVED_BYTES)):
                if flags & _INTERRUPTED:
                    return None
                if kind == _NLMSG_ERROR:
                    raise OSError(-struct.unpack_from("=i", payload)[0], "rtnetlink refuses")
                if kind == _NLMSG_DONE:
                    return Own(frozenset(addresses), tuple(networks))
                if kind == _RTM_NEWADDR:
                    _take(payload, addresses, networks)


def _take(payload: bytes, addresses: set[bytes], networks: set[IPv4Network]) -> None:
    family, prefix, _, _, index = _ADDRESS.unpack_from(payload)
    attributes = dict(_attributes(payload[_ADDRESS.size :]))
    # On a point-to-point link IFA_ADDRESS is the peer's.
    packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
    if packed is None:
        return
    addresses.add(packed)
    if family == socket.AF_INET and index == _LOOPBACK_INDEX and prefix < IPV4LENGTH:
        networks.add(IPv4Network((packed, prefix), strict=False))


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, _, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            raise OSError(errno.EBADMSG, "what rtnetlink says can't be read")
        yield kind, flags, data[at + _HEADER.size : at + length]
        at += -(-length // 4) * 4


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[at + _ATTRIBUTE.size : at + length]
        at += -(-length // 4) * 4

"""Connections through a proxy: each a tunnel to an address that egress has approved.

::

    an address ── connect to the proxy ── CONNECT address:port ── 2xx ──┬─ the first: taken,
        ▲                                                               │  the others closed
        └── 250 ms later, or as soon as one fails: the next ────────────┘

The proxy is asked for an address, never for a name, so that egress has judged what it
connects to. Everything goes through a tunnel, plain HTTP included.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from taskd.delivery.progress import Progress
from taskd.delivery.resolver import Resolver
from taskd.delivery.transport.dialing import HEAD_START_S, MOST_AT_ONCE, Dialer, shown, unreachable
from taskd.errors import SystemShort, Unreachable
from taskd.runtime.proxy_url import Proxy

LONGEST_ANSWER = 16_384
"""Bytes that the head of a proxy's answer may have, interim answers included."""

_CHUNK_BYTES = 4096
_SHOWN_REASON = 60
_OK, _REDIRECTS = 200, 300
_LOGIN_REQUIRED = frozenset({401, 407})
"""tinyproxy answers a wrong password with 401."""
_INTERIM = frozenset({100, 102, 103})
_BEGINNING = b"HTTP/1."
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: ([^\r\n]*))?\r\n")


class _ProxyUnusable(Unreachable):
    """The proxy is of no use, whatever it is asked for."""


@dataclass(slots=True)
class _Race:
    begun: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    winner: str | None = None
    sock: socket.socket | None = None
    ended_by: Unreachable | SystemShort | None = None


class Tunnels:
    """Makes tunnels.

    Args:
        proxy: makes them. Egress does not judge it: it is the operator's own.
        resolver: looks up the proxy's name.
        dialer: connects to it, and remembers which addresses of an origin were slow or
            failed.
    """

    def __init__(self, proxy: Proxy, resolver: Resolver, dialer: Dialer) -> None:
        self.proxy = proxy
        self._resolver = resolver
        self._dialer = dialer

    async def dial(
        self, addresses: Sequence[str], port: int, origin: str, progress: Progress
    ) -> socket.socket:
        """A tunnel to the address that is reached first. Has no deadline of its own.

        Raises:
            Unreachable: none was, or the proxy can't be used.
            SystemShort: none could be tried.
        """
        race = _Race()
        try:
            async with trio.open_nursery() as nursery:
                for address in self._dialer.in_order(addresses, origin)[:MOST_AT_ONCE]:
                    race.begun.append(address)
                    progress.address = shown(address, port)
                    failed = trio.Event()
                    nursery.start_soon(self._try, race, address, port, failed, nursery.cancel_scope)
                    with trio.move_on_after(HEAD_START_S):
                        await failed.wait()
        except BaseException:
            if race.sock is not None:
                race.sock.close()
            raise
        if race.sock is None or race.winner is None:
            if race.ended_by is not None:
                raise race.ended_by
            raise unreachable(f"{origin} through {self.proxy.name}", race.failures)
        progress.address = shown(race.winner, port)
        self._dialer.note(origin, race.begun, race.winner)
        return race.sock

    async def _try(
        self, race: _Race, address: str, port: int, failed: trio.Event, scope: trio.CancelScope
    ) -> None:
        """Make one tunnel. The first that is made ends the race, and so does an error that
        would keep all others from being made."""
        try:
            sock = await self._open(address, port)
        except (_ProxyUnusable, SystemShort) as error:
            race.ended_by = error
            scope.cancel()
        except Unreachable as error:
            race.failures[address] = str(error)
            failed.set()
        else:
            if race.sock is not None:
                sock.close()
                return
            race.sock, race.winner = sock, address
            scope.cancel()

    async def _open(self, address: str, port: int) -> socket.socket:
        proxy = self.proxy
        try:
            addresses = (proxy.address,) if proxy.address else await self._find_proxy()
            sock = await self._dialer.dial(addresses, proxy.port, proxy.name, Progress())
        except Unreachable as error:
            raise _ProxyUnusable(str(error)) from error
        try:
            await _send(sock, self.request(address, port))
            status, reason = await _read_answer(sock)
            self._judge(status, reason)
        except OSError as error:
            sock.close()
            raise Unreachable(f"the proxy closed the connection: {error.strerror}") from error
        except BaseException:
            sock.close()
            raise
        return sock

    async def _find_proxy(self) -> tuple[str, ...]:
        try:
            return await self._resolver.resolve(self.proxy.host)
        except Unreachable as error:
            raise _ProxyUnusable(f"{self.proxy.name} can't be used: {error}") from error

    def request(self, address: str, port: int) -> bytes:
        """The CONNECT request for an address."""
        authority = shown(address, port)
        lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
        if self.proxy.authorization is not None:
            lines.append(f"Proxy-Authorization: {self.proxy.authorization}")
        return "\r\n".join([*lines, "", ""]).encode("ascii")

    def _judge(self, status: int, reason: str) -> None:
        if _OK <= status < _REDIRECTS:
            return
        if status in _LOGIN_REQUIRED:
            login = self.proxy.authorization
            what = "demands a user and password" if login is None else "does not accept the login"
            raise _ProxyUnusable(f"{self.proxy.name} {what} ({status})")
        raise Unreachable(f"the proxy answered {status}{reason and f' {reason}'}")


async def _send(sock: socket.socket, data: bytes) -> None:
    while data:
        try:
            data = data[sock.send(data) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)


async def _read_answer(sock: socket.socket) -> tuple[int, str]:
    """The status of a proxy's answer, and its reason.

    Raises:
        Unreachable: there is no answer, or more than one.
        OSError: the connection broke.
    """
    answer = Answer()
    while answer.status is None:
        try:
            data = sock.recv(_CHUNK_BYTES)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)
            continue
        if not data:
            raise Unreachable("the proxy closed the connection without an answer")
        answer.feed(data)
    return answer.status, answer.reason


class Answer:
    """Reads a proxy's answer to CONNECT, as far as its head. A success has no body,
    whatever its headers say (RFC 9110, 9.3.6); the body of another answer is not read.

    Attributes:
        status: of the answer; None until its head is there.
        reason: the text behind the status; characters that can't be shown are replaced.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._taken_bytes = 0
        self._looked_at = 0
        self.status: int | None = None
        self.reason = ""

    def feed(self, data: bytes) -> None:
        """Take more bytes.

        Raises:
            Unreachable: it is no answer, too long, or a success with something behind it.
        """
        self._data += data
        self._taken_bytes += len(data)
        while self.status is None:
            if not self._data.startswith(_BEGINNING[: len(self._data)]):
                raise Unreachable("the proxy does not speak HTTP/1.1")
            end = self._data.find(b"\r\n\r\n", max(self._looked_at - 3, 0))
            if end < 0:
                if self._taken_bytes > LONGEST_ANSWER:
                    raise Unreachable(f"the proxy's answer is over {LONGEST_ANSWER} bytes long")
                self._looked_at = len(self._data)
                return
            self._take(end)

    def _take(self, end: int) -> None:
        match = _STATUS_LINE.match(self._data)
        if match is None:
            raise Unreachable("the proxy's answer has no status")
        status = int(match[1])
        reason = (match[2] or b"")[:_SHOWN_REASON].decode("ascii", "replace")
        del self._data[: end + 4]
        self._looked_at = 0
        if status in _INTERIM:
            return
        self.reason = "".join(one if one.isprintable() else "�" for one in reason)
        if _OK <= status < _REDIRECTS and self._data:
            raise Unreachable("the proxy sent something behind its answer, unasked")
        self.status = status

"""Sending requests: over an idle connection, or a new one to a checked address."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from taskd.delivery.egress import Egress
from taskd.delivery.progress import Progress, Response
from taskd.delivery.resolver import Resolver
from taskd.delivery.transport.connection import Connection
from taskd.delivery.transport.dialing import Dialer
from taskd.delivery.transport.pool import KEEP_S, IdlePool
from taskd.delivery.transport.request import Request
from taskd.delivery.transport.secured import Secured
from taskd.delivery.transport.target import Target
from taskd.delivery.transport.tls import Contexts, Unagreed, handshake, tls_contexts
from taskd.delivery.transport.tunnel import Tunnels
from taskd.domain.model import Phase
from taskd.errors import InvalidInput, SystemShort, Unreachable
from taskd.runtime.logs import log_event
from taskd.runtime.proxy_url import Proxy

logger = logging.getLogger("taskd.transport")

_SHORT_LASTS_S = 10.0
"""How long a shortage of this system's counts as present after it was met."""

_TOLD_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class TransportStatistics:
    """What a transport is doing, and has done since it was made."""

    active: int
    """Requests under way."""
    idle: int
    """Connections kept for the next request."""
    opened: int
    """Connections made."""
    reused: int
    """Requests that went over a kept connection."""
    discarded: int
    """Kept connections that their receiver had closed, or sent bytes on unasked."""
    sent_again: int
    """Requests sent once more, since a kept connection had been closed before they came."""
    resolving: int
    """Threads that are looking a name up."""


class Transport:
    """An HTTP/1.1 client for callbacks. Ignores the environment's proxy variables.

    Args:
        egress: says which addresses may be reached.
        resolver: looks names up.
        ca_file: PEM certificates of authorities trusted beside the system's.
        client: files of the certificate that receivers may ask for, and of its key.
        proxy: all connections to receivers lead through it; None: they lead through none.
        max_response: bytes that the body of a response may have.
        keep_alive_s: how long an idle connection is kept, at most; 0: not at all.
        max_idle_per_origin: idle connections kept to one origin.
        max_idle: idle connections kept in all.

    Raises:
        ConfigError: one of the files can't be used.
    """

    def __init__(
        self,
        *,
        egress: Egress,
        resolver: Resolver | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        client: tuple[Path, Path] | None = None,
        proxy: Proxy | None = None,
        max_response: int = 65536,
        keep_alive_s: float = KEEP_S,
        max_idle_per_origin: int = 128,
        max_idle: int = 512,
    ) -> None:
        self._egress = egress
        self._resolver = Resolver() if resolver is None else resolver
        self._tls = tls_contexts(ca_file, client)
        self._max_response = max_response
        self._pool = IdlePool(
            max_per_origin=max_idle_per_origin, max_idle=max_idle, keep_s=keep_alive_s
        )
        self._dialer = Dialer()
        self._tunnels = self._tunnels_through(proxy)
        self._era = 0
        self._short: str | None = None
        self._short_until = self._short_told_at = -math.inf
        self._closed = False
        self._active = 0
        self._opened = 0
        self._reused = 0
        self._sent_again = 0

    async def post(
        self,
        target: Target,
        headers: Sequence[tuple[str, str]],
        body: bytes | tuple[bytes, ...],
        progress: Progress,
        *,
        body_counts: bool = True,
    ) -> Response:
        """POST a body, whole or in parts, and read the answer. The request is sent once,
        and once more only if the first can't have been read. Redirects are not followed.

        The only deadline is the caller's. A call that is cancelled leaves what it has read
        of an answer in the progress. Host and Content-Length are added to the headers.

        Args:
            target: where to.
            headers: names and values.
            body: of the request.
            progress: told how far it is.
            body_counts: whether the body of a 2xx decides if it is a success; else the body
                is waited for only a short while.

        Raises:
            Denied: nothing was sent.
            Unreachable, UnreadableResponse, SystemShort: see there.
            InvalidInput: a header can't be sent; nothing was sent.
        """
        parts = (body,) if isinstance(body, bytes) else body
        length = sum(map(len, parts))
        era = self._era
        kept = self._pool.take(target.origin, trio.current_time())
        last = kept is None and not self._pool.keeps(target.origin, trio.current_time())
        head = _head(target, headers, length, last=last)
        reusable = False
        self._active += 1
        connection = kept
        try:
            if connection is None:
                connection = await self._connect(target, progress)
            else:
                self._reused += 1
                progress.address, progress.via = connection.address, connection.via
            request = Request(head, *parts)
            try:
                response, reusable = await connection.exchange(
                    request, self._max_response, progress, body_counts=body_counts
                )
            except Unreachable:
                if connection is not kept or not self._was_closed_unread(connection):
                    raise
                connection = None
                connection = await self._connect(target, progress)
                response, reusable = await connection.exchange(
                    Request(head, *parts), self._max_response, progress, body_counts=body_counts
                )
        except trio.Cancelled:
            if connection is not None:
                progress.answer = connection.answer_so_far()
            raise
        finally:
            self._active -= 1
            if connection is not None:
                reusable = reusable and era == self._era and not self._closed
                self._pool.give_back(connection, trio.current_time(), reusable=reusable)
        return response

    def _was_closed_unread(self, kept: Connection) -> bool:
        """Whether a request that failed on a kept connection can't have been read, so that
        it may be sent once more; the connection is then closed. Unless an answer had begun,
        the pool learns that the connection had been closed."""
        if kept.answered:
            return False
        now = trio.current_time()
        self._pool.note_closed(kept, now)
        if not kept.has_taken_nothing():
            return False
        self._pool.give_back(kept, now, reusable=False)
        self._sent_again += 1
        return True

    def renew(
        self,
        tls: Contexts,
        *,
        max_response: int,
        keep_alive_s: float,
        proxy: Proxy | None = None,
    ) -> None:
        """Use these settings from now on. Connections that are open finish the requests
        under way and are then closed: they were approved by the settings before.

        Args:
            tls: what `tls_contexts` made.
            max_response: as of `Transport`.
            keep_alive_s: as of `Transport`.
            proxy: as of `Transport`.
        """
        self._tunnels = self._tunnels_through(proxy)
        self._tls = tls
        self._max_response = max_response
        self._era += 1
        self._pool.renew(keep_alive_s)

    def close_idle(self) -> None:
        """Close the connections that have been idle for too long. To be called
        every second or so; costs nothing if there are none."""
        self._pool.close_idle(trio.current_time())

    async def aclose(self) -> None:
        """Close the idle connections, and each other one when its request ends.
        Later requests are refused as `Unreachable`."""
        self._closed = True
        self._pool.close_all()
        await trio.lowlevel.checkpoint()

    def statistics(self) -> TransportStatistics:
        """What the transport is doing, and has done."""
        return TransportStatistics(
            active=self._active,
            idle=len(self._pool),
            opened=self._opened,
            reused=self._reused,
            discarded=self._pool.discarded,
            sent_again=self._sent_again,
            resolving=self._resolver.busy,
        )

    async def _connect(self, target: Target, progress: Progress) -> Connection:
        host, port = target.host, target.port
        if self._closed:
            raise Unreachable("the transport is closed")
        try:
            sock = await self._dial(host, port, target, progress)
        except SystemShort as short:
            if not self._pool.close_all():
                self._note_short(short)
                raise
            # The idle connections were closed, which may have made room for this one.
            try:
                sock = await self._dial(host, port, target, progress)
            except SystemShort as still:
                self._note_short(still)
                raise
        secured = await self._secure(sock, target, progress) if target.scheme == "https" else sock
        self._opened += 1
        return Connection(
            secured,
            origin=target.origin,
            address=progress.address,
            opened_at=trio.current_time(),
            via=progress.via,
        )

    async def _secure(self, sock: socket.socket, target: Target, progress: Progress) -> Secured:
        """Make TLS on a connection. If the receiver accepts nothing of what it was offered,
        dial once more and offer the older context."""
        tls, name = self._tls, target.tls_name
        progress.enter(Phase.TLS)
        try:
            return await handshake(sock, tls.usual, name, via=progress.via)
        except Unagreed as refused:
            sock = await self._dial(target.host, target.port, target, progress)
            progress.enter(Phase.TLS)
            try:
                return await handshake(sock, tls.older, name, via=progress.via)
            except Unagreed:
                raise refused from None

    async def _dial(
        self, host: str, port: int, target: Target, progress: Progress
    ) -> socket.socket:
        tunnels = self._tunnels
        progress.via = None if tunnels is None else tunnels.proxy.name
        progress.enter(Phase.RESOLVING)
        if target.address is not None:
            addresses: tuple[str, ...] = (target.address,)
        elif tunnels is None:
            addresses = await self._resolver.resolve(host)
        else:
            addresses = await self._resolve_for(tunnels.proxy, host)
        self._approve(host, addresses)
        progress.enter(Phase.CONNECTING)
        dialer = self._dialer if tunnels is None else tunnels
        return await dialer.dial(addresses, port, target.origin, progress)

    async def _resolve_for(self, proxy: Proxy, host: str) -> tuple[str, ...]:
        try:
            return await self._resolver.resolve(host)
        except Unreachable as error:
            # An operator who has a proxy may expect it to look names up.
            raise Unreachable(f"{error} (names are looked up here, not by {proxy.name})") from error

    def _tunnels_through(self, proxy: Proxy | None) -> Tunnels | None:
        return None if proxy is None else Tunnels(proxy, self._resolver, self._dialer)

    def _note_short(self, short: SystemShort) -> None:
        now = trio.current_time()
        self._short, self._short_until = str(short), now + _SHORT_LASTS_S
        if now - self._short_told_at >= _TOLD_EVERY_S:
            self._short_told_at = now
            log_event(logger, logging.ERROR, "attempts are put off, at no cost", reason=self._short)

    def degraded(self) -> str | None:
        """The shortage of this system that has lately kept connections from being made;
        None if there was none."""
        return self._short if trio.current_time() < self._short_until else None

    def _approve(self, host: str, addresses: Sequence[str]) -> None:
        """Make sure that all of a name's addresses may be reached. One that is denied
        denies the name: else the name could be tried until its addresses come in the wanted
        order."""
        for address in addresses:
            self._egress.check(address, name=None if address == host else host)


def _head(target: Target, headers: Sequence[tuple[str, str]], length: int, *, last: bool) -> bytes:
    """The request line and the headers; ``last`` says that no other request follows."""
    lines = [f"POST {target.path} HTTP/1.1", f"Host: {target.host_header}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if last:
        lines.append("Connection: close")
    lines.append(f"Content-Length: {length}\r\n\r\n")
    text = "\r\n".join(lines)
    # A line break inside a value would make two headers, or two requests, of it.
    if text.count("\n") != len(lines) + 1 or text.count("\r") != len(lines) + 1 or "\0" in text:
        raise InvalidInput("", "a header or the path holds a CR, LF or NUL")
    try:
        return text.encode("ascii")
    except UnicodeEncodeError as error:
        raise InvalidInput("", "a header or the path holds a character beyond ASCII") from error

"""One client's connection: Hypercorn's HTTP/1.1 over a Trio stream of ours.

Hypercorn parses and frames. What its own TCP server does
beside that is done here otherwise: it spawns two tasks per request for the idle
timer, sends an answer in three pieces, shields its sends without a deadline, and
waits for the headers of a request for ever.

    accepted ─► idle ─► head arriving ─► in hand ─► idle …
                 │          │               │
            KEEP_ALIVE_S  HEAD_S      no limit here: the body's and the
                 │          │         service's own ones hold
                 └──► closed ◄──── SEND_S for one write

`end` closes it at any point, whatever it is waiting for.
"""

from __future__ import annotations

import contextlib
import logging
import math
from typing import cast

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    AppWrapper,
    ASGIFramework,
    ConnectionState,
)
from hypercorn.utils import parse_socket_addr

from taskd.api.protocols import PlainH11, Requests
from taskd.logs import log_event

logger = logging.getLogger("taskd.api")

KEEP_ALIVE_S = 60.0
"""How long a connection may wait for the first byte of a request."""

HEAD_S = 10.0
"""From the first byte of a request to the end of its headers."""

SEND_S = 30.0
"""How long a client may take to make room for one write."""

FINISH_S = 10.0
"""How long requests in hand may go on after their client has left. The service's
own deadlines are shorter."""

HANDSHAKE_S = 10.0

_MAX_RECEIVE = 16_384

_Address = tuple[str, int]

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class Connection:
    """Serves the requests of one client.

    Args:
        stream: just accepted; closed at the end.
        app: answers the requests.
        config: Hypercorn's.
        context: Hypercorn's, never told to terminate: `finish` and `end` do that.
    """

    def __init__(
        self,
        stream: Stream,
        app: ASGIFramework,
        config: HypercornConfig,
        context: WorkerContext,
    ) -> None:
        self._stream = stream
        self._app = app
        self._config = config
        self._context = context
        self._all = trio.CancelScope()
        self._reading = trio.CancelScope()
        self._sending = trio.Lock()
        self._unsent: list[bytes] = []
        self._corked = False
        self._broken = False
        self._finishing = False
        self._waiting = True
        self.idle_since = trio.current_time()
        """When its last request ended."""

    @property
    def idle(self) -> bool:
        """Whether no request is in hand and no answer is on its way."""
        return self._waiting and not self._unsent and not self._sending.locked()

    @property
    def ending(self) -> bool:
        """Whether `end` was called."""
        return self._all.cancel_called

    def end(self) -> None:
        """Close it, whatever it is doing. An answer that is half sent stays so."""
        self._all.cancel()

    def finish(self) -> None:
        """Close it as soon as no request is in hand."""
        self._finishing = True
        if self.idle:
            self.end()

    async def run(self) -> None:
        """Serve until either side closes."""
        try:
            with self._all:
                if await self._shake_hands():
                    await self._serve()
        except OSError as error:
            log_event(logger, logging.DEBUG, "connection lost", error=str(error))
        except Exception as error:  # noqa: BLE001 - what one client provokes must not end the others
            log_event(logger, logging.WARNING, "connection failed", error=error)
        finally:
            await trio.aclose_forcefully(self._stream)

    async def _shake_hands(self) -> bool:
        if not isinstance(self._stream, trio.SSLStream):
            return True
        with trio.move_on_after(HANDSHAKE_S):
            try:
                await self._stream.do_handshake()
            except trio.BrokenResourceError:
                return False
            return True
        return False

    async def _serve(self) -> None:
        addresses = self._addresses()
        async with trio.open_nursery() as nursery:
            protocol = self._protocol = self._make_protocol(nursery, *addresses)
            with self._reading:
                self._reading.deadline = self.idle_since + KEEP_ALIVE_S
                await protocol.initiate()
                while data := await self._receive():
                    await protocol.handle(RawData(data))
                    self._expect_head()
            await protocol.handle(Closed())
            nursery.cancel_scope.deadline = trio.current_time() + FINISH_S
        await self._flush()
        if isinstance(self._stream, trio.SocketStream) and not self._broken:
            # Lets the last answer arrive even where unread bytes are left, for
            # which the kernel sends a reset on close.
            with contextlib.suppress(trio.BrokenResourceError):
                await self._stream.send_eof()

    def _addresses(self) -> tuple[_Address | None, _Address | None]:
        stream = self._stream
        tcp = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        family = tcp.socket.family
        return (
            parse_socket_addr(family, tcp.socket.getpeername()),
            parse_socket_addr(family, tcp.socket.getsockname()),
        )

    def _make_protocol(
        self, nursery: trio.Nursery, client: _Address | None, server: _Address | None
    ) -> PlainH11:
        return PlainH11(
            cast("AppWrapper", self._app),  # never called: `Requests` runs the application
            self._config,
            self._context,
            Requests(self._app, self, nursery),
            ConnectionState({}),
            isinstance(self._stream, trio.SSLStream),
            client,
            server,
            self._send,
        )

    async def _receive(self) -> bytes:
        """The next bytes; none where the client sends no more."""
        try:
            return bytes(await self._stream.receive_some(_MAX_RECEIVE))
        except trio.BrokenResourceError:
            self._broken = True
            return b""

    def _expect_head(self) -> None:
        """Bytes came that made no request yet: the rest has to come soon."""
        if self._waiting:
            until = trio.current_time() + HEAD_S
            self._reading.deadline = min(self._reading.deadline, until)

    async def _send(self, event: Event) -> None:
        """What the protocol has to say."""
        if isinstance(event, RawData):
            if event.data:
                self._unsent.append(event.data)
            if not self._corked:
                await self._flush()
        elif isinstance(event, Updated):
            self._waiting = event.idle
            self.idle_since = trio.current_time()
            self._reading.deadline = self.idle_since + KEEP_ALIVE_S if event.idle else math.inf
            if event.idle and self._finishing:
                self._reading.cancel()
        elif isinstance(event, Closed):
            await self._flush()
            # Who reads then tells the protocol. Told here, inside of what was just
            # cancelled, it could not tell the request that waits for its body.
            self._reading.cancel()

    async def _flush(self) -> None:
        if not self._unsent:
            return
        try:
            # Spares the pass through Trio's scheduler that `acquire` makes.
            self._sending.acquire_nowait()
        except trio.WouldBlock:
            await self._sending.acquire()
        try:
            while self._unsent and not self._broken:
                data = b"".join(self._unsent)
                self._unsent.clear()
                try:
                    with trio.fail_after(SEND_S):
                        await self._stream.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self._break()
                except trio.TooSlowError:
                    log_event(logger, logging.INFO, "a client took too long to read its answer")
                    self._break()
        finally:
            self._sending.release()

    def _break(self) -> None:
        # Requests in hand are carried out all the same; their answers are dropped.
        self._broken = True
        self._unsent.clear()
        self._reading.cancel()

    def hold(self) -> None:
        """Keep what is sent until `release`, so that it leaves in one piece."""
        self._corked = True

    async def release(self) -> None:
        """Send what was held."""
        self._corked = False
        await self._flush()

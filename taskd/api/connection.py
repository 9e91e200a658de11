"""One client's connection: Hypercorn's HTTP/1.1 over a Trio stream of ours.

Hypercorn parses and frames, but for plain requests that come while it has nothing
in hand: those are the `Lane`'s. What its own TCP server does
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
import os
import select
from collections.abc import Iterable
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

from taskd.api.lane import Lane
from taskd.api.protocols import PlainH11, Requests
from taskd.logs import log_event

logger = logging.getLogger("taskd.api")

KEEP_ALIVE_S = 60.0
"""How long a connection may wait for the first byte of a request, and up to `WATCH_S`
more."""

HEAD_S = 10.0
"""From the first byte of a request to the end of its headers."""

SEND_S = 30.0
"""How long a client may take to make room for one write."""

FINISH_S = 10.0
"""How long requests in hand may go on after their client has left. The service's
own deadlines are shorter."""

HANDSHAKE_S = 10.0

WATCH_S = 0.5
"""How often connections are looked at, instead of setting a timer twice per request."""

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
        lane: answers plain requests.
    """

    def __init__(
        self,
        stream: Stream,
        app: ASGIFramework,
        config: HypercornConfig,
        context: WorkerContext,
        lane: Lane,
    ) -> None:
        self._stream = stream
        self._tcp = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        self._plain_fd = self._tcp.socket.fileno() if self._tcp is stream else None
        self._lane = lane
        self._in_lane = False
        self._client_left = False
        self._mixed = False
        """Whether Hypercorn has had bytes, and may still have some."""
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
        if self.idle and not self._has_more():
            self.end()

    def _has_more(self) -> bool:
        """Whether its client has sent something that was not read yet, or its end: to
        close it now would reset it."""
        descriptor = self._tcp.socket.fileno()
        if descriptor < 0:
            return False
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))

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
                await protocol.initiate()
                while data := await self._next():
                    if self._nothing_in_hand():
                        data = await self._lane.take(self, data)
                        if not data:
                            continue
                        self._leave_lane()
                    self._mixed = True
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

    def _nothing_in_hand(self) -> bool:
        if self._mixed and self.idle and self._protocol.at_rest:
            self._mixed = False
        return self.idle and not self._mixed

    def _addresses(self) -> tuple[_Address | None, _Address | None]:
        sock = self._tcp.socket
        return (
            parse_socket_addr(sock.family, sock.getpeername()),
            parse_socket_addr(sock.family, sock.getsockname()),
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

    async def _next(self) -> bytes:
        """What `receive` gives, once there is room for answers to it: who reads none is
        not to have ever more of them kept."""
        if self._sending.locked():
            await self._flush()
        return await self.receive()

    async def receive(self) -> bytes:
        """The next bytes; none where the client sends no more."""
        try:
            if self._plain_fd is None:
                return bytes(await self._stream.receive_some(_MAX_RECEIVE))
            # Past the stream, which would try to read before it waits: what has been
            # answered a moment ago has hardly sent the next request.
            while True:
                await trio.lowlevel.wait_readable(self._plain_fd)
                with contextlib.suppress(BlockingIOError):
                    return os.read(self._plain_fd, _MAX_RECEIVE)
        except (trio.BrokenResourceError, OSError):
            self._broken = True
            return b""

    async def write(self, data: bytes) -> None:
        """Send a whole answer; drops it where it can't be sent."""
        if self._plain_fd is not None:
            # Most answers fit into what the kernel holds, and need neither a deadline
            # nor a pass through the scheduler.
            try:
                data = data[os.write(self._plain_fd, data) :]
            except BlockingIOError:
                pass
            except OSError:
                self._break()
                return
        if data:
            self._unsent.append(data)
            await self._flush()

    def occupy(self) -> None:
        """The lane has a request in hand."""
        self._in_lane = True
        self._set_idle(idle=False)

    def rest(self) -> None:
        """The lane has answered it."""
        self._leave_lane()
        self._set_idle(idle=True)

    def leave(self) -> None:
        """The lane has answered the last one."""
        self._leave_lane()
        self._reading.cancel()

    def _leave_lane(self) -> None:
        self._in_lane = False
        if self._client_left:
            self._client_left = False
            self._all.deadline = math.inf

    def look(self) -> None:
        """Close it where it has been idle for `KEEP_ALIVE_S`; give it `FINISH_S` where
        the client has left a request of the lane's, since nobody reads meanwhile."""
        now = trio.current_time()
        if self._waiting:
            if now - self.idle_since >= KEEP_ALIVE_S:
                self._reading.cancel()
        elif self._in_lane and not self._client_left and _has_left(self._tcp.socket.fileno()):
            self._client_left = True
            self._all.deadline = now + FINISH_S

    def _set_idle(self, *, idle: bool) -> None:
        self._waiting = idle
        self.idle_since = trio.current_time()
        if self._reading.deadline != math.inf:
            self._reading.deadline = math.inf
        if idle and self._finishing:
            self._reading.cancel()

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
            self._set_idle(idle=event.idle)
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


async def watch(connections: Iterable[Connection]) -> None:
    """Look after connections for ever, those that come later included."""
    while True:
        await trio.sleep(WATCH_S)
        for connection in connections:
            connection.look()


def _has_left(fd: int) -> bool:
    """Whether the other side of a socket has closed it, or its half of it, whatever is
    still to be read."""
    if fd < 0:
        return False  # closed here: whoever looks comes between that and the end
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    return bool(poll.poll(0))

"""One client's connection: its requests are read, answered and written by one task, one
after another.

    accepted ─► idle ─► head arriving ─► body arriving ─► in hand ─► answer ─► idle …
                 │          │                  │             │          │
            KEEP_ALIVE_S  HEAD_S         BODY_TIMEOUT_S   no limit    SEND_S for
                 │          │                  │          here: the   one write
                 │          │                  │          service's
                 │          │                  │          own hold
                 └─► closed └─► refused ◄──────┘

After the last answer (the client wants no more, or can't be understood) this side of the
connection is closed, and what still comes is read away, since the kernel would have it
take the answer with it. What stands behind a last request was never asked.

A client that closes its half gets the answers to what it had sent whole. `end` closes the
connection at any point, whatever it is waiting for.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import time
from collections.abc import Callable, Hashable
from enum import Enum, auto
from http import HTTPStatus

import trio

from taskd.api.bodies import Chunked, Counted, Framing
from taskd.api.envelope import Answer, Refusal
from taskd.api.front import Front, request_id
from taskd.api.heads import Head, HeadGatherer, read_head
from taskd.api.intake import CAME_WHOLE, BodyTooLong, read_body
from taskd.api.rendering import CONTINUE, Renderer
from taskd.api.request import Request
from taskd.logs import log_event

logger = logging.getLogger("taskd.api")

KEEP_ALIVE_S = 60.0
"""How long a connection may wait for the first byte of a request, and until it is looked
at next."""

HEAD_S = 10.0
"""From the first byte of a request to the end of its headers."""

SEND_S = 30.0
"""How long a client may take to make room for one write."""

LINGER_S = 5.0
"""How long what comes after the last answer is read away, so that its sender, which often
reads only once it has sent all, sees the answer."""

MAX_LINGER = 4 * 1024 * 1024
"""Bytes of it."""

FINISH_S = 10.0
"""How long a request in hand may go on after its client has reset the connection. The
service's own deadlines are shorter."""

HANDSHAKE_S = 10.0

_MAX_RECEIVE = 16_384

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class Stage(Enum):
    """What a connection waits for."""

    IDLE = auto()
    """The first byte of a request."""
    HEAD = auto()
    """The rest of its line and headers."""
    BODY = auto()
    """The rest of its body."""
    IN_HAND = auto()
    """Its answer, and room to send that."""
    LINGERING = auto()
    """The client's end: the last answer is sent."""


class HeadStalled(Refusal):
    """A request's line and headers did not arrive in time: 400."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.BAD_REQUEST,
            f"the request's line and headers did not arrive within {HEAD_S:g} s",
        )


class HeadCutShort(Refusal):
    """The client sends no more, and has not sent all of a head: 400."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.BAD_REQUEST, "the request ended before its headers were complete"
        )


class Unwanted(Refusal):
    """The client asks whether to send a body, and no body could change the answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status, answer.msg)
        self.answer = answer


class Connection:
    """Serves the requests of one client.

    Args:
        stream: just accepted; closed at the end.
        front: answers the requests.
        renderer: writes the answers.
        on_last: called once the last answer is sent.
    """

    def __init__(
        self, stream: Stream, front: Front, renderer: Renderer, on_last: Callable[[], object]
    ) -> None:
        self._stream = stream
        self._tcp = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        self._plain_fd = self._tcp.socket.fileno() if self._tcp is stream else None
        self._front = front
        self._renderer = renderer
        self._on_last = on_last
        self._client = ""
        self._all = trio.CancelScope()
        self._broken = False
        self._finishing = False
        self.stage = Stage.IDLE
        self.idle_since = trio.current_time()
        """When its last request ended."""

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
        if self.stage not in {Stage.BODY, Stage.IN_HAND} and not self._has_more():
            self.end()

    def look(self) -> None:
        """Close it where it has been idle for `KEEP_ALIVE_S`; give it `FINISH_S` where
        the client has reset the connection while nobody reads from it."""
        if self.stage is Stage.IDLE:
            if trio.current_time() - self.idle_since >= KEEP_ALIVE_S:
                self.end()
        elif self._all.deadline == math.inf and _is_reset(self._tcp.socket.fileno()):
            self._all.deadline = trio.current_time() + FINISH_S

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
                self._client = self._tcp.socket.getpeername()[0]
                if await self._shake_hands():
                    await self._serve()
        except OSError as error:
            log_event(logger, logging.DEBUG, "connection lost", error=str(error))
        except Exception as error:  # noqa: BLE001 - what one client provokes must not end the others
            self._front.log.failed(error, self._client)
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
        data = b""
        while data := data or await self.receive():
            try:
                head = read_head(data)
                if head is None:
                    head, data = await self._gather(data)
                    if head is None:
                        return
                else:
                    data = data[head.end :]
            except Refusal as refusal:
                await self._refuse(refusal.answer)
                break
            rest = await self._exchange(head, data)
            if rest is None or self._broken:
                break
            data = rest
            if data:
                # Many may have come at once, and be answered without a pause.
                await trio.lowlevel.checkpoint()
            elif self._finishing and not self._has_more():
                return
        else:
            return
        await self._linger()

    async def _gather(self, data: bytes) -> tuple[Head | None, bytes]:
        """The head that these bytes begin, once the rest of it has come, and what came
        behind it; none where the client has left without having begun one.

        Raises:
            Refusal: it will be none.
        """
        self.stage = Stage.HEAD
        gatherer = HeadGatherer()
        fed = 0
        with trio.move_on_after(HEAD_S):
            while True:
                head = gatherer.feed(data)
                if head is not None:
                    return head, data[head.end - fed :]
                fed += len(data)
                data = await self.receive()
                if not data:
                    if gatherer.begun:
                        raise HeadCutShort
                    return None, b""
        if gatherer.begun:
            raise HeadStalled
        return None, b""

    async def _exchange(self, head: Head, data: bytes) -> bytes | None:
        """Answer a request whose head has come. Returns what came behind it; None where
        the connection ends with the answer."""
        began = time.perf_counter()
        self.stage = Stage.IN_HAND
        front = self._front
        request = front.begin(head, self._client)
        held = 0
        holder: Hashable = None
        last = head.last
        try:
            try:
                if not head.chunked and head.length <= len(data):
                    if head.length > front.max_body:
                        raise BodyTooLong(front.max_body)
                    front.buffered.take(head.length, CAME_WHOLE)
                    held, holder = head.length, CAME_WHOLE
                    request.body, data = data[:held], data[held:]
                else:
                    framing: Framing = Chunked() if head.chunked else Counted(head.length)
                    request.body = await self._receive_body(request, head, framing, data)
                    held, data = len(request.body), framing.rest
                    holder = request.sender
            except Refusal as refusal:
                request.refusal, last = refusal.answer, True
            answer, body = await front.answer(request)
        finally:
            front.buffered.give(held, holder)
        last = last or self._renderer.closing or self._finishing
        headed = request.method == "HEAD"
        await self.write(self._renderer.render(answer, body, request.id, last=last, headed=headed))
        front.log.request(request, answer, began)
        if last:
            return None
        self.stage = Stage.IDLE
        self.idle_since = trio.current_time()
        return data

    async def _receive_body(
        self, request: Request, head: Head, framing: Framing, data: bytes
    ) -> bytes | bytearray:
        """The body of a request, which has not come with the head. It is not kept where
        the head alone decides the answer.

        Raises:
            Refusal: there will be none, or none is wanted.
        """
        front = self._front
        if head.length > front.max_body:
            raise BodyTooLong(front.max_body)
        self.stage = Stage.BODY
        await front.admit(request, bodied=True)
        if head.expects and not data:
            if request.refusal is not None:
                raise Unwanted(request.refusal)
            await self.write(CONTINUE)
        body = await read_body(
            self.receive,
            framing,
            data,
            max_body=front.max_body,
            buffered=None if request.refusal else front.buffered,
            whose=request.sender,
        )
        self.stage = Stage.IN_HAND
        return body

    async def _refuse(self, answer: Answer) -> None:
        """Answer what is no request."""
        name = request_id({})
        await self.write(self._renderer.render(answer, answer.encode(), name, last=True))
        self._front.log.unreadable(self._client, name, answer)

    async def _linger(self) -> None:
        """Close this side, and read away what still comes from the other."""
        if self._broken:
            return
        self.stage = Stage.LINGERING
        self._on_last()
        left = MAX_LINGER
        with trio.move_on_after(LINGER_S), contextlib.suppress(trio.BrokenResourceError):
            await self._tcp.send_eof()
            while left > 0 and (self._has_more() or not self._finishing):
                data = await self._tcp.receive_some(_MAX_RECEIVE)
                if not data:
                    return
                left -= len(data)

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
        """Send bytes; drops them where they can't be sent."""
        if self._broken:
            return
        try:
            if self._plain_fd is not None:
                # Most answers fit into what the kernel holds, and need neither a
                # deadline nor a pass through the scheduler.
                with contextlib.suppress(BlockingIOError):
                    data = data[os.write(self._plain_fd, data) :]
            if data:
                with trio.fail_after(SEND_S):
                    await self._stream.send_all(data)
        except (trio.BrokenResourceError, OSError):
            self._broken = True
        except trio.TooSlowError:
            self._front.log.unread(self._client)
            self._broken = True


def _is_reset(fd: int) -> bool:
    """Whether the other side of a socket has reset it. One that has closed its half, or
    all of it, may still want an answer."""
    if fd < 0:
        return False  # closed here: whoever looks comes between that and the end
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))

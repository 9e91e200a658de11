"""What is ours inside Hypercorn's protocols: how a request is run, and how one
that can't be read is answered."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, Self

import h11
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import (
    AppWrapper,
    ASGIFramework,
    ASGIReceiveEvent,
    ASGISendEvent,
    Scope,
)

from taskd.api.envelope import Refusal
from taskd.logs import log_event

logger = logging.getLogger("taskd.api")

_WAITING_EVENTS = 10
_BAD_REQUEST = 400
_TOO_LONG = 431
_VERSIONS = frozenset({b"1.0", b"1.1"})

StreamSend = Callable[[ASGISendEvent | None], Awaitable[None]]


class Wire(Protocol):
    """The connection, as its requests see it."""

    def hold(self) -> None:
        """Keep what is sent until `release`."""
        ...

    async def release(self) -> None:
        """Send what was held."""
        ...


class Requests:
    """What Hypercorn calls a task group: starts the tasks of one connection."""

    def __init__(self, app: ASGIFramework, wire: Wire, nursery: trio.Nursery) -> None:
        self._app = app
        self._wire = wire
        self._nursery = nursery

    async def spawn_app(
        self,
        app: AppWrapper,  # noqa: ARG002 - wraps the application that is known here
        config: HypercornConfig,  # noqa: ARG002 - needed by Hypercorn's own task group only
        scope: Scope,
        send: StreamSend,
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        """Start answering a request; returns what takes its events."""
        put, events = trio.open_memory_channel[ASGIReceiveEvent](_WAITING_EVENTS)
        self._nursery.start_soon(self._answer, scope, _Exchange(events, send, self._wire))

        async def tell(event: ASGIReceiveEvent) -> None:
            try:
                await put.send(event)
            except trio.BrokenResourceError:
                return  # The application has ended and wants to know nothing more.

        return tell

    async def _answer(self, scope: Scope, exchange: _Exchange) -> None:
        with exchange.events:
            try:
                await self._app(scope, exchange.receive, exchange.send)
            except Exception as error:  # noqa: BLE001 - one request's failure is not the connection's
                log_event(logger, logging.ERROR, "request failed", error=error)
            await exchange.finish()

    def spawn(self, func: Callable[..., Awaitable[None]], *args: Any) -> None:  # noqa: ANN401 - whatever Hypercorn spawns
        """Start a task of the protocol's."""
        self._nursery.start_soon(func, *args)

    async def __aenter__(self) -> Self:
        """Nothing to enter: the nursery is the connection's."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Nothing to leave."""


class _Exchange:
    """One request and its answer, between the application and Hypercorn's stream."""

    def __init__(
        self,
        events: trio.MemoryReceiveChannel[ASGIReceiveEvent],
        stream_send: StreamSend,
        wire: Wire,
    ) -> None:
        self.events = events
        self._stream_send = stream_send
        self._wire = wire
        self._answered = trio.Event()

    async def receive(self) -> ASGIReceiveEvent:
        """The application's ``receive``."""
        try:
            return await self.events.receive()
        except trio.ClosedResourceError:
            # Not before the answer has gone: Quart ends a request at this event.
            await self._answered.wait()
            return {"type": "http.disconnect"}

    async def send(self, message: ASGISendEvent) -> None:
        """The application's ``send``: head and body leave in one piece."""
        if message["type"] == "http.response.start":
            self._wire.hold()
            await self._stream_send(message)
            return
        last = not message.get("more_body")
        if last:
            # From here on nobody takes events, and none may wait for room.
            self.events.close()
        await self._stream_send(message)
        await self._wire.release()
        if last:
            self._answered.set()

    async def finish(self) -> None:
        """The application has returned. One that has not answered answers 500."""
        await self._stream_send(None)
        await self._wire.release()


class PlainH11(H11Protocol):
    """HTTP/1.1 and nothing else: no HTTP/2, no WebSocket. Its own refusals are
    enveloped like all others."""

    @property
    def at_rest(self) -> bool:
        """Whether it has no part of a request, and would take another one."""
        connection = self.connection
        return (
            self.stream is None
            and isinstance(connection, h11.Connection)
            and connection.our_state is h11.IDLE
            and connection.their_state is h11.IDLE
            and not connection.trailing_data[0]
        )

    async def _check_protocol(self, event: h11.Request) -> None:
        """Nothing is switched to: see `_create_stream`."""

    async def _create_stream(self, request: h11.Request) -> None:
        problem = _problem(request)
        if problem is not None:
            await self._refuse(problem)
            await self.send(Closed())
            return
        kept = [(name, value) for name, value in request.headers if name != b"upgrade"]
        if len(kept) != len(request.headers):
            request = h11.Request(
                method=request.method,
                target=request.target,
                headers=kept,
                http_version=request.http_version,
            )
        await super()._create_stream(request)

    async def _send_error_response(self, status_code: int) -> None:
        msg = "the request is not valid HTTP/1.1"
        if status_code == _TOO_LONG:
            msg = "the request's line and headers are too long"
        await self._refuse(msg)

    async def _refuse(self, msg: str) -> None:
        log_event(logger, logging.INFO, "unreadable request", status=_BAD_REQUEST, reason=msg)
        body = Refusal(_BAD_REQUEST, msg).answer.encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            *self.config.response_headers("h11"),
        ]
        await self._send_h11_event(h11.Response(status_code=_BAD_REQUEST, headers=headers))
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())


def _problem(request: h11.Request) -> str | None:
    """Why a request that h11 takes is not taken here."""
    if request.http_version not in _VERSIONS:
        return "only HTTP/1.1 is spoken here"
    names = {name for name, _ in request.headers}
    if {b"content-length", b"transfer-encoding"} <= names:
        # A proxy may believe the one where we believe the other, and take what
        # follows for another request.
        return "Content-Length and Transfer-Encoding must not be given together"
    return None

"""The unsigned pages, answered by Quart behind the API's own reader of HTTP.

Quart gets only GET requests for paths that it has, with headers that `heads` has parsed,
and without `Host`: it would make a URL of that, and fail where none can be made.
Hypercorn's stream speaks ASGI with it. Hypercorn's own reader of HTTP/1.1, which is less
strict than `heads`, is not used.

A page costs thirty times what a refusal does, and anyone may ask for it. So requests that
come while a page is being made all share the next one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.protocol.events import Body, EndBody, Event, Response
from hypercorn.protocol.events import Request as StreamRequest
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ConnectionState, Scope
from quart import Response as QuartResponse
from quart import request as quart_request
from quart_trio import QuartTrio

from taskd.api.http.access_log import AccessLog
from taskd.api.http.request import Request
from taskd.api.wire.envelope import Answer, Refusal

View = Callable[[], Awaitable[Answer]]
_Page = tuple[Answer, bytes]

_STREAM = 1
_FRAMING = frozenset({b"content-type", b"content-length", b"transfer-encoding", b"connection"})


class Pages:
    """Answers the requests for pages.

    Args:
        views: what answers each path.
        secure: whether clients come over TLS.
        log: logs what fails.
    """

    def __init__(self, views: Mapping[str, View], *, secure: bool, log: AccessLog) -> None:
        self._shared = {path: _Shared() for path in views}
        self._secure = secure
        self._log = log
        self._app = QuartTrio("taskd", static_folder=None)
        for path, view in views.items():
            self._app.add_url_rule(
                path, path, _shown_by_quart(view), methods=["GET"], provide_automatic_options=False
            )
        self._app.register_error_handler(Exception, _tell_error)
        self._config = HypercornConfig()
        self._config.accesslog = self._config.errorlog = None
        self._context = WorkerContext(None)

    def __contains__(self, path: str) -> bool:
        """Whether there is a page of this path."""
        return path in self._shared

    async def answer(self, request: Request) -> tuple[Answer, bytes]:
        """Answer a request for a page that exists; returns the answer and its body."""
        return await self._shared[request.path].page(lambda: self._make(request))

    async def _make(self, request: Request) -> _Page:
        """Have Quart make a page."""
        exchange = _Exchange(request, self._log)
        query = b"?" + request.query if request.query else b""
        async with TaskGroup() as tasks:
            stream = HTTPStream(
                self._run,
                self._config,
                self._context,
                tasks,
                self._secure,
                (request.client, 0),
                None,
                exchange.take,
                _STREAM,
            )
            await stream.handle(
                StreamRequest(
                    _STREAM,
                    headers=[pair for pair in request.headers.items() if pair[0] != b"host"],
                    http_version="1.1",
                    method=request.method,
                    raw_path=request.path.encode() + query,
                    state=ConnectionState({"exchange": exchange}),
                )
            )
            await stream.handle(EndBody(_STREAM))
        return exchange.outcome()

    async def _run(
        self,
        scope: Scope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
        sync_spawn: object,  # noqa: ARG002 - it has no part that is not asynchronous
        call_soon: object,  # noqa: ARG002 - as above
    ) -> None:
        """Run Quart in the way that Hypercorn runs an application."""
        try:
            await self._app(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - one request's failure, which is answered
            scope["state"]["exchange"].fail(error)


class _Shared:
    """A page that requests of about the same time share. None of them gets a page whose
    making began before it came."""

    def __init__(self) -> None:
        self._making = trio.Lock()
        self._begun = 0
        self._made = 0
        """The number of the last page that was made."""
        self._page: _Page | None = None

    async def page(self, make: Callable[[], Awaitable[_Page]]) -> _Page:
        wanted = self._begun + 1
        async with self._making:
            if self._made < wanted or self._page is None:
                self._begun += 1
                number = self._begun
                self._page = await make()
                self._made = number
            return self._page


@dataclass(slots=True)
class _Exchange:
    """A request, and Quart's answer to it."""

    request: Request
    log: AccessLog
    answer: Answer | None = None
    body: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = field(default=())

    async def take(self, event: Event) -> None:
        """Take an event that Hypercorn's stream sends."""
        if isinstance(event, Response):
            self.headers = tuple(pair for pair in event.headers if pair[0] not in _FRAMING)
        elif isinstance(event, Body):
            self.body += event.data

    def fail(self, error: Exception) -> Answer:
        """Answer that Quart has failed; what it has sent is dropped."""
        self.answer = answer = self.log.unexpected(error, self.request)
        self.headers, self.body = (), answer.encode()
        return answer

    def outcome(self) -> _Page:
        """The answer, with Quart's headers, and its body."""
        answer = self.answer or self.fail(RuntimeError("no view has answered"))
        return replace(answer, headers=self.headers), self.body


def _shown_by_quart(view: View) -> Callable[[], Awaitable[QuartResponse]]:
    async def show() -> QuartResponse:
        return _response(await view())

    return show


async def _tell_error(error: Exception) -> QuartResponse:
    if isinstance(error, Refusal):
        return _response(error.answer)
    exchange = quart_request.scope["state"]["exchange"]
    return _response(exchange.log.unexpected(error, exchange.request))


def _response(answer: Answer) -> QuartResponse:
    quart_request.scope["state"]["exchange"].answer = answer
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return QuartResponse(answer.encode(), answer.status, headers, content_type="application/json")

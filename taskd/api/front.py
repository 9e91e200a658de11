"""The way of a request from ASGI to an endpoint and back.

The signed endpoints are answered here, without the framework's contexts, signals
and nurseries, which would cost as much as all the rest of a request
(docs/decisions says how much). Every other path goes on to Quart.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus

from hypercorn.typing import (
    ASGIFramework,
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    HTTPScope,
)

from taskd.api.envelope import Answer, Refusal, Unauthorized
from taskd.api.intake import Buffered, ClientGone, drain_body, read_body
from taskd.api.request import Request, collect_headers
from taskd.errors import BusUnavailable, NonceUsed, SignedBeforeEpoch, StoreUnavailable
from taskd.logs import log_event
from taskd.service import CancelNotConfirmed

logger = logging.getLogger("taskd.api")

Endpoint = Callable[[Request], Awaitable[Answer]]

SLOW_S = 1.0
"""A request that takes longer is logged even where all went well."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_JSON = re.compile(
    rb'application/json[ \t]*(;[ \t]*charset=("utf-8"|utf-8)[ \t]*)?;?', re.IGNORECASE
)
_ABSOLUTE = re.compile(r"https?://[^/?#]*", re.IGNORECASE)
_LONGEST_PATH_LOGGED = 200
_TOLD = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.SERVICE_UNAVAILABLE})
"""Refusals whose sentence is logged: none of these repeats what the client sent."""

_EVERY_METHOD = "GET, POST"
_DRAINING = Refusal(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "the daemon is draining: nothing was done, send the request again",
    headers=((b"retry-after", b"1"),),
).answer
_GET_WITH_BODY = "a GET must have no body"


@dataclass(slots=True)
class Front:
    """Answers requests.

    Args:
        endpoints: by path, then by method.
        framework: answers every other path.
        views: the paths that it has, each for GET.
        draining: whether the endpoints accept no more requests.
        max_body: bytes; may be changed.
    """

    endpoints: Mapping[str, Mapping[str, Endpoint]]
    framework: ASGIFramework
    views: frozenset[str]
    draining: Callable[[], bool]
    max_body: int
    buffered: Buffered = field(default_factory=Buffered)

    async def handle(
        self, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Answer one request; logs it."""
        began = time.perf_counter()
        headers, conflicts = collect_headers(scope["headers"])
        # What is in hand when a drain begins is answered; what comes later is not.
        draining = self.draining()
        request = Request(
            method=scope["method"],
            path=_path(scope["raw_path"]),
            query=scope["query_string"],
            headers=headers,
            conflicts=conflicts,
            body=b"",
            id=request_id(headers),
        )
        try:
            request.body = await read_body(
                receive, headers.get(b"content-length"), self.max_body, self.buffered
            )
        except ClientGone:
            return
        except Refusal as refusal:
            answer = replace(refusal.answer, headers=((b"connection", b"close"),))
            await _send_early(answer, request, receive, send)
            log_access(request, answer, began)
            return
        try:
            if draining and request.path in self.endpoints:
                answer = await _send_whole(_DRAINING, request, send)
            else:
                answer = await self._answer_whole(request, scope, receive, send)
        finally:
            self.buffered.give(len(request.body))
        log_access(request, answer, began)

    async def _answer_whole(
        self,
        request: Request,
        scope: HTTPScope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
    ) -> Answer:
        """Answer a request that has been read."""
        endpoints = self.endpoints.get(request.path)
        if endpoints is not None:
            answer, body = await self.answer(request, endpoints)
            await send(_start(answer, body, request))
            await send({"type": "http.response.body", "body": body, "more_body": False})
            return answer
        if (refusal := self._unfit(request)) is not None:
            return await _send_whole(refusal.answer, request, send)
        status = await self._hand_on(request, scope, receive, send)
        return Answer(status, 0 if status == HTTPStatus.OK else status, "", [])

    def _unfit(self, request: Request) -> Refusal | None:
        """Why a request that is none of the endpoints' is not for the framework."""
        if request.method in {"HEAD", "OPTIONS"}:
            return _not_allowed(request, "GET" if request.path in self.views else _EVERY_METHOD)
        if request.method == "GET" and request.body:
            return Refusal(HTTPStatus.BAD_REQUEST, _GET_WITH_BODY)
        return None

    async def answer(
        self, request: Request, endpoints: Mapping[str, Endpoint]
    ) -> tuple[Answer, bytes]:
        """Have the endpoint of a complete request answer it; the answer and its body."""
        try:
            answer = await _endpoint(request, endpoints)(request)
            return answer, answer.encode()
        except Refusal as refusal:
            answer = refusal.answer
        except NonceUsed:
            answer = Unauthorized("nonce: has been used already; sign every request anew").answer
        except SignedBeforeEpoch as error:
            answer = Unauthorized(f"timestamps: {error}").answer
        except (StoreUnavailable, BusUnavailable) as error:
            what = "store" if isinstance(error, StoreUnavailable) else "bus"
            answer = Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE, f"the {what} is not available: {error}"
            ).answer
            log_event(
                logger,
                logging.WARNING,
                f"{what} unavailable",
                error=str(error),
                request_id=request.id,
            )
        except CancelNotConfirmed as error:
            answer = Refusal(HTTPStatus.SERVICE_UNAVAILABLE, str(error)).answer
        except Exception as error:  # noqa: BLE001 - a bug is one request's failure, not the daemon's
            answer = unexpected(error, request.id)
        return answer, answer.encode()

    async def _hand_on(
        self,
        request: Request,
        scope: HTTPScope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
    ) -> int:
        """Let the framework answer; returns the status it chose."""
        status = 0
        body: bytes | None = request.body

        async def replay() -> ASGIReceiveEvent:
            nonlocal body
            if body is None:
                return await receive()
            complete, body = body, None
            return {"type": "http.request", "body": complete, "more_body": False}

        async def send_on(message: ASGISendEvent) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request.id.encode()),
                ]
            await send(message)

        scope["state"]["request_id"] = request.id
        await self.framework(scope, replay, send_on)
        return status


async def _send_whole(answer: Answer, request: Request, send: ASGISendCallable) -> Answer:
    body = answer.encode()
    await send(_start(answer, body, request))
    await send({"type": "http.response.body", "body": body, "more_body": False})
    return answer


async def _send_early(
    answer: Answer, request: Request, receive: ASGIReceiveCallable, send: ASGISendCallable
) -> None:
    """Answer a request that is not complete."""
    body = answer.encode()
    await send(_start(answer, body, request))
    await send({"type": "http.response.body", "body": body, "more_body": True})
    if answer.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        await drain_body(receive)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def unexpected(error: Exception, request_id: str) -> Answer:
    """The answer where the code is wrong; logs what it is, once."""
    log_event(logger, logging.ERROR, "unexpected error", error=error, request_id=request_id)
    return Refusal(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        f"an unexpected error; the daemon's log has it under the request id {request_id}",
    ).answer


def _endpoint(request: Request, endpoints: Mapping[str, Endpoint]) -> Endpoint:
    """What answers a request, once its outer form is right."""
    endpoint = endpoints.get(request.method)
    if endpoint is None:
        raise _not_allowed(request, ", ".join(sorted(endpoints)))
    if request.method == "GET":
        if request.body:
            raise Refusal(HTTPStatus.BAD_REQUEST, _GET_WITH_BODY)
        return endpoint
    if request.query:
        raise Refusal(
            HTTPStatus.BAD_REQUEST, "a POST must have no query string: its fields go into the body"
        )
    content_type = request.headers.get(b"content-type", b"")
    if content_type != b"application/json" and not _JSON.fullmatch(content_type):
        raise Refusal(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "the header Content-Type must be application/json, with no charset but utf-8",
        )
    if b"content-encoding" in request.headers:
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a body must have no Content-Encoding")
    return endpoint


def _not_allowed(request: Request, allowed: str) -> Refusal:
    return Refusal(
        HTTPStatus.METHOD_NOT_ALLOWED,
        f"{request.method[:16]} is not answered here, only {allowed}",
        headers=((b"allow", allowed.encode()),),
    )


def _path(target: bytes) -> str:
    """The path of a request's target, which may be a whole URL."""
    text = target.decode("latin-1")
    if text.startswith("/"):
        return text
    url = _ABSOLUTE.match(text)
    return text if url is None else text[url.end() :] or "/"


def request_id(headers: Mapping[bytes, bytes]) -> str:
    """What names a request: what its client calls it, else something random."""
    given = headers.get(b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given.decode()
    # It names, and admits nobody: worth no system call, for which the interpreter would
    # be given up to another thread.
    return f"{random.getrandbits(64):016x}"


def _start(answer: Answer, body: bytes, request: Request) -> ASGISendEvent:
    return {
        "type": "http.response.start",
        "status": answer.status,
        "headers": _headers(answer, body, request.id),
    }


def _headers(answer: Answer, body: bytes, request_id: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode()),
        *answer.headers,
    ]


def log_access(request: Request, answer: Answer, began: float) -> None:
    """Log one line for a request that began at this `time.perf_counter`. Never its
    query, body or signature."""
    seconds = time.perf_counter() - began
    well = answer.status == HTTPStatus.OK and seconds < SLOW_S
    level = logging.DEBUG if well else logging.INFO
    if not logger.isEnabledFor(level):
        return
    log_event(
        logger,
        level,
        "request",
        request_id=request.id,
        method=request.method[:16],
        path=request.path[:_LONGEST_PATH_LOGGED],
        status=answer.status,
        code=answer.code,
        app_key=request.app_key,
        ms=round(seconds * 1000, 1),
        reason=answer.msg if answer.status in _TOLD else None,
    )

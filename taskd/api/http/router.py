"""Finds a request's endpoint, and turns errors into answers.

The signed endpoints are answered here, and so is whatever is refused. Quart answers the
unsigned `Pages`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Generic, Protocol, TypeVar

from taskd.api.http.access_log import AccessLog
from taskd.api.http.body_intake import Buffered
from taskd.api.http.heads import Head
from taskd.api.http.pages import Pages
from taskd.api.http.request import Request
from taskd.api.wire.envelope import Answer, Refusal, Unauthorized
from taskd.errors import BusUnavailable, NonceUsed, SignedBeforeEpoch, StoreUnavailable
from taskd.service.service import CancelNotConfirmed

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_JSON = re.compile(
    rb'application/json[ \t]*(;[ \t]*charset=("utf-8"|utf-8)[ \t]*)?;?', re.IGNORECASE
)
_EVERY_METHOD = "GET, POST"
_NOT_FOUND = (
    "there is no such path; the API has /application/create, /task/create, /task/batch, "
    "/task/cancel, /task/detail, /healthz and /readyz"
)
_DRAINING = Refusal(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "the daemon is draining: nothing was done, send the request again",
    headers=((b"retry-after", b"1"),),
).answer
_GET_WITH_BODY = "a GET must have no body"


class Entrance(Protocol[T_co]):
    """Stands before the endpoints of a path: finds out who has signed a request, and has
    its nonce used up."""

    async def identify(self, request: Request) -> object:
        """Judge a request by its head alone.

        Raises:
            Refusal: it is refused whatever its body is.
            StoreUnavailable: its signer can't be looked up now.
        """

    async def answer(
        self, request: Request, endpoint: Callable[[Request, T_co], Awaitable[Answer]]
    ) -> Answer:
        """Answer a request whose body has arrived, by way of this endpoint.

        Raises:
            Refusal, StoreError, BusUnavailable: in place of an answer.
        """


@dataclass(frozen=True, slots=True)
class Route(Generic[T]):
    """What answers the requests for one path."""

    methods: Mapping[str, Callable[[Request, T], Awaitable[Answer]]]
    entrance: Entrance[T]


@dataclass(slots=True)
class Router:
    """Answers requests.

    Args:
        routes: the signed endpoints, by path.
        pages: what answers other paths, by GET.
        draining: whether the endpoints accept no more requests.
        max_body: bytes; may be changed.
        log: logs requests that fail.
    """

    routes: Mapping[str, Route[Any]]
    pages: Pages
    draining: Callable[[], bool]
    max_body: int
    log: AccessLog
    buffered: Buffered = field(default_factory=Buffered)

    def begin(self, head: Head, client: str) -> Request:
        """The request of a head that has arrived, from this address."""
        request = Request(
            method=head.method,
            path=head.path,
            query=head.query,
            headers=head.headers,
            conflicts=head.conflicts,
            body=b"",
            id=request_id(head.headers),
            client=client,
        )
        # Requests in hand when a drain begins are answered; later ones are not.
        if self.draining() and request.path in self.routes:
            request.refusal = _DRAINING
        return request

    async def admit(self, request: Request, *, bodied: bool) -> None:
        """Judge a request whose body is still to come. If its head alone decides that it is
        refused, `Request.refusal` becomes the answer."""
        if request.refusal is not None:
            return
        try:
            route = self.routes.get(request.path)
            if route is None:
                self._check_page(request, bodied=bodied)
            else:
                _endpoint(request, route, bodied=bodied)
                await route.entrance.identify(request)
        except Exception as error:  # noqa: BLE001 - see `_explain`
            request.refusal = self._explain(error, request)

    async def answer(self, request: Request) -> tuple[Answer, bytes]:
        """Answer a request whose body has arrived; returns the answer and its body."""
        answer = request.refusal
        if answer is None:
            try:
                route = self.routes.get(request.path)
                bodied = bool(request.body)
                if route is None:
                    self._check_page(request, bodied=bodied)
                    return await self.pages.answer(request)
                endpoint = _endpoint(request, route, bodied=bodied)
                answer = await route.entrance.answer(request, endpoint)
                _check_spent(request)
            except Exception as error:  # noqa: BLE001 - see `_explain`
                answer = self._explain(error, request)
        return answer, answer.encode()

    def _check_page(self, request: Request, *, bodied: bool) -> None:
        """Raise a `Refusal` of a request for no endpoint, unless it is right for a page."""
        exists = request.path in self.pages
        if request.method in {"HEAD", "OPTIONS"} or (exists and request.method != "GET"):
            raise _not_allowed(request, "GET" if exists else _EVERY_METHOD)
        if request.method == "GET" and bodied:
            raise Refusal(HTTPStatus.BAD_REQUEST, _GET_WITH_BODY)
        if not exists:
            raise Refusal(HTTPStatus.NOT_FOUND, _NOT_FOUND)

    def _explain(self, error: Exception, request: Request) -> Answer:
        """The answer that tells of an error. A bug fails one request, and not the daemon."""
        match error:
            case Refusal():
                return error.answer
            case NonceUsed():
                return Unauthorized("nonce: has been used already; sign every request anew").answer
            case SignedBeforeEpoch():
                return Unauthorized(f"timestamps: {error}").answer
            case StoreUnavailable() | BusUnavailable():
                what = "store" if isinstance(error, StoreUnavailable) else "bus"
                self.log.unavailable(what, error, request)
                return _unavailable(f"the {what} is not available: {error}")
            case CancelNotConfirmed():
                return _unavailable(str(error))
        return self.log.unexpected(error, request)


def _check_spent(request: Request) -> None:
    """Make sure that a request which is about to be answered can't be sent again."""
    if request.caller is not None and not request.spent:
        raise RuntimeError(f"the nonce of a request for {request.path} was not used up")


def _unavailable(msg: str) -> Answer:
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, msg).answer


def _endpoint(
    request: Request, route: Route[T], *, bodied: bool
) -> Callable[[Request, T], Awaitable[Answer]]:
    """The endpoint that a request is for. Raises a `Refusal` unless its method, query and
    headers are right."""
    endpoint = route.methods.get(request.method)
    if endpoint is None:
        raise _not_allowed(request, ", ".join(sorted(route.methods)))
    if request.method == "GET":
        if bodied:
            raise Refusal(HTTPStatus.BAD_REQUEST, _GET_WITH_BODY)
        return endpoint
    if request.query:
        raise Refusal(
            HTTPStatus.BAD_REQUEST, "a POST must have no query string: its fields go into the body"
        )
    content_type = request.headers.get(b"content-type", b"")
    if (
        content_type != b"application/json" and not _JSON.fullmatch(content_type)
    ) or b"content-type" in request.conflicts:
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


def request_id(headers: Mapping[bytes, bytes]) -> str:
    """A request's id: the one that its client gives, if it is well formed, else a random
    one."""
    given = headers.get(b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given.decode()
    # It names a request and protects nothing, so it is worth no system call, which would
    # release the interpreter to another thread.
    return f"{random.getrandbits(64):016x}"

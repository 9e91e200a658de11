"""The short way of plain requests for the signed endpoints: read and answered by
the task that reads the connection, in one write, without h11, Hypercorn's streams,
ASGI or a task of their own (docs/decisions/0026 says what that saves).

    bytes ─► Lane.read ──► plain ──► the rest of its body ──► the endpoint ─► one write
                │                         │
                │ out of the ordinary     │ not there within LINGER_S
                └──► Hypercorn ◄──────────┘   with the very same bytes

What is plain is a language of few forms, a part of what h11 takes, and read as h11
reads it: nothing is refused here, and nothing is guessed. A request that two readers
could read differently (a Content-Length that comes twice, any Transfer-Encoding, a
line that ends without CR, white space where it need not be) is not plain.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import trio

from taskd.api.envelope import Answer
from taskd.api.front import Endpoint, Front, log_access, request_id
from taskd.api.intake import TooMuchInHand
from taskd.api.request import Request

LINGER_S = 0.05
"""How long the rest of a body is waited for here. Many clients send headers and body
in two pieces, one right after the other."""

MAX_PLAIN = 64 * 1024
"""Bytes of a plain request; longer ones are read by Hypercorn."""

_MAX_HEAD = 8 * 1024

# Possessive throughout, so that no bytes make it go back and try again.
_VALUE = rb"[\x21-\x7e]++(?: [\x21-\x7e]++)*+"
_HEAD = re.compile(
    rb"(POST|GET) (/[a-z/]++)(?:\?([\x21-\x7e]++))? HTTP/1\.1\r\n"
    rb"((?:[A-Za-z0-9_-]++: " + _VALUE + rb"\r\n){1,64}+)\r\n"
)
_FIELD = re.compile(rb"([^:]++): ([^\r]++)\r\n")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,6}")
_CHANGES_FRAMING = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"te", b"trailer"})


class Wire(Protocol):
    """The connection, as the lane sees it."""

    async def receive(self) -> bytes:
        """The next bytes; none where the client sends no more."""
        ...

    async def write(self, data: bytes) -> None:
        """Send a whole answer. One that can't be sent is dropped."""
        ...

    def occupy(self) -> None:
        """A request is in hand."""
        ...

    def rest(self) -> None:
        """It was answered: the next one may come."""
        ...

    def leave(self) -> None:
        """It was answered, and was the last."""
        ...


class Settings(Protocol):
    """What Hypercorn's settings say of an answer."""

    closing: bool
    """Whether connections end with their next answer."""

    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:
        """The headers that every answer carries."""
        ...


@dataclass(slots=True)
class Plain:
    """A plain request whose headers have arrived."""

    request: Request
    """Its body is still to be set."""
    endpoints: Mapping[str, Endpoint]
    head: int
    """Bytes up to the end of its headers."""
    size: int
    """Bytes of all of it."""
    began: float
    """When it was found, by `time.perf_counter`."""


class Lane:
    """Answers plain requests.

    Args:
        front: has the endpoints, and answers for them.
        config: Hypercorn's.
    """

    def __init__(self, front: Front, config: Settings) -> None:
        self._front = front
        self._config = config

    async def take(self, wire: Wire, data: bytes) -> bytes:
        """Answer the plain requests that the bytes begin with, one after another.

        Args:
            wire: where they came from. Hypercorn has no part of a request of it.
            data: what came.

        Returns:
            What is left for Hypercorn, from the beginning of a request; nothing where
            all was answered.
        """
        while data and (plain := self.read(data)) is not None:
            held = plain.size - plain.head
            try:
                self._front.buffered.take(held)
            except TooMuchInHand:
                break
            try:
                wire.occupy()
                if len(data) < plain.size:
                    data = await _complete(wire, data, plain.size)
                    if len(data) < plain.size:
                        break
                plain.request.body = data[plain.head : plain.size]
                await self._answer(wire, plain)
            finally:
                self._front.buffered.give(held)
            data = data[plain.size :]
            if data:
                # A refusal may have been made without a pause.
                await trio.lowlevel.checkpoint()
        return data

    def read(self, data: bytes) -> Plain | None:
        """The plain request that the bytes begin with; None where there is none, or
        its headers are not complete, or it is not to be answered here now."""
        match = _HEAD.match(data)
        if match is None:
            return None
        method, path, query, fields = match.groups()
        text = path.decode()
        endpoints = self._front.endpoints.get(text)
        # While clients are told to go, Hypercorn knows how.
        if endpoints is None or self._config.closing or self._front.draining():
            return None
        pairs = _FIELD.findall(fields)
        headers = {name.lower(): value for name, value in pairs}
        head = match.end()
        length = _body_length(method, headers)
        if (
            len(headers) != len(pairs)
            or b"host" not in headers
            or not _CHANGES_FRAMING.isdisjoint(headers)
            or headers.get(b"connection", b"keep-alive").lower() != b"keep-alive"
            or length is None
            or length > self._front.max_body
            or head > _MAX_HEAD
            or head + length > MAX_PLAIN
        ):
            return None
        request = Request(
            method=method.decode(),
            path=text,
            query=query or b"",
            headers=headers,
            conflicts=_NONE,
            body=b"",
            id=request_id(headers),
        )
        return Plain(request, endpoints, head, head + length, time.perf_counter())

    async def _answer(self, wire: Wire, plain: Plain) -> None:
        answer, body = await self._front.answer(plain.request, plain.endpoints)
        closing = self._config.closing
        await wire.write(self._render(answer, body, plain.request.id))
        log_access(plain.request, answer, plain.began)
        if closing:
            wire.leave()
        else:
            wire.rest()

    def _render(self, answer: Answer, body: bytes, name: str) -> bytes:
        """The bytes that Hypercorn and h11 would make of an answer."""
        more = b"".join(
            b"%s: %s\r\n" % pair
            for pair in (*answer.headers, *self._config.response_headers("h11"))
        )
        return (
            b"HTTP/1.1 %d \r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"x-request-id: %s\r\n%s\r\n%s" % (answer.status, len(body), name.encode(), more, body)
        )


_NONE: frozenset[bytes] = frozenset()


def _body_length(method: bytes, headers: Mapping[bytes, bytes]) -> int | None:
    """How long the body is; None where that is not said plainly."""
    given = headers.get(b"content-length")
    if method == b"GET":
        return 0 if given is None else None
    if given is None or _LENGTH.fullmatch(given) is None:
        return None
    return int(given)


async def _complete(wire: Wire, data: bytes, size: int) -> bytes:
    """The bytes with those that come soon after them."""
    with trio.move_on_after(LINGER_S):
        while len(data) < size and (more := await wire.receive()):
            data += more
    return data

"""Reading a request's body, within bounds of size and time."""

from __future__ import annotations

from http import HTTPStatus

import trio
from hypercorn.typing import ASGIReceiveCallable

from taskd.api.envelope import Refusal

BODY_TIMEOUT_S = 30.0
"""From the request's headers to the last byte of its body."""

MAX_DRAIN = 4 * 1024 * 1024
"""Bytes of a refused body that are read away, so that its sender, which often
reads only once it has sent all, sees the answer."""

DRAIN_TIMEOUT_S = 5.0

_MAX_LENGTH_DIGITS = 18


MAX_BUFFERED = 256 * 1024 * 1024
"""Bytes of bodies that are held at a time, of all requests together. A body is read
before its signature can be checked, so this bounds what strangers can make us hold."""


class Buffered:
    """How much is held now."""

    def __init__(self) -> None:
        self.held = 0

    def take(self, size: int) -> None:
        """Hold more.

        Raises:
            TooMuchInHand: there is no room for it.
        """
        if self.held + size > MAX_BUFFERED:
            raise TooMuchInHand
        self.held += size

    def give(self, size: int) -> None:
        """Hold less."""
        self.held -= size


class ClientGone(Exception):
    """The client left before its request was complete."""


class BodyTooLong(Refusal):
    """The body is longer than ``[server] max_body``: 413. The rest of it is still
    on its way."""

    def __init__(self, max_body: int) -> None:
        super().__init__(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is longer than {max_body} bytes"
        )


class BodyStalled(Refusal):
    """The body did not arrive in time: 400. The connection is of no more use."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.BAD_REQUEST, f"the body did not arrive within {BODY_TIMEOUT_S:g} s"
        )


class TooMuchInHand(Refusal):
    """Too many large bodies are on their way at once: 503."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.SERVICE_UNAVAILABLE, "too many large requests are in hand; try again"
        )


async def read_body(
    receive: ASGIReceiveCallable, length: bytes | None, max_body: int, buffered: Buffered
) -> bytes:
    """The whole body. It counts as held until the caller gives it back.

    Args:
        receive: as ASGI has it.
        length: the ``Content-Length`` header.
        max_body: bytes.
        buffered: what is held by all requests.

    Raises:
        BodyTooLong, BodyStalled, TooMuchInHand, ClientGone: there will be none, and
            nothing of it is held.
    """
    if length is not None and _exceeds(length, max_body):
        raise BodyTooLong(max_body)
    body = bytearray()
    complete = False
    try:
        with trio.move_on_after(BODY_TIMEOUT_S):
            while not complete:
                message = await receive()
                if message["type"] != "http.request":
                    raise ClientGone
                buffered.take(len(message["body"]))
                body += message["body"]
                if len(body) > max_body:
                    raise BodyTooLong(max_body)
                complete = not message["more_body"]
        if not complete:
            raise BodyStalled
    finally:
        if not complete:
            buffered.give(len(body))
    return bytes(body)


async def drain_body(receive: ASGIReceiveCallable) -> None:
    """Read away what is left of a body, as far as bounds allow."""
    left = MAX_DRAIN
    with trio.move_on_after(DRAIN_TIMEOUT_S):
        while left > 0:
            message = await receive()
            if message["type"] != "http.request" or not message["more_body"]:
                return
            left -= len(message["body"])


def _exceeds(length: bytes, max_body: int) -> bool:
    # Whoever parses HTTP has made sure of the digits, but not of their number.
    return len(length) > _MAX_LENGTH_DIGITS or not length.isdigit() or int(length) > max_body

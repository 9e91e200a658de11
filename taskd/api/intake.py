"""Reading a request's body, within bounds of size and time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus

import trio

from taskd.api.bodies import Framing
from taskd.api.envelope import Refusal

BODY_TIMEOUT_S = 30.0
"""From the request's headers to the last byte of its body."""

MAX_BUFFERED = 256 * 1024 * 1024
"""Bytes of bodies that are held at a time, of all requests together."""


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


class BodyCutShort(Refusal):
    """The client sends no more, and the body is not complete: 400."""

    def __init__(self) -> None:
        super().__init__(HTTPStatus.BAD_REQUEST, "the body ended before it was complete")


class TooMuchInHand(Refusal):
    """Too many large bodies are on their way at once: 503."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.SERVICE_UNAVAILABLE, "too many large requests are in hand; try again"
        )


async def read_body(
    receive: Callable[[], Awaitable[bytes]],
    framing: Framing,
    data: bytes,
    *,
    max_body: int,
    buffered: Buffered | None,
) -> bytes:
    """The whole body. It counts as held until the caller gives it back.

    Args:
        receive: gives what comes; nothing where no more does.
        framing: says where the body ends.
        data: what has come of it already, and may be of the next request.
        max_body: bytes.
        buffered: what is held by all requests; None where the body is not kept.

    Raises:
        Unreadable, BodyTooLong, BodyStalled, BodyCutShort, TooMuchInHand: there will be
            none, and nothing of it is held.
    """
    body = bytearray()
    size = 0
    done = False
    try:
        with trio.move_on_after(BODY_TIMEOUT_S):
            while True:
                piece = framing.feed(data)
                size += len(piece)
                if size > max_body:
                    raise BodyTooLong(max_body)
                if buffered is not None:
                    buffered.take(len(piece))
                    body += piece
                if framing.complete:
                    done = True
                    return bytes(body)
                data = await receive()
                if not data:
                    raise BodyCutShort
        raise BodyStalled
    finally:
        if buffered is not None and not done:
            buffered.give(len(body))

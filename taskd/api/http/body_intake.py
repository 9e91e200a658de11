"""Reading a request's body, within bounds of size and time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from http import HTTPStatus

import trio

from taskd.api.http.body_framing import Framing
from taskd.api.wire.envelope import Refusal

BODY_TIMEOUT_S = 30.0
"""From the request's headers to the last byte of its body."""

MAX_BUFFERED = 256 * 1024 * 1024
"""Bytes of bodies that are held at a time, of all requests together."""


_SHARE = 4


class Buffered:
    """How much is held now. One sender holds at most four times as much as is left to all
    others; those that have not signed count as one."""

    def __init__(self) -> None:
        self.held = 0
        self._held_of: dict[Hashable, int] = {}

    def take(self, size: int, whose: Hashable = None) -> None:
        """Hold more of a sender's.

        Raises:
            TooMuchInHand: there is no room for it.
        """
        if not size:
            return
        free = MAX_BUFFERED - self.held
        own = self._held_of.get(whose, 0) + size
        if size > free or own > _SHARE * free:
            raise TooMuchInHand
        self.held += size
        self._held_of[whose] = own

    def give(self, size: int, whose: Hashable = None) -> None:
        """Hold less of it."""
        if not size:
            return
        self.held -= size
        self._held_of[whose] -= size
        if not self._held_of[whose]:
            del self._held_of[whose]


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
    whose: Hashable = None,
) -> bytes | bytearray:
    """The whole body. It counts as held until the caller gives it back.

    Args:
        receive: gives what comes; nothing where no more does.
        framing: says where the body ends.
        data: what has come of it already, and may be of the next request.
        max_body: bytes.
        buffered: what is held by all requests; None where the body is not kept.
        whose: its sender, where that is known.

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
                    buffered.take(len(piece), whose)
                    body += piece
                if framing.complete:
                    done = True
                    return body
                data = await receive()
                if not data:
                    raise BodyCutShort
        raise BodyStalled
    finally:
        if buffered is not None and not done:
            buffered.give(len(body), whose)

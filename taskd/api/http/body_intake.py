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
"""Bytes of bodies held at a time, for all requests together."""


_SHARE = 4


class Buffered:
    """Counts the bytes that are held. One sender holds at most four times what is still
    free; all that have not signed count as one sender."""

    def __init__(self) -> None:
        self.held = 0
        self._held_of: dict[Hashable, int] = {}

    def take(self, size: int, whose: Hashable = None) -> None:
        """Count more bytes as held for a sender.

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
        """Count fewer bytes as held for a sender."""
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
    """The body did not arrive in time: 400. The connection can't be used any more."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.BAD_REQUEST, f"the body did not arrive within {BODY_TIMEOUT_S:g} s"
        )


class BodyCutShort(Refusal):
    """The client has closed its side, and the body is not complete: 400."""

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
        receive: returns the next bytes; none where no more come.
        framing: says where the body ends.
        data: bytes that came behind the head; some may be the next request's.
        max_body: bytes.
        buffered: counts what all requests hold; None if the body is not kept.
        whose: its sender, where that is known.

    Raises:
        Unreadable, BodyTooLong, BodyStalled, BodyCutShort, TooMuchInHand: there will be no
            body, and nothing of it counts as held.
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

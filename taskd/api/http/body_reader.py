"""Parses bodies without holding up the event loop.

Every endpoint reads its body here: a short one on the event loop, a longer one in a thread.
There is one thread for bodies of up to `LONG` bytes (the default ``[server] max_body``) and
one for longer ones, so that long bodies delay no others. `FairLock` decides who is next: it
counts each application by itself, and all strangers as one.

    body ─► short? ─► read at once ── takes too long ──┐
              │ no                                     ▼
              └──────────────────────────────► turn ─► thread
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TypeVar

import trio

from taskd.api.http.request import Request
from taskd.api.wire.envelope import Refusal
from taskd.domain.signing import payload_digest
from taskd.runtime.fair_lock import FairLock

READ_AT_ONCE = 32 * 1024
"""Bytes of a body that are read on the event loop; a longer one is read in a thread."""

STRANGERS_AT_ONCE = 4 * 1024
"""The same for an unsigned body, whose sender has nothing to lose."""

HASHED_AT_ONCE = 128 * 1024
"""Bytes whose digest is made on the event loop; that of more is made in a thread."""

AT_ONCE_S = 0.01
"""A body that takes longer than this on the event loop is read anew in the thread."""

LONG = 1024 * 1024
"""Bytes from which on a body counts as long."""

MAX_STRANGERS = 16
"""Unsigned bodies that may wait for their turn."""

_HASHERS = 2

T = TypeVar("T")


class TakesLong(Exception):
    """A body takes longer to read than the event loop may be held up."""


class TooManyStrangers(Refusal):
    """Too many unsigned bodies wait to be read: 503."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "too many large unsigned requests are in hand; try again",
            headers=((b"retry-after", b"1"),),
        )


@dataclass(frozen=True, slots=True)
class _Thread:
    """A thread, and the turns to use it. An abandoned call occupies it until the call
    returns."""

    turns: FairLock = field(default_factory=FairLock)
    thread: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))


class Reader:
    """Reads bodies, long ones in a thread.

    A cancelled caller returns at once; the thread finishes its call, and the result is
    dropped.
    """

    def __init__(self) -> None:
        self._ordinary = _Thread()
        self._long = _Thread()
        self._hashers = trio.CapacityLimiter(_HASHERS)

    async def read(self, function: Callable[[bytes | bytearray, float], T], request: Request) -> T:
        """What a function makes of a request's body.

        Args:
            function: takes the body, and the `time.perf_counter` from which on it may raise
                `TakesLong`. Its other errors are raised to the caller.
            request: its sender is known by now, if it has one.

        Raises:
            TooManyStrangers: it was not read.
        """
        body, whose = request.body, request.sender
        if len(body) <= (STRANGERS_AT_ONCE if whose is None else READ_AT_ONCE):
            try:
                return function(body, time.perf_counter() + AT_ONCE_S)
            except TakesLong:
                pass
        chosen = self._ordinary if len(body) <= LONG else self._long
        if whose is None and chosen.turns.waiting(None) >= MAX_STRANGERS:
            raise TooManyStrangers
        async with chosen.turns.taken(whose, len(body)):
            # A megabyte may take half a second to read; deliveries must go on meanwhile.
            return await trio.to_thread.run_sync(
                function, body, math.inf, limiter=chosen.thread, abandon_on_cancel=True
            )

    async def digest(self, data: bytes | bytearray) -> str:
        """The digest of a request's body or query, in the form that the signature covers."""
        if len(data) <= HASHED_AT_ONCE:
            return payload_digest(data)
        # The event loop runs meanwhile: hashing releases the interpreter's lock.
        return await trio.to_thread.run_sync(
            payload_digest, data, limiter=self._hashers, abandon_on_cancel=True
        )

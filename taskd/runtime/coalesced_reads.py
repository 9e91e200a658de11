"""Answers all reads that come while one is under way by the next one, together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Generic, TypeVar

import trio

MAX_KEYS = 500
"""Keys of one call."""

K = TypeVar("K")
V = TypeVar("V")


class _Round(Generic[K, V]):
    """One read: the keys that were asked for before it began, and its result."""

    def __init__(self) -> None:
        self.keys: set[K] = set()
        self.found: Mapping[K, V] | None = None
        self.failure: Exception | None = None


class CoalescedReads(Generic[K, V]):
    """Reads values by their keys, one call at a time however many ask.

    A value is read after it was asked for, never before: nothing is remembered.

    Args:
        read: returns the values of those keys that have one.
    """

    def __init__(self, read: Callable[[Collection[K]], Awaitable[Mapping[K, V]]]) -> None:
        self._read = read
        self._next: _Round[K, V] = _Round()
        self._reading = trio.Lock()

    async def get(self, key: K) -> V | None:
        """Return the value of a key, None if it has none. Raises the exceptions of ``read``."""
        if len(self._next.keys) >= MAX_KEYS:
            self._next = _Round()
        mine = self._next
        mine.keys.add(key)
        async with self._reading:
            # The first caller of a round reads for all of them; if it is cancelled, the next
            # one does.
            if mine.found is None and mine.failure is None:
                if mine is self._next:
                    self._next = _Round()
                try:
                    mine.found = await self._read(mine.keys)
                except Exception as error:  # noqa: BLE001 - each caller of the round gets it
                    mine.failure = error
            if mine.found is None:
                raise _again(mine.failure)
            return mine.found.get(key)


def _again(failure: Exception | None) -> Exception:
    """Return a failure to be raised once more, without the traceback of the time before."""
    assert failure is not None  # noqa: S101 - a round has ended in one way or the other
    return failure.with_traceback(None)

"""Calls that come while one is under way are made together, as the next one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Generic, TypeVar

import trio

MAX_KEYS = 500
"""Keys of one call."""

K = TypeVar("K")
V = TypeVar("V")


class _Round(Generic[K, V]):
    """What is read in one go: the keys that were asked for until it began."""

    def __init__(self) -> None:
        self.keys: set[K] = set()
        self.found: Mapping[K, V] | None = None
        self.failure: Exception | None = None


class CoalescedReads(Generic[K, V]):
    """Reads values by their keys, one call at a time however many ask.

    A value is read after it was asked for, never before: nothing is remembered.

    Args:
        read: the values of those of the keys that have one.
    """

    def __init__(self, read: Callable[[Collection[K]], Awaitable[Mapping[K, V]]]) -> None:
        self._read = read
        self._next: _Round[K, V] = _Round()
        self._reading = trio.Lock()

    async def get(self, key: K) -> V | None:
        """The value of a key, None where it has none. Raises what reading it raises."""
        if len(self._next.keys) >= MAX_KEYS:
            self._next = _Round()
        mine = self._next
        mine.keys.add(key)
        async with self._reading:
            # The first of a round reads for all of them, unless it is cancelled: then the
            # next one does.
            if mine.found is None and mine.failure is None:
                if mine is self._next:
                    self._next = _Round()
                try:
                    mine.found = await self._read(mine.keys)
                except Exception as error:  # noqa: BLE001 - it is each one's of the round
                    mine.failure = error
            if mine.found is None:
                raise _again(mine.failure)
            return mine.found.get(key)


def _again(failure: Exception | None) -> Exception:
    """A failure as it is raised by one more: without where it was raised before."""
    assert failure is not None  # noqa: S101 - a round has ended in one way or the other
    return failure.with_traceback(None)

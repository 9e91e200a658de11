"""Many deadlines, of which most are taken back before they come.

One heap holds them, and one `Alarm` rings at the earliest. So a deadline costs neither a timer
nor a cancel scope of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

import trio

from taskd.runtime.alarm import Alarm

_STALE = 64
"""Deadlines that were taken back and may stay in the heap, beside as many as there are."""

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Keeps things until they are removed or their deadlines come. Used on the Trio thread.

    Args:
        passed: is called with each thing whose deadline has come, which is removed before.
    """

    def __init__(self, passed: Callable[[T], object]) -> None:
        self._passed = passed
        self._alarm = Alarm(self._look)
        self._started = False
        self._latest = math.inf
        self._number = 0
        self._kept: dict[int, T] = {}
        """By number: the things whose deadlines have not come."""
        self._heap: list[tuple[float, int]] = []
        """Their deadlines and numbers, and some of those that were removed."""

    def __len__(self) -> int:
        """How many things are kept."""
        return len(self._kept)

    def deadline(self, now: float, within_s: float) -> float:
        """Return the deadline of a thing that is kept from now on: so many seconds later, or
        that of `end_by` if it is sooner."""
        return min(now + within_s, self._latest)

    def keep(self, thing: T, deadline: float) -> int:
        """Keep a thing until its deadline, by `trio.current_time`; returns its number."""
        if not self._started:
            self._started = True
            self._alarm.start()
        self._number += 1
        self._kept[self._number] = thing
        heappush(self._heap, (deadline, self._number))
        self._alarm.by(deadline)
        if len(self._heap) > 2 * len(self._kept) + _STALE:
            self._bound(math.inf)
        return self._number

    def remove(self, number: int) -> None:
        """Keep the thing of this number no longer; it may have gone already."""
        self._kept.pop(number, None)

    def end_by(self, latest: float) -> None:
        """Let no deadline, present or future, be later than this one."""
        self._latest = min(latest, self._latest)
        self._bound(latest)

    def close(self) -> None:
        """Look at the clock no more. To be called once nothing is kept."""
        self._alarm.close()

    def _bound(self, latest: float) -> None:
        self._heap = [
            (min(at, latest), number) for at, number in self._heap if number in self._kept
        ]
        heapify(self._heap)
        if self._heap:
            self._alarm.by(self._heap[0][0])

    def _look(self) -> None:
        now = trio.current_time()
        try:
            while self._heap and (self._heap[0][0] <= now or self._heap[0][1] not in self._kept):
                _, number = heappop(self._heap)
                if number in self._kept:
                    self._passed(self._kept.pop(number))
        finally:
            if self._heap:
                self._alarm.by(self._heap[0][0])

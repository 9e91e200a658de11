"""A lock for one call at a time: the party that has used it least comes first."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio


@dataclass(order=True, slots=True)
class _Waiting:
    """One waiting call. The order of these is that in which they are let in."""

    ends_at: int
    number: int
    whose: Hashable = field(compare=False)
    let_in: trio.Event = field(compare=False, default_factory=trio.Event)


class FairLock:
    """Lets in one call at a time, and shares turns out among parties by their cost, not by
    their number (self-clocked fair queueing). A party's first call comes next, after cheaper
    ones only, however many calls of others are in line.

    The lock's clock counts costs. By this clock a call ends its own cost after the same party's
    call before, or after now if there is none. The call that ends first is let in first.
    """

    def __init__(self) -> None:
        self._line: list[_Waiting] = []
        self._numbers = itertools.count()
        self._ends_at: dict[Hashable, int] = {}
        self._waiting: dict[Hashable, int] = {}
        self._now = 0
        self._taken = False

    def waiting(self, whose: Hashable) -> int:
        """Return how many calls of a party wait in line."""
        return self._waiting.get(whose, 0)

    @asynccontextmanager
    async def taken(self, whose: Hashable, cost: int) -> AsyncIterator[None]:
        """Wait for a turn, and have it within the block.

        Args:
            whose: the party that it counts against.
            cost: in units that are the same for all.
        """
        ends_at = max(self._now, self._ends_at.get(whose, 0)) + cost
        self._ends_at[whose] = ends_at
        if self._taken:
            await self._wait(_Waiting(ends_at, next(self._numbers), whose))
        else:
            self._now = ends_at
            self._taken = True
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, one: _Waiting) -> None:
        heapq.heappush(self._line, one)
        self._waiting[one.whose] = self.waiting(one.whose) + 1
        try:
            await one.let_in.wait()
        except BaseException:
            if one.let_in.is_set():
                self._pass_on()
            else:
                self._line.remove(one)
                heapq.heapify(self._line)
                self._count_out(one.whose)
            raise

    def _pass_on(self) -> None:
        """Let the next call in."""
        if not self._line:
            self._taken = False
            self._ends_at.clear()
            self._now = 0
            return
        one = heapq.heappop(self._line)
        self._count_out(one.whose)
        self._now = one.ends_at
        one.let_in.set()

    def _count_out(self, whose: Hashable) -> None:
        self._waiting[whose] -= 1
        if not self._waiting[whose]:
            del self._waiting[whose]

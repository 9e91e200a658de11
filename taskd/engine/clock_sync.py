"""Keeps a node's clock with the one that all nodes of a cluster go by: the Store's.

The Store is asked for its time again and again. It was read between the question
and the answer, so each exchange bounds by how much that clock is ahead of this
machine's count: from below, had it been read at the last moment, and from above.
The bounds are narrowed by each exchange. The lower one is gone by, so that no
moment is taken to have come before it has; the bounds are widened as time goes,
since two clocks never run alike, and begun anew where they contradict each other:
then the Store's clock was set.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from taskd.clock import Clock, SharedClock, since_boot_ns
from taskd.errors import StoreUnavailable
from taskd.runtime.logs import log_event

logger = logging.getLogger("taskd.timekeeper")

MAX_DIFFERENCE_MS = 2_000
"""A machine whose own clock is further off is not to be trusted with deadlines."""

MAX_DOUBT_MS = 500
"""How far the bounds may be apart: leases end a tenth early, for what is in doubt."""

_EVERY_S = 5.0
_FIRST_EXCHANGES = 5
_DRIFT = 500e-6
"""How much faster or slower than the other a clock may run: the kernel corrects a
clock by so much at the most."""

_NS_PER_MS = 1_000_000


class ClockSync:
    """See the module.

    Args:
        ask: the Store's time now, in milliseconds since the Unix epoch, rounded
            down; raises `StoreUnavailable`.
        clock: what is kept.
        machine: this machine's own wall clock, held against it.
    """

    def __init__(
        self, ask: Callable[[], Awaitable[int]], clock: SharedClock, machine: Clock
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._machine = machine
        self._bounds: tuple[float, float] | None = None
        self._bounded_at = 0

    async def start(self) -> None:
        """Take the time for the first time.

        Raises:
            StoreUnavailable: it can't be had.
        """
        for _ in range(_FIRST_EXCHANGES):
            await self.exchange()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take the time again and again, until cancelled."""
        task_status.started()
        told = False
        while True:
            await trio.sleep(_EVERY_S)
            try:
                await self.exchange()
            except StoreUnavailable as error:
                logger.debug("the store's time could not be taken: %s", error)
            off = self.unready()
            if off is not None and not told:
                log_event(logger, logging.ERROR, off)
            told = off is not None

    async def exchange(self) -> None:
        """Take the time once."""
        asked_at = since_boot_ns()
        told_ms = await self._ask()
        answered_at = since_boot_ns()
        # Told in whole milliseconds, rounded down.
        low = float(told_ms * _NS_PER_MS - answered_at)
        high = float((told_ms + 1) * _NS_PER_MS - asked_at)
        if self._bounds is not None:
            slack = (answered_at - self._bounded_at) * _DRIFT
            known_low, known_high = self._bounds[0] - slack, self._bounds[1] + slack
            if low <= known_high and known_low <= high:
                low, high = max(low, known_low), min(high, known_high)
        self._bounds, self._bounded_at = (low, high), answered_at
        self._clock.set(int(low))

    def difference_ms(self) -> int:
        """By how much this machine's wall clock is ahead; negative if behind."""
        return self._machine.now_ms() - self._clock.now_ms()

    def unready(self) -> str | None:
        """Why this machine's clock is not good enough, or None."""
        if self._bounds is not None:
            doubt_ms = (self._bounds[1] - self._bounds[0]) / _NS_PER_MS
            if doubt_ms > MAX_DOUBT_MS:
                return (
                    f"the database's time is not known to better than {doubt_ms / 1000:.1f} s, "
                    "so slowly does it answer"
                )
        difference = self.difference_ms()
        if abs(difference) <= MAX_DIFFERENCE_MS:
            return None
        side = "ahead of" if difference > 0 else "behind"
        return (
            f"this machine's clock is {abs(difference) / 1000:.1f} s {side} the database's: "
            "set the wrong one right (NTP)"
        )

"""Keeps a node's clock in step with the Store's, which all nodes of a cluster go by.

The Store is asked for its time again and again. It reads its clock between the question
and the answer, so each exchange gives two bounds of how far that clock is ahead of this
machine's time since boot: a lower one, as if it was read at the answer, and an upper one,
as if at the question. Each exchange narrows the bounds. The node's clock takes the lower
one, so that no moment seems to have come before it has. The bounds widen as time passes,
since two clocks never run alike. They begin anew where an exchange contradicts them: then
the Store's clock was set.
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
"""How far the bounds may be apart: executions end a tenth of their lease early, which covers
this doubt."""

_EVERY_S = 5.0
_FIRST_EXCHANGES = 5
_DRIFT = 500e-6
"""The part by which one clock may run faster or slower than the other: the kernel corrects
a clock by this much at most."""

_NS_PER_MS = 1_000_000


class ClockSync:
    """See the module.

    Args:
        ask: returns the Store's time now, in milliseconds since the Unix epoch, rounded
            down; raises `StoreUnavailable`.
        clock: the node's clock, which is kept in step.
        machine: this machine's own wall clock, which is compared with it.
    """

    def __init__(
        self, ask: Callable[[], Awaitable[int]], clock: SharedClock, machine: Clock
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._machine = machine
        self._bounds_ns: tuple[float, float] | None = None
        self._bounded_at_ns = 0

    async def start(self) -> None:
        """Take the Store's time for the first time, by several exchanges.

        Raises:
            StoreUnavailable: the Store does not tell it.
        """
        for _ in range(_FIRST_EXCHANGES):
            await self.exchange()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take the Store's time every five seconds, until cancelled."""
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
        """Take the Store's time once."""
        asked_at_ns = since_boot_ns()
        told_ms = await self._ask()
        answered_at_ns = since_boot_ns()
        # The Store tells whole milliseconds, rounded down.
        low_ns = float(told_ms * _NS_PER_MS - answered_at_ns)
        high_ns = float((told_ms + 1) * _NS_PER_MS - asked_at_ns)
        if self._bounds_ns is not None:
            slack_ns = (answered_at_ns - self._bounded_at_ns) * _DRIFT
            known_low_ns, known_high_ns = (
                self._bounds_ns[0] - slack_ns,
                self._bounds_ns[1] + slack_ns,
            )
            if low_ns <= known_high_ns and known_low_ns <= high_ns:
                low_ns, high_ns = max(low_ns, known_low_ns), min(high_ns, known_high_ns)
        self._bounds_ns, self._bounded_at_ns = (low_ns, high_ns), answered_at_ns
        self._clock.set(int(low_ns))

    def difference_ms(self) -> int:
        """Return how far this machine's wall clock is ahead of the node's clock; negative if
        behind."""
        return self._machine.now_ms() - self._clock.now_ms()

    def unready(self) -> str | None:
        """Return why this machine's clock, or the Store's answers, are not good enough; else
        None."""
        if self._bounds_ns is not None:
            doubt_ms = (self._bounds_ns[1] - self._bounds_ns[0]) / _NS_PER_MS
            if doubt_ms > MAX_DOUBT_MS:
                return (
                    f"the database's time is not known to better than {doubt_ms / 1000:.1f} s, "
                    "so slowly does it answer"
                )
        difference_ms = self.difference_ms()
        if abs(difference_ms) <= MAX_DIFFERENCE_MS:
            return None
        side = "ahead of" if difference_ms > 0 else "behind"
        return (
            f"this machine's clock is {abs(difference_ms) / 1000:.1f} s {side} the database's: "
            "set the wrong one right (NTP)"
        )

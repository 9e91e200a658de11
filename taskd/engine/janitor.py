"""The janitor does a node's chores, each at its period.

=================  =================  ===================================================
chore              of                 every
=================  =================  ===================================================
extend_leases      `leases`           third of a lease
reap               `leases`           second
bring_forward      `set_back`         second; does work once after a clock was set back
tidy               what is passed in  second
purge_nonces       `retention`        five seconds
purge_tasks        `retention`        minute
=================  =================  ===================================================
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from taskd.clock import Clock
from taskd.engine.agreed_time import ClockSteps
from taskd.engine.leases import LeaseKeeper
from taskd.engine.retention import Retention
from taskd.engine.set_back import SetBack
from taskd.errors import StoreUnavailable
from taskd.runtime.logs import log_event
from taskd.runtime.pause_detector import noticed
from taskd.runtime.ticks import next_tick

logger = logging.getLogger("taskd.janitor")

_TICK_S = 1.0
_NONCES_S = 5.0
_TASKS_S = 60.0


class Janitor:
    """See the module.

    Args:
        clock: the wall clock.
        leases, retention, set_back: whose chores these are.
        tidy: closes connections that have been idle for too long, and logs what was only
            counted until then.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        leases: LeaseKeeper,
        retention: Retention,
        set_back: SetBack,
        tidy: Callable[[], None],
    ) -> None:
        self._leases = leases
        self._retention = retention
        self._set_back = set_back
        self._tidy = tidy
        self._steps = ClockSteps(clock)
        self.failures = 0
        """Chores that failed, since the start."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do the chores until cancelled."""
        with noticed(self._leases.note_pause):
            async with trio.open_nursery() as nursery:
                for every_s, chore in (
                    (self._leases.extend_every_s, self._leases.extend_leases),
                    (_TICK_S, self.reap),
                    (_TICK_S, self.bring_forward),
                    (_TICK_S, self.tidy),
                    (_NONCES_S, self._retention.purge_nonces),
                    (_TASKS_S, self._retention.purge_tasks),
                ):
                    nursery.start_soon(self._repeat, every_s, chore)
                task_status.started()

    async def _repeat(self, every_s: float, chore: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await chore()
            except StoreUnavailable as error:
                self.failures += 1
                name = getattr(chore, "__name__", "chore")
                log_event(logger, logging.ERROR, "a chore failed", chore=name, reason=str(error))
                # A lease that could not be extended may not last until the next turn.
                await trio.sleep(min(every_s, _TICK_S))
            else:
                await trio.sleep_until(next_tick(every_s))

    async def reap(self) -> None:
        """See `LeaseKeeper.reap`."""
        self._look_at_clock()
        await self._leases.reap()

    async def bring_forward(self) -> None:
        """See `SetBack.bring_forward`."""
        self._look_at_clock()
        await self._set_back.bring_forward()

    async def tidy(self) -> None:
        """Do the small chores that take no time."""
        self._tidy()

    def _look_at_clock(self) -> None:
        """Notice and log that the wall clock was set."""
        stepped_ms = self._steps.look()
        if not stepped_ms:
            return
        if stepped_ms < 0:
            self._set_back.note_set_back()
        self._leases.note_step()
        side = "back" if stepped_ms < 0 else "forward"
        log_event(
            logger,
            logging.WARNING,
            f"the wall clock was set {side}",
            by_s=round(abs(stepped_ms) / 1000, 1),
        )

"""Finds the nsqd to use: always those of the URL, and those that nsqlookupd names.

nsqlookupd is asked again and again, and soon after an nsqd is lost. While it can't be
asked, the nsqd found before stay in use. An nsqd that it no longer names is given up when
its connection ends.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

import trio

from taskd.errors import QueueUnavailable
from taskd.queues.nsq.lookup import find_nsqds
from taskd.queues.nsq.target import Address, NsqTarget
from taskd.runtime.logs import log_event

logger = logging.getLogger("taskd.queues.nsq")

_SOON_S = 1.0
_DEGRADED_S = 5.0
"""How often nsqlookupd is asked while an nsqd can't be used."""


class Discovery:
    """See the module.

    Args:
        every_s: how often nsqlookupd is asked, once an nsqd is known.
        well: returns whether all known nsqd can be used.
    """

    def __init__(
        self, target: NsqTarget, *, every_s: float, well: Callable[[], bool] = lambda: True
    ) -> None:
        self.asked = trio.Event()
        """Set once all nsqlookupd were asked, or there are none."""
        self.degraded: str | None = None
        """Which nsqlookupd can't be asked, and why; None if there is no such."""
        self._target = target
        self._every_s = every_s
        self._well = well
        self._hurried = trio.Event()
        self._found: dict[Address, frozenset[Address]] = {}
        self._problems: dict[Address, str] = {}

    def wanted(self, address: Address) -> bool:
        """Whether an nsqd is among those to be used."""
        return address in self._target.nsqds or any(
            address in found for found in self._found.values()
        )

    def hurry(self) -> None:
        """Ask again soon: an nsqd was lost, and perhaps there is another now."""
        self._hurried.set()

    async def run(self, link: Callable[[list[Address]], None]) -> None:
        """Ask until cancelled.

        Args:
            link: called with the nsqd to use, after each round of questions.
        """
        link(list(self._target.nsqds))
        while self._target.lookupds:
            async with trio.open_nursery() as nursery:
                for lookupd in self._target.lookupds:
                    nursery.start_soon(self._ask, lookupd)
            link(sorted(frozenset().union(*self._found.values())))
            self.asked.set()
            await self._pause()
        self.asked.set()

    async def _pause(self) -> None:
        soon = min(_SOON_S, self._every_s)
        longest = self._every_s if self._well() else min(_DEGRADED_S, self._every_s)
        if self._problems or not any(self._found.values()):
            longest = soon
        # At random, so that not all nodes ask at once.
        until = trio.current_time() + longest * random.uniform(0.7, 1.3)  # noqa: S311 - no secret
        while trio.current_time() < until:
            with trio.move_on_at(until):
                await self._hurried.wait()
                self._hurried = trio.Event()
                until = min(until, trio.current_time() + soon * random.uniform(0.3, 1.0))  # noqa: S311

    async def _ask(self, lookupd: Address) -> None:
        try:
            found = await find_nsqds(lookupd, self._target.topic)
        except QueueUnavailable as error:
            if lookupd not in self._problems:
                log_event(
                    logger,
                    logging.WARNING,
                    "nsqlookupd can't be asked, the nsqd known so far are used",
                    nsqlookupd=str(lookupd),
                    reason=str(error),
                )
            self._problems[lookupd] = str(error)
        else:
            self._found[lookupd] = frozenset(found)
            if self._problems.pop(lookupd, None) is not None:
                log_event(logger, logging.INFO, "nsqlookupd answers again", nsqlookupd=str(lookupd))
        self.degraded = (
            "; ".join(
                f"nsqlookupd {where} can't be asked ({why})"
                for where, why in self._problems.items()
            )
            or None
        )

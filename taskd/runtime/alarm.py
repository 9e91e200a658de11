"""One timer for many moments, for work that has no task of its own to wait in."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import trio

logger = logging.getLogger("taskd.alarm")


class Alarm:
    """Calls a function once the earliest moment that was asked for has come. A moment later
    than one that is asked for already costs a comparison.

    Args:
        then: is called on the Trio thread, and must not raise. It asks for its next moment
            itself.
    """

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then
        self._moment = math.inf
        self._scope = trio.CancelScope()
        self._closed = False

    def start(self) -> None:
        """Begin to look at the clock. This ends with Trio's run, or with `close`."""
        trio.lowlevel.spawn_system_task(self._run)

    def by(self, moment: float) -> None:
        """Have the function called as soon as `trio.current_time` has reached this moment, or
        an earlier one that was asked for."""
        if moment < self._moment:
            self._moment = moment
            self._scope.deadline = moment

    def put_off(self, moment: float) -> None:
        """Have the function called at this moment and not before, whatever was asked for. To
        let a moment come for nothing would cost twenty times as much."""
        if moment > self._moment:
            self._moment = moment
            self._scope.deadline = moment

    def close(self) -> None:
        """Call the function no more."""
        self._closed = True
        self._scope.cancel()

    async def _run(self) -> None:
        while not self._closed:
            with trio.CancelScope(deadline=self._moment) as self._scope:
                await trio.sleep_forever()
            if trio.current_time() >= self._moment:
                self._moment = math.inf
                self._ring()

    def _ring(self) -> None:
        if not self._closed:
            try:
                self._then()
            except Exception:
                logger.exception("what was to be done at a moment failed")

"""Brings tasks forward after a clock was set back: those that it had dated while it was ahead."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from taskd.clock import Clock
from taskd.domain.model import DueTask
from taskd.ports.store import Store
from taskd.runtime.logs import log_event

logger = logging.getLogger("taskd.janitor")

_BATCH = 500
_PAUSE_S = 0.02


class SetBack:
    """See the module.

    Args:
        store, clock: see their ports.
        schedule: is told of tasks that are due sooner now.
        leads: returns whether this node is the leader, which does this for all nodes.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        schedule: Callable[[DueTask], None],
        leads: Callable[[], bool],
    ) -> None:
        self._store = store
        self._clock = clock
        self._schedule = schedule
        self._leads = leads
        self._set_back = True
        """Whether a clock that was ahead may have dated waiting tasks. True at the start: it
        may have been set back while this node was not there."""

    def note_set_back(self) -> None:
        """Note that the wall clock was set back."""
        self._set_back = True

    async def bring_forward(self) -> None:
        """Bring forward tasks that the clock dated before it was set back, and that wait too
        long now. Does so once after such a step, and once at the start."""
        if not self._set_back or not self._leads():
            return
        self._set_back = False
        after: DueTask | None = None
        number = 0
        try:
            while True:
                brought = await self._store.bring_forward(
                    now=self._clock.now_ms(), after=after, limit=_BATCH
                )
                for task in brought.tasks:
                    self._schedule(task)
                number += len(brought.tasks)
                after = brought.reached
                if after is None:
                    break
                await trio.sleep(_PAUSE_S)
        except BaseException:
            self._set_back = True
            raise
        if number:
            log_event(
                logger,
                logging.WARNING,
                "the clock was set back: tasks that waited by the wrong time are brought forward",
                tasks=number,
            )

"""Begins the tasks that were in flight when a node died: in small lots, or alone.

One of them may be the reason. If all began at once, it would take the others with it again
without showing which one it is::

    abandoned     begun
    once          in lots of an eighth of the node's slots
    twice         in lots of a sixty-fourth
    more often    alone: nothing else begins for a while before and after it
    five times alone                                          failed (the Store's rule)

So each death leaves a culprit fewer companions. Where nodes die one after another, as under
a memory limit, all lots begin as small as that number of deaths asks for, and grow as
suspects end without harm.

At its start a node has nothing in flight, so it begins the lone suspects first. Later it
pauses other work for them, a fifth of the time at most.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import trio

from taskd.clock import Clock
from taskd.domain.model import Suspect, Suspects
from taskd.engine.registry import Execution
from taskd.errors import StoreUnavailable
from taskd.ports.store import Store
from taskd.runtime.logs import log_event

logger = logging.getLogger("taskd.worker")

ALONE = 3
"""From this many attempts abandoned in a row on, a task is begun alone."""

_SMALLER_BY = 8
"""Each death makes lots smaller by this factor."""

_GROWS_AFTER = 4
"""A lot grows by one for so many suspects whose attempts have ended."""

COMPANIONS = 2
"""A task counts as alone beside so many executions at most."""

LOT_S = 5.0
"""A suspect that is under way for longer makes room in its lot for another: it has done no
harm so far, and its receiver may take an hour."""

QUIET_S = 2.0
"""How long a pause waits for executions under way to end."""

ALONE_S = 2.0
"""How long nothing else begins beside a task that is begun alone."""

FIRST_S = 6.0
"""How long a node that starts begins lone suspects before it does anything else, at most."""

_REST = 4
"""A pause is followed by so many times its length without one."""

_LOOK_S, _IDLE_LOOK_S, _LEAST_LOOK_S = 0.2, 10.0, 1.0
_LEAST_PAUSE_S = 0.05
_GLANCE_S = 0.005


class Beginner(Protocol):
    """Begins executions. The dispatcher is one."""

    @property
    def slot_count(self) -> int:
        """How many executions it may have."""
        ...

    @property
    def in_flight(self) -> int:
        """How many it has."""
        ...

    async def begin(self, suspects: Sequence[Suspect]) -> list[Execution]:
        """Lease these tasks and begin those that were leased. Some may find no slot now.

        Raises:
            StoreUnavailable: none was begun.
        """
        ...

    def pause(self, *, paused: bool) -> None:
        """Begin nothing but the suspects that `begin` is given; or go on with all work."""
        ...


class Quarantine:
    """See the module.

    Args:
        store, clock: see their ports.
        beginner: begins the suspects that are let out.
    """

    def __init__(self, *, store: Store, clock: Clock, beginner: Beginner) -> None:
        self._store = store
        self._clock = clock
        self._beginner = beginner
        self._lot: list[Execution] = []
        self._survived = 0
        """Suspects whose attempts have ended here."""
        self._after = 0
        """The id after which the next look begins, so that suspects that find no slot do
        not hide the others for ever."""
        self._more = False
        """Whether suspects wait, or may wait where the last look did not reach."""
        self._looked_at = float("-inf")
        self._rests_until = float("-inf")
        self._heard = trio.Event()
        self.waiting = 0
        """Suspects that the last look found waiting, as far as it went."""

    def hear(self) -> None:
        """Look soon: a task could not be leased, perhaps because it is suspected."""
        self._heard.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Let suspects out until cancelled. Nothing else begins before the first look."""
        self._beginner.pause(paused=True)
        try:
            task_status.started()
            await self._guarded(self._first)
        finally:
            self._beginner.pause(paused=False)
        while True:
            await self._guarded(self._next)
            await self._wait()

    async def _guarded(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except StoreUnavailable as error:
            log_event(
                logger,
                logging.ERROR,
                "tasks whose node died can't be begun now, it is tried again",
                reason=str(error),
            )

    async def _first(self) -> None:
        """Begin the lone suspects while nothing is in flight."""
        until = trio.current_time() + FIRST_S
        while trio.current_time() < until:
            found = await self._look()
            alone = [one for one in found.waiting if one.abandoned >= ALONE]
            if not alone or not await self._begin_alone(alone[0]):
                return

    async def _next(self) -> None:
        """Let out the suspects that a look finds, as others end, until the next look is due."""
        found = await self._look()
        until = trio.current_time() + _LOOK_S
        alone = deque(one for one in found.waiting if one.abandoned >= ALONE)
        others = deque(one for one in found.waiting if one.abandoned < ALONE)
        while others or alone:
            self._prune()
            if others:
                size = self._size(others[0].abandoned, found.deaths)
                free = min(max(size - len(self._lot), 0), len(others))
                if free:
                    self._lot += await self._beginner.begin([others.popleft() for _ in range(free)])
            if alone and trio.current_time() >= self._rests_until:
                await self._begin_alone(alone.popleft())
            if trio.current_time() >= until:
                return
            await trio.sleep(_GLANCE_S)

    def _prune(self) -> None:
        """Remove executions from the lot that take no more room in it."""
        self._survived += sum(one.done.is_set() for one in self._lot)
        self._lot = [one for one in self._lot if _counts(one)]

    def _size(self, kind: int, deaths: int) -> int:
        """Return the size of a lot of suspects that were abandoned ``kind`` times, after so
        many deaths of nodes. It grows as suspects end without harm."""
        most = self._beginner.slot_count // int(_SMALLER_BY**kind)
        first = self._beginner.slot_count // int(_SMALLER_BY ** min(max(kind, deaths), ALONE))
        return max(min(first + self._survived // _GROWS_AFTER, most), 1)

    async def _look(self) -> Suspects:
        limit = max(self._beginner.slot_count // _SMALLER_BY, 1)
        self._looked_at = trio.current_time()
        found = await self._store.find_suspects(
            now=self._clock.now_ms(), after=self._after, limit=limit
        )
        if found.waiting and not self.waiting:
            log_event(
                logger,
                logging.INFO,
                "tasks that were in flight when a node died begin in small lots",
                tasks=len(found.waiting),
                alone=sum(one.abandoned >= ALONE for one in found.waiting),
                deaths=found.deaths,
            )
        self.waiting = len(found.waiting)
        self._more = bool(found.waiting) or self._after > 0
        self._after = self._next_after(found.waiting, limit)
        return found

    def _next_after(self, waiting: Sequence[Suspect], limit: int) -> int:
        """Return where the next look begins: where this one ended, or at the first again."""
        kinds: dict[int, list[int]] = {}
        for one in waiting:
            kinds.setdefault(min(one.abandoned, ALONE), []).append(one.task.task_id)
        return min((ids[-1] for ids in kinds.values() if len(ids) == limit), default=0)

    async def _begin_alone(self, suspect: Suspect) -> bool:
        """Begin a suspect alone; returns whether it was begun."""
        began = trio.current_time()
        self._beginner.pause(paused=True)
        try:
            with trio.move_on_after(QUIET_S):
                while self._beginner.in_flight > COMPANIONS:  # noqa: ASYNC110 - seldom, and for two seconds at most
                    await trio.sleep(_GLANCE_S)
            executions = await self._beginner.begin([suspect])
            for execution in executions:
                log_event(
                    logger,
                    logging.WARNING,
                    "a task begins alone: its node died during each of its last attempts",
                    task=suspect.task.task_id,
                    abandoned=suspect.abandoned,
                    beside=self._beginner.in_flight - 1,
                )
                with trio.move_on_after(ALONE_S):
                    await execution.done.wait()
        finally:
            self._beginner.pause(paused=False)
            now = trio.current_time()
            self._rests_until = now + _REST * (now - began)
        return bool(executions)

    async def _wait(self) -> None:
        """Wait until the next look: a moment while suspects may wait; otherwise until `hear`
        is called, or for `_IDLE_LOOK_S`."""
        if self._more:
            await trio.sleep_until(self._looked_at + _LEAST_PAUSE_S)
            return
        with trio.move_on_after(_IDLE_LOOK_S):
            await trio.sleep(_LEAST_LOOK_S)
            await self._heard.wait()
        self._heard = trio.Event()


def _counts(execution: Execution) -> bool:
    """Whether an execution still takes room in its lot."""
    return not execution.done.is_set() and trio.current_time() - execution.started_at < LOT_S

"""The timer: hands tasks to the Queue when they fall due, never before.

::

    Store ── window (what falls due within the lookahead) ──► heap ── at its time ──► Queue
      │                                                        ▲                        ▲
      │            offer (accepted or retried on this node) ───┘                        │
      └── sweep (what is overdue and not leased, every second) ─────────────────────────┘

Due times are the wall clock's, and only that clock decides what is due. While tasks wait, no
sleep lasts longer than `_GLANCE_S`: late tasks fire at once when the clock steps forward or
the machine wakes up, and none fires early when the clock steps back. The sweep finds tasks
that are lost on the way (by a full heap, a failed read, a dropped wake-up).
"""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass

import trio

from taskd.clock import FineClock
from taskd.domain.model import WHOLE, DueTask, Shard
from taskd.errors import StoreUnavailable
from taskd.ports.bus import Bus
from taskd.ports.queue import Queue
from taskd.ports.store import Store
from taskd.runtime.logs import log_event
from taskd.runtime.pause import Pause
from taskd.runtime.ticks import next_tick

logger = logging.getLogger("taskd.timer")

LOOKAHEAD_MS = 10_000
HEAP_BOUND = 200_000
WINDOW_LIMIT_PER_APP = 50_000
SWEEP_LIMIT = 20_000
SWEEP_LIMIT_PER_APP = 10_000
SWEEP_LEAST_PER_APP = 50
"""Tasks that a sweep reads at most: in all, and of one app; but so many of each app at least.
It is more than a node begins in a second."""

_SWEEP_EVERY_S = 1.0
_GLANCE_S = 0.2
_FINE_S = 0.00002
_STEP_S = 0.1
_STALLED_S = 10.0

_BACKLOG = 500
"""So many overdue tasks are a backlog."""


@dataclass(frozen=True, slots=True)
class _Overdue:
    """The bounds of one sweep's search."""

    until: int
    skip: frozenset[int]


@dataclass(frozen=True, slots=True)
class TimerStatistics:
    """A `Timer`'s counts."""

    waiting: int
    """Tasks in the heap."""
    fired: int
    """Tasks handed over from the heap."""
    swept: int
    """Overdue tasks found in the Store."""
    dropped: int
    """Tasks that the heap had no room for."""


class Timer:
    """See the module. Only the leader's timer reads ahead; every node's timer fires tasks
    that its node has accepted, and sweeps for itself.

    Args:
        store, queue, bus, clock: see their ports.
        pause: what it sleeps by; closed at the end of `run`.
        sweep_from: at which part of a backlog the sweep begins, from 0 to 1: nodes that
            begin at the same part would ask the Store for the same tasks.
    """

    def __init__(
        self,
        *,
        store: Store,
        queue: Queue,
        bus: Bus,
        clock: FineClock,
        pause: Pause,
        sweep_from: float = 0.0,
    ) -> None:
        self._sweep_from = sweep_from
        self._store = store
        self._queue = queue
        self._bus = bus
        self._clock = clock
        self._heap: list[tuple[int, int, int]] = []
        self._held: set[tuple[int, int]] = set()
        self._horizon: int | None = None
        self._pause = pause
        self._last_sweep = float("-inf")
        self._behind = False
        """Whether the last sweep found a backlog."""
        self._fired = 0
        self._swept = 0
        self._dropped = 0

    def offer(self, task: DueTask) -> None:
        """Take in a durable task that waits for its time."""
        horizon = self._horizon
        if horizon is None:
            # Another node leads, and may have read up to here before the task was there.
            horizon = self._clock.now_ms() + LOOKAHEAD_MS
        if task.due_at <= horizon:
            self._push(task)

    def unready(self) -> str | None:
        """Return why tasks may not fire on time now, or None."""
        if trio.current_time() - self._last_sweep > _STALLED_S:
            return "the timer has not read the store for over 10 s"
        return None

    def statistics(self) -> TimerStatistics:
        """Return its counts."""
        return TimerStatistics(
            waiting=len(self._heap),
            fired=self._fired,
            swept=self._swept,
            dropped=self._dropped,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fire and sweep until cancelled; started after a first sweep."""
        try:
            await self._sweep()
            task_status.started()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sweep_forever)
                nursery.start_soon(self._fire_forever)
        finally:
            self._pause.close()

    async def _fire_forever(self) -> None:
        while True:
            self._fire(self._clock.now_ms())
            # While no task waits, a step of the wall clock makes none late.
            pause_s = math.inf
            if self._heap:
                left_s = (self._heap[0][0] * 1_000_000 - self._clock.now_ns()) / 1e9
                pause_s = min(max(left_s, _FINE_S), _GLANCE_S)
            await self._pause.wait(pause_s)

    async def _sweep_forever(self) -> None:
        while True:
            await self._wait_for_sweep()
            await self._sweep()

    async def _wait_for_sweep(self) -> None:
        """Wait for the next second, or for a step of the wall clock."""
        until = next_tick(_SWEEP_EVERY_S)
        offset = self._clock.now_ms() / 1000 - trio.current_time()
        while trio.current_time() < until:
            await trio.sleep_until(min(until, next_tick(_GLANCE_S)))
            if abs(self._clock.now_ms() / 1000 - trio.current_time() - offset) > _STEP_S:
                return

    async def _sweep(self) -> None:
        try:
            if self._bus.leads_timer():
                await self._read_window()
            else:
                self._horizon = None
            overdue = await self._find_overdue()
        except StoreUnavailable as error:
            log_event(logger, logging.ERROR, "the timer can't read the store", reason=str(error))
            return
        self._swept += len(overdue)
        first = int(len(overdue) * self._sweep_from)
        # Every node sweeps for itself, so no other needs these wake-ups.
        self._queue.backfill(overdue[first:] + overdue[:first])
        self._last_sweep = trio.current_time()

    async def _find_overdue(self) -> list[DueTask]:
        """Find overdue tasks. Of a backlog that the nodes can divide, these are the ones of this
        node's shard; of an app that has none there, those of other shards. If all nodes held
        the same tasks, one would lease each, and the others would ask for it in vain."""
        overdue = _Overdue(
            until=self._clock.now_ms() - self._queue.in_flight_grace_ms(),
            skip=self._queue.saturated(),
        )
        heads = await self._find_shard(overdue, WHOLE, limit=1)
        if not heads:
            self._behind = False
            return []
        limit = max(min(SWEEP_LIMIT // len(heads), SWEEP_LIMIT_PER_APP), SWEEP_LEAST_PER_APP)
        shard = self._queue.shard()
        if shard == WHOLE or not self._behind:
            found = await self._find_shard(overdue, WHOLE, limit=limit)
            self._behind = len(found) >= _BACKLOG
            if shard == WHOLE:
                return found
            if not self._behind:
                return _own_first(found, shard)
        own = await self._find_shard(overdue, shard, limit=limit)
        besides = frozenset(task.app_id for task in own)
        rest = await self._find_shard(overdue, WHOLE, limit=limit, besides=besides)
        self._behind = len(own) + len(rest) >= _BACKLOG
        return own + _own_first(rest, shard)

    async def _find_shard(
        self, overdue: _Overdue, shard: Shard, *, limit: int, besides: frozenset[int] = frozenset()
    ) -> list[DueTask]:
        return await self._store.find_due(
            until=overdue.until, limit_per_app=limit, skip_apps=overdue.skip | besides, shard=shard
        )

    async def _read_window(self) -> None:
        before = self._horizon
        until = self._clock.now_ms() + LOOKAHEAD_MS
        if before is not None and until < before:
            # The clock was set back. Tasks read up to the horizon may be due at other
            # times now, and tasks added since then lie before it.
            before = None
        elif until == before:
            return
        # The horizon moves before the Store is read, so that a task committed
        # meanwhile is either read here or taken by `offer`, or both.
        self._horizon = until
        try:
            found = await self._store.find_due(
                after=before, until=until, limit_per_app=WINDOW_LIMIT_PER_APP
            )
        except BaseException:
            self._horizon = before
            raise
        self._admit(found)

    def _admit(self, tasks: Iterable[DueTask]) -> None:
        now = self._clock.now_ms()
        due = []
        for task in tasks:
            if task.due_at <= now:
                due.append(task)
            else:
                self._push(task)
        self._queue.publish(due)

    def _push(self, task: DueTask) -> None:
        key = (task.task_id, task.due_at)
        if key in self._held:
            return
        if len(self._heap) >= HEAP_BOUND:
            self._dropped += 1
            return
        self._held.add(key)
        first = self._heap[0][0] if self._heap else None
        heapq.heappush(self._heap, (task.due_at, task.task_id, task.app_id))
        if first is None or task.due_at < first:
            self._pause.end()

    def _fire(self, now: int) -> None:
        due = []
        while self._heap and self._heap[0][0] <= now:
            due_at, task_id, app_id = heapq.heappop(self._heap)
            self._held.discard((task_id, due_at))
            due.append(DueTask(task_id=task_id, app_id=app_id, due_at=due_at))
        if due:
            self._fired += len(due)
            self._queue.publish(due)


def _own_first(tasks: list[DueTask], shard: Shard) -> list[DueTask]:
    """Return the tasks of the node's own shard, then the others in reverse order."""
    own = [task for task in tasks if shard.has(task.task_id)]
    return own + [task for task in reversed(tasks) if not shard.has(task.task_id)]

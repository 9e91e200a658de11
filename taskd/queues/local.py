"""Wake-ups inside one process: a bounded lane per app, served in turns.

::

    publish ──► lane ──► take
                 │ ▲
     not admitted│ │resume
                 ▼ │
               parked      not asked about again before resume
"""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import trio

from taskd.domain.model import WHOLE, DueTask, Shard

LANE_BOUND = 10_000
"""Wake-ups held of one app. More are dropped; the sweep finds their tasks in the Store
again once the lane is half empty."""

BOUND = 200_000
"""Wake-ups held in all lanes, beside one of each app. A lane takes no more than the room
left, so that many long lanes share it."""

LOOK_EVERY_S = 30.0
"""How often, on average, the sweep reads the tasks of a parked app."""


@dataclass(frozen=True, slots=True)
class LocalQueueStatistics:
    """What a `LocalQueue` holds and has done."""

    waiting: int
    """Wake-ups held now."""
    lanes: int
    """Apps that have a lane, parked ones included."""
    parked: int
    """Apps whose lane is parked: they may begin nothing now."""
    dropped: int
    """Wake-ups dropped for want of room, since the start."""


class LocalQueue:
    """The Queue port for a node that is alone.

    A wake-up is held once at most. The lanes are served strictly in turns, one wake-up
    each, so a backlog of one app delays another's task by no more than one wake-up.
    Parked lanes cost nothing, however many there are.
    """

    def __init__(self, *, lane_bound: int = LANE_BOUND, bound: int = BOUND) -> None:
        self._lane_bound = lane_bound
        self._bound = bound
        self._lanes: OrderedDict[int, deque[DueTask]] = OrderedDict()
        self._parked: dict[int, deque[DueTask]] = {}
        self._look_at: dict[int, float] = {}
        self._held: set[int] = set()
        self._parked_count = 0
        self._published = trio.Event()
        self._dropped = 0

    def publish(self, tasks: Iterable[DueTask]) -> None:
        """See `Queue.publish`."""
        for task in tasks:
            self.offer(task)

    def offer(self, task: DueTask) -> bool:
        """Take one wake-up in, unless it is held already; False if there is no room."""
        if task.task_id in self._held:
            return True
        parked = self._parked.get(task.app_id)
        lane = self._lanes.get(task.app_id) if parked is None else parked
        if lane is None:
            lane = self._lanes[task.app_id] = deque()
        elif len(lane) >= self._longest():
            self._dropped += 1
            return False
        lane.append(task)
        self._held.add(task.task_id)
        if parked is None:
            self._published.set()
        else:
            self._parked_count += 1
        return True

    def _longest(self) -> int:
        return min(self._lane_bound, self._bound - len(self._held))

    def retain(self, wanted: Callable[[int], bool]) -> None:
        """Keep the wake-ups whose task id is wanted, drop the others. Parked apps stay
        parked."""
        for lanes in (self._lanes, self._parked):
            for app_id, lane in lanes.items():
                lanes[app_id] = deque(task for task in lane if wanted(task.task_id))
        for app_id in [app_id for app_id, lane in self._lanes.items() if not lane]:
            del self._lanes[app_id]
        self._parked_count = sum(len(lane) for lane in self._parked.values())
        self._held = {task_id for task_id in self._held if wanted(task_id)}

    @property
    def waiting(self) -> int:
        """Wake-ups held now."""
        return len(self._held)

    @property
    def ready(self) -> int:
        """Wake-ups held now whose app is not parked."""
        return len(self._held) - self._parked_count

    def is_parked(self, app_id: int) -> bool:
        """Whether an app's lane is parked: it may begin nothing now."""
        return app_id in self._parked

    def backfill(self, tasks: Iterable[DueTask]) -> None:
        """See `Queue.backfill`."""
        self.publish(tasks)

    def local_capacity(self) -> int:
        """See `Queue.local_capacity`: there is no other node."""
        return 0 if self._lanes else self._lane_bound

    def in_flight_grace_ms(self) -> int:
        """See `Queue.in_flight_grace_ms`."""
        return 0

    def shard(self) -> Shard:
        """See `Queue.shard`: there is no other node."""
        return WHOLE

    def saturated(self) -> frozenset[int]:
        """See `Queue.saturated`. Parked apps count, but for a look in `LOOK_EVERY_S`."""
        enough = self._longest() // 2
        full = {app_id for app_id, lane in self._lanes.items() if len(lane) > enough}
        if self._parked:
            full |= self._not_looked_at(trio.current_time())
        return frozenset(full)

    def _not_looked_at(self, now: float) -> set[int]:
        """The parked apps that the sweep should not read in this turn."""
        turns = {app_id: self._look_at.get(app_id, now) for app_id in self._parked}
        # Spread, so that apps that were parked together are not read together for ever.
        self._look_at = {
            app_id: turn if turn > now else now + LOOK_EVERY_S * random.uniform(0.7, 1.3)  # noqa: S311 - no secret
            for app_id, turn in turns.items()
        }
        return {app_id for app_id, turn in turns.items() if turn > now}

    def take(self, limit: int, admit: Callable[[int], bool]) -> list[DueTask]:
        """See `Queue.take`."""
        taken: list[DueTask] = []
        lanes = self._lanes
        while lanes and len(taken) < limit:
            app_id = next(iter(lanes))
            admitted = admit(app_id)
            # After `admit`, which may raise: a lane popped before would be lost.
            lane = lanes.pop(app_id)
            if not admitted:
                self._parked[app_id] = lane
                self._parked_count += len(lane)
                continue
            task = lane.popleft()
            self._held.discard(task.task_id)
            taken.append(task)
            if lane:
                lanes[app_id] = lane
        return taken

    def resume(self, app_ids: Iterable[int]) -> None:
        """See `Queue.resume`."""
        for app_id in app_ids:
            lane = self._parked.pop(app_id, None)
            if lane:
                self._parked_count -= len(lane)
                self._lanes[app_id] = lane

    def room(self, free: int) -> None:
        """See `Queue.room`: wake-ups come from this node only."""

    def finish(self, tasks: Iterable[DueTask]) -> None:
        """See `Queue.finish`: taken wake-ups are forgotten already."""

    def release(self, tasks: Iterable[DueTask]) -> None:
        """See `Queue.release`: there is no other node, and the sweep finds the tasks."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Queue.run`: there is nothing to carry."""
        task_status.started()
        await trio.sleep_forever()

    def degraded(self) -> str | None:
        """See `Queue.degraded`: a queue in memory needs nothing that may fail."""
        return None

    async def wait(self) -> None:
        """See `Queue.wait`."""
        published = self._published
        await published.wait()
        if self._published is published:  # else another waiter has replaced it already
            self._published = trio.Event()

    def statistics(self) -> LocalQueueStatistics:
        """What the queue holds and has done."""
        return LocalQueueStatistics(
            waiting=len(self._held),
            lanes=len(self._lanes) + len(self._parked),
            parked=len(self._parked),
            dropped=self._dropped,
        )

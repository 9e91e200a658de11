"""Wake-ups inside one process: a bounded lane per app, served in turns."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import trio

from taskd.model import WHOLE, DueTask, Part

LANE_BOUND = 10_000
"""Wake-ups held of one app. What does not fit is dropped, and read from the
Store again by the timer once the lane has drained to half."""


@dataclass(frozen=True, slots=True)
class LocalQueueStatistics:
    """What a `LocalQueue` holds and has done."""

    waiting: int
    """Wake-ups held now."""
    lanes: int
    """Apps that have any."""
    dropped: int
    """Wake-ups there was no room for, since the start."""


class LocalQueue:
    """The Queue port for a node that is alone.

    A wake-up that is held already is not held twice. The lanes are served
    strictly in turns, one wake-up each, so a backlog of one app delays another's
    tasks by no more than one of its own.
    """

    def __init__(self, *, lane_bound: int = LANE_BOUND) -> None:
        self._lane_bound = lane_bound
        self._lanes: OrderedDict[int, deque[DueTask]] = OrderedDict()
        self._held: set[int] = set()
        self._published = trio.Event()
        self._dropped = 0

    def publish(self, tasks: Iterable[DueTask]) -> None:
        """See `Queue.publish`."""
        for task in tasks:
            self.offer(task)

    def offer(self, task: DueTask) -> bool:
        """Take one wake-up in, unless it is here; False if there is no room for it."""
        if task.task_id in self._held:
            return True
        lane = self._lanes.get(task.app_id)
        if lane is None:
            lane = self._lanes[task.app_id] = deque()
        elif len(lane) >= self._lane_bound:
            self._dropped += 1
            return False
        lane.append(task)
        self._held.add(task.task_id)
        self._published.set()
        return True

    def empty(self) -> list[DueTask]:
        """Take all wake-ups out, each app's in their order."""
        tasks = [task for lane in self._lanes.values() for task in lane]
        self._lanes.clear()
        self._held.clear()
        return tasks

    @property
    def waiting(self) -> int:
        """Wake-ups held now."""
        return len(self._held)

    def length(self, app_id: int) -> int:
        """Wake-ups held of one app."""
        lane = self._lanes.get(app_id)
        return 0 if lane is None else len(lane)

    def hold(self, tasks: Iterable[DueTask]) -> None:
        """See `Queue.hold`."""
        self.publish(tasks)

    def keeps(self) -> int:
        """See `Queue.keeps`: there is nobody else."""
        return 0 if self._held else self._lane_bound

    def grace_ms(self) -> int:
        """See `Queue.grace_ms`."""
        return 0

    def part(self) -> Part:
        """See `Queue.part`: there is nobody else."""
        return WHOLE

    def saturated(self) -> frozenset[int]:
        """See `Queue.saturated`."""
        enough = self._lane_bound // 2
        return frozenset(app_id for app_id, lane in self._lanes.items() if len(lane) > enough)

    def take(self, limit: int, admit: Callable[[int], bool]) -> list[DueTask]:
        """See `Queue.take`."""
        taken: list[DueTask] = []
        turns = deque(self._lanes)
        while turns and len(taken) < limit:
            app_id = turns.popleft()
            if not admit(app_id):
                continue
            lane = self._lanes[app_id]
            task = lane.popleft()
            self._held.discard(task.task_id)
            taken.append(task)
            if lane:
                self._lanes.move_to_end(app_id)
                turns.append(app_id)
            else:
                del self._lanes[app_id]
        return taken

    def room(self, free: int) -> None:
        """See `Queue.room`: whoever has room takes."""

    def finish(self, tasks: Iterable[DueTask]) -> None:
        """See `Queue.finish`: what was taken is forgotten already."""

    def release(self, tasks: Iterable[DueTask]) -> None:
        """See `Queue.release`: there is no elsewhere, the Store is read again."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Queue.run`: there is nothing to carry."""
        task_status.started()
        await trio.sleep_forever()

    def degraded(self) -> str | None:
        """See `Queue.degraded`: what is in this process works."""
        return None

    async def wait(self) -> None:
        """See `Queue.wait`."""
        await self._published.wait()
        self._published = trio.Event()

    def statistics(self) -> LocalQueueStatistics:
        """What it holds and has done."""
        return LocalQueueStatistics(
            waiting=len(self._held), lanes=len(self._lanes), dropped=self._dropped
        )

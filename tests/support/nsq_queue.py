"""Queues on an nsqd, for tests: made, run, and consumed from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from taskd.clock import SystemClock
from taskd.domain.model import DueTask
from taskd.queues.nsq.queue import NsqQueue
from taskd.queues.nsq.target import parse_nsq_url

DUE = 1_700_000_000_000
"""A time long past."""


def due(task_id: int, app_id: int = 1, due_at: int = DUE) -> DueTask:
    return DueTask(task_id=task_id, app_id=app_id, due_at=due_at)


async def until(condition: Callable[[], object], within_s: float = 5.0) -> float:
    """Wait until a callable is true; how long it took, in seconds."""
    started = trio.current_time()
    with trio.move_on_after(within_s):
        while not condition():
            await trio.sleep(0.003)
        return trio.current_time() - started
    raise AssertionError(f"did not come true within {within_s} s")


async def until_idle(look: Callable[[], Any], within_s: float = 5.0) -> float:
    """As `until`, for a look that takes long or blocks: in a thread."""
    started = trio.current_time()
    with trio.move_on_after(within_s):
        while not await trio.to_thread.run_sync(look):
            await trio.sleep(0.02)
        return trio.current_time() - started
    raise AssertionError(f"did not come true within {within_s} s")


@asynccontextmanager
async def queue_on(
    *addresses: str,
    query: str = "",
    secret: str = "",
    node: str = "a",
    **options: Any,  # noqa: ANN401 - what it takes
) -> AsyncIterator[NsqQueue]:
    """A queue at work on these nsqd; the options are `NsqQueue`'s."""
    options.setdefault("clock", SystemClock())
    options.setdefault("heartbeat_s", 1.0)
    prefix = f":{secret}@" if secret else ""
    url = f"nsq://{prefix}{','.join(addresses)}{'?' if query else ''}{query}"
    queue = NsqQueue(parse_nsq_url(url), node=node, **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(queue.run)
        yield queue
        nursery.cancel_scope.cancel()


class Consumer:
    """Stands in for a worker: takes, and answers after a moment.

    Args:
        room: how many it takes at a time.
        refuses: apps that are at their limit here.
    """

    def __init__(self, queue: NsqQueue, room: int = 100, refuses: tuple[int, ...] = ()) -> None:
        self.queue = queue
        self.room = room
        self.refuses = refuses
        self.got: list[DueTask] = []

    async def run(self) -> None:
        """Take and finish until cancelled."""
        self.queue.room(self.room)
        while True:
            await self.queue.wait()
            while batch := self.take():
                await trio.lowlevel.checkpoint()
                self.queue.finish(batch)
                self.queue.room(self.room)

    def take(self) -> list[DueTask]:
        """Take once, and finish nothing."""
        batch = self.queue.take(self.room, lambda app_id: app_id not in self.refuses)
        self.got += batch
        return batch

    def has(self, task_id: int) -> bool:
        """Whether it got this last."""
        return bool(self.got) and self.got[-1].task_id == task_id

    @property
    def ids(self) -> list[int]:
        return [task.task_id for task in self.got]


@asynccontextmanager
async def consuming(
    *queues: NsqQueue, room: int = 100, refuses: tuple[int, ...] = ()
) -> AsyncIterator[list[Consumer]]:
    """Consumers at work, one for each queue."""
    consumers = [Consumer(queue, room, refuses) for queue in queues]
    async with trio.open_nursery() as nursery:
        for consumer in consumers:
            nursery.start_soon(consumer.run)
        yield consumers
        nursery.cancel_scope.cancel()

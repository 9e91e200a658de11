"""Wake-ups between the worker processes of one machine.

A node keeps the wake-ups that it can begin at once, and deals the rest out to all nodes,
over their supervisor: each shard of the tasks to one node. So all processes have work,
even if all tasks come over one connection, or from the leader's timer. Of a backlog in
the Store, each node reads its own shard.

Wake-ups that were dealt to a node that dies, or that it held, are lost. When the nodes
change, each drops the wake-ups of other shards than its new one. The sweep finds their
tasks in the Store.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import trio

from taskd.domain.model import DueTask, Shard, shard_of
from taskd.link import Kind, Uplink
from taskd.queues.local import LocalQueue
from taskd.runtime.json_depth import load_json
from taskd.runtime.logs import log_event

logger = logging.getLogger("taskd.queues")

KEEP = 16
"""Wake-ups that wait here before a node deals any out to others."""

IN_FLIGHT_GRACE_MS = 500
"""A wake-up that was under way for longer is lost."""

_LONGEST_DEAL = 5_000


@dataclass(frozen=True, slots=True)
class MachineQueueStatistics:
    """What a `MachineQueue` holds and has done."""

    waiting: int
    """Wake-ups held now."""
    dealt: int
    """Wake-ups sent to other nodes."""
    received: int
    """Wake-ups received from other nodes."""


class MachineQueue:
    """The Queue port: see the module.

    Args:
        uplink: carries wake-ups to other nodes. The caller runs it.
    """

    def __init__(self, uplink: Uplink) -> None:
        self._uplink = uplink
        self._local = LocalQueue()
        self._dealt = 0
        self._received = 0
        uplink.on(Kind.WAKE, self._receive)
        uplink.on_members(self._note_members)

    def publish(self, tasks: Iterable[DueTask]) -> None:
        """See `Queue.publish`."""
        tasks = list(tasks)
        others = self._uplink.others
        kept = max(KEEP - self._local.ready, 0)
        if not others or len(tasks) <= kept:
            self._local.publish(tasks)
            return
        self._local.publish(tasks[:kept])
        nodes = self._nodes()
        hands: dict[str, list[DueTask]] = {node: [] for node in nodes}
        for task in tasks[kept:]:
            hands[nodes[shard_of(task.task_id, len(nodes))]].append(task)
        self._local.publish(hands.pop(self._uplink.node))
        for node, hand in hands.items():
            self._deal(node, hand)

    def backfill(self, tasks: Iterable[DueTask]) -> None:
        """See `Queue.backfill`."""
        self._local.publish(tasks)

    def local_capacity(self) -> int:
        """See `Queue.local_capacity`."""
        return (
            min(self._local.local_capacity(), KEEP)
            if self._uplink.others
            else self._local.local_capacity()
        )

    def in_flight_grace_ms(self) -> int:
        """See `Queue.in_flight_grace_ms`."""
        return IN_FLIGHT_GRACE_MS if self._uplink.others else 0

    def shard(self) -> Shard:
        """See `Queue.shard`."""
        nodes = self._nodes()
        return Shard(nodes.index(self._uplink.node), len(nodes))

    def _nodes(self) -> list[str]:
        """The nodes that take work, and this one. All nodes that take work agree on it."""
        return sorted({self._uplink.node, *self._uplink.others})

    def saturated(self) -> frozenset[int]:
        """See `Queue.saturated`."""
        return self._local.saturated()

    def take(self, limit: int, admit: Callable[[int], bool]) -> list[DueTask]:
        """See `Queue.take`."""
        return self._local.take(limit, admit)

    def resume(self, app_ids: Iterable[int]) -> None:
        """See `Queue.resume`."""
        self._local.resume(app_ids)

    def room(self, free: int) -> None:
        """See `Queue.room`: nodes deal wake-ups out without asking for room."""

    def finish(self, tasks: Iterable[DueTask]) -> None:
        """See `Queue.finish`: taken wake-ups are forgotten already."""

    def release(self, tasks: Iterable[DueTask]) -> None:
        """See `Queue.release`: the sweep finds the tasks in the Store."""

    async def wait(self) -> None:
        """See `Queue.wait`."""
        await self._local.wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Queue.run`: the uplink carries the wake-ups."""
        await self._local.run(task_status=task_status)

    def degraded(self) -> str | None:
        """See `Queue.degraded`."""
        return None

    def statistics(self) -> MachineQueueStatistics:
        """What the queue holds and has done."""
        return MachineQueueStatistics(
            waiting=self._local.waiting, dealt=self._dealt, received=self._received
        )

    def _note_members(self) -> None:
        # Another node's sweep finds the tasks of its shard: two would ask for each.
        self._local.retain(self.shard().has)

    def _deal(self, node: str, hand: list[DueTask]) -> None:
        for start in range(0, len(hand), _LONGEST_DEAL):
            lot = hand[start : start + _LONGEST_DEAL]
            rows = [[task.task_id, task.app_id, task.due_at] for task in lot]
            self._uplink.post(Kind.WAKE, json.dumps(rows, separators=(",", ":")).encode(), to=node)
        self._dealt += len(hand)

    def _receive(self, payload: bytes) -> None:
        try:
            tasks = [
                DueTask(task_id=task_id, app_id=app_id, due_at=due_at)
                for task_id, app_id, due_at in load_json(payload)
            ]
        except (ValueError, TypeError) as error:
            log_event(logger, logging.ERROR, "wake-ups can't be read", reason=str(error))
            return
        self._received += len(tasks)
        self._local.publish(tasks)

"""Wake-ups on their way out: gathered, and published to one nsqd, or the next.

A lone wake-up leaves at once. While nsqd confirms one batch the next gathers, so
the batches grow with the load. Wake-ups stay on this node as well if only degraded nsqd
(see `watch`) have confirmed them.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import trio

from taskd.domain.model import DueTask
from taskd.errors import QueueUnavailable
from taskd.queues.nsq.connection import NsqConnection
from taskd.queues.nsq.watch import Watch
from taskd.queues.nsq.wire import MAX_BATCH, encode_body

logger = logging.getLogger("taskd.queues.nsq")

OUTBOX_BOUND = 20_000
"""Wake-ups that may wait to be published; more of them stay on this node."""


class Outbox:
    """See the module.

    Args:
        connections: returns those that can be used now, the preferred one first.
        reachable: returns whether there are any.
        watch: told which nsqd confirmed or refused wake-ups.
        keep: takes the wake-ups that stay on this node.
    """

    def __init__(
        self,
        connections: Callable[[], Sequence[NsqConnection]],
        reachable: Callable[[], bool],
        watch: Watch,
        keep: Callable[[Iterable[DueTask]], None],
    ) -> None:
        self.published = 0
        """Wake-ups that an nsqd has confirmed."""
        self.kept = 0
        """Wake-ups that stayed here: no nsqd confirmed them, or only degraded ones."""
        self._connections = connections
        self._reachable = reachable
        self._watch = watch
        self._keep = keep
        self._pending: deque[DueTask] = deque()
        self._added = trio.Event()
        self._running = False

    def __len__(self) -> int:
        return len(self._pending)

    def put(self, tasks: Iterable[DueTask]) -> None:
        """Publish these soon. Never waits."""
        kept = []
        reachable = self._running and self._reachable()
        for task in tasks:
            if reachable and len(self._pending) < OUTBOX_BOUND:
                self._pending.append(task)
            else:
                kept.append(task)
        if self._pending:
            self._added.set()
        self._stay(kept)

    async def run(self) -> None:
        """Publish until cancelled. Wake-ups not confirmed by then stay on this node."""
        batch: list[DueTask] = []
        self._running = True
        try:
            while True:
                await self._added.wait()
                self._added = trio.Event()
                while self._pending:
                    size = min(len(self._pending), MAX_BATCH)
                    batch = [self._pending.popleft() for _ in range(size)]
                    await self._publish(batch)
                    batch = []
        finally:
            self._running = False
            self._stay([*batch, *self._pending])
            self._pending.clear()

    async def _publish(self, batch: list[DueTask]) -> None:
        bodies = [encode_body(task) for task in batch]
        tried: set[NsqConnection] = set()
        published = False
        while left := [one for one in self._connections() if one not in tried]:
            connection = left[0]
            tried.add(connection)
            # Before the publish: a message may arrive before its confirmation.
            began = trio.current_time()
            try:
                await connection.publish(bodies)
            except QueueUnavailable as error:
                # That has ended the connection, which logs its end itself.
                logger.debug("a batch goes to the next nsqd: %s", error)
                if connection.refusal is not None:
                    self._watch.refused(
                        connection.address,
                        connection.refusal,
                        answered=connection.answered,
                        now=trio.current_time(),
                    )
                continue
            self._watch.confirmed(connection.address, batch, began=began)
            if not published:
                published = True
                self.published += len(batch)
            if not self._watch.doubts(connection.address):
                return
        self._stay(batch)

    def _stay(self, tasks: Sequence[DueTask]) -> None:
        if tasks:
            self.kept += len(tasks)
            self._keep(tasks)

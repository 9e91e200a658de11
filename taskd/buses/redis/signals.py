"""Signals between nodes over Redis' publish and subscribe.

::

    send ──► PUBLISH to that node's channel ──► its listener ──► handler
      ▲        (again every RESEND_S)                              │
      └────────── this node's listener ◄── PUBLISH of the reply ◄──┘

Redis delivers a published message only to nodes that listen at that moment, so `Signals`
repeats it. A node is alive while its presence key exists (see `pulse`).

A notice is published once, to a channel that all nodes listen to as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import trio

from taskd.buses.redis.batcher import Batcher
from taskd.buses.redis.health import Health
from taskd.buses.redis.link import Answer, Command, Link
from taskd.buses.redis.pulse import presence_key
from taskd.buses.signal_wire import Message, NoticeMessage, encode
from taskd.buses.signals import Signals
from taskd.errors import BusUnavailable
from taskd.ports.bus import SignalHandler

MAX_NOTICES = 1_000
"""Notices that may wait to be published; more are dropped."""

_BATCH = 128


class RedisSignals(Signals):
    """See the module.

    Args:
        link: its own.
        health: where failures are noted; while one is known, nothing is sent.
        node: this node's name.
        prefix: of the channels and keys.
    """

    def __init__(self, link: Link, health: Health, *, node: str, prefix: str) -> None:
        super().__init__(node)
        self._link = link
        self._health = health
        self._prefix = prefix
        self._notices: deque[NoticeMessage] = deque()
        self._more_notices = trio.Event()
        self._batcher = Batcher[tuple[Command, ...], list[Answer]](self._carry, limit=_BATCH)

    @property
    def channels(self) -> tuple[str, str]:
        """The channels that this node listens to: its own, and that of all nodes."""
        return self._channel(self.node), self._channel_of_all

    async def run(
        self,
        handler: SignalHandler,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """See `Signals.run`."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._batcher.run)
            nursery.start_soon(self._publish_notices)
            await super().run(handler, task_status=task_status)

    async def _publish(self, node: str, message: Message) -> bool:
        if self._health.unready is not None:
            raise BusUnavailable(self._health.unready)
        present, listening = await self._batcher.call(
            (
                ("EXISTS", presence_key(self._prefix, node)),
                ("PUBLISH", self._channel(node), encode(message)),
            )
        )
        return bool(present and listening)

    def _spread(self, message: NoticeMessage) -> None:
        if self._nursery is None or len(self._notices) >= MAX_NOTICES:
            self._drop("too many notices wait, or it is not this node's time")
            return
        self._notices.append(message)
        self._more_notices.set()

    async def _publish_notices(self) -> None:
        while True:
            await self._more_notices.wait()
            self._more_notices = trio.Event()
            while self._notices:
                batch = [self._notices.popleft() for _ in range(min(_BATCH, len(self._notices)))]
                try:
                    await self._publish_all(batch)
                except BusUnavailable as error:
                    self._drop(f"notices can't be published: {error}")

    async def _publish_all(self, notices: Sequence[NoticeMessage]) -> None:
        if self._health.unready is not None:
            raise BusUnavailable(self._health.unready)
        await self._batcher.call(
            tuple(("PUBLISH", self._channel_of_all, encode(notice)) for notice in notices)
        )

    async def _carry(self, calls: Sequence[tuple[Command, ...]]) -> list[list[Answer]]:
        try:
            answers = await self._link.call(*(command for call in calls for command in call))
        except BusUnavailable as error:
            self._health.fail(error)
            raise
        remaining = iter(answers)
        return [[next(remaining) for _ in call] for call in calls]

    @property
    def _channel_of_all(self) -> str:
        return f"{self._prefix}:all"

    def _channel(self, node: str) -> str:
        return f"{self._prefix}:to:{node}"

"""Signals between nodes over Redis' publish and subscribe.

::

    send ──► PUBLISH to the other's channel ──► its listener ──► handler
      ▲        (again every RESEND_S)                              │
      └────────── this node's listener ◄── PUBLISH of the reply ◄──┘

A published message reaches who listens at that moment, or nobody: `signals` sends
it again. A node is alive while its presence is there (`redis_pulse`).
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from taskd.buses.redis.gather import Gatherer
from taskd.buses.redis.health import Health
from taskd.buses.redis.link import Answer, Command, Link
from taskd.buses.redis.pulse import presence_key
from taskd.buses.signal_wire import Message, encode
from taskd.buses.signals import Signals
from taskd.errors import BusUnavailable
from taskd.ports.bus import SignalHandler

_BATCH = 128


class RedisSignals(Signals):
    """See the module.

    Args:
        link: its own.
        health: where failures are told, and known ones found.
        node: this node's name.
        prefix: of the channels and keys.
    """

    def __init__(self, link: Link, health: Health, *, node: str, prefix: str) -> None:
        super().__init__(node)
        self._link = link
        self._health = health
        self._prefix = prefix
        self._gatherer = Gatherer[tuple[Command, ...], list[Answer]](self._carry, limit=_BATCH)

    @property
    def channel(self) -> str:
        """Where this node listens."""
        return self._channel(self.node)

    async def run(
        self,
        handler: SignalHandler,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """See `Signals.run`."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._gatherer.run)
            await super().run(handler, task_status=task_status)

    async def _publish(self, node: str, message: Message) -> bool:
        if self._health.fault is not None:
            raise BusUnavailable(self._health.fault)
        present, listening = await self._gatherer.call(
            (
                ("EXISTS", presence_key(self._prefix, node)),
                ("PUBLISH", self._channel(node), encode(message)),
            )
        )
        return bool(present and listening)

    async def _carry(self, calls: Sequence[tuple[Command, ...]]) -> list[list[Answer]]:
        try:
            answers = await self._link.call(*(command for call in calls for command in call))
        except BusUnavailable as error:
            self._health.fail(error)
            raise
        remaining = iter(answers)
        return [[next(remaining) for _ in call] for call in calls]

    def _channel(self, node: str) -> str:
        return f"{self._prefix}:to:{node}"

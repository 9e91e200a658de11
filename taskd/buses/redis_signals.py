"""Signals and their replies over Redis' publish and subscribe.

::

    send ──► PUBLISH to the other's channel ──► its listener ──► handler
      ▲        (again every RESEND_S)                              │
      └────────── this node's listener ◄── PUBLISH of the reply ◄──┘

A published message reaches who listens at that moment, or nobody. So a signal is
repeated, with the same id, until its reply comes or its node is seen not to be
alive; one that is in hand already is not handled twice, and one that was handled
may be again, which does no harm. A reply that nobody waits for is dropped.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from taskd.buses.redis_gather import Gatherer
from taskd.buses.redis_health import Health
from taskd.buses.redis_link import Answer, Command, Link
from taskd.buses.redis_pulse import presence_key
from taskd.buses.redis_wire import (
    Malformed,
    Message,
    ReplyMessage,
    SignalMessage,
    decode,
    encode,
)
from taskd.errors import BusUnavailable
from taskd.logs import log_event
from taskd.ports import Reply, Signal, SignalHandler

logger = logging.getLogger("taskd.buses.redis")

MAX_HANDLED = 256
"""Signals of other nodes that are handled at a time; more are dropped, and come again."""

RESEND_S = 0.5

_LOOK_AGAIN_S = 0.25
_HANDLE_S = 10.0
_TELL_EVERY_S = 10.0
_BATCH = 128


@dataclass(slots=True, eq=False)
class _Waiter:
    answered: trio.Event = field(default_factory=trio.Event)
    reply: Reply | None = None


class Signals:
    """See the module.

    Args:
        link: its own.
        health: where failures are told, and known ones found.
        node: this node's name.
        prefix: of the channels and keys.
    """

    def __init__(self, link: Link, health: Health, *, node: str, prefix: str) -> None:
        self._link = link
        self._health = health
        self._node = node
        self._prefix = prefix
        self._handler: SignalHandler | None = None
        self._nursery: trio.Nursery | None = None
        self._waiters: dict[str, _Waiter] = {}
        self._in_hand: set[tuple[str, str]] = set()
        self._told_at = float("-inf")
        self._gatherer = Gatherer[tuple[Command, ...], list[Answer]](self._carry, limit=_BATCH)
        self.sent = self.handled = self.dropped = 0

    @property
    def channel(self) -> str:
        """Where this node listens."""
        return self._channel(self._node)

    async def run(
        self,
        handler: SignalHandler,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Send, and answer what `take` is given, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._handler, self._nursery = handler, nursery
                await nursery.start(self._gatherer.run)
                task_status.started()
        finally:
            self._handler = self._nursery = None

    async def send(self, node: str, signal: Signal) -> Reply | None:
        """See `Bus.send`."""
        if node == self._node:
            handler = self._handler
            if handler is None:
                await trio.lowlevel.checkpoint()
                return None
            return await handler(signal)
        message = SignalMessage(secrets.token_hex(8), self._node, signal)
        waiter = self._waiters[message.id] = _Waiter()
        try:
            return await self._send_until_answered(node, message, waiter)
        except BusUnavailable as error:
            log_event(
                logger, logging.WARNING, "a signal could not be sent", node=node, reason=str(error)
            )
            return None
        finally:
            del self._waiters[message.id]

    async def _send_until_answered(
        self, node: str, message: SignalMessage, waiter: _Waiter
    ) -> Reply | None:
        self.sent += 1
        absent = 0
        while True:
            alive = await self._publish(node, message)
            absent = 0 if alive else absent + 1
            if absent > 1:
                return None
            # A node that has just lost its connection, or its key to a flush, is
            # given a moment to be back.
            with trio.move_on_after(_LOOK_AGAIN_S if absent else RESEND_S):
                await waiter.answered.wait()
                return waiter.reply

    async def _publish(self, node: str, message: Message) -> bool:
        """Send to a node; returns whether it is alive and listens."""
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

    def take(self, messages: list[bytes]) -> None:
        """Take what was heard on this node's channel. Never waits."""
        for data in messages:
            try:
                message = decode(data)
            except Malformed as error:
                self._drop(f"malformed: {error}")
                continue
            if isinstance(message, ReplyMessage):
                self._take_reply(message)
            else:
                self._take_signal(message)

    def _take_reply(self, message: ReplyMessage) -> None:
        waiter = self._waiters.get(message.id)
        if waiter is None:
            logger.debug("a reply came after its waiter had left")
            return
        waiter.reply = message.reply
        waiter.answered.set()

    def _take_signal(self, message: SignalMessage) -> None:
        key = (message.sender, message.id)
        if key in self._in_hand:
            return
        if self._nursery is None or self._handler is None:
            self._drop("it came before or after this node's time")
        elif len(self._in_hand) >= MAX_HANDLED:
            self._drop("too many are in hand")
        else:
            self._in_hand.add(key)
            self._nursery.start_soon(self._handle, self._handler, message)

    async def _handle(self, handler: SignalHandler, message: SignalMessage) -> None:
        try:
            reply = await self._ask(handler, message)
            try:
                await self._publish(message.sender, ReplyMessage(message.id, reply))
            except Malformed as error:
                log_event(logger, logging.ERROR, "a reply can't be sent", reason=str(error))
                await self._publish(message.sender, ReplyMessage(message.id, None))
            self.handled += 1
        except BusUnavailable as error:
            # Its sender asks again, or is told by the Store.
            log_event(logger, logging.WARNING, "a reply could not be sent", reason=str(error))
        finally:
            self._in_hand.discard((message.sender, message.id))

    async def _ask(self, handler: SignalHandler, message: SignalMessage) -> Reply | None:
        try:
            with trio.move_on_after(_HANDLE_S):
                return await handler(message.signal)
        except Exception as error:  # noqa: BLE001 - one signal must not end the bus
            log_event(
                logger,
                logging.ERROR,
                "a signal could not be handled",
                error=error,
                node=message.sender,
                task=message.signal.task_id,
            )
            return None
        log_event(
            logger,
            logging.ERROR,
            "a signal was not handled in time",
            node=message.sender,
            task=message.signal.task_id,
        )
        return None

    def _drop(self, reason: str) -> None:
        self.dropped += 1
        now = trio.current_time()
        if now - self._told_at >= _TELL_EVERY_S:
            self._told_at = now
            log_event(
                logger,
                logging.WARNING,
                "a message of the bus was dropped",
                reason=reason,
                dropped=self.dropped,
            )

    def _channel(self, node: str) -> str:
        return f"{self._prefix}:to:{node}"

"""Signals, their replies, and notices between nodes, whatever carries the messages.

::

    send ──► the carrier ──► the other node's `take` ──► handler
      ▲   (again every RESEND_S)                            │
      └─────────── this node's `take` ◄── the carrier ◄─────┘

A carrier may lose a message. So a signal is repeated, with the same id, until its
reply comes or its node is seen not to be alive; one that is in hand already is not
handled twice, and one that was handled may be again, which does no harm. A reply
that nobody waits for is dropped. A notice is sent once, to all, and not answered.
"""

from __future__ import annotations

import logging
import secrets
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import trio

from taskd.buses.signal_wire import (
    Malformed,
    Message,
    NoticeMessage,
    ReplyMessage,
    SignalMessage,
    decode,
)
from taskd.errors import BusUnavailable
from taskd.ports.bus import Notice, NoticeHandler, Reply, Signal, SignalHandler
from taskd.runtime.logs import log_event

logger = logging.getLogger("taskd.buses")

MAX_HANDLED = 256
"""Signals of other nodes that are handled at a time; more are dropped, and come again."""

RESEND_S = 0.5

_LOOK_AGAIN_S = 0.25
_HANDLE_S = 10.0
_TELL_EVERY_S = 10.0


@dataclass(slots=True, eq=False)
class _Waiter:
    answered: trio.Event = field(default_factory=trio.Event)
    reply: Reply | None = None


async def ask(handler: SignalHandler, signal: Signal, *, sender: str) -> Reply | None:
    """A handler's reply; None where it fails, which the log tells: one signal must
    neither end the bus nor its sender."""
    try:
        return await handler(signal)
    except Exception as error:  # noqa: BLE001 - see above
        log_event(
            logger,
            logging.ERROR,
            "a signal could not be handled",
            error=error,
            node=sender,
            task=signal.task_id,
        )
        return None


def note(handler: NoticeHandler | None, notice: Notice, *, sender: str) -> None:
    """Have a notice handled; a handler that fails is told in the log, and hurts nobody
    else."""
    if handler is None:
        return
    try:
        handler(notice)
    except Exception as error:  # noqa: BLE001 - see above
        log_event(logger, logging.ERROR, "a notice could not be handled", error=error, node=sender)


class Signals(ABC):
    """See the module.

    Args:
        node: this node's name.

    Attributes:
        sent: signals sent to other nodes, repetitions not counted.
        handled: signals of other nodes that were answered.
        dropped: messages that were not understood, or too many.
    """

    def __init__(self, node: str) -> None:
        self.node = node
        self._handler: SignalHandler | None = None
        self._notice_handler: NoticeHandler | None = None
        self._nursery: trio.Nursery | None = None
        self._waiters: dict[str, _Waiter] = {}
        self._in_hand: set[tuple[str, str]] = set()
        self._told_at = float("-inf")
        self.sent = self.handled = self.dropped = 0

    @abstractmethod
    async def _publish(self, node: str, message: Message) -> bool:
        """Send to a node; returns whether it is alive and listens.

        Raises:
            BusUnavailable: nothing can be sent now.
            Malformed: the message is too large.
        """

    @abstractmethod
    def _spread(self, message: NoticeMessage) -> None:
        """Send to all other nodes, or to as many as can be sent to; without waiting."""

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
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._handler = self._nursery = None

    async def send(self, node: str, signal: Signal) -> Reply | None:
        """See `Bus.send`."""
        if node == self.node:
            handler = self._handler
            if handler is None:
                await trio.lowlevel.checkpoint()
                return None
            return await ask(handler, signal, sender=node)
        message = SignalMessage(secrets.token_hex(8), self.node, signal)
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

    def on_notice(self, handler: NoticeHandler) -> None:
        """See `Bus.on_notice`."""
        self._notice_handler = handler

    def announce(self, notice: Notice) -> None:
        """See `Bus.announce`."""
        note(self._notice_handler, notice, sender=self.node)
        self._spread(NoticeMessage(secrets.token_hex(8), self.node, notice))

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
            elif isinstance(message, NoticeMessage):
                if message.sender != self.node:  # else it has been handled
                    note(self._notice_handler, message.notice, sender=message.sender)
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
        with trio.move_on_after(_HANDLE_S):
            return await ask(handler, message.signal, sender=message.sender)
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

"""Signals, their replies, and notices between nodes, over any carrier.

::

    send ──► the carrier ──► the other node's `take` ──► handler
      ▲   (again every RESEND_S)                            │
      └─────────── this node's `take` ◄── the carrier ◄─────┘

A carrier may lose a message. So a signal is repeated, with the same id, until its
reply comes or its node is found not to be alive. A repetition is ignored while the
signal is being handled; after that it is handled again, which does no harm. A reply
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
"""Signals of other nodes that are handled at a time. More are dropped; their senders
repeat them."""

RESEND_S = 0.5
"""How often a signal without a reply is sent again."""

_LOOK_AGAIN_S = 0.25
_HANDLE_S = 10.0
_TELL_EVERY_S = 10.0


@dataclass(slots=True, eq=False)
class _Waiter:
    answered: trio.Event = field(default_factory=trio.Event)
    reply: Reply | None = None


async def ask(handler: SignalHandler, signal: Signal, *, sender: str) -> Reply | None:
    """A handler's reply. If the handler fails, that is logged and None returned: one
    signal must end neither the bus nor its sender."""
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
    """Call the handler with a notice, if there is a handler. If it fails, that is logged
    and not raised."""
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
        dropped: messages dropped: malformed, or more than can be handled.
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
        """Send a message to a node. Returns whether the node is alive and listens.

        Raises:
            BusUnavailable: nothing can be sent now.
            Malformed: the message is too large.
        """

    @abstractmethod
    def _spread(self, message: NoticeMessage) -> None:
        """Send a notice to all other nodes, as far as they can be reached. Never waits."""

    async def run(
        self,
        handler: SignalHandler,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Make `send` work, and handle the signals given to `take`, until cancelled."""
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
            # The node may only have lost its connection, or its presence key to a flush:
            # it counts as absent if the next try fails too.
            with trio.move_on_after(_LOOK_AGAIN_S if absent else RESEND_S):
                await waiter.answered.wait()
                return waiter.reply

    def take(self, messages: list[bytes]) -> None:
        """Take in messages that came for this node, or for all. Never waits."""
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
            # The sender repeats its signal, or reads the outcome in the Store.
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

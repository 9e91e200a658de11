"""Keeps one nsqd connected: connects, runs the connection, and begins anew.

An outage is logged when it begins, and again when a connection has held for `STEADY_S`:
so connections that break again and again are one outage.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio
from nsq.response import Message  # type: ignore[import-untyped]  # it has no types

from taskd.errors import QueueUnavailable
from taskd.queues.nsq.connection import ConnectionSettings, NsqConnection, connect
from taskd.queues.nsq.target import Address
from taskd.runtime.backoff import Backoff
from taskd.runtime.logs import log_event

logger = logging.getLogger("taskd.queues.nsq")

STEADY_S = 5.0
"""An outage ends once a connection has held for this long."""

_OFTEN = 2
_YOUNG_S = 2.0
"""After `_OFTEN` broken connections in a row, the next one still counts as degraded until
it has held for `_YOUNG_S`."""

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
_JITTER = 0.5
_GOODBYE_S = 0.1


class NsqLink:
    """See the module.

    Args:
        address: the nsqd's.
        settings: of each connection.
        on_up: called when a connection can be used.
        on_leave: called when this node ends while a connection is usable; may still send.
        on_down: called when a connection can't be used any more.
        on_messages: called with the messages that came on a connection.
        wanted: returns whether to connect again after a failure.
    """

    def __init__(
        self,
        address: Address,
        settings: ConnectionSettings,
        *,
        on_up: Callable[[NsqConnection], None],
        on_leave: Callable[[NsqConnection], None],
        on_down: Callable[[NsqConnection], None],
        on_messages: Callable[[NsqConnection, list[Message]], None],
        wanted: Callable[[Address], bool],
    ) -> None:
        self.address = address
        self.tried = trio.Event()
        """Set once the first attempt to connect has ended."""
        self.degraded: str | None = None
        """Why the nsqd can't be used, or None. After frequent breaks it is set for the
        first `_YOUNG_S` of a connection, too."""
        self.up = False
        """Whether it is connected."""
        self.connects = 0
        """Connections made since the start."""
        self._settings = settings
        self._on_up = on_up
        self._on_leave = on_leave
        self._on_down = on_down
        self._on_messages = on_messages
        self._wanted = wanted
        self._ended = ""
        # With jitter: not all nodes connect at once when an nsqd comes back.
        self._backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S, jitter=_JITTER)
        self._broken = 0
        self._told = False

    async def run(self) -> None:
        """Keep the nsqd connected until it is not wanted any more, or cancelled."""
        while True:
            try:
                await self._connect_and_run()
            except QueueUnavailable as error:
                self._note(error)
            self.tried.set()
            if not self._wanted(self.address):
                logger.debug("%s is not used any more", self.address)
                return
            await trio.sleep(self._backoff.next_s())

    async def _connect_and_run(self) -> None:
        connection = await connect(self.address, self._settings)
        try:
            self.up = True
            if self._broken < _OFTEN:
                self.degraded = None
            self.connects += 1
            self._on_up(connection)
            self.tried.set()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_outage)
                await self._run(connection)
                nursery.cancel_scope.cancel()
        finally:
            self.up = False
            self._broken += 1
            # Before it is missed: closing takes a moment, in which somebody may ask.
            self.degraded = self._ended or self.degraded
            self._on_down(connection)
            await connection.aclose()
        raise QueueUnavailable(self._ended)

    async def _run(self, connection: NsqConnection) -> None:
        try:
            await connection.run(lambda messages: self._on_messages(connection, messages))
        except QueueUnavailable as error:
            # Kept and raised outside: a nursery would wrap it in an exception group.
            self._ended = str(error)
        finally:
            if connection.usable:
                # Cancelled, since this node ends.
                self._on_leave(connection)
                await connection.say_goodbye(_GOODBYE_S)

    async def _end_outage(self) -> None:
        await trio.sleep(min(_YOUNG_S, STEADY_S))
        self.degraded = None
        await trio.sleep(max(STEADY_S - _YOUNG_S, 0))
        self._backoff.reset()
        self._broken = 0
        if self._told:
            self._told = False
            log_event(logger, logging.INFO, "nsqd works again", nsqd=str(self.address))

    def _note(self, error: QueueUnavailable) -> None:
        self.degraded = str(error)
        if self._told:
            logger.debug("nsqd %s can't be used: %s", self.address, error)
            return
        self._told = True
        log_event(
            logger,
            logging.WARNING,
            "nsqd can't be used, it is tried again",
            nsqd=str(self.address),
            reason=str(error),
        )

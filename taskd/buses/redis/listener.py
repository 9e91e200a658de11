"""The one thread that listens: a subscription to this node's channels.

It waits in turns of `_TURN_S`, since a blocked thread can't be cancelled, and sends PING
every `_PING_S`, since a connection may die without notice. It hands messages to Trio in
batches, and reads no more until Trio has taken them. A lost connection is made anew after
a pause. Messages sent meanwhile are lost, so senders repeat signals.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import trio

from taskd.buses.redis.link import SOCKET_S, Command, RawConnection, explained, make_connection
from taskd.buses.redis.target import RedisTarget
from taskd.errors import BusUnavailable
from taskd.runtime.backoff import Backoff
from taskd.runtime.logs import log_event

logger = logging.getLogger("taskd.buses.redis")

_TURN_S = 0.2
_PING_S = 1.0
_SILENCE_S = 3.0
_BATCH = 100
_FIRST_S = SOCKET_S
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 0.8
_JITTER = 0.3


class Listener:
    """See the module.

    Args:
        target: the server.
        limiter: bounds the threads of a Bus.
        channels: the channels to subscribe to.
        deliver: called in the Trio thread with the messages that came.
    """

    def __init__(
        self,
        target: RedisTarget,
        limiter: trio.CapacityLimiter,
        channels: Sequence[str],
        deliver: Callable[[list[bytes]], None],
    ) -> None:
        self._target = target
        self._limiter = limiter
        self._channels = channels
        self._deliver = deliver
        self._tried = trio.Event()
        self.subscribed = False
        self.outages = 0
        """How often the subscription was lost, or the first one failed."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled. Started after the first try to subscribe, whether it
        succeeded or not, or after `_FIRST_S`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen_forever)
            with trio.move_on_after(_FIRST_S):
                await self._tried.wait()
            task_status.started()

    async def _listen_forever(self) -> None:
        backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S, jitter=_JITTER)
        while True:
            if (error := await self._listen()) is not None:
                if self.subscribed or backoff.fresh:
                    backoff.reset()
                    self.outages += 1
                    log_event(logger, logging.WARNING, "signals can't be heard", reason=str(error))
                self.subscribed = False
            self._tried.set()
            await trio.sleep(backoff.next_s())

    async def _listen(self) -> BusUnavailable | None:
        """Listen until the connection fails; returns why, or None if it was stopped."""
        ears = _Ears(self._target, self._channels, trio.lowlevel.current_trio_token(), self)
        try:
            await trio.to_thread.run_sync(
                ears.run,
                abandon_on_cancel=True,
                limiter=self._limiter,
                thread_name="taskd-bus-listener",
            )
        except BusUnavailable as error:
            return error
        finally:
            ears.stop()
        return None

    def note_subscribed(self) -> None:
        """Note that the subscription works. Called in the Trio thread."""
        if not self.subscribed and self.outages:
            log_event(logger, logging.INFO, "signals are heard")
        self.subscribed = True
        self._tried.set()

    def take(self, messages: list[bytes]) -> None:
        """Take messages that came. Called in the Trio thread."""
        self._deliver(messages)


class _Ears:
    """One subscription, from its connection to its loss. Runs in a worker thread."""

    def __init__(
        self,
        target: RedisTarget,
        channels: Sequence[str],
        token: trio.lowlevel.TrioToken,
        owner: Listener,
    ) -> None:
        self._target = target
        self._channels = channels
        self._token = token
        self._owner = owner
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Have the thread end within a turn. Messages read until then are dropped."""
        self._stopped.set()

    def run(self) -> None:
        """Listen until told to stop.

        Raises:
            BusUnavailable: the connection could not be made, or failed.
        """
        connection = make_connection(self._target)
        try:
            connection.connect()
            self._send(connection, ("SUBSCRIBE", *self._channels))
            self._converse(connection)
        except trio.RunFinishedError:
            return  # Trio has ended, so nobody needs the messages
        except Exception as error:
            # As in `link`: on bytes that are not Redis', redis-py may raise anything.
            raise explained(self._target, error) from error
        finally:
            connection.disconnect()

    def _converse(self, connection: RawConnection) -> None:
        heard_at = asked_at = time.monotonic()
        while not self._stopped.is_set():
            now = time.monotonic()
            if now - heard_at > _SILENCE_S:
                raise TimeoutError
            if now - asked_at >= _PING_S:
                self._send(connection, ("PING",))
                asked_at = now
            if connection.can_read(_TURN_S):
                messages = self._read(connection)
                heard_at = time.monotonic()
                if messages:
                    self._tell(partial(self._owner.take, messages))

    @staticmethod
    def _send(connection: RawConnection, command: Command) -> None:
        connection.send_packed_command(connection.pack_commands([command]), check_health=False)

    def _read(self, connection: RawConnection) -> list[bytes]:
        messages = []
        while True:
            match connection.read_response():
                case [b"message", _, bytes(data)]:
                    messages.append(data)
                case [b"subscribe", *_]:
                    self._tell(self._owner.note_subscribed)
                # All else are answers to PING.
            if len(messages) >= _BATCH or not connection.can_read(0):
                return messages

    def _tell(self, what: Callable[[], None]) -> None:
        def unless_stopped() -> None:
            if not self._stopped.is_set():
                what()

        trio.from_thread.run_sync(unless_stopped, trio_token=self._token)

"""What an operator's signals do to a daemon, from its start to its end.

::

    starting ──── ready ─────────────────────── draining ──── ended
       │ stop       │ stop                         │ stop again
       └► ended     │ SIGHUP: read again           └► ended at once
                    └ SIGUSR1: say how things stand

A configuration that is read again is checked as a whole before any of it counts. Changes that
need a restart are logged and wait for it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from signal import Signals

import trio

from taskd.config import Config, Renewal, renewed
from taskd.daemon.node import Node
from taskd.errors import TaskdError
from taskd.runtime import signals
from taskd.runtime.logs import adjust, log_event

logger = logging.getLogger("taskd.daemon")

SAME_SIGNAL_S = 0.3
"""A signal that comes again this soon is the same one: service managers may send it to the
process and to its group."""


class HardStop(Exception):
    """A second signal came: end at once."""


class Steering:
    """See the module. Does its work in `obey`.

    Args:
        config: of the daemon.
        read_again: reads the configuration once more, in a thread; None for a worker
            process, whose supervisor reads it, and handles a second signal.
        on_stop: is called with the seconds that attempts may still take, when the daemon
            begins to stop.

    Attributes:
        config: the configuration that counts now.
        starting: the scope to enter for all work before `ready`; a stop cancels it.
        stopping: set once the daemon has to stop.
    """

    def __init__(
        self,
        config: Config,
        *,
        read_again: Callable[[], Config] | None,
        on_stop: Callable[[float], None],
    ) -> None:
        self.config = config
        self.starting = trio.CancelScope()
        self.stopping = trio.Event()
        self._read_again = read_again
        self._on_stop = on_stop
        self._terminal = signals.Terminal()
        self._node: Node | None = None
        self._ready = trio.Event()
        self._asked = trio.Event()
        self._stopped_at = 0.0

    def ready(self, node: Node) -> None:
        """Note that the daemon works: from here on a stop drains this node."""
        self._node = node
        self._ready.set()

    async def obey(self, orders: AsyncIterator[int]) -> None:
        """Do what signals ask for, until cancelled.

        Raises:
            HardStop: a second signal to stop came.
        """
        async with trio.open_nursery() as nursery:
            if self._read_again is not None:
                nursery.start_soon(self._renew_when_asked, self._read_again)
            async for number in orders:
                self._take(Signals(number))

    def _take(self, number: Signals) -> None:
        if number in signals.STOP or (number is signals.RELOAD and self._terminal.closed()):
            self._stop(number.name)
        elif number is signals.RELOAD and self._read_again is not None:
            self._asked.set()
        elif number is signals.STATUS and self._node is not None:
            self._node.log_status()
        elif number is Signals.SIGCHLD:
            signals.forget_orphans()
        else:
            log_event(logger, logging.INFO, "a signal that asks for nothing", signal=number.name)

    def _stop(self, name: str) -> None:
        if not self.stopping.is_set():
            log_event(logger, logging.INFO, "signal", signal=name)
            self._stopped_at = trio.current_time()
            self._on_stop(0.0 if self._node is None else self.config.server.drain_timeout)
            self.stopping.set()
            if self._node is None:
                self.starting.cancel()
        elif (
            self._read_again is not None and trio.current_time() - self._stopped_at > SAME_SIGNAL_S
        ):
            log_event(logger, logging.WARNING, "a second signal: ended at once", signal=name)
            raise HardStop

    async def _renew_when_asked(self, read_again: Callable[[], Config]) -> None:
        await self._ready.wait()
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            if self._node is None or self.stopping.is_set():
                continue
            try:
                # A stop does not wait for the read: a file may take long.
                read = await trio.to_thread.run_sync(read_again, abandon_on_cancel=True)
                renewal = renewed(self.config, read)
                self._node.reconfigure(renewal.config)
            except (TaskdError, OSError) as error:
                tell_refused(error)
            else:
                self.config = renewal.config
                conclude(renewal)


def tell_refused(error: Exception) -> None:
    """Log why the configuration that was read again does not count."""
    log_event(
        logger,
        logging.ERROR,
        "the configuration can't be used, so nothing of it has changed",
        reason=str(error),
    )


def conclude(renewal: Renewal) -> None:
    """Apply the log's level and format, and log which keys count now and which need a
    restart. The line shows if the level before or after lets it through."""
    log = renewal.config.log
    told = logger.isEnabledFor(logging.INFO)
    if told:
        _tell_renewed(renewal)
    adjust(level=log.level, style=log.format)
    if not told:
        _tell_renewed(renewal)


def _tell_renewed(renewal: Renewal) -> None:
    for warning in renewal.config.warnings:
        log_event(logger, logging.WARNING, warning)
    read = {
        "tls_cert": renewal.config.server.tls_cert,
        "tls_key": renewal.config.server.tls_key,
        "ca_file": renewal.config.delivery.ca_file,
        "client_cert": renewal.config.delivery.client_cert,
        "client_key": renewal.config.delivery.client_key,
    }
    log_event(
        logger,
        logging.WARNING if renewal.waiting else logging.INFO,
        "the configuration was read again",
        changed=", ".join(renewal.changed) or "no key",
        files=", ".join(key for key, path in read.items() if path is not None) or None,
        needs_restart=", ".join(renewal.waiting) or None,
    )

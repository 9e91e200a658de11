"""The daemon: config → adapters → a node's parts, in one nursery; and its end.

The parts start from the ground up and stop from the top down::

    store ─ reclaim ─ bus ─ queue ─ worker ─ timer ─ janitor ─ api     (start)

    SIGTERM, SIGINT: not ready ─ no new requests ─ no new tasks
      ─ attempts may end (drain_timeout) ─ the rest is given back
      ─ listeners and connections closed ─ store closed ─ exit 0            (drain)

    a second signal: exit 1 at once. Leases that stay behind are reclaimed by the
    next start, so nothing is lost.

A daemon of several processes has one such node in each (`run_worker`), under a
supervisor that listens for all of them and holds the store.
"""

from __future__ import annotations

import gc
import logging
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import trio

from taskd.adapters import Adapters, opened
from taskd.api.server import ApiServer
from taskd.clock import Clock, SystemClock
from taskd.config import Config, without_password
from taskd.errors import StoreUnavailable
from taskd.janitor import Janitor, reclaim
from taskd.logs import log_event
from taskd.node import CLOSE_STORE_S, Node
from taskd.stores.sqlite_lock import StoreLock
from taskd.uplink import Handover, Kind, SupervisorLost, Uplink

logger = logging.getLogger("taskd.daemon")

_OPEN_FILES = 65_536
_SWITCH_INTERVAL_S = 0.0005

_SAME_SIGNAL_S = 0.3
"""A signal that comes again this soon is the same one: a supervisor sends it to the
process and to its group."""

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

BEAT_S = 1.0
"""How often a worker shows its supervisor that it lives."""


class HardStop(Exception):
    """A second signal came: end at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seat:
    """A worker process's place under its supervisor."""

    uplink: Uplink
    handover: Handover
    number: int
    """From 0."""
    of: int
    """How many places there are."""
    url: str
    """Where the supervisor listens."""
    first: bool
    """It is alone as yet, so that leases that it finds are of the dead."""
    lock: StoreLock | None
    """By which the supervisor holds the store, where that is a file."""


def run(config: Config, *, on_ready: Callable[[str], None]) -> int:
    """Run the daemon until a signal ends it; returns the exit code.

    Args:
        on_ready: called with the bound URL once connections are accepted.

    Raises:
        ConfigError: the configuration can't be used.
        StoreRefused, StoreUnavailable: the database can't be opened.
        OSError: the address can't be bound.
    """
    return _run(config, None, on_ready)


def run_worker(config: Config, make_seat: Callable[[], Seat]) -> int:
    """Run one of a daemon's worker processes until a signal ends it; returns the exit
    code. Whatever keeps it from starting it tells its supervisor.

    Args:
        config: with this process's part of what all of them may do.
        make_seat: called where Trio runs.
    """
    try:
        return _run(config, make_seat, lambda _url: None)
    except* SupervisorLost as group:
        lost = str(group.exceptions[0])
        log_event(logger, logging.ERROR, "ended at once: the supervisor is gone", reason=lost)
    return 1


def _run(
    config: Config, make_seat: Callable[[], Seat] | None, on_ready: Callable[[str], None]
) -> int:
    # A garbage collection every 700 objects is what makes Trio's tasks dear.
    gc.set_threshold(50_000, 20, 100)
    # A thread of ours that computes (a large body is read, say) gives way to the
    # event loop after this long, not after Python's 5 ms.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    raise_file_limit()
    exit_code = 0
    try:
        trio.run(serve, config, SystemClock(), on_ready, make_seat, strict_exception_groups=True)
    except* HardStop:
        exit_code = 1
    return exit_code


async def serve(
    config: Config,
    clock: Clock,
    on_ready: Callable[[str], None],
    make_seat: Callable[[], Seat] | None = None,
) -> None:
    """Run the daemon, or one of its worker processes, until a signal has drained it.

    Raises:
        HardStop: a second signal came.
        SupervisorLost: a worker's supervisor has ended.
    """
    seat = None if make_seat is None else make_seat()
    for number in _STOP_SIGNALS:
        # What counts again once the receiver below is gone. Not SIG_IGN yet, which
        # would discard a signal that a worker's supervisor has sent already.
        signal.signal(number, lambda _number, _frame: None)
    try:
        with trio.open_signal_receiver(*_STOP_SIGNALS) as signals:
            # A supervisor blocks them for a worker that it forks, until here.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_STOP_SIGNALS, signal.SIGCHLD))
            async with opened(
                config,
                clock,
                close_store_s=CLOSE_STORE_S,
                uplink=None if seat is None else seat.uplink,
                lock=None if seat is None else seat.lock,
            ) as adapters:
                await _serve(config, adapters, signals, on_ready, seat)
    finally:
        for number in _STOP_SIGNALS:
            # One that comes after the drain, just before the end, must not change the
            # exit code.
            signal.signal(number, signal.SIG_IGN)
    log_event(logger, logging.INFO, "stopped")


async def _serve(
    config: Config,
    adapters: Adapters,
    signals: AsyncIterator[int],
    on_ready: Callable[[str], None],
    seat: Seat | None,
) -> None:
    reclaimed = 0
    if not adapters.clustered and (seat is None or seat.first):
        reclaimed = await reclaim(adapters.store, now=adapters.clock.now_ms())
    node = Node(config, adapters, None if seat is None else seat.handover)
    if seat is None or seat.number == 0:
        _warn(config, adapters)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_second, signals, node)
        if seat is not None:
            await nursery.start(seat.uplink.run)
        if adapters.timekeeper is not None:
            await nursery.start(adapters.timekeeper.run)
        await node.janitor.learn_time()
        await nursery.start(adapters.bus.serve, node.worker.handle)
        await nursery.start(adapters.queue.run)
        await nursery.start(node.worker.run)
        await nursery.start(node.timer.run)
        await nursery.start(node.janitor.run)
        (url, *_) = await nursery.start(node.api.serve) or [seat.url if seat else ""]
        # What was imported and built so far is never garbage.
        gc.collect()
        gc.freeze()
        log_event(
            logger,
            logging.INFO,
            "started",
            url=url,
            store=without_password(config.store.url),
            node=adapters.bus.node,
            worker=None if seat is None else f"{seat.number + 1}/{seat.of}",
            reclaimed=reclaimed,
        )
        on_ready(url)
        if seat is not None:
            seat.uplink.post(Kind.READY)
            nursery.start_soon(_beat, seat, node.api)
            nursery.start_soon(_bury, seat, node.janitor)
        await node.stopping.wait()
        if seat is not None:
            seat.uplink.post(Kind.LEAVING)
        await node.drain(config.server.drain_timeout)
        nursery.cancel_scope.cancel()


async def _beat(seat: Seat, api: ApiServer) -> None:
    while True:
        seat.uplink.post(Kind.BEAT, str(api.connections).encode())
        await trio.sleep(BEAT_S)


async def _bury(seat: Seat, janitor: Janitor) -> None:
    """End the leases of workers that have ended, as soon as the supervisor tells."""
    while True:
        node = await seat.uplink.next_gone()
        try:
            await janitor.bury(node)
        except StoreUnavailable as error:
            log_event(
                logger,
                logging.ERROR,
                "a dead worker's leases are not ended, and have to expire",
                node=node,
                reason=str(error),
            )


async def _stop_on_second(signals: AsyncIterator[int], node: Node) -> None:
    first_at = 0.0
    async for number in signals:
        name = signal.Signals(number).name
        if not node.stopping.is_set():
            log_event(logger, logging.INFO, "signal", signal=name)
            node.stopping.set()
            first_at = trio.current_time()
        elif trio.current_time() - first_at > _SAME_SIGNAL_S:
            log_event(logger, logging.WARNING, "a second signal: ended at once", signal=name)
            raise HardStop


def _warn(config: Config, adapters: Adapters) -> None:
    """Say at the start what an operator may not have meant."""
    for warning in config.warnings:
        log_event(logger, logging.WARNING, warning)
    if adapters.note is not None:
        log_event(logger, logging.WARNING, adapters.note)
    if config.auth.admin_secret is None and not config.auth.open_registration:
        logger.warning("[auth] admin_secret is not set: no application can be created")


def raise_file_limit() -> None:
    """Let this process have as many files open as the system allows, within reason."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:
            log_event(
                logger,
                logging.WARNING,
                "the limit of open files can't be raised",
                limit=soft,
                reason=str(error),
            )

"""Runs the daemon: config → adapters → a node's parts, in one nursery; and ends it.

The parts start from the ground up and stop from the top down::

    store ─ reclaim ─ bus ─ queue ─ dispatcher ─ timer ─ janitor ─ api     (start)

    SIGTERM, SIGINT: not ready ─ no new requests ─ no new tasks
      ─ attempts may end (drain_timeout) ─ the rest is given back
      ─ listeners and connections closed ─ store closed ─ exit 0            (drain)

    a second signal: exit 1 at once. Leases that stay behind are reclaimed by the
    next start, so nothing is lost.

A stop during the start ends the start at once. Even if a part is stuck, the process ends
`END_S` after the time that attempts had.

A daemon of several processes runs one such node in each (`run_worker`), under a supervisor
that listens for all of them and locks the store.
"""

from __future__ import annotations

import gc
import logging
import os
import platform
import resource
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

import trio

from taskd.api.server import ApiServer
from taskd.clock import FineClock, SystemClock
from taskd.config import Config, from_bytes, without_password
from taskd.daemon.adapters import Adapters, opened
from taskd.daemon.node import CLOSE_STORE_S, Node
from taskd.daemon.steering import HardStop, Steering, tell_refused
from taskd.engine.leases import LeaseKeeper, reclaim
from taskd.errors import StoreUnavailable, TaskdError
from taskd.link import Handover, Kind, SupervisorLost, Uplink
from taskd.runtime import interpreter, signals
from taskd.runtime.logs import adjust, log_event
from taskd.stores.sqlite.lock import StoreLock

logger = logging.getLogger("taskd.daemon")

_OPEN_FILES = 65_536
_SWITCH_INTERVAL_S = 0.0005

END_S = 1.5
"""How long a drain may take beyond its drain_timeout. Docker kills after 10 s."""

HEARTBEAT_S = 1.0
"""How often a worker shows its supervisor that it lives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seat:
    """A worker process's seat under its supervisor, with its ends of the channels."""

    uplink: Uplink
    handover: Handover
    number: int
    """From 0."""
    of: int
    """How many worker processes there are."""
    url: str
    """The URL at which the supervisor listens."""
    first: bool
    """Whether no other worker runs yet: the leases that it finds are then of dead nodes."""
    lock: StoreLock | None
    """The lock by which the supervisor holds a store that is a file."""
    share: Callable[[Config], Config]
    """Returns the daemon's configuration with this process's share of its bounds."""


def run(
    config: Config, *, on_ready: Callable[[str], None], read_again: Callable[[], Config]
) -> int:
    """Run the daemon until a signal ends it; returns the exit code.

    Args:
        on_ready: is called with the bound URL once connections are accepted.
        read_again: reads the configuration once more; is called in a thread.

    Raises:
        ConfigError: the configuration can't be used.
        StoreRefused, StoreUnavailable: the database can't be opened.
        OSError: the address can't be bound.
    """
    return _run(config, None, on_ready, read_again)


def run_worker(config: Config, make_seat: Callable[[], Seat]) -> int:
    """Run one of a daemon's worker processes until a signal ends it; returns the exit code.
    An exception that keeps it from starting goes to the caller, which tells the supervisor.

    Args:
        config: of the daemon as a whole.
        make_seat: is called inside Trio's run.
    """
    try:
        return _run(config, make_seat, lambda _url: None, None)
    except* SupervisorLost as group:
        lost = str(group.exceptions[0])
        log_event(logger, logging.ERROR, "ended at once: the supervisor is gone", reason=lost)
    return 1


def _run(
    config: Config,
    make_seat: Callable[[], Seat] | None,
    on_ready: Callable[[str], None],
    read_again: Callable[[], Config] | None,
) -> int:
    # A garbage collection every 700 objects makes Trio's tasks expensive.
    gc.set_threshold(50_000, 20, 100)
    # A computing thread of ours (one that parses a large body, say) gives way to the event
    # loop after this time, not after Python's 5 ms.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    raise_file_limit()
    exit_code = 0
    steering = Steering(config, read_again=read_again, on_stop=_end_within)
    try:
        trio.run(serve, steering, SystemClock(), on_ready, make_seat, strict_exception_groups=True)
    except* HardStop:
        exit_code = 1
    return exit_code


def _end_within(patience_s: float) -> None:
    """Have this process end within ``patience_s`` and `END_S` from now, by force if need be."""

    def cut_off() -> None:
        log_event(
            logger, logging.ERROR, "the end took too long, and was cut off: nothing is lost by it"
        )
        for handler in logging.getLogger().handlers:
            handler.flush()
        os._exit(1)

    timer = threading.Timer(patience_s + END_S, cut_off)
    timer.daemon = True
    timer.start()


async def serve(
    steering: Steering,
    clock: FineClock,
    on_ready: Callable[[str], None],
    make_seat: Callable[[], Seat] | None = None,
) -> None:
    """Run the daemon, or one of its worker processes, until a signal has drained it.

    Raises:
        HardStop: a second signal came.
        SupervisorLost: a worker's supervisor has ended.
    """
    seat = None if make_seat is None else make_seat()
    signals.ignore(signals.IGNORED)
    # These handlers count again once the receiver below is gone.
    signals.attend(signals.HEARD)
    try:
        with trio.open_signal_receiver(*signals.HEARD) as orders:
            # The signals were blocked until here.
            signals.let_through(signals.HEARD)
            signals.forget_orphans()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(steering.obey, orders)
                with steering.starting:
                    async with opened(
                        steering.config,
                        clock,
                        close_store_s=CLOSE_STORE_S,
                        uplink=None if seat is None else seat.uplink,
                        lock=None if seat is None else seat.lock,
                    ) as adapters:
                        await _serve(steering, adapters, on_ready, seat)
                nursery.cancel_scope.cancel()
    finally:
        # A signal after the drain, just before the end, must not change the exit code.
        signals.ignore(signals.ORDERS)
    log_event(logger, logging.INFO, "stopped")


async def _serve(
    steering: Steering, adapters: Adapters, on_ready: Callable[[str], None], seat: Seat | None
) -> None:
    config = steering.config
    if seat is not None:
        config = seat.share(config)
    reclaimed = 0
    if not adapters.clustered and (seat is None or seat.first):
        reclaimed = await reclaim(adapters.store, now=adapters.clock.now_ms())
    node = Node(config, adapters, None if seat is None else seat.handover, steering.stopping)
    if seat is None or seat.number == 0:
        _warn(config, adapters)
    if seat is not None:
        seat.uplink.on(Kind.CONFIG, lambda data: _renew(steering, node, seat, data))
        seat.uplink.on(Kind.END, _end_at_once)
    async with trio.open_nursery() as nursery:
        if seat is not None:
            await nursery.start(seat.uplink.run)
        if adapters.clock_sync is not None:
            await nursery.start(adapters.clock_sync.run)
        await node.engine.start(nursery)
        (url, *_) = await nursery.start(node.api.serve) or [seat.url if seat else ""]
        # Objects that were imported and built so far never become garbage.
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
        steering.ready(node)
        on_ready(url)
        if seat is not None:
            seat.uplink.post(Kind.READY)
            nursery.start_soon(_heartbeat, seat, node.api)
            nursery.start_soon(_reap, seat, node.engine.leases)
        await steering.stopping.wait()
        if seat is not None:
            seat.uplink.post(Kind.LEAVING)
        await node.drain(steering.config.server.drain_timeout)
        nursery.cancel_scope.cancel()


def _end_at_once(_payload: bytes) -> None:
    raise HardStop


def _renew(steering: Steering, node: Node, seat: Seat, data: bytes) -> None:
    """Apply the configuration that the supervisor has read again, checked and sent."""
    config = from_bytes(data, steering.config)
    try:
        node.reconfigure(seat.share(config))
    except TaskdError as error:  # a file has changed since
        tell_refused(error)
    else:
        steering.config = config
        adjust(level=config.log.level, style=config.log.format)


async def _heartbeat(seat: Seat, api: ApiServer) -> None:
    while True:
        seat.uplink.post(Kind.HEARTBEAT, b"%d %d" % (api.connections, api.full))
        await trio.sleep(HEARTBEAT_S)


async def _reap(seat: Seat, leases: LeaseKeeper) -> None:
    """Reap the leases of ended workers, as soon as the supervisor tells of their end."""
    while True:
        node = await seat.uplink.next_gone()
        try:
            await leases.reap_node(node)
        except StoreUnavailable as error:
            log_event(
                logger,
                logging.ERROR,
                "a dead worker's leases are not ended, and have to expire",
                node=node,
                reason=str(error),
            )


def _warn(config: Config, adapters: Adapters) -> None:
    """Log at the start what an operator may not have meant."""
    for warning in config.warnings:
        log_event(logger, logging.WARNING, warning)
    if adapters.note is not None:
        log_event(logger, logging.WARNING, adapters.note)
    if (built := interpreter.slow_build()) is not None:
        log_event(
            logger,
            logging.WARNING,
            interpreter.SLOW,
            python=platform.python_version(),
            built=built,
        )
    if config.auth.admin_secret is None and not config.auth.open_registration:
        logger.warning("[auth] admin_secret is not set: no application can be created")


def raise_file_limit() -> None:
    """Let this process open as many files as the system allows, `_OPEN_FILES` at most."""
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

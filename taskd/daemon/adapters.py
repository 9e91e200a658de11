"""Opens the adapters that the configuration's three URLs choose: Store, Queue and Bus.

The cluster's adapters import packages of the extra ``cluster``; a daemon that is alone needs
none of them.
"""

from __future__ import annotations

import importlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from taskd.buses.local import LocalBus
from taskd.buses.machine import MachineBus
from taskd.clock import Clock, FineClock, SharedClock
from taskd.config import Config
from taskd.engine.clock_sync import ClockSync
from taskd.engine.leases import reclaim
from taskd.errors import ConfigError, InvalidInput, StoreRefused
from taskd.link import Uplink
from taskd.ports.bus import Bus
from taskd.ports.queue import Queue
from taskd.ports.store import Archive, Store
from taskd.queues.local import LocalQueue
from taskd.queues.machine import MachineQueue
from taskd.runtime.logs import log_event
from taskd.stores.sqlite.lock import StoreLock
from taskd.stores.sqlite.opening import lock_database
from taskd.stores.sqlite.schema import check_file
from taskd.stores.sqlite.store import SQLiteStatistics, SQLiteStore

logger = logging.getLogger("taskd.daemon")

_INSTALL = "pip install 'taskd[cluster]', or in a checkout: pip install '.[cluster]'"
_STORE, _QUEUE, _BUS = "[store] url", "[queue] url", "[bus] url"


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapters:
    """The adapters and clocks of one node."""

    store: Store
    queue: Queue
    bus: Bus
    clock: FineClock
    """The clock by which due times and leases are judged."""
    clock_sync: ClockSync | None
    """Keeps the clock in step with the Store's; None for a daemon on one machine."""
    alive: Callable[[], Collection[str] | None]
    """Returns the other nodes that live for certain; None while that is not known."""
    note: str | None
    """A choice of the operator's that has a risk, as a sentence; or None."""

    @property
    def clustered(self) -> bool:
        """Whether the other nodes may be on other machines."""
        return self.clock_sync is not None


@asynccontextmanager
async def opened(
    config: Config,
    machine: FineClock,
    *,
    close_store_s: float,
    uplink: Uplink | None = None,
    lock: StoreLock | None = None,
) -> AsyncIterator[Adapters]:
    """Give the adapters with the Store open, and close it at the end. The Queue and the Bus
    connect in `Queue.run` and `Bus.serve`.

    Args:
        config: its three URLs count.
        machine: the machine's clock.
        close_store_s: how long closing the Store may take.
        uplink: of a worker process; else None.
        lock: the lock by which a worker's supervisor holds a Store that is a file.

    Raises:
        ConfigError: a URL can't be used, or a package that its adapter needs is missing.
        StoreRefused, StoreUnavailable: the database can't be opened.
    """
    node = new_node() if uplink is None else uplink.node
    if config.store.on_server:
        async with _opened_cluster(config, machine, node, close_store_s) as adapters:
            yield adapters
        return
    with _named(_STORE):
        if lock is None:
            store = await SQLiteStore.open(config.store.path)
        else:
            store = await SQLiteStore.join(config.store.path, lock)
    try:
        yield Adapters(
            store=store,
            queue=LocalQueue() if uplink is None else MachineQueue(uplink),
            bus=LocalBus(node) if uplink is None else MachineBus(uplink),
            clock=machine,
            clock_sync=None,
            alive=_nobody if uplink is None else uplink.siblings,
            note=None,
        )
    finally:
        await store.aclose(within_s=close_store_s)
        _log_closed(store.statistics())


def _nobody() -> Collection[str]:
    return ()


def lock_store(config: Config, *, patience_s: float) -> StoreLock | None:
    """Lock a Store that is a file, for the worker processes that are forked from here on;
    None if the Store is a server.

    Raises:
        StoreRefused, StoreUnavailable: it can't be locked.
    """
    if config.store.on_server:
        return None
    with _named(_STORE):
        return lock_database(config.store.path, patience_s=patience_s)


def new_node() -> str:
    """Return a name for a node that no other node has had."""
    return f"node-{secrets.token_hex(4)}"


@asynccontextmanager
async def _opened_cluster(
    config: Config, machine: Clock, node: str, close_store_s: float
) -> AsyncIterator[Adapters]:
    clock = SharedClock()
    # These are made first, so that a wrong URL is refused before a server is asked.
    queue = _queue(config, node, clock)
    bus = _bus(config, node, clock)
    with _installed(_STORE):
        # A daemon that is alone lacks these packages, and should not wait for the import.
        from taskd.stores.mysql.store import MySQLStore  # noqa: PLC0415 - see above
        from taskd.stores.mysql.target import parse_mysql_url  # noqa: PLC0415 - see above
    with _named(_STORE):
        target = parse_mysql_url(config.store.url)
        store = await MySQLStore.open(target, durability=config.store.durability)
    try:
        clock_sync = ClockSync(store.time_ms, clock, machine)
        await clock_sync.start()
        if (unready := clock_sync.unready()) is not None:
            raise StoreRefused(unready)
        yield Adapters(
            store=store,
            queue=queue,
            bus=bus,
            clock=clock,
            clock_sync=clock_sync,
            alive=_nobody,  # a node shows that it lives only by extending its leases
            note=store.durability_note,
        )
    finally:
        await store.aclose(within_s=close_store_s)


def check(config: Config) -> None:
    """Refuse what `opened` would refuse, as far as that shows without a server.

    Raises:
        ConfigError, StoreRefused, StoreUnavailable: as `opened`.
    """
    if not config.store.on_server:
        with _named(_STORE):
            check_file(config.store.path)
        return
    _queue(config, "check", SharedClock())
    _bus(config, "check", SharedClock())
    with _installed(_STORE):
        importlib.import_module("taskd.stores.mysql.store")
        from taskd.stores.mysql.target import parse_mysql_url  # noqa: PLC0415 - see `_opened_cluster`
    with _named(_STORE):
        parse_mysql_url(config.store.url)


async def migrate(config: Config) -> tuple[int, int]:
    """Bring the tables of the cluster's Store to the newest version; returns the version
    before (0: there were no tables) and after.

    Raises:
        ConfigError, StoreRefused, StoreUnavailable: as `opened`. Steps done so far are kept,
            and another call does the rest.
    """
    with _installed(_STORE):
        from taskd.stores.mysql.schema import migrate as migrate_mysql  # noqa: PLC0415 - see above
        from taskd.stores.mysql.target import parse_mysql_url  # noqa: PLC0415 - as above
    with _named(_STORE):
        done = await migrate_mysql(parse_mysql_url(config.store.url))
    return done.before, done.now


@asynccontextmanager
async def opened_archive(config: Config, machine: Clock) -> AsyncIterator[Archive]:
    """Open the chosen Store's archive, for moves between Stores. No lease is held on it.

    Raises:
        StoreRefused: nodes are at work on the Store, or it can't be opened at all.
        StoreUnavailable: it can't be opened now.
    """
    if config.store.on_server:
        async with _opened_cluster_archive(config) as shared:
            yield shared
        return
    with _named(_STORE):
        store = await SQLiteStore.open(config.store.path)
    try:
        await reclaim(store, now=machine.now_ms())
        yield store.archive()
    finally:
        await store.aclose()


@asynccontextmanager
async def _opened_cluster_archive(config: Config) -> AsyncIterator[Archive]:
    with _installed(_STORE):
        from taskd.stores.mysql.store import MySQLStore  # noqa: PLC0415 - see `_opened_cluster`
        from taskd.stores.mysql.target import parse_mysql_url  # noqa: PLC0415 - as above
    with _named(_STORE):
        target = parse_mysql_url(config.store.url)
        store = await MySQLStore.open(target, durability=config.store.durability)
    try:
        # Expired leases of dead nodes are reaped, as a running node would do.
        await reclaim(store, now=await store.time_ms(), expired=True)
        archive = store.archive()
        if running := await archive.running():
            raise StoreRefused(
                f"{_STORE}: nodes are at work on {running} tasks: stop them all; a node that "
                f"died loses its tasks after [worker] lease ({config.worker.lease} s)"
            )
        yield archive
    finally:
        await store.aclose()


def _log_closed(done: SQLiteStatistics) -> None:
    """Log how long the Store's one writer was at work, by which an operator sizes a disk."""
    log_event(
        logger,
        logging.INFO,
        "store closed",
        store_writes=done.writes,
        store_batches=done.batches,
        store_failures=done.failures,
        store_busy_s=round(done.busy_s, 3),
    )


def _queue(config: Config, node: str, clock: Clock) -> Queue:
    if config.queue.url == "local:":
        return LocalQueue()
    with _installed(_QUEUE):
        from taskd.queues.nsq.queue import NsqQueue  # noqa: PLC0415 - see `_opened_cluster`
        from taskd.queues.nsq.target import parse_nsq_url  # noqa: PLC0415 - as above
    with _named(_QUEUE):
        return NsqQueue(parse_nsq_url(config.queue.url), clock=clock, node=node)


def _bus(config: Config, node: str, clock: Clock) -> Bus:
    with _installed(_BUS):
        from taskd.buses.redis.bus import RedisBus  # noqa: PLC0415 - see `_opened_cluster`
        from taskd.buses.redis.target import parse_redis_url  # noqa: PLC0415 - as above
    with _named(_BUS):
        return RedisBus(parse_redis_url(config.bus.url), node=node, clock=clock)


@contextmanager
def _installed(key: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(f"{key}: {error.name} is not installed: {_INSTALL}") from error


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Put the configuration's key before the message of an error."""
    try:
        yield
    except InvalidInput as error:
        raise ConfigError(f"{key}: {error}") from error
    except StoreRefused as error:
        raise StoreRefused(f"{key}: {error}") from error

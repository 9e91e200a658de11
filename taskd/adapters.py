"""Which adapters the configuration chooses: its three URLs → Store, Queue, Bus."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from taskd.buses.local import LocalBus
from taskd.clock import Clock
from taskd.config import Config
from taskd.errors import ConfigError, StoreRefused
from taskd.janitor import reclaim
from taskd.ports import Archive, Bus, Queue, Store
from taskd.queues.local import LocalQueue
from taskd.stores.sqlite import SQLiteStore
from taskd.timekeeper import Timekeeper


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapters:
    """What a node is put together from."""

    store: Store
    queue: Queue
    bus: Bus
    clock: Clock
    """What due times and leases are judged by."""
    timekeeper: Timekeeper | None
    """Keeps the clock, where it is the Store's; None for a daemon that is alone."""
    note: str | None
    """What an operator chose and should not forget."""

    @property
    def shared(self) -> bool:
        """Whether other nodes work on the same Store."""
        return self.timekeeper is not None


@asynccontextmanager
async def opened(
    config: Config, machine: Clock, *, close_store_s: float
) -> AsyncIterator[Adapters]:
    """The adapters, the Store opened; it is closed within ``close_store_s`` seconds.
    The other two do their work in `Queue.run` and `Bus.serve`.

    Raises:
        ConfigError: a URL can't be used, or what its adapter needs is not installed.
        StoreRefused, StoreUnavailable: the database can't be opened.
    """
    node = f"node-{secrets.token_hex(4)}"
    if config.store.shared:
        raise ConfigError("[store] url: the cluster's adapters are not in this version")
    with _named("[store] url"):
        store = await SQLiteStore.open(config.store.path)
    try:
        yield Adapters(
            store=store,
            queue=LocalQueue(),
            bus=LocalBus(node),
            clock=machine,
            timekeeper=None,
            note=None,
        )
    finally:
        await store.aclose(within_s=close_store_s)


@asynccontextmanager
async def opened_archive(config: Config, machine: Clock) -> AsyncIterator[Archive]:
    """What moves between stores, of the Store that is chosen; no lease is held on it.

    Raises:
        StoreRefused: nodes are at work on it, or it can't be opened at all.
        StoreUnavailable: it can't be opened now.
    """
    if config.store.shared:
        raise ConfigError("[store] url: the cluster's adapters are not in this version")
    with _named("[store] url"):
        store = await SQLiteStore.open(config.store.path)
    try:
        await reclaim(store, now=machine.now_ms())
        yield store.archive()
    finally:
        await store.aclose()


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Say which key is meant."""
    try:
        yield
    except StoreRefused as error:
        raise StoreRefused(f"{key}: {error}") from error

"""The engine of one node: its parts, put together over a Store, a Queue and a Bus.

::

    timer ── Queue ── dispatcher ── execution ── delivery
                          ▲
    janitor ── leases ────┴── kept alive, and ended where a node has died
       └────── retention, set_back

The parts are the same in the daemon, which passes adapters and bounds of its configuration,
and in tests, which pass adapters in memory and a delivery of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import trio

from taskd.clock import FineClock
from taskd.delivery.attempt import Delivery
from taskd.delivery.discretion import Discretion
from taskd.delivery.transport import parse_target
from taskd.domain.model import DueTask
from taskd.engine.app_changes import AppChanges
from taskd.engine.contents import Contents
from taskd.engine.dispatcher import Dispatcher
from taskd.engine.execution import Executor
from taskd.engine.janitor import Janitor
from taskd.engine.leases import LeaseKeeper
from taskd.engine.pace import START
from taskd.engine.registry import Registry
from taskd.engine.retention import Retention
from taskd.engine.set_back import SetBack
from taskd.engine.slots import Slots
from taskd.engine.timer import Timer
from taskd.ports.bus import Bus
from taskd.ports.queue import Queue
from taskd.ports.store import Store
from taskd.runtime.cleanup_scopes import CleanupScopes
from taskd.runtime.pause import CoarsePause, Pause


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """How much one node does at once, and how long it keeps tasks that have ended."""

    max_running: int
    """Attempts that may be under way."""
    max_per_origin: int
    """Attempts that may be under way to one origin."""
    max_bytes: int
    """Bytes of contents that may be in memory for attempts."""
    lease_ms: int
    finished_days: int
    """How long tasks are kept that have ended."""
    nonce_steady_s: float = 600.0
    """How long a wall clock that was set has to run evenly before nonces are forgotten by
    it."""
    start_at: int = START
    """Attempts at once to an origin of which nothing is known."""


class Engine:
    """See the module.

    Args:
        store, queue, bus, clock: see their ports.
        delivery: makes attempts.
        bounds: see `Bounds`.
        clustered: other nodes work on this Store that can't know whether this one lives.
        alive: returns the other nodes that live for certain; None while that is not known.
        clock_unready: returns why the clock can't be relied on, or None.
        discretion: decides what an inspection hides; None: nothing.
        pause: what the timer sleeps by; None: Trio's clock.
        sweep_from: at which part of a backlog the timer's sweep begins, from 0 to 1.
        tidy: does small chores of the delivery and others; called every second.
    """

    def __init__(
        self,
        *,
        store: Store,
        queue: Queue,
        bus: Bus,
        clock: FineClock,
        delivery: Delivery,
        bounds: Bounds,
        clustered: bool = False,
        alive: Callable[[], Collection[str] | None] = lambda: (),
        clock_unready: Callable[[], str | None] = lambda: None,
        discretion: Discretion | None = None,
        pause: Pause | None = None,
        sweep_from: float = 0.0,
        tidy: Callable[[], None] = lambda: None,
    ) -> None:
        self.store = store
        self.queue = queue
        self.bus = bus
        self.clock = clock
        self._clock_unready = clock_unready
        self.registry = Registry()
        self.cleanup_scopes = CleanupScopes()
        self.slots = Slots(bounds.max_running, bounds.max_per_origin, start_at=bounds.start_at)
        self.contents = Contents(bounds.max_bytes)
        self.timer = Timer(
            store=store,
            queue=queue,
            bus=bus,
            clock=clock,
            pause=CoarsePause() if pause is None else pause,
            sweep_from=sweep_from,
        )
        self.executor = Executor(
            store=store,
            delivery=delivery,
            clock=clock,
            schedule=self.schedule,
            contents=self.contents,
        )
        self.dispatcher = Dispatcher(
            store=store,
            queue=queue,
            clock=clock,
            executor=self.executor,
            registry=self.registry,
            node=bus.node,
            slots=self.slots,
            contents=self.contents,
            origin_of=lambda url: parse_target(url).origin,
            lease_ms=bounds.lease_ms,
            clustered=clustered,
            discretion=discretion,
        )
        self.app_changes = AppChanges(store=store, bus=bus, dispatcher=self.dispatcher)
        self.leases = LeaseKeeper(
            store=store,
            clock=clock,
            registry=self.registry,
            schedule=self.schedule,
            lease_ms=bounds.lease_ms,
            clustered=clustered,
            alive=alive,
        )
        self.retention = Retention(
            store=store,
            clock=clock,
            finished_days=bounds.finished_days,
            nonce_steady_s=bounds.nonce_steady_s,
            clock_unready=clock_unready,
        )
        self.janitor = Janitor(
            clock,
            leases=self.leases,
            retention=self.retention,
            set_back=SetBack(
                store=store, clock=clock, schedule=self.schedule, leads=bus.leads_timer
            ),
            tidy=tidy,
        )

    def schedule(self, task: DueTask) -> None:
        """Have a durable task begun when it is due."""
        if task.due_at <= self.clock.now_ms():
            self.queue.publish((task,))
        else:
            self.timer.offer(task)

    def end_by(self, latest: float) -> None:
        """Let nothing wait beyond this moment that no cancel reaches: neither a write that has
        a deadline, nor a cleanup scope. By `trio.current_time`."""
        self.store.end_by(latest)
        self.cleanup_scopes.end_by(latest)

    def unready(self) -> str | None:
        """Why work does not start on time, or None."""
        return self._clock_unready() or self.timer.unready()

    async def start(self, nursery: trio.Nursery) -> None:
        """Start the Bus, then the Queue, then the parts that need them. They run until the
        nursery is cancelled."""
        await self.retention.learn_time()
        await nursery.start(self.bus.serve, self.dispatcher.handle)
        await nursery.start(self.queue.run)
        await nursery.start(self.dispatcher.run)
        nursery.start_soon(self.app_changes.run)
        await nursery.start(self.timer.run)
        await nursery.start(self.janitor.run)

"""Extends a node's leases while their executions live, and reaps leases that no node works
under any more.

Each step is one transaction of the Store. All nodes may do it at once, and a node may be
killed anywhere in it: the next step does what is left.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Sequence

import trio

from taskd.clock import Clock
from taskd.domain.model import DueTask, Lease, ReapedTask, TaskState
from taskd.engine.registry import Ending, Registry, safe_until
from taskd.errors import StoreUnavailable
from taskd.ports.store import Store
from taskd.runtime.logs import log_event
from taskd.runtime.logs.task_log import log_failed, naming

logger = logging.getLogger("taskd.janitor")

_REAP_BATCH = 500
_EXTEND_BATCH = 500
"""Leases per transaction, so that other writes come in between."""
_LEASE_PARTS = 3
_GRACE_S = 1.0
_AFTER_PAUSE_S = 5.0
"""How long a node that was stopped for a while reaps nothing, so that other nodes can extend
their leases first."""


async def reclaim(store: Store, *, now: int, expired: bool = False) -> int:
    """End every lease, as a node that is alone does at its start: its predecessor is dead,
    and has abandoned its attempts. Returns how many leases were ended.

    Args:
        store: holds the leases.
        now: the moment of their end.
        expired: end only those that have expired.

    Raises:
        StoreUnavailable: some may have been ended.
    """
    total = 0
    while True:
        reaped = await store.reap(
            now=now, expired_at=now if expired else None, exclude=(), limit=_REAP_BATCH
        )
        total += len(reaped)
        await _tell_reaped(store, reaped)
        if len(reaped) < _REAP_BATCH:
            return total


class LeaseKeeper:
    """See the module.

    Args:
        store, clock: see their ports.
        registry: the executions whose leases are this node's.
        schedule: is told of tasks that are to be attempted again.
        lease_ms: length of a lease.
        clustered: other nodes work on this Store; see `Dispatcher`.
        alive: returns the other nodes that live for certain, whose leases are not reaped
            however long ago they expired; None while that is not known: no lease is.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        registry: Registry,
        schedule: Callable[[DueTask], None],
        lease_ms: int,
        clustered: bool,
        alive: Callable[[], Collection[str] | None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._registry = registry
        self._schedule = schedule
        self._lease_ms = lease_ms
        self._clustered = clustered
        self._alive = alive
        self._reaps_from = float("-inf")
        self._paused_until = float("-inf")

    @property
    def extend_every_s(self) -> float:
        """How often leases have to be extended."""
        return self._lease_ms / 1000 / _LEASE_PARTS

    async def extend_leases(self) -> None:
        """Extend the leases of this node's executions. End executions whose lease is lost,
        and those with a cancel request in the Store whose signal did not arrive."""
        leases = [execution.lease for execution in self._registry if execution.lease]
        for first in range(0, len(leases), _EXTEND_BATCH):
            await self._extend(leases[first : first + _EXTEND_BATCH])

    async def _extend(self, leases: Sequence[Lease]) -> None:
        expires_at = self._clock.now_ms() + self._lease_ms
        asked_at = trio.current_time()
        extended = await self._store.extend(leases, expires_at=expires_at)
        for lease in leases:
            execution = self._registry.get(lease.task_id)
            if execution is None or execution.lease is None:
                continue
            if execution.lease.token != lease.token:
                continue
            if lease.task_id in extended.lost:
                execution.end(Ending.LEASE_LOST)
                continue
            execution.lease = dataclasses.replace(execution.lease, expires_at=expires_at)
            # An extension asked for before a pause may have run out during it, and does
            # not say whether the lease is lost: see `note_pause`.
            if self._clustered and asked_at >= self._paused_until:
                execution.rely_on_lease(safe_until(asked_at, self._lease_ms))
            if lease.task_id in extended.cancel_requested:
                execution.end(Ending.CANCEL)

    async def reap(self) -> None:
        """End expired leases, except those of tasks that live on this node."""
        if self._clustered and trio.current_time() < self._reaps_from:
            return
        alive = self._alive()
        if alive is None:
            return
        now = self._clock.now_ms()
        await self._reap(now=now, expired_at=now, alive=alive)

    def note_step(self) -> None:
        """Note that the wall clock was set: reap nothing until live nodes have extended their
        leases, which the former clock dated and which may look expired until then."""
        self._reaps_from = trio.current_time() + self.extend_every_s + _GRACE_S

    def note_pause(self) -> None:
        """Note that this process was stopped for a while, perhaps with other nodes: reap
        nothing until all of them can have extended their leases. Attempts that have sent
        something go on until it is known whether their lease is lost. Other attempts whose
        deadline has passed end, and send nothing any more."""
        if not self._clustered:
            return
        now = self._paused_until = trio.current_time()
        self._reaps_from = max(self._reaps_from, now + _AFTER_PAUSE_S)
        for execution in self._registry:
            if execution.progress.sent and execution.lease_until < now + _AFTER_PAUSE_S:
                execution.rely_on_lease(now + _AFTER_PAUSE_S)

    async def reap_node(self, node: str) -> None:
        """End the leases of a node that is known to be dead, without waiting until
        they expire."""
        while await self._reap(now=self._clock.now_ms(), expired_at=None, node=node):
            pass

    async def _reap(
        self,
        *,
        now: int,
        expired_at: int | None,
        node: str | None = None,
        alive: Collection[str] = (),
    ) -> bool:
        """Reap one batch; returns whether there may be more."""
        reaped = await self._store.reap(
            now=now,
            expired_at=expired_at,
            exclude=self._registry.task_ids(),
            limit=_REAP_BATCH,
            node=node,
            alive=alive,
        )
        for task in reaped:
            if task.due_at is not None:
                self._schedule(
                    DueTask(task_id=task.task_id, app_id=task.app_id, due_at=task.due_at)
                )
        await _tell_reaped(self._store, reaped)
        return len(reaped) == _REAP_BATCH


async def _tell_reaped(store: Store, reaped: Sequence[ReapedTask]) -> None:
    for task in reaped:
        try:
            app = await store.app_by_id(task.app_id)
        except StoreUnavailable:
            app = None
        named = naming(task.task_id, task.task_no, app)
        log_event(
            logger,
            logging.WARNING,
            "an attempt was abandoned by its node",
            **named,
            attempt=task.attempt,
            node=task.node,
            state=task.state.value,
        )
        if task.state is TaskState.FAILED:
            log_failed(named, attempts=task.attempt, error=f"its node {task.node} was lost")

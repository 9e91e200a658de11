"""The janitor: keeps leases alive, ends dead ones, and tidies what is past.

Every part is safe to run on every node at once, and to be killed anywhere: each
step is one transaction of the Store, and what was not done is done at the next.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence

import trio

from taskd.clock import Clock
from taskd.domain.model import DueTask, Lease, ReapedTask, TaskState
from taskd.engine.agreed_time import AgreedTime, ClockSteps
from taskd.engine.registry import Ending, Registry, safe_until
from taskd.errors import StoreUnavailable
from taskd.ports.store import Store
from taskd.runtime.logs import log_event
from taskd.runtime.logs.task_log import log_failed, naming
from taskd.runtime.pause_detector import noticed
from taskd.runtime.ticks import next_tick

logger = logging.getLogger("taskd.janitor")

_TICK_S = 1.0
_REAP_BATCH = 500
_EXTEND_BATCH = 500
"""Leases of one transaction: other writes come in between."""
_PURGE_BATCH_MIN, _PURGE_BATCH_MAX = 25, 100
_PURGE_TAKES_S = 0.01
"""What one step of a purge is to take. Whoever writes meanwhile waits so long; a purge
that is under way waits behind others in its turn, so a busy store is purged gently."""
_NONCE_BATCH = 2_000
_DAY_MS = 86_400_000
_LEASE_PARTS = 3
_AFTER_PAUSE_S = 5.0
"""For which a node that was stopped waits until leases have been extended again."""
_PURGE_PAUSE_S = 0.02
_PURGE_STEADY_S = 3_600.0
"""How long a wall clock that was set has to run evenly before tasks are purged by it."""

_BRING_FORWARD_BATCH = 500


async def reclaim(store: Store, *, now: int, expired: bool = False) -> int:
    """End every lease there is, as a node that is alone does at its start: its
    predecessor is dead, so what that was doing was abandoned. Returns how many.

    Args:
        store: whose.
        now: the time by which they end.
        expired: only those that have expired.

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


class Janitor:
    """Runs the chores of a node.

    Args:
        store, clock: see their ports.
        registry: the executions whose leases are this node's.
        schedule: told of tasks that are to be attempted again.
        lease_ms: length of a lease.
        finished_days: how long tasks are kept after their end.
        tidy: done once a second: closes connections that have been idle for too long, and
            tells of what was only counted.
        nonce_hold_s: how long a wall clock that was set has to run evenly before nonces
            are forgotten by it. After twice the window of timestamps, those that were
            used before are past their use by any clock.
        leads: whether this node does what one node does for all.
        clock_unready: why the Store's clock and this machine's disagree, or None;
            nothing is deleted while they do.
        clustered: other nodes work on this Store; see `Dispatcher`.
        alive: the other nodes that live for certain, None while that is not known; of
            these no lease is ended, however long ago it expired.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        registry: Registry,
        schedule: Callable[[DueTask], None],
        lease_ms: int,
        finished_days: int,
        tidy: Callable[[], None],
        nonce_steady_s: float = 600.0,
        leads: Callable[[], bool] = lambda: True,
        clock_unready: Callable[[], str | None] = lambda: None,
        clustered: bool = False,
        alive: Callable[[], Collection[str] | None] = lambda: (),
    ) -> None:
        self._store = store
        self._clock = clock
        self._registry = registry
        self._schedule = schedule
        self._lease_ms = lease_ms
        self._clustered = clustered
        self._alive = alive
        self._kept_ms = finished_days * _DAY_MS
        self._tidy = tidy
        self._leads = leads
        self._clock_unready = clock_unready
        self._steps = ClockSteps(clock)
        self._purge_time = AgreedTime(clock, steady_s=_PURGE_STEADY_S)
        self._nonce_time = AgreedTime(clock, steady_s=nonce_steady_s)
        self._set_back = True
        """Whether waiting tasks may have been dated by a clock that was ahead: one may
        have been set back while this node was not there."""
        self._reaps_from = float("-inf")
        self._paused_until = float("-inf")
        self.failures = 0
        """Chores that failed, since the start."""

    async def learn_time(self) -> None:
        """See what the Store last wrote. To be done before this node writes.

        Raises:
            StoreUnavailable: it can't be known now.
        """
        written = await self._store.last_moment()
        self._purge_time.confirm(written)
        self._nonce_time.confirm(written)

    def keep(self, finished_days: int) -> None:
        """Change how long tasks are kept after their end."""
        self._kept_ms = finished_days * _DAY_MS

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do the chores until cancelled."""
        with noticed(self.note_pause):
            await self._run(task_status)

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            every = self._lease_ms / 1000 / _LEASE_PARTS
            nursery.start_soon(self._repeat, every, self.extend_leases)
            nursery.start_soon(self._repeat, _TICK_S, self.reap)
            nursery.start_soon(self._repeat, _TICK_S, self.bring_forward)
            nursery.start_soon(self._repeat, _TICK_S, self.tidy)
            nursery.start_soon(self._repeat, 5.0, self.purge_nonces)
            nursery.start_soon(self._repeat, 60.0, self.purge_tasks)
            task_status.started()

    async def _repeat(self, every: float, chore: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await chore()
            except StoreUnavailable as error:
                self.failures += 1
                name = getattr(chore, "__name__", "chore")
                log_event(logger, logging.ERROR, "a chore failed", chore=name, reason=str(error))
                # A lease that could not be extended may not last until the next turn.
                await trio.sleep(min(every, _TICK_S))
            else:
                await trio.sleep_until(next_tick(every))

    async def extend_leases(self) -> None:
        """Extend the leases of this node's executions; end those whose lease is
        lost or which are under a cancel wish that the signal did not bring."""
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
            # One that was asked for before a pause has run out meanwhile, and says
            # nothing of whether the lease is lost: see `note_pause`.
            if self._clustered and asked_at >= self._paused_until:
                execution.scope.deadline = safe_until(asked_at, self._lease_ms)
            if lease.task_id in extended.cancel_requested:
                execution.end(Ending.CANCEL)

    async def reap(self) -> None:
        """End expired leases, except of what lives on this node."""
        self._look_at_clock()
        # Leases were dated by the clock that was set, so that those of live nodes may
        # look expired until they are extended the next time.
        if self._clustered and trio.current_time() < self._reaps_from:
            return
        alive = self._alive()
        if alive is None:
            return
        now = self._clock.now_ms()
        await self._reap(now=now, expired_at=now, alive=alive)

    def note_pause(self) -> None:
        """This process was stopped for a while, perhaps with others: let all of them
        extend their leases before any is ended, and attempts that have sent something
        go on until it is known whether theirs are lost. The others, whose deadline has
        passed, send nothing any more."""
        if not self._clustered:
            return
        now = self._paused_until = trio.current_time()
        self._reaps_from = max(self._reaps_from, now + _AFTER_PAUSE_S)
        for execution in self._registry:
            if execution.progress.sent and execution.scope.deadline < now + _AFTER_PAUSE_S:
                execution.scope.deadline = now + _AFTER_PAUSE_S

    async def bring_forward(self) -> None:
        """Where the clock was set back: bring forward what was dated by it before and
        waits too long by now. Done once at the start as well."""
        self._look_at_clock()
        if not self._set_back or not self._leads():
            return
        self._set_back = False
        after: DueTask | None = None
        number = 0
        try:
            while True:
                brought = await self._store.bring_forward(
                    now=self._clock.now_ms(), after=after, limit=_BRING_FORWARD_BATCH
                )
                for task in brought.tasks:
                    self._schedule(task)
                number += len(brought.tasks)
                after = brought.reached
                if after is None:
                    break
                await trio.sleep(_PURGE_PAUSE_S)
        except BaseException:
            self._set_back = True
            raise
        if number:
            log_event(
                logger,
                logging.WARNING,
                "the clock was set back: tasks that waited by the wrong time are brought forward",
                tasks=number,
            )

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
        """Whether there may be more."""
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

    def _time_of(self, agreed: AgreedTime) -> int | None:
        # Asked in any case, so that it notices a step.
        now = agreed.now_ms()
        return None if self._clock_unready() is not None else now

    def _look_at_clock(self) -> None:
        """Notice, and tell, that the wall clock was set."""
        stepped_ms = self._steps.look()
        if not stepped_ms:
            return
        if stepped_ms < 0:
            self._set_back = True
        self._reaps_from = trio.current_time() + self._lease_ms / 1000 / _LEASE_PARTS + _TICK_S
        side = "back" if stepped_ms < 0 else "forward"
        log_event(
            logger,
            logging.WARNING,
            f"the wall clock was set {side}",
            by_s=round(abs(stepped_ms) / 1000, 1),
        )

    async def tidy(self) -> None:
        """Do the small chores that take no time."""
        self._tidy()

    async def purge_tasks(self) -> None:
        """Delete tasks that ended longer ago than they are kept, as many at a time as
        hold up no create for long."""
        now = self._time_of(self._purge_time)
        if now is None:
            return
        finished_before = now - self._kept_ms
        limit = _PURGE_BATCH_MIN
        while True:
            began = trio.current_time()
            purged = await self._store.purge(finished_before=finished_before, limit=limit)
            if purged < limit:
                return
            took = trio.current_time() - began
            limit = next_purge_batch(limit, took)
            # Others have the writer for most of the time.
            await trio.sleep(max(_PURGE_PAUSE_S, 2 * took))

    async def purge_nonces(self) -> None:
        """Forget nonces that have expired."""
        now = self._time_of(self._nonce_time)
        if now is None:
            return
        while True:
            if await self._store.purge_nonces(now=now, limit=_NONCE_BATCH) < _NONCE_BATCH:
                return
            await trio.sleep(_PURGE_PAUSE_S)


def next_purge_batch(limit: int, took_s: float) -> int:
    """How many tasks the next step of a purge may delete, after one of ``limit`` that
    took so long: fewer at once where that was too long, and slowly more again."""
    if took_s > _PURGE_TAKES_S:
        return max(limit // 2, _PURGE_BATCH_MIN)
    return min(limit + _PURGE_BATCH_MIN, _PURGE_BATCH_MAX)


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

"""The Store port in memory: the model for the other stores, and for tests of a Store's users.

The contract suite holds it to every promise of the port but durability. It uses no threads, so
it runs on Trio's virtual clock. Every method lets other Trio tasks run first and then does its
work in one piece.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import trio

from taskd.domain.model import (
    SHORT_CONTENT,
    WHOLE,
    App,
    Attempt,
    CancelCertainty,
    CancelDecision,
    DueTask,
    ExistingTask,
    Lease,
    LeasedTask,
    NewTask,
    NonceUse,
    Outcome,
    ReapedTask,
    Settlement,
    Shard,
    Suspect,
    Suspects,
    TaskDetail,
    TaskState,
)
from taskd.domain.transitions import (
    KINDS,
    MAX_LEASE_MS,
    RECENT_DEATHS_MS,
    Ended,
    NodeEnd,
    RunningTask,
    WaitingTask,
    abandoned_attempt,
    brought_forward,
    check_settlement,
    cleared,
    reached_in,
    reaped,
    settled,
    waiting_cancel_certainty,
)
from taskd.errors import BatchRefused, DuplicateTaskNo, LeaseLost, NonceUsed, StoreUnavailable
from taskd.ports.store import BroughtForward, ExtendResult
from taskd.stores.deduplication import RefusedWhole, TaskKey, deduplicate, key_of
from taskd.stores.write_requests import Submission


@dataclass(slots=True)
class _Row:
    id: int
    new: NewTask
    due_at: int | None = None
    state: TaskState = TaskState.SCHEDULED
    attempt: int = 0
    failures: int = 0
    abandoned: int = 0
    sent: bool = False
    token: int = 0
    node: str | None = None
    leased_at: int = 0
    lease_expires_at: int = 0
    cancel_requested: bool = False
    cancel_certainty: CancelCertainty | None = None
    finished_at: int | None = None
    attempts: list[Attempt] = field(default_factory=list)

    def running(self) -> RunningTask:
        return RunningTask(
            task_id=self.id,
            app_id=self.new.app_id,
            token=self.token,
            node=self.node or "",
            leased_at=self.leased_at,
            attempt=self.attempt,
            failures=self.failures,
            abandoned=self.abandoned,
            sent=self.sent,
            cancel_requested=self.cancel_requested,
        )


class MemoryStore:
    """The Store port in plain dicts."""

    def __init__(self) -> None:
        self._closed = False
        self._latest = math.inf
        self._apps: dict[int, App] = {}
        self._apps_by_key: dict[str, App] = {}
        self._tasks: dict[int, _Row] = {}
        self._task_nos: dict[tuple[int, str], int] = {}
        self._last_id = 0
        self._due: dict[int, list[tuple[int, int]]] = {}
        self._running: dict[int, _Row] = {}
        self._suspects: dict[int, int] = {}
        """By task id: how often in a row it was abandoned while nearly alone in flight."""
        self._in_flight: dict[str, int] = {}
        """By dead node: how many leases it had when the first of them was reaped."""
        self._died_at: dict[str, int] = {}
        self._stopping: set[str] = set()
        self._finished: list[tuple[int, int]] = []
        self._nonces: set[tuple[str, str]] = set()
        self._nonce_ends: list[tuple[int, tuple[str, str]]] = []

    async def create_app(self, app: App, nonce: NonceUse | None = None) -> App:
        """See `Store.create_app`."""
        await self._enter()
        self._use(nonce)
        kept = dataclasses.replace(app, id=len(self._apps) + 1)
        self._apps[kept.id] = self._apps_by_key[kept.app_key] = kept
        return kept

    async def app_by_key(self, app_key: str) -> App | None:
        """See `Store.app_by_key`."""
        await self._enter()
        return self._apps_by_key.get(app_key)

    def known_app(self, app_key: str) -> App | None:
        """See `Store.known_app`."""
        return self._apps_by_key.get(app_key)

    async def apps_by_key(self, app_keys: Collection[str]) -> Mapping[str, App]:
        """See `Store.apps_by_key`."""
        await self._enter()
        return {key: self._apps_by_key[key] for key in app_keys if key in self._apps_by_key}

    async def app_by_id(self, app_id: int) -> App | None:
        """See `Store.app_by_id`."""
        await self._enter()
        return self._apps.get(app_id)

    def forget_app(self, app_id: int) -> None:
        """See `Store.forget_app`: nothing is cached."""

    async def refresh_apps(self) -> Collection[int]:
        """See `Store.refresh_apps`: nothing is cached."""
        await self._enter()
        return ()

    async def create_task(self, task: NewTask, nonce: NonceUse | None = None) -> int:
        """See `Store.create_task`."""
        await self._enter()
        self._use(nonce)
        added = self._add(task)
        if isinstance(added, ExistingTask):
            raise DuplicateTaskNo(added)
        return added

    async def create_tasks(
        self,
        tasks: Sequence[NewTask],
        nonce: NonceUse | None = None,
        *,
        atomic: bool = False,
        within_s: float | None = None,
    ) -> list[int | ExistingTask]:
        """See `Store.create_tasks`."""
        await self._enter(within_s)
        self._use(nonce)
        if atomic:
            (whole,) = deduplicate([Submission(tasks, None, atomic)], self._task_nos)
            if isinstance(whole, RefusedWhole):
                raise BatchRefused(whole.position, self._existing(whole.key))
        return [self._add(task) for task in tasks]

    async def use_nonce(self, nonce: NonceUse) -> None:
        """See `Store.use_nonce`."""
        await self._enter()
        self._use(nonce)

    async def task_detail(
        self, app_id: int, *, task_id: int | None = None, task_no: str | None = None
    ) -> TaskDetail | None:
        """See `Store.task_detail`."""
        await self._enter()
        row = self._found(app_id, task_id, task_no)
        return None if row is None else self._detail(row)

    async def find_due(
        self,
        *,
        until: int,
        after: int | None = None,
        limit_per_app: int,
        skip_apps: Collection[int] = (),
        shard: Shard = WHOLE,
    ) -> list[DueTask]:
        """See `Store.find_due`."""
        await self._enter()
        found: list[DueTask] = []
        limit = limit_per_app * shard.of
        for app_id, waiting in self._due.items():
            if app_id in skip_apps:
                continue
            first = 0 if after is None else bisect_left(waiting, (after + 1, 0))
            last = bisect_left(waiting, (until + 1, 0))
            found += (
                DueTask(task_id=task_id, app_id=app_id, due_at=due_at)
                for due_at, task_id in islice(waiting, first, max(first, min(last, first + limit)))
                if shard.has(task_id)
            )
        return found

    async def lease(
        self,
        task_ids: Sequence[int],
        *,
        node: str,
        now: int,
        expires_at: int,
        suspects: bool = True,
        room: int | None = None,
    ) -> list[LeasedTask]:
        """See `Store.lease`."""
        await self._enter()
        leased = []
        for task_id in task_ids:
            row = self._tasks.get(task_id)
            if row is None or row.due_at is None or row.due_at > now:
                continue
            if task_id in self._suspects and not suspects:
                continue
            due_at = row.due_at
            self._end_wait(row, due_at)
            self._run(row, node=node, now=now, expires_at=expires_at)
            lease = Lease(task_id=row.id, token=row.token, node=node, expires_at=expires_at)
            task = self._leased(row, lease, due_at)
            length = len(task.content)
            if room is not None and length > SHORT_CONTENT:
                if length > room:
                    task = dataclasses.replace(task, content=b"", left_bytes=length)
                else:
                    room -= length
            leased.append(task)
        return leased

    async def count_waiting(self, app_id: int, *, limit: int) -> int:
        """See `Store.count_waiting`."""
        await self._enter()
        return min(len(self._due.get(app_id, ())), limit)

    async def content(self, task_id: int) -> bytes | None:
        """See `Store.content`."""
        await self._enter()
        row = self._tasks.get(task_id)
        return None if row is None else row.new.content

    async def find_suspects(self, *, now: int, after: int, limit: int) -> Suspects:
        """See `Store.find_suspects`."""
        await self._enter()
        kinds: list[list[Suspect]] = [[] for _ in KINDS]
        for task_id in sorted(one for one in self._suspects if one > after):
            row = self._tasks[task_id]
            kind = kinds[min(row.abandoned, KINDS[-1]) - 1]
            if row.due_at is not None and row.due_at <= now and len(kind) < limit:
                task = DueTask(task_id=task_id, app_id=row.new.app_id, due_at=row.due_at)
                kind.append(Suspect(task=task, abandoned=row.abandoned))
        waiting = tuple(suspect for kind in kinds for suspect in kind)
        deaths = sum(
            node not in self._stopping and now - RECENT_DEATHS_MS <= at <= now
            for node, at in self._died_at.items()
        )
        return Suspects(waiting=waiting, deaths=deaths if waiting else 0)

    async def note_stopping(self, node: str, *, now: int) -> None:
        """See `Store.note_stopping`."""
        del now
        await self._enter()
        self._stopping.add(node)

    async def extend(self, leases: Sequence[Lease], *, expires_at: int) -> ExtendResult:
        """See `Store.extend`."""
        await self._enter()
        lost, requested = set(), set()
        for lease in leases:
            row = self._held(lease)
            if row is None:
                lost.add(lease.task_id)
                continue
            row.lease_expires_at = expires_at
            if row.cancel_requested:
                requested.add(row.id)
        return ExtendResult(frozenset(lost), frozenset(requested))

    async def settle(self, settlement: Settlement, *, within_s: float | None = None) -> TaskState:
        """See `Store.settle`."""
        check_settlement(settlement)
        await self._enter(within_s)
        row = self._held(settlement.lease)
        if row is None:
            raise LeaseLost(f"the lease of task {settlement.lease.task_id} is not current any more")
        running = row.running()
        ended = settled(running, settlement)
        if cleared(running, ended):
            self._suspects.pop(row.id, None)
        self._end(row, ended, settlement.attempt)
        return row.state

    async def request_cancel(
        self,
        app_id: int,
        task_id: int | None = None,
        *,
        task_no: str | None = None,
        now: int,
        within_s: float | None = None,
    ) -> CancelDecision:
        """See `Store.request_cancel`."""
        await self._enter(within_s)
        row = self._found(app_id, task_id, task_no)
        if row is None:
            return CancelDecision(state=None)
        if row.state is TaskState.RUNNING:
            row.cancel_requested = True
            return CancelDecision(
                state=TaskState.RUNNING, task_id=row.id, task_no=row.new.task_no, node=row.node
            )
        if row.due_at is None:
            return CancelDecision(state=None)
        self._end_wait(row, row.due_at)
        self._suspects.pop(row.id, None)
        row.state = TaskState.CANCELLED
        row.cancel_requested = True
        row.cancel_certainty = waiting_cancel_certainty(sent=row.sent)
        row.finished_at = now
        insort(self._finished, (now, row.id))
        return CancelDecision(
            state=row.state, task_id=row.id, task_no=row.new.task_no, certainty=row.cancel_certainty
        )

    async def reap(
        self,
        *,
        now: int,
        expired_at: int | None,
        exclude: Collection[int],
        limit: int,
        node: str | None = None,
        alive: Collection[str] = (),
    ) -> list[ReapedTask]:
        """See `Store.reap`."""
        await self._enter()
        expired = sorted(
            (row.lease_expires_at, row.id)
            for row in self._running.values()
            if row.id not in exclude
            and (expired_at is None or row.lease_expires_at <= expired_at)
            and node in (None, row.node)
            and row.node not in alive
        )
        rows = [self._running[task_id] for _, task_id in expired[:limit]]
        for dead in {row.node or "" for row in rows}:
            self._died_at.setdefault(dead, now)
            counted = sum(row.node == dead for row in self._running.values())
            self._in_flight[dead] = max(counted, self._in_flight.get(dead, 0))
        return [self._reap(row, now) for row in rows]

    async def bring_forward(self, *, now: int, after: DueTask | None, limit: int) -> BroughtForward:
        """See `Store.bring_forward`."""
        await self._enter()
        for row in self._running.values():
            row.lease_expires_at = min(row.lease_expires_at, now + MAX_LEASE_MS)
        place = (0, 0, 0) if after is None else (after.app_id, after.due_at, after.task_id)
        later = sorted(
            (app_id, due_at, task_id)
            for app_id, waiting in self._due.items()
            for due_at, task_id in waiting
            if due_at > now and (app_id, due_at, task_id) > place
        )
        tasks = [self._waiting(self._tasks[task_id], due) for _, due, task_id in later[:limit]]
        sooner = []
        for task in tasks:
            due_at = brought_forward(task, now=now)
            if due_at is None:
                continue
            row = self._tasks[task.task_id]
            self._end_wait(row, task.due_at)
            self._wait(row, due_at)
            sooner.append(DueTask(task_id=row.id, app_id=task.app_id, due_at=due_at))
        return BroughtForward(tuple(sooner), reached_in(tasks, limit, None))

    async def last_moment(self) -> int | None:
        """See `Store.last_moment`."""
        await self._enter()
        moments = [moment for moment, _ in self._finished[-1:]]
        if self._tasks:
            moments.append(self._tasks[max(self._tasks)].new.created_at)
        return max(moments, default=None)

    async def purge(self, *, finished_before: int, limit: int) -> int:
        """See `Store.purge`."""
        await self._enter()
        count = min(bisect_left(self._finished, (finished_before, 0)), limit)
        for _, task_id in self._finished[:count]:
            row = self._tasks.pop(task_id)
            del self._task_nos[row.new.app_id, row.new.task_no]
        del self._finished[:count]
        return count

    async def purge_nonces(self, *, now: int, limit: int) -> int:
        """See `Store.purge_nonces`."""
        await self._enter()
        count = 0
        while count < limit and self._nonce_ends and self._nonce_ends[0][0] <= now:
            self._nonces.discard(heapq.heappop(self._nonce_ends)[1])
            count += 1
        return count

    def degraded(self) -> None:
        """See `Store.degraded`."""

    async def probe(self) -> None:
        """See `Store.probe`."""
        await self._enter()

    def end_by(self, latest: float) -> None:
        """See `Store.end_by`."""
        self._latest = min(latest, self._latest)

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        self._closed = True
        await trio.lowlevel.checkpoint()

    async def _enter(self, within_s: float | None = None) -> None:
        """Let other tasks run. As nothing takes time here, a deadline is at once or never."""
        if within_s is None:
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()
            if within_s <= 0 or trio.current_time() >= self._latest:
                raise StoreUnavailable("there was no time left to write this: nothing was written")
        if self._closed:
            raise StoreUnavailable("the store is closed")

    def _found(self, app_id: int, task_id: int | None, task_no: str | None) -> _Row | None:
        if task_no is not None:
            task_id = self._task_nos.get((app_id, task_no))
        row = self._tasks.get(task_id) if task_id is not None else None
        return None if row is None or row.new.app_id != app_id else row

    def _existing(self, key: TaskKey) -> ExistingTask | None:
        task_id = self._task_nos.get(key)
        return None if task_id is None else ExistingTask(task_id, self._tasks[task_id].state)

    def _add(self, task: NewTask) -> int | ExistingTask:
        key = key_of(task)
        if (existing := self._existing(key)) is not None:
            return existing
        self._last_id += 1
        row = _Row(self._last_id, task)
        self._tasks[row.id] = row
        self._task_nos[key] = row.id
        if task.lease is None:
            self._wait(row, task.due_at)
        else:
            first = task.lease
            self._run(row, node=first.node, now=first.leased_at, expires_at=first.expires_at)
        return row.id

    def _run(self, row: _Row, *, node: str, now: int, expires_at: int) -> None:
        row.state = TaskState.RUNNING
        row.token += 1
        row.attempt += 1
        row.node, row.leased_at, row.lease_expires_at = node, now, expires_at
        self._running[row.id] = row

    def _use(self, nonce: NonceUse | None) -> None:
        if nonce is None:
            return
        key = (nonce.app_key, nonce.nonce)
        if key in self._nonces:
            raise NonceUsed("the nonce was used before")
        self._nonces.add(key)
        heapq.heappush(self._nonce_ends, (nonce.expires_at, key))

    def _held(self, lease: Lease) -> _Row | None:
        row = self._running.get(lease.task_id)
        return row if row is not None and row.token == lease.token else None

    def _wait(self, row: _Row, due_at: int) -> None:
        row.due_at = due_at
        insort(self._due.setdefault(row.new.app_id, []), (due_at, row.id))

    def _waiting(self, row: _Row, due_at: int) -> WaitingTask:
        return WaitingTask(
            task_id=row.id,
            app_id=row.new.app_id,
            state=row.state,
            due_at=due_at,
            created_at=row.new.created_at,
            ended_at=row.attempts[-1].ended_at if row.attempts else None,
            abandoned=bool(row.attempts) and row.attempts[-1].outcome is Outcome.ABANDONED,
        )

    def _end_wait(self, row: _Row, due_at: int) -> None:
        row.due_at = None
        waiting = self._due[row.new.app_id]
        del waiting[bisect_left(waiting, (due_at, row.id))]
        if not waiting:
            del self._due[row.new.app_id]

    def _end(self, row: _Row, ended: Ended, attempt: Attempt | None) -> None:
        del self._running[row.id]
        row.state, row.finished_at = ended.state, ended.finished_at
        row.attempt, row.failures, row.abandoned = ended.attempt, ended.failures, ended.abandoned
        row.sent, row.cancel_certainty, row.node = ended.sent, ended.cancel_certainty, None
        if attempt is not None:
            row.attempts.append(attempt)
        if ended.due_at is not None:
            self._wait(row, ended.due_at)
        if row.finished_at is not None:
            insort(self._finished, (row.finished_at, row.id))

    def _reap(self, row: _Row, now: int) -> ReapedTask:
        running = row.running()
        attempt = abandoned_attempt(running, now=now)
        node = NodeEnd(running.node in self._stopping, self._in_flight[running.node])
        alone = self._suspects.pop(row.id, 0)
        ended, alone = reaped(running, node, alone=alone, now=now)
        if ended.abandoned and not ended.state.terminal:
            self._suspects[row.id] = alone
        self._end(row, ended, attempt)
        return ReapedTask(
            task_id=row.id,
            task_no=row.new.task_no,
            app_id=row.new.app_id,
            state=row.state,
            due_at=row.due_at,
            node=running.node,
            attempt=attempt.attempt,
        )

    def _leased(self, row: _Row, lease: Lease, due_at: int) -> LeasedTask:
        app, new = self._apps[row.new.app_id], row.new
        return LeasedTask(
            lease=lease,
            app=app,
            task_no=new.task_no,
            name=new.name,
            content=new.content,
            timeout_ms=new.timeout_ms,
            due_at=due_at,
            leased_at=row.leased_at,
            attempt=row.attempt,
            failures=row.failures,
            sent_before=row.sent,
            step=app.step if new.step is None else new.step,
            retry_total=app.retry_total if new.retry_total is None else new.retry_total,
        )

    def _detail(self, row: _Row) -> TaskDetail:
        new = row.new
        retry_total = new.retry_total
        if retry_total is None:
            retry_total = self._apps[new.app_id].retry_total
        return TaskDetail(
            id=row.id,
            app_id=new.app_id,
            task_no=new.task_no,
            name=new.name,
            state=row.state,
            runtime=new.due_at if new.runtime is None else new.runtime,
            due_at=row.due_at,
            timeout_ms=new.timeout_ms,
            attempt=row.attempt,
            retry_total=retry_total,
            created_at=new.created_at,
            finished_at=row.finished_at,
            node=row.node,
            cancel_requested=row.cancel_requested,
            cancel_certainty=row.cancel_certainty,
            attempts=tuple(row.attempts),
        )

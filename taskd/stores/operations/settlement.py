"""Ends leases: settles those of attempts that ended, reaps expired ones and those of dead nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from taskd.domain.model import Attempt, ReapedTask, Settlement, TaskState
from taskd.domain.transitions import (
    AFTER_ALL,
    KINDS,
    Ended,
    RunningTask,
    abandoned_attempt,
    cleared,
    reaped,
    settled,
)
from taskd.errors import LeaseLost, StoreError
from taskd.stores.batching import ROW_BYTES, Operation
from taskd.stores.encoding import AttemptRow, as_text, attempt_row
from taskd.stores.operations.leases import find_running, running_tasks
from taskd.stores.operations.session import Scalar, Session
from taskd.stores.operations.suspects import alone_before, clear, end_of, suspect
from taskd.stores.write_requests import ReapRequest

_NO_TASK = 0
_NO_NODE = ""


@dataclass(slots=True)
class _Endings:
    """The rows to write for the leases that end in one transaction."""

    session: Session
    tasks: list[Sequence[Scalar]] = field(default_factory=list)
    attempts: list[AttemptRow] = field(default_factory=list)
    cleared: list[int] = field(default_factory=list)

    def add(self, task: RunningTask, ended: Ended, attempt: Attempt | None) -> None:
        self.tasks.append(self.session.ended_row(task.app_id, ended))
        if attempt is not None:
            self.attempts.append(attempt_row(task.task_id, attempt))
        if cleared(task, ended):
            self.cleared.append(task.task_id)

    async def write(self) -> None:
        await self.session.execute_many(self.session.END, self.tasks)
        await self.session.execute_many(self.session.ADD_ATTEMPTS, self.attempts)
        await clear(self.session, self.cleared)


async def settle(
    session: Session, settlements: Sequence[Settlement]
) -> list[TaskState | StoreError]:
    """See `Store.settle`."""
    running = await find_running(session, (settlement.lease for settlement in settlements))
    results: list[TaskState | StoreError] = []
    endings = _Endings(session)
    for settlement in settlements:
        lease = settlement.lease
        task = running.get(lease.task_id)
        if task is None or task.token != lease.token:
            results.append(LeaseLost(f"the lease of task {lease.task_id} is not current any more"))
            continue
        del running[lease.task_id]
        ended = settled(task, settlement)
        endings.add(task, ended, settlement.attempt)
        results.append(ended.state)
    await endings.write()
    return results


async def reap(
    session: Session, requests: Sequence[ReapRequest]
) -> list[list[ReapedTask] | StoreError]:
    """See `Store.reap`."""
    return [await _reap(session, request) for request in requests]


async def _reap(session: Session, request: ReapRequest) -> list[ReapedTask]:
    rows = await session.fetch(
        session.FIND_EXPIRED,
        until=AFTER_ALL if request.expired_at is None else request.expired_at,
        node=request.node,
        alive=request.alive or (_NO_NODE,),
        exclude=request.exclude or (_NO_TASK,),
        limit=request.limit,
    )
    task_nos = {row[0]: as_text(row[-1]) for row in rows}
    tasks = running_tasks(rows)
    # Found out before any lease is ended: how many leases a node has shows how it ended.
    nodes = sorted({task.node for task in tasks})
    ends = {node: await end_of(session, node, now=request.now) for node in nodes}
    alone = await alone_before(session, {task.task_id for task in tasks if task.abandoned})
    endings = _Endings(session)
    suspects: list[tuple[int, int, int]] = []
    results = []
    for task in tasks:
        before = alone.get(task.task_id, 0)
        ended, times_alone = reaped(task, ends[task.node], alone=before, now=request.now)
        if ended.abandoned and not ended.state.terminal:
            suspects.append((task.task_id, min(ended.abandoned, KINDS[-1]), times_alone))
        attempt = abandoned_attempt(task, now=request.now)
        endings.add(task, ended, attempt)
        results.append(
            ReapedTask(
                task_id=task.task_id,
                task_no=task_nos[task.task_id],
                app_id=task.app_id,
                state=ended.state,
                due_at=ended.due_at,
                node=task.node,
                attempt=attempt.attempt,
            )
        )
    await endings.write()
    await suspect(session, suspects)
    return results


SETTLE = Operation("settle", settle, lambda _: ROW_BYTES, quick=True, patient=True)
REAP = Operation("reap", reap)

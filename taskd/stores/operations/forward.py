"""Brings forward waiting tasks that were dated by a clock before it was set back.

The waiting tasks are walked through along their index, an application at a time, in short
steps and without locks: nothing else tells which of them were dated wrongly. A row is changed
only if its task still waits for the due time that was read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from taskd.domain.model import DueTask, Outcome
from taskd.domain.transitions import (
    AFTER_ALL,
    MAX_LEASE_MS,
    WaitingTask,
    brought_forward,
    reached_in,
)
from taskd.errors import StoreError
from taskd.ports.store import BroughtForward
from taskd.stores.batching import Operation
from taskd.stores.encoding import STATES
from taskd.stores.operations.session import Row, Session
from taskd.stores.write_requests import ForwardRequest

_APPS_AT_ONCE = 100

_LEASES = DueTask(task_id=0, app_id=0, due_at=AFTER_ALL)
"""Before all tasks, where a walk goes on while leases end too late."""


async def bring_forward(
    session: Session, requests: Sequence[ForwardRequest]
) -> list[BroughtForward | StoreError]:
    """See `Store.bring_forward`."""
    return [await _bring_forward(session, request) for request in requests]


async def _bring_forward(session: Session, request: ForwardRequest) -> BroughtForward:
    if request.after in (None, _LEASES):
        until = request.now + MAX_LEASE_MS
        if await session.fetch(session.FIND_LATE_LEASE, until=until):
            await session.execute(session.SHORTEN, until=until, limit=request.limit)
            return BroughtForward((), _LEASES)
    tasks, app_id = await _find_later(session, request)
    sooner: list[DueTask] = []
    rows: list[tuple[int, int, int]] = []
    for task in tasks:
        due_at = brought_forward(task, now=request.now)
        if due_at is not None:
            sooner.append(DueTask(task_id=task.task_id, app_id=task.app_id, due_at=due_at))
            rows.append((task.task_id, task.due_at, due_at))
    await session.execute_many(session.BRING_FORWARD, rows)
    return BroughtForward(tuple(sooner), reached_in(tasks, request.limit, app_id))


async def _find_later(
    session: Session, request: ForwardRequest
) -> tuple[list[WaitingTask], int | None]:
    """Return tasks that wait for a time after now, and the last application that the walk
    reached; None for it if no application follows."""
    found: list[WaitingTask] = []
    after = request.after
    if after is None:
        app_id, due_at = 0, AFTER_ALL
    else:
        app_id, due_at = after.app_id, after.due_at
        found += _waiting(
            await session.fetch(
                session.FIND_LATER_AT,
                app_id=app_id,
                due_at=due_at,
                after=after.task_id,
                limit=request.limit,
            )
        )
    walked = app_id
    for _ in range(_APPS_AT_ONCE):
        walked = app_id
        limit = request.limit - len(found)
        found += _waiting(
            await session.fetch(session.FIND_LATER, app_id=app_id, after=due_at, limit=limit)
        )
        if len(found) == request.limit:
            break
        rows = await session.fetch(session.NEXT_APP, after=app_id)
        if not rows:
            return found, None
        app_id, due_at = rows[0][0], request.now
    return found, walked


def _waiting(rows: Iterable[Row]) -> list[WaitingTask]:
    return [
        WaitingTask(
            task_id=row[0],
            app_id=row[1],
            state=STATES[row[2]],
            due_at=row[3],
            created_at=row[4],
            ended_at=row[5],
            abandoned=row[6] == Outcome.ABANDONED,
        )
        for row in rows
    ]


async def last_moment(session: Session) -> int | None:
    """See `Store.last_moment`."""
    rows = [*await session.fetch(session.LAST_CREATED), *await session.fetch(session.LAST_FINISHED)]
    return max((moment for (moment,) in rows if moment is not None), default=None)


BRING_FORWARD = Operation("bring forward", bring_forward)

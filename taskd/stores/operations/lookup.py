"""Reads a task with its attempts, the number of waiting tasks, and contents."""

from __future__ import annotations

from collections.abc import Sequence

from taskd.domain.model import CancelCertainty, TaskDetail
from taskd.stores.encoding import STATES, as_bytes, as_text, read_attempt
from taskd.stores.operations.session import Row, Session

_TASK_COLUMNS = 15


async def task_detail(
    session: Session, app_id: int, task_id: int | None, task_no: str | None
) -> TaskDetail | None:
    """Return the app's task of this id, or without an id of this taskNo, with its attempts."""
    if task_id is not None:
        rows = await session.fetch(session.DETAIL_BY_ID, app_id=app_id, task_id=task_id)
    else:
        key = session.key(task_no or "")
        rows = await session.fetch(session.DETAIL_BY_NO, app_id=app_id, task_no=key)
    return _detail(rows) if rows else None


def _detail(rows: Sequence[Row]) -> TaskDetail:
    (
        task_id, app_id, task_no, name, state, runtime, due_at, timeout_ms, attempt,
        retry_total, created_at, finished_at, node, cancel_requested, certainty,
    ) = rows[0][:_TASK_COLUMNS]  # fmt: skip
    attempts = [row[_TASK_COLUMNS:] for row in rows if row[_TASK_COLUMNS] is not None]
    return TaskDetail(
        id=task_id,
        app_id=app_id,
        task_no=as_text(task_no),
        name=name,
        state=STATES[state],
        runtime=runtime,
        due_at=due_at,
        timeout_ms=timeout_ms,
        attempt=attempt,
        retry_total=retry_total,
        created_at=created_at,
        finished_at=finished_at,
        node=node,
        cancel_requested=bool(cancel_requested),
        cancel_certainty=None if certainty is None else CancelCertainty(certainty),
        attempts=tuple(sorted(map(read_attempt, attempts), key=lambda one: one.attempt)),
    )


async def count_waiting(session: Session, app_id: int, limit: int) -> int:
    """See `Store.count_waiting`."""
    ((count,),) = await session.fetch(session.COUNT_WAITING, app_id=app_id, limit=limit)
    return int(count)


async def content(session: Session, task_id: int) -> bytes | None:
    """See `Store.content`."""
    rows = await session.fetch(session.CONTENT, task_id=task_id)
    return as_bytes(rows[0][0]) if rows else None

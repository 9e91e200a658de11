"""Cancels tasks: a waiting one at once, a running one by a request on its row."""

from __future__ import annotations

from collections.abc import Sequence

from taskd.domain.model import CancelDecision, TaskState
from taskd.domain.transitions import WAITING, waiting_cancel_certainty
from taskd.errors import StoreError
from taskd.stores.batching import ROW_BYTES, Operation
from taskd.stores.encoding import STATES, as_text
from taskd.stores.operations.session import Session
from taskd.stores.operations.suspects import clear
from taskd.stores.write_requests import CancelRequest

_NO_TASK = 0
_NOBODYS = (None, "", 0, None, 0, 0)


async def cancel(
    session: Session, requests: Sequence[CancelRequest]
) -> list[CancelDecision | StoreError]:
    """See `Store.request_cancel`. If two requests name one waiting task, the second finds it
    ended."""
    task_ids = await _named(session, requests)
    found = {row[0]: row[1:] for row in await session.fetch(session.FIND_TASKS, ids=set(task_ids))}
    requested: set[int] = set()
    cleared: list[int] = []
    ends: dict[int, tuple[int, str, int]] = {}
    results: list[CancelDecision | StoreError] = []
    for request, task_id in zip(requests, task_ids, strict=True):
        app_id, task_no, code, node, sent, abandoned = found.get(task_id, _NOBODYS)
        state, task_no = STATES[code], as_text(task_no)
        if app_id == request.app_id and state is TaskState.RUNNING:
            requested.add(task_id)
            results.append(CancelDecision(state=state, task_id=task_id, task_no=task_no, node=node))
        elif app_id == request.app_id and state in WAITING and task_id not in ends:
            certainty = waiting_cancel_certainty(sent=bool(sent))
            ends[task_id] = (task_id, certainty.value, request.now)
            if abandoned:
                cleared.append(task_id)
            results.append(
                CancelDecision(
                    state=TaskState.CANCELLED, task_id=task_id, task_no=task_no, certainty=certainty
                )
            )
        else:
            results.append(CancelDecision(state=None))
    if requested:
        await session.execute(session.REQUEST_CANCEL, ids=requested)
    await session.execute_many(session.CANCEL, list(ends.values()))
    await clear(session, cleared)
    return results


async def _named(session: Session, requests: Sequence[CancelRequest]) -> list[int]:
    """Return the ids of the tasks that the requests name, `_NO_TASK` if there is no such task.

    Locks nothing: tasks are locked later, by their ids in ascending order. A request means
    the task that has its taskNo now. If this task is purged before it is locked, it had
    ended, and the request rightly finds none.
    """
    keys = {
        (request.app_id, request.task_no) for request in requests if request.task_no is not None
    }
    by_no = await session.find_task_nos(keys) if keys else {}
    return [
        request.task_id or _NO_TASK
        if request.task_no is None
        else by_no.get((request.app_id, request.task_no), (_NO_TASK, 0))[0]
        for request in requests
    ]


CANCEL = Operation("cancel", cancel, lambda _: ROW_BYTES, quick=True)

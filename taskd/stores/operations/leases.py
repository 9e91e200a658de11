"""Leases tasks, and extends leases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from taskd.domain.model import App, Lease, LeasedTask
from taskd.domain.transitions import RunningTask
from taskd.errors import StoreError
from taskd.ports.store import ExtendResult
from taskd.stores.batching import ROW_BYTES, Operation
from taskd.stores.encoding import INLINE_CONTENT, as_bytes, as_text
from taskd.stores.operations.apps import app_by_id
from taskd.stores.operations.session import Row, Session
from taskd.stores.write_requests import ExtendRequest, LeaseRequest


async def lease(
    session: Session, requests: Sequence[LeaseRequest]
) -> list[list[LeasedTask] | StoreError]:
    """See `Store.lease`."""
    return [await _lease(session, request) for request in requests]


async def _lease(session: Session, request: LeaseRequest) -> list[LeasedTask]:
    if not request.task_ids:
        return []
    find = session.FIND_WAITING if request.suspects else session.FIND_UNSUSPECTED
    waiting = {
        row[0]: row for row in await session.fetch(find, ids=set(request.task_ids), now=request.now)
    }
    apps: dict[int, App] = {}
    for app_id in {row[1] for row in waiting.values()}:
        app = await app_by_id(session, app_id)
        if app is not None:
            apps[app_id] = app
    rows = [
        waiting.pop(task_id)  # an id given twice is leased once
        for task_id in request.task_ids
        if task_id in waiting and waiting[task_id][1] in apps
    ]
    if not rows:
        return []
    apart = [row[0] for row in rows if row[-1] is None]
    lengths: dict[int, int] = {}
    if apart and request.room is not None:
        found = await session.fetch(session.FIND_LENGTHS, ids=apart)
        lengths = {row[0]: row[1] for row in found}
        apart = _within(apart, lengths, request.room)
    contents: dict[int, bytes] = {}
    if apart:
        found = await session.fetch(session.FIND_CONTENTS, ids=apart)
        contents = {row[0]: row[1] for row in found}
    await session.execute(
        session.LEASE,
        ids=[row[0] for row in rows],
        node=request.node,
        now=request.now,
        expires_at=request.expires_at,
    )
    return [
        _leased_task(row, apps[row[1]], request, contents.get(row[0]), lengths.get(row[0], 0))
        for row in rows
    ]


def _within(task_ids: Sequence[int], lengths: dict[int, int], room: int) -> list[int]:
    """Return the ids whose contents come with their leases, in order. A content of up to
    `INLINE_CONTENT` bytes takes no room; SQLite has it apart if it is no text or holds a NUL."""
    within = []
    for task_id in task_ids:
        taken = lengths[task_id] if lengths[task_id] > INLINE_CONTENT else 0
        if taken <= room:
            room -= taken
            within.append(task_id)
    return within


def _leased_task(
    row: Row, app: App, request: LeaseRequest, apart: bytes | None, length: int
) -> LeasedTask:
    """Return a leased task. If its content is neither in the row nor given as ``apart``,
    ``length`` bytes of it are left in the Store."""
    (
        task_id, _, token, attempt, failures, sent, due_at, timeout_ms, step, retry_total,
        task_no, name, inline,
    ) = row  # fmt: skip
    content = apart if inline is None else inline
    return LeasedTask(
        lease=Lease(
            task_id=task_id, token=token + 1, node=request.node, expires_at=request.expires_at
        ),
        app=app,
        task_no=as_text(task_no),
        name=name,
        content=b"" if content is None else as_bytes(content),
        left_bytes=length if content is None else 0,
        timeout_ms=timeout_ms,
        due_at=due_at,
        leased_at=request.now,
        attempt=attempt + 1,
        failures=failures,
        sent_before=bool(sent),
        step=app.step if step is None else step,
        retry_total=app.retry_total if retry_total is None else retry_total,
    )


def running_tasks(rows: Iterable[Row]) -> list[RunningTask]:
    """Return leased tasks, from rows of `Statements.FIND_RUNNING`."""
    return [
        RunningTask(
            task_id=row[0],
            app_id=row[1],
            token=row[2],
            node=row[3],
            leased_at=row[4],
            attempt=row[5],
            failures=row[6],
            abandoned=row[7],
            sent=bool(row[8]),
            cancel_requested=bool(row[9]),
        )
        for row in rows
    ]


async def find_running(session: Session, leases: Iterable[Lease]) -> dict[int, RunningTask]:
    """Return, by id, the tasks of these leases that are leased now, under these or newer leases."""
    ids = {lease.task_id for lease in leases}
    if not ids:
        return {}
    rows = await session.fetch(session.FIND_RUNNING, ids=ids)
    return {task.task_id: task for task in running_tasks(rows)}


async def extend(
    session: Session, requests: Sequence[ExtendRequest]
) -> list[ExtendResult | StoreError]:
    """See `Store.extend`."""
    return [await _extend(session, request) for request in requests]


async def _extend(session: Session, request: ExtendRequest) -> ExtendResult:
    running = await find_running(session, request.leases)
    lost, kept, requested = set(), set(), set()
    for lease in request.leases:
        task = running.get(lease.task_id)
        if task is None or task.token != lease.token:
            lost.add(lease.task_id)
            continue
        kept.add(task.task_id)
        if task.cancel_requested:
            requested.add(task.task_id)
    if kept:
        await session.execute(session.EXTEND, ids=kept, expires_at=request.expires_at)
    return ExtendResult(frozenset(lost), frozenset(requested))


LEASE = Operation("lease", lease, lambda request: len(request.task_ids) * ROW_BYTES, quick=True)
EXTEND = Operation("extend", extend, lambda request: len(request.leases) * ROW_BYTES, quick=True)

"""Takes apps and waiting tasks out of a store, and puts them into one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence

from taskd.domain.model import App, Attempt, StoredTask
from taskd.errors import StoreError, TransferClash
from taskd.stores.batching import Operation
from taskd.stores.encoding import (
    STATES,
    as_bytes,
    as_text,
    attempt_row,
    read_app,
    read_attempt,
)
from taskd.stores.operations.session import Row, Session
from taskd.stores.operations.store import SQLStore


class SQLArchive(ABC):
    """The Archive port over any SQL database, used only while no node works on it."""

    def __init__(self, store: SQLStore) -> None:
        self._store = store

    @abstractmethod
    async def highest_task_id(self) -> int:
        """See `Archive.highest_task_id`."""

    @abstractmethod
    async def put_highest_task_id(self, task_id: int) -> None:
        """See `Archive.put_highest_task_id`."""

    async def apps_after(self, app_id: int, *, limit: int) -> list[App]:
        """See `Archive.apps_after`."""
        return await self._store.read(lambda session: _apps_after(session, app_id, limit))

    async def tasks_after(self, task_id: int, *, limit: int) -> list[StoredTask]:
        """See `Archive.tasks_after`."""
        return await self._store.read(lambda session: _tasks_after(session, task_id, limit))

    async def put_apps(self, apps: Sequence[App]) -> None:
        """See `Archive.put_apps`."""
        await self._store.write(PUT_APPS, apps)

    async def put_tasks(self, tasks: Sequence[StoredTask]) -> None:
        """See `Archive.put_tasks`."""
        await self._store.write(PUT_TASKS, tasks)


async def _apps_after(session: Session, app_id: int, limit: int) -> list[App]:
    rows = await session.fetch(session.APPS_AFTER, after=app_id, limit=limit)
    return [read_app(row) for row in rows]


async def _tasks_after(session: Session, after: int, limit: int) -> list[StoredTask]:
    # These statements see one state of the database: nobody writes while tasks are moved.
    rows: Sequence[Row] = ()
    while not rows:
        ((last,),) = await session.fetch(session.STRIDE_END, after=after)
        if last is None:
            return []
        rows = await session.fetch(session.TASKS_AFTER, after=after, last=last, limit=limit)
        after = last
    attempts: defaultdict[int, list[Attempt]] = defaultdict(list)
    for found in await session.fetch(session.ATTEMPTS, ids=[row[0] for row in rows]):
        attempts[found[0]].append(read_attempt(found[1:]))
    return [
        StoredTask(
            id=row[0],
            app_id=row[1],
            state=STATES[row[2]],
            due_at=row[3],
            token=row[4],
            attempt=row[5],
            failures=row[6],
            abandoned=row[7],
            sent=bool(row[8]),
            timeout_ms=row[9],
            step=row[10],
            retry_total=row[11],
            runtime=row[12],
            created_at=row[13],
            task_no=as_text(row[14]),
            name=row[15],
            content=as_bytes(row[17] if row[16] is None else row[16]),
            attempts=tuple(attempts[row[0]]),
        )
        for row in rows
    ]


async def _put_apps(session: Session, calls: Sequence[Sequence[App]]) -> list[StoreError | None]:
    return [await _put_some_apps(session, apps) for apps in calls]


async def _put_some_apps(session: Session, apps: Sequence[App]) -> StoreError | None:
    new = []
    for app in apps:
        key = session.key(app.app_key)
        found = await session.fetch(session.APPS_LIKE, id=app.id, app_key=key)
        if any(read_app(row) != app for row in found):
            return TransferClash(f"there is another application with id {app.id} or its key")
        if not found:
            new.append(
                (
                    app.id,
                    key,
                    app.secret_key,
                    app.name,
                    app.link_url,
                    app.step,
                    app.retry_total,
                    app.remark,
                    app.created_at,
                    app.success.value,
                )
            )
    await session.execute_many(session.PUT_APPS, new)
    return None


async def _put_tasks(
    session: Session, calls: Sequence[Sequence[StoredTask]]
) -> list[StoreError | None]:
    return [await _put_some_tasks(session, tasks) for tasks in calls]


async def _put_some_tasks(session: Session, tasks: Sequence[StoredTask]) -> StoreError | None:
    new = []
    for task in tasks:
        key = session.key(task.task_no)
        found = await session.fetch(session.TASKS_LIKE, id=task.id, app_id=task.app_id, task_no=key)
        if any(tuple(row) != (task.id, task.app_id, key) for row in found):
            return TransferClash(
                f"there is another task with id {task.id}, or with the taskNo {task.task_no!r}"
            )
        ((apps,),) = await session.fetch(session.COUNT_APPS, id=task.app_id)
        if not apps:
            return TransferClash(
                f"task {task.id} is of application {task.app_id}, which is not there"
            )
        if not found:
            new.append(task)
    rows = [session.stored_row(task) for task in new]
    await session.execute_many(session.PUT_TASKS, rows)
    apart = [
        (task.id, task.content) for task, row in zip(new, rows, strict=True) if row[-1] is None
    ]
    await session.execute_many(session.ADD_CONTENTS, apart)
    attempts = [attempt_row(task.id, attempt) for task in new for attempt in task.attempts]
    await session.execute_many(session.ADD_ATTEMPTS, attempts)
    return None


PUT_APPS = Operation("put apps", _put_apps)
PUT_TASKS = Operation("put tasks", _put_tasks)

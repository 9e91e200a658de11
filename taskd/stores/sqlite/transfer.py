"""Taking apps and waiting tasks out of a SQLite store, and putting them into it."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from taskd.domain.model import App, Attempt, StoredTask, SuccessRule
from taskd.errors import StoreError, TransferClash
from taskd.stores.encoding import STATE_CODES, STATES, attempt_row, read_attempt
from taskd.stores.sqlite.reads import Readers
from taskd.stores.sqlite.rows import execute_rows, id_list, inline_content
from taskd.stores.sqlite.statements import SQLiteStatements
from taskd.stores.sqlite.writer import Operation, Writer

_APP_COLUMNS = (
    "id, app_key, secret_key, name, link_url, step, retry_total, remark, created_at, success"
)
_APPS = f"SELECT {_APP_COLUMNS} FROM apps WHERE id > ? ORDER BY id LIMIT ?"  # noqa: S608  the parts are constants
_APPS_LIKE = f"SELECT {_APP_COLUMNS} FROM apps WHERE id = ? OR app_key = ?"  # noqa: S608  as above
_PUT_APP = f"INSERT INTO apps ({_APP_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608  as above

_TASKS = """
SELECT tasks.id, app_id, state, due_at, token, attempt, failures, abandoned, sent, timeout_ms,
    step, retry_total, runtime, created_at, task_no, name, tasks.content, contents.content
FROM tasks LEFT JOIN contents ON contents.task_id = tasks.id
WHERE tasks.id > ? AND due_at IS NOT NULL
ORDER BY tasks.id LIMIT ?"""

_ATTEMPTS = """
SELECT task_id, attempt, started_at, ended_at, outcome, http_status, response, error
FROM attempts WHERE task_id IN (SELECT value FROM json_each(?)) ORDER BY task_id, attempt"""

_TASKS_LIKE = "SELECT id, app_id, task_no FROM tasks WHERE id = ? OR (app_id = ? AND task_no = ?)"
_APP_EXISTS = "SELECT count(*) FROM apps WHERE id = ?"

_PUT_TASK = """
INSERT INTO tasks (id, app_id, state, due_at, token, attempt, failures, abandoned, sent, timeout_ms,
    step, retry_total, runtime, created_at, task_no, name, content)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""

_PUT_ATTEMPT = """
INSERT INTO attempts (task_id, attempt, started_at, ended_at, outcome, http_status, response, error)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""

_HIGHEST = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'tasks'"
_RAISE_HIGHEST = "UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = 'tasks'"
_FIRST_HIGHEST = "INSERT INTO sqlite_sequence (name, seq) VALUES ('tasks', ?)"


class SQLiteArchive:
    """The Archive port on an open SQLite store."""

    def __init__(self, readers: Readers, writer: Writer) -> None:
        self._readers = readers
        self._writer = writer

    async def highest_task_id(self) -> int:
        """See `Archive.highest_task_id`."""
        return await self._readers.run(_highest)

    async def apps_after(self, app_id: int, *, limit: int) -> list[App]:
        """See `Archive.apps_after`."""
        return await self._readers.run(
            lambda connection: [_app(row) for row in connection.execute(_APPS, (app_id, limit))]
        )

    async def tasks_after(self, task_id: int, *, limit: int) -> list[StoredTask]:
        """See `Archive.tasks_after`."""
        return await self._readers.run(lambda connection: _tasks(connection, task_id, limit))

    async def put_apps(self, apps: Sequence[App]) -> None:
        """See `Archive.put_apps`."""
        await self._writer.execute(_PUT_APPS, apps)

    async def put_tasks(self, tasks: Sequence[StoredTask]) -> None:
        """See `Archive.put_tasks`."""
        await self._writer.execute(_PUT_TASKS, tasks)

    async def put_highest_task_id(self, task_id: int) -> None:
        """See `Archive.put_highest_task_id`."""
        await self._writer.execute(_PUT_HIGHEST, task_id)


def _app(row: Sequence[Any]) -> App:
    return App(
        id=row[0],
        app_key=row[1],
        secret_key=row[2],
        name=row[3],
        link_url=row[4],
        step=row[5],
        retry_total=row[6],
        remark=row[7],
        created_at=row[8],
        success=SuccessRule(row[9]),
    )


def _highest(connection: sqlite3.Connection) -> int:
    (highest,) = connection.execute(_HIGHEST).fetchone()
    return int(highest)


def _tasks(connection: sqlite3.Connection, after: int, limit: int) -> list[StoredTask]:
    # Two statements of one moment: nobody writes while tasks move.
    rows = connection.execute(_TASKS, (after, limit)).fetchall()
    attempts: defaultdict[int, list[Attempt]] = defaultdict(list)
    for row in connection.execute(_ATTEMPTS, (id_list(row[0] for row in rows),)):
        attempts[row[0]].append(read_attempt(row[1:]))
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
            task_no=row[14],
            name=row[15],
            content=bytes(row[17]) if row[16] is None else row[16].encode(),
            attempts=tuple(attempts[row[0]]),
        )
        for row in rows
    ]


def _put_apps(
    connection: sqlite3.Connection, calls: Sequence[Sequence[App]]
) -> list[StoreError | None]:
    return [_put_some_apps(connection, apps) for apps in calls]


def _put_some_apps(connection: sqlite3.Connection, apps: Sequence[App]) -> StoreError | None:
    new = []
    for app in apps:
        there = [_app(row) for row in connection.execute(_APPS_LIKE, (app.id, app.app_key))]
        if any(one != app for one in there):
            return TransferClash(f"there is another application with id {app.id} or its key")
        if not there:
            new.append(app)
    for app in new:
        connection.execute(
            _PUT_APP,
            (
                app.id,
                app.app_key,
                app.secret_key,
                app.name,
                app.link_url,
                app.step,
                app.retry_total,
                app.remark,
                app.created_at,
                app.success.value,
            ),
        )
    return None


def _put_tasks(
    connection: sqlite3.Connection, calls: Sequence[Sequence[StoredTask]]
) -> list[StoreError | None]:
    return [_put_some_tasks(connection, tasks) for tasks in calls]


def _put_some_tasks(
    connection: sqlite3.Connection, tasks: Sequence[StoredTask]
) -> StoreError | None:
    new = []
    for task in tasks:
        key = (task.id, task.app_id, task.task_no)
        there = connection.execute(_TASKS_LIKE, key).fetchall()
        if any(one != key for one in there):
            return TransferClash(
                f"there is another task with id {task.id}, or with the taskNo {task.task_no!r}"
            )
        (apps,) = connection.execute(_APP_EXISTS, (task.app_id,)).fetchone()
        if not apps:
            return TransferClash(
                f"task {task.id} is of application {task.app_id}, which is not there"
            )
        if not there:
            new.append(task)
    for task in new:
        _put_task(connection, task)
    return None


def _put_task(connection: sqlite3.Connection, task: StoredTask) -> None:
    content = inline_content(task.content)
    connection.execute(
        _PUT_TASK,
        (
            task.id,
            task.app_id,
            STATE_CODES[task.state],
            task.due_at,
            task.token,
            task.attempt,
            task.failures,
            task.abandoned,
            int(task.sent),
            task.timeout_ms,
            task.step,
            task.retry_total,
            task.runtime,
            task.created_at,
            task.task_no,
            task.name,
            content,
        ),
    )
    if content is None:
        execute_rows(connection, SQLiteStatements.ADD_CONTENTS, [(task.id, task.content)])
    for attempt in task.attempts:
        connection.execute(_PUT_ATTEMPT, attempt_row(task.id, attempt))


def _put_highest(connection: sqlite3.Connection, ids: Sequence[int]) -> list[StoreError | None]:
    for task_id in ids:
        if not connection.execute(_RAISE_HIGHEST, (task_id,)).rowcount:
            connection.execute(_FIRST_HIGHEST, (task_id,))
    return [None] * len(ids)


_PUT_APPS = Operation("put apps", _put_apps)
_PUT_TASKS = Operation("put tasks", _put_tasks)
_PUT_HIGHEST = Operation("put highest id", _put_highest)

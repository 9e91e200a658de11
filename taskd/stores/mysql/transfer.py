"""Taking apps and waiting tasks out of a MySQL store, and putting them into it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from taskd.domain.model import App, Attempt, StoredTask, SuccessRule
from taskd.errors import StoreError, TransferClash
from taskd.stores.encoding import INLINE_CONTENT, STATE_CODES, STATES, attempt_row, read_attempt
from taskd.stores.mysql.connection import MySQLConnection, Row
from taskd.stores.mysql.rows import SqlValue, inserts, literal
from taskd.stores.mysql.schema import RUNNING
from taskd.stores.mysql.statements import MySQLStatements
from taskd.stores.mysql.writer import Lane, Operation

T = TypeVar("T")

_APP_COLUMNS = (
    "id, app_key, secret_key, name, link_url, step, retry_total, remark, created_at, success"
)
_APPS = f"SELECT {_APP_COLUMNS} FROM apps WHERE id > {{after}} ORDER BY id LIMIT {{limit}}"  # noqa: S608  the parts are constants
_APPS_LIKE = f"SELECT {_APP_COLUMNS} FROM apps WHERE id = %d OR app_key = %b".encode()  # noqa: S608  as above
_PUT_APPS = f"INSERT INTO apps ({_APP_COLUMNS}) VALUES"

_TASKS = """SELECT tasks.id, app_id, state, moment, token, attempt, failures, abandoned, sent,
    timeout_ms, step, retry_total, runtime, created_at, task_no, name, tasks.content,
    contents.content
FROM tasks LEFT JOIN contents ON contents.task_id = tasks.id
WHERE tasks.id > {after} AND tasks.id <= {last} AND lane > 0
ORDER BY tasks.id LIMIT {limit}"""

# Of millions that are over, a few may wait: each statement looks at so many at most.
_STRIDE = 20_000
_STRIDE_END = f"""SELECT MAX(id) FROM (
    SELECT id FROM tasks FORCE INDEX (PRIMARY) WHERE id > {{after}} ORDER BY id LIMIT {_STRIDE}
) AS stride"""  # noqa: S608  the parts are constants
_ATTEMPTS = """SELECT task_id, attempt, started_at, ended_at, outcome, http_status, response, error
FROM attempts WHERE task_id IN {ids} ORDER BY task_id, attempt"""

_TASKS_LIKE = b"""SELECT id, app_id, task_no FROM tasks WHERE id = %d
UNION SELECT id, app_id, task_no FROM tasks WHERE app_id = %d AND task_no = %b"""
_APP_EXISTS = "SELECT COUNT(*) FROM apps WHERE id = {id}"

_PUT_TASKS = """INSERT INTO tasks (id, app_id, lane, moment, state, token, attempt, failures,
    abandoned, sent, timeout_ms, step, retry_total, runtime, created_at, task_no, name, content)
VALUES"""

_RUNNING = f"SELECT COUNT(*) FROM tasks WHERE lane = {RUNNING}"  # noqa: S608  a constant

# The statistics of information_schema may be old; what the table says of itself is not.
_TABLE = "SHOW CREATE TABLE tasks"
_NEXT_ID = re.compile(r"\bAUTO_INCREMENT=([0-9]+)")
_RAISE_NEXT_ID = "ALTER TABLE tasks AUTO_INCREMENT = {id}"
_ALTER_S = 600.0


class Read(Protocol):
    """Runs a query on a connection of its own."""

    async def __call__(self, query: Callable[[MySQLConnection], Awaitable[T]]) -> T:
        """Run it."""
        ...


class MySQLArchive:
    """The Archive port on an open MySQL store."""

    def __init__(self, read: Read, lane: Lane) -> None:
        self._read = read
        self._lane = lane

    async def highest_task_id(self) -> int:
        """See `Archive.highest_task_id`."""
        return await self._read(_highest)

    async def running(self) -> int:
        """How many tasks are leased now, the lease expired or not."""
        return await self._read(_running)

    async def apps_after(self, app_id: int, *, limit: int) -> list[App]:
        """See `Archive.apps_after`."""

        async def query(connection: MySQLConnection) -> list[App]:
            answer = await connection.execute(_APPS.format(after=app_id, limit=limit))
            return [_app(row) for row in answer.rows]

        return await self._read(query)

    async def tasks_after(self, task_id: int, *, limit: int) -> list[StoredTask]:
        """See `Archive.tasks_after`."""

        async def query(connection: MySQLConnection) -> list[StoredTask]:
            return await _tasks(connection, task_id, limit)

        return await self._read(query)

    async def put_apps(self, apps: Sequence[App]) -> None:
        """See `Archive.put_apps`."""
        await self._lane.execute(PUT_APPS, apps)

    async def put_tasks(self, tasks: Sequence[StoredTask]) -> None:
        """See `Archive.put_tasks`."""
        await self._lane.execute(PUT_TASKS, tasks)

    async def put_highest_task_id(self, task_id: int) -> None:
        """See `Archive.put_highest_task_id`."""

        async def command(connection: MySQLConnection) -> None:
            # ALTER commits by itself, so it is no lane's. InnoDB never goes below
            # the highest id that is there.
            if await _highest(connection) < task_id:
                statement = _RAISE_NEXT_ID.format(id=task_id + 1)
                await connection.execute(statement, within_s=_ALTER_S)

        await self._read(command)


async def _highest(connection: MySQLConnection) -> int:
    ((_, text),) = (await connection.execute(_TABLE)).rows
    found = _NEXT_ID.search(text)
    return int(found[1]) - 1 if found else 0


async def _running(connection: MySQLConnection) -> int:
    ((count,),) = (await connection.execute(_RUNNING)).rows
    return int(count)


def _app(row: Row) -> App:
    return App(
        id=row[0],
        app_key=row[1].decode(),
        secret_key=row[2],
        name=row[3],
        link_url=row[4],
        step=row[5],
        retry_total=row[6],
        remark=row[7],
        created_at=row[8],
        success=SuccessRule(row[9]),
    )


async def _tasks(connection: MySQLConnection, after: int, limit: int) -> list[StoredTask]:
    # Statements of one moment: nobody writes while tasks move.
    rows: tuple[Row, ...] = ()
    while not rows:
        ((last,),) = (await connection.execute(_STRIDE_END.format(after=after))).rows
        if last is None:
            return []
        statement = _TASKS.format(after=after, last=last, limit=limit)
        rows = (await connection.execute(statement)).rows
        after = last
    attempts: defaultdict[int, list[Attempt]] = defaultdict(list)
    ids = f"({','.join(str(row[0]) for row in rows)})"
    for found in (await connection.execute(_ATTEMPTS.format(ids=ids))).rows:
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
            task_no=row[14].decode(),
            name=row[15],
            content=bytes(row[17] if row[16] is None else row[16]),
            attempts=tuple(attempts[row[0]]),
        )
        for row in rows
    ]


async def _put_apps(
    connection: MySQLConnection, calls: Sequence[Sequence[App]]
) -> list[StoreError | None]:
    return [await _put_some_apps(connection, apps) for apps in calls]


async def _put_some_apps(connection: MySQLConnection, apps: Sequence[App]) -> StoreError | None:
    new: list[Sequence[SqlValue]] = []
    for app in apps:
        key = app.app_key.encode()
        found = (await connection.execute(_APPS_LIKE % (app.id, literal(key)))).rows
        if any(_app(row) != app for row in found):
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
    await _insert(connection, _PUT_APPS, new)
    return None


async def _put_tasks(
    connection: MySQLConnection, calls: Sequence[Sequence[StoredTask]]
) -> list[StoreError | None]:
    return [await _put_some_tasks(connection, tasks) for tasks in calls]


async def _put_some_tasks(
    connection: MySQLConnection, tasks: Sequence[StoredTask]
) -> StoreError | None:
    new = []
    for task in tasks:
        key = (task.id, task.app_id, task.task_no.encode())
        like = _TASKS_LIKE % (task.id, task.app_id, literal(key[2]))
        found = (await connection.execute(like)).rows
        if any((row[0], row[1], bytes(row[2])) != key for row in found):
            return TransferClash(
                f"there is another task with id {task.id}, or with the taskNo {task.task_no!r}"
            )
        ((apps,),) = (await connection.execute(_APP_EXISTS.format(id=task.app_id))).rows
        if not apps:
            return TransferClash(
                f"task {task.id} is of application {task.app_id}, which is not there"
            )
        if not found:
            new.append(task)
    await _insert(connection, _PUT_TASKS, [_row(task) for task in new])
    apart = [(task.id, task.content) for task in new if len(task.content) > INLINE_CONTENT]
    await _insert(connection, MySQLStatements.ADD_CONTENTS, apart)
    attempts = [attempt_row(task.id, attempt) for task in new for attempt in task.attempts]
    await _insert(connection, MySQLStatements.ADD_ATTEMPTS, attempts)
    return None


def _row(task: StoredTask) -> Sequence[SqlValue]:
    return (
        task.id,
        task.app_id,
        task.app_id,
        task.due_at,
        STATE_CODES[task.state],
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
        task.task_no.encode(),
        task.name,
        task.content if len(task.content) <= INLINE_CONTENT else None,
    )


async def _insert(
    connection: MySQLConnection, head: str, rows: Sequence[Sequence[SqlValue]]
) -> None:
    for statement, _ in inserts(head, rows):
        await connection.execute(statement)


PUT_APPS = Operation("put apps", _put_apps)
PUT_TASKS = Operation("put tasks", _put_tasks)

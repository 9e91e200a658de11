"""Reading a MySQL store: beside its writers, and what a lease needs of an app."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from taskd.domain.model import App, CancelCertainty, DueTask, Shard, SuccessRule, TaskDetail
from taskd.stores.app_cache import AppCache
from taskd.stores.encoding import STATES, read_attempt
from taskd.stores.mysql.connection import MySQLConnection, Row
from taskd.stores.mysql.rows import literal, row
from taskd.stores.mysql.schema import OVER

_APP = """SELECT id, app_key, secret_key, name, link_url, step, retry_total, remark, created_at,
    success
FROM apps WHERE """

APP_IDS = "SELECT id FROM apps WHERE app_key IN "

TIME = "SELECT CAST(FLOOR(UNIX_TIMESTAMP(NOW(6)) * 1000) AS SIGNED)"

CONTENT = """SELECT COALESCE(tasks.content, contents.content)
FROM tasks LEFT JOIN contents ON contents.task_id = tasks.id WHERE tasks.id = {task_id}"""

DETAIL = """SELECT tasks.id, tasks.app_id, task_no, tasks.name, state, runtime, lane, moment,
    timeout_ms, tasks.attempt, COALESCE(tasks.retry_total, apps.retry_total), tasks.created_at,
    node, cancel_requested, cancel_word,
    attempts.attempt, started_at, ended_at, outcome, http_status, response, error
FROM tasks
LEFT JOIN apps ON apps.id = tasks.app_id
LEFT JOIN attempts ON attempts.task_id = tasks.id
WHERE {condition}"""
_TASK_COLUMNS = 15

# Two readings, neither longer for what waits behind an app's first tasks: each app's
# earliest, then the first of those that have one in time. Both find their places in the
# index whatever the server believes of the table; it would also step from app to app by
# itself (a loose index scan), but reads all that waits where its statistics are old.
# The lane is in each order although it is one only: MySQL, which does not see that in
# the first of them, would read and sort all that waits.
FIND_APPS = """SELECT id, (SELECT moment FROM tasks FORCE INDEX (tasks_lanes)
    WHERE lane = apps.id ORDER BY lane, moment LIMIT 1) AS earliest
FROM apps HAVING earliest <= {until}"""
FIND_FIRST = """(SELECT id, lane, moment FROM tasks FORCE INDEX (tasks_lanes)
WHERE lane = {app_id}{after} AND moment <= {until} ORDER BY lane, moment, id LIMIT {limit})"""
_AFTER = " AND moment > {after}"
_APPS_AT_ONCE = 100


class AppReader(AppCache):
    """Reads apps, each once until it is forgotten, and those anew that were read long ago."""

    async def read_by_id(self, connection: MySQLConnection, app_id: int) -> App | None:
        """The app of this id, read where it is not remembered."""
        return self.by_id(app_id) or await self._read(connection, b"id = %d" % app_id)

    async def read_by_key(self, connection: MySQLConnection, app_key: str) -> App | None:
        """The app of this key, read where it is not remembered."""
        condition = b"app_key = " + literal(app_key.encode())
        return self.by_key(app_key) or await self._read(connection, condition)

    async def read_anew(
        self, connection: MySQLConnection, app_keys: Collection[str]
    ) -> Mapping[str, App]:
        """The apps of these keys, looked up whatever is remembered of them. The rest of one
        that is remembered is not read again: that there is one would show in the time."""
        if not app_keys:
            return {}
        keys = row(app_key.encode() for app_key in app_keys)
        ids = (await connection.execute(APP_IDS.encode() + keys)).rows
        apps = [await self.read_by_id(connection, app_id) for (app_id,) in ids]
        return {app.app_key: app for app in apps if app is not None}

    async def read_oldest(self, connection: MySQLConnection) -> Collection[int]:
        """See `Store.refresh_apps`."""
        since, app_ids = self.forgets, self.to_refresh()
        if not app_ids:
            return ()
        condition = b"id IN " + row(app_ids)
        rows = (await connection.execute(_APP.encode() + condition)).rows
        return self.refresh(app_ids, map(_app, rows), since=since)

    async def _read(self, connection: MySQLConnection, condition: bytes) -> App | None:
        since = self.forgets
        rows = (await connection.execute(_APP.encode() + condition)).rows
        if not rows:
            return None
        app = _app(rows[0])
        self.keep(app, since=since)
        return app


def _app(found: Row) -> App:
    (
        app_id, app_key, secret_key, name, link_url, step, retry_total, remark, created_at,
        success,
    ) = found  # fmt: skip
    return App(
        id=app_id,
        app_key=app_key.decode(),
        secret_key=secret_key,
        name=name,
        link_url=link_url,
        step=step,
        retry_total=retry_total,
        remark=remark,
        created_at=created_at,
        success=SuccessRule(success),
    )


async def time_ms(connection: MySQLConnection) -> int:
    """The server's time now, in milliseconds since the Unix epoch, rounded down."""
    ((told,),) = (await connection.execute(TIME)).rows
    return int(told)


async def content(connection: MySQLConnection, task_id: int) -> bytes | None:
    """See `Store.content`."""
    rows = (await connection.execute(CONTENT.format(task_id=task_id))).rows
    return bytes(rows[0][0]) if rows else None


async def task_detail(
    connection: MySQLConnection, app_id: int, task_id: int | None, task_no: str | None
) -> TaskDetail | None:
    """The app's task of this id, or else of this taskNo, with its attempts."""
    if task_id is not None:
        condition = f"tasks.id = {task_id:d} AND tasks.app_id = {app_id:d}"
        statement = DETAIL.format(condition=condition).encode()
    else:
        before, after = DETAIL.split("{condition}")
        key = literal((task_no or "").encode())
        condition = f"tasks.app_id = {app_id:d} AND tasks.task_no = "
        statement = before.encode() + condition.encode() + key + after.encode()
    rows = (await connection.execute(statement)).rows
    return _detail(rows) if rows else None


def _detail(rows: Sequence[Row]) -> TaskDetail:
    (
        task_id, app_id, task_no, name, state, runtime, lane, moment, timeout_ms, attempt,
        retry_total, created_at, node, cancel_requested, cancel_certainty,
    ) = rows[0][:_TASK_COLUMNS]  # fmt: skip
    return TaskDetail(
        id=task_id,
        app_id=app_id,
        task_no=task_no.decode(),
        name=name,
        state=STATES[state],
        runtime=runtime,
        due_at=moment if lane > 0 else None,
        timeout_ms=timeout_ms,
        attempt=attempt,
        retry_total=retry_total,
        created_at=created_at,
        finished_at=moment if lane == OVER else None,
        node=node,
        cancel_requested=bool(cancel_requested),
        cancel_certainty=None if cancel_certainty is None else CancelCertainty(cancel_certainty),
        attempts=tuple(
            read_attempt(row[_TASK_COLUMNS:])
            for row in sorted(rows, key=_attempt_number)
            if row[_TASK_COLUMNS] is not None
        ),
    )


def _attempt_number(row: Row) -> int:
    return row[_TASK_COLUMNS] or 0


async def find_due(
    connection: MySQLConnection,
    *,
    until: int,
    after: int | None,
    limit_per_app: int,
    skip_apps: Collection[int],
    shard: Shard,
) -> list[DueTask]:
    """See `Store.find_due`."""
    lower = "" if after is None else _AFTER.format(after=after)
    waiting = (await connection.execute(FIND_APPS.format(until=until))).rows
    apps = [app_id for app_id, _ in waiting if app_id not in skip_apps]
    limit = limit_per_app * shard.of
    found: list[DueTask] = []
    for some in _parts(apps):
        statement = " UNION ALL ".join(
            FIND_FIRST.format(app_id=app_id, after=lower, until=until, limit=limit)
            for app_id in some
        )
        found += (
            DueTask(task_id=task_id, app_id=app_id, due_at=due_at)
            for task_id, app_id, due_at in (await connection.execute(statement)).rows
            if shard.has(task_id)
        )
    return found


def _parts(apps: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(apps), _APPS_AT_ONCE):
        yield apps[start : start + _APPS_AT_ONCE]

"""Reading a SQLite store beside its writer.

A few read-only connections, each used by one thread at a time. A query is one
statement, so it sees one moment of the database.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection
from typing import TypeVar

import trio

from taskd.domain.model import (
    SHARD_FACTOR,
    SHARD_FOLD,
    SHARD_SHIFT,
    CancelCertainty,
    DueTask,
    Shard,
    TaskDetail,
)
from taskd.errors import StoreUnavailable
from taskd.stores.encoding import STATES, read_attempt
from taskd.stores.sqlite.guard import FileGuard
from taskd.stores.sqlite.rows import fetch_json, id_list

T = TypeVar("T")

_CONNECTIONS = 3
_CACHE_KIB = 4_096

_DETAIL = """
SELECT tasks.id, tasks.app_id, task_no, tasks.name, state, runtime, due_at, timeout_ms,
    tasks.attempt, coalesce(tasks.retry_total, apps.retry_total), tasks.created_at, finished_at,
    node, cancel_requested, cancel_word,
    attempts.attempt, started_at, ended_at, outcome, http_status, response, error
FROM tasks
LEFT JOIN apps ON apps.id = tasks.app_id
LEFT JOIN attempts ON attempts.task_id = tasks.id
WHERE {condition}
ORDER BY attempts.attempt"""

_CONTENT = """
SELECT coalesce(content, (SELECT content FROM contents WHERE task_id = ?))
FROM tasks WHERE id = ?"""

_DETAIL_BY_ID = _DETAIL.format(condition="tasks.id = ? AND tasks.app_id = ?")
_DETAIL_BY_NO = _DETAIL.format(condition="tasks.task_no = ? AND tasks.app_id = ?")
_TASK_COLUMNS = 15

# Steps from app to app on the index, so that a long backlog costs nothing, and
# reads of each app only what is asked for.
_FIND_DUE = f"""
WITH RECURSIVE waiting(app_id) AS (
    SELECT (SELECT app_id FROM tasks INDEXED BY tasks_due WHERE due_at IS NOT NULL
            ORDER BY app_id LIMIT 1)
    UNION ALL
    SELECT (SELECT app_id FROM tasks INDEXED BY tasks_due
            WHERE due_at IS NOT NULL AND app_id > waiting.app_id ORDER BY app_id LIMIT 1)
    FROM waiting WHERE waiting.app_id IS NOT NULL
)
SELECT json_group_array(json_array(waiting.app_id, json((
    SELECT json_group_array(json_array(id, due_at)) FROM (
        SELECT id, due_at FROM tasks INDEXED BY tasks_due
        WHERE app_id = waiting.app_id AND due_at > ? AND due_at <= ?
        ORDER BY due_at, id LIMIT ?
    ) WHERE ((id + (id >> {SHARD_FOLD})) * {SHARD_FACTOR} >> {SHARD_SHIFT}) % ? = ?
))))
FROM waiting
WHERE waiting.app_id IS NOT NULL
    AND waiting.app_id NOT IN (SELECT value FROM json_each(?))"""  # noqa: S608  the parts are constants

_BEFORE_ALL = -(2**63)


class Readers:
    """The read connections.

    A reader that is cancelled leaves its query to end by itself; its connection
    and its place in the limit stay taken until then.
    """

    def __init__(self, guard: FileGuard) -> None:
        self._guard = guard
        self._limiter = trio.CapacityLimiter(_CONNECTIONS)
        self._idle: list[sqlite3.Connection] = []
        self._closed = False

    async def run(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Run a query in a thread.

        Raises:
            StoreUnavailable: the database can't be read now, or is closed.
        """
        return await trio.to_thread.run_sync(
            self._run, query, limiter=self._limiter, abandon_on_cancel=True
        )

    async def aclose(self) -> None:
        """Wait for the queries under way, and close."""
        self._closed = True
        for borrower in range(_CONNECTIONS):
            # Every place in the limit taken means that no query runs any more.
            await self._limiter.acquire_on_behalf_of((self, borrower))
        while self._idle:
            self._idle.pop().close()
        for borrower in range(_CONNECTIONS):
            self._limiter.release_on_behalf_of((self, borrower))

    def _run(self, query: Callable[[sqlite3.Connection], T]) -> T:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        connection: sqlite3.Connection | None = None
        try:
            connection = self._idle.pop() if self._idle else self._connect()
            result = query(connection)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, sqlite3.Error):
                raise self._guard.heed(error) from error
            raise
        self._idle.append(connection)
        return result

    def _connect(self) -> sqlite3.Connection:
        connection = self._guard.connect("ro")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        return connection


def task_detail(
    connection: sqlite3.Connection, app_id: int, task_id: int | None, task_no: str | None
) -> TaskDetail | None:
    """The app's task of this id, or else of this taskNo, with its attempts."""
    if task_id is not None:
        rows = connection.execute(_DETAIL_BY_ID, (task_id, app_id)).fetchall()
    else:
        rows = connection.execute(_DETAIL_BY_NO, (task_no, app_id)).fetchall()
    if not rows:
        return None
    (
        found_id, found_app_id, found_no, name, state, runtime, due_at, timeout_ms, attempt,
        retry_total, created_at, finished_at, node, cancel_requested, cancel_certainty,
    ) = rows[0][:_TASK_COLUMNS]  # fmt: skip
    return TaskDetail(
        id=found_id,
        app_id=found_app_id,
        task_no=found_no,
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
        cancel_certainty=None if cancel_certainty is None else CancelCertainty(cancel_certainty),
        attempts=tuple(
            read_attempt(row[_TASK_COLUMNS:]) for row in rows if row[_TASK_COLUMNS] is not None
        ),
    )


def content(connection: sqlite3.Connection, task_id: int) -> bytes | None:
    """See `Store.content`."""
    row = connection.execute(_CONTENT, (task_id, task_id)).fetchone()
    found = None if row is None else row[0]
    return found.encode() if isinstance(found, str) else found


def find_due(
    connection: sqlite3.Connection,
    *,
    until: int,
    after: int | None,
    limit_per_app: int,
    skip_apps: Collection[int],
    shard: Shard,
) -> list[DueTask]:
    """See `Store.find_due`."""
    first = _BEFORE_ALL if after is None else after
    limit = limit_per_app * shard.of
    values = (first, until, limit, shard.of, shard.number, id_list(skip_apps))
    apps = fetch_json(connection, _FIND_DUE, values)
    return [
        DueTask(task_id=task_id, app_id=app_id, due_at=due_at)
        for app_id, tasks in apps
        for task_id, due_at in tasks
    ]

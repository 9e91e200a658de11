"""What a SQLite store does once the clock was set back: it brings forward what waits by
the time that the clock showed before.

Waiting tasks are walked through their index, an application at a time, in short steps:
nothing else in the file tells which of them were dated wrongly.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

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
from taskd.stores.encoding import STATES
from taskd.stores.sqlite.rows import execute_rows, fetch_json, id_list
from taskd.stores.sqlite.writer import Operation
from taskd.stores.write_requests import ForwardOrder

_APPS_AT_ONCE = 100

_NEXT_APP = """
SELECT app_id FROM tasks INDEXED BY tasks_due WHERE due_at IS NOT NULL AND app_id > ?
ORDER BY app_id LIMIT 1"""

# The place in the index in two parts: told in one condition, SQLite reads all the rows of
# one moment again for each step.
_AT = "due_at = ? AND id > ?"
_AFTER = "due_at > ?"
_FIND_LATER = """
SELECT json_group_array(json_array(
    later.id, app_id, state, due_at, created_at, ended_at, outcome))
FROM (
    SELECT id, app_id, state, due_at, created_at, attempt FROM tasks INDEXED BY tasks_due
    WHERE app_id = ? AND due_at IS NOT NULL AND {place}
    ORDER BY due_at, id LIMIT ?
) AS later
LEFT JOIN attempts ON attempts.task_id = later.id AND attempts.attempt = later.attempt"""

_BRING = """
UPDATE tasks SET due_at = v.column2 FROM {rows} AS v WHERE tasks.id = v.column1"""

_FIND_LONG_LEASED = """
SELECT json_group_array(id) FROM (
    SELECT id FROM tasks WHERE lease_expires_at > ? ORDER BY lease_expires_at DESC LIMIT ?
)"""

_SHORTEN = """
UPDATE tasks SET lease_expires_at = ? WHERE id IN (SELECT value FROM json_each(?))"""

_LAST_CREATED = "SELECT created_at FROM tasks ORDER BY id DESC LIMIT 1"

_LAST_FINISHED = "SELECT max(finished_at) FROM tasks WHERE finished_at IS NOT NULL"


def _forward(
    connection: sqlite3.Connection, orders: Sequence[ForwardOrder]
) -> list[BroughtForward | StoreError]:
    return [_forward_one(connection, order) for order in orders]


def _forward_one(connection: sqlite3.Connection, order: ForwardOrder) -> BroughtForward:
    if order.after is None:
        _shorten_leases(connection, order)
    tasks, app_id = _find_later(connection, order)
    sooner = [
        DueTask(task_id=task.task_id, app_id=task.app_id, due_at=due_at)
        for task in tasks
        if (due_at := brought_forward(task, now=order.now)) is not None
    ]
    if sooner:
        execute_rows(connection, _BRING, [(task.task_id, task.due_at) for task in sooner])
    return BroughtForward(tuple(sooner), reached_in(tasks, order.limit, app_id))


def _find_later(
    connection: sqlite3.Connection, order: ForwardOrder
) -> tuple[list[WaitingTask], int | None]:
    """Tasks that wait for a time after now, and the last application that was come to;
    None where there is none after it."""
    found: list[WaitingTask] = []
    after = order.after
    if after is None:
        app_id, due_at = 0, AFTER_ALL
    else:
        app_id, due_at = after.app_id, after.due_at
        found += _read(connection, _AT, (app_id, due_at, after.task_id), order.limit)
    walked = app_id
    for _ in range(_APPS_AT_ONCE):
        walked = app_id
        found += _read(connection, _AFTER, (app_id, due_at), order.limit - len(found))
        if len(found) == order.limit:
            break
        row = connection.execute(_NEXT_APP, (app_id,)).fetchone()
        if row is None:
            return found, None
        app_id, due_at = row[0], order.now
    return found, walked


def _read(
    connection: sqlite3.Connection, place: str, values: tuple[int, ...], limit: int
) -> list[WaitingTask]:
    rows = fetch_json(connection, _FIND_LATER.format(place=place), (*values, limit))
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


def _shorten_leases(connection: sqlite3.Connection, order: ForwardOrder) -> None:
    until = order.now + MAX_LEASE_MS
    ids = fetch_json(connection, _FIND_LONG_LEASED, (until, order.limit))
    if ids:
        connection.execute(_SHORTEN, (until, id_list(ids)))


def last_moment(connection: sqlite3.Connection) -> int | None:
    """See `Store.last_moment`."""
    rows = connection.execute(_LAST_CREATED).fetchall()
    rows += connection.execute(_LAST_FINISHED).fetchall()
    return max((moment for (moment,) in rows if moment is not None), default=None)


BRING_FORWARD = Operation("bring forward", _forward)

"""What a MySQL store does once its clock was set back: it brings forward what waits by the
time that the clock showed before.

Waiting tasks are walked through their index, an application at a time, in short steps,
without locks. A row is changed only if it still waits for the time that was read.
"""

from __future__ import annotations

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
from taskd.stores.mysql.connection import MySQLConnection, Row
from taskd.stores.mysql.rows import table
from taskd.stores.mysql.schema import OVER, RUNNING
from taskd.stores.mysql.writer import Operation
from taskd.stores.write_requests import ForwardOrder

_APPS_AT_ONCE = 100

NEXT_APP = """SELECT lane FROM tasks FORCE INDEX (tasks_lanes) WHERE lane > {app_id}
ORDER BY lane LIMIT 1"""

FIND_LATER = """SELECT id, app_id, state, moment, created_at, ended_at, outcome
FROM tasks FORCE INDEX (tasks_lanes)
LEFT JOIN attempts ON attempts.task_id = tasks.id AND attempts.attempt = tasks.attempt
WHERE lane = {app_id} AND {after}
ORDER BY moment, id LIMIT {limit}"""
# The place in the index in two parts: told in one condition, a server reads all the rows of
# one moment again for each step.
_AT = "moment = {due_at} AND id > {task_id}"
_AFTER = "moment > {due_at}"

BRING = """UPDATE JSON_TABLE({rows}, '$[*]' COLUMNS (
    id BIGINT PATH '$[0]', was BIGINT PATH '$[1]', due_at BIGINT PATH '$[2]'
)) AS v STRAIGHT_JOIN tasks FORCE INDEX (PRIMARY) ON tasks.id = v.id
SET tasks.moment = v.due_at WHERE tasks.lane > 0 AND tasks.moment = v.was"""

SHORTEN = f"""UPDATE tasks FORCE INDEX (tasks_lanes) SET moment = {{until}}
WHERE lane = {RUNNING} AND moment > {{until}} ORDER BY moment LIMIT {{limit}}"""  # noqa: S608  the parts are constants

LAST_CREATED = "SELECT created_at FROM tasks ORDER BY id DESC LIMIT 1"

LAST_FINISHED = f"""SELECT moment FROM tasks FORCE INDEX (tasks_lanes) WHERE lane = {OVER}
ORDER BY lane DESC, moment DESC LIMIT 1"""  # noqa: S608  the parts are constants


async def _forward(
    connection: MySQLConnection, orders: Sequence[ForwardOrder]
) -> list[BroughtForward | StoreError]:
    return [await _forward_one(connection, order) for order in orders]


async def _forward_one(connection: MySQLConnection, order: ForwardOrder) -> BroughtForward:
    if order.after is None:
        until = order.now + MAX_LEASE_MS
        await connection.execute(SHORTEN.format(until=until, limit=order.limit))
    tasks, app_id = await _find_later(connection, order)
    sooner: list[DueTask] = []
    rows: list[tuple[int, int, int]] = []
    for task in tasks:
        due_at = brought_forward(task, now=order.now)
        if due_at is not None:
            sooner.append(DueTask(task_id=task.task_id, app_id=task.app_id, due_at=due_at))
            rows.append((task.task_id, task.due_at, due_at))
    if rows:
        await connection.execute(BRING.format(rows=table(rows)))
    return BroughtForward(tuple(sooner), reached_in(tasks, order.limit, app_id))


async def _find_later(
    connection: MySQLConnection, order: ForwardOrder
) -> tuple[list[WaitingTask], int | None]:
    """Tasks that wait for a time after now, and the last application that was come to;
    None where there is none after it."""
    found: list[WaitingTask] = []
    after = order.after
    if after is None:
        app_id, due_at = 0, AFTER_ALL
    else:
        app_id, due_at = after.app_id, after.due_at
        at = _AT.format(due_at=due_at, task_id=after.task_id)
        found += await _read(connection, app_id, at, order.limit)
    walked = app_id
    for _ in range(_APPS_AT_ONCE):
        walked = app_id
        then = _AFTER.format(due_at=due_at)
        found += await _read(connection, app_id, then, order.limit - len(found))
        if len(found) == order.limit:
            break
        rows = (await connection.execute(NEXT_APP.format(app_id=app_id))).rows
        if not rows:
            return found, None
        app_id, due_at = rows[0][0], order.now
    return found, walked


async def _read(
    connection: MySQLConnection, app_id: int, after: str, limit: int
) -> list[WaitingTask]:
    statement = FIND_LATER.format(app_id=app_id, after=after, limit=limit)
    return [_waiting(row) for row in (await connection.execute(statement)).rows]


def _waiting(row: Row) -> WaitingTask:
    return WaitingTask(
        task_id=row[0],
        app_id=row[1],
        state=STATES[row[2]],
        due_at=row[3],
        created_at=row[4],
        ended_at=row[5],
        abandoned=row[6] == Outcome.ABANDONED,
    )


async def last_moment(connection: MySQLConnection) -> int | None:
    """See `Store.last_moment`."""
    rows = [*(await connection.execute(LAST_CREATED)).rows]
    rows += (await connection.execute(LAST_FINISHED)).rows
    return max((int(moment) for (moment,) in rows), default=None)


BRINGING_FORWARD = Operation("bring forward", _forward)

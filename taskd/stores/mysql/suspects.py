"""What a MySQL store knows of nodes that died, and of the tasks they had in flight."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from taskd.domain.model import DueTask, Suspect, Suspects
from taskd.domain.transitions import (
    KINDS,
    NEARLY_ALONE,
    NODE_ENDS_KEPT_MS,
    RECENT_DEATHS_MS,
    NodeEnd,
)
from taskd.errors import StoreError
from taskd.stores.mysql.connection import MySQLConnection
from taskd.stores.mysql.rows import ids, inserts, literal
from taskd.stores.mysql.schema import RUNNING
from taskd.stores.mysql.writer import Operation

FIND_END = "SELECT stopping, in_flight FROM node_ends WHERE node = {node}"

COUNT = f"""SELECT COUNT(*) FROM (SELECT 1 FROM tasks FORCE INDEX (tasks_lanes)
    WHERE lane = {RUNNING} AND node = {{node}} LIMIT {NEARLY_ALONE + 1}) AS some"""  # noqa: S608  the parts are constants

NOTE_END = """INSERT INTO node_ends (node, stopping, in_flight, noted_at)
VALUES ({node}, {stopping}, {in_flight}, {now})
ON DUPLICATE KEY UPDATE stopping = GREATEST(stopping, VALUES(stopping)),
    in_flight = GREATEST(in_flight, VALUES(in_flight))"""

FORGET_ENDS = "DELETE FROM node_ends WHERE noted_at < {before}"

FIND_ALONE = (
    "SELECT task_id, alone FROM suspects FORCE INDEX (PRIMARY) WHERE task_id IN {ids} FOR UPDATE"
)

_SUSPECT = "REPLACE INTO suspects (task_id, kind, alone) VALUES"

CLEAR = "DELETE FROM suspects WHERE task_id IN {ids}"

FIND = " UNION ALL ".join(
    f"""(SELECT task_id, app_id, moment, abandoned FROM suspects FORCE INDEX (suspects_kind)
STRAIGHT_JOIN tasks FORCE INDEX (PRIMARY) ON tasks.id = task_id
WHERE kind = {kind} AND task_id > {{after}} AND lane > 0 AND moment <= {{now}}
ORDER BY task_id LIMIT {{limit}})"""  # noqa: S608  the parts are constants
    for kind in KINDS
)

COUNT_DEATHS = """SELECT COUNT(*) FROM node_ends FORCE INDEX (node_ends_noted_at)
WHERE noted_at BETWEEN {after} AND {now} AND NOT stopping AND in_flight > 0"""


async def end_of(connection: MySQLConnection, node: str, *, now: int) -> NodeEnd:
    """How a node ended, as its first leases that are reaped find it. Kept, since its
    others are perhaps reaped later."""
    name = literal(node).decode()
    rows = (await connection.execute(FIND_END.format(node=name))).rows
    stopping, in_flight = rows[0] if rows else (0, 0)
    if not stopping and in_flight <= NEARLY_ALONE:
        ((counted,),) = (await connection.execute(COUNT.format(node=name))).rows
        if counted > in_flight:
            in_flight = counted
            await _note(connection, name, stopping=0, in_flight=in_flight, now=now)
    return NodeEnd(stopping=bool(stopping), in_flight=in_flight)


async def _note(
    connection: MySQLConnection, name: str, *, stopping: int, in_flight: int, now: int
) -> None:
    note = NOTE_END.format(node=name, stopping=stopping, in_flight=in_flight, now=now)
    await connection.execute(note)


async def alone_before(connection: MySQLConnection, task_ids: Iterable[int]) -> dict[int, int]:
    """How often in a row each was abandoned while it was nearly alone."""
    wanted = set(task_ids)
    if not wanted:
        return {}
    return dict((await connection.execute(FIND_ALONE.format(ids=ids(wanted)))).rows)


async def suspect(connection: MySQLConnection, rows: Sequence[tuple[int, int, int]]) -> None:
    """Keep tasks as suspects: id, kind, and how often in a row each was abandoned while
    nearly alone."""
    for statement, _ in inserts(_SUSPECT, sorted(rows)):
        await connection.execute(statement)


async def clear(connection: MySQLConnection, task_ids: Sequence[int]) -> None:
    """Suspect tasks no longer."""
    if task_ids:
        await connection.execute(CLEAR.format(ids=ids(task_ids)))


async def find_suspects(
    connection: MySQLConnection, *, now: int, after: int, limit: int
) -> Suspects:
    """See `Store.find_suspects`."""
    waiting = tuple(
        Suspect(task=DueTask(task_id=row[0], app_id=row[1], due_at=row[2]), abandoned=row[3])
        for row in (await connection.execute(FIND.format(now=now, after=after, limit=limit))).rows
    )
    deaths = 0
    if waiting:
        count = COUNT_DEATHS.format(after=now - RECENT_DEATHS_MS, now=now)
        ((deaths,),) = (await connection.execute(count)).rows
    return Suspects(waiting=waiting, deaths=deaths)


async def _note_stopping(
    connection: MySQLConnection, nodes: Sequence[tuple[str, int]]
) -> list[StoreError | None]:
    for node, now in nodes:
        name = literal(node).decode()
        await _note(connection, name, stopping=1, in_flight=0, now=now)
        await connection.execute(FORGET_ENDS.format(before=now - NODE_ENDS_KEPT_MS))
    return [None] * len(nodes)


NOTING_STOPPING = Operation("note stopping", _note_stopping)

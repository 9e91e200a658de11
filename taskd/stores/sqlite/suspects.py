"""What a SQLite store knows of nodes that died, and of the tasks they had in flight."""

from __future__ import annotations

import sqlite3
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
from taskd.stores.sqlite.rows import execute_rows, fetch_json, id_list
from taskd.stores.sqlite.writer import Operation

_FIND_END = "SELECT stopping, in_flight FROM node_ends WHERE node = ?"

_COUNT = """
SELECT count(*) FROM (
    SELECT 1 FROM tasks WHERE lease_expires_at IS NOT NULL AND node = ? LIMIT ?
)"""

_NOTE_END = """
INSERT INTO node_ends (node, stopping, in_flight, noted_at) VALUES (?, ?, ?, ?)
ON CONFLICT (node) DO UPDATE SET
    stopping = max(stopping, excluded.stopping), in_flight = max(in_flight, excluded.in_flight)"""

_FORGET_ENDS = "DELETE FROM node_ends WHERE noted_at < ?"

_FIND_ALONE = """
SELECT json_group_array(json_array(task_id, alone)) FROM suspects
WHERE task_id IN (SELECT value FROM json_each(?))"""

_SUSPECT = """
INSERT INTO suspects (task_id, kind, alone)
SELECT column1, column2, column3 FROM {rows} AS v WHERE v.column1 IS NOT NULL
ON CONFLICT (task_id) DO UPDATE SET kind = excluded.kind, alone = excluded.alone"""

_CLEAR = "DELETE FROM suspects WHERE task_id IN (SELECT value FROM json_each(?))"

_FIND = " UNION ALL ".join(
    f"""
SELECT * FROM (
    SELECT task_id, app_id, due_at, abandoned FROM suspects CROSS JOIN tasks ON tasks.id = task_id
    WHERE kind = {kind} AND task_id > :after AND due_at <= :now ORDER BY task_id LIMIT :limit
)"""  # noqa: S608  the parts are constants
    for kind in KINDS
)

_COUNT_DEATHS = """
SELECT count(*) FROM node_ends
WHERE noted_at BETWEEN ? AND ? AND NOT stopping AND in_flight > 0"""


def end_of(connection: sqlite3.Connection, node: str, *, now: int) -> NodeEnd:
    """How a node ended, as its first leases that are reaped find it. Kept, since its
    others are perhaps reaped later."""
    row = connection.execute(_FIND_END, (node,)).fetchone()
    stopping, in_flight = (0, 0) if row is None else row
    if not stopping and in_flight <= NEARLY_ALONE:
        (counted,) = connection.execute(_COUNT, (node, NEARLY_ALONE + 1)).fetchone()
        if counted > in_flight:
            in_flight = counted
            connection.execute(_FORGET_ENDS, (now - NODE_ENDS_KEPT_MS,))
            connection.execute(_NOTE_END, (node, 0, in_flight, now))
    return NodeEnd(stopping=bool(stopping), in_flight=in_flight)


def alone_before(connection: sqlite3.Connection, task_ids: Iterable[int]) -> dict[int, int]:
    """How often in a row each was abandoned while it was nearly alone."""
    ids = list(task_ids)
    return dict(fetch_json(connection, _FIND_ALONE, (id_list(ids),))) if ids else {}


def suspect(connection: sqlite3.Connection, rows: Sequence[tuple[int, int, int]]) -> None:
    """Keep tasks as suspects: id, kind, and how often in a row each was abandoned while
    nearly alone."""
    if rows:
        execute_rows(connection, _SUSPECT, rows)


def clear(connection: sqlite3.Connection, task_ids: Sequence[int]) -> None:
    """Suspect tasks no longer."""
    if task_ids:
        connection.execute(_CLEAR, (id_list(task_ids),))


def find_suspects(connection: sqlite3.Connection, *, now: int, after: int, limit: int) -> Suspects:
    """See `Store.find_suspects`."""
    waiting = tuple(
        Suspect(task=DueTask(task_id=row[0], app_id=row[1], due_at=row[2]), abandoned=row[3])
        for row in connection.execute(_FIND, {"now": now, "after": after, "limit": limit})
    )
    deaths = 0
    if waiting:
        (deaths,) = connection.execute(_COUNT_DEATHS, (now - RECENT_DEATHS_MS, now)).fetchone()
    return Suspects(waiting=waiting, deaths=deaths)


def _note_stopping(
    connection: sqlite3.Connection, nodes: Sequence[tuple[str, int]]
) -> list[StoreError | None]:
    for node, now in nodes:
        connection.execute(_FORGET_ENDS, (now - NODE_ENDS_KEPT_MS,))
        connection.execute(_NOTE_END, (node, 1, 0, now))
    return [None] * len(nodes)


NOTE_STOPPING = Operation("note stopping", _note_stopping)

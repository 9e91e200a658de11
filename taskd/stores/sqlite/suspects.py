"""What a SQLite store knows of nodes that died, and of the tasks they had in flight."""

from __future__ import annotations

import sqlite3

from taskd.domain.model import DueTask, Suspect, Suspects
from taskd.domain.transitions import (
    KINDS,
    RECENT_DEATHS_MS,
)

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

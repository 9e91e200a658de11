"""What a MySQL store knows of nodes that died, and of the tasks they had in flight."""

from __future__ import annotations

from taskd.domain.model import DueTask, Suspect, Suspects
from taskd.domain.transitions import (
    KINDS,
    RECENT_DEATHS_MS,
)
from taskd.stores.mysql.connection import MySQLConnection

FIND = " UNION ALL ".join(
    f"""(SELECT task_id, app_id, moment, abandoned FROM suspects FORCE INDEX (suspects_kind)
STRAIGHT_JOIN tasks FORCE INDEX (PRIMARY) ON tasks.id = task_id
WHERE kind = {kind} AND task_id > {{after}} AND lane > 0 AND moment <= {{now}}
ORDER BY task_id LIMIT {{limit}})"""  # noqa: S608  the parts are constants
    for kind in KINDS
)

COUNT_DEATHS = """SELECT COUNT(*) FROM node_ends FORCE INDEX (node_ends_noted_at)
WHERE noted_at BETWEEN {after} AND {now} AND NOT stopping AND in_flight > 0"""


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

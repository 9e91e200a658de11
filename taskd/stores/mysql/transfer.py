"""The Archive port on an open MySQL store."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from taskd.stores.mysql.connection import MySQLConnection
from taskd.stores.mysql.statements import MySQLStatements
from taskd.stores.operations.archive import SQLArchive
from taskd.stores.operations.session import Session
from taskd.stores.operations.store import SQLStore

T = TypeVar("T")

# The next id in information_schema may be out of date; that of SHOW CREATE TABLE is not.
_TABLE = "SHOW CREATE TABLE tasks"
_NEXT_ID = re.compile(r"\bAUTO_INCREMENT=([0-9]+)")
_RAISE_NEXT_ID = "ALTER TABLE tasks AUTO_INCREMENT = {id}"
_ALTER_S = 600.0


class Ask(Protocol):
    """Runs a query on a reader's connection."""

    async def __call__(self, query: Callable[[MySQLConnection], Awaitable[T]]) -> T:
        """Run it."""
        ...


class MySQLArchive(SQLArchive):
    """See the module."""

    def __init__(self, store: SQLStore, ask: Ask) -> None:
        super().__init__(store)
        self._ask = ask

    async def highest_task_id(self) -> int:
        """See `Archive.highest_task_id`."""
        return await self._ask(_highest)

    async def running(self) -> int:
        """Return how many tasks are leased now, under expired leases too."""
        return await self._store.read(_running)

    async def put_highest_task_id(self, task_id: int) -> None:
        """See `Archive.put_highest_task_id`."""

        async def command(connection: MySQLConnection) -> None:
            # ALTER commits by itself, so no lane runs it. InnoDB never sets the next id
            # below an id in the table.
            if await _highest(connection) < task_id:
                statement = _RAISE_NEXT_ID.format(id=task_id + 1)
                await connection.execute(statement, within_s=_ALTER_S)

        await self._ask(command)


async def _highest(connection: MySQLConnection) -> int:
    ((_, text),) = (await connection.execute(_TABLE)).rows
    found = _NEXT_ID.search(text)
    return int(found[1]) - 1 if found else 0


async def _running(session: Session) -> int:
    ((count,),) = await session.fetch(MySQLStatements.COUNT_RUNNING)
    return int(count)

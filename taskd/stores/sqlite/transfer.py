"""The Archive port on an open SQLite store."""

from __future__ import annotations

from collections.abc import Sequence

from taskd.errors import StoreError
from taskd.stores.batching import Operation
from taskd.stores.operations.archive import SQLArchive
from taskd.stores.operations.session import Session
from taskd.stores.sqlite.statements import SQLiteStatements


class SQLiteArchive(SQLArchive):
    """See the module."""

    async def highest_task_id(self) -> int:
        """See `Archive.highest_task_id`."""
        return await self._store.read(_highest)

    async def put_highest_task_id(self, task_id: int) -> None:
        """See `Archive.put_highest_task_id`."""
        await self._store.write(_PUT_HIGHEST, task_id)


async def _highest(session: Session) -> int:
    ((highest,),) = await session.fetch(SQLiteStatements.HIGHEST)
    return int(highest)


async def _put_highest(session: Session, ids: Sequence[int]) -> list[StoreError | None]:
    for task_id in ids:
        await session.execute(SQLiteStatements.RAISE_HIGHEST, id=task_id)
        await session.execute(SQLiteStatements.FIRST_HIGHEST, id=task_id)
    return [None] * len(ids)


_PUT_HIGHEST = Operation("put highest id", _put_highest)

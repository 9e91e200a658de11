"""Keeps a store small: deletes tasks that ended long ago, and expired nonces."""

from __future__ import annotations

from collections.abc import Sequence

from taskd.errors import StoreError
from taskd.stores.batching import Operation
from taskd.stores.operations.session import Session


async def purge(session: Session, requests: Sequence[tuple[int, int]]) -> list[int | StoreError]:
    """See `Store.purge`. Each request is its ``finished_before`` and ``limit``."""
    return [await _purge(session, before, limit) for before, limit in requests]


async def _purge(session: Session, before: int, limit: int) -> int:
    rows = await session.fetch(session.FIND_FINISHED, before=before, limit=limit)
    ids = [task_id for (task_id,) in rows]
    if ids:
        for statement in session.PURGE:
            await session.execute(statement, ids=ids)
    return len(ids)


async def forget_nonces(
    session: Session, requests: Sequence[tuple[int, int]]
) -> list[int | StoreError]:
    """See `Store.purge_nonces`. Each request is its ``now`` and ``limit``."""
    return [await session.forget_nonces(now, limit) for now, limit in requests]


PURGE = Operation("purge", purge)
FORGET_NONCES = Operation("forget nonces", forget_nonces)

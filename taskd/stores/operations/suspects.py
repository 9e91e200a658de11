"""Keeps how nodes ended, and which of the tasks that they had in flight are suspects."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from taskd.domain.model import DueTask, Suspect, Suspects
from taskd.domain.transitions import (
    NEARLY_ALONE,
    NODE_ENDS_KEPT_MS,
    RECENT_DEATHS_MS,
    NodeEnd,
)
from taskd.errors import StoreError
from taskd.stores.batching import Operation
from taskd.stores.operations.session import Session


async def end_of(session: Session, node: str, *, now: int) -> NodeEnd:
    """Return how a node ended. Its number of leases is noted when the first of them are reaped,
    since the others may be reaped later."""
    rows = await session.fetch(session.FIND_END, node=node)
    stopping, in_flight = rows[0] if rows else (0, 0)
    if not stopping and in_flight <= NEARLY_ALONE:
        ((counted,),) = await session.fetch(
            session.COUNT_IN_FLIGHT, node=node, limit=NEARLY_ALONE + 1
        )
        if counted > in_flight:
            in_flight = counted
            await _note(session, node, stopping=0, in_flight=in_flight, now=now)
    return NodeEnd(stopping=bool(stopping), in_flight=in_flight)


async def note_stopping(
    session: Session, nodes: Sequence[tuple[str, int]]
) -> list[StoreError | None]:
    """See `Store.note_stopping`. Each argument is a node's name and the time now."""
    for node, now in nodes:
        await _note(session, node, stopping=1, in_flight=0, now=now)
    return [None] * len(nodes)


async def _note(session: Session, node: str, *, stopping: int, in_flight: int, now: int) -> None:
    # First: a new note is merged into an old one of its node, and would be deleted with it.
    await session.execute(session.FORGET_ENDS, before=now - NODE_ENDS_KEPT_MS)
    await session.execute(
        session.NOTE_END, node=node, stopping=stopping, in_flight=in_flight, now=now
    )


async def alone_before(session: Session, task_ids: Collection[int]) -> dict[int, int]:
    """Return how often in a row each suspect was abandoned while nearly alone in flight."""
    if not task_ids:
        return {}
    return {row[0]: row[1] for row in await session.fetch(session.FIND_ALONE, ids=task_ids)}


async def suspect(session: Session, rows: Sequence[tuple[int, int, int]]) -> None:
    """Note suspects, a row each: id, kind, and how often in a row the task was abandoned while
    nearly alone in flight."""
    await session.execute_many(session.SUSPECT, sorted(rows))


async def clear(session: Session, task_ids: Collection[int]) -> None:
    """Let tasks be suspects no longer."""
    if task_ids:
        await session.execute(session.CLEAR, ids=task_ids)


async def find_suspects(session: Session, *, now: int, after: int, limit: int) -> Suspects:
    """See `Store.find_suspects`."""
    rows = await session.fetch(session.FIND_SUSPECTS, now=now, after=after, limit=limit)
    waiting = tuple(
        Suspect(task=DueTask(task_id=row[0], app_id=row[1], due_at=row[2]), abandoned=row[3])
        for row in rows
    )
    deaths = 0
    if waiting:
        ((deaths,),) = await session.fetch(
            session.COUNT_DEATHS, after=now - RECENT_DEATHS_MS, now=now
        )
    return Suspects(waiting=waiting, deaths=deaths)


NOTE_STOPPING = Operation("note stopping", note_stopping)

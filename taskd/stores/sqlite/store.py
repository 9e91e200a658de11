"""The Store port on a SQLite file, for a daemon on one machine.

The event loop and a thread write (`writer`), a few threads read (`reads`), one keeps the
write-ahead log short (`checkpoint`). Locks keep other daemons away (`lock`), a start refuses a
damaged database (`check`), and from then on the files are watched (`guard`). The processes of
one daemon share the file: their parent holds the locks (`opening.lock_database`), and they open
the store by `SQLiteStore.join`. What is written and read is in `operations`.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio

from taskd.errors import StoreError
from taskd.stores.batching import Operation
from taskd.stores.operations.session import Session, at_once
from taskd.stores.operations.store import SQLStore
from taskd.stores.sqlite.checkpoint import Checkpointer
from taskd.stores.sqlite.files import WriteTurn, wal_path
from taskd.stores.sqlite.guard import FileGuard
from taskd.stores.sqlite.header import Position
from taskd.stores.sqlite.lock import StoreLock
from taskd.stores.sqlite.opening import join_files, open_files
from taskd.stores.sqlite.reads import Readers
from taskd.stores.sqlite.schema import MIGRATIONS, Migration
from taskd.stores.sqlite.session import SQLiteSession
from taskd.stores.sqlite.task_ids import TaskIds
from taskd.stores.sqlite.transfer import SQLiteArchive
from taskd.stores.sqlite.writer import Writer

logger = logging.getLogger("taskd.stores.sqlite")

CLOSE_DEADLINE_S = 10.0

A = TypeVar("A")
R = TypeVar("R")

_PROBE = "INSERT OR REPLACE INTO meta (name, value) VALUES ('probe', randomblob(32768))"
"""Writes as much as a few creates, so that it fails if only a few bytes of the disk are free."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SQLiteStatistics:
    """What a `SQLiteStore` holds and has done since it was opened."""

    writes: int
    """Writing calls carried out, refused ones included."""
    batches: int
    """Transactions they shared."""
    failures: int
    """Transactions that the database failed; none of theirs was kept."""
    busy_s: float
    """Seconds the writer spent on transactions, waiting for the disk included."""
    waiting: int
    """Writing calls in its queue now."""
    wal_bytes: int
    """Size of the write-ahead log's file."""


class SQLiteStore(SQLStore):
    """The Store port on one file. Made by `open`."""

    def __init__(
        self,
        guard: FileGuard,
        ids: TaskIds,
        *,
        turn: WriteTurn | None = None,
        on_closed: Callable[[], None],
    ) -> None:
        super().__init__()
        self._guard = guard
        self._ids = ids
        self._probe = Operation("probe", partial(_probe, guard))
        self._readers = Readers(guard)
        self._checkpointer = Checkpointer(guard)
        self._writer = Writer(guard, self._checkpointer, on_closed, turn, self._session)

    @classmethod
    async def open(cls, path: Path, *, migrations: Sequence[Migration] = MIGRATIONS) -> SQLiteStore:
        """Open the database. Makes it if it is missing (with its folder, for this user only),
        brings it to the newest schema, and locks it against other daemons.

        Args:
            path: the file; its ``.lock``, ``-wal`` and ``-shm`` stand beside it.
            migrations: the steps from an empty file to the newest schema.

        Raises:
            StoreRefused: another daemon holds it, it is no taskd database or a
                newer one's, or it can't be made.
            StoreUnavailable: it can't be read or written now.
        """
        lock, guard, ids = await trio.to_thread.run_sync(open_files, path, migrations)
        store = cls(guard, ids, on_closed=lock.release)
        store._start()
        return store

    @classmethod
    async def join(cls, path: Path, lock: StoreLock) -> SQLiteStore:
        """Open a database that this process's parent has locked for the processes that it
        forks.

        Raises:
            StoreUnavailable: it can't be read or written now.
        """
        guard, ids, turn = await trio.to_thread.run_sync(join_files, path, lock)
        store = cls(guard, ids, turn=turn, on_closed=turn.close)
        store._start()
        return store

    def write(
        self, operation: Operation[A, R], argument: A, *, within_s: float | None = None
    ) -> Awaitable[R]:
        """See `SQLStore.write`."""
        return self._writer.execute(operation, argument, within_s=within_s)

    def end_by(self, latest: float) -> None:
        """See `Store.end_by`."""
        self._writer.end_by(latest)

    async def read(self, query: Callable[[Session], Coroutine[Any, Any, R]]) -> R:
        """See `SQLStore.read`. Nothing is told that a power cut could undo."""

        def run(connection: sqlite3.Connection) -> tuple[R, Position | None]:
            result = at_once(query(self._session(connection)))
            return result, self._guard.position()

        result, position = await self._readers.run(run)
        await self._writer.until_durable(position)
        return result

    def _session(self, connection: sqlite3.Connection) -> Session:
        return SQLiteSession(connection, self._apps, self._ids)

    def _start(self) -> None:
        self._checkpointer.start()
        self._writer.start()

    async def probe(self) -> None:
        """See `Store.probe`."""
        await self._writer.execute(self._probe, None)

    def degraded(self) -> str | None:
        """See `Store.degraded`: a reader that does not end lets the log grow."""
        return self._checkpointer.degraded()

    def archive(self) -> SQLiteArchive:
        """Return the Archive port of this store, to be used only while no node works on it."""
        return SQLiteArchive(self)

    def statistics(self) -> SQLiteStatistics:
        """Return what the store holds and has done."""
        writer = self._writer.statistics()
        try:
            wal_bytes = wal_path(self._guard.path).stat().st_size
        except FileNotFoundError:
            wal_bytes = 0
        return SQLiteStatistics(
            writes=writer.calls,
            batches=writer.batches,
            failures=writer.failures,
            busy_s=writer.busy_s,
            waiting=writer.waiting,
            wal_bytes=wal_bytes,
        )

    async def aclose(self, *, within_s: float = CLOSE_DEADLINE_S) -> None:
        """See `Store.aclose`. Waits ``within_s`` at most, cancelled or not."""
        self._closed = True
        with trio.move_on_after(within_s, shield=True) as deadline:
            await self._readers.aclose()
            await self._writer.aclose()
        if deadline.cancelled_caught:
            logger.error(
                "the store did not close within %g s; what was acknowledged is on disk",
                within_s,
            )


async def _probe(
    guard: FileGuard, session: Session, callers: Sequence[None]
) -> list[StoreError | None]:
    guard.check(alone=True)
    await session.execute(_PROBE)
    return [None] * len(callers)

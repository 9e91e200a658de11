"""The Store port on a MySQL or MariaDB database, for clusters.

Writers write, each in transactions of its own (`writer`), and reads run beside them, each kind
on the connections of a `pool`. What is written and read is in `operations`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

import trio

from taskd.errors import StoreError, StoreRefused, StoreUnavailable
from taskd.stores.batching import Operation, WriterStatistics
from taskd.stores.mysql.connection import MySQLConnection
from taskd.stores.mysql.errors import Conflict, ConnectionLost, Refused
from taskd.stores.mysql.pool import Pool, PoolStatistics
from taskd.stores.mysql.rows import row
from taskd.stores.mysql.schema import (
    MIGRATIONS,
    Migration,
    check,
    connected,
    lack_of_durability,
    tls_context,
)
from taskd.stores.mysql.session import MySQLSession
from taskd.stores.mysql.target import MySQLTarget
from taskd.stores.mysql.transfer import MySQLArchive
from taskd.stores.mysql.writer import MySQLWriter
from taskd.stores.operations.cancellation import CANCEL
from taskd.stores.operations.leases import EXTEND, LEASE
from taskd.stores.operations.session import Session
from taskd.stores.operations.settlement import SETTLE
from taskd.stores.operations.store import SQLStore
from taskd.stores.operations.submission import ADD_APP, SUBMIT
from taskd.stores.operations.suspects import NOTE_STOPPING

logger = logging.getLogger("taskd.stores.mysql")

Durability = Literal["full", "relaxed"]

CLOSE_DEADLINE_S = 10.0

_READERS = 4
# Rows of nodes that have written nothing for a week. They are looked for without locks: the
# rows of nodes at work may be locked for as long as a transaction lasts.
_OLD_BATCHES = "SELECT lane FROM batches WHERE seen_at < UNIX_TIMESTAMP() - 604800 LIMIT 1000"
_FORGET_BATCHES = "DELETE FROM batches WHERE lane IN "

_TIME = "SELECT CAST(FLOOR(UNIX_TIMESTAMP(NOW(6)) * 1000) AS SIGNED)"

# Submitting, leasing, settling, extending leases, cancelling and upkeep do not wait for one
# another: above all, leases are extended in time.
_WRITERS = {
    SUBMIT.name: "submit",
    ADD_APP.name: "submit",
    LEASE.name: "lease",
    SETTLE.name: "settle",
    EXTEND.name: "hold",
    NOTE_STOPPING.name: "hold",
    CANCEL.name: "cancel",
}
"""The writer of an operation; that of all others is ``upkeep``."""

A = TypeVar("A")
R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class MySQLStatistics:
    """What a `MySQLStore` has done since it was opened."""

    writers: dict[str, WriterStatistics]
    """By name: what each of the writers has done."""
    write_pool: PoolStatistics
    read_pool: PoolStatistics


class MySQLStore(SQLStore):
    """The Store port on one database. Made by `open`."""

    def __init__(self, target: MySQLTarget, *, write_pool: Pool, read_pool: Pool) -> None:
        super().__init__()
        self._target = target
        self._write_pool = write_pool
        self._read_pool = read_pool
        self._writers = {
            name: MySQLWriter(name, write_pool, self._session)
            for name in ("submit", "lease", "settle", "hold", "cancel", "upkeep")
        }
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self.durability_note: str | None = None
        """Why a crash of the server's machine may lose acknowledged writes; None if it can't.
        Set only if the operator accepts this (``relaxed``)."""

    @classmethod
    async def open(
        cls,
        target: MySQLTarget,
        *,
        durability: Durability = "full",
        migrations: Sequence[Migration] = MIGRATIONS,
    ) -> Self:
        """Open a database that `schema.migrate` has brought to this version.

        Args:
            target: where it is.
            durability: ``relaxed`` also accepts a server that may lose committed writes
                when its machine fails; `durability_note` then says so.
            migrations: the steps from an empty database to the newest schema.

        Raises:
            StoreRefused: the server is too old, refuses this user, or is not durable;
                or the database is missing, not taskd's, or of another version. The
                message is one sentence and says what to do.
            StoreUnavailable: it can't be reached or used now.
        """
        async with connected(target) as connection:
            await check(connection, newest=len(migrations))
            note = await lack_of_durability(connection)
            if note is not None and durability == "full":
                raise StoreRefused(
                    f'{note}, so an acknowledged task may be lost: set it to 1, or durability = "'
                    'relaxed" in [store]'
                )
            old = [lane for (lane,) in (await connection.execute(_OLD_BATCHES)).rows]
            if old:
                await connection.execute(_FORGET_BATCHES.encode() + row(sorted(old)))
        tls = await trio.to_thread.run_sync(tls_context, target)
        store = cls(
            target,
            write_pool=Pool(target, tls, size=6, autocommit=False),
            read_pool=Pool(target, tls, size=_READERS, autocommit=True),
        )
        store.durability_note = note
        trio.lowlevel.spawn_system_task(store._run, name="the store's writers")
        return store

    def write(
        self, operation: Operation[A, R], argument: A, *, within_s: float | None = None
    ) -> Awaitable[R]:
        """See `SQLStore.write`."""
        writer = self._writers[_WRITERS.get(operation.name, "upkeep")]
        return writer.execute(operation, argument, within_s=within_s)

    def end_by(self, latest: float) -> None:
        """See `Store.end_by`."""
        for writer in self._writers.values():
            writer.end_by(latest)

    async def read(self, query: Callable[[Session], Coroutine[Any, Any, R]]) -> R:
        """See `SQLStore.read`."""
        return await self._ask(lambda connection: query(self._session(connection)))

    def _session(self, connection: MySQLConnection) -> Session:
        return MySQLSession(connection, self._apps)

    async def time_ms(self) -> int:
        """Return the database's time: milliseconds since the Unix epoch, rounded down, read
        between the call and its return.

        Raises:
            StoreUnavailable: it can't be read.
        """
        return await self._ask(_time_ms)

    def degraded(self) -> None:
        """See `Store.degraded`. Nothing is known here: the server reports its own faults."""

    async def probe(self) -> None:
        """See `Store.probe`. Waits for the earlier calls of every writer."""
        errors: list[StoreError] = []

        async def one(writer: MySQLWriter) -> None:
            try:
                await writer.execute(PROBE, None)
            except StoreError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for writer in self._writers.values():
                nursery.start_soon(one, writer)
        if errors:
            raise errors[0]
        if self.durability_note is None:
            note = await self._ask(lack_of_durability)
            if note is not None:
                raise StoreUnavailable(f"the database can't be trusted any more: {note}")

    def archive(self) -> MySQLArchive:
        """Return the Archive port of this store, to be used only while no node works on it."""
        return MySQLArchive(self, self._ask)

    def statistics(self) -> MySQLStatistics:
        """Return what the store has done."""
        return MySQLStatistics(
            writers={name: writer.statistics() for name, writer in self._writers.items()},
            write_pool=self._write_pool.statistics(),
            read_pool=self._read_pool.statistics(),
        )

    async def aclose(self, *, within_s: float = CLOSE_DEADLINE_S) -> None:
        """See `Store.aclose`. Waits ``within_s`` at most, cancelled or not."""
        self._closed = True
        for writer in self._writers.values():
            writer.close()
        with trio.move_on_after(within_s, shield=True) as deadline:
            await self._ended.wait()
        if deadline.cancelled_caught:
            logger.error(
                "the store did not close within %g s; what was acknowledged is durable", within_s
            )
            self._scope.cancel()
        with trio.CancelScope(shield=True):
            await self._ended.wait()
            await self._write_pool.aclose()
            await self._read_pool.aclose()

    async def _run(self) -> None:
        """Run the writers, as a system task: it outlives the task that opened the store, and must
        not raise."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for writer in self._writers.values():
                        nursery.start_soon(writer.run)
        except Exception:
            logger.exception("the store's lanes failed")
        finally:
            self._ended.set()

    async def _ask(self, query: Callable[[MySQLConnection], Awaitable[T]]) -> T:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        try:
            try:
                return await self._query(query)
            except ConnectionLost:
                # An idle connection may have been dead; a query can be repeated.
                await self._read_pool.forget_idle()
                return await self._query(query)
        except (Conflict, Refused) as error:
            raise StoreUnavailable(f"the database can't be used now: {error}") from error

    async def _query(self, query: Callable[[MySQLConnection], Awaitable[T]]) -> T:
        async with self._read_pool.connection() as connection:
            return await query(connection)


async def _time_ms(connection: MySQLConnection) -> int:
    ((told,),) = (await connection.execute(_TIME)).rows
    return int(told)


async def _probe(_session: Session, callers: Sequence[None]) -> list[StoreError | None]:
    # Nothing to do here: every transaction writes its lane's number.
    return [None] * len(callers)


PROBE = Operation("probe", _probe)

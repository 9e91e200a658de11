"""The Store port on a MySQL or MariaDB database: the truth of a cluster.

Lanes write, each in transactions of its own (`writer`); readers read beside
them (`reads`); both on connections that `pool` looks after.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self, TypeVar

import trio

from taskd.domain.model import (
    WHOLE,
    App,
    CancelDecision,
    DueTask,
    ExistingTask,
    Lease,
    LeasedTask,
    NewTask,
    NonceUse,
    ReapedTask,
    Settlement,
    Shard,
    Suspects,
    TaskDetail,
    TaskState,
)
from taskd.domain.transitions import check_settlement
from taskd.errors import DuplicateTaskNo, StoreError, StoreRefused, StoreUnavailable
from taskd.ports.store import BroughtForward, ExtendResult
from taskd.stores.batching import WriterStatistics
from taskd.stores.mysql import reads
from taskd.stores.mysql.connection import MySQLConnection
from taskd.stores.mysql.errors import Conflict, ConnectionLost, Refused
from taskd.stores.mysql.pool import Pool, PoolStatistics
from taskd.stores.mysql.reads import AppReader
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
from taskd.stores.mysql.writer import Lane, Operation
from taskd.stores.operations import lookup
from taskd.stores.operations.cancellation import cancel
from taskd.stores.operations.forward import bring_forward, last_moment
from taskd.stores.operations.leases import extend, lease
from taskd.stores.operations.session import Session
from taskd.stores.operations.settlement import reap, settle
from taskd.stores.operations.submission import add_apps, submit, weigh
from taskd.stores.operations.suspects import find_suspects, note_stopping
from taskd.stores.operations.upkeep import forget_nonces, purge
from taskd.stores.write_requests import (
    AppAddition,
    CancelRequest,
    ExtendRequest,
    ForwardRequest,
    LeaseRequest,
    ReapRequest,
    Submission,
)

logger = logging.getLogger("taskd.stores.mysql")

Durability = Literal["full", "relaxed"]

CLOSE_DEADLINE_S = 10.0

_READERS = 4
# Of nodes that have written nothing for a week. Looked for without locks: those of
# nodes at work may be held for as long as a transaction lasts.
_OLD_BATCHES = "SELECT lane FROM batches WHERE seen_at < UNIX_TIMESTAMP() - 604800 LIMIT 1000"
_FORGET_BATCHES = "DELETE FROM batches WHERE lane IN "

A = TypeVar("A")
R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class MySQLStatistics:
    """What a `MySQLStore` has done since it was opened."""

    lanes: dict[str, WriterStatistics]
    """By name: what each of the writers has done."""
    writers: PoolStatistics
    readers: PoolStatistics


class MySQLStore:
    """The Store port on one database. Made by `open`."""

    def __init__(self, target: MySQLTarget, *, writers: Pool, readers: Pool) -> None:
        self._target = target
        self._writers = writers
        self._readers = readers
        self._apps = AppReader()
        self._submit = self._operation("submit", submit, weigh)
        self._add_app = self._operation("add app", add_apps)
        self._lease = self._operation("lease", lease)
        self._extend = self._operation("extend", extend)
        self._settle = self._operation("settle", settle)
        self._cancel = self._operation("cancel", cancel)
        self._reap = self._operation("reap", reap)
        self._note_stopping = self._operation("note stopping", note_stopping)
        self._bring_forward = self._operation("bring forward", bring_forward)
        self._purge = self._operation("purge", purge)
        self._forget_nonces = self._operation("forget nonces", forget_nonces)
        # Those who submit, lease, settle, hold a lease, cancel and tidy up do not wait
        # for one another: least of all those who extend leases.
        self._submits = Lane("submit", writers)
        self._leases = Lane("lease", writers)
        self._settles = Lane("settle", writers)
        self._holds = Lane("hold", writers)
        self._cancels = Lane("cancel", writers)
        self._upkeep = Lane("upkeep", writers)
        self._lanes = {
            "submit": self._submits,
            "lease": self._leases,
            "settle": self._settles,
            "hold": self._holds,
            "cancel": self._cancels,
            "upkeep": self._upkeep,
        }
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._closed = False
        self.durability_note: str | None = None
        """Why what was acknowledged may be lost with the server's machine, if so and
        the operator takes it."""

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
            durability: ``relaxed`` also takes a server that may lose what it has
                committed when its machine fails; `durability_note` then says so.
            migrations: what leads from an empty database to the newest schema.

        Raises:
            StoreRefused: the server is not what is needed, refuses this user, or is
                not durable; or the database is missing, not taskd's, or of another
                version. In one sentence, with what to do.
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
            writers=Pool(target, tls, size=6, autocommit=False),
            readers=Pool(target, tls, size=_READERS, autocommit=True),
        )
        store.durability_note = note
        trio.lowlevel.spawn_system_task(store._run, name="the store's lanes")
        return store

    def _operation(
        self,
        name: str,
        operation: Callable[[Session, Sequence[A]], Awaitable[Sequence[R | StoreError]]],
        weigh: Callable[[A], int] = lambda _: 0,
    ) -> Operation[A, R]:
        def run(
            connection: MySQLConnection, arguments: Sequence[A]
        ) -> Awaitable[Sequence[R | StoreError]]:
            return operation(self._session(connection), arguments)

        return Operation(name, run, weigh)

    def _session(self, connection: MySQLConnection) -> Session:
        return MySQLSession(connection, self._apps)

    async def create_app(self, app: App, nonce: NonceUse | None = None) -> App:
        """See `Store.create_app`."""
        since = self._apps.forgets
        created = await self._submits.execute(self._add_app, AppAddition(app, nonce))
        self._apps.keep(created, since=since)
        return created

    async def app_by_key(self, app_key: str) -> App | None:
        """See `Store.app_by_key`."""
        app = self._apps.by_key(app_key)
        if app is None or self._closed:
            return await self._read(lambda c: self._apps.read_by_key(c, app_key))
        await trio.lowlevel.checkpoint()
        return app

    def known_app(self, app_key: str) -> App | None:
        """See `Store.known_app`."""
        return self._apps.by_key(app_key)

    async def apps_by_key(self, app_keys: Collection[str]) -> Mapping[str, App]:
        """See `Store.apps_by_key`."""
        return await self._read(lambda c: self._apps.read_anew(c, app_keys))

    async def app_by_id(self, app_id: int) -> App | None:
        """See `Store.app_by_id`."""
        app = self._apps.by_id(app_id)
        if app is None or self._closed:
            return await self._read(lambda c: self._apps.read_by_id(c, app_id))
        await trio.lowlevel.checkpoint()
        return app

    def forget_app(self, app_id: int) -> None:
        """See `Store.forget_app`."""
        self._apps.forget(app_id)

    async def refresh_apps(self) -> Collection[int]:
        """See `Store.refresh_apps`."""
        return await self._read(self._apps.read_oldest)

    async def create_task(self, task: NewTask, nonce: NonceUse | None = None) -> int:
        """See `Store.create_task`."""
        (added,) = await self._submits.execute(self._submit, Submission((task,), nonce))
        if isinstance(added, ExistingTask):
            raise DuplicateTaskNo(added)
        return added

    async def create_tasks(
        self, tasks: Sequence[NewTask], nonce: NonceUse | None = None, *, atomic: bool = False
    ) -> list[int | ExistingTask]:
        """See `Store.create_tasks`."""
        return await self._submits.execute(self._submit, Submission(tasks, nonce, atomic))

    async def use_nonce(self, nonce: NonceUse) -> None:
        """See `Store.use_nonce`."""
        await self._submits.execute(self._submit, Submission((), nonce))

    async def task_detail(
        self, app_id: int, *, task_id: int | None = None, task_no: str | None = None
    ) -> TaskDetail | None:
        """See `Store.task_detail`."""
        return await self._read(
            lambda c: lookup.task_detail(self._session(c), app_id, task_id, task_no)
        )

    async def find_due(
        self,
        *,
        until: int,
        after: int | None = None,
        limit_per_app: int,
        skip_apps: Collection[int] = (),
        shard: Shard = WHOLE,
    ) -> list[DueTask]:
        """See `Store.find_due`."""
        return await self._read(
            lambda c: self._session(c).find_due(
                until=until,
                after=after,
                limit_per_app=limit_per_app,
                skip_apps=skip_apps,
                shard=shard,
            )
        )

    async def time_ms(self) -> int:
        """The database's time: milliseconds since the Unix epoch, rounded down, read
        between the call and its return.

        Raises:
            StoreUnavailable: it can't be had.
        """
        return await self._read(reads.time_ms)

    async def lease(
        self,
        task_ids: Sequence[int],
        *,
        node: str,
        now: int,
        expires_at: int,
        suspects: bool = True,
        room: int | None = None,
    ) -> list[LeasedTask]:
        """See `Store.lease`."""
        order = LeaseRequest(tuple(task_ids), node, now, expires_at, suspects, room)
        return await self._leases.execute(self._lease, order)

    async def content(self, task_id: int) -> bytes | None:
        """See `Store.content`."""
        return await self._read(lambda c: lookup.content(self._session(c), task_id))

    async def find_suspects(self, *, now: int, after: int, limit: int) -> Suspects:
        """See `Store.find_suspects`."""
        return await self._read(
            lambda c: find_suspects(self._session(c), now=now, after=after, limit=limit)
        )

    async def note_stopping(self, node: str, *, now: int) -> None:
        """See `Store.note_stopping`."""
        await self._holds.execute(self._note_stopping, (node, now))

    async def extend(self, leases: Sequence[Lease], *, expires_at: int) -> ExtendResult:
        """See `Store.extend`."""
        return await self._holds.execute(self._extend, ExtendRequest(tuple(leases), expires_at))

    async def settle(self, settlement: Settlement) -> TaskState:
        """See `Store.settle`."""
        check_settlement(settlement)
        return await self._settles.execute(self._settle, settlement)

    async def request_cancel(
        self, app_id: int, task_id: int | None = None, *, task_no: str | None = None, now: int
    ) -> CancelDecision:
        """See `Store.request_cancel`."""
        order = CancelRequest(app_id, task_id, task_no, now)
        return await self._cancels.execute(self._cancel, order)

    async def reap(
        self,
        *,
        now: int,
        expired_at: int | None,
        exclude: Collection[int],
        limit: int,
        node: str | None = None,
        alive: Collection[str] = (),
    ) -> list[ReapedTask]:
        """See `Store.reap`."""
        order = ReapRequest(now, expired_at, tuple(exclude), limit, node, tuple(alive))
        return await self._upkeep.execute(self._reap, order)

    async def bring_forward(self, *, now: int, after: DueTask | None, limit: int) -> BroughtForward:
        """See `Store.bring_forward`."""
        return await self._upkeep.execute(self._bring_forward, ForwardRequest(now, after, limit))

    async def last_moment(self) -> int | None:
        """See `Store.last_moment`."""
        return await self._read(lambda c: last_moment(self._session(c)))

    async def purge(self, *, finished_before: int, limit: int) -> int:
        """See `Store.purge`."""
        return await self._upkeep.execute(self._purge, (finished_before, limit))

    async def purge_nonces(self, *, now: int, limit: int) -> int:
        """See `Store.purge_nonces`."""
        return await self._upkeep.execute(self._forget_nonces, (now, limit))

    def degraded(self) -> None:
        """See `Store.degraded`: what is wrong with it, its server tells."""

    async def probe(self) -> None:
        """See `Store.probe`. Waits for what was asked of every lane before."""
        errors: list[StoreError] = []

        async def one(lane: Lane) -> None:
            try:
                await lane.execute(PROBE, None)
            except StoreError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for lane in self._lanes.values():
                nursery.start_soon(one, lane)
        if errors:
            raise errors[0]
        if self.durability_note is None:
            note = await self._read(lack_of_durability)
            if note is not None:
                raise StoreUnavailable(f"the database can't be trusted any more: {note}")

    def archive(self) -> MySQLArchive:
        """What moves between stores; only while no node works on this one."""
        return MySQLArchive(self._read, self._upkeep)

    def statistics(self) -> MySQLStatistics:
        """What it has done."""
        return MySQLStatistics(
            lanes={name: lane.statistics() for name, lane in self._lanes.items()},
            writers=self._writers.statistics(),
            readers=self._readers.statistics(),
        )

    async def aclose(self, *, within_s: float = CLOSE_DEADLINE_S) -> None:
        """See `Store.aclose`. Waits ``within_s`` at most, cancelled or not."""
        self._closed = True
        for lane in self._lanes.values():
            lane.close()
        with trio.move_on_after(within_s, shield=True) as deadline:
            await self._ended.wait()
        if deadline.cancelled_caught:
            logger.error(
                "the store did not close within %g s; what was acknowledged is durable", within_s
            )
            self._scope.cancel()
        with trio.CancelScope(shield=True):
            await self._ended.wait()
            await self._writers.aclose()
            await self._readers.aclose()

    async def _run(self) -> None:
        """A system task: it outlives whoever opened the store, and may not fail."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for lane in self._lanes.values():
                        nursery.start_soon(lane.run)
        except Exception:
            logger.exception("the store's lanes failed")
        finally:
            self._ended.set()

    async def _read(self, query: Callable[[MySQLConnection], Awaitable[T]]) -> T:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        try:
            try:
                return await self._query(query)
            except ConnectionLost:
                # One that was idle may have been dead: nothing is lost by asking again.
                await self._readers.forget_idle()
                return await self._query(query)
        except (Conflict, Refused) as error:
            raise StoreUnavailable(f"the database can't be used now: {error}") from error

    async def _query(self, query: Callable[[MySQLConnection], Awaitable[T]]) -> T:
        async with self._readers.connection() as connection:
            return await query(connection)


async def _probe(_connection: MySQLConnection, callers: Sequence[None]) -> list[StoreError | None]:
    # Every transaction writes its number.
    return [None] * len(callers)


PROBE = Operation("probe", _probe)

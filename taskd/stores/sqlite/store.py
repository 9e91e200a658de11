"""The Store port on a SQLite file: the truth of a daemon on one machine.

One thread writes (`writer`), a few read (`reads`), one keeps the
write-ahead log short (`checkpoint`). Locks keep other daemons away
(`lock`), a start refuses what is damaged (`check`), and the files are
watched from then on (`guard`). The processes of one daemon share the file: one
of them holds the locks (`opening.hold`), and those it forks open the store by
`SQLiteStore.join`.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

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
from taskd.errors import DuplicateTaskNo, StoreError
from taskd.ports.store import BroughtForward, ExtendResult
from taskd.stores.operations import lookup
from taskd.stores.operations.cancellation import cancel
from taskd.stores.operations.forward import bring_forward, last_moment
from taskd.stores.operations.leases import extend, lease
from taskd.stores.operations.session import Session, at_once
from taskd.stores.operations.settlement import reap, settle
from taskd.stores.operations.submission import add_apps, submit
from taskd.stores.operations.suspects import find_suspects, note_stopping
from taskd.stores.operations.upkeep import forget_nonces, purge
from taskd.stores.sqlite.apps import AppReader
from taskd.stores.sqlite.checkpoint import Checkpointer
from taskd.stores.sqlite.files import WriteTurn, wal_path
from taskd.stores.sqlite.guard import FileGuard
from taskd.stores.sqlite.lock import StoreLock
from taskd.stores.sqlite.opening import join_files, open_files
from taskd.stores.sqlite.reads import Readers
from taskd.stores.sqlite.schema import MIGRATIONS, Migration
from taskd.stores.sqlite.session import SQLiteSession
from taskd.stores.sqlite.task_ids import TaskIds
from taskd.stores.sqlite.transfer import SQLiteArchive
from taskd.stores.sqlite.writer import Operation, Writer
from taskd.stores.write_requests import (
    AppAddition,
    CancelRequest,
    ExtendRequest,
    ForwardRequest,
    LeaseRequest,
    ReapRequest,
    Submission,
)

logger = logging.getLogger("taskd.stores.sqlite")

CLOSE_DEADLINE_S = 10.0

A = TypeVar("A")
R = TypeVar("R")
T = TypeVar("T")

_PROBE = "INSERT OR REPLACE INTO meta (name, value) VALUES ('probe', randomblob(32768))"
"""As much as a few creates need, so that the last free bytes do not pass for room."""


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


class SQLiteStore:
    """The Store port on one file. Made by `open`."""

    def __init__(
        self,
        guard: FileGuard,
        ids: TaskIds,
        *,
        turn: WriteTurn | None = None,
        on_closed: Callable[[], None],
    ) -> None:
        self._guard = guard
        self._probe = Operation("probe", partial(_probe, guard))
        self._closed = False
        self._apps = AppReader()
        self._ids = ids
        self._submit = self._operation("submit", submit)
        self._add_app = self._operation("add app", add_apps)
        self._lease = self._operation("lease", lease)
        self._extend = self._operation("extend", extend)
        self._settle = self._operation("settle", settle, patient=True)
        self._cancel = self._operation("cancel", cancel)
        self._reap = self._operation("reap", reap)
        self._note_stopping = self._operation("note stopping", note_stopping)
        self._bring_forward = self._operation("bring forward", bring_forward)
        self._purge = self._operation("purge", purge)
        self._forget_nonces = self._operation("forget nonces", forget_nonces)
        self._readers = Readers(guard)
        self._checkpointer = Checkpointer(guard)
        self._writer = Writer(guard, self._checkpointer, on_closed, turn)

    @classmethod
    async def open(cls, path: Path, *, migrations: Sequence[Migration] = MIGRATIONS) -> SQLiteStore:
        """Open the database, made where missing (with its folder, for this user
        only), brought to the newest schema, held against other daemons.

        Args:
            path: the file; its ``.lock``, ``-wal`` and ``-shm`` stand beside it.
            migrations: what leads from an empty file to the newest schema.

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
        """Open a database that this process's parent holds, beside the
        other processes that it has forked.

        Raises:
            StoreUnavailable: it can't be read or written now.
        """
        guard, ids, turn = await trio.to_thread.run_sync(join_files, path, lock)
        store = cls(guard, ids, turn=turn, on_closed=turn.close)
        store._start()
        return store

    def _operation(
        self,
        name: str,
        operation: Callable[[Session, Sequence[A]], Coroutine[Any, Any, Sequence[R | StoreError]]],
        *,
        patient: bool = False,
    ) -> Operation[A, R]:
        def run(connection: sqlite3.Connection, arguments: Sequence[A]) -> Sequence[R | StoreError]:
            return at_once(operation(self._session(connection), arguments))

        return Operation(name, run, patient=patient)

    async def _read(self, query: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
        return await self._readers.run(lambda connection: at_once(query(self._session(connection))))

    def _session(self, connection: sqlite3.Connection) -> Session:
        return SQLiteSession(connection, self._apps, self._ids)

    def _start(self) -> None:
        self._checkpointer.start()
        self._writer.start()

    async def create_app(self, app: App, nonce: NonceUse | None = None) -> App:
        """See `Store.create_app`."""
        since = self._apps.forgets
        created = await self._writer.execute(self._add_app, AppAddition(app, nonce))
        self._apps.keep(created, since=since)
        return created

    async def app_by_key(self, app_key: str) -> App | None:
        """See `Store.app_by_key`."""
        app = self._apps.by_key(app_key)
        if app is None or self._closed:
            return await self._readers.run(
                lambda connection: self._apps.read_by_key(connection, app_key)
            )
        # Every signed request asks, and pauses elsewhere: a whole pass of the scheduler
        # would be a twentieth of a create.
        await trio.lowlevel.checkpoint_if_cancelled()
        return app

    def known_app(self, app_key: str) -> App | None:
        """See `Store.known_app`."""
        return self._apps.by_key(app_key)

    async def apps_by_key(self, app_keys: Collection[str]) -> Mapping[str, App]:
        """See `Store.apps_by_key`."""
        return await self._readers.run(
            lambda connection: self._apps.read_anew(connection, app_keys)
        )

    async def app_by_id(self, app_id: int) -> App | None:
        """See `Store.app_by_id`."""
        app = self._apps.by_id(app_id)
        if app is None or self._closed:
            return await self._readers.run(
                lambda connection: self._apps.read_by_id(connection, app_id)
            )
        await trio.lowlevel.checkpoint()
        return app

    def forget_app(self, app_id: int) -> None:
        """See `Store.forget_app`."""
        self._apps.forget(app_id)

    async def refresh_apps(self) -> Collection[int]:
        """See `Store.refresh_apps`."""
        return await self._readers.run(self._apps.read_oldest)

    async def create_task(self, task: NewTask, nonce: NonceUse | None = None) -> int:
        """See `Store.create_task`."""
        (added,) = await self._writer.execute(self._submit, Submission((task,), nonce))
        if isinstance(added, ExistingTask):
            raise DuplicateTaskNo(added)
        return added

    async def create_tasks(
        self, tasks: Sequence[NewTask], nonce: NonceUse | None = None, *, atomic: bool = False
    ) -> list[int | ExistingTask]:
        """See `Store.create_tasks`."""
        return await self._writer.execute(self._submit, Submission(tasks, nonce, atomic))

    async def use_nonce(self, nonce: NonceUse) -> None:
        """See `Store.use_nonce`."""
        await self._writer.execute(self._submit, Submission((), nonce))

    async def task_detail(
        self, app_id: int, *, task_id: int | None = None, task_no: str | None = None
    ) -> TaskDetail | None:
        """See `Store.task_detail`."""
        return await self._read(
            lambda session: lookup.task_detail(session, app_id, task_id, task_no)
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
            lambda session: session.find_due(
                until=until,
                after=after,
                limit_per_app=limit_per_app,
                skip_apps=tuple(skip_apps),
                shard=shard,
            )
        )

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
        return await self._writer.execute(self._lease, order)

    async def content(self, task_id: int) -> bytes | None:
        """See `Store.content`."""
        return await self._read(lambda session: lookup.content(session, task_id))

    async def find_suspects(self, *, now: int, after: int, limit: int) -> Suspects:
        """See `Store.find_suspects`."""
        return await self._read(
            lambda session: find_suspects(session, now=now, after=after, limit=limit)
        )

    async def note_stopping(self, node: str, *, now: int) -> None:
        """See `Store.note_stopping`."""
        await self._writer.execute(self._note_stopping, (node, now))

    async def extend(self, leases: Sequence[Lease], *, expires_at: int) -> ExtendResult:
        """See `Store.extend`."""
        return await self._writer.execute(self._extend, ExtendRequest(tuple(leases), expires_at))

    async def settle(self, settlement: Settlement) -> TaskState:
        """See `Store.settle`."""
        check_settlement(settlement)
        return await self._writer.execute(self._settle, settlement)

    async def request_cancel(
        self, app_id: int, task_id: int | None = None, *, task_no: str | None = None, now: int
    ) -> CancelDecision:
        """See `Store.request_cancel`."""
        order = CancelRequest(app_id, task_id, task_no, now)
        return await self._writer.execute(self._cancel, order)

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
        return await self._writer.execute(
            self._reap, ReapRequest(now, expired_at, tuple(exclude), limit, node, tuple(alive))
        )

    async def bring_forward(self, *, now: int, after: DueTask | None, limit: int) -> BroughtForward:
        """See `Store.bring_forward`."""
        return await self._writer.execute(self._bring_forward, ForwardRequest(now, after, limit))

    async def last_moment(self) -> int | None:
        """See `Store.last_moment`."""
        return await self._read(last_moment)

    async def purge(self, *, finished_before: int, limit: int) -> int:
        """See `Store.purge`."""
        return await self._writer.execute(self._purge, (finished_before, limit))

    async def purge_nonces(self, *, now: int, limit: int) -> int:
        """See `Store.purge_nonces`. Keeps a nonce up to two minutes longer."""
        return await self._writer.execute(self._forget_nonces, (now, limit))

    async def probe(self) -> None:
        """See `Store.probe`."""
        await self._writer.execute(self._probe, None)

    def degraded(self) -> str | None:
        """See `Store.degraded`: a reader that does not end lets the log grow."""
        return self._checkpointer.degraded()

    def archive(self) -> SQLiteArchive:
        """What moves between stores; only while no node works on this one."""
        return SQLiteArchive(self._readers, self._writer)

    def statistics(self) -> SQLiteStatistics:
        """What it holds and has done."""
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


def _probe(
    guard: FileGuard, connection: sqlite3.Connection, callers: Sequence[None]
) -> list[StoreError | None]:
    guard.check(alone=True)
    connection.execute(_PROBE)
    return [None] * len(callers)

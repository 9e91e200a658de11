"""The Store port over operations: the common part of the stores that speak SQL."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
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
from taskd.errors import DuplicateTaskNo
from taskd.ports.store import BroughtForward, ExtendResult
from taskd.stores.app_cache import AppCache
from taskd.stores.batching import Operation
from taskd.stores.operations import apps, forward, lookup, suspects
from taskd.stores.operations.cancellation import CANCEL
from taskd.stores.operations.forward import BRING_FORWARD
from taskd.stores.operations.leases import EXTEND, LEASE
from taskd.stores.operations.session import Session
from taskd.stores.operations.settlement import REAP, SETTLE
from taskd.stores.operations.submission import ADD_APP, SUBMIT
from taskd.stores.operations.suspects import NOTE_STOPPING
from taskd.stores.operations.upkeep import FORGET_NONCES, PURGE
from taskd.stores.write_requests import (
    AppAddition,
    CancelRequest,
    ExtendRequest,
    ForwardRequest,
    LeaseRequest,
    ReapRequest,
    Submission,
)

A = TypeVar("A")
R = TypeVar("R")


class SQLStore(ABC):
    """A store over any SQL database: each method runs one operation."""

    def __init__(self) -> None:
        self._apps = AppCache()
        self._closed = False

    @abstractmethod
    def write(
        self, operation: Operation[A, R], argument: A, *, within_s: float | None = None
    ) -> Awaitable[R]:
        """Carry out an operation in a transaction that it may share with other calls:
        `BatchingWriter.execute`."""

    @abstractmethod
    def end_by(self, latest: float) -> None:
        """See `Store.end_by`."""

    @abstractmethod
    def read(self, query: Callable[[Session], Coroutine[Any, Any, R]]) -> Awaitable[R]:
        """Carry out a query beside the writers."""

    async def create_app(self, app: App, nonce: NonceUse | None = None) -> App:
        """See `Store.create_app`."""
        since = self._apps.forgets
        created = await self.write(ADD_APP, AppAddition(app, nonce))
        self._apps.keep(created, since=since)
        return created

    async def app_by_key(self, app_key: str) -> App | None:
        """See `Store.app_by_key`."""
        app = self._apps.by_key(app_key)
        if app is None or self._closed:
            return await self.read(lambda session: apps.app_by_key(session, app_key))
        # Every signed request calls this, and yields elsewhere: a full checkpoint here would
        # take a twentieth of a create's time.
        await trio.lowlevel.checkpoint_if_cancelled()
        return app

    def known_app(self, app_key: str) -> App | None:
        """See `Store.known_app`."""
        return self._apps.by_key(app_key)

    async def apps_by_key(self, app_keys: Collection[str]) -> Mapping[str, App]:
        """See `Store.apps_by_key`."""
        return await self.read(lambda session: apps.apps_by_key(session, app_keys))

    async def app_by_id(self, app_id: int) -> App | None:
        """See `Store.app_by_id`."""
        app = self._apps.by_id(app_id)
        if app is None or self._closed:
            return await self.read(lambda session: apps.app_by_id(session, app_id))
        await trio.lowlevel.checkpoint()
        return app

    def forget_app(self, app_id: int) -> None:
        """See `Store.forget_app`."""
        self._apps.forget(app_id)

    async def refresh_apps(self) -> Collection[int]:
        """See `Store.refresh_apps`."""
        return await self.read(apps.refresh_apps)

    async def create_task(self, task: NewTask, nonce: NonceUse | None = None) -> int:
        """See `Store.create_task`."""
        (added,) = await self.write(SUBMIT, Submission((task,), nonce))
        if isinstance(added, ExistingTask):
            raise DuplicateTaskNo(added)
        return added

    async def create_tasks(
        self,
        tasks: Sequence[NewTask],
        nonce: NonceUse | None = None,
        *,
        atomic: bool = False,
        within_s: float | None = None,
    ) -> list[int | ExistingTask]:
        """See `Store.create_tasks`."""
        return await self.write(SUBMIT, Submission(tasks, nonce, atomic), within_s=within_s)

    async def use_nonce(self, nonce: NonceUse) -> None:
        """See `Store.use_nonce`."""
        await self.write(SUBMIT, Submission((), nonce))

    async def task_detail(
        self, app_id: int, *, task_id: int | None = None, task_no: str | None = None
    ) -> TaskDetail | None:
        """See `Store.task_detail`."""
        return await self.read(
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
        return await self.read(
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
        request = LeaseRequest(tuple(task_ids), node, now, expires_at, suspects, room)
        return await self.write(LEASE, request)

    async def count_waiting(self, app_id: int, *, limit: int) -> int:
        """See `Store.count_waiting`."""
        return await self.read(lambda session: lookup.count_waiting(session, app_id, limit))

    async def content(self, task_id: int) -> bytes | None:
        """See `Store.content`."""
        return await self.read(lambda session: lookup.content(session, task_id))

    async def find_suspects(self, *, now: int, after: int, limit: int) -> Suspects:
        """See `Store.find_suspects`."""
        return await self.read(
            lambda session: suspects.find_suspects(session, now=now, after=after, limit=limit)
        )

    async def note_stopping(self, node: str, *, now: int) -> None:
        """See `Store.note_stopping`."""
        await self.write(NOTE_STOPPING, (node, now))

    async def extend(self, leases: Sequence[Lease], *, expires_at: int) -> ExtendResult:
        """See `Store.extend`."""
        return await self.write(EXTEND, ExtendRequest(tuple(leases), expires_at))

    async def settle(self, settlement: Settlement, *, within_s: float | None = None) -> TaskState:
        """See `Store.settle`."""
        check_settlement(settlement)
        return await self.write(SETTLE, settlement, within_s=within_s)

    async def request_cancel(
        self,
        app_id: int,
        task_id: int | None = None,
        *,
        task_no: str | None = None,
        now: int,
        within_s: float | None = None,
    ) -> CancelDecision:
        """See `Store.request_cancel`."""
        request = CancelRequest(app_id, task_id, task_no, now)
        return await self.write(CANCEL, request, within_s=within_s)

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
        request = ReapRequest(now, expired_at, tuple(exclude), limit, node, tuple(alive))
        return await self.write(REAP, request)

    async def bring_forward(self, *, now: int, after: DueTask | None, limit: int) -> BroughtForward:
        """See `Store.bring_forward`."""
        return await self.write(BRING_FORWARD, ForwardRequest(now, after, limit))

    async def last_moment(self) -> int | None:
        """See `Store.last_moment`."""
        return await self.read(forward.last_moment)

    async def purge(self, *, finished_before: int, limit: int) -> int:
        """See `Store.purge`."""
        return await self.write(PURGE, (finished_before, limit))

    async def purge_nonces(self, *, now: int, limit: int) -> int:
        """See `Store.purge_nonces`."""
        return await self.write(FORGET_NONCES, (now, limit))

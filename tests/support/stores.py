"""Stores to test on, and the values that go into them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import trio

from taskd.domain.model import (
    App,
    Attempt,
    CancelCertainty,
    FirstLease,
    LeasedTask,
    NewTask,
    NonceUse,
    Outcome,
    Settlement,
    SuccessRule,
    TaskDetail,
    TaskState,
)
from taskd.ports.store import Store
from taskd.stores.memory import MemoryStore
from taskd.stores.sqlite.opening import lock_database
from taskd.stores.sqlite.store import SQLiteStore

T0 = 1_700_000_000_123
"""The moment at which tests begin; its milliseconds are not round."""

LEASE_MS = 30_000
DEADLINE_S = 240.0
"""For tests that end and start a MySQL, which takes its time, on a busy machine."""


@asynccontextmanager
async def opened(adapter: str, folder: Path) -> AsyncIterator[Store]:
    """A fresh store of this adapter (``memory``, ``sqlite``, or ``workers``: several
    on one SQLite file, as worker processes have them), closed at the end."""
    store: Store
    if adapter == "workers":
        async with shared_file(folder / "taskd.db", count=3) as stores:
            yield cast("Store", _InTurns(stores))
        return
    store = MemoryStore() if adapter == "memory" else await SQLiteStore.open(folder / "taskd.db")
    try:
        yield store
    finally:
        await store.aclose()


@asynccontextmanager
async def shared_file(path: Path, *, count: int) -> AsyncIterator[list[SQLiteStore]]:
    """So many stores on one file."""
    lock = await trio.to_thread.run_sync(lock_database, path)
    stores: list[SQLiteStore] = []
    try:
        while len(stores) < count:
            stores.append(await SQLiteStore.join(path, lock))
        yield stores
    finally:
        for store in stores:
            await store.aclose()
        lock.release()


class _InTurns:
    """Each call goes to the next store, so that nothing one of them remembers helps."""

    def __init__(self, stores: list[SQLiteStore]) -> None:
        self._turns = itertools.cycle(stores)
        self._stores = stores

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever a store has
        return getattr(next(self._turns), name)

    def end_by(self, latest: float) -> None:
        for store in self._stores:
            store.end_by(latest)

    async def aclose(self) -> None:
        for store in self._stores:
            await store.aclose()


def new_app(
    key: str = "key-1",
    *,
    step: int = 5,
    retry_total: int = 3,
    success: SuccessRule = SuccessRule.BODY,
) -> App:
    return App(
        id=0,
        app_key=key,
        secret_key="s" * 32,
        name="帅的应用",
        link_url="http://127.0.0.1:9/cb",
        step=step,
        retry_total=retry_total,
        remark="",
        created_at=T0,
        success=success,
    )


def new_task(
    app: App,
    task_no: str = "order-1",
    *,
    due_at: int = T0,
    content: bytes = b'{"order":1001}',
    step: int | None = None,
    retry_total: int | None = None,
    lease: FirstLease | None = None,
) -> NewTask:
    return NewTask(
        app_id=app.id,
        task_no=task_no,
        name="close order",
        content=content,
        timeout_ms=5000,
        due_at=due_at,
        step=step,
        retry_total=retry_total,
        created_at=T0,
        lease=lease,
    )


def nonce(text: str, *, key: str = "key-1", expires_at: int = T0 + 600_000) -> NonceUse:
    return NonceUse(app_key=key, nonce=text, expires_at=expires_at)


async def add(store: Store, app: App, count: int, *, due_at: int = T0) -> list[int]:
    """Add tasks and return their ids in order."""
    return [
        await store.create_task(new_task(app, f"order-{number}", due_at=due_at))
        for number in range(count)
    ]


async def lease_one(
    store: Store, task_id: int, *, now: int = T0, node: str = "node-1"
) -> LeasedTask:
    (leased,) = await store.lease([task_id], node=node, now=now, expires_at=now + LEASE_MS)
    return leased


async def detail(store: Store, app: App, task_id: int) -> TaskDetail:
    found = await store.task_detail(app.id, task_id=task_id)
    assert found is not None
    return found


def attempt_of(leased: LeasedTask, outcome: Outcome, *, http_status: int | None = None) -> Attempt:
    return Attempt(
        attempt=leased.attempt,
        started_at=leased.leased_at,
        ended_at=leased.leased_at + 7,
        outcome=outcome,
        http_status=http_status,
    )


def succeeded(leased: LeasedTask) -> Settlement:
    return Settlement(
        lease=leased.lease,
        state=TaskState.SUCCEEDED,
        settled_at=leased.leased_at + 7,
        attempt=attempt_of(leased, Outcome.SUCCEEDED, http_status=200),
        failures=leased.failures,
        sent=True,
        certainty=CancelCertainty.ABORTED_DURING_RESPONSE,
    )


def failed(leased: LeasedTask) -> Settlement:
    return Settlement(
        lease=leased.lease,
        state=TaskState.FAILED,
        settled_at=leased.leased_at + 7,
        attempt=attempt_of(leased, Outcome.REJECTED, http_status=410),
        failures=leased.failures + 1,
        sent=True,
        certainty=CancelCertainty.ABORTED_DURING_RESPONSE,
    )


def retrying(
    leased: LeasedTask,
    *,
    due_at: int,
    outcome: Outcome = Outcome.REJECTED,
    sent: bool = True,
) -> Settlement:
    return Settlement(
        lease=leased.lease,
        state=TaskState.RETRYING,
        settled_at=leased.leased_at + 7,
        due_at=due_at,
        attempt=attempt_of(leased, outcome),
        failures=leased.failures + (outcome is not Outcome.ABANDONED),
        sent=sent,
        certainty=CancelCertainty.ABORTED_BEFORE_RESPONSE,
    )


def given_back(leased: LeasedTask) -> Settlement:
    """What a drain makes of an attempt that has sent nothing."""
    return Settlement(
        lease=leased.lease,
        state=TaskState.RETRYING,
        settled_at=leased.leased_at + 7,
        due_at=leased.due_at,
        attempt=None,
        failures=leased.failures,
        sent=False,
        certainty=CancelCertainty.NEVER_SENT,
    )


def cancelled(leased: LeasedTask, word: CancelCertainty) -> Settlement:
    return Settlement(
        lease=leased.lease,
        state=TaskState.CANCELLED,
        settled_at=leased.leased_at + 7,
        attempt=attempt_of(leased, Outcome.CANCELLED),
        failures=leased.failures,
        sent=True,
        certainty=word,
    )

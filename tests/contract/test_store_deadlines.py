"""The Store's contract: calls that can't be cancelled, and have a deadline."""

from __future__ import annotations

from collections.abc import Awaitable

import pytest
import trio

from taskd.domain.model import CancelCertainty, TaskState
from taskd.errors import DuplicateTaskNo, LeaseLost, NonceUsed, StoreUnavailable
from taskd.ports.store import Store
from tests.support.stores import T0, add, detail, lease_one, new_app, new_task, nonce, succeeded

_LONG_S = 60.0


async def _cancelled(call: Awaitable[object]) -> bool:
    """Make a call whose caller was cancelled before; returns whether it had no answer."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await call
    return scope.cancelled_caught


async def test_a_call_with_a_deadline_is_carried_out_although_its_caller_was_cancelled(
    store: Store,
) -> None:
    app = await store.create_app(new_app())
    waits, runs = await add(store, app, 2)
    leased = await lease_one(store, runs)
    batch = [new_task(app, "late")]
    assert not await _cancelled(store.create_tasks(batch, nonce("n"), within_s=_LONG_S))
    assert not await _cancelled(store.settle(succeeded(leased), within_s=_LONG_S))
    assert not await _cancelled(store.request_cancel(app.id, waits, now=T0, within_s=_LONG_S))
    found = await store.task_detail(app.id, task_no="late")
    assert found is not None
    with pytest.raises(NonceUsed):
        await store.use_nonce(nonce("n"))
    assert (await detail(store, app, runs)).state is TaskState.SUCCEEDED
    assert (await detail(store, app, waits)).cancel_certainty is CancelCertainty.NEVER_SENT


async def test_without_a_deadline_it_is_not_begun(store: Store) -> None:
    app = await store.create_app(new_app())
    assert await _cancelled(store.create_tasks([new_task(app, "late")]))
    assert await store.task_detail(app.id, task_no="late") is None


async def test_with_a_deadline_it_is_refused_as_without(store: Store) -> None:
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    leased = await lease_one(store, task_id)
    await store.settle(succeeded(leased), within_s=_LONG_S)
    with pytest.raises(LeaseLost):
        await store.settle(succeeded(leased), within_s=_LONG_S)
    assert (await store.request_cancel(app.id, task_id, now=T0, within_s=_LONG_S)).state is None
    await store.create_task(new_task(app, "taken"))
    with pytest.raises(DuplicateTaskNo):
        await store.create_task(new_task(app, "taken"))


async def test_without_time_nothing_is_written(store: Store) -> None:
    app = await store.create_app(new_app())
    waits, runs = await add(store, app, 2)
    leased = await lease_one(store, runs)

    async def refused(within_s: float) -> None:
        told = "no time left to write this: nothing was written"
        with pytest.raises(StoreUnavailable, match=told):
            await store.create_tasks([new_task(app, "no")], nonce("n"), within_s=within_s)
        with pytest.raises(StoreUnavailable, match=told):
            await store.settle(succeeded(leased), within_s=within_s)
        with pytest.raises(StoreUnavailable, match=told):
            await store.request_cancel(app.id, waits, now=T0, within_s=within_s)

    await refused(0)
    store.end_by(trio.current_time() + _LONG_S)
    await store.request_cancel(app.id, 12_345, now=T0, within_s=_LONG_S)
    store.end_by(trio.current_time())
    await refused(_LONG_S)
    await store.use_nonce(nonce("n"))
    assert await store.task_detail(app.id, task_no="no") is None
    assert (await detail(store, app, runs)).state is TaskState.RUNNING
    # Calls without a deadline go on as before.
    assert await store.settle(succeeded(leased)) is TaskState.SUCCEEDED
    assert (await store.request_cancel(app.id, waits, now=T0)).state is TaskState.CANCELLED


async def test_calls_with_deadlines_of_all_lengths_at_once_are_written_or_not_there(
    store: Store,
) -> None:
    """And each caller knows, unless it is told that nobody does."""
    app = await store.create_app(new_app())
    told: dict[str, str] = {}

    async def create(number: int) -> None:
        task_no = f"no-{number}"
        try:
            await store.create_tasks([new_task(app, task_no)], within_s=0.0002 * (number % 50))
        except StoreUnavailable as error:
            told[task_no] = str(error)
        else:
            told[task_no] = "written"

    async with trio.open_nursery() as nursery:
        for number in range(400):
            nursery.start_soon(create, number)
    await store.probe()
    for task_no, answer in told.items():
        found = await store.task_detail(app.id, task_no=task_no)
        if "not known" not in answer:
            assert (found is not None) == (answer == "written"), answer
    assert len(told) == 400

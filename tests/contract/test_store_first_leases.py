"""The Store's contract: tasks that are added under a lease."""

from __future__ import annotations

import pytest

from taskd.domain.model import (
    CancelCertainty,
    ExistingTask,
    FirstLease,
    Lease,
    LeasedTask,
    TaskState,
)
from taskd.errors import DuplicateTaskNo, LeaseLost
from taskd.ports.store import Store
from tests.support.stores import (
    LEASE_MS,
    T0,
    cancelled,
    detail,
    given_back,
    lease_one,
    new_app,
    new_task,
    nonce,
    retrying,
    succeeded,
)

FIRST = FirstLease("node-1", T0 + 1, T0 + 1 + LEASE_MS)


async def added(store: Store, task_no: str = "order-1") -> LeasedTask:
    """A task that is added under a lease, as its node knows it."""
    app = await store.app_by_key("key-1") or await store.create_app(new_app())
    new = new_task(app, task_no, lease=FIRST)
    return LeasedTask(
        lease=Lease(
            task_id=await store.create_task(new),
            token=1,
            node=FIRST.node,
            expires_at=FIRST.expires_at,
        ),
        app=app,
        task_no=new.task_no,
        name=new.name,
        content=new.content,
        timeout_ms=new.timeout_ms,
        due_at=new.due_at,
        leased_at=FIRST.leased_at,
        attempt=1,
        failures=0,
        sent_before=False,
        step=app.step,
        retry_total=app.retry_total,
    )


async def test_it_is_running_from_the_start_and_nobody_else_gets_it(store: Store) -> None:
    leased = await added(store)
    found = await detail(store, leased.app, leased.lease.task_id)
    assert (found.state, found.node, found.attempt) == (TaskState.RUNNING, "node-1", 1)
    assert (found.due_at, found.runtime, found.attempts) == (None, T0, ())
    assert await store.find_due(until=T0 + 10**9, limit_per_app=10) == []
    ids = [leased.lease.task_id]
    assert await store.lease(ids, node="other", now=T0 + 5, expires_at=T0 + 9) == []


async def test_it_is_extended_and_settled_as_any_other(store: Store) -> None:
    leased = await added(store)
    extended = await store.extend([leased.lease], expires_at=T0 + 2 * LEASE_MS)
    assert not extended.lost
    assert await store.settle(succeeded(leased)) is TaskState.SUCCEEDED
    found = await detail(store, leased.app, leased.lease.task_id)
    assert [attempt.attempt for attempt in found.attempts] == [1]
    with pytest.raises(LeaseLost):
        await store.settle(succeeded(leased))


async def test_after_a_retry_the_next_attempt_is_the_second(store: Store) -> None:
    leased = await added(store)
    await store.settle(retrying(leased, due_at=T0 + 50))
    again = await lease_one(store, leased.lease.task_id, now=T0 + 50)
    assert (again.attempt, again.lease.token, again.failures) == (2, 2, 1)


async def test_given_back_it_was_never_begun(store: Store) -> None:
    leased = await added(store)
    assert await store.settle(given_back(leased)) is TaskState.SCHEDULED
    again = await lease_one(store, leased.lease.task_id, now=T0 + 50)
    assert (again.attempt, again.sent_before) == (1, False)


async def test_a_cancel_finds_it_running(store: Store) -> None:
    leased = await added(store)
    task_id = leased.lease.task_id
    decision = await store.request_cancel(leased.app.id, task_id, now=T0 + 2)
    assert (decision.state, decision.node) == (TaskState.RUNNING, "node-1")
    word = CancelCertainty.ABORTED_BEFORE_RESPONSE
    assert await store.settle(cancelled(leased, word)) is TaskState.CANCELLED


async def test_where_its_node_has_died_it_is_reaped(store: Store) -> None:
    leased = await added(store)
    late = FIRST.expires_at
    assert not await store.reap(now=late - 1, expired_at=late - 1, exclude=(), limit=5)
    (reaped,) = await store.reap(now=late, expired_at=late, exclude=(), limit=5)
    assert (reaped.task_id, reaped.attempt) == (leased.lease.task_id, 1)
    assert (reaped.state, reaped.due_at) == (TaskState.RETRYING, late)
    again = await lease_one(store, leased.lease.task_id, now=late)
    assert (again.attempt, again.sent_before, again.failures) == (2, True, 0)


async def test_a_batch_may_have_some_of_them(store: Store) -> None:
    app = await store.create_app(new_app())
    taken = await store.create_task(new_task(app, "taken"))
    tasks = [
        new_task(app, "a", lease=FIRST),
        new_task(app, "b"),
        new_task(app, "taken", lease=FIRST),
        new_task(app, "c", due_at=T0 + 1000),
        new_task(app, "d", lease=FIRST, content=b"x" * 100_000),
        new_task(app, "a"),
    ]
    ids = await store.create_tasks(tasks, nonce("n-1"))
    first = ids[0]
    assert isinstance(first, int)
    assert ids[2] == ExistingTask(taken, TaskState.SCHEDULED)
    assert ids[5] == ExistingTask(first, TaskState.RUNNING)
    states = []
    for task_id in (ids[0], ids[1], ids[3], ids[4]):
        assert isinstance(task_id, int)
        states.append((await detail(store, app, task_id)).state.value)
    assert states == ["running", "scheduled", "scheduled", "running"]
    due = await store.find_due(until=T0 + 5000, limit_per_app=10)
    waiting = {task.task_id for task in due}
    assert len(waiting) == 3  # with the one that had taken the number
    assert waiting >= {ids[1], ids[3]}


async def test_a_taken_number_leases_nothing(store: Store) -> None:
    leased = await added(store)
    with pytest.raises(DuplicateTaskNo):
        await store.create_task(new_task(leased.app, lease=FIRST))
    assert len(await store.reap(now=T0, expired_at=None, exclude=(), limit=5)) == 1

"""The Store's contract: cancelling, reaping and purging."""

from __future__ import annotations

import pytest

from taskd.domain.model import CancelCertainty, Outcome, TaskState
from taskd.domain.retry import MAX_ABANDONED_ALONE
from taskd.errors import DuplicateTaskNo
from taskd.ports.store import Store
from tests.support.stores import (
    LEASE_MS,
    T0,
    add,
    detail,
    failed,
    given_back,
    lease_one,
    new_app,
    new_task,
    retrying,
    succeeded,
)


async def test_cancelling_a_waiting_task_ends_it(store: Store) -> None:
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    decision = await store.request_cancel(app.id, task_id, now=T0 + 9)
    assert decision.state is TaskState.CANCELLED
    assert decision.certainty is CancelCertainty.NEVER_SENT
    assert decision.node is None
    found = await detail(store, app, task_id)
    assert (found.state, found.cancel_certainty) == (decision.state, decision.certainty)
    assert (found.finished_at, found.due_at) == (T0 + 9, None)
    assert await store.find_due(until=2**50, limit_per_app=9) == []
    assert await store.lease([task_id], node="n", now=2**50, expires_at=2**51) == []


@pytest.mark.parametrize(
    ("sent", "word"),
    [(True, CancelCertainty.BETWEEN_ATTEMPTS), (False, CancelCertainty.NEVER_SENT)],
)
async def test_the_word_between_attempts_says_if_one_sent(
    store: Store, *, sent: bool, word: CancelCertainty
) -> None:
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    leased = await lease_one(store, task_id)
    await store.settle(retrying(leased, due_at=T0 + 1, sent=sent))
    assert (await store.request_cancel(app.id, task_id, now=T0)).certainty is word


async def test_cancelling_a_running_task_notes_the_wish_and_names_its_node(store: Store) -> None:
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    await lease_one(store, task_id, node="node-7")
    for _ in range(2):
        decision = await store.request_cancel(app.id, task_id, now=T0)
        assert (decision.state, decision.node) == (TaskState.RUNNING, "node-7")
        assert decision.certainty is None
    found = await detail(store, app, task_id)
    assert (found.state, found.cancel_requested) == (TaskState.RUNNING, True)
    assert (found.finished_at, found.cancel_certainty) == (None, None)


async def test_what_has_ended_or_never_was_is_not_cancelled(store: Store) -> None:
    app = await store.create_app(new_app())
    done, lost, wiped = await add(store, app, 3)
    await store.settle(succeeded(await lease_one(store, done)))
    await store.settle(failed(await lease_one(store, lost)))
    await store.request_cancel(app.id, wiped, now=T0)
    for task_id in (done, lost, wiped):
        before = await detail(store, app, task_id)
        assert (await store.request_cancel(app.id, task_id, now=T0 + 5)).state is None
        assert await detail(store, app, task_id) == before
    assert (await store.request_cancel(app.id, 4711, now=T0)).state is None


async def test_an_expired_lease_is_reaped_and_its_task_taken_again(store: Store) -> None:
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    leased = await lease_one(store, task_id, node="node-1")
    now = T0 + LEASE_MS + 400
    early = T0 + LEASE_MS - 1
    assert await store.reap(now=now, expired_at=early, exclude=(), limit=9) == []
    (reaped,) = await store.reap(now=now, expired_at=T0 + LEASE_MS, exclude=(), limit=9)
    assert (reaped.task_id, reaped.app_id, reaped.node) == (task_id, app.id, "node-1")
    assert (reaped.state, reaped.due_at, reaped.attempt) == (TaskState.RETRYING, now, 1)

    found = await detail(store, app, task_id)
    assert (found.state, found.due_at, found.node) == (TaskState.RETRYING, now, None)
    (attempt,) = found.attempts
    assert (attempt.attempt, attempt.outcome) == (1, Outcome.ABANDONED)
    assert (attempt.started_at, attempt.ended_at) == (leased.leased_at, now)

    again = await lease_one(store, task_id, now=now, node="node-2")
    assert again.lease.token > leased.lease.token
    assert (again.attempt, again.failures, again.sent_before) == (2, 0, True)


async def test_a_start_reclaims_every_lease(store: Store) -> None:
    app = await store.create_app(new_app())
    ids = await add(store, app, 6)
    for task_id in ids[:5]:
        await lease_one(store, task_id)
    first = await store.reap(now=T0 + 1, expired_at=None, exclude=(), limit=3)
    second = await store.reap(now=T0 + 1, expired_at=None, exclude=(), limit=3)
    assert [task.task_id for task in (*first, *second)] == ids[:5]
    assert await store.reap(now=T0 + 1, expired_at=None, exclude=(), limit=3) == []
    assert len(await store.find_due(until=T0 + 1, limit_per_app=9)) == 6


async def test_excluded_tasks_are_not_reaped(store: Store) -> None:
    app = await store.create_app(new_app())
    ids = await add(store, app, 4)
    leased = [await lease_one(store, task_id) for task_id in ids]
    late = T0 + 2 * LEASE_MS
    exclude = {ids[0], ids[1], 4711}
    reaped = await store.reap(now=late, expired_at=late, exclude=exclude, limit=2)
    assert [task.task_id for task in reaped] == ids[2:]
    assert await store.settle(succeeded(leased[0])) is TaskState.SUCCEEDED


async def test_a_dead_nodes_leases_are_reaped_before_they_expire_and_no_others(
    store: Store,
) -> None:
    app = await store.create_app(new_app())
    ids = await add(store, app, 4)
    await store.lease(ids[:3], node="dead", now=T0, expires_at=T0 + LEASE_MS)
    await store.lease(ids[3:], node="alive", now=T0, expires_at=T0 + LEASE_MS)
    reaped = await store.reap(now=T0 + 1, expired_at=None, exclude=[ids[0]], limit=10, node="dead")
    assert {task.task_id for task in reaped} == {ids[1], ids[2]}
    assert {task.node for task in reaped} == {"dead"}
    assert (await detail(store, app, ids[3])).state is TaskState.RUNNING
    assert not await store.reap(now=T0 + 1, expired_at=T0, exclude=(), limit=10, node="alive")


async def test_the_leases_of_nodes_that_live_are_not_ended(store: Store) -> None:
    app = await store.create_app(new_app())
    ids = await add(store, app, 4)
    for task_id, node in zip(ids, ("dead", "one", "two", "it's"), strict=True):
        await store.lease([task_id], node=node, now=T0, expires_at=T0 + LEASE_MS)
    late = T0 + 10 * LEASE_MS
    reaped = await store.reap(
        now=late, expired_at=late, exclude=(), limit=10, alive=("one", "two", "it's")
    )
    assert [task.task_id for task in reaped] == ids[:1]
    reaped = await store.reap(now=late, expired_at=late, exclude=(ids[1],), limit=10, alive=())
    assert {task.task_id for task in reaped} == set(ids[2:])


async def test_the_leases_that_expired_first_are_reaped_first(store: Store) -> None:
    app = await store.create_app(new_app())
    ids = await add(store, app, 3)
    for age, task_id in enumerate(reversed(ids)):
        await store.lease([task_id], node="n", now=T0, expires_at=T0 + age)
    reaped = await store.reap(now=T0 + 9, expired_at=T0 + 9, exclude=(), limit=2)
    assert [task.task_id for task in reaped] == [ids[2], ids[1]]


async def test_five_in_a_row_that_were_abandoned_alone_end_as_failed(store: Store) -> None:
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    states = []
    for number in range(1, MAX_ABANDONED_ALONE + 1):
        await lease_one(store, task_id)
        (reaped,) = await store.reap(now=T0, expired_at=None, exclude=(), limit=9)
        assert reaped.attempt == number
        states.append((reaped.state, reaped.due_at))
    assert states == [(TaskState.RETRYING, T0)] * 4 + [(TaskState.FAILED, None)]
    found = await detail(store, app, task_id)
    assert (found.state, found.finished_at, found.due_at) == (TaskState.FAILED, T0, None)
    assert [attempt.attempt for attempt in found.attempts] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("between", "last"),
    [
        ("nothing", TaskState.FAILED),
        ("an attempt", TaskState.RETRYING),
        ("a drained attempt", TaskState.FAILED),
        ("a lease given back", TaskState.FAILED),
    ],
)
async def test_what_breaks_a_row_of_abandoned_attempts(
    store: Store, between: str, last: TaskState
) -> None:
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    for _ in range(MAX_ABANDONED_ALONE - 1):
        await lease_one(store, task_id)
        await store.reap(now=T0, expired_at=None, exclude=(), limit=9)
    if between == "an attempt":
        await store.settle(retrying(await lease_one(store, task_id), due_at=T0))
    elif between == "a drained attempt":
        drained = await lease_one(store, task_id)
        await store.settle(retrying(drained, due_at=T0, outcome=Outcome.ABANDONED))
    elif between == "a lease given back":
        await store.settle(given_back(await lease_one(store, task_id)))
    await lease_one(store, task_id)
    (reaped,) = await store.reap(now=T0, expired_at=None, exclude=(), limit=9)
    assert reaped.state is last


async def test_reaping_under_a_wish_cancels(store: Store) -> None:
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    await lease_one(store, task_id)
    await store.request_cancel(app.id, task_id, now=T0)
    (reaped,) = await store.reap(now=T0 + 2, expired_at=None, exclude=(), limit=9)
    assert (reaped.state, reaped.due_at) == (TaskState.CANCELLED, None)
    found = await detail(store, app, task_id)
    assert (found.state, found.finished_at) == (TaskState.CANCELLED, T0 + 2)
    assert found.cancel_certainty is CancelCertainty.UNKNOWN
    assert [attempt.outcome for attempt in found.attempts] == [Outcome.ABANDONED]


async def test_purging_deletes_what_ended_long_ago_and_nothing_else(store: Store) -> None:
    app = await store.create_app(new_app())
    waiting, running, old, older, young = await add(store, app, 5)
    await lease_one(store, running)
    for task_id, now in ((older, T0), (old, T0 + 10), (young, T0 + 20)):
        await store.settle(succeeded(await lease_one(store, task_id, now=now)))
    limit = T0 + 20 + 7  # when the young one ended
    assert await store.purge(finished_before=T0 + 7, limit=9) == 0
    assert await store.purge(finished_before=limit, limit=1) == 1
    assert await store.task_detail(app.id, task_id=older) is None
    assert await store.purge(finished_before=limit, limit=9) == 1
    assert await store.purge(finished_before=limit, limit=9) == 0
    assert await store.task_detail(app.id, task_id=old) is None
    for task_id in (waiting, running, young):
        await detail(store, app, task_id)


async def test_a_purged_task_no_is_free_again_and_has_no_old_attempts(store: Store) -> None:
    app = await store.create_app(new_app())
    long = b'"' + b"x" * 10_000 + b'"'
    first = await store.create_task(new_task(app, content=long))
    await store.settle(succeeded(await lease_one(store, first)))
    with pytest.raises(DuplicateTaskNo):
        await store.create_task(new_task(app))
    await store.purge(finished_before=T0 + 1000, limit=9)
    second = await store.create_task(new_task(app, content=long))
    assert second > first
    assert (await detail(store, app, second)).attempts == ()
    assert (await lease_one(store, second)).content == long

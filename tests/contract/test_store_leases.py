"""The Store's contract: leasing, extending and settling."""

from __future__ import annotations

import dataclasses

import pytest

from taskd.domain.model import (
    SHORT_CONTENT,
    Attempt,
    CancelCertainty,
    Lease,
    Outcome,
    Settlement,
    TaskState,
)
from taskd.errors import LeaseLost
from taskd.ports.store import Store
from tests.support.stores import (
    LEASE_MS,
    T0,
    add,
    cancelled,
    detail,
    failed,
    given_back,
    lease_one,
    new_app,
    new_task,
    retrying,
    succeeded,
)


async def test_a_lease_has_all_that_an_attempt_needs(store: Store) -> None:
    app = await store.create_app(new_app())
    task_id = await store.create_task(new_task(app, due_at=T0 - 5, content=b'{"a":1}'))
    (leased,) = await store.lease([task_id], node="node-1", now=T0, expires_at=T0 + 30)
    assert (leased.lease.task_id, leased.lease.node) == (task_id, "node-1")
    assert leased.lease.expires_at == T0 + 30
    assert leased.app == app
    assert (leased.task_no, leased.name) == ("order-1", "close order")
    assert (leased.content, leased.timeout_ms) == (b'{"a":1}', 5000)
    assert (leased.due_at, leased.leased_at) == (T0 - 5, T0)
    assert (leased.attempt, leased.failures, leased.sent_before) == (1, 0, False)

    found = await detail(store, app, task_id)
    assert found.state is TaskState.RUNNING
    assert (found.node, found.attempt, found.due_at) == ("node-1", 1, None)


async def test_long_contents_come_with_their_leases_as_far_as_there_is_room(store: Store) -> None:
    app = await store.create_app(new_app())
    lengths = [5_000, 10, 3_000, SHORT_CONTENT, 1_500_000, 2_001, 3_000]
    contents = [b'"%s"' % (b"%d" % n * (length - 2)) for n, length in enumerate(lengths)]
    ids = [
        await store.create_task(new_task(app, task_no=f"t-{number}", content=content))
        for number, content in enumerate(contents)
    ]
    leased = await store.lease(ids, node="n", now=T0, expires_at=T0 + 30, room=8_001)
    assert [task.lease.task_id for task in leased] == ids
    here = [True, True, True, True, False, False, False]
    assert [bool(task.content) for task in leased] == here
    for task, content, is_here in zip(leased, contents, here, strict=True):
        assert task.content == (content if is_here else b"")
        assert task.left_bytes == (0 if is_here else len(content))
    for task_id, content in zip(ids, contents, strict=True):
        assert await store.content(task_id) == content
    assert await store.content(ids[-1] + 1) is None


async def test_short_contents_come_whatever_room_there_is(store: Store) -> None:
    app = await store.create_app(new_app())
    contents = [b"\x00", b"\xff" * SHORT_CONTENT, b"x" * SHORT_CONTENT]
    ids = [
        await store.create_task(new_task(app, f"t-{number}", content=content))
        for number, content in enumerate(contents)
    ]
    leased = await store.lease(ids, node="n", now=T0, expires_at=T0 + 30, room=0)
    assert [task.content for task in leased] == contents


@pytest.mark.parametrize(("room", "here"), [(None, 4), (0, 0), (6_000, 2)])
async def test_a_lease_without_a_bound_brings_all_contents(
    store: Store, room: int | None, here: int
) -> None:
    app = await store.create_app(new_app())
    ids = [
        await store.create_task(
            new_task(app, task_no=f"t-{number}", content=b'"%s"' % (b"x" * 2_998))
        )
        for number in range(4)
    ]
    leased = await store.lease(ids, node="n", now=T0, expires_at=T0 + 30, room=room)
    assert [len(task.content) for task in leased] == [3_000] * here + [0] * (4 - here)
    assert [task.left_bytes for task in leased] == [0] * here + [3_000] * (4 - here)


async def test_leases_come_in_the_order_asked_for_each_task_once(store: Store) -> None:
    app = await store.create_app(new_app())
    ids = await add(store, app, 4)
    wanted = [ids[2], ids[0], ids[3], ids[2], ids[0]]
    leased = await store.lease(wanted, node="n", now=T0, expires_at=T0 + 1)
    assert [task.lease.task_id for task in leased] == [ids[2], ids[0], ids[3]]
    assert [task.attempt for task in leased] == [1, 1, 1]


async def test_only_tasks_that_wait_and_are_due_are_leased(store: Store) -> None:
    app = await store.create_app(new_app())
    early = await store.create_task(new_task(app, "early", due_at=T0 + 1))
    exact, running, done, wiped = await add(store, app, 4)
    await lease_one(store, running)
    await store.settle(succeeded(await lease_one(store, done)))
    await store.request_cancel(app.id, wiped, now=T0)
    everything = [early, exact, running, done, wiped, 987_654]
    leased = await store.lease(everything, node="n", now=T0, expires_at=T0 + 1)
    assert [task.lease.task_id for task in leased] == [exact]
    assert (await detail(store, app, early)).state is TaskState.SCHEDULED
    assert await store.lease([], node="n", now=T0, expires_at=T0 + 1) == []


async def test_tokens_grow_with_every_lease(store: Store) -> None:
    app = await store.create_app(new_app(retry_total=9))
    (task_id,) = await add(store, app, 1)
    tokens = []
    for turn in range(4):
        leased = await lease_one(store, task_id)
        tokens.append(leased.lease.token)
        end = given_back(leased) if turn % 2 else retrying(leased, due_at=T0)
        await store.settle(end)
    assert tokens == sorted(set(tokens))


async def test_a_success_ends_the_task_with_its_attempt(store: Store) -> None:
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    leased = await lease_one(store, task_id)
    attempt = Attempt(
        attempt=1,
        started_at=T0,
        ended_at=T0 + 3,
        outcome=Outcome.SUCCEEDED,
        http_status=204,
        response="success\0 — 成功",
        error="none\0",
    )
    settlement = dataclasses.replace(succeeded(leased), attempt=attempt, settled_at=T0 + 4)
    assert await store.settle(settlement) is TaskState.SUCCEEDED
    found = await detail(store, app, task_id)
    assert found.state is TaskState.SUCCEEDED
    assert (found.finished_at, found.due_at, found.node) == (T0 + 4, None, None)
    assert found.attempts == (attempt,)
    assert found.cancel_certainty is None


@pytest.mark.parametrize("outcome", list(Outcome))
async def test_every_outcome_is_kept(store: Store, outcome: Outcome) -> None:
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    leased = await lease_one(store, task_id)
    await store.settle(retrying(leased, due_at=T0 + 1, outcome=outcome))
    assert (await detail(store, app, task_id)).attempts[0].outcome is outcome


async def test_a_retry_waits_for_its_time_and_counts_its_failures(store: Store) -> None:
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    first = await lease_one(store, task_id)
    assert await store.settle(retrying(first, due_at=T0 + 5000)) is TaskState.RETRYING
    found = await detail(store, app, task_id)
    assert (found.state, found.due_at, found.runtime) == (TaskState.RETRYING, T0 + 5000, T0)
    assert (found.attempt, found.finished_at, found.node) == (1, None, None)
    assert await store.lease([task_id], node="n", now=T0 + 4999, expires_at=T0 + 9999) == []
    second = await lease_one(store, task_id, now=T0 + 5000)
    assert (second.attempt, second.failures, second.sent_before) == (2, 1, True)
    assert second.due_at == T0 + 5000
    await store.settle(failed(second))
    ended = await detail(store, app, task_id)
    assert (ended.state, ended.finished_at) == (TaskState.FAILED, second.leased_at + 7)
    assert [attempt.attempt for attempt in ended.attempts] == [1, 2]


async def test_an_attempt_that_sent_nothing_leaves_that_known(store: Store) -> None:
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    first = await lease_one(store, task_id)
    await store.settle(retrying(first, due_at=T0, outcome=Outcome.UNREACHABLE, sent=False))
    second = await lease_one(store, task_id)
    assert not second.sent_before
    await store.settle(retrying(second, due_at=T0))
    third = await lease_one(store, task_id)
    assert third.sent_before
    await store.settle(retrying(third, due_at=T0, sent=False))
    assert (await lease_one(store, task_id)).sent_before  # once sent, always sent


async def test_a_lease_given_back_leaves_no_trace(store: Store) -> None:
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    before = await detail(store, app, task_id)
    assert await store.settle(given_back(await lease_one(store, task_id))) is (TaskState.SCHEDULED)
    assert await detail(store, app, task_id) == before
    again = await lease_one(store, task_id)
    assert (again.attempt, again.failures, again.sent_before) == (1, 0, False)


async def test_a_retry_given_back_stays_a_retry_under_the_same_number(store: Store) -> None:
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    await store.settle(retrying(await lease_one(store, task_id), due_at=T0))
    before = await detail(store, app, task_id)
    given = given_back(await lease_one(store, task_id))
    assert await store.settle(given) is TaskState.RETRYING
    assert await detail(store, app, task_id) == before
    again = await lease_one(store, task_id)
    assert (again.attempt, again.failures) == (2, 1)


async def test_a_drained_attempt_that_had_sent_is_kept_and_costs_no_retry(store: Store) -> None:
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    leased = await lease_one(store, task_id)
    drained = retrying(leased, due_at=T0, outcome=Outcome.ABANDONED)
    assert await store.settle(drained) is TaskState.RETRYING
    again = await lease_one(store, task_id)
    assert (again.attempt, again.failures, again.sent_before) == (2, 0, True)
    found = await detail(store, app, task_id)
    assert [attempt.outcome for attempt in found.attempts] == [Outcome.ABANDONED]


async def test_a_stale_token_changes_nothing(store: Store) -> None:
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    stale = await lease_one(store, task_id)
    await store.reap(now=T0 + 1, expired_at=None, exclude=(), limit=9)
    between = await detail(store, app, task_id)
    with pytest.raises(LeaseLost):  # reaped, and not taken again
        await store.settle(succeeded(stale))
    assert await detail(store, app, task_id) == between
    current = await lease_one(store, task_id, now=T0 + 1, node="node-2")
    before = await detail(store, app, task_id)
    for settlement in (succeeded(stale), failed(stale), given_back(stale)):
        with pytest.raises(LeaseLost):
            await store.settle(settlement)
    assert await detail(store, app, task_id) == before
    assert await store.settle(succeeded(current)) is TaskState.SUCCEEDED


async def test_a_lease_is_settled_once(store: Store) -> None:
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    leased = await lease_one(store, task_id)
    await store.settle(retrying(leased, due_at=T0 + 1))
    before = await detail(store, app, task_id)
    for settlement in (retrying(leased, due_at=T0 + 2), succeeded(leased)):
        with pytest.raises(LeaseLost):
            await store.settle(settlement)
    assert await detail(store, app, task_id) == before
    unknown = Lease(task_id=4711, token=1, node="n", expires_at=T0)
    with pytest.raises(LeaseLost):
        await store.settle(dataclasses.replace(succeeded(leased), lease=unknown))


async def test_an_expired_lease_that_was_not_taken_still_holds(store: Store) -> None:
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    leased = await lease_one(store, task_id)
    late = leased.lease.expires_at + 1
    extended = await store.extend([leased.lease], expires_at=late + 1)
    assert extended.lost == frozenset()
    settlement = dataclasses.replace(succeeded(leased), settled_at=late + 5)
    assert await store.settle(settlement) is TaskState.SUCCEEDED


async def test_extending_moves_the_expiry_of_leases_still_held(store: Store) -> None:
    app = await store.create_app(new_app())
    held, wished, stale, done = await add(store, app, 4)
    leased = {task_id: await lease_one(store, task_id) for task_id in (held, wished, done)}
    lost = await lease_one(store, stale)
    await store.reap(now=T0, expired_at=None, exclude=[held, wished, done], limit=9)
    await lease_one(store, stale, node="node-2")
    await store.settle(succeeded(leased[done]))
    await store.request_cancel(app.id, wished, now=T0)

    leases = [*(task.lease for task in leased.values()), lost.lease]
    result = await store.extend(leases, expires_at=T0 + 5 * LEASE_MS)
    assert result.lost == {stale, done}
    assert result.cancel_requested == {wished}

    # What was extended does not expire at its first time, the others do.
    expired_at = T0 + LEASE_MS
    reaped = await store.reap(now=expired_at, expired_at=expired_at, exclude=(), limit=9)
    assert [task.task_id for task in reaped] == [stale]
    assert await store.extend([], expires_at=T0) == type(result)(frozenset(), frozenset())


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (succeeded, TaskState.SUCCEEDED),
        (failed, TaskState.CANCELLED),
        (given_back, TaskState.CANCELLED),
        (lambda leased: retrying(leased, due_at=T0 + 1), TaskState.CANCELLED),
        (
            lambda leased: cancelled(leased, CancelCertainty.ABORTED_BEFORE_RESPONSE),
            TaskState.CANCELLED,
        ),
    ],
    ids=["succeeded", "failed", "given back", "retrying", "cancelled"],
)
async def test_a_settlement_under_a_wish(store: Store, end: object, state: TaskState) -> None:
    assert callable(end)
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    leased = await lease_one(store, task_id)
    await store.request_cancel(app.id, task_id, now=T0 + 1)
    settlement: Settlement = end(leased)
    assert await store.settle(settlement) is state
    found = await detail(store, app, task_id)
    assert found.state is state
    assert (found.finished_at, found.due_at) == (settlement.settled_at, None)
    word = settlement.certainty if state is TaskState.CANCELLED else None
    assert found.cancel_certainty is word
    assert len(found.attempts) == (settlement.attempt is not None)
    assert await store.lease([task_id], node="n", now=2**50, expires_at=2**51) == []


@pytest.mark.parametrize("word", list(CancelCertainty))
async def test_a_cancelled_attempt_keeps_its_word(store: Store, word: CancelCertainty) -> None:
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    leased = await lease_one(store, task_id)
    assert await store.settle(cancelled(leased, word)) is TaskState.CANCELLED
    assert (await detail(store, app, task_id)).cancel_certainty is word


async def test_a_settlement_that_makes_no_sense_is_the_callers_mistake(store: Store) -> None:
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    leased = await lease_one(store, task_id)
    before = await detail(store, app, task_id)
    good = succeeded(leased)
    for bad in (
        dataclasses.replace(good, state=TaskState.RUNNING),
        dataclasses.replace(good, state=TaskState.RETRYING),
        dataclasses.replace(good, due_at=T0),
    ):
        with pytest.raises(ValueError, match=r"as running|due_at"):
            await store.settle(bad)
    assert await detail(store, app, task_id) == before

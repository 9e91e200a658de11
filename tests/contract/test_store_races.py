"""The Store's contract: many at once, and callers that go away.

Each race is run many times over, with its sides started in an order that Trio
draws at random.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable

import pytest
import trio

from taskd.domain.model import App, CancelCertainty, CancelDecision, LeasedTask, TaskState
from taskd.errors import DuplicateTaskNo, LeaseLost, NonceUsed, StoreError
from taskd.ports.store import Store
from tests.support.stores import (
    T0,
    add,
    detail,
    lease_one,
    new_app,
    new_task,
    nonce,
    retrying,
    succeeded,
)

ROUNDS = 40


async def gather(*calls: Awaitable[object]) -> list[object]:
    """Await all at once; an answer or a `StoreError` for each, in their order."""
    answers: list[object] = [None] * len(calls)

    async def one(number: int, call: Awaitable[object]) -> None:
        try:
            answers[number] = await call
        except StoreError as error:
            answers[number] = error

    async with trio.open_nursery() as nursery:
        for number, call in enumerate(calls):
            nursery.start_soon(one, number, call)
    return answers


async def test_one_of_50_concurrent_creates_gets_a_task_no(store: Store) -> None:
    app = await store.create_app(new_app())
    for turn in range(10):
        new = new_task(app, f"order-{turn}")
        answers = await gather(*(store.create_task(new) for _ in range(50)))
        (won,) = [answer for answer in answers if isinstance(answer, int)]
        assert sum(isinstance(answer, DuplicateTaskNo) for answer in answers) == 49
        found = await store.task_detail(app.id, task_no=f"order-{turn}")
        assert found is not None
        assert found.id == won
    assert len(await store.find_due(until=T0, limit_per_app=1000)) == 10


async def test_concurrent_creates_of_many_get_an_id_each(store: Store) -> None:
    apps = [await store.create_app(new_app(f"key-{number}")) for number in range(3)]
    ids: list[int] = []

    async def create(app: App, number: int) -> None:
        task_id = await store.create_task(new_task(app, f"order-{number}"))
        ids.append(task_id)
        # Readable as soon as it is acknowledged, and the right one.
        assert (await detail(store, app, task_id)).task_no == f"order-{number}"

    async with trio.open_nursery() as nursery:
        for number in range(1_100):
            nursery.start_soon(create, apps[number % 3], number)
    assert len(set(ids)) == 1_100


async def test_a_nonce_is_used_up_by_one_of_many_at_once(store: Store) -> None:
    app = await store.create_app(new_app())
    for turn in range(ROUNDS):
        uses = (nonce(f"n-{turn}", expires_at=T0 + random.randrange(10**6)) for _ in range(4))
        answers = await gather(
            *(store.use_nonce(use) for use in uses),
            *(
                store.create_task(new_task(app, f"{turn}-{number}"), nonce(f"n-{turn}"))
                for number in range(4)
            ),
        )
        assert sum(isinstance(answer, NonceUsed) for answer in answers) == 7


async def test_a_refused_call_does_not_disturb_those_beside_it(store: Store) -> None:
    app = await store.create_app(new_app())
    taken = await store.create_task(new_task(app, "taken"), nonce("used"))
    stale = await lease_one(store, taken)
    await store.settle(succeeded(stale))
    answers = await gather(
        store.create_task(new_task(app, "a"), nonce("n-a")),
        store.create_task(new_task(app, "taken"), nonce("n-b")),
        store.create_task(new_task(app, "c"), nonce("used")),
        store.settle(succeeded(stale)),
        store.create_task(new_task(app, "d")),
        store.use_nonce(nonce("n-e")),
        store.use_nonce(nonce("used")),
        store.create_app(new_app("key-9"), nonce("used")),
    )
    assert [type(answer) for answer in answers] == [
        int, DuplicateTaskNo, NonceUsed, LeaseLost, int, type(None), NonceUsed, NonceUsed,
    ]  # fmt: skip
    assert await store.task_detail(app.id, task_no="c") is None
    for used in ("n-a", "n-b", "n-e"):
        with pytest.raises(NonceUsed):
            await store.use_nonce(nonce(used))


async def test_a_used_nonce_disturbs_none_of_very_many_beside_it(store: Store) -> None:
    for turn in range(4):
        await store.use_nonce(nonce(f"used-{turn}"))
        answers = await gather(
            *(store.use_nonce(nonce(f"n-{turn}-{number}")) for number in range(1_000)),
            store.use_nonce(nonce(f"used-{turn}")),
        )
        assert answers[:-1] == [None] * 1_000
        assert isinstance(answers[-1], NonceUsed)


async def test_concurrent_leasers_never_get_one_task_twice(store: Store) -> None:
    app = await store.create_app(new_app())
    ids = await add(store, app, 60)
    taken: list[LeasedTask] = []

    async def take(node: str) -> None:
        for _ in range(6):
            wanted = random.sample(ids, 20)
            taken.extend(await store.lease(wanted, node=node, now=T0, expires_at=T0 + 1))

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(take, f"node-{number}")
    taken += await store.lease(ids, node="last", now=T0, expires_at=T0 + 1)
    assert sorted(task.lease.task_id for task in taken) == ids
    for task in taken:
        assert (await detail(store, app, task.lease.task_id)).node == task.lease.node


async def test_of_a_cancel_and_a_lease_at_once_one_wins(store: Store) -> None:
    app = await store.create_app(new_app())
    for task_id in await add(store, app, ROUNDS):
        decision, leased = await gather(
            store.request_cancel(app.id, task_id, now=T0),
            store.lease([task_id], node="n", now=T0, expires_at=T0 + 1),
        )
        assert isinstance(decision, CancelDecision)
        found = await detail(store, app, task_id)
        if decision.state is TaskState.CANCELLED:
            assert leased == []
            assert found.state is TaskState.CANCELLED
        else:
            assert decision.state is TaskState.RUNNING
            assert decision.node == "n"
            assert isinstance(leased, list)
            assert len(leased) == 1
            assert (found.state, found.cancel_requested) == (TaskState.RUNNING, True)


async def test_of_two_cancels_at_once_one_ends_the_task(store: Store) -> None:
    app = await store.create_app(new_app())
    other = await store.create_app(new_app("other"))
    for task_id in await add(store, app, ROUNDS):
        task_no = (await detail(store, app, task_id)).task_no
        decisions = await gather(
            store.request_cancel(app.id, task_id, now=T0),
            store.request_cancel(app.id, task_no=task_no, now=T0),
            store.request_cancel(other.id, task_id, now=T0),
        )
        states = [one.state for one in decisions if isinstance(one, CancelDecision)]
        assert states.count(TaskState.CANCELLED) == 1
        assert states.count(None) == 2


@pytest.mark.parametrize("end", ["success", "retry"])
async def test_of_a_cancel_and_a_settlement_at_once_one_wins(store: Store, end: str) -> None:
    app = await store.create_app(new_app())
    for task_id in await add(store, app, ROUNDS):
        leased = await lease_one(store, task_id)
        settlement = succeeded(leased) if end == "success" else retrying(leased, due_at=T0)
        decision, state = await gather(
            store.request_cancel(app.id, task_id, now=T0 + 1),
            store.settle(settlement),
        )
        assert isinstance(decision, CancelDecision)
        found = await detail(store, app, task_id)
        if end == "success":
            # Cancelled never; the wish came in time or too late.
            assert state is found.state is TaskState.SUCCEEDED
            assert decision.state in (TaskState.RUNNING, None)
        else:
            # Cancelled in any case, by the settlement or after it.
            assert found.state is TaskState.CANCELLED
            if decision.state is TaskState.RUNNING:
                assert state is TaskState.CANCELLED
                assert found.cancel_certainty is settlement.certainty
            else:
                assert state is TaskState.RETRYING
                assert (
                    decision.certainty is found.cancel_certainty is CancelCertainty.BETWEEN_ATTEMPTS
                )


async def test_of_a_reaping_and_a_settlement_at_once_one_wins(store: Store) -> None:
    app = await store.create_app(new_app())
    for task_id in await add(store, app, ROUNDS):
        leased = await lease_one(store, task_id)
        reaped, settled = await gather(
            store.reap(now=T0 + 1, expired_at=None, exclude=(), limit=9),
            store.settle(succeeded(leased)),
        )
        found = await detail(store, app, task_id)
        assert len(found.attempts) == 1
        if settled is TaskState.SUCCEEDED:
            assert reaped == []
            assert found.state is TaskState.SUCCEEDED
        else:
            assert isinstance(settled, LeaseLost)
            assert found.state is TaskState.RETRYING
            await store.request_cancel(app.id, task_id, now=T0 + 2)


async def test_of_two_settlements_at_once_one_counts(store: Store) -> None:
    app = await store.create_app(new_app())
    for task_id in await add(store, app, ROUNDS):
        leased = await lease_one(store, task_id)
        answers = await gather(
            store.settle(succeeded(leased)),
            store.settle(retrying(leased, due_at=T0 + 5)),
        )
        (state,) = [answer for answer in answers if not isinstance(answer, LeaseLost)]
        found = await detail(store, app, task_id)
        assert found.state is state
        assert len(found.attempts) == 1


async def test_a_caller_that_goes_away_leaves_all_or_nothing(store: Store) -> None:
    app = await store.create_app(new_app())
    seen = set()
    for turn in range(200):
        with trio.move_on_after(random.choice([0, 0, 0.0002, 0.001, 0.004])) as scope:
            await store.create_task(new_task(app, f"order-{turn}"), nonce(f"n-{turn}"))
        # Whatever becomes of that call has happened once a later one is answered.
        await store.probe()
        added = await store.task_detail(app.id, task_no=f"order-{turn}") is not None
        try:
            await store.use_nonce(nonce(f"n-{turn}"))
        except NonceUsed:
            assert added
        else:
            assert not added
            assert scope.cancelled_caught
        seen.add((scope.cancelled_caught, added))
    assert {caught for caught, _ in seen} == {True, False}


async def test_a_settlement_whose_caller_goes_away_is_whole_or_not_there(store: Store) -> None:
    app = await store.create_app(new_app())
    for task_id in await add(store, app, 100):
        leased = await lease_one(store, task_id)
        with trio.move_on_after(random.choice([0, 0.0002, 0.001])):
            await store.settle(succeeded(leased))
        await store.probe()
        found = await detail(store, app, task_id)
        assert (found.state is TaskState.SUCCEEDED) == (len(found.attempts) == 1)
        assert (found.finished_at is None) == (found.node is not None)


async def test_a_call_under_a_cancelled_scope_does_nothing(store: Store) -> None:
    app = await store.create_app(new_app())
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.create_task(new_task(app))
    assert scope.cancelled_caught
    await store.probe()
    assert await store.task_detail(app.id, task_no="order-1") is None


async def test_readers_that_go_away_leave_the_store_readable(store: Store) -> None:
    app = await store.create_app(new_app())
    ids = await add(store, app, 50)

    async def glance(task_id: int) -> None:
        with trio.move_on_after(random.choice([0, 0.0001, 0.001])):
            await detail(store, app, task_id)
            await store.find_due(until=T0, limit_per_app=50)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            for task_id in ids:
                nursery.start_soon(glance, task_id)
    assert len(await store.find_due(until=T0, limit_per_app=50)) == 50

"""The Store's contract: who has a taskNo that was asked for again, and cancelling by it."""

from __future__ import annotations

import pytest

from taskd.domain.model import App, CancelCertainty, CancelDecision, ExistingTask, TaskState
from taskd.errors import BatchRefused, DuplicateTaskNo
from taskd.ports.store import Store
from tests.contract.test_store_races import gather
from tests.support.stores import (
    T0,
    add,
    cancelled,
    detail,
    failed,
    lease_one,
    new_app,
    new_task,
    nonce,
    retrying,
    succeeded,
)

TASK_NOS = ["订单-1", "it's", "a\\", 'b"', "100%", "{x}", "a,b", "no'); --", "\u200b", "x" * 64]
"""What a statement, a format or a list might take for something of its own."""


async def in_every_state(store: Store, app: App) -> dict[str, ExistingTask]:
    """A task of each state, by its taskNo."""
    ids = [
        await store.create_task(new_task(app, state.value, due_at=T0 + number))
        for number, state in enumerate(TaskState)
    ]
    _, running, waiting, done, lost, wiped = ids
    now = T0 + 10
    await lease_one(store, running, now=now)
    await store.settle(retrying(await lease_one(store, waiting, now=now), due_at=T0 + 99))
    await store.settle(succeeded(await lease_one(store, done, now=now)))
    await store.settle(failed(await lease_one(store, lost, now=now)))
    word = CancelCertainty.ABORTED_BEFORE_RESPONSE
    await store.settle(cancelled(await lease_one(store, wiped, now=now), word))
    return {
        state.value: ExistingTask(task_id, state)
        for state, task_id in zip(TaskState, ids, strict=True)
    }


async def test_a_duplicate_names_the_task_that_is_there_and_its_state(store: Store) -> None:
    app = await store.create_app(new_app("key-1"))
    other = await store.create_app(new_app("key-2"))
    there = await in_every_state(store, app)
    for task_no, existing in there.items():
        with pytest.raises(DuplicateTaskNo) as refusal:
            await store.create_task(new_task(app, task_no))
        assert refusal.value.existing == existing
        batch = [new_task(app, f"new-{task_no}"), new_task(app, task_no)]
        with pytest.raises(BatchRefused) as refused:
            await store.create_tasks(batch, atomic=True)
        assert (refused.value.position, refused.value.existing) == (1, existing)
        # Another application's task of this taskNo is nobody's business.
        assert await store.create_task(new_task(other, task_no)) > existing.id
    new = [new_task(app, task_no) for task_no in there]
    assert await store.create_tasks(new) == list(there.values())


async def test_a_duplicate_of_one_that_is_added_in_the_same_moment_names_it(store: Store) -> None:
    app = await store.create_app(new_app())
    for turn in range(10):
        new = new_task(app, f"no-{turn}")
        answers = await gather(*(store.create_tasks([new, new]) for _ in range(10)))
        told = [one for answer in answers if isinstance(answer, list) for one in answer]
        (first,) = (one for one in told if isinstance(one, int))
        assert [one for one in told if not isinstance(one, int)] == [
            ExistingTask(first, TaskState.SCHEDULED)
        ] * 19


@pytest.mark.parametrize("task_no", TASK_NOS)
async def test_a_task_is_cancelled_by_its_task_no(store: Store, task_no: str) -> None:
    app = await store.create_app(new_app("key-1"))
    other = await store.create_app(new_app("key-2"))
    others = await store.create_task(new_task(other, task_no))
    beside = await store.create_task(new_task(app, task_no[:-1] + "~"))
    task_id = await store.create_task(new_task(app, task_no))
    decision = await store.request_cancel(app.id, task_no=task_no, now=T0 + 9)
    assert decision == CancelDecision(
        state=TaskState.CANCELLED,
        task_id=task_id,
        task_no=task_no,
        certainty=CancelCertainty.NEVER_SENT,
    )
    assert (await detail(store, app, task_id)).finished_at == T0 + 9
    nothing = await store.request_cancel(app.id, task_no=task_no, now=T0 + 10)
    assert nothing == CancelDecision(state=None)
    assert (await detail(store, other, others)).state is TaskState.SCHEDULED
    assert (await detail(store, app, beside)).state is TaskState.SCHEDULED
    assert (await store.request_cancel(app.id, task_no="unused", now=T0)).state is None


async def test_a_running_task_gets_the_wish_by_its_task_no(store: Store) -> None:
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    await lease_one(store, task_id, node="node-7")
    decision = await store.request_cancel(app.id, task_no="order-0", now=T0)
    assert decision == CancelDecision(
        state=TaskState.RUNNING, task_id=task_id, task_no="order-0", node="node-7"
    )
    assert (await detail(store, app, task_id)).cancel_requested


async def test_a_task_no_that_was_used_again_names_the_new_task_alone(store: Store) -> None:
    app = await store.create_app(new_app())
    (old,) = await add(store, app, 1)
    await store.settle(succeeded(await lease_one(store, old)))
    assert (await store.request_cancel(app.id, task_no="order-0", now=T0)).state is None
    await store.purge(finished_before=T0 + 1000, limit=9)
    assert (await store.request_cancel(app.id, task_no="order-0", now=T0)).state is None
    (new,) = await add(store, app, 1)
    assert (await store.request_cancel(app.id, task_no="order-0", now=T0)).task_id == new


async def test_of_many_who_cancel_by_id_and_by_task_no_one_does(store: Store) -> None:
    app = await store.create_app(new_app())
    ids = await add(store, app, 8)
    answers = await gather(
        *(
            store.request_cancel(app.id, task_id, now=T0)
            if by_id
            else store.request_cancel(app.id, task_no=f"order-{number}", now=T0)
            for by_id in (True, False, False)
            for number, task_id in enumerate(ids)
        )
    )
    done = [one.task_id for one in answers if isinstance(one, CancelDecision) and one.task_id]
    assert sorted(done) == ids


async def test_a_purge_beside_cancels_by_task_no_never_lets_one_hit_another_task(
    store: Store,
) -> None:
    """A cancel means the task that has the taskNo when it is decided on."""
    app = await store.create_app(new_app())
    for turn in range(20):
        task_no = f"no-{turn}"
        old = await store.create_task(new_task(app, task_no))
        await store.settle(succeeded(await lease_one(store, old)))
        answers = await gather(
            store.purge(finished_before=T0 + 1000, limit=9),
            store.request_cancel(app.id, task_no=task_no, now=T0),
            store.create_tasks([new_task(app, task_no)], nonce(f"n-{turn}")),
            store.request_cancel(app.id, task_no=task_no, now=T0),
        )
        hit = {one.task_id for one in answers if isinstance(one, CancelDecision)} - {None}
        found = await store.task_detail(app.id, task_no=task_no)
        assert old not in hit
        if hit:
            assert found is not None
            assert hit == {found.id}
            assert found.state is TaskState.CANCELLED

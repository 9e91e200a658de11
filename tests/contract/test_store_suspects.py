"""The Store's contract: what becomes of tasks that were in flight when their node died."""

from __future__ import annotations

import pytest

from taskd.domain.model import App, LeasedTask, Outcome, ReapedTask, TaskState
from taskd.domain.retry import MAX_ABANDONED_ALONE
from taskd.domain.transitions import NEARLY_ALONE, NODE_ENDS_KEPT_MS
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
    retrying,
    succeeded,
)


async def _die(
    store: Store, task_ids: list[int], node: str, *, stopping: bool = False, limit: int = 100
) -> list[ReapedTask]:
    """A node that takes the tasks and dies."""
    leased = await store.lease(task_ids, node=node, now=T0, expires_at=T0 + LEASE_MS)
    assert len(leased) == len(task_ids)
    if stopping:
        await store.note_stopping(node, now=T0)
    reaped: list[ReapedTask] = []
    while some := await store.reap(now=T0, expired_at=None, exclude=(), limit=limit, node=node):
        reaped += some
    assert {task.task_id for task in reaped} == set(task_ids)
    return reaped


async def _suspects(store: Store, *, after: int = 0, limit: int = 100) -> list[tuple[int, int]]:
    found = await store.find_suspects(now=T0, after=after, limit=limit)
    return [(one.task.task_id, one.abandoned) for one in found.waiting]


@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_those_that_were_many_in_flight_never_fail(store: Store, limit: int) -> None:
    """However few of them one step of reaping ends."""
    app = await store.create_app(new_app())
    ids = await add(store, app, NEARLY_ALONE + 1)
    for number in range(3 * MAX_ABANDONED_ALONE):
        reaped = await _die(store, ids, f"node-{number}", limit=limit)
        assert {task.state for task in reaped} == {TaskState.RETRYING}


async def test_those_that_were_few_in_flight_are_the_likely_cause(store: Store) -> None:
    app = await store.create_app(new_app())
    ids = await add(store, app, NEARLY_ALONE)
    for number in range(MAX_ABANDONED_ALONE - 1):
        await _die(store, ids, f"node-{number}")
    reaped = await _die(store, ids, "the fifth")
    assert {task.state for task in reaped} == {TaskState.FAILED}
    assert await _suspects(store) == []


async def test_leases_that_expire_later_do_not_look_alone(store: Store) -> None:
    app = await store.create_app(new_app())
    ids = await add(store, app, 10)
    for number in range(MAX_ABANDONED_ALONE):
        node = f"node-{number}"
        for age, task_id in enumerate(ids):
            await store.lease([task_id], node=node, now=T0, expires_at=T0 + age)
        for age in range(len(ids)):
            (reaped,) = await store.reap(now=T0, expired_at=T0 + age, exclude=(), limit=9)
            assert reaped.state is TaskState.RETRYING


async def test_company_now_and_then_does_not_begin_the_count_anew(store: Store) -> None:
    app = await store.create_app(new_app())
    culprit, *others = await add(store, app, 10)
    states = []
    for number in range(MAX_ABANDONED_ALONE):
        await _die(store, [culprit, *others], f"busy-{number}")
        states += [task.state for task in await _die(store, [culprit], f"quiet-{number}")]
    assert states == [TaskState.RETRYING] * 4 + [TaskState.FAILED]


async def test_a_node_that_was_told_to_stop_blames_nobody(store: Store) -> None:
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    for number in range(2 * MAX_ABANDONED_ALONE):
        (reaped,) = await _die(store, [task_id], f"node-{number}", stopping=True)
        assert reaped.state is TaskState.RETRYING
    assert await _suspects(store) == []
    found = await detail(store, app, task_id)
    assert {attempt.outcome for attempt in found.attempts} == {Outcome.ABANDONED}
    await store.note_stopping("never seen", now=T0)


async def test_a_node_that_was_told_to_stop_long_ago_is_told_anew(store: Store) -> None:
    app = await store.create_app(new_app())
    await store.note_stopping("node-1", now=T0 - NODE_ENDS_KEPT_MS - 1)
    (task_id,) = await add(store, app, 1)
    await _die(store, [task_id], "node-1", stopping=True)
    assert await _suspects(store) == []


async def test_suspects_are_found_by_how_often_they_were_abandoned(store: Store) -> None:
    app = await store.create_app(new_app())
    ids = await add(store, app, 30)
    once, twice, often = ids[:8], ids[8:16], ids[16:26]
    for number, some in enumerate([often, often, often + twice, often + twice + once]):
        await _die(store, some, f"node-{number}")
    kinds = [[(one, 1) for one in once], [(one, 2) for one in twice]]
    kinds.append([(one, 4) for one in often])
    assert await _suspects(store) == [one for kind in kinds for one in kind]
    assert await _suspects(store, limit=3) == [one for kind in kinds for one in kind[:3]]
    assert await _suspects(store, after=once[2], limit=3) == [
        *kinds[0][3:6],
        *kinds[1][:3],
        *kinds[2][:3],
    ]
    assert not (await store.find_suspects(now=T0 - 1, after=0, limit=9)).waiting
    # One that is leased does not wait.
    await lease_one(store, once[0])
    assert (await _suspects(store))[: len(once)] == [*kinds[0][1:], kinds[1][0]]


async def test_deaths_count_for_ten_minutes(store: Store) -> None:
    app = await store.create_app(new_app())
    ids = await add(store, app, 30)
    await _die(store, ids[:10], "node-1", limit=3)
    await _die(store, ids[10:20], "node-2", limit=3)
    await _die(store, ids[20:], "told to stop", stopping=True)
    for later, deaths in ((0, 2), (599_999, 2), (600_001, 0), (-1, 0)):
        found = await store.find_suspects(now=T0 + later, after=0, limit=9)
        assert found.deaths == deaths


async def test_a_lease_can_leave_suspects_alone(store: Store) -> None:
    app = await store.create_app(new_app())
    suspect, other = await add(store, app, 2)
    await _die(store, [suspect], "node-1")
    leased = await store.lease(
        [suspect, other], node="n", now=T0, expires_at=T0 + 9, suspects=False
    )
    assert [task.lease.task_id for task in leased] == [other]
    # They wait as others do, for who finds what is overdue.
    assert [task.task_id for task in await store.find_due(until=T0, limit_per_app=9)] == [suspect]
    await lease_one(store, suspect)


async def _succeed(store: Store, _app: App, leased: LeasedTask) -> None:
    await store.settle(succeeded(leased))


async def _fail(store: Store, _app: App, leased: LeasedTask) -> None:
    await store.settle(failed(leased))


async def _retry(store: Store, _app: App, leased: LeasedTask) -> None:
    await store.settle(retrying(leased, due_at=T0))


async def _drain(store: Store, _app: App, leased: LeasedTask) -> None:
    await store.settle(retrying(leased, due_at=T0, outcome=Outcome.ABANDONED))


async def _give_back(store: Store, _app: App, leased: LeasedTask) -> None:
    await store.settle(given_back(leased))


async def _cancel(store: Store, app: App, leased: LeasedTask) -> None:
    await store.settle(given_back(leased))
    await store.request_cancel(app.id, leased.lease.task_id, now=T0)


@pytest.mark.parametrize(
    ("end", "suspected"),
    [
        (_succeed, []),
        (_fail, []),
        (_retry, []),
        (_cancel, []),
        (_drain, [1]),
        (_give_back, [1]),
    ],
    ids=["succeeded", "failed", "retrying", "cancelled", "drained", "given back"],
)
async def test_who_is_suspected_no_longer(
    store: Store,
    end: object,
    suspected: list[int],
) -> None:
    assert callable(end)
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    await _die(store, [task_id], "node-1")
    await end(store, app, await lease_one(store, task_id, node="node-2"))
    assert [abandoned for _, abandoned in await _suspects(store)] == suspected


async def test_a_wish_to_cancel_ends_a_suspect_that_dies_again(store: Store) -> None:
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    await _die(store, [task_id], "node-1")
    await lease_one(store, task_id, node="node-2")
    await store.request_cancel(app.id, task_id, now=T0)
    (reaped,) = await store.reap(now=T0, expired_at=None, exclude=(), limit=9)
    assert reaped.state is TaskState.CANCELLED
    assert await _suspects(store) == []

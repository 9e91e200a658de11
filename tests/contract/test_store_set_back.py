"""The Store's contract: what was dated by a clock that was ahead, and has been set back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from taskd.domain.model import App, DueTask, Outcome, TaskState
from taskd.domain.retry import MAX_WAIT_MS
from taskd.domain.transitions import MAX_LEASE_MS, WaitingTask, brought_forward
from taskd.ports.store import Store
from tests.support.stores import (
    T0,
    add,
    detail,
    lease_one,
    new_app,
    new_task,
    retrying,
    succeeded,
)

HOURS = 3_600_000
BACK = T0 - 5 * HOURS
"""What the clock shows once it was set back from about T0."""


async def _bring_forward(store: Store, *, now: int, limit: int = 100) -> list[DueTask]:
    """All that is brought forward, in steps."""
    brought: list[DueTask] = []
    after: DueTask | None = None
    while True:
        step = await store.bring_forward(now=now, after=after, limit=limit)
        brought += step.tasks
        after = step.reached
        if after is None:
            return brought


async def _retry(store: Store, app: App, task_no: str, *, wait_ms: int) -> int:
    """A task that waits so long after its first attempt, which began at T0."""
    task_id = await store.create_task(new_task(app, task_no))
    settlement = retrying(await lease_one(store, task_id), due_at=0)
    assert settlement.attempt is not None
    due_at = settlement.attempt.ended_at + wait_ms
    await store.settle(replace(settlement, due_at=due_at))
    return task_id


async def test_a_retry_waits_from_now_on_as_long_as_it_was_to_wait(store: Store) -> None:
    app = await store.create_app(new_app())
    waits = (0, 5_000, 3_600_000, MAX_WAIT_MS)
    ids = [await _retry(store, app, f"r{wait}", wait_ms=wait) for wait in waits]
    brought = await _bring_forward(store, now=BACK)
    assert {task.task_id: task.due_at for task in brought} == {
        task_id: BACK + wait for task_id, wait in zip(ids, waits, strict=True)
    }
    for task in brought:
        assert (await detail(store, app, task.task_id)).due_at == task.due_at
    # And once more: nothing is ahead of the clock any longer than it may be.
    assert await _bring_forward(store, now=BACK) == []


async def test_a_task_that_was_to_run_at_once_is_due_now_and_one_with_a_time_keeps_it(
    store: Store,
) -> None:
    app = await store.create_app(new_app())
    at_once = await store.create_task(new_task(app, "at once", due_at=T0))
    timed = await store.create_task(new_task(app, "timed", due_at=T0 + 1))
    assert await _bring_forward(store, now=BACK) == [
        DueTask(task_id=at_once, app_id=app.id, due_at=BACK)
    ]
    assert (await detail(store, app, timed)).due_at == T0 + 1
    assert [task.task_id for task in await store.find_due(until=BACK, limit_per_app=9)] == [at_once]


async def test_what_runs_and_what_has_ended_is_left_alone(store: Store) -> None:
    app = await store.create_app(new_app())
    running, ended = await add(store, app, 2)
    leased = await lease_one(store, running)
    await store.settle(succeeded(await lease_one(store, ended)))
    assert await _bring_forward(store, now=BACK) == []
    assert (await detail(store, app, running)).state is TaskState.RUNNING
    assert (await detail(store, app, ended)).state is TaskState.SUCCEEDED
    await store.settle(succeeded(leased))


async def test_no_lease_ends_later_than_the_longest_one_could(store: Store) -> None:
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    await lease_one(store, task_id)
    await store.bring_forward(now=BACK, after=None, limit=100)
    until = BACK + MAX_LEASE_MS
    assert await store.reap(now=until, expired_at=until - 1, exclude=(), limit=9) == []
    (reaped,) = await store.reap(now=until, expired_at=until, exclude=(), limit=9)
    assert reaped.task_id == task_id


async def test_the_leases_that_end_last_are_shortened_first(store: Store) -> None:
    app = await store.create_app(new_app())
    ids = await add(store, app, 3)
    for number, task_id in enumerate(ids):
        expires_at = BACK + (2 + number % 2) * MAX_LEASE_MS + number
        await store.lease([task_id], node="n", now=T0, expires_at=expires_at)
    await store.bring_forward(now=BACK, after=None, limit=1)
    until = BACK + MAX_LEASE_MS
    reaped = await store.reap(now=until, expired_at=until, exclude=(), limit=9)
    # The model shortens all of them at once.
    assert ids[1] in {task.task_id for task in reaped}


async def test_any_number_of_leases_is_shortened_in_steps(store: Store) -> None:
    app = await store.create_app(new_app())
    ids = await add(store, app, 7)
    waiting = await store.create_task(new_task(app, "at once", due_at=T0))
    await store.lease(ids, node="n", now=T0, expires_at=BACK + 3 * MAX_LEASE_MS)
    brought = await _bring_forward(store, now=BACK, limit=3)
    assert [task.task_id for task in brought] == [waiting]
    until = BACK + MAX_LEASE_MS
    reaped = await store.reap(now=until, expired_at=until, exclude=(), limit=9)
    assert sorted(task.task_id for task in reaped) == ids


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
async def test_steps_of_any_size_look_at_each_task_once(store: Store, limit: int) -> None:
    apps = [await store.create_app(new_app(f"key-{number}")) for number in range(4)]
    wanted: list[int] = []
    # Several of one moment, and an application that has none.
    for app in apps[:3]:
        wanted += [await _retry(store, app, f"same-{number}", wait_ms=1_000) for number in range(4)]
        wanted += [await _retry(store, app, f"later-{n}", wait_ms=2_000 + n) for n in range(2)]
        await store.create_task(new_task(app, "timed", due_at=T0 + 99 * HOURS))
    seen: list[int] = []
    after: DueTask | None = None
    for _ in range(100):
        step = await store.bring_forward(now=BACK, after=after, limit=limit)
        seen += [task.task_id for task in step.tasks]
        assert len(step.tasks) <= limit
        after = step.reached
        if after is None:
            break
    assert after is None
    assert sorted(seen) == sorted(wanted)


async def test_many_applications_with_nothing_to_bring_forward_are_walked_past(
    store: Store,
) -> None:
    early = [await store.create_app(new_app(f"early-{n}")) for n in range(230)]
    for app in early:
        await store.create_task(new_task(app, due_at=BACK - 1))
    last = await store.create_app(new_app("last"))
    task_id = await _retry(store, last, "r", wait_ms=1_000)
    assert [task.task_id for task in await _bring_forward(store, now=BACK)] == [task_id]


async def test_the_last_moment_is_that_of_the_last_creation_or_end(store: Store) -> None:
    assert await store.last_moment() is None
    app = await store.create_app(new_app())
    assert await store.last_moment() is None
    first, second = await add(store, app, 2)
    assert await store.last_moment() == T0
    await store.settle(succeeded(await lease_one(store, first, now=T0 + 1_000)))
    assert await store.last_moment() == T0 + 1_007
    await store.request_cancel(app.id, second, now=T0 + 500)
    assert await store.last_moment() == T0 + 1_007


def _waiting(
    state: TaskState,
    *,
    due_at: int,
    created_at: int = T0,
    ended_at: int | None = None,
    abandoned: bool = False,
) -> WaitingTask:
    return WaitingTask(
        task_id=1,
        app_id=1,
        state=state,
        due_at=due_at,
        created_at=created_at,
        ended_at=ended_at,
        abandoned=abandoned,
    )


_RULES: Sequence[tuple[str, WaitingTask, int | None]] = [
    (
        "the clock is as it was",
        _waiting(TaskState.RETRYING, due_at=T0 + 5_000, ended_at=T0 - 1),
        None,
    ),
    (
        "a retry too far away whatever its attempt says",
        _waiting(TaskState.RETRYING, due_at=T0 + 2 * MAX_WAIT_MS, ended_at=T0 - 1),
        T0 + MAX_WAIT_MS,
    ),
    (
        "an attempt that a drain gave back",
        _waiting(TaskState.RETRYING, due_at=T0 + 10, ended_at=T0 + 5_000, abandoned=True),
        T0,
    ),
    (
        "a retry that was brought forward before",
        _waiting(TaskState.RETRYING, due_at=T0 + 10, ended_at=T0 + 5_000),
        None,
    ),
    (
        "a retry without an attempt",
        _waiting(TaskState.RETRYING, due_at=T0 + HOURS),
        None,
    ),
    ("due now", _waiting(TaskState.SCHEDULED, due_at=T0), None),
    (
        "created at this very moment",
        _waiting(TaskState.SCHEDULED, due_at=T0, created_at=T0),
        None,
    ),
]


@pytest.mark.parametrize(
    ("task", "due_at"), [rule[1:] for rule in _RULES], ids=[rule[0] for rule in _RULES]
)
def test_the_rule(task: WaitingTask, due_at: int | None) -> None:
    assert brought_forward(task, now=T0) == due_at


async def test_an_abandoned_attempt_counts_as_one_that_ended(store: Store) -> None:
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    await lease_one(store, task_id)
    await store.reap(now=T0 + 100, expired_at=None, exclude=(), limit=9)
    found = await detail(store, app, task_id)
    assert (found.due_at, found.attempts[-1].outcome) == (T0 + 100, Outcome.ABANDONED)
    (task,) = await _bring_forward(store, now=BACK)
    assert task.due_at == BACK

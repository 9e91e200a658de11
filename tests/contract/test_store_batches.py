"""The Store's contract: adding many tasks at once."""

from __future__ import annotations

import random

import pytest
import trio

from taskd.domain.model import ExistingTask, NewTask, TaskState
from taskd.errors import BatchRefused, DuplicateTaskNo, NonceUsed, StoreError
from taskd.ports.store import Store
from tests.contract.test_store_races import gather
from tests.support.stores import (
    T0,
    add,
    detail,
    lease_one,
    new_app,
    new_task,
    nonce,
)

MANY = 1_000


async def held(store: Store) -> int:
    """How many tasks wait."""
    return len(await store.find_due(until=2**50, limit_per_app=10_000))


async def test_tasks_of_a_batch_are_kept_as_single_ones_are(store: Store) -> None:
    apps = [await store.create_app(new_app(f"key-{number}")) for number in range(2)]
    contents = [b"1", b'"' + b"x" * 100_000 + b'"', b"\xff no text", b"", b'"\0"']
    new = [
        new_task(apps[n % 2], f"no-{n}", due_at=T0 + n, content=content, retry_total=n)
        for n, content in enumerate(contents)
    ]
    ids = await store.create_tasks(new)
    for task, task_id in zip(new, ids, strict=True):
        assert isinstance(task_id, int)
        app = apps[0] if task.app_id == apps[0].id else apps[1]
        found = await detail(store, app, task_id)
        assert (found.state, found.task_no) == (TaskState.SCHEDULED, task.task_no)
        assert (found.due_at, found.retry_total) == (task.due_at, task.retry_total)
        leased = await lease_one(store, task_id, now=T0 + 9)
        assert leased.content == task.content


@pytest.mark.parametrize("atomic", [False, True])
async def test_a_thousand_get_ascending_ids_that_no_other_task_has(
    store: Store, *, atomic: bool
) -> None:
    app = await store.create_app(new_app())
    before = await add(store, app, 1)
    many = [new_task(app, f"no-{number:04}") for number in range(MANY)]
    ids = await store.create_tasks(many, atomic=atomic)
    after = await store.create_task(new_task(app, "after"))
    every = [*before, *(task_id for task_id in ids if isinstance(task_id, int)), after]
    assert len(every) == MANY + 2
    assert every == sorted(set(every))
    for task, task_id in list(zip(many, ids, strict=True))[:: MANY // 7]:
        assert isinstance(task_id, int)
        assert (await detail(store, app, task_id)).task_no == task.task_no


@pytest.mark.parametrize("place", [0, 511, 512, MANY - 1])
async def test_taken_task_nos_are_left_out_and_the_rest_is_added(store: Store, place: int) -> None:
    app = await store.create_app(new_app("key-1"))
    other = await store.create_app(new_app("key-2"))
    there = await store.create_task(new_task(app, f"no-{place}", due_at=T0 + 7))
    await store.create_task(new_task(other, "no-3"))
    many = [new_task(app, f"no-{number}") for number in range(MANY)]
    many.append(new_task(app, "no-5"))  # as an earlier one of the same batch
    ids = await store.create_tasks(many)
    refused = {n: told for n, told in enumerate(ids) if isinstance(told, ExistingTask)}
    fifth = ids[5]
    assert isinstance(fifth, int)
    assert refused == {
        place: ExistingTask(there, TaskState.SCHEDULED),
        MANY: ExistingTask(fifth, TaskState.SCHEDULED),
    }
    assert await held(store) == MANY + 1
    kept = await store.task_detail(app.id, task_no=f"no-{place}")
    assert kept is not None
    assert kept.due_at == T0 + 7
    again = await store.create_tasks(many)
    kept_ids = [told.id if isinstance(told, ExistingTask) else told for told in ids]
    assert again == [ExistingTask(task_id, TaskState.SCHEDULED) for task_id in kept_ids]


@pytest.mark.parametrize("place", [0, 2, 600, MANY - 1])
async def test_an_atomic_batch_with_a_taken_task_no_adds_nothing(store: Store, place: int) -> None:
    app = await store.create_app(new_app())
    there = await store.create_task(new_task(app, f"no-{place}"))
    many = [new_task(app, f"no-{number}") for number in range(MANY)]
    with pytest.raises(BatchRefused) as refusal:
        await store.create_tasks(many, nonce("n-1"), atomic=True)
    assert refusal.value.position == place
    assert refusal.value.existing == ExistingTask(there, TaskState.SCHEDULED)
    assert await held(store) == 1
    with pytest.raises(NonceUsed):
        await store.use_nonce(nonce("n-1"))
    # None of its taskNos was used.
    del many[place]
    added = await store.create_tasks(many, atomic=True)
    assert all(isinstance(task_id, int) for task_id in added)


async def test_an_atomic_batch_that_repeats_itself_adds_nothing(store: Store) -> None:
    app = await store.create_app(new_app())
    twice = [new_task(app, task_no) for task_no in ("a", "b", "a", "b")]
    with pytest.raises(BatchRefused) as refusal:
        await store.create_tasks(twice, atomic=True)
    assert refusal.value.position == 2
    assert refusal.value.existing is None
    assert await held(store) == 0


@pytest.mark.parametrize("atomic", [False, True])
async def test_a_batch_with_a_used_nonce_changes_nothing(store: Store, *, atomic: bool) -> None:
    app = await store.create_app(new_app())
    await store.use_nonce(nonce("n-1"))
    with pytest.raises(NonceUsed):
        await store.create_tasks([new_task(app)], nonce("n-1"), atomic=atomic)
    assert await held(store) == 0


async def test_a_batch_of_nothing_but_repeats_uses_its_nonce_up(store: Store) -> None:
    app = await store.create_app(new_app())
    there = await store.create_task(new_task(app))
    (told,) = await store.create_tasks([new_task(app)], nonce("n-1"))
    assert told == ExistingTask(there, TaskState.SCHEDULED)
    with pytest.raises(NonceUsed):
        await store.use_nonce(nonce("n-1"))


async def test_of_batches_and_singles_at_once_one_gets_each_task_no(store: Store) -> None:
    app = await store.create_app(new_app())
    for turn in range(20):
        numbers = list(range(8))
        batches = [random.sample(numbers, 6) for _ in range(6)]
        whole = [number % 3 == 0 for number in range(6)]

        def new(number: int, turn: int = turn) -> NewTask:
            return new_task(app, f"{turn}-{number}")

        answers = await gather(
            *(
                store.create_tasks([new(n) for n in batch], atomic=atomic)
                for batch, atomic in zip(batches, whole, strict=True)
            ),
            *(store.create_task(new(number)) for number in numbers[:4]),
        )
        owner: dict[int, int] = {}
        for batch, answer in zip(batches, answers, strict=False):
            if isinstance(answer, BatchRefused):
                continue
            assert isinstance(answer, list)
            for number, told in zip(batch, answer, strict=True):
                task_id = told.id if isinstance(told, ExistingTask) else told
                assert owner.setdefault(number, task_id) == task_id
        for number, answer in enumerate(answers[len(batches) :]):
            if isinstance(answer, int):
                assert owner.setdefault(number, answer) == answer
            else:
                assert isinstance(answer, DuplicateTaskNo)
                assert owner.setdefault(number, answer.existing.id) == answer.existing.id
        assert len(set(owner.values())) == len(owner)
        for number in numbers:
            found = await store.task_detail(app.id, task_no=f"{turn}-{number}")
            assert (None if found is None else found.id) == owner.get(number)


async def test_a_batch_whose_caller_goes_away_is_whole_or_not_there(store: Store) -> None:
    app = await store.create_app(new_app())
    seen = set()
    for turn in range(60):
        batch = [new_task(app, f"{turn}-{number}") for number in range(20)]
        with trio.move_on_after(random.choice([0, 0, 0.0005, 0.002, 0.01])) as scope:
            await store.create_tasks(batch, nonce(f"n-{turn}"), atomic=turn % 2 == 0)
        await store.probe()
        added = 0
        for task in batch:
            added += await store.task_detail(app.id, task_no=task.task_no) is not None
        assert added in (0, 20)
        try:
            await store.use_nonce(nonce(f"n-{turn}"))
        except NonceUsed:
            assert added
        else:
            assert not added
        seen.add(scope.cancelled_caught)
    assert seen == {True, False}


async def test_a_refused_batch_does_not_disturb_those_beside_it(store: Store) -> None:
    app = await store.create_app(new_app())
    await store.create_task(new_task(app, "taken"), nonce("used"))

    def some(*task_nos: str) -> list[NewTask]:
        return [new_task(app, task_no) for task_no in task_nos]

    answers = await gather(
        store.create_tasks(some("a", "taken", "b")),
        store.create_tasks(some("c", "taken", "d"), nonce("n-1"), atomic=True),
        store.create_tasks(some("e", "f"), nonce("used")),
        store.create_task(new_task(app, "g")),
        store.create_tasks(some("h", "i"), nonce("n-2"), atomic=True),
        store.use_nonce(nonce("n-3")),
    )
    assert [type(answer) for answer in answers] == [
        list, BatchRefused, NonceUsed, int, list, type(None),
    ]  # fmt: skip
    assert not any(isinstance(answer, StoreError) for answer in (answers[0], answers[4]))
    for task_no in "abghi":
        assert await store.task_detail(app.id, task_no=task_no) is not None
    for task_no in "cdef":
        assert await store.task_detail(app.id, task_no=task_no) is None

"""The Store's contract: finding what is due."""

from __future__ import annotations

from taskd.domain.model import DueTask, Shard
from taskd.ports.store import Store
from tests.support.stores import (
    T0,
    add,
    lease_one,
    new_app,
    new_task,
    retrying,
    succeeded,
)


async def due_ids(store: Store, until: int, *, after: int | None = None) -> list[int]:
    found = await store.find_due(until=until, after=after, limit_per_app=1_000)
    return [task.task_id for task in found]


async def test_nothing_is_due_in_an_empty_store(store: Store) -> None:
    assert await store.find_due(until=2**62, limit_per_app=10) == []


async def test_the_window_excludes_after_and_includes_until(store: Store) -> None:
    app = await store.create_app(new_app())
    ids = [await store.create_task(new_task(app, f"order-{n}", due_at=T0 + n)) for n in range(5)]
    assert await due_ids(store, T0 - 1) == []
    assert await due_ids(store, T0) == ids[:1]
    assert await due_ids(store, T0 + 2) == ids[:3]
    assert await due_ids(store, T0 + 3, after=T0) == ids[1:4]
    assert await due_ids(store, T0 + 3, after=T0 + 2) == ids[3:4]
    assert await due_ids(store, T0 + 3, after=T0 + 3) == []
    assert await due_ids(store, T0 + 2, after=T0 + 3) == []


async def test_a_task_is_found_with_its_app_and_its_time(store: Store) -> None:
    app = await store.create_app(new_app())
    task_id = await store.create_task(new_task(app, due_at=T0 + 5))
    found = await store.find_due(until=T0 + 9, limit_per_app=1)
    assert found == [DueTask(task_id=task_id, app_id=app.id, due_at=T0 + 5)]


async def test_each_apps_earliest_come_first_and_no_more_than_the_limit(store: Store) -> None:
    apps = [await store.create_app(new_app(f"key-{n}")) for n in range(3)]
    expected: dict[int, list[int]] = {}
    for app, count in zip(apps, (7, 2, 4), strict=True):
        # Added in another order than they fall due in.
        ids = {
            due: await store.create_task(new_task(app, f"order-{due}", due_at=T0 + due))
            for due in reversed(range(count))
        }
        expected[app.id] = [ids[due] for due in range(count)]
    found = await store.find_due(until=T0 + 100, limit_per_app=3)
    of_app = {app.id: [task.task_id for task in found if task.app_id == app.id] for app in apps}
    assert of_app == {app_id: ids[:3] for app_id, ids in expected.items()}


async def test_the_parts_are_all_there_is_and_none_twice(store: Store) -> None:
    apps = [await store.create_app(new_app(f"key-{n}")) for n in range(2)]
    for app in apps:
        await add(store, app, 40)
    whole = await store.find_due(until=T0, limit_per_app=40)
    assert len(whole) == 80
    for of in (1, 2, 3):
        shards = [Shard(number, of) for number in range(of)]
        found = [await store.find_due(until=T0, limit_per_app=40, shard=p) for p in shards]
        for shard, tasks in zip(shards, found, strict=True):
            assert tasks == [task for task in whole if shard.has(task.task_id)]


async def test_a_part_is_looked_for_among_as_many_more_as_there_are_parts(store: Store) -> None:
    app = await store.create_app(new_app())
    first = [await store.create_task(new_task(app, f"a-{n}")) for n in range(20)]
    await add(store, app, 20)
    shard = Shard(1, 2)
    found = await store.find_due(until=T0, limit_per_app=10, shard=shard)
    assert [task.task_id for task in found] == [n for n in first if shard.has(n)]


async def test_skipped_apps_are_left_out(store: Store) -> None:
    apps = [await store.create_app(new_app(f"key-{n}")) for n in range(4)]
    for app in apps:
        await add(store, app, 2)
    skipped = {apps[0].id, apps[2].id, 999}
    found = await store.find_due(until=T0, limit_per_app=10, skip_apps=skipped)
    assert sorted(task.app_id for task in found) == [apps[1].id] * 2 + [apps[3].id] * 2


async def test_only_what_waits_is_found(store: Store) -> None:
    app = await store.create_app(new_app())
    waiting, running, done, again, cancelled = await add(store, app, 5)
    await lease_one(store, running)
    await store.settle(succeeded(await lease_one(store, done)))
    await store.settle(retrying(await lease_one(store, again), due_at=T0 + 50))
    await store.request_cancel(app.id, cancelled, now=T0)
    assert await due_ids(store, T0) == [waiting]
    assert await due_ids(store, T0 + 49) == [waiting]
    assert await due_ids(store, T0 + 50) == [waiting, again]


async def test_the_tasks_of_an_app_that_wait_are_counted(store: Store) -> None:
    app, other = await store.create_app(new_app()), await store.create_app(new_app("other"))
    assert await store.count_waiting(app.id, limit=9) == 0
    running, retried, over, cancelled = await add(store, app, 4)
    for later in ("later", "last"):
        await store.create_task(new_task(app, later, due_at=T0 + 1))
    await add(store, other, 1)
    await lease_one(store, running)
    await store.settle(retrying(await lease_one(store, retried), due_at=T0 + 5))
    await store.settle(succeeded(await lease_one(store, over)))
    await store.request_cancel(app.id, cancelled, now=T0)
    assert await store.count_waiting(app.id, limit=9) == 3
    assert await store.count_waiting(app.id, limit=2) == 2
    assert await store.count_waiting(other.id, limit=9) == 1

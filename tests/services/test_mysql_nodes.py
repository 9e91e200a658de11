"""Several nodes, each with a MySQL store of its own, on one database."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from taskd.domain.model import ExistingTask, Lease, LeasedTask, ReapedTask, TaskState
from taskd.errors import BatchRefused, DuplicateTaskNo, LeaseLost, NonceUsed
from taskd.ports.store import Store
from taskd.stores.mysql.store import MySQLStore
from tests.support.mysql import opened_mysql
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
from tools.servers import Database

pytestmark = pytest.mark.deadline(240)


@asynccontextmanager
async def nodes(url: str, count: int) -> AsyncIterator[list[MySQLStore]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(opened_mysql(url)) for _ in range(count)]


async def each(stores: list[MySQLStore], use: Callable[[Store], Awaitable[None]]) -> None:
    async with trio.open_nursery() as nursery:
        for store in stores:
            nursery.start_soon(use, store)


async def test_one_of_several_nodes_gets_a_task_no_and_a_nonce(database_url: str) -> None:
    async with nodes(database_url, 4) as stores:
        app = await stores[0].create_app(new_app())
        answers: Counter[tuple[str, str]] = Counter()

        async def create(store: Store, number: int) -> None:
            try:
                await store.create_task(new_task(app, f"order-{number}"))
                answers["created", str(number)] += 1
            except DuplicateTaskNo:
                answers["duplicate", str(number)] += 1

        async def use(store: Store, number: int) -> None:
            try:
                await store.use_nonce(nonce(f"n-{number}"))
                answers["used", str(number)] += 1
            except NonceUsed:
                answers["refused", str(number)] += 1

        async with trio.open_nursery() as nursery:
            for store in stores:
                for number in random.sample(range(200), 200):
                    nursery.start_soon(create, store, number)
                    nursery.start_soon(use, store, number)
        for number in range(200):
            assert answers["created", str(number)] == 1
            assert answers["duplicate", str(number)] == 3
            assert answers["used", str(number)] == 1
            assert answers["refused", str(number)] == 3


async def test_batches_of_several_nodes_give_each_task_no_once(database_url: str) -> None:
    async with nodes(database_url, 4) as stores:
        app = await stores[0].create_app(new_app())
        added: Counter[str] = Counter()
        refused = 0

        async def submit(store: Store) -> None:
            nonlocal refused
            for _ in range(30):
                numbers = random.sample(range(600), 20)
                atomic = random.random() < 0.3
                tasks = [new_task(app, f"order-{number}") for number in numbers]
                try:
                    ids = await store.create_tasks(tasks, atomic=atomic)
                except BatchRefused:
                    refused += 1
                    continue
                for task, told in zip(tasks, ids, strict=True):
                    if isinstance(told, ExistingTask):
                        assert not atomic
                        task_id = told.id
                    else:
                        task_id = told
                        added[task.task_no] += 1
                    assert (await detail(store, app, task_id)).task_no == task.task_no

        await each(stores, submit)
        assert refused
        assert set(added.values()) == {1}
        due = await stores[0].find_due(until=T0, limit_per_app=1_000)
        assert len(due) == len(added)


async def test_what_one_node_wrote_the_others_see_at_once(database_url: str) -> None:
    async with nodes(database_url, 2) as (first, second):
        app = await first.create_app(new_app())
        assert await second.app_by_key(app.app_key) == app
        for number in range(20):
            task_id = await first.create_task(new_task(app, f"order-{number}"))
            assert (await detail(second, app, task_id)).state is TaskState.SCHEDULED
            leased = await lease_one(second, task_id)
            assert (await detail(first, app, task_id)).state is TaskState.RUNNING
            decision = await first.request_cancel(app.id, task_id, now=T0)
            assert decision.state is TaskState.RUNNING
            extended = await second.extend([leased.lease], expires_at=T0 + 60_000)
            assert extended.cancel_requested == {task_id}


async def test_nodes_that_lease_the_same_tasks_share_them(database_url: str) -> None:
    async with nodes(database_url, 4) as stores:
        app = await stores[0].create_app(new_app())
        ids = await add(stores[0], app, 300)
        taken: list[LeasedTask] = []

        async def take(store: Store) -> None:
            for _ in range(20):
                wanted = random.sample(ids, 60)
                taken.extend(await store.lease(wanted, node="n", now=T0, expires_at=T0 + 1))

        await each(stores, take)
        taken += await stores[0].lease(ids, node="n", now=T0, expires_at=T0 + 1)
        assert sorted(task.lease.task_id for task in taken) == ids


async def test_nodes_that_reap_at_once_record_each_attempt_once(database_url: str) -> None:
    async with nodes(database_url, 3) as stores:
        app = await stores[0].create_app(new_app())
        ids = await add(stores[0], app, 200)
        await stores[0].lease(ids, node="gone", now=T0, expires_at=T0 + 1)
        reaped: list[ReapedTask] = []

        async def sweep(store: Store) -> None:
            while found := await store.reap(now=T0 + 9, expired_at=T0 + 1, exclude=(), limit=7):
                reaped.extend(found)

        await each(stores, sweep)
        await sweep(stores[0])
        assert sorted(task.task_id for task in reaped) == ids
        for task_id in ids[::20]:
            assert len((await detail(stores[0], app, task_id)).attempts) == 1


async def test_nodes_that_purge_at_once_do_not_wait_for_each_other(database_url: str) -> None:
    async with nodes(database_url, 3) as stores:
        app = await stores[0].create_app(new_app())
        for task_id in await add(stores[0], app, 200):
            await stores[0].request_cancel(app.id, task_id, now=T0)
        for number in range(200):
            await stores[0].use_nonce(nonce(f"n-{number}", expires_at=T0))
        counts: Counter[str] = Counter()

        async def purge(store: Store) -> None:
            while count := await store.purge(finished_before=T0 + 1, limit=9):
                counts["tasks"] += count
            while count := await store.purge_nonces(now=T0, limit=9):
                counts["nonces"] += count

        await each(stores, purge)
        await purge(stores[0])
        assert counts == {"tasks": 200, "nonces": 200}
        for store in stores:
            assert store.statistics().writers["upkeep"].failures == 0


@pytest.mark.parametrize("seed", range(3))
async def test_everything_at_once_on_several_nodes_ends_each_task_once(
    database_url: str, seed: int
) -> None:
    """Leases, settlements, extensions, cancels, reaping and purges at random: whatever
    the order, a task that counts as succeeded was settled once, with its token."""

    dice = random.Random(seed)
    async with nodes(database_url, 3) as stores:
        app = await stores[0].create_app(new_app())
        ids = await add(stores[0], app, 150)
        won: Counter[int] = Counter()
        over = False

        async def work(store: Store) -> None:
            for _ in range(60):
                leased = await store.lease(
                    dice.sample(ids, 15), node="n", now=T0, expires_at=T0 + dice.randrange(50)
                )
                async with trio.open_nursery() as nursery:
                    for task in leased:
                        nursery.start_soon(settle, store, task)
                    leases = [task.lease for task in leased]
                    nursery.start_soon(_extend, store, leases)

        async def settle(store: Store, task: LeasedTask) -> None:
            again = dice.random() < 0.5
            settlement = retrying(task, due_at=T0) if again else succeeded(task)
            try:
                state = await store.settle(settlement)
            except LeaseLost:
                return
            if state is TaskState.SUCCEEDED:
                won[task.lease.task_id] += 1

        async def disturb(store: Store) -> None:
            while not over:
                await store.reap(now=T0, expired_at=T0 + dice.randrange(50), exclude=(), limit=20)
                await store.request_cancel(app.id, dice.choice(ids), now=T0)
                await store.purge(finished_before=T0 - 1, limit=10)

        async with trio.open_nursery() as nursery:
            for store in stores:
                nursery.start_soon(disturb, store)
            await each(stores, work)
            over = True
        assert won
        for task_id in ids:
            found = await detail(stores[0], app, task_id)
            assert won[task_id] == (found.state is TaskState.SUCCEEDED)
            numbers = [attempt.attempt for attempt in found.attempts]
            assert numbers == list(range(1, len(numbers) + 1))
        failures = sum(
            writer.failures for store in stores for writer in store.statistics().writers.values()
        )
        assert failures == 0


async def _extend(store: Store, leases: list[Lease]) -> None:
    if leases:
        await store.extend(leases, expires_at=T0 + 50)


async def test_ids_are_right_where_the_server_gives_every_third_only(
    private_database: Callable[..., Database],
) -> None:
    server = private_database(options=["--auto-increment-increment=3", "--auto-increment-offset=2"])

    async with opened_mysql(server.create_database()) as store:
        app = await store.create_app(new_app())

        async def create(number: int) -> None:
            content = b"x" * (3_000 if number % 2 else 10) + b"%d" % number
            new = new_task(app, f"order-{number}", content=content)
            task_id = await store.create_task(new)
            assert (await detail(store, app, task_id)).task_no == f"order-{number}"
            assert (await lease_one(store, task_id)).content == content

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(create, number)
        assert store.statistics().writers["submit"].batches < 50

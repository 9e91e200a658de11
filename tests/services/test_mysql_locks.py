"""A MySQL store that meets the locks of others."""

from __future__ import annotations

import pytest
import trio

from taskd.domain.model import TaskState
from taskd.errors import StoreError, StoreUnavailable
from taskd.stores.mysql.connection import LOCK_WAIT_S
from taskd.stores.mysql.schema import connected
from taskd.stores.mysql.target import parse_mysql_url
from tests.support.mysql import (
    locks_waited_for,
    opened_mysql,
    transaction,
)
from tests.support.stores import (
    T0,
    add,
    detail,
    lease_one,
    new_app,
    new_task,
    nonce,
    succeeded,
)

pytestmark = pytest.mark.deadline(240)


async def test_a_deadlock_is_repeated_until_it_is_won(database_url: str) -> None:
    async with opened_mysql(database_url) as store:
        app = await store.create_app(new_app())
        first, second = await add(store, app, 2)
        leases = {task_id: await lease_one(store, task_id) for task_id in (first, second)}
        states: list[TaskState] = []

        async def settle(task_id: int) -> None:
            states.append(await store.settle(succeeded(leases[task_id])))

        async with transaction(database_url) as other, trio.open_nursery() as nursery:
            # It is the heavier one, so the server ends the store's when they meet.
            await other.execute("UPDATE apps SET remark = CONCAT(remark, 'x')")
            for number in range(50):
                await other.execute(
                    f"INSERT INTO nonces VALUES (UNHEX(LPAD('{number}', 32, '0')), {number})"
                )
            await other.execute(f"SELECT 1 FROM tasks WHERE id = {second} FOR UPDATE")
            nursery.start_soon(settle, first)
            nursery.start_soon(settle, second)
            await locks_waited_for(other)
            await other.execute(f"SELECT 1 FROM tasks WHERE id = {first} FOR UPDATE")
            await other.rollback()
        assert states == [TaskState.SUCCEEDED] * 2
        settles = store.statistics().writers["settle"]
        assert settles.repeats >= 1
        assert settles.failures == 0
        for task_id in (first, second):
            assert len((await detail(store, app, task_id)).attempts) == 1


async def test_a_lock_that_is_not_given_fails_only_who_needs_it(database_url: str) -> None:
    async with opened_mysql(database_url) as store:
        app = await store.create_app(new_app())
        task_ids = await add(store, app, 5)
        leases = [await lease_one(store, task_id) for task_id in task_ids]
        answers: dict[int, object] = {}

        async def settle(number: int) -> None:
            try:
                answers[number] = await store.settle(succeeded(leases[number]))
            except StoreError as error:
                answers[number] = error

        async with transaction(database_url) as other:
            await other.execute(f"SELECT 1 FROM tasks WHERE id = {task_ids[2]} FOR UPDATE")
            started = trio.current_time()
            async with trio.open_nursery() as nursery:
                for number in range(5):
                    nursery.start_soon(settle, number)
            assert trio.current_time() - started < 3 * LOCK_WAIT_S + 2
        failed = answers.pop(2)
        assert isinstance(failed, StoreUnavailable)
        assert "hold its locks for too long" in str(failed)
        assert set(answers.values()) == {TaskState.SUCCEEDED}
        assert (await detail(store, app, task_ids[2])).attempts == ()
        assert await store.settle(succeeded(leases[2])) is TaskState.SUCCEEDED


async def test_a_cancel_that_waits_for_a_lock_holds_up_no_lease(database_url: str) -> None:
    async with opened_mysql(database_url) as store:
        app = await store.create_app(new_app())
        first, second = await add(store, app, 2)
        held = await lease_one(store, second)
        async with transaction(database_url) as other, trio.open_nursery() as nursery:
            await other.execute(f"SELECT 1 FROM tasks WHERE id = {first} FOR UPDATE")

            async def cancel() -> None:
                await store.request_cancel(app.id, first, now=T0)

            nursery.start_soon(cancel)
            await locks_waited_for(other)
            with trio.fail_after(LOCK_WAIT_S / 2):
                extended = await store.extend([held.lease], expires_at=T0 + 60_000)
            assert not extended.lost
            await other.rollback()
        assert (await detail(store, app, first)).state is TaskState.CANCELLED


async def test_a_locked_task_is_passed_over_by_who_could_take_another(database_url: str) -> None:
    async with opened_mysql(database_url) as store:
        app = await store.create_app(new_app())
        task_ids = await add(store, app, 3)
        async with transaction(database_url) as other:
            await other.execute(f"SELECT 1 FROM tasks WHERE id = {task_ids[1]} FOR UPDATE")
            with trio.fail_after(LOCK_WAIT_S - 1):
                leased = await store.lease(task_ids, node="n", now=T0, expires_at=T0 + 1)
                assert [each.lease.task_id for each in leased] == [task_ids[0], task_ids[2]]
        async with transaction(database_url) as other:
            await other.execute(f"SELECT 1 FROM tasks WHERE id = {task_ids[0]} FOR UPDATE")
            with trio.fail_after(LOCK_WAIT_S - 1):
                (reaped,) = await store.reap(now=T0 + 2, expired_at=None, exclude=(), limit=9)
                assert reaped.task_id == task_ids[2]


async def test_a_lock_on_a_whole_table_ends_as_unavailable_and_passes(database_url: str) -> None:
    async with opened_mysql(database_url) as store:
        app = await store.create_app(new_app())
        async with connected(parse_mysql_url(database_url)) as other:
            await other.execute("LOCK TABLES tasks WRITE")
            with pytest.raises(StoreUnavailable, match="hold its locks"):
                await store.create_task(new_task(app), nonce("n-1"))
            await other.execute("UNLOCK TABLES")
        await store.create_task(new_task(app), nonce("n-1"))


async def test_a_start_waits_for_no_transaction_of_a_node_at_work(database_url: str) -> None:
    """Also where it has notes of nodes that are gone to forget."""

    async with opened_mysql(database_url):
        pass
    async with transaction(database_url) as other:
        rows = "('gone', 1, 0), ('here', 1, 2000000000)"
        await other.execute(f"INSERT INTO batches VALUES {rows}")
        await other.commit()
        await other.execute("START TRANSACTION")
        await other.execute("UPDATE batches SET number = 2 WHERE lane = 'here'")
        async with opened_mysql(database_url):
            kept = (await other.execute("SELECT lane FROM batches ORDER BY lane")).rows
    assert ("gone",) not in kept
    assert ("here",) in kept

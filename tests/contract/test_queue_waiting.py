"""The Queue port: who waits is woken, whoever else waits, and whatever is cancelled. Each
test runs on every adapter."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from tests.support.nodes import until
from tests.support.queue_kinds import ROOM, QueueKind, Taker, always, due

SEEDS = [1, 2, 3]


@pytest.mark.parametrize("offer", ["backfill", "publish"])
async def test_who_waits_returns_for_what_comes_then_and_for_what_came_before(
    queues: QueueKind, offer: str
) -> None:
    async with queues.at_work():
        queue = (await queues.begin("a")).port
        getattr(queue, offer)([due(1)])
        with trio.fail_after(10), assert_checkpoints():
            await queue.wait()
        assert len(queue.take(ROOM, always)) == 1
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(queue.wait)
                await wait_all_tasks_blocked()
                getattr(queue, offer)([due(2)])


async def test_what_is_offered_here_in_the_tick_in_which_one_begins_to_wait_wakes_it(
    queues: QueueKind,
) -> None:
    async with queues.at_work():
        queue = (await queues.begin("a")).port
        for number in range(1, 201):
            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    # Trio runs the two in either order.
                    nursery.start_soon(queue.wait)
                    nursery.start_soon(_call, queue.backfill, number)
            assert [task.task_id for task in queue.take(ROOM, always)] == [number]


async def _call(offer: Callable[..., None], number: int) -> None:
    await trio.lowlevel.checkpoint_if_cancelled()
    offer([due(number)])


async def test_nobody_is_woken_where_nothing_came(queues: QueueKind) -> None:
    async with queues.at_work():
        queue = (await queues.begin("a")).port
        queue.backfill([due(1)])
        await queue.wait()
        woken = trio.Event()

        async def wait() -> None:
            await queue.wait()
            woken.set()

        queues.nursery.start_soon(wait)
        # What it was woken for already, what was set aside, and what joins that.
        Taker(queue, refuses=(1,)).take()
        queue.backfill([due(2)])
        queue.resume([7])
        queue.room(ROOM)
        queue.finish([])
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        assert not woken.is_set()
        queue.backfill([due(3, 2)])
        with trio.fail_after(10):
            await woken.wait()


async def test_of_several_that_wait_none_is_forgotten(queues: QueueKind) -> None:
    async with queues.at_work():
        queue = (await queues.begin("a")).port
        takers = [Taker(queue) for _ in range(4)]
        for taker in takers:
            queues.nursery.start_soon(taker.run)
        for number in range(1, 101):
            await wait_all_tasks_blocked()
            queue.backfill([due(number)])
        await until(lambda: sum(len(taker.got) for taker in takers) == 100)
        await wait_all_tasks_blocked()
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(queue.wait)
                await wait_all_tasks_blocked()
                queue.backfill([due(200)])


async def test_of_several_that_wait_each_is_woken_again(queues: QueueKind) -> None:
    async with queues.at_work():
        queue = (await queues.begin("a")).port
        woken = [0, 0, 0]

        async def count(index: int) -> None:
            while True:
                await queue.wait()
                woken[index] += 1
                queue.take(ROOM, always)

        for index in range(3):
            queues.nursery.start_soon(count, index)
        for number in range(1, 51):
            await wait_all_tasks_blocked()
            queue.backfill([due(number)])
        await wait_all_tasks_blocked()
        assert woken == [50, 50, 50]


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_wait_may_be_cancelled_at_any_moment(queues: QueueKind, seed: int) -> None:
    chance = random.Random(seed)
    async with queues.at_work():
        queue = (await queues.begin("a")).port
        got: list[int] = []

        async def consume() -> None:
            # It takes only after a wait has returned: a wake-up that is lost is missed.
            while len(got) < 300:
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_cancel_after, scope, chance.randint(0, 4))
                        await queue.wait()
                        batch = queue.take(ROOM, always)
                        got.extend(task.task_id for task in batch)
                        queue.finish(batch)
                        queue.room(ROOM)
                        nursery.cancel_scope.cancel()

        async def offer() -> None:
            for number in range(1, 301):
                for _ in range(chance.randint(0, 3)):
                    await trio.lowlevel.checkpoint()
                chance.choice([queue.backfill, queue.publish])([due(number, 1 + number % 3)])

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(offer)
                nursery.start_soon(consume)
        assert sorted(got) == list(range(1, 301))


async def _cancel_after(scope: trio.CancelScope, ticks: int) -> None:
    for _ in range(ticks):
        await trio.lowlevel.checkpoint()
    scope.cancel()


@pytest.mark.parametrize("ticks", [0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89])
async def test_run_may_be_cancelled_at_any_moment_and_nothing_that_was_offered_is_lost(
    queues: QueueKind, ticks: int
) -> None:
    async with queues.at_work():
        # A carrier waits for an answer on what it had sent already, and the node never read.
        node = await queues.begin("a", mortal=True)
        taker = Taker(node.port)
        node.port.publish(due(n, 1 + n % 3) for n in range(1, 31))
        for _ in range(ticks):
            await trio.lowlevel.checkpoint()
        node.port.backfill(due(n, 1 + n % 3) for n in range(31, 61))
        node.scope.cancel()
        node.port.publish([due(61)])
        await node.ended.wait()
        node.port.publish([due(62)])
        node.port.backfill([due(63)])
        taker.take_all()
        assert {*range(31, 61), 62, 63} <= set(taker.ids)
        # What has left this node is at others, that begin later perhaps.
        other = Taker((await queues.begin("b")).port)
        queues.nursery.start_soon(other.run)
        await until(lambda: {*taker.ids, *other.ids} == set(range(1, 64)))


async def test_run_may_begin_again_after_it_was_cancelled(queues: QueueKind) -> None:
    async with queues.at_work():
        queue = queues.make("a")
        for number in range(1, 4):
            async with trio.open_nursery() as nursery:
                await nursery.start(queue.run)
                await until(lambda: queue.degraded() is None)
                taker = Taker(queue)
                queue.room(ROOM)
                nursery.start_soon(taker.run)
                queue.publish([due(number)])
                await until(partial(taker.has, number))
                nursery.cancel_scope.cancel()

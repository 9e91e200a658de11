"""The Queue port between several nodes: who gets what, and what becomes of it when nodes
come, go and die. Each test runs on every adapter that connects nodes."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from taskd.domain.model import WHOLE
from tests.support.nodes import Node, until
from tests.support.queue_kinds import ROOM, QueueKind, Taker, always, due


@asynccontextmanager
async def taking(nodes: list[Node[Any]]) -> AsyncIterator[list[Taker]]:
    """A taker at work on each node."""
    takers = [Taker(node.port) for node in nodes]
    async with trio.open_nursery() as nursery:
        for taker in takers:
            nursery.start_soon(taker.run)
        yield takers
        nursery.cancel_scope.cancel()


def all_ids(takers: list[Taker]) -> list[int]:
    return sorted(task_id for taker in takers for task_id in taker.ids)


async def begun(kind: QueueKind, *names: str) -> list[Node[Any]]:
    nodes = [await kind.begin(name) for name in names]
    await kind.settled()
    return nodes


async def test_of_what_is_published_each_comes_to_one_of_the_nodes(
    joined_queues: QueueKind,
) -> None:
    async with joined_queues.at_work():
        nodes = await begun(joined_queues, "a", "b", "c")
        async with taking(nodes) as takers:
            for start in range(1, 1201, 60):
                for offset, node in enumerate(nodes):
                    first = start + 20 * offset
                    node.port.publish(due(n, 1 + n % 5) for n in range(first, first + 20))
                await trio.sleep(0.001)
            await until(lambda: len(all_ids(takers)) >= 1200)
        assert all_ids(takers) == list(range(1, 1201))
        assert all(node.port.degraded() is None for node in nodes)


async def test_a_backlog_that_one_node_publishes_keeps_all_at_work(
    joined_queues: QueueKind,
) -> None:
    async with joined_queues.at_work():
        nodes = await begun(joined_queues, "a", "b", "c")
        async with taking(nodes) as takers:
            for start in range(1, 3001, 300):
                nodes[0].port.publish(due(n, 1 + n % 5) for n in range(start, start + 300))
                await trio.sleep(0.002)
            await until(lambda: len(all_ids(takers)) >= 3000)
            assert all(taker.got for taker in takers)
        assert all_ids(takers) == list(range(1, 3001))


async def test_what_a_node_holds_comes_to_no_other(joined_queues: QueueKind) -> None:
    async with joined_queues.at_work():
        nodes = await begun(joined_queues, "a", "b")
        async with taking(nodes) as (first, second):
            nodes[0].port.backfill(due(n) for n in range(1, 201))
            nodes[1].port.backfill([due(300)])
            nodes[1].port.publish([due(n) for n in range(301, 401)])
            await until(lambda: len(first.got) + len(second.got) >= 301)
        assert set(range(1, 201)) <= set(first.ids)
        assert 300 in second.ids
        assert not set(range(1, 201)) & set(second.ids)


async def test_what_comes_from_others_takes_turns_with_what_is_here(
    joined_queues: QueueKind,
) -> None:
    async with joined_queues.at_work():
        a, b = await begun(joined_queues, "a", "b")
        # More than any node begins by itself, so that it is dealt out where that is done.
        b.port.backfill(due(n) for n in range(1, 101))
        before = b.port.statistics().waiting
        a.port.room(0)
        a.port.publish(due(n, 2) for n in range(200, 301))
        await until(lambda: b.port.statistics().waiting >= before + 20)
        order = [task.app_id for task in b.port.take(20, always)]
        assert order in ([1, 2] * 10, [2, 1] * 10)


async def test_the_nodes_parts_of_a_backlog_are_all_of_it(joined_queues: QueueKind) -> None:
    async with joined_queues.at_work():
        nodes = await begun(joined_queues, "b", "c", "a")

        def looked_for_once() -> bool:
            parts = [node.port.shard() for node in nodes]
            if all(part == WHOLE for part in parts):
                return True
            counts = {sum(part.has(n) for part in parts) for n in range(1, 500)}
            return counts == {1}

        assert looked_for_once()
        await nodes.pop(1).end()
        await joined_queues.settled()
        assert looked_for_once()
        nodes.append(await joined_queues.begin("d"))
        await joined_queues.settled()
        assert looked_for_once()
        await nodes.pop(0).kill()
        await nodes.pop(0).kill()
        await joined_queues.settled()
        assert all(nodes[0].port.shard().has(n) for n in range(1, 500))


async def test_a_wake_up_under_way_is_left_time_to_come(joined_queues: QueueKind) -> None:
    async with joined_queues.at_work():
        nodes = await begun(joined_queues, "a", "b")
        assert all(node.port.in_flight_grace_ms() > 0 for node in nodes)


async def test_whoever_comes_or_goes_what_was_set_aside_stays_so(
    joined_queues: QueueKind,
) -> None:
    async with joined_queues.at_work():
        (a,) = await begun(joined_queues, "a")
        taker = Taker(a.port, refuses=(1,))
        a.port.backfill([*(due(n) for n in range(1, 41)), *(due(n, 2) for n in range(50, 91))])
        taker.take_all()
        assert taker.asked.count(1) == 1
        b = await joined_queues.begin("b")
        await joined_queues.settled()
        taker.take_all()
        await b.end()
        await joined_queues.settled()
        a.port.backfill([due(100, 2), due(101)])
        taker.take_all()
        assert taker.asked.count(1) == 1, "it was asked about, and nobody had resumed it"
        assert {task.app_id for task in taker.got} == {2}
        taker.refuses.clear()
        a.port.resume([1])
        taker.take_all()
        # What another had better do is not done here, and what stayed is not lost.
        own = {task.task_id for task in taker.got if task.app_id == 1}
        assert 101 in own
        assert own <= {*range(1, 41), 101}
        assert len(own) > 10


async def test_what_the_store_could_not_be_asked_about_may_come_again(
    joined_queues: QueueKind,
) -> None:
    async with joined_queues.at_work():
        a, b = await begun(joined_queues, "a", "b")
        a.port.room(ROOM)
        a.port.publish([due(1)])
        async with trio.open_nursery() as nursery:
            if joined_queues.redelivers:
                b.port.room(0)
            await until(lambda: a.port.statistics().waiting == 1)
            a.port.release(a.port.take(1, always))
            if joined_queues.redelivers:
                taker = Taker(a.port)
                nursery.start_soon(taker.run)
                await until(lambda: taker.ids == [1])
            nursery.cancel_scope.cancel()
        assert a.port.statistics().waiting == 0


async def test_what_was_answered_for_does_not_come_again_when_its_node_ends(
    joined_queues: QueueKind,
) -> None:
    async with joined_queues.at_work():
        (a,) = await begun(joined_queues, "a")
        taker = Taker(a.port)
        a.port.publish(due(n) for n in range(1, 51))
        await until(lambda: taker.took(50))
        # One more round of what carries them, after the last answer.
        a.port.publish([due(51)])
        await until(lambda: taker.took(51))
        await a.end()
        (b,) = await begun(joined_queues, "b")
        other = Taker(b.port)
        b.port.publish([due(100)])
        await until(lambda: other.took(1) and other.has(100))
        assert set(other.ids) <= {51, 100}


@pytest.mark.parametrize("how", ["end", "kill"])
async def test_when_a_node_is_gone_the_others_get_all_that_is_published(
    joined_queues: QueueKind, how: str
) -> None:
    async with joined_queues.at_work():
        a, b, gone = (
            await joined_queues.begin("a"),
            await joined_queues.begin("b"),
            await joined_queues.begin("c", mortal=True),
        )
        await joined_queues.settled()
        lost = Taker(gone.port)
        gone.port.room(ROOM)
        async with taking([a, b]) as takers:
            a.port.publish(due(n, 1 + n % 5) for n in range(1, 301))
            await until(lambda: lost.take(20) or len(all_ids(takers)) + len(lost.got) >= 60)
            await (gone.end if how == "end" else gone.kill)()
            await joined_queues.settled()
            a.port.publish(due(n, 1 + n % 5) for n in range(301, 601))
            await until(lambda: set(range(301, 601)) <= set(all_ids(takers)))
            if joined_queues.redelivers:
                await until(lambda: set(range(1, 601)) <= set(all_ids(takers)))
        assert set(all_ids(takers)) <= set(range(1, 601))


@pytest.mark.parametrize("seed", [1, 2])
async def test_nodes_that_come_and_go_at_random_lose_nothing_that_is_offered_again(
    joined_queues: QueueKind, seed: int
) -> None:
    """As the Store's readers do: what nobody has taken is offered again, by any node."""
    chance = random.Random(seed)
    names = (f"n{number}" for number in range(1000))
    async with joined_queues.at_work():
        nodes = {node: Taker(node.port) for node in await begun(joined_queues, "x", "y")}
        gone: list[Taker] = []
        missing = set(range(1, 401))
        taken: set[int] = set()
        with trio.fail_after(40):
            while missing:
                some = [due(n, 1 + n % 5) for n in sorted(missing)[:40]]
                node = chance.choice(list(nodes))
                chance.choice([node.port.publish, node.port.backfill])(some)
                if chance.random() < 0.2 and len(nodes) < 4:
                    new = await joined_queues.begin(next(names))
                    nodes[new] = Taker(new.port)
                elif chance.random() < 0.2 and len(nodes) > 1:
                    old = chance.choice(list(nodes))
                    gone.append(nodes.pop(old))
                    await old.end()
                for _ in range(chance.randint(0, 4)):
                    await trio.sleep(0.001)
                for taker in nodes.values():
                    taker.take_all(chance.randint(1, 50))
                taken = {n for taker in (*nodes.values(), *gone) for n in taker.ids}
                missing -= taken
        assert taken <= set(range(1, 401))

"""The Leadership part of the Bus port: one node leads, and soon another where it ends. Each
test runs on every adapter, or on each that connects nodes."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.support.bus_kinds import BusKind, BusNode
from tests.support.nodes import until


def leaders(nodes: list[BusNode]) -> list[BusNode]:
    return [node for node in nodes if node.port.leads_timer()]


async def one_leads(nodes: list[BusNode]) -> BusNode:
    """Wait until one node leads, and no other; returns it."""
    await until(lambda: len(leaders(nodes)) == 1)
    return leaders(nodes)[0]


@asynccontextmanager
async def never_two(kind: BusKind, nodes: list[BusNode]) -> AsyncIterator[None]:
    """Looks all the time whether two of these lead at once, where that is promised."""

    async def look() -> None:
        while True:
            names = [node.name for node in leaders(nodes)]
            assert len(names) <= 1, names
            await trio.sleep(0.001)

    async with trio.open_nursery() as nursery:
        if kind.never_two:
            nursery.start_soon(look)
        yield
        nursery.cancel_scope.cancel()


async def test_alone_a_node_leads(buses: BusKind) -> None:
    async with buses.at_work():
        await one_leads([await buses.begin("a")])


async def test_of_several_one_leads_and_goes_on_whoever_else_comes_or_ends(
    joined_buses: BusKind,
) -> None:
    async with joined_buses.at_work():
        nodes: list[BusNode] = []
        async with never_two(joined_buses, nodes):
            nodes.append(await joined_buses.begin("n0"))
            first = await one_leads(nodes)
            for number in range(1, 5):
                nodes.append(await joined_buses.begin(f"n{number}"))
                assert leaders(nodes) == [first]
            for node in nodes[2:]:
                nodes.remove(node)
                await node.end()
                assert leaders(nodes) == [first]


@pytest.mark.parametrize("how", ["end", "kill"])
async def test_a_leader_that_is_gone_is_followed_by_one_of_the_others(
    joined_buses: BusKind, how: str
) -> None:
    async with joined_buses.at_work():
        nodes: list[BusNode] = []
        async with never_two(joined_buses, nodes):
            nodes.append(await joined_buses.begin("n0", mortal=how == "kill"))
            nodes += [await joined_buses.begin(f"n{number}") for number in (1, 2)]
            leader = await one_leads(nodes)
            assert leader is nodes[0]
            await (leader.kill if how == "kill" else leader.end)()
            nodes.remove(leader)
            follower = await one_leads(nodes)
            assert not leader.port.leads_timer() or not joined_buses.never_two
            assert follower in nodes


@pytest.mark.parametrize("seed", [1, 2])
async def test_whoever_comes_and_ends_at_random_one_leads_again(
    joined_buses: BusKind, seed: int
) -> None:
    chance = random.Random(seed)
    async with joined_buses.at_work():
        nodes = [await joined_buses.begin("first"), await joined_buses.begin("second")]
        async with never_two(joined_buses, nodes):
            for number in range(6):
                if chance.random() < 0.5 and len(nodes) < 4:
                    nodes.append(await joined_buses.begin(f"n{number}"))
                elif len(nodes) > 1:
                    old = chance.choice(nodes)
                    await old.end()
                    nodes.remove(old)
                if chance.random() < 0.5:
                    await one_leads(nodes)
            await one_leads(nodes)


async def test_all_that_end_leave_the_lead_to_whoever_comes(joined_buses: BusKind) -> None:
    async with joined_buses.at_work():
        nodes = [await joined_buses.begin(f"n{number}") for number in range(3)]
        await one_leads(nodes)
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(node.end)
        await one_leads([await joined_buses.begin("late")])

"""The Bus port when what carries it hangs, dies or forgets: a node says what can't be done,
refuses rather than takes twice, and finds back by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from taskd.domain.model import NonceUse, TaskState
from taskd.ports.bus import CancelReply, CancelSignal, Reply, Signal
from tests.contract.test_bus_leadership import one_leads
from tests.contract.test_bus_nonces import OFFSETS_MS, Requests
from tests.support.bus_kinds import BusNode, MachineKind, RedisKind
from tests.support.nodes import until
from tests.support.redis_bus import WINDOW_MS
from tools.servers import Redis

REPLY = CancelReply(TaskState.CANCELLED, None)


async def answer(signal: Signal) -> Reply:
    del signal
    await trio.lowlevel.checkpoint()
    return REPLY


@pytest.fixture
def redis_buses(private_redis: Callable[..., Redis]) -> RedisKind:
    return RedisKind(private_redis())


async def sent(node: BusNode, to: str) -> Reply | None:
    with trio.fail_after(15):
        return await node.port.send(to, CancelSignal(1))


async def found_back(kind: RedisKind, nodes: list[BusNode]) -> None:
    """Wait until all work again, in each of the three parts."""
    for node in nodes:
        await until(lambda: _only_the_epoch(node))  # noqa: B023 - it is waited for here
    kind.clock.step(2_100)
    await until(lambda: all(node.port.unready() is None for node in nodes))
    await one_leads(nodes)
    for sender, other in ((nodes[0], nodes[1]), (nodes[1], nodes[0])):
        with trio.fail_after(15):
            while await sent(sender, other.name) is None:
                await trio.sleep(0.01)
    requests = Requests(kind)
    assert await requests.accepted(nodes[0].port, nonce := requests.fresh()) is True
    assert await requests.accepted(nodes[1].port, nonce) is False


def _only_the_epoch(node: BusNode) -> bool:
    unready = node.port.unready()
    return unready is None or "began to keep" in unready


@pytest.mark.parametrize("fault", ["killed", "stopped", "frozen"])
async def test_a_server_that_is_gone_is_told_of_and_found_again(
    redis_buses: RedisKind, fault: str
) -> None:
    server = redis_buses.server
    async with redis_buses.at_work():
        nodes = [await redis_buses.begin(name, answer) for name in "ab"]
        a, b = nodes
        requests = Requests(redis_buses)
        redis_buses.clock.step(4 * WINDOW_MS)
        used = requests.fresh()
        assert await requests.accepted(a.port, used) is True
        assert await sent(a, "b") == REPLY
        gone = {"killed": server.kill, "stopped": server.stop, "frozen": server.freeze}[fault]
        await trio.to_thread.run_sync(gone)
        try:
            await until(lambda: a.port.unready() and b.port.unready())
            assert server.address in (a.port.unready() or "")
            assert await requests.accepted(a.port, requests.fresh()) is None
            assert await sent(a, "b") is None
            assert await sent(a, "a") == REPLY, "that takes no server"
            # Each leads for itself: doubled work costs nothing, none at all would.
            await until(lambda: a.port.leads_timer() and b.port.leads_timer())
        finally:
            await trio.to_thread.run_sync(server.thaw if fault == "frozen" else server.start)
        await found_back(redis_buses, nodes)
        for node in nodes:
            assert await requests.accepted(node.port, used) is False, "it was used twice"


async def test_what_a_server_has_forgotten_is_not_taken_twice(redis_buses: RedisKind) -> None:
    async with redis_buses.at_work():
        nodes = [await redis_buses.begin(name, answer) for name in "ab"]
        requests = Requests(redis_buses)

        async def refused(used: list[NonceUse]) -> None:
            for nonce in used:
                for node in nodes:
                    assert await requests.accepted(node.port, nonce) is False

        for _ in range(3):
            # So long after the last loss that the server's word alone is enough.
            redis_buses.clock.step(4 * WINDOW_MS)
            used = [requests.fresh(offset_ms) for offset_ms in OFFSETS_MS]
            for nonce in used:
                assert await requests.accepted(nodes[0].port, nonce) is True
            redis_buses.server.execute("FLUSHALL")
            await refused(used)
            await found_back(redis_buses, nodes)
            await refused(used)
            # By now what was signed ahead was signed after the loss, and is valid still.
            redis_buses.clock.step(WINDOW_MS)
            await refused(used)


async def test_a_node_begins_where_no_server_is_and_finds_it_when_it_comes(
    redis_buses: RedisKind,
) -> None:
    server = redis_buses.server
    await trio.to_thread.run_sync(server.kill)
    async with redis_buses.at_work():
        nodes = [await redis_buses.begin(name, answer) for name in "ab"]
        assert all(node.port.unready() for node in nodes)
        assert await sent(nodes[0], "b") is None
        await until(lambda: all(node.port.leads_timer() for node in nodes))
        await trio.to_thread.run_sync(server.start)
        await found_back(redis_buses, nodes)


async def test_a_node_that_ends_while_the_server_hangs_ends_all_the_same(
    redis_buses: RedisKind,
) -> None:
    async with redis_buses.at_work():
        nodes = [await redis_buses.begin(name, answer) for name in "ab"]
        requests = Requests(redis_buses)
        await trio.to_thread.run_sync(redis_buses.server.freeze)
        try:
            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(sent, nodes[0], "b")
                    nursery.start_soon(requests.accepted, nodes[0].port, requests.fresh())
                    await trio.sleep(0.05)
                    await nodes[0].end()
        finally:
            await trio.to_thread.run_sync(redis_buses.server.thaw)
        await one_leads(nodes[1:])


async def test_a_supervisor_that_hangs_holds_up_signals_and_loses_none() -> None:
    kind = MachineKind()
    async with kind.at_work():
        a, b = [await kind.begin(name, answer) for name in "ab"]
        kind.machine.stop()
        replies: list[Reply | None] = []

        async def send(node: BusNode, to: str) -> None:
            replies.append(await sent(node, to))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(send, a, "b")
                nursery.start_soon(send, b, "a")
            assert await sent(a, "a") == REPLY
            assert (a.port.leads_timer(), b.port.leads_timer()) == (True, False)
            assert a.port.unready() is None
            await trio.sleep(0.05)
            assert not replies
            kind.machine.go_on()
        assert replies == [REPLY] * 40

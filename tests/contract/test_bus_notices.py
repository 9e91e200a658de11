"""The Announcing part of the Bus port: a notice reaches all nodes that hear, holds nobody up,
and is lost rather than kept. Each test runs on every adapter, or on each that connects nodes."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import trio

from taskd.buses.redis.signals import MAX_NOTICES
from taskd.domain.model import TaskState
from taskd.link import uplink
from taskd.ports.bus import AppChanged, Bus, CancelReply, CancelSignal, Notice, Reply, Signal
from tests.support.bus_kinds import BusKind, MachineKind, RedisKind
from tests.support.nodes import until
from tools.servers import Redis

REPLY = CancelReply(TaskState.CANCELLED, None)


async def answer(signal: Signal) -> Reply:
    del signal
    await trio.lowlevel.checkpoint()
    return REPLY


def heard_by(bus: Bus) -> list[Notice]:
    """What a node hears from here on."""
    heard: list[Notice] = []
    bus.on_notice(heard.append)
    return heard


def notice(number: int) -> AppChanged:
    return AppChanged(number, f"key-{number}")


async def test_a_node_hears_its_own_notices_at_once_and_once(buses: BusKind) -> None:
    async with buses.at_work():
        bus = (await buses.begin("a", answer)).port
        heard = heard_by(bus)
        bus.announce(notice(1))
        assert heard == [notice(1)]
        with trio.fail_after(15):  # what might come back from the carrier has come by then
            assert await bus.send("a", CancelSignal(1)) == REPLY
        await trio.sleep(0.1)
        assert heard == [notice(1)]


async def test_who_does_not_serve_hears_its_own_only_and_does_not_fail(buses: BusKind) -> None:
    async with buses.at_work():
        bus = buses.make("a")
        bus.announce(notice(1))  # there is no handler either
        heard = heard_by(bus)
        bus.announce(notice(2))
        assert heard == [notice(2)]


async def test_a_later_handler_takes_the_place_of_an_earlier_one(buses: BusKind) -> None:
    async with buses.at_work():
        bus = (await buses.begin("a", answer)).port
        former, present = heard_by(bus), heard_by(bus)
        bus.announce(notice(1))
        assert (former, present) == ([], [notice(1)])


async def test_a_notice_reaches_all_nodes_whole(joined_buses: BusKind) -> None:
    async with joined_buses.at_work():
        nodes = [(await joined_buses.begin(name, answer)).port for name in "abc"]
        heard = [heard_by(bus) for bus in nodes]
        wanted = []
        for number, bus in enumerate(nodes, start=2**63 - 3):
            wanted.append(AppChanged(number, f"a.b_c-{number}"))
            bus.announce(wanted[-1])
            await until(lambda: all(one == wanted for one in heard))


async def test_notices_of_a_node_that_goes_on_come_in_their_order(joined_buses: BusKind) -> None:
    async with joined_buses.at_work():
        nodes = [(await joined_buses.begin(name, answer)).port for name in "ab"]
        heard = heard_by(nodes[1])
        wanted = [notice(number) for number in range(1, 501)]
        for one in wanted:
            nodes[0].announce(one)
        await until(lambda: heard == wanted)


async def test_a_handler_that_fails_hurts_nobody(
    joined_buses: BusKind, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(notice: Notice) -> None:
        raise RuntimeError(f"no {notice}")

    async with joined_buses.at_work():
        nodes = [(await joined_buses.begin(name, answer)).port for name in "ab"]
        for bus in nodes:
            bus.on_notice(fail)
        with caplog.at_level(logging.ERROR, "taskd.buses"):
            nodes[0].announce(notice(1))
            await until(lambda: caplog.text.count("a notice could not be handled") == 2)
        heard = heard_by(nodes[1])
        nodes[0].announce(notice(2))
        await until(lambda: heard == [notice(2)])
        with trio.fail_after(15):
            assert await nodes[0].send("b", CancelSignal(1)) == REPLY


async def test_a_node_that_comes_later_hears_what_comes_later(joined_buses: BusKind) -> None:
    async with joined_buses.at_work():
        first = (await joined_buses.begin("a", answer)).port
        first.announce(notice(1))
        late = (await joined_buses.begin("b", answer)).port
        heard = heard_by(late)
        first.announce(notice(2))
        await until(lambda: notice(2) in heard)


@pytest.mark.parametrize("how", ["end", "kill"])
async def test_the_death_of_one_node_keeps_no_notice_from_the_others(
    joined_buses: BusKind, how: str
) -> None:
    async with joined_buses.at_work():
        first = (await joined_buses.begin("a", answer)).port
        gone = await joined_buses.begin("b", answer, mortal=how == "kill")
        last = (await joined_buses.begin("c", answer)).port
        heard = heard_by(last)
        await (gone.kill if how == "kill" else gone.end)()
        first.announce(notice(1))
        await until(lambda: heard == [notice(1)])


async def test_without_its_supervisor_a_worker_is_not_held_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uplink, "MAX_UNSENT", 256 * 1024)
    kind = MachineKind()
    async with kind.at_work():
        nodes = [(await kind.begin(name, answer)).port for name in "ab"]
        heard = heard_by(nodes[1])
        kind.machine.stop()
        for number in range(1, 10_000):
            nodes[0].announce(notice(number))  # more than may wait
        assert kind.machine._uplinks["a"].dropped
        kind.machine.go_on()
        await until(lambda: notice(1) in heard)
        nodes[0].announce(AppChanged(7, "afterwards"))
        await until(lambda: AppChanged(7, "afterwards") in heard or _again(nodes[0]))


def _again(bus: Bus) -> bool:
    bus.announce(AppChanged(7, "afterwards"))
    return False


async def test_without_redis_notices_are_lost_and_bounded_and_heard_again_later(
    private_redis: Callable[..., Redis],
) -> None:
    server = private_redis()
    kind = RedisKind(server)
    async with kind.at_work():
        nodes = [(await kind.begin(name, answer)).port for name in "ab"]
        heard, own = heard_by(nodes[1]), heard_by(nodes[0])
        server.freeze()
        for number in range(1, 2 * MAX_NOTICES):
            nodes[0].announce(notice(number))
        assert len(own) == 2 * MAX_NOTICES - 1
        await until(lambda: nodes[0].unready() is not None)
        server.thaw()
        await until(lambda: AppChanged(7, "afterwards") in heard or _again(nodes[0]))
        assert len({one for one in heard if one.app_key != "afterwards"}) <= MAX_NOTICES + 128

"""The Signalling part of the Bus port: signals reach their node, replies come back, and
nobody waits for the dead. Each test runs on every adapter, or on each that connects nodes."""

from __future__ import annotations

import random

import pytest
import trio

from taskd.buses.signals import MAX_HANDLED
from taskd.daemon.adapters import new_node
from taskd.domain.model import CancelCertainty, Frame, Inspection, Phase, TaskState
from taskd.ports.bus import (
    Bus,
    CancelReply,
    CancelSignal,
    InspectReply,
    InspectSignal,
    Reply,
    Signal,
)
from tests.support.bus_kinds import BusKind
from tests.support.nodes import until

SEEN = InspectReply(
    Inspection(
        node="b",
        phase=Phase.AWAITING_RESPONSE,
        frames=(Frame("trio/_socket.py", 3, "recv"), Frame("taskd/http.py", 7, "täsk")),
        executed=Frame("taskd/http.py", 7, "täsk"),
        variables={"attempt": 2, "origin": "http://例え", "left": 0.25, "tls": False, "n": None},
        rounds=12,
        elapsed_ms=345,
    )
)
STATES = [TaskState.CANCELLED, TaskState.SUCCEEDED, TaskState.FAILED, None]
WORDS = [*CancelCertainty, None]


def reply_to(signal: Signal) -> Reply:
    """What a `Handler` answers: another for each task of some that follow each other."""
    if isinstance(signal, InspectSignal):
        return SEEN if signal.task_id % 2 else InspectReply(None)
    return CancelReply(STATES[signal.task_id % 4], WORDS[signal.task_id % len(WORDS)])


class Handler:
    """Answers by `reply_to`; notes what it is asked.

    Attributes:
        slow: signals of these tasks are answered once `go` is set.
    """

    def __init__(self, *, slow: range = range(0)) -> None:
        self.asked: list[Signal] = []
        self.ended: list[Signal] = []
        self.slow = slow
        self.go = trio.Event()

    async def __call__(self, signal: Signal) -> Reply:
        self.asked.append(signal)
        try:
            await trio.lowlevel.checkpoint()
            if signal.task_id in self.slow:
                await self.go.wait()
            return reply_to(signal)
        finally:
            self.ended.append(signal)


async def sent(bus: Bus, node: str, signal: Signal) -> Reply | None:
    """Send, which is to be answered in time, whatever becomes of the node."""
    with trio.fail_after(15):
        return await bus.send(node, signal)


async def test_names_are_as_they_were_given_and_none_is_given_twice(buses: BusKind) -> None:
    names = [new_node() for _ in range(300)]
    assert len(set(names)) == 300
    async with buses.at_work():
        nodes = [await buses.begin(name) for name in names[: 3 if buses.joins else 1]]
        assert [node.port.node for node in nodes] == names[: len(nodes)]


async def test_a_signal_to_oneself_is_answered(buses: BusKind) -> None:
    handler = Handler()
    async with buses.at_work():
        bus = (await buses.begin("a", handler)).port
        for signal in (CancelSignal(4), InspectSignal(5), InspectSignal(6)):
            assert await sent(bus, "a", signal) == reply_to(signal)
        assert handler.asked == [CancelSignal(4), InspectSignal(5), InspectSignal(6)]


async def test_who_does_not_serve_yet_answers_nothing(buses: BusKind) -> None:
    async with buses.at_work():
        assert await sent(buses.make("a"), "a", CancelSignal(1)) is None


async def test_who_serves_no_more_answers_nothing(buses: BusKind) -> None:
    async with buses.at_work():
        node = await buses.begin("a", Handler())
        await node.end()
        assert await sent(node.port, "a", CancelSignal(1)) is None


async def test_signals_reach_the_named_node_alone_and_replies_come_back_whole(
    joined_buses: BusKind,
) -> None:
    handlers = {name: Handler() for name in "abc"}
    async with joined_buses.at_work():
        nodes = {name: await joined_buses.begin(name, handlers[name]) for name in "abc"}
        ways = [("a", "b"), ("b", "c"), ("c", "a"), ("b", "a"), ("a", "c")]
        for number, (sender, name) in enumerate(ways, start=2**53 - 6):
            for signal in (CancelSignal(number), InspectSignal(number)):
                assert await sent(nodes[sender].port, name, signal) == reply_to(signal)
                assert handlers[name].asked.pop() == signal
        assert not any(handler.asked for handler in handlers.values())


async def test_nobody_waits_for_a_node_that_never_was(buses: BusKind) -> None:
    async with buses.at_work():
        bus = (await buses.begin("a", Handler())).port
        for name in ("b", "A", "aa", "node-00000000"):
            assert await sent(bus, name, CancelSignal(1)) is None
        assert await sent(bus, "a", CancelSignal(4)) == reply_to(CancelSignal(4))


@pytest.mark.parametrize("how", ["end", "kill"])
async def test_nobody_waits_for_a_node_that_has_ended(joined_buses: BusKind, how: str) -> None:
    async with joined_buses.at_work():
        bus = (await joined_buses.begin("a", Handler())).port
        gone = await joined_buses.begin("b", Handler(), mortal=how == "kill")
        assert await sent(bus, "b", CancelSignal(4)) == reply_to(CancelSignal(4))
        await (gone.kill if how == "kill" else gone.end)()
        assert await sent(bus, "b", CancelSignal(4)) is None
        await joined_buses.begin("c", Handler())
        assert await sent(bus, "c", CancelSignal(4)) == reply_to(CancelSignal(4))


@pytest.mark.parametrize("how", ["end", "kill"])
async def test_who_waits_for_a_node_that_ends_meanwhile_is_told(
    joined_buses: BusKind, how: str
) -> None:
    slow = Handler(slow=range(100))
    async with joined_buses.at_work():
        bus = (await joined_buses.begin("a", Handler())).port
        gone = await joined_buses.begin("b", slow, mortal=how == "kill")
        replies: list[Reply | None] = []

        async def send(number: int) -> None:
            replies.append(await sent(bus, "b", CancelSignal(number)))

        async with trio.open_nursery() as nursery:
            for number in range(1, 6):
                nursery.start_soon(send, number)
            await until(lambda: len(slow.asked) >= 5)
            await (gone.kill if how == "kill" else gone.end)()
            assert len(slow.ended) == len(slow.asked), "what it had in hand was left behind"
        assert replies == [None] * 5


async def test_of_many_signals_at_once_each_gets_its_own_reply(buses: BusKind) -> None:
    names = ["a", "b", "c"] if buses.joins else ["a"]
    chance = random.Random(7)
    async with buses.at_work():
        nodes = [await buses.begin(name, Handler()) for name in names]

        async def send(bus: Bus, name: str, signal: Signal) -> None:
            assert await sent(bus, name, signal) == reply_to(signal)

        async with trio.open_nursery() as nursery:
            for number in range(1, 201):
                signal: Signal = (
                    InspectSignal(number) if chance.random() < 0.5 else CancelSignal(number)
                )
                bus = chance.choice(nodes).port
                nursery.start_soon(send, bus, chance.choice(names), signal)


async def test_a_signal_that_takes_long_holds_up_no_other_and_is_handled_once(
    buses: BusKind,
) -> None:
    handler = Handler(slow=range(3, 4))
    async with buses.at_work():
        bus = (await buses.begin("a", handler)).port
        if buses.joins:
            bus = (await buses.begin("b", Handler())).port
        replies: list[Reply | None] = []

        async def send_slow() -> None:
            replies.append(await sent(bus, "a", CancelSignal(3)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_slow)
            await until(lambda: handler.asked)
            started = trio.current_time()
            number = 4
            # Longer than after what a signal is repeated that has no reply yet.
            while trio.current_time() < started + 0.7:
                assert await sent(bus, "a", CancelSignal(number)) == reply_to(CancelSignal(number))
                number += 1
                await trio.sleep(0.01)
            assert not replies
            assert handler.asked.count(CancelSignal(3)) == 1
            handler.go.set()
        assert replies == [reply_to(CancelSignal(3))]


async def test_more_signals_that_take_long_than_are_handled_at_a_time_are_all_answered(
    buses: BusKind,
) -> None:
    count = MAX_HANDLED + 30
    handler = Handler(slow=range(count + 1))
    async with buses.at_work():
        bus = (await buses.begin("a", handler)).port
        if buses.joins:
            bus = (await buses.begin("b", Handler())).port
        done: list[int] = []

        async def send(number: int) -> None:
            assert await sent(bus, "a", CancelSignal(number)) == reply_to(CancelSignal(number))
            done.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(1, count + 1):
                nursery.start_soon(send, number)
            await until(lambda: len(handler.asked) >= MAX_HANDLED)
            assert not done
            handler.go.set()
        assert len(done) == count


async def test_a_handler_that_fails_is_no_answer_and_ends_nothing(
    buses: BusKind, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(signal: Signal) -> Reply:
        await trio.lowlevel.checkpoint()
        if signal.task_id == 1:
            raise RuntimeError("a bug")
        return reply_to(signal)

    async with buses.at_work():
        a = await buses.begin("a", fail)
        senders = [a.port]
        if buses.joins:
            senders.append((await buses.begin("b", fail)).port)
        for bus in senders:
            assert await sent(bus, "a", CancelSignal(1)) is None
            assert await sent(bus, "a", CancelSignal(4)) == reply_to(CancelSignal(4))
    told = [record for record in caplog.records if "could not be handled" in record.getMessage()]
    assert len(told) == len(senders)
    assert all(record.exc_info for record in told)


async def test_a_send_may_be_cancelled_at_any_moment(buses: BusKind) -> None:
    handler = Handler()
    async with buses.at_work():
        bus = (await buses.begin("a", handler)).port
        if buses.joins:
            bus = (await buses.begin("b", Handler())).port

        async def send(number: int, ticks: int) -> None:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_after, scope, ticks)
                    assert await sent(bus, "a", CancelSignal(number)) == reply_to(
                        CancelSignal(number)
                    )
                    nursery.cancel_scope.cancel()

        for ticks in range(40):
            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(send, 100 * ticks + number + 1, ticks)
                # Nor does it cost others, that are sent at the same time.
                reply = await sent(bus, "a", InspectSignal(5))
                assert reply == SEEN
        assert await sent(bus, "a", CancelSignal(4)) == reply_to(CancelSignal(4))
        await until(lambda: len(handler.ended) == len(handler.asked))


async def _cancel_after(scope: trio.CancelScope, ticks: int) -> None:
    for _ in range(ticks):
        await trio.lowlevel.checkpoint()
    scope.cancel()


@pytest.mark.parametrize("ticks", [0, 1, 3, 8, 21, 55])
async def test_serving_may_be_cancelled_at_any_moment(joined_buses: BusKind, ticks: int) -> None:
    handler = Handler()
    async with joined_buses.at_work():
        bus = (await joined_buses.begin("a", Handler())).port
        gone = await joined_buses.begin("b", handler)
        replies: list[tuple[int, Reply | None]] = []

        async def send(number: int) -> None:
            replies.append((number, await sent(bus, "b", CancelSignal(number))))

        async with trio.open_nursery() as nursery:
            for number in range(1, 21):
                nursery.start_soon(send, number)
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            await gone.end()
        assert len(replies) == 20
        assert all(got in (None, reply_to(CancelSignal(number))) for number, got in replies)
        assert len(handler.ended) == len(handler.asked)


@pytest.mark.parametrize("seed", [1, 2])
async def test_nodes_that_come_and_go_at_random_answer_or_are_given_up(
    joined_buses: BusKind, seed: int
) -> None:
    chance = random.Random(seed)
    async with joined_buses.at_work():
        nodes = [await joined_buses.begin(f"n{number}", Handler()) for number in range(3)]
        names = [node.name for node in nodes]
        wrong: list[object] = []
        lasting = nodes[0]

        async def send_some() -> None:
            for number in range(1, 13):
                name = chance.choice(names)
                signal = CancelSignal(4 * number)  # whose reply says that it was there
                reply = await sent(lasting.port, name, signal)
                if reply not in (None, reply_to(signal)) or (
                    reply is None and name == lasting.name
                ):
                    wrong.append((name, reply))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(send_some)
            for number in range(3, 7):
                await trio.sleep(chance.uniform(0, 0.05))
                old = nodes.pop(chance.randint(1, len(nodes) - 1))
                await old.end()
                new = await joined_buses.begin(f"n{number}", Handler())
                nodes.append(new)
                names.append(new.name)
        assert not wrong
        for node in nodes:
            assert await sent(lasting.port, node.name, CancelSignal(4)) == reply_to(CancelSignal(4))

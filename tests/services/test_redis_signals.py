"""Signals between nodes over Redis, and their replies."""

from __future__ import annotations

import json

import pytest
import trio

from taskd.buses.redis.bus import RedisBus
from taskd.buses.signals import MAX_HANDLED
from taskd.domain.model import CancelCertainty, Frame, Inspection, Phase, TaskState
from taskd.ports.bus import CancelReply, CancelSignal, InspectReply, InspectSignal, Reply, Signal
from tests.support.clocks import SteppableClock
from tests.support.redis_bus import bus_on, make_bus, serving, until
from tools.servers import Redis

CANCELLED = CancelReply(TaskState.CANCELLED, CancelCertainty.ABORTED_BEFORE_RESPONSE)
SEEN = InspectReply(
    Inspection(
        node="b",
        phase=Phase.AWAITING_RESPONSE,
        frames=(Frame("trio/_socket.py", 3, "recv"), Frame("taskd/transport/http.py", 7, "täsk")),
        executed=Frame("taskd/transport/http.py", 7, "täsk"),
        variables={"attempt": 2, "origin": "http://例え", "left": 0.25, "tls": False, "n": None},
        rounds=12,
        elapsed_ms=345,
    )
)


class Receiver:
    """A handler that notes what it is asked, and answers when it is let."""

    def __init__(self) -> None:
        self.asked: list[Signal] = []
        self.go = trio.Event()
        self.go.set()

    async def __call__(self, signal: Signal) -> Reply:
        self.asked.append(signal)
        await self.go.wait()
        return CANCELLED if isinstance(signal, CancelSignal) else SEEN


async def sent(bus: RedisBus, node: str, signal: Signal) -> tuple[Reply | None, float]:
    started = trio.current_time()
    with trio.fail_after(5):
        reply = await bus.send(node, signal)
    return reply, trio.current_time() - started


async def test_signals_reach_another_node_and_replies_come_back_whole(redis_url: str) -> None:
    clock, receiver = SteppableClock(), Receiver()
    async with bus_on(redis_url, clock, "a") as a, bus_on(redis_url, clock, "b", receiver):
        assert (await sent(a, "b", CancelSignal(7)))[0] == CANCELLED
        assert (await sent(a, "b", InspectSignal(2**53 - 1)))[0] == SEEN
        assert receiver.asked == [CancelSignal(7), InspectSignal(2**53 - 1)]


async def test_a_signal_to_oneself_is_a_call_also_without_redis(redis_url: str) -> None:
    clock, receiver = SteppableClock(), Receiver()
    bus = make_bus("redis://127.0.0.1:1/0", clock)
    assert await bus.send("a", CancelSignal(1)) is None
    async with serving(bus, handler=receiver):
        assert await bus.send("a", CancelSignal(1)) == CANCELLED
        assert await bus.send("b", CancelSignal(1)) is None
    assert await bus.send("a", CancelSignal(1)) is None


async def test_a_node_that_is_not_alive_is_not_waited_for(
    redis_url: str, redis_server: Redis
) -> None:
    clock, receiver = SteppableClock(), Receiver()
    async with bus_on(redis_url, clock, "a") as a:
        reply, took = await sent(a, "b", CancelSignal(1))
        assert reply is None
        assert took < 0.5
        async with bus_on(redis_url, clock, "b", receiver):
            receiver.go = trio.Event()
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    assert (await sent(a, "b", CancelSignal(1)))[0] is None

                nursery.start_soon(send)
                await until(lambda: receiver.asked)
                # It listens still, but has not been seen for too long.
                b_ = "taskd:node:b"
                await until(lambda: redis_server.execute("DEL", b_) and not nursery.child_tasks)

        reply, took = await sent(a, "b", CancelSignal(1))
        assert reply is None
        assert took < 0.5


async def test_a_node_that_was_killed_is_not_waited_for(
    redis_url: str, redis_server: Redis
) -> None:
    clock = SteppableClock()
    async with bus_on(redis_url, clock, "a") as a:
        # It was alive a moment ago, but nobody listens.
        redis_server.execute("SET", "taskd:node:b", "1", "PX", "4000")
        reply, took = await sent(a, "b", CancelSignal(1))
        assert reply is None
        assert took < 0.5


async def test_a_hundred_signals_at_once_get_their_own_replies(redis_url: str) -> None:
    async def echo(signal: Signal) -> Reply:
        await trio.sleep(0.001 * (signal.task_id % 7))
        state = TaskState.CANCELLED if signal.task_id % 2 else TaskState.SUCCEEDED
        return CancelReply(state, None)

    clock = SteppableClock()
    async with (
        bus_on(redis_url, clock, "a", echo) as a,
        bus_on(redis_url, clock, "b", echo) as b,
        trio.open_nursery() as nursery,
    ):

        async def send(bus: RedisBus, node: str, task_id: int) -> None:
            reply, _ = await sent(bus, node, CancelSignal(task_id))
            assert reply == await echo(CancelSignal(task_id))

        for task_id in range(1, 101):
            nursery.start_soon(send, a, "b", task_id)
            nursery.start_soon(send, b, "a", task_id)


async def test_a_signal_that_takes_long_is_repeated_but_handled_once(redis_url: str) -> None:
    clock, receiver = SteppableClock(), Receiver()
    receiver.go = trio.Event()
    async with bus_on(redis_url, clock, "a") as a, bus_on(redis_url, clock, "b", receiver) as b:
        heard: list[int] = []
        take = b._signals.take

        def count(messages: list[bytes]) -> None:
            heard.append(len(messages))
            if sum(heard) == 3:
                receiver.go.set()
            take(messages)

        b._listener._deliver = count
        assert (await sent(a, "b", CancelSignal(1)))[0] == CANCELLED
        assert receiver.asked == [CancelSignal(1)]


async def test_a_signal_or_reply_that_was_lost_comes_again(
    redis_url: str, redis_server: Redis
) -> None:
    clock, receiver = SteppableClock(), Receiver()
    receiver.go = trio.Event()
    async with bus_on(redis_url, clock, "a") as a, bus_on(redis_url, clock, "b", receiver) as b:
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                assert (await sent(a, "b", CancelSignal(1)))[0] == CANCELLED

            lost = a._listener._deliver
            a._listener._deliver = lambda _messages: receiver.go.set()  # the reply is lost
            nursery.start_soon(send)
            await until(lambda: receiver.asked)
            redis_server.execute("CLIENT", "KILL", "TYPE", "pubsub")
            await until(lambda: not b.statistics().subscribed)
            receiver.go.set()
            await until(lambda: b.statistics().handled)
            a._listener._deliver = lost
        assert len(receiver.asked) > 1, "nothing was lost"


async def test_a_handler_that_fails_is_told_and_ends_nothing(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(signal: Signal) -> Reply:
        await trio.lowlevel.checkpoint()
        if signal.task_id == 1:
            raise RuntimeError("a bug")
        return CANCELLED

    clock = SteppableClock()
    async with bus_on(redis_url, clock, "a") as a, bus_on(redis_url, clock, "b", fail):
        reply, took = await sent(a, "b", CancelSignal(1))
        assert reply is None
        assert took < 0.4, "it was waited for instead of told"
        assert (await sent(a, "b", CancelSignal(2)))[0] == CANCELLED
    assert [r.exc_info for r in caplog.records if "could not be handled" in r.getMessage()]


async def test_a_reply_too_large_to_send_is_no_reply(redis_url: str) -> None:
    huge = InspectReply(
        Inspection(
            node="b",
            phase=None,
            frames=(),
            executed=Frame("x", 1, "y"),
            variables={"v": "x" * 300_000},
            rounds=0,
            elapsed_ms=0,
        )
    )

    async def answer(_signal: Signal) -> Reply:
        await trio.lowlevel.checkpoint()
        return huge

    clock = SteppableClock()
    async with bus_on(redis_url, clock, "a") as a, bus_on(redis_url, clock, "b", answer):
        assert (await sent(a, "b", InspectSignal(1)))[0] is None


async def test_messages_that_are_none_are_dropped_and_counted(
    redis_url: str, redis_server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [
        "",
        "not JSON",
        "[]",
        "[" * 5_000,
        json.dumps({"v": 2, "kind": "cancel", "id": "0" * 16, "from": "x", "task_id": 1}),
        json.dumps({"v": 1, "kind": "cancel", "id": "0" * 16, "from": "x", "task_id": True}),
        json.dumps({"v": 1, "kind": "cancelled", "id": "0" * 16, "state": "no", "word": None}),
    ]

    clock, receiver = SteppableClock(), Receiver()
    async with bus_on(redis_url, clock, "a") as a, bus_on(redis_url, clock, "b", receiver) as b:
        for message in bad:
            redis_server.execute("PUBLISH", "taskd:to:b", message)
        # A reply that nobody waits for, and a signal of a node that is not there.
        late = {"v": 1, "kind": "failed", "id": "0" * 16}
        stray = {"v": 1, "kind": "cancel", "id": "1" * 16, "from": "gone", "task_id": 9}
        for known in (late, stray):
            redis_server.execute("PUBLISH", "taskd:to:b", json.dumps(known))
        await until(lambda: CancelSignal(9) in receiver.asked)
        assert b.statistics().dropped == len(bad)
        assert (await sent(a, "b", CancelSignal(7)))[0] == CANCELLED
    told = [r for r in caplog.records if "was dropped" in r.getMessage()]
    assert len(told) == 1, "each was told, of as many as come"


async def test_what_is_handled_at_a_time_is_bounded_and_the_rest_comes_again(
    redis_url: str,
) -> None:
    clock, receiver = SteppableClock(), Receiver()
    receiver.go = trio.Event()
    async with (
        bus_on(redis_url, clock, "a") as a,
        bus_on(redis_url, clock, "b", receiver) as b,
        trio.open_nursery() as nursery,
    ):

        async def send(task_id: int) -> None:
            assert (await sent(a, "b", CancelSignal(task_id)))[0] == CANCELLED

        for task_id in range(1, MAX_HANDLED + 51):
            nursery.start_soon(send, task_id)
        await until(lambda: b.statistics().dropped >= 50)
        await until(lambda: len(receiver.asked) >= MAX_HANDLED)  # all those have begun
        assert len(receiver.asked) == MAX_HANDLED
        receiver.go.set()


async def test_who_stops_waiting_leaves_nothing_behind(redis_url: str) -> None:
    clock, receiver = SteppableClock(), Receiver()
    receiver.go = trio.Event()
    async with bus_on(redis_url, clock, "a") as a, bus_on(redis_url, clock, "b", receiver) as b:
        with trio.move_on_after(0.2) as scope:
            await a.send("b", CancelSignal(1))
        assert scope.cancelled_caught
        assert not a._signals._waiters
        receiver.go.set()
        await until(lambda: b.statistics().handled == 1)
        assert not b._signals._in_hand
        assert (await sent(a, "b", CancelSignal(2)))[0] == CANCELLED

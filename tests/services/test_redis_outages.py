"""Redis gone, stuck, slow, back: requests are refused in time, and nothing hangs."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Awaitable, Callable

import pytest
import trio

from taskd.buses.redis.bus import RedisBus
from taskd.buses.redis.link import CALL_S, Link
from taskd.buses.redis.target import RedisTarget, parse_redis_url
from taskd.domain.model import CancelCertainty, TaskState
from taskd.errors import BusUnavailable
from taskd.ports.bus import CancelReply, CancelSignal, Reply, Signal
from tests.support.clocks import SteppableClock
from tests.support.proxy import Proxy
from tests.support.redis_bus import bus_on, fresh_nonce, make_bus, nobody_here, told, until
from tools.servers import Redis

MakeRedis = Callable[..., Redis]

FRESH = "store too"
IN_TIME_S = CALL_S + 0.3
BACK_S = 2.0


async def timed(bus: RedisBus, clock: SteppableClock) -> tuple[str, float]:
    started = trio.current_time()
    word = await told(bus, fresh_nonce(clock))
    return word, trio.current_time() - started


@pytest.fixture
def widest_gap() -> Callable[[list[float]], Awaitable[None]]:
    """Watches how long the event loop ever stood still, into a list."""

    async def watch(gaps: list[float]) -> None:
        last = trio.current_time()
        while True:
            await trio.sleep(0.005)
            now = trio.current_time()
            gaps.append(now - last)
            last = now

    return watch


async def test_redis_gone_and_back(
    private_redis: MakeRedis, caplog: pytest.LogCaptureFixture
) -> None:
    server = private_redis(append_only=True)
    caplog.set_level(logging.INFO, "taskd.buses")

    clock = SteppableClock()
    async with bus_on(server.url, clock, "a") as a, bus_on(server.url, clock, "b") as b:
        assert await told(a, fresh_nonce(clock)) == FRESH
        caplog.clear()
        server.kill()
        word, took = await timed(a, clock)
        assert word == "unavailable"
        assert took < IN_TIME_S
        assert a.unready() == f"Redis at {server.address} can't be reached: Connection refused"
        word, took = await timed(a, clock)
        assert word == "unavailable"
        assert took < CALL_S / 2, "a known outage was waited for"
        assert await a.send("b", CancelSignal(1)) is None
        # Each leads for itself, so that what falls due is still seen.
        await until(lambda: a.leads_timer() and b.leads_timer(), within_s=4)

        server.start()
        back = await until(lambda: "began to keep" in (a.unready() or ""), within_s=BACK_S)
        assert back < BACK_S
        clock.step(2_100)
        await until(lambda: a.unready() is None and b.unready() is None, within_s=BACK_S)
        assert await told(a, fresh_nonce(clock)) == FRESH
        await until(lambda: a.leads_timer() is not b.leads_timer(), within_s=4)
        await until(lambda: a.statistics().subscribed and b.statistics().subscribed)
        assert await a.send("b", CancelSignal(1)) == CancelReply(state=None, certainty=None)
        assert await b.send("a", CancelSignal(1)) == CancelReply(state=None, certainty=None)
    lines = [record.getMessage() for record in caplog.records]
    for line, times in (
        ("the bus can't be used", 2),  # once for each node
        ("the bus can be used", 2),
        ("signals can't be heard", 2),
        ("signals are heard", 2),
    ):
        assert lines.count(line) == times, lines


async def test_a_node_starts_without_redis_and_uses_it_once_it_is_there(
    private_redis: MakeRedis,
) -> None:
    server = private_redis()
    server.kill()

    clock = SteppableClock()
    bus = make_bus(server.url, clock)
    assert bus.unready() == "the bus has not reached Redis yet"
    assert await told(bus, fresh_nonce(clock)) == "unavailable"
    async with trio.open_nursery() as nursery:
        with trio.fail_after(IN_TIME_S):
            await nursery.start(bus.serve, nobody_here)
        assert "Connection refused" in (bus.unready() or "")
        server.start()
        await until(lambda: "began to keep" in (bus.unready() or ""), within_s=BACK_S)
        clock.step(2_100)
        await until(lambda: bus.unready() is None)
        assert await told(bus, fresh_nonce(clock)) == FRESH
        nursery.cancel_scope.cancel()


async def test_a_redis_that_hangs_holds_nobody_up(
    private_redis: MakeRedis, widest_gap: Callable[[list[float]], Awaitable[None]]
) -> None:
    server = private_redis()

    clock = SteppableClock()
    gaps: list[float] = []
    results: list[tuple[str, float]] = []

    async def use(bus: RedisBus) -> None:
        results.append(await timed(bus, clock))

    async with bus_on(server.url, clock) as bus, trio.open_nursery() as nursery:
        assert await told(bus, fresh_nonce(clock)) == FRESH
        nursery.start_soon(widest_gap, gaps)
        server.freeze()
        async with trio.open_nursery() as callers:
            for _ in range(20):
                callers.start_soon(use, bus)
            await trio.sleep(0.2)
            callers.start_soon(use, bus)  # which waits behind them
        assert [word for word, _ in results] == ["unavailable"] * 21
        assert max(took for _, took in results) < IN_TIME_S
        word, took = await timed(bus, clock)
        assert (word, took < CALL_S / 2) == ("unavailable", True)
        assert "did not answer within" in (bus.unready() or "")
        server.thaw()
        await until(lambda: bus.unready() is None, within_s=BACK_S)
        assert await told(bus, fresh_nonce(clock)) == FRESH
        assert max(gaps) < CALL_S / 2, "the event loop stood still"
        nursery.cancel_scope.cancel()


async def test_a_bus_ends_at_once_while_redis_hangs(private_redis: MakeRedis) -> None:
    server = private_redis()

    clock = SteppableClock()
    async with bus_on(server.url, clock, "a"):
        server.freeze()
        await trio.sleep(0.1)
        ending = trio.current_time()
    assert trio.current_time() - ending < 0.5


async def test_a_bus_ends_at_once_and_fails_who_waits_for_it(private_redis: MakeRedis) -> None:
    server = private_redis()

    clock = SteppableClock()
    words: list[str] = []

    async def use(bus: RedisBus) -> None:
        words.append(await told(bus, fresh_nonce(clock)))

    async with trio.open_nursery() as callers, bus_on(server.url, clock, "a") as bus:
        server.freeze()
        for _ in range(3):
            callers.start_soon(use, bus)
        await trio.sleep(0.1)
    assert words == ["unavailable"] * 3
    assert await told(bus, fresh_nonce(clock)) == "unavailable"
    assert bus.leads_timer() is False


async def test_a_name_that_does_not_resolve_in_time_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolved = threading.Event()

    def hang(*_args: object) -> object:
        resolved.wait(30)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr("taskd.buses.redis.link.CALL_S", 0.5)

    link = Link(RedisTarget(host="redis.invalid"), trio.CapacityLimiter(2))
    for _ in range(4):  # more than there are threads
        started = trio.current_time()
        with pytest.raises(BusUnavailable, match=r"did not answer within 0\.5 s"):
            await link.call(("PING",))
        assert trio.current_time() - started < 0.5 + (IN_TIME_S - CALL_S)
    resolved.set()


async def test_an_idle_connection_that_the_server_closed_fails_no_call(
    redis_url: str, redis_server: Redis
) -> None:
    clock = SteppableClock()
    async with bus_on(redis_url, clock) as bus:
        for _ in range(5):
            assert await told(bus, fresh_nonce(clock)) == FRESH
            redis_server.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert bus.statistics().outages == 0


async def test_a_failure_that_does_not_last_is_over_at_once(redis_url: str) -> None:
    clock = SteppableClock()
    async with bus_on(redis_url, clock) as bus:
        link = bus._links[0]
        took = 0.0
        for _ in range(5):
            proper = link.call

            async def fail(*_commands: object) -> list[object]:
                await trio.lowlevel.checkpoint()
                raise BusUnavailable("once")

            link.call = fail  # type: ignore[method-assign] # as a lost connection does
            assert await told(bus, fresh_nonce(clock)) == "unavailable"
            link.call = proper  # type: ignore[method-assign] # as it was
            took += await until(lambda: bus.unready() is None)
        assert took < 1.5, "each time the next beat was waited for"
        assert await told(bus, fresh_nonce(clock)) == FRESH


async def test_a_connection_is_not_used_again_after_a_call_that_was_cancelled(
    private_redis: MakeRedis,
) -> None:
    server = private_redis()

    link = Link(parse_redis_url(server.url), trio.CapacityLimiter(4))
    (before,) = await link.call(("CLIENT", "ID"))
    server.freeze()
    with trio.move_on_after(0.1) as scope:
        await link.call(("ECHO", "of the cancelled"))
    assert scope.cancelled_caught
    server.thaw()
    after, echo = await link.call(("CLIENT", "ID"), ("ECHO", "second"))
    assert echo == b"second"
    assert after != before, "the connection was used again"
    link.close()
    await until(lambda: server.execute("CLIENT", "LIST").count("cmd=") == 1)


async def test_an_error_among_several_answers_leaves_the_connection_in_step(redis_url: str) -> None:
    link = Link(parse_redis_url(redis_url), trio.CapacityLimiter(4))
    with pytest.raises(BusUnavailable, match="refuses: unknown command 'NONSENSE'"):
        await link.call(("ECHO", "one"), ("NONSENSE",), ("ECHO", "three"))
    assert await link.call(("ECHO", "four")) == [b"four"]
    link.close()


async def _scripted(
    listener: trio.SocketListener, asked: list[bytes], answer: Callable[[bytes], bytes | None]
) -> None:
    """A server that answers each read by a rule; None: it hangs up."""

    async def talk(stream: trio.SocketStream) -> None:
        async with stream:
            async for chunk in stream:
                asked.append(bytes(chunk))
                told_ = answer(bytes(chunk))
                if told_ is None:
                    return
                await stream.send_all(told_)

    await trio.serve_listeners(talk, [listener])


def _answers_logins(chunk: bytes) -> bytes | None:
    return None if b"EVAL" in chunk else b"+OK\r\n" * chunk.count(b"CLIENT")


@pytest.mark.parametrize("hang_up", [True, False], ids=["hangs up", "does not answer"])
async def test_nothing_is_sent_twice(hang_up: bool) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    asked: list[bytes] = []

    def answer(chunk: bytes) -> bytes | None:
        logged_in = _answers_logins(chunk)
        return b"" if logged_in is None and not hang_up else logged_in

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_scripted, listener, asked, answer)
        link = Link(RedisTarget(host="127.0.0.1", port=port), trio.CapacityLimiter(4))
        with pytest.raises(BusUnavailable):
            await link.call(("EVAL", "return 1", 0))
        # Were it sent again, then before the call has ended: its thread is done.
        assert sum(chunk.count(b"EVAL") for chunk in asked) == 1
        nursery.cancel_scope.cancel()


async def test_a_connection_is_tried_once_a_call() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    asked: list[bytes] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_scripted, listener, asked, lambda _chunk: None)
        link = Link(RedisTarget(host="127.0.0.1", port=port), trio.CapacityLimiter(4))
        with pytest.raises(BusUnavailable):
            await link.call(("PING",))
        assert len(asked) == 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "babble",
    [
        pytest.param(b"*2\r\n$4\r\nkept\r\n$1\r\nx\r\n", id="an epoch that is no number"),
        pytest.param(b"*0\r\n", id="nothing"),
        pytest.param(b":7\r\n", id="a number"),
        pytest.param(b"*3\r\n$4\r\nkept\r\n$1\r\n1\r\n$4\r\nused\r\n", id="too much"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="another protocol"),
        pytest.param(b"$-5\r\n", id="bytes of no length"),
        pytest.param(b"$abc\r\n", id="bytes of some length"),
    ],
)
async def test_what_is_no_redis_is_an_obstacle_and_ends_nothing(babble: bytes) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]

    def answer(chunk: bytes) -> bytes | None:
        if b"CLIENT" in chunk:
            return b"+OK\r\n"
        return b"+OK\r\n:1\r\n" if b"lead" in chunk else babble

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_scripted, listener, [], answer)
        clock = SteppableClock()
        async with bus_on(f"redis://127.0.0.1:{port}", clock) as bus:
            assert await told(bus, fresh_nonce(clock)) == "unavailable"
            await until(lambda: bus.statistics().outages == 0)
            assert "Redis" in (bus.unready() or "")
        nursery.cancel_scope.cancel()


async def test_a_network_that_drops_everything_is_noticed_by_the_listener_too(
    redis_url: str, redis_server: Redis
) -> None:
    async def answer(signal: Signal) -> Reply:
        await trio.lowlevel.checkpoint()
        return CancelReply(TaskState.CANCELLED, CancelCertainty.UNKNOWN)

    clock = SteppableClock()
    with Proxy((redis_server.host, redis_server.port)) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        async with bus_on(redis_url, clock, "a") as a, bus_on(url, clock, "b", answer) as b:
            assert await a.send("b", CancelSignal(1)) is not None
            proxy.freeze()
            await until(lambda: not b.statistics().subscribed, within_s=5)
            proxy.cut()
            proxy.thaw()
            proxy.heal()
            await until(lambda: b.statistics().subscribed and b.unready() is None)
            assert await a.send("b", CancelSignal(1)) is not None


async def test_the_threads_of_a_bus_that_ended_end_too(redis_url: str) -> None:
    def threads() -> int:
        return sum(thread.name == "taskd-bus-listener" for thread in threading.enumerate())

    clock = SteppableClock()
    async with bus_on(redis_url, clock):
        await until(lambda: threads() == 1)  # those of other tests have ended
    await until(lambda: not threads(), within_s=2)

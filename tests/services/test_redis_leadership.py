"""Who leads the timer: one at a time, and never nobody for long."""

from __future__ import annotations

import subprocess
import sys
from contextlib import AsyncExitStack
from functools import partial

import pytest
import trio

from taskd.buses.redis.bus import RedisBus
from taskd.clock import SystemClock
from tests.support.clocks import SteppableClock
from tests.support.redis_bus import bus_on, make_bus, nobody_here, until
from tools.servers import Redis

TAKEN_OVER_S = 5.0

_NODE = """
import sys, trio
from taskd.buses.redis.bus import RedisBus
from taskd.buses.redis.target import parse_redis_url
from taskd.clock import SystemClock
async def main():
    bus = RedisBus(parse_redis_url(sys.argv[1]), node="killed", clock=SystemClock())
    async def handler(signal): ...
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.serve, handler)
        while not bus.leads_timer():
            await trio.sleep(0.01)
        print("leads", flush=True)
trio.run(main)
"""


def test_a_leader_that_is_killed_is_followed_in_time(redis_url: str) -> None:
    killed = subprocess.Popen(
        [sys.executable, "-c", _NODE, redis_url], stdout=subprocess.PIPE, text=True
    )

    async def main() -> None:
        clock = SteppableClock(SystemClock().now_ms())
        try:
            assert killed.stdout is not None
            with trio.fail_after(20):
                line = await trio.to_thread.run_sync(killed.stdout.readline)
            assert line == "leads\n"
            async with bus_on(redis_url, clock, "b") as b, bus_on(redis_url, clock, "c") as c:
                assert not b.leads_timer()
                assert not c.leads_timer()
                killed.kill()
                await until(lambda: b.leads_timer() or c.leads_timer(), within_s=TAKEN_OVER_S)
                assert b.leads_timer() is not c.leads_timer()
                assert max(b.statistics().leadership, c.statistics().leadership) == 2
        finally:
            killed.kill()
            killed.wait()
            assert killed.stdout is not None
            killed.stdout.close()

    trio.run(main)


async def test_a_leader_that_ends_in_order_is_followed_at_the_next_beat(redis_url: str) -> None:
    clock = SteppableClock()
    first = make_bus(redis_url, clock, "b")
    async with trio.open_nursery() as nursery:
        serving = trio.CancelScope()

        async def serve(*, task_status: trio.TaskStatus[None]) -> None:
            with serving:
                await first.serve(nobody_here, task_status=task_status)

        await nursery.start(serve)
        assert first.leads_timer()
        async with bus_on(redis_url, clock, "c") as second:
            assert not second.leads_timer()
            serving.cancel()
            # Before the first one's key would have ended by itself.
            await until(second.leads_timer, within_s=1.5)


async def test_an_orderly_end_takes_lead_and_presence_away(
    redis_url: str, redis_server: Redis
) -> None:
    clock = SteppableClock()
    async with bus_on(redis_url, clock) as bus:
        assert redis_server.execute("EXISTS", "taskd:lead", "taskd:node:a").endswith("2")
    assert not bus.leads_timer()
    assert redis_server.execute("EXISTS", "taskd:lead", "taskd:node:a").endswith("0")
    async with bus_on(redis_url, clock, "b") as other:
        assert other.statistics().leadership == 2


async def test_the_end_of_one_that_does_not_lead_leaves_the_leader_alone(redis_url: str) -> None:
    clock = SteppableClock()
    async with bus_on(redis_url, clock, "a") as a:
        async with bus_on(redis_url, clock, "b"):
            pass
        async with bus_on(redis_url, clock, "c") as c:
            assert (a.leads_timer(), c.leads_timer()) == (True, False)


async def test_two_never_lead_at_once_while_redis_works(
    redis_url: str, redis_server: Redis
) -> None:
    clock = SteppableClock()
    buses: list[RedisBus] = []
    leaders: set[str] = set()

    async def watch() -> None:
        while True:
            leading = [bus.node for bus in buses if bus.leads_timer()]
            assert len(leading) <= 1, leading
            leaders.update(leading)
            await trio.sleep(0.002)

    async def live(number: int, scope: trio.CancelScope) -> None:
        bus = make_bus(redis_url, clock, f"n{number}")
        buses.append(bus)
        with scope:
            await bus.serve(nobody_here)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        for number in range(6):
            scope = trio.CancelScope()
            nursery.start_soon(live, number, scope)
            await until(lambda: any(bus.leads_timer() for bus in buses))
            if number % 2:
                # The leader hangs: it is not renewed, and not given up.
                leader = next(bus for bus in buses if bus.leads_timer())
                leader._pulse._health.unready = None
                leader._links[1].call = _hang  # type: ignore[method-assign] # as a hang does
                await until(partial(_follows, leader), within_s=3)
                buses.remove(leader)  # soon it leads for itself, cut off from Redis
                await until(lambda: any(bus.leads_timer() for bus in buses), within_s=5)
        nursery.cancel_scope.cancel()
    assert len(leaders) >= 3


def _follows(bus: RedisBus) -> bool:
    return not bus.leads_timer()


async def _hang(*_commands: object) -> list[object]:
    await trio.sleep_forever()
    raise AssertionError


async def test_a_flush_leads_to_one_leader_again(redis_url: str, redis_server: Redis) -> None:
    clock = SteppableClock()
    async with bus_on(redis_url, clock, "a") as a, bus_on(redis_url, clock, "b") as b:
        assert a.leads_timer()
        redis_server.execute("FLUSHALL")
        redis_server.execute("SET", "taskd:lead", "9 b")
        await until(lambda: not a.leads_timer() and b.leads_timer(), within_s=3)
        redis_server.execute("SET", "taskd:lead", "not of ours")
        await until(lambda: a.leads_timer() or b.leads_timer(), within_s=3)
        await until(lambda: a.leads_timer() is not b.leads_timer(), within_s=3)


@pytest.mark.parametrize("number", [1, 2])
async def test_every_node_leads_for_itself_while_redis_is_gone_from_the_start(number: int) -> None:
    clock = SteppableClock()
    async with AsyncExitStack() as stack:
        buses = [
            await stack.enter_async_context(bus_on("redis://127.0.0.1:1/0", clock, f"n{index}"))
            for index in range(number)
        ]
        await until(lambda: all(bus.leads_timer() for bus in buses), within_s=4)

"""Buses on a real Redis, for tests: made, served, and waited for."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from taskd.buses.redis.bus import RedisBus
from taskd.buses.redis.target import parse_redis_url
from taskd.domain.model import NonceUse
from taskd.errors import BusUnavailable, NonceUsed, SignedBeforeEpoch
from taskd.ports.bus import CancelReply, CancelSignal, InspectReply, Reply, Signal
from tests.support.clocks import SteppableClock

WINDOW_MS = 300_000


async def nobody_here(signal: Signal) -> Reply:
    """The handler of a node that runs nothing."""
    await trio.lowlevel.checkpoint()
    if isinstance(signal, CancelSignal):
        return CancelReply(state=None, certainty=None)
    return InspectReply(None)


@asynccontextmanager
async def serving(*buses: RedisBus, handler: object = nobody_here) -> AsyncIterator[None]:
    """Serve buses, one after the other; ended in the other order."""
    assert callable(handler)
    async with trio.open_nursery() as nursery:
        for bus in buses:
            await nursery.start(bus.serve, handler)
        yield
        nursery.cancel_scope.cancel()


def make_bus(url: str, clock: SteppableClock, node: str = "a") -> RedisBus:
    return RedisBus(parse_redis_url(url), node=node, clock=clock)


@asynccontextmanager
async def bus_on(
    url: str, clock: SteppableClock, node: str = "a", handler: object = nobody_here
) -> AsyncIterator[RedisBus]:
    """A bus at work, whose epoch has been waited for: the clock is stepped over it."""
    bus = make_bus(url, clock, node)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pass_the_epoch, bus, clock)
        await nursery.start(serve_all, nursery, bus, handler)
        yield bus
        nursery.cancel_scope.cancel()


async def serve_all(
    nursery: trio.Nursery, bus: RedisBus, handler: object, *, task_status: trio.TaskStatus[None]
) -> None:
    assert callable(handler)
    await nursery.start(bus.serve, handler)
    task_status.started()


async def pass_the_epoch(bus: RedisBus, clock: SteppableClock) -> None:
    """Step the clock to where requests are accepted again, once an epoch is known."""
    await until(lambda: bus.statistics().epoch is not None or bus.unready() is not None)
    while (unready := bus.unready()) is not None and "began to keep" not in unready:
        await trio.sleep(0.01)
    if unready is not None:
        clock.step(2_100)


async def until(condition: Callable[[], object], within_s: float = 5.0, what: str = "") -> float:
    """Wait until a callable is true; how long it took, in seconds."""
    started = trio.current_time()
    with trio.move_on_after(within_s):
        while not condition():
            await trio.sleep(0.005)
        return trio.current_time() - started
    raise AssertionError(f"{what or 'it'} did not come to pass within {within_s} s")


def nonce_at(
    signed_at: int, now: int, *, nonce: str | None = None, app_key: str = "key"
) -> NonceUse:
    """A nonce as the API makes it, for a request that says it was signed then."""
    return NonceUse(
        app_key=app_key,
        nonce=nonce or secrets.token_hex(8),
        expires_at=max(now, signed_at) + 2 * WINDOW_MS,
        signed_at=signed_at,
        signed_latest=signed_at,
    )


def fresh_nonce(clock: SteppableClock) -> NonceUse:
    now = clock.now_ms()
    return nonce_at(now, now)


async def told(bus: RedisBus, nonce: NonceUse) -> str:
    """What a bus says of a nonce, in a word."""
    try:
        return "alone" if await bus.use_nonce(nonce) else "store too"
    except NonceUsed:
        return "used"
    except SignedBeforeEpoch:
        return "early"
    except BusUnavailable:
        return "unavailable"

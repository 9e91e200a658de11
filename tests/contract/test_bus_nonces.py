"""The SharedNonces part of the Bus port: a nonce is used once among all nodes, by the Bus'
word or the Store's. Each test runs on every adapter."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import trio

from taskd.domain.model import NonceUse
from taskd.errors import BusUnavailable, NonceUsed, SignedBeforeEpoch
from taskd.ports.bus import Bus
from tests.support.bus_kinds import BusKind, BusNode
from tests.support.nodes import until
from tests.support.redis_bus import WINDOW_MS, fresh_nonce

OFFSETS_MS = [0, -WINDOW_MS + 5_000, WINDOW_MS - 5_000]
"""When requests say that they were signed: now, by a clock behind, by a clock ahead."""


class Requests:
    """Takes requests as the nodes of a cluster do: each asks its Bus, and where that says
    so the Store that all share."""

    def __init__(self, kind: BusKind) -> None:
        self.kind = kind
        self._store: set[tuple[str, str]] = set()

    async def accepted(self, bus: Bus, nonce: NonceUse) -> bool | None:
        """Whether a request with this nonce is accepted; None where that can't be known."""
        try:
            alone = await bus.use_nonce(nonce)
        except (NonceUsed, SignedBeforeEpoch):
            return False
        except BusUnavailable:
            return None
        if alone:
            assert self.kind.keeps_nonces
            return True
        key = (nonce.app_key, nonce.nonce)
        fresh = key not in self._store
        self._store.add(key)
        return fresh

    def fresh(self, offset_ms: int = 0) -> NonceUse:
        """A nonce that nobody has used, of a request signed so much from now."""
        nonce = fresh_nonce(self.kind.clock)
        signed_at = nonce.signed_at + offset_ms
        expires_at = max(nonce.signed_at, signed_at) + 2 * WINDOW_MS
        return replace(nonce, signed_at=signed_at, signed_latest=signed_at, expires_at=expires_at)


async def begun(kind: BusKind) -> list[BusNode]:
    """Nodes that have been at work for so long that requests of any age are accepted."""
    nodes = [await kind.begin(name) for name in ("abc" if kind.joins else "a")]
    kind.clock.step(4 * WINDOW_MS)
    return nodes


@pytest.mark.parametrize("offset_ms", OFFSETS_MS)
async def test_a_nonce_is_used_once_whichever_node_is_asked(buses: BusKind, offset_ms: int) -> None:
    async with buses.at_work():
        requests = Requests(buses)
        for first in (nodes := await begun(buses)):
            nonce = requests.fresh(offset_ms)
            assert await requests.accepted(first.port, nonce) is True
            for node in nodes:
                assert await requests.accepted(node.port, nonce) is False


async def test_of_many_at_once_one_gets_a_nonce(buses: BusKind) -> None:
    chance = random.Random(5)
    async with buses.at_work():
        requests = Requests(buses)
        nodes = await begun(buses)
        nonces = [requests.fresh(chance.choice(OFFSETS_MS)) for _ in range(40)]
        answers: dict[str, list[bool | None]] = {nonce.nonce: [] for nonce in nonces}

        async def use(bus: Bus, nonce: NonceUse) -> None:
            for _ in range(chance.randint(0, 3)):
                await trio.lowlevel.checkpoint()
            answers[nonce.nonce].append(await requests.accepted(bus, nonce))

        async with trio.open_nursery() as nursery:
            for nonce in nonces * 6:
                nursery.start_soon(use, chance.choice(nodes).port, nonce)
        assert all(sorted(map(bool, got)) == [False] * 5 + [True] for got in answers.values())
        assert not any(None in got for got in answers.values())


async def test_the_same_nonce_of_another_key_is_another(buses: BusKind) -> None:
    async with buses.at_work():
        requests = Requests(buses)
        bus = (await begun(buses))[0].port
        nonce = requests.fresh()
        text = nonce.nonce
        for app_key, name in [
            ("k", text),
            ("kk", text),
            ("k", text + "k"),
            ("k:1", "x"),
            ("k", "1:x"),
        ]:
            other = replace(nonce, app_key=app_key, nonce=name)
            assert await requests.accepted(bus, other) is True
            assert await requests.accepted(bus, other) is False


async def test_a_node_that_comes_later_knows_what_was_used(joined_buses: BusKind) -> None:
    async with joined_buses.at_work():
        requests = Requests(joined_buses)
        (a, *_) = await begun(joined_buses)
        nonces = [requests.fresh(offset_ms) for offset_ms in OFFSETS_MS]
        for nonce in nonces:
            assert await requests.accepted(a.port, nonce) is True
        await a.end()
        late = await joined_buses.begin("late")
        for nonce in nonces:
            assert await requests.accepted(late.port, nonce) is False


async def test_a_use_may_be_cancelled_at_any_moment_and_harms_no_other(buses: BusKind) -> None:
    async with buses.at_work():
        requests = Requests(buses)
        nodes = await begun(buses)
        for ticks in range(30):
            cancelled, others = requests.fresh(), [requests.fresh() for _ in range(3)]
            answers: list[bool | None] = []

            async def use(bus: Bus, nonce: NonceUse) -> None:
                answers.append(await requests.accepted(bus, nonce))  # noqa: B023 - within it

            with trio.CancelScope() as scope:
                async with trio.open_nursery() as outer:
                    outer.start_soon(use, nodes[0].port, others[0])
                    for _ in range(3):
                        await trio.lowlevel.checkpoint()
                    # That one is under way: these go together after it.
                    outer.start_soon(_use_and_leave, requests, nodes[0].port, cancelled, ticks)
                    for other in others[1:]:
                        outer.start_soon(use, nodes[0].port, other)
            assert not scope.cancelled_caught
            assert answers == [True] * 3
            # It was used, or it was not; who asks again may be refused, and never twice taken.
            again = [await requests.accepted(node.port, cancelled) for node in nodes * 2]
            assert again.count(True) <= 1
            assert None not in again


async def _use_and_leave(requests: Requests, bus: Bus, nonce: NonceUse, ticks: int) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(requests.accepted, bus, nonce)
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            scope.cancel()


async def test_before_and_after_its_time_a_bus_takes_nothing_on_its_own_word(
    buses: BusKind,
) -> None:
    async with buses.at_work():
        requests = Requests(buses)
        (node, *_) = await begun(buses)
        early = buses.make("early")
        await node.end()
        for bus in (early, node.port):
            nonce = requests.fresh()
            told = [await requests.accepted(bus, nonce) for _ in range(3)]
            assert told == ([None] * 3 if buses.keeps_nonces else [True, False, False])


async def test_where_nothing_stands_against_it_what_is_signed_now_is_accepted(
    buses: BusKind,
) -> None:
    async with buses.at_work():
        requests = Requests(buses)
        nodes = [await buses.begin(name) for name in ("ab" if buses.joins else "a")]
        for node in nodes:
            await until(lambda: node.port.unready() is None)  # noqa: B023 - within it
            assert await requests.accepted(node.port, requests.fresh()) is True

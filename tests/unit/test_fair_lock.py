"""One at a time, whoever has used least first."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from taskd.runtime.fair_lock import FairLock


class Line:
    """Those who want a turn, by name; a name begins with whose it is."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.turns = FairLock()
        self.nursery = nursery
        self.served: list[str] = []
        self.scopes: dict[str, trio.CancelScope] = {}
        self._may_go = trio.Event()
        self._inside = 0

    async def come(self, *names: str, cost: int = 10) -> None:
        """Ask for a turn each, and return once all has come to rest."""
        for name in names:
            self.nursery.start_soon(self._stay, name, cost)
            await wait_all_tasks_blocked()

    async def _stay(self, name: str, cost: int) -> None:
        with trio.CancelScope() as self.scopes[name]:
            async with self.turns.taken(name[0], cost):
                assert not self._inside
                self._inside += 1
                self.served.append(name)
                try:
                    await self._may_go.wait()
                finally:
                    self._inside -= 1

    async def go(self, times: int = 1) -> None:
        """Let so many end, one after another."""
        for _ in range(times):
            done, self._may_go = self._may_go, trio.Event()
            done.set()
            await wait_all_tasks_blocked()


@pytest.mark.virtual_clock
async def test_ones_own_come_in_their_order() -> None:
    async with trio.open_nursery() as nursery:
        line = Line(nursery)
        await line.come("a1", cost=30)
        await line.come("a2", cost=20)
        await line.come("a3", cost=1)
        await line.go(3)
        assert line.served == ["a1", "a2", "a3"]


@pytest.mark.virtual_clock
async def test_who_comes_for_the_first_time_is_next_however_long_the_line_of_others_is() -> None:
    async with trio.open_nursery() as nursery:
        line = Line(nursery)
        await line.come(*(f"a{number}" for number in range(5)))
        await line.come("b0", cost=9)
        await line.go(2)
        assert line.served == ["a0", "b0", "a1"]
        await line.come("b1", "b2", cost=9)
        await line.go(6)
        assert line.served[2:] == ["a1", "b1", "a2", "b2", "a3", "a4"]


@pytest.mark.virtual_clock
async def test_what_is_cheap_comes_before_what_is_dear() -> None:
    async with trio.open_nursery() as nursery:
        line = Line(nursery)
        await line.come("a0", "b0", "c0", "d0", cost=1000)
        await line.come("e0", cost=40)
        await line.come("f0", cost=30)
        await line.go(6)
        assert line.served == ["a0", "f0", "e0", "b0", "c0", "d0"]


@pytest.mark.virtual_clock
async def test_nothing_is_remembered_of_a_line_that_has_ended() -> None:
    async with trio.open_nursery() as nursery:
        line = Line(nursery)
        await line.come("a0", "a1", cost=1000)
        await line.go(2)
        await line.come("b0", "a2", "b1")
        await line.go(3)
        assert line.served[2:] == ["b0", "a2", "b1"]
        assert not line.turns._ends_at
        assert not line.turns._waiting


@pytest.mark.parametrize("leaver", ["a1", "b0", "c0"])
@pytest.mark.virtual_clock
async def test_who_gives_up_waiting_keeps_nobody_waiting(leaver: str) -> None:
    async with trio.open_nursery() as nursery:
        line = Line(nursery)
        await line.come("a0", "b0", "c0", "a1")
        assert line.turns.waiting(leaver[0]) == 1
        line.scopes[leaver].cancel()
        await wait_all_tasks_blocked()
        assert line.turns.waiting(leaver[0]) == 0
        await line.go(3)
        rest = [name for name in ("a0", "b0", "c0", "a1") if name != leaver]
        assert line.served == rest


@pytest.mark.virtual_clock
async def test_who_gives_up_in_the_moment_of_being_let_in_passes_the_turn_on() -> None:
    async with trio.open_nursery() as nursery:
        line = Line(nursery)
        await line.come("a0", "b0", "c0")
        line._may_go.set()
        line._may_go = trio.Event()
        line.scopes["b0"].cancel()
        line.scopes["a0"].cancel()
        await wait_all_tasks_blocked()
        assert line.served == ["a0", "c0"]
        await line.go()
        await line.come("d0")
        assert line.served[-1] == "d0"
        await line.go()


@pytest.mark.virtual_clock
async def test_those_who_always_want_more_get_as_much_as_each_other() -> None:
    used = dict.fromkeys("abcde", 0)
    costs = {"a": (1, 5), "b": (100, 100), "c": (1, 200), "d": (30, 60), "e": (7, 7)}
    chance = random.Random(5)

    turns = FairLock()

    async def want(whose: str) -> None:
        while True:
            cost = chance.randint(*costs[whose])
            async with turns.taken(whose, cost):
                used[whose] += cost
                await trio.sleep(cost)

    async with trio.open_nursery() as nursery:
        for whose in used:
            nursery.start_soon(want, whose)
            nursery.start_soon(want, whose)
        await trio.sleep(50_000)
        nursery.cancel_scope.cancel()
    # By what the dearest ones cost, and no more, whatever each asks for at a time.
    assert max(used.values()) - min(used.values()) < 1000
    assert min(used.values()) > 9_000

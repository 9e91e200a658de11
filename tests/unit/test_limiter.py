"""Room that is shared out in the order in which it is asked for."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from taskd.runtime.limiter import Limiter


class Guests:
    """Takes room for named guests, and says who is inside."""

    def __init__(self, size: int, nursery: trio.Nursery) -> None:
        self.room = Limiter(size)
        self.nursery = nursery
        self.inside: list[str] = []
        self.scopes: dict[str, trio.CancelScope] = {}

    async def come(self, name: str, need: int, whose: str | None = None) -> None:
        """Ask for room, and return once all has come to rest."""
        self.nursery.start_soon(self._stay, name, need, whose)
        await wait_all_tasks_blocked()

    async def _stay(self, name: str, need: int, whose: str | None) -> None:
        with trio.CancelScope() as self.scopes[name]:
            async with self.room.taken(need, whose):
                self.inside.append(name)
                try:
                    await trio.sleep_forever()
                finally:
                    self.inside.remove(name)

    async def go(self, name: str) -> None:
        """Leave, or give up waiting."""
        self.scopes[name].cancel()
        await wait_all_tasks_blocked()


@pytest.mark.virtual_clock
async def test_those_who_fit_are_let_in_and_none_overtakes() -> None:
    async with trio.open_nursery() as nursery:
        guests = Guests(10, nursery)
        for name, need in (("a", 4), ("b", 6), ("c", 7), ("d", 1)):
            await guests.come(name, need)
        assert guests.inside == ["a", "b"]
        await guests.go("a")
        assert guests.inside == ["b"]  # d would fit, but c is first
        await guests.go("b")
        assert guests.inside == ["c", "d"]
        nursery.cancel_scope.cancel()


@pytest.mark.virtual_clock
async def test_who_has_much_in_line_does_not_keep_others_waiting() -> None:
    async with trio.open_nursery() as nursery:
        guests = Guests(10, nursery)
        for name in ("a1", "a2", "a3", "a4"):
            await guests.come(name, 10, "a")
        await guests.come("b1", 3, "b")
        await guests.go("a1")
        assert guests.inside == ["a2"]  # it stood at the door when b came
        await guests.go("a2")
        assert guests.inside == ["b1"]
        nursery.cancel_scope.cancel()


@pytest.mark.virtual_clock
async def test_who_needs_more_than_all_gets_all() -> None:
    async with trio.open_nursery() as nursery:
        guests = Guests(10, nursery)
        await guests.come("a", 1)
        await guests.come("giant", 1_000)
        assert guests.inside == ["a"]
        await guests.go("a")
        await guests.come("b", 1)
        assert guests.inside == ["giant"]
        await guests.go("giant")
        assert guests.inside == ["b"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("leaver", ["c", "d"])
@pytest.mark.virtual_clock
async def test_who_gives_up_waiting_holds_up_nobody_and_keeps_no_room(leaver: str) -> None:
    async with trio.open_nursery() as nursery:
        guests = Guests(10, nursery)
        for name, need in (("a", 10), ("c", 10), ("d", 10), ("e", 3)):
            await guests.come(name, need)
        await guests.go(leaver)
        await guests.go("a")
        (other,) = {"c", "d"} - {leaver}
        assert guests.inside == [other]
        await guests.go(other)
        assert guests.inside == ["e"]
        nursery.cancel_scope.cancel()

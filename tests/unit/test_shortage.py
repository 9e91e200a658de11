"""A shortage of places is told once it lasts, and once it is over."""

from __future__ import annotations

import logging

import pytest
import trio
import trio.testing

from taskd.engine.contents import Contents
from taskd.engine.shortage import (
    BEGINS_AFTER,
    ENDS_AFTER,
    TOLD_EVERY_S,
    ContentsWatch,
    ShortageWatch,
)
from taskd.engine.slots import Slots

BEGINS, ENDS = "tasks wait for a place: see who holds most", "no task waits for a place any more"


class Limiter:
    """One place, which is held and waited for, or free."""

    def __init__(self) -> None:
        self.slots = Slots(1, 1)
        self.watch = ShortageWatch(self.slots)
        self.now = 0.0
        self._held = False

    def look(self, times: int, *, short: bool) -> None:
        for _ in range(times):
            if short != self._held:
                self._toggle()
            self.now += 1.0
            self.watch.look(self.now)

    def _toggle(self) -> None:
        self._held = not self._held
        if self._held:
            assert self.slots.take(1, "http://holder", self.now)
            assert not self.slots.take(2, "http://waiter", self.now)
        else:
            self.slots.give_back("http://holder", 1)
            assert self.slots.woken(self.now) == [2]


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message.partition(" (")[0] for record in caplog.records]


@pytest.fixture(autouse=True)
def _at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="taskd.worker")


def test_what_lasts_is_told_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    room = Limiter()
    room.look(BEGINS_AFTER - 1, short=True)
    assert room.watch.lasting is None
    room.look(1, short=True)
    assert room.watch.lasting is not None
    room.look(100, short=True)
    room.look(ENDS_AFTER - 1, short=False)
    assert room.watch.lasting is not None
    room.look(1, short=False)
    assert room.watch.lasting is None
    room.look(100, short=False)
    assert told(caplog) == [BEGINS, ENDS]


def test_a_burst_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    room = Limiter()
    for _ in range(10):
        room.look(BEGINS_AFTER - 1, short=True)
        room.look(1, short=False)
    assert room.watch.lasting is None
    assert told(caplog) == []


def test_what_comes_and_goes_is_told_no_oftener_than_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    room = Limiter()
    for _ in range(40):
        room.look(BEGINS_AFTER, short=True)
        room.look(ENDS_AFTER, short=False)
    assert 2 <= told(caplog).count(BEGINS) <= room.now / TOLD_EVERY_S + 1
    assert told(caplog).count(ENDS) <= told(caplog).count(BEGINS)


def test_one_that_was_not_told_at_first_is_told_if_it_lasts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    room = Limiter()
    room.look(BEGINS_AFTER, short=True)
    room.look(ENDS_AFTER, short=False)
    room.look(int(TOLD_EVERY_S) + 1, short=True)
    assert told(caplog) == [BEGINS, ENDS, BEGINS]


@pytest.mark.virtual_clock
async def test_a_wait_for_room_for_contents_is_told_once_it_lasts_and_once_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    contents = Contents(10_000)
    watch = ContentsWatch(contents)
    now = 0.0

    def look(times: int) -> None:
        nonlocal now
        for _ in range(times):
            now += 1.0
            watch.look(now)

    assert contents.take_now(1, 9_000)
    look(10)
    assert not told(caplog)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(contents.take, 2, 5_000)
        await trio.testing.wait_all_tasks_blocked()
        look(BEGINS_AFTER - 1)
        assert not told(caplog)
        look(100)
        assert told(caplog) == ["tasks wait for room for their contents"]
        fields = caplog.records[0].__dict__["fields"]
        assert fields == {"waiting": 1, "held_bytes": 9_000, "of_bytes": 10_000}
        contents.give_back(1, 9_000)
    look(ENDS_AFTER - 1)
    assert len(told(caplog)) == 1
    look(10)
    assert told(caplog)[1:] == ["no task waits for room for its content any more"]

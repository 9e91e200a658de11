"""The alarm: one timer for many moments."""

from __future__ import annotations

import math

import pytest
import trio

from taskd.runtime.alarm import Alarm

pytestmark = pytest.mark.virtual_clock


class Rung:
    """An alarm at work, and when it has rung since its start."""

    def __init__(self) -> None:
        self.alarm = Alarm(lambda: self.at.append(self.now()))
        self.at: list[float] = []
        self._began = trio.current_time()
        self.alarm.start()

    def now(self) -> float:
        return round(trio.current_time() - self._began, 3)

    def moment(self, after_s: float) -> float:
        return self._began + after_s


async def test_it_rings_once_at_the_earliest_moment() -> None:
    rung = Rung()
    for after_s in (5, 2, 9):
        rung.alarm.by(rung.moment(after_s))
    await trio.sleep(20)
    assert rung.at == [2]
    rung.alarm.by(rung.moment(21))
    await trio.sleep(2)
    assert rung.at == [2, 21]


async def test_what_is_put_off_rings_later_only() -> None:
    rung = Rung()
    await trio.sleep(0.5)
    rung.alarm.by(rung.moment(1))
    rung.alarm.put_off(rung.moment(5))
    rung.alarm.put_off(rung.moment(3))  # not sooner
    await trio.sleep(10)
    assert rung.at == [5]
    rung.alarm.by(rung.moment(11))
    rung.alarm.put_off(math.inf)
    await trio.sleep(10)
    assert rung.at == [5]
    rung.alarm.by(rung.moment(21))
    await trio.sleep(2)
    assert rung.at == [5, 21]


async def test_a_closed_alarm_does_not_ring() -> None:
    rung = Rung()
    await trio.sleep(0.5)
    rung.alarm.by(rung.moment(1))
    rung.alarm.close()
    await trio.sleep(5)
    assert rung.at == []

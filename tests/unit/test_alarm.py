"""One timer for many moments."""

from __future__ import annotations

import logging
import math

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from taskd.runtime.alarm import Alarm


@pytest.fixture
def autojump() -> MockClock:
    return MockClock(autojump_threshold=0)


def run(clock: MockClock, moments: list[float], *, start_first: bool) -> list[float]:
    """The times at which an alarm called that was asked for these moments."""
    rung: list[float] = []

    async def main() -> None:
        alarm = Alarm(lambda: rung.append(trio.current_time()))
        if start_first:
            alarm.start()
            await wait_all_tasks_blocked()
        for moment in moments:
            alarm.by(moment)
        if not start_first:
            alarm.start()
        await trio.sleep_until(100)

    trio.run(main, clock=clock)
    return rung


@pytest.mark.parametrize("start_first", [True, False])
def test_the_earliest_moment_counts(autojump: MockClock, start_first: bool) -> None:
    assert run(autojump, [5, 2, 7], start_first=start_first) == [2]


def test_a_moment_that_has_passed_is_now(autojump: MockClock) -> None:
    assert run(autojump, [-1], start_first=True) == [0]


def test_it_can_be_asked_again_from_within(autojump: MockClock) -> None:
    rung: list[float] = []

    async def main() -> None:
        def then() -> None:
            rung.append(trio.current_time())
            alarm.by(trio.current_time() + 3)

        alarm = Alarm(then)
        alarm.start()
        alarm.by(1)
        await trio.sleep_until(8.5)
        alarm.close()
        await trio.sleep_until(20)

    trio.run(main, clock=autojump)
    assert rung == [1, 4, 7]


def test_what_fails_is_logged_and_the_next_moment_counts(
    autojump: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    rung: list[float] = []

    async def main() -> None:
        def then() -> None:
            rung.append(trio.current_time())
            raise ValueError("broken")

        alarm = Alarm(then)
        alarm.start()
        for moment in (1, 2):
            alarm.by(moment)
            await trio.sleep_until(moment + 0.5)

    with caplog.at_level(logging.ERROR):
        trio.run(main, clock=autojump)
    assert rung == [1, 2]
    assert "what was to be done at a moment failed" in caplog.text


def test_what_is_put_off_rings_later_only(autojump: MockClock) -> None:
    rung: list[float] = []

    async def main() -> None:
        alarm = Alarm(lambda: rung.append(trio.current_time()))
        alarm.start()
        await wait_all_tasks_blocked()
        alarm.by(1)
        alarm.put_off(5)
        alarm.put_off(3)  # not sooner
        await trio.sleep_until(10)
        assert rung == [5]
        alarm.by(11)
        alarm.put_off(math.inf)
        await trio.sleep_until(20)
        assert rung == [5]
        alarm.by(21)
        await trio.sleep_until(30)

    trio.run(main, clock=autojump)
    assert rung == [5, 21]


def test_a_closed_alarm_does_not_ring(autojump: MockClock) -> None:
    rung: list[float] = []

    async def main() -> None:
        alarm = Alarm(lambda: rung.append(trio.current_time()))
        alarm.start()
        alarm.by(1)
        alarm.close()
        await trio.sleep_until(5)

    trio.run(main, clock=autojump)
    assert rung == []

"""Pauses that another coroutine may end, by Trio's clock and by the system's."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from taskd.runtime.pause import CoarsePause, FinePause, Pause


@pytest.fixture(params=[CoarsePause, FinePause])
def pause(request: pytest.FixtureRequest) -> Iterator[Pause]:
    made: Pause = request.param()
    yield made
    made.close()


async def took_s(pause: Pause, longest_s: float) -> float:
    began = time.perf_counter()
    with trio.fail_after(10):
        await pause.wait(longest_s)
    return time.perf_counter() - began


async def test_it_takes_as_long_as_was_asked_for_and_no_less(pause: Pause) -> None:
    for longest_s in (0.0, 0.00002, 0.0003, 0.02):
        assert await took_s(pause, longest_s) >= longest_s


async def test_it_can_be_ended(pause: Pause) -> None:
    async with trio.open_nursery() as nursery:

        async def end() -> None:
            await trio.sleep(0.05)
            pause.end()

        for longest_s in (math.inf, 100.0):
            nursery.start_soon(end)
            assert 0.04 <= await took_s(pause, longest_s) < 5


async def test_an_end_before_it_began_is_not_lost_and_counts_once(pause: Pause) -> None:
    pause.end()
    pause.end()
    assert await took_s(pause, math.inf) < 5
    assert await took_s(pause, 0.02) >= 0.02


async def test_a_pause_that_was_cancelled_leaves_no_trace(pause: Pause) -> None:
    with trio.move_on_after(0.005) as scope:
        await pause.wait(0.03)
    assert scope.cancelled_caught
    await trio.sleep(0.05)  # its time would be over by now
    assert await took_s(pause, 0.02) >= 0.02


async def test_one_that_was_cancelled_after_its_end_ends_the_next(pause: Pause) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        pause.end()
        await pause.wait(math.inf)
    assert await took_s(pause, math.inf) < 5


async def test_a_closed_pause_may_be_ended_still(pause: Pause) -> None:
    pause.close()
    pause.end()


async def test_a_fine_pause_is_not_rounded_up_to_milliseconds() -> None:
    pause = FinePause()
    late_s = sorted([await took_s(pause, 0.0002) - 0.0002 for _ in range(51)])
    pause.close()
    # Trio's takes a millisecond more each time.
    assert late_s[0] < 0.0008


async def test_a_fine_pause_gives_its_descriptor_back() -> None:
    before = open_files()
    pause = FinePause()
    await pause.wait(0.0)
    pause.close()
    pause.close()
    assert open_files() <= before


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())

"""The time by which things are deleted: only what two clocks agree on."""

from __future__ import annotations

import pytest
import trio

from taskd.engine.agreed_time import AgreedTime, ClockSteps
from tests.support.clocks import START_MS, SteppableClock

HOLD_S = 600.0
YEAR_MS = 365 * 86_400_000


@pytest.mark.virtual_clock
async def test_a_store_that_wrote_lately_confirms_the_clock() -> None:
    clock = SteppableClock()
    time = AgreedTime(clock, steady_s=HOLD_S)
    assert time.now_ms() is None
    time.confirm(START_MS - 3_600_000)
    assert time.now_ms() == START_MS


@pytest.mark.virtual_clock
async def test_a_store_that_wrote_nothing_for_long_does_not() -> None:
    clock = SteppableClock()
    time = AgreedTime(clock, steady_s=HOLD_S)
    time.confirm(START_MS - YEAR_MS)
    await trio.sleep(HOLD_S - 1)
    assert time.now_ms() is None
    await trio.sleep(1)
    assert time.now_ms() == clock.now_ms()


@pytest.mark.virtual_clock
async def test_a_step_forward_counts_once_the_clock_has_run_evenly() -> None:
    clock = SteppableClock()
    time = AgreedTime(clock, steady_s=HOLD_S)
    time.confirm(None)
    clock.step(YEAR_MS)
    assert time.now_ms() == START_MS
    await trio.sleep(HOLD_S - 1)
    assert time.now_ms() == START_MS + (HOLD_S - 1) * 1000
    await trio.sleep(1)
    assert time.now_ms() == clock.now_ms()


@pytest.mark.virtual_clock
async def test_one_glance_at_a_wrong_clock_counts_for_nothing() -> None:
    clock = SteppableClock()
    time = AgreedTime(clock, steady_s=HOLD_S)
    time.confirm(None)
    for _ in range(50):
        await trio.sleep(5)
        clock.step(YEAR_MS)
        told = time.now_ms()
        clock.step(-YEAR_MS)
        assert told is not None
        assert told <= clock.now_ms()
        assert time.now_ms() == told


@pytest.mark.virtual_clock
async def test_a_clock_that_is_set_back_counts_at_once() -> None:
    clock = SteppableClock()
    time = AgreedTime(clock, steady_s=HOLD_S)
    time.confirm(None)
    clock.step(-YEAR_MS)
    assert time.now_ms() == START_MS - YEAR_MS
    await trio.sleep(3 * HOLD_S)
    assert time.now_ms() == clock.now_ms()


@pytest.mark.virtual_clock
async def test_a_clock_that_drifts_was_not_set() -> None:
    clock = SteppableClock()
    steps = ClockSteps(clock)
    for _ in range(100):
        await trio.sleep(1)
        clock.step(1)
        assert steps.look() == 0.0
    clock.step(-600)
    assert steps.look() == -600.0
    assert steps.look() == 0.0

"""Beats: always ahead, never further than a period, and shared."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from taskd.runtime.ticks import next_tick
from tests.support.virtual import on_virtual_clock

_PERIODS = st.sampled_from([0.1, 0.2, 1.0, 1 / 3, 5.0, 10.0])


@given(st.floats(0, 3_000), _PERIODS)
def test_a_beat_is_ahead_by_a_period_at_most(waited: float, every: float) -> None:
    async def main() -> None:
        await trio.sleep(waited)
        for _ in range(5):
            now = trio.current_time()
            beat = next_tick(every)
            assert 0 < beat - now <= every * 1.001
            await trio.sleep_until(beat)

    on_virtual_clock(main)


@pytest.mark.virtual_clock
async def test_periods_that_are_multiples_meet() -> None:
    await trio.sleep(3.3)
    assert next_tick(5.0) == 5.0
    assert next_tick(1.0) == 4.0
    await trio.sleep(1.0)
    assert next_tick(5.0) == next_tick(1.0) == 5.0

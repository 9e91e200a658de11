"""A node's clock follows the one its cluster goes by, and is never ahead of it."""

from __future__ import annotations

import time

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from taskd.clock import SharedClock, SystemClock
from taskd.engine import clock_sync
from taskd.engine.clock_sync import ClockSync
from taskd.errors import StoreUnavailable

_MS = 1_000_000


class Elsewhere:
    """A clock of another machine, and the way there and back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch | None = None) -> None:
        self.boot_ns = 10_000 * _MS
        self.ahead_ns = 1_700_000_000_000 * _MS
        self.there_ns = self.back_ns = _MS
        self.gone = False
        if monkeypatch is not None:
            self.install(monkeypatch)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(clock_sync, "since_boot_ns", lambda: self.boot_ns)
        monkeypatch.setattr("taskd.clock.since_boot_ns", lambda: self.boot_ns)

    def now_ms(self) -> int:
        return (self.boot_ns + self.ahead_ns) // _MS

    async def ask(self) -> int:
        await trio.lowlevel.checkpoint()
        if self.gone:
            raise StoreUnavailable("gone")
        self.boot_ns += self.there_ns
        told = self.now_ms()
        self.boot_ns += self.back_ns
        return told


def kept(elsewhere: Elsewhere) -> tuple[SharedClock, ClockSync]:
    clock = SharedClock()
    return clock, ClockSync(elsewhere.ask, clock, SystemClock())


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3_000 * _MS),  # the way there
            st.integers(0, 3_000 * _MS),  # and back
            st.integers(0, 60_000 * _MS),  # until the next exchange
            st.floats(-400e-6, 400e-6),  # how much faster the other clock runs meanwhile
        ),
        min_size=1,
        max_size=20,
    )
)
def test_the_clock_is_never_ahead_and_no_further_behind_than_the_best_way(
    exchanges: list[tuple[int, int, int, float]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        elsewhere = Elsewhere(patch)
        clock, keeper = kept(elsewhere)

        async def main() -> None:
            for there, back, pause, drift in exchanges:
                elsewhere.there_ns, elsewhere.back_ns = there, back
                await keeper.exchange()
                assert clock.now_ms() <= elsewhere.now_ms()
                assert elsewhere.now_ms() - clock.now_ms() <= (there + back) // _MS + 2
                elsewhere.boot_ns += pause
                elsewhere.ahead_ns += int(pause * drift)

        trio.run(main)


async def test_a_slow_exchange_does_not_spoil_what_quick_ones_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elsewhere = Elsewhere(monkeypatch)
    clock, keeper = kept(elsewhere)

    await keeper.exchange()
    elsewhere.there_ns = elsewhere.back_ns = 1_500 * _MS
    await keeper.exchange()
    assert elsewhere.now_ms() - clock.now_ms() <= 6


@pytest.mark.parametrize("step_ms", [-3_600_000, -5_000, 5_000, 3_600_000])
async def test_a_step_of_the_others_clock_is_followed(
    monkeypatch: pytest.MonkeyPatch, step_ms: int
) -> None:
    elsewhere = Elsewhere(monkeypatch)
    clock, keeper = kept(elsewhere)

    await keeper.start()
    elsewhere.ahead_ns += step_ms * _MS
    await keeper.exchange()
    assert 0 <= elsewhere.now_ms() - clock.now_ms() <= 3


async def test_a_step_of_this_machines_clock_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Elsewhere()

    clock, keeper = kept(elsewhere)
    elsewhere.ahead_ns = time.time_ns() - elsewhere.boot_ns
    elsewhere.install(monkeypatch)
    await keeper.start()
    before = clock.now_ms()
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert clock.now_ms() == before


@pytest.mark.parametrize(
    ("off_ms", "told"),
    [(1_900, None), (-1_900, None), (3_400, "3.4 s ahead of"), (-9_000, "9.0 s behind")],
)
async def test_a_machine_that_is_more_than_two_seconds_off_is_told(
    monkeypatch: pytest.MonkeyPatch, off_ms: int, told: str | None
) -> None:
    elsewhere = Elsewhere(monkeypatch)

    class Machine:
        def now_ms(self) -> int:
            return elsewhere.now_ms() + off_ms

    elsewhere.there_ns = elsewhere.back_ns = 0
    keeper = ClockSync(elsewhere.ask, SharedClock(), Machine())
    await keeper.start()
    unready = keeper.unready()
    assert (unready is None) if told is None else (unready is not None and told in unready)


async def test_answers_that_are_too_slow_to_tell_the_time_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elsewhere = Elsewhere(monkeypatch)

    class Machine:
        def now_ms(self) -> int:
            return elsewhere.now_ms()

    keeper = ClockSync(elsewhere.ask, SharedClock(), Machine())
    elsewhere.there_ns = elsewhere.back_ns = 600 * _MS
    await keeper.start()
    assert "not known to better than 1.2 s" in (keeper.unready() or "")
    elsewhere.there_ns = elsewhere.back_ns = 10 * _MS
    await keeper.exchange()
    assert keeper.unready() is None


@pytest.mark.virtual_clock
async def test_a_store_that_is_gone_leaves_the_clock_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elsewhere = Elsewhere(monkeypatch)
    clock, keeper = kept(elsewhere)

    await keeper.start()
    elsewhere.gone = True
    with trio.move_on_after(60):
        await keeper.run()
    elsewhere.boot_ns += 1_000 * _MS
    assert elsewhere.now_ms() - clock.now_ms() <= 3

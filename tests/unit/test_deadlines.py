"""Many deadlines in one heap."""

from __future__ import annotations

import logging
import random

import pytest
import trio

from taskd.runtime.deadlines import Deadlines


class Passed:
    """Keeps what has passed, and when."""

    def __init__(self) -> None:
        self.at: list[tuple[str, float]] = []
        self.deadlines = Deadlines(self._pass)
        self._begin = trio.current_time()

    def _pass(self, thing: str) -> None:
        self.at.append((thing, self.now()))

    def now(self) -> float:
        return round(trio.current_time() - self._begin, 6)

    def keep(self, thing: str, within_s: float) -> int:
        now = trio.current_time()
        return self.deadlines.keep(thing, self.deadlines.deadline(now, within_s))


@pytest.mark.virtual_clock
async def test_each_passes_at_its_moment_and_once() -> None:
    passed = Passed()
    for thing, within_s in (("b", 5), ("a", 2), ("c", 5), ("d", 7)):
        passed.keep(thing, within_s)
    await trio.sleep(20)
    assert passed.at == [("a", 2), ("b", 5), ("c", 5), ("d", 7)]
    assert len(passed.deadlines) == 0


@pytest.mark.virtual_clock
async def test_what_was_removed_does_not_pass() -> None:
    passed = Passed()
    first = passed.keep("a", 2)
    passed.keep("b", 3)
    await trio.sleep(1)
    passed.deadlines.remove(first)
    passed.deadlines.remove(first)
    await trio.sleep(4)
    assert passed.at == [("b", 3)]
    # After a moment at which nothing was left, later ones count.
    passed.keep("c", 2)
    await trio.sleep(10)
    assert passed.at == [("b", 3), ("c", 7)]


@pytest.mark.virtual_clock
async def test_the_end_brings_deadlines_forward_and_puts_none_off() -> None:
    passed = Passed()
    passed.keep("a", 2)
    passed.keep("b", 9)
    await trio.sleep(1)
    passed.deadlines.end_by(trio.current_time() + 3)
    passed.deadlines.end_by(trio.current_time() + 30)
    passed.keep("c", 9)
    passed.keep("d", 0.5)
    await trio.sleep(20)
    assert passed.at == [("d", 1.5), ("a", 2), ("b", 4), ("c", 4)]


@pytest.mark.virtual_clock
async def test_after_the_end_a_deadline_has_passed_already() -> None:
    passed = Passed()
    await trio.sleep(1)
    passed.deadlines.end_by(trio.current_time())
    await trio.sleep(1)
    now = trio.current_time()
    assert passed.deadlines.deadline(now, 5) < now


@pytest.mark.virtual_clock
async def test_what_comes_and_goes_leaves_nothing_behind() -> None:
    passed = Passed()
    passed.keep("stays", 1_000)
    for number in range(10_000):
        passed.deadlines.remove(passed.keep(str(number), 5 + number % 2 * 5))
    assert len(passed.deadlines) == 1
    assert len(passed.deadlines._heap) < 100


@pytest.mark.virtual_clock
async def test_one_that_fails_does_not_keep_the_others(caplog: pytest.LogCaptureFixture) -> None:
    at: list[tuple[str, float]] = []

    def fail(thing: str) -> None:
        at.append((thing, trio.current_time() - begin))
        if thing == "a":
            raise ValueError(thing)

    deadlines = Deadlines(fail)
    begin = trio.current_time()
    for thing in ("a", "b"):
        deadlines.keep(thing, begin + 2)
    with caplog.at_level(logging.ERROR):
        await trio.sleep(5)
    assert at == [("a", 2), ("b", 2)]
    assert "ValueError" in caplog.text


@pytest.mark.virtual_clock
async def test_of_any_deadlines_those_pass_that_are_still_kept() -> None:
    rng = random.Random(5)
    passed = Passed()
    expected: list[tuple[float, str]] = []
    kept: dict[str, tuple[int, float]] = {}
    for number in range(2_000):
        within_s = rng.choice([0.5, 1, 2, 5])
        thing = str(number)
        kept[thing] = (passed.keep(thing, within_s), passed.now() + within_s)
        if rng.random() < 0.9:
            thing = rng.choice(list(kept))
            taken, _ = kept.pop(thing)
            passed.deadlines.remove(taken)
        await trio.sleep(0.001)
        for thing, (_, at) in list(kept.items()):
            if at <= passed.now():
                expected.append((round(at, 6), thing))
                del kept[thing]
    expected += [(round(at, 6), thing) for thing, (_, at) in kept.items()]
    await trio.sleep(10)
    assert sorted((at, thing) for thing, at in passed.at) == sorted(expected)

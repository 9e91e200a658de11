"""Who may begin one more attempt, however many hang."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskd.engine.slots import FORGET_S, PROMPT_S, Shortage, Slot, Slots, Standing


class Bench:
    """Slots with a clock, applications each of an origin of their own, and what runs."""

    def __init__(self, size: int = 1_000, per_origin: int = 125) -> None:
        # How many a receiver bears is another test's.
        self.slots = Slots(size, per_origin, start_at=1_000_000)
        self.now = 100.0
        self.running: dict[int, list[Slot]] = {}

    def begin(self, app_id: int, wanted: int = 1, *, origin: str | None = None) -> int:
        """Begin as many attempts as the app may, at most so many."""
        origin = f"http://{app_id}" if origin is None else origin
        begun = 0
        while begun < wanted and self.slots.take(app_id, origin, self.now):
            place = self.slots.use(app_id, origin)
            place.begin(self.now)
            self.running.setdefault(app_id, []).append(place)
            begun += 1
        return begun

    def end(self, app_id: int, *, answered: bool | None = True) -> None:
        place = self.running[app_id].pop(0)
        place.end(self.now, answered=answered)
        place.leave()

    def answers(self, app_id: int, *, after_s: float = 0.01, times: int = 1) -> None:
        """Let an app be known to answer after so long."""
        for _ in range(times):
            assert self.begin(app_id)
            self.now += after_s
            self.end(app_id)

    def woken(self) -> list[int]:
        return self.slots.woken(self.now)


def test_a_receiver_that_answers_at_once_may_use_most_of_the_room() -> None:
    bench = Bench(size=1_000, per_origin=1_000)
    bench.answers(1)
    assert bench.begin(1, 1_000) == 800


@pytest.mark.parametrize("hung", [1, 4, 40, 1_000, 10_000])
def test_however_many_hang_one_that_answers_at_once_finds_places(hung: int) -> None:
    bench = Bench()
    bench.answers(1)
    for app_id in range(2, 2 + hung):
        bench.begin(app_id, 1_000)
    for _ in range(20):  # they go on trying
        bench.now += 1.0
        for app_id in bench.woken():
            bench.begin(app_id, 1_000)
        bench.slots.tend(bench.now)
    assert bench.slots.free >= 125
    for _ in range(100):
        bench.answers(1)
    assert bench.begin(1, 1_000) >= 80


@pytest.mark.parametrize("hung", [4, 40, 400])
def test_however_many_hang_one_that_nobody_knows_finds_a_place(hung: int) -> None:
    bench = Bench()
    for app_id in range(2, 2 + hung):
        bench.begin(app_id, 1_000)
        bench.now += 0.001
    for _ in range(20):
        bench.now += 1.0
        for app_id in bench.woken():
            bench.begin(app_id, 1_000)
        bench.slots.tend(bench.now)
    bench.answers(1, times=10)


def test_those_that_do_not_answer_leave_half_of_the_room() -> None:
    bench = Bench()
    for app_id in range(40):
        bench.begin(app_id, 1_000)
    bench.now += 2 * PROMPT_S
    for _ in range(1_000):
        for app_id in bench.slots.woken(bench.now) or range(40):
            bench.begin(app_id)
    assert bench.slots.free >= 500
    held = [bench.slots.held_at(f"http://{app_id}") for app_id in range(40)]
    assert max(held) - min(held) <= 16


def test_a_slow_receiver_goes_before_one_that_does_not_answer() -> None:
    bench = Bench()
    bench.answers(1, after_s=30.0)
    hung = range(2, 60)
    for app_id in hung:
        bench.begin(app_id, 1_000)
    bench.now += 2.0
    while any(bench.begin(app_id) for app_id in hung):
        pass
    assert bench.begin(1, 1_000) >= 50


def test_a_receiver_that_begins_to_hang_is_known_by_it_within_a_second() -> None:
    bench = Bench()
    bench.answers(1, times=50)
    assert bench.begin(1, 10) == 10
    for app_id in range(2, 300):
        bench.begin(app_id, 1_000)
    bench.now += 1.1
    assert bench.slots.free < 500
    assert bench.begin(1) == 0
    assert bench.slots.shortage() is not None


def test_a_receiver_that_answers_again_is_trusted_again() -> None:
    bench = Bench()
    hung = range(2, 200)
    for app_id in (1, *hung):
        bench.begin(app_id)
    bench.now += 60
    bench.end(1, answered=False)
    while sum(bench.begin(app_id) for app_id in hung):
        pass
    assert bench.begin(1) == 0, "it is as silent as they are"
    bench.end(2, answered=None)
    while bench.slots.free <= 505:
        bench.end(next(app_id for app_id in hung if bench.running[app_id]), answered=None)
    assert bench.begin(1) == 1
    bench.now += 0.01
    bench.end(1)
    assert bench.begin(1, 200) == 125


def test_one_that_waits_for_its_own_origin_is_woken_by_its_next_end_and_nobody_else() -> None:
    bench = Bench(per_origin=2)
    for app_id in (1, 2):
        bench.answers(app_id)
        assert bench.begin(app_id, 5) == 2
    assert bench.woken() == []
    bench.end(1)
    assert bench.woken() == [1]
    assert bench.woken() == []


def test_apps_of_one_origin_are_woken_in_turns_as_many_as_there_are_places() -> None:
    bench = Bench(per_origin=2)
    running = [app_id for app_id in range(1, 8) if bench.begin(app_id, origin="one")]
    assert running == [1, 2]
    order = []
    for _ in range(14):
        ended = running.pop(0)
        bench.end(ended)
        (woken,) = bench.woken()
        order.append(woken)
        assert bench.begin(woken, origin="one") == 1
        assert bench.begin(ended, origin="one") == 0
        running.append(woken)
    assert order == [3, 4, 5, 6, 7, 1, 2, 3, 4, 5, 6, 7, 1, 2]


def test_whoever_does_not_take_what_he_was_woken_for_leaves_it_to_the_next() -> None:
    bench = Bench(per_origin=1)
    for app_id in (1, 2, 3):
        bench.begin(app_id, origin="one")
    bench.end(1)
    assert bench.woken() == [2]
    assert bench.woken() == [3], "2 had nothing to begin any more"
    assert bench.begin(3, origin="one") == 1


def test_those_that_wait_for_the_room_are_woken_as_it_frees_and_not_all_of_them() -> None:
    bench = Bench(size=100)
    for app_id in range(1_000):
        bench.begin(app_id)
    assert bench.slots.statistics().short > 900
    bench.end(0)
    assert len(bench.woken()) == 1


def test_a_wait_ends_whatever_was_missed() -> None:
    bench = Bench(per_origin=1)
    for app_id in range(200):
        bench.begin(app_id, origin="one")
    bench.end(0)
    (missed,) = bench.woken()
    del missed  # and nobody is told
    bench.slots._asked.clear()
    woken: list[int] = []
    for _ in range(10):
        bench.slots.tend(bench.now)
        woken += bench.woken()
    assert woken


def test_a_create_does_not_go_before_those_that_wait() -> None:
    bench = Bench(per_origin=2)
    bench.answers(1)
    bench.answers(2)
    assert bench.slots.take_before_others(1, "one", bench.now, 5) == 2
    bench.slots.give_back("one", 2)
    bench.begin(1, 2, origin="one")
    assert bench.begin(2, origin="one") == 0
    bench.end(1)
    assert bench.slots.take_before_others(1, "one", bench.now, 1) == 0
    assert bench.woken() == [2]
    assert bench.begin(2, origin="one")
    bench.end(1)
    assert bench.woken() == []
    assert bench.slots.take_before_others(1, "one", bench.now, 1) == 1


def test_the_bounds_may_change_while_attempts_run() -> None:
    bench = Bench(size=100, per_origin=10)
    for app_id in (1, 2):
        bench.answers(app_id)
        assert bench.begin(app_id, 20) == 10
    bench.slots.limit(30, 5)
    assert bench.slots.free == 10
    bench.slots.limit(10, 5)
    assert bench.slots.free == 0
    assert bench.woken() == []
    bench.end(1)
    assert bench.woken() == []
    bench.slots.limit(100, 20)
    assert sorted(bench.woken()) == [1, 2]
    assert bench.begin(1, 20) == 11


def test_a_shortage_names_the_largest_holders_first_and_a_bounded_number() -> None:
    bench = Bench(size=100, per_origin=30)
    for app_id in range(1, 9):
        bench.answers(app_id)
    for app_id in range(1, 9):
        bench.begin(app_id, 30 - app_id)
    assert bench.begin(9) == 0
    shortage = bench.slots.shortage()
    assert shortage is not None
    held = [count for _, count in shortage.holders]
    assert held == sorted(held, reverse=True)
    assert shortage.holders[0] == ("http://1", 29)
    assert len(shortage.holders) == 5
    assert "http://1 (29), http://2" in shortage.told(named=True)
    assert "http" not in shortage.told(named=False)


def test_nothing_is_short_where_an_origin_waits_for_itself_alone() -> None:
    bench = Bench(per_origin=2)
    bench.answers(1)
    bench.begin(1, 5)
    assert bench.slots.shortage() is None


def test_what_has_not_been_seen_for_long_is_forgotten_and_what_runs_is_not() -> None:
    bench = Bench()
    for app_id in range(100):
        bench.answers(app_id)
    bench.begin(100)
    assert bench.slots.statistics().apps == 101
    bench.now += FORGET_S + 1
    bench.slots.tend(bench.now)
    assert bench.slots.statistics().apps == 1
    assert bench.slots.statistics().origins == 1
    bench.end(100)
    bench.now += FORGET_S + 1
    bench.slots.tend(bench.now)
    assert (bench.slots.statistics().apps, bench.slots.statistics().origins) == (0, 0)


def test_what_is_known_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskd.engine.slots._REMEMBERED", 50)
    bench = Bench()
    for app_id in range(500):
        bench.answers(app_id)
    bench.slots.tend(bench.now)
    assert bench.slots.statistics().apps == 50
    assert bench.slots.statistics().origins == 50


@pytest.mark.parametrize(
    ("took_s", "age_s", "standing"),
    [
        ([], 0.0, Standing.NEW),
        ([], 1.5, Standing.SILENT),
        ([0.1], 0.5, Standing.PROMPT),
        ([0.1], 1.5, Standing.SILENT),
        ([30.0], 0.5, Standing.SLOW),
        ([30.0], 45.0, Standing.SLOW),
        ([30.0], 65.0, Standing.SILENT),
        ([30.0] + [0.1] * 40, 0.5, Standing.PROMPT),
    ],
)
def test_the_standing_of_an_app(took_s: list[float], age_s: float, standing: Standing) -> None:
    bench = Bench()
    for took in took_s:
        bench.answers(1, after_s=took)
    bench.begin(1)
    bench.now += age_s
    assert bench.slots._apps[1].standing(bench.now) is standing


def test_others_of_an_app_that_are_answered_speak_for_it() -> None:
    bench = Bench()
    bench.begin(1, 2)
    bench.now += 1.5
    assert bench.slots._apps[1].standing(bench.now) is Standing.SILENT
    place = bench.running[1].pop()
    place.end(bench.now, answered=True)
    place.leave()
    assert bench.slots._apps[1].standing(bench.now) is Standing.SLOW


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.sampled_from([1, 2, 5, 16, 200]))
def test_whatever_happens_the_counts_hold_and_nobody_is_forgotten(seed: int, size: int) -> None:
    """Random lives of apps on a few origins; at the end all that waits gets its turn."""
    rng = random.Random(seed)
    bench = Bench(size=size, per_origin=max(size // 3, 1))
    backlog = {app_id: rng.randrange(40) for app_id in range(30)}
    parked: set[int] = set()

    def run(app_id: int) -> None:
        while backlog[app_id]:
            if not bench.begin(app_id, origin=f"o{app_id % 7}"):
                parked.add(app_id)
                return
            backlog[app_id] -= 1

    def turn() -> None:
        for app_id in bench.woken():
            parked.discard(app_id)
            run(app_id)

    for app_id in backlog:
        run(app_id)
    for step in range(20_000):
        running = [app_id for app_id, places in bench.running.items() if places]
        if not running and not any(backlog.values()):
            break
        bench.now += rng.choice([0.0, 0.01, 0.5, 2.0])
        if running:
            bench.end(rng.choice(running), answered=rng.choice([True, True, False, None]))
        if step % 5 == 0:
            bench.slots.tend(bench.now)
        turn()
        held = sum(map(len, bench.running.values()))
        statistics = bench.slots.statistics()
        assert statistics.held == held <= size
        assert statistics.reserved == 0
        assert statistics.waiting <= len(parked)
    assert not any(backlog.values())
    assert bench.slots.free == size


def test_who_waits_goes_on_at_the_origin_that_it_has_moved_to() -> None:
    bench = Bench(per_origin=1)
    assert bench.begin(1, origin="http://full")
    assert bench.begin(2, origin="http://full too")
    assert not bench.begin(3, origin="http://full")
    assert not bench.begin(3, origin="http://full too")
    assert bench.slots.statistics().waiting == 1
    bench.end(1)
    assert bench.woken() == []
    bench.end(2)
    assert bench.woken() == [3]


def test_a_shortage_of_unreadable_urls_is_told() -> None:
    shortage = Shortage(size=2, held=2, waiting=1, holders=(("", 2),), others=0)
    assert "unreadable URLs (2)" in shortage.told(named=True)

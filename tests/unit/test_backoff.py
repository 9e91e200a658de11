"""Pauses that become longer, up to a longest one, and begin again after a success."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskd.buses.redis import listener
from taskd.cli import follow
from taskd.cli.bulk import sender
from taskd.daemon.supervisor import supervisor
from taskd.engine import dispatcher
from taskd.queues.nsq import link
from taskd.runtime.backoff import Backoff


def take(backoff: Backoff, count: int) -> list[float]:
    return [backoff.next_s() for _ in range(count)]


@given(st.floats(0.001, 10), st.floats(0.001, 1000), st.integers(1, 40))
def test_each_pause_doubles_the_one_before_up_to_the_longest(
    first_s: float, longest_s: float, count: int
) -> None:
    longest_s = max(first_s, longest_s)
    pauses_s = take(Backoff(first_s, longest_s), count)
    assert pauses_s == [min(first_s * 2**n, longest_s) for n in range(count)]


@pytest.mark.parametrize(
    ("backoff", "pauses_s"),
    [
        (
            Backoff(dispatcher._FIRST_PAUSE_S, dispatcher._LONGEST_PAUSE_S),
            [0.25, 0.5, 1.0, 2.0, 2.0],
        ),
        (Backoff(listener._FIRST_PAUSE_S, listener._LONGEST_PAUSE_S), [0.1, 0.2, 0.4, 0.8, 0.8]),
        (
            Backoff(link._FIRST_PAUSE_S, link._LONGEST_PAUSE_S),
            [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0],
        ),
        (
            Backoff(sender.FIRST_PAUSE_S, sender.LONGEST_PAUSE_S),
            [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0],
        ),
        (
            Backoff(follow.FIRST_PAUSE_S, follow.LONGEST_PAUSE_S, growth=follow._GROWTH),
            [min(0.05 * 1.4**n, 1.0) for n in range(12)],
        ),
        (
            Backoff.through(supervisor._PAUSES_S),
            [0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 10.0],
        ),
    ],
)
def test_each_loop_has_its_pauses(backoff: Backoff, pauses_s: list[float]) -> None:
    assert take(backoff, len(pauses_s)) == pytest.approx(pauses_s)


def test_after_a_reset_it_begins_with_the_first_pause() -> None:
    backoff = Backoff(1, 8)
    assert backoff.fresh
    assert take(backoff, 3) == [1, 2, 4]
    assert not backoff.fresh
    backoff.reset()
    assert backoff.fresh
    assert take(backoff, 2) == [1, 2]


def test_one_pause_that_never_grows() -> None:
    backoff = Backoff(3, 3)
    assert backoff.next_s() == 3
    assert not backoff.fresh


def test_jitter_only_shortens_a_pause_and_does_not_add_up() -> None:
    asked: list[tuple[float, float]] = []

    def least(low: float, high: float) -> float:
        asked.append((low, high))
        return low

    backoff = Backoff(1, 4, jitter=0.25, spread=least)
    assert take(backoff, 4) == [0.75, 1.5, 3.0, 3.0]
    assert set(asked) == {(0.75, 1)}


@given(st.floats(0.01, 1))
def test_by_default_jitter_is_random(jitter: float) -> None:
    backoff = Backoff(1, 1, jitter=jitter)
    for pause_s in itertools.islice(iter(backoff.next_s, None), 20):
        assert 1 - jitter <= pause_s <= 1

"""How many attempts at once a receiver is sent, and what becomes of bursts at small ones."""

from __future__ import annotations

import itertools
import random

import pytest

from taskd.domain.model import Outcome, Phase
from taskd.engine.pace import IDLE_S, PROBE_S, START, Pace, Sign, sign_of
from tests.support.paced import PER_ORIGIN, Answer, Receiver, Workers, burst

MOST_EXECUTIONS = 1.2
"""Of each task, at a receiver that a burst is too much for."""


@pytest.mark.parametrize(
    ("workers", "each_s", "timeout_s", "most"),
    [
        (5, 0.5, 5.0, 1.0),
        (5, 0.5, 60.0, 1.0),
        (20, 0.5, 5.0, 1.0),
        (5, 0.1, 1.0, 1.0),
        (3, 1.0, 5.0, MOST_EXECUTIONS),
        (2, 0.5, 5.0, 1.0),
        (1, 0.5, 5.0, MOST_EXECUTIONS),
        (2, 3.0, 10.0, MOST_EXECUTIONS),
        (2, 0.05, 0.3, MOST_EXECUTIONS),
        # Slower than a quarter of its timeout even where it has but one.
        (1, 2.0, 5.0, 1.2),
        (1, 4.0, 5.0, 1.25),
        (1, 30.0, 60.0, 1.35),
    ],
)
def test_a_burst_at_a_few_workers_succeeds(
    workers: int, each_s: float, timeout_s: float, most: float
) -> None:
    told = burst(Workers(workers, each_s), 200, timeout_s=timeout_s)
    assert told.succeeded == 200
    assert told.executions <= 200 * most
    # And in not much more time than they need.
    assert told.ended_at <= 200 * each_s / workers * 1.4 + 3 * timeout_s


@pytest.mark.parametrize("at_first", [16, 24])
@pytest.mark.parametrize(("each_s", "timeout_s"), [(4.0, 5.0), (10.0, 30.0), (30.0, 60.0)])
def test_several_nodes_do_not_keep_a_slow_receiver_busy_with_what_timed_out(
    at_first: int, each_s: float, timeout_s: float
) -> None:
    told = burst(Workers(1, each_s), 200, timeout_s=timeout_s, pace=Pace(at_first))
    assert told.succeeded == 200
    assert told.executions <= 200 * 1.5


def test_a_long_burst_is_delivered_as_fast_as_its_receiver_works() -> None:
    told = burst(Workers(5, 0.5), 2_000)
    assert (told.succeeded, told.executions) == (2_000, 2_000)
    assert told.ended_at <= 200 * 1.01


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("bears", "each_s"), [(20, 0.1), (5, 0.5), (2, 0.5)])
def test_a_receiver_that_says_it_is_too_much_is_sent_less(
    status: int, bears: int, each_s: float
) -> None:
    def answer(_now: float, inside: int) -> Answer:
        return Answer(each_s) if inside < bears else Answer(0.002, status)

    told = burst(Receiver(answer), 200)
    assert told.succeeded == 200
    assert told.executions <= 200 * 1.25


def test_a_receiver_with_a_limit_of_requests_a_second_gets_all_of_them() -> None:
    tokens = [10.0, 0.0]

    def answer(now: float, _inside: int) -> Answer:
        tokens[:] = min(10.0, tokens[0] + (now - tokens[1]) * 10), now
        if tokens[0] < 1:
            return Answer(0.005, 429)
        tokens[0] -= 1
        return Answer(0.005)

    told = burst(Receiver(answer), 200)
    assert told.succeeded == 200
    assert told.executions <= 200 * 1.3


@pytest.mark.parametrize("outage", [Answer(0.001, None), Answer(1e9)])
def test_after_an_outage_all_is_delivered_and_soon(outage: Answer) -> None:
    def answer(now: float, _inside: int) -> Answer:
        return outage if now < 20 else Answer(0.005)

    told = burst(Receiver(answer), 200)
    assert told.succeeded == 200
    assert told.executions <= 200 * 1.7, "most have retries left"
    assert told.last_success_at <= 20 + PROBE_S + 2


def test_a_receiver_that_was_restarted_is_soon_sent_as_much_as_before() -> None:
    def answer(now: float, _inside: int) -> Answer:
        return Answer(0.001, None) if 30 < now < 33 else Answer(2.0)

    told = burst(Receiver(answer), 8_000)
    assert told.succeeded == 8_000
    assert told.executions <= 8_000 * 1.05
    assert told.ended_at <= 8_000 / PER_ORIGIN * 2 * 1.3


@pytest.mark.parametrize(("each_s", "timeout_s"), [(0.005, 5), (2, 5), (4.5, 5), (10, 30)])
def test_a_receiver_that_is_well_gets_as_much_as_it_may(each_s: float, timeout_s: float) -> None:
    told = burst(Receiver(lambda _now, _inside: Answer(each_s)), 2_000, timeout_s=timeout_s)
    assert (told.succeeded, told.executions) == (2_000, 2_000)
    assert told.most_at_once == PER_ORIGIN
    rounds = sum(1 for at_once in itertools.accumulate([8, 16, 32, 64, 125]) if at_once < 2_000)
    assert told.ended_at <= (2_000 / PER_ORIGIN + rounds) * each_s * 1.05


@pytest.mark.parametrize("quick", [0.5, 0.05])
def test_tasks_that_take_long_by_themselves_slow_nobody(quick: float) -> None:
    rng = random.Random(7)

    def answer(_now: float, _inside: int) -> Answer:
        return Answer(0.1 if rng.random() < quick else 10.0)

    told = burst(Receiver(answer), 2_000, timeout_s=30)
    assert (told.succeeded, told.executions) == (2_000, 2_000)
    assert told.most_at_once == PER_ORIGIN
    assert told.ended_at <= (2_000 / PER_ORIGIN * (1 - quick) * 10 + 40) * 1.7


@pytest.mark.parametrize("pause_s", [0.1, 5.0, 100.0])
def test_work_that_turns_long_is_taken_for_what_it_is(pause_s: float) -> None:
    pace = Pace()
    first = burst(Receiver(lambda _now, _inside: Answer(0.005)), 2_000, pace=pace)
    begins_at = first.ended_at + pause_s
    told = burst(
        Receiver(lambda _now, _inside: Answer(10.0)), 2_000, pace=pace, at=begins_at, timeout_s=30
    )
    assert (told.succeeded, told.executions) == (2_000, 2_000)
    assert told.ended_at - begins_at <= 300


def test_a_burst_of_slow_tasks_after_quick_ones_long_ago_begins_as_at_an_unknown_receiver() -> None:
    pace = Pace()
    first = burst(Receiver(lambda _now, _inside: Answer(0.005)), 2_000, pace=pace)
    assert pace.at_once >= PER_ORIGIN
    told = burst(Workers(5, 0.5), 200, pace=pace, at=first.ended_at + 10 * IDLE_S)
    assert (told.succeeded, told.executions) == (200, 200)


def test_a_burst_of_slow_tasks_right_after_quick_ones_succeeds_as_well() -> None:
    pace = Pace()
    first = burst(Receiver(lambda _now, _inside: Answer(0.005)), 2_000, pace=pace)
    told = burst(Workers(5, 0.5), 200, pace=pace, at=first.ended_at + 0.1)
    assert told.succeeded == 200
    assert told.executions <= 200 * 1.7


def test_a_receiver_that_never_answers_is_still_tried() -> None:
    told = burst(Receiver(lambda _now, _inside: Answer(1e9)), 20, timeout_s=5)
    assert told.failed == 20
    gaps = [late - early for early, late in itertools.pairwise(told.begins)]
    assert max(gaps) <= PROBE_S + 1
    many = burst(Receiver(lambda _now, _inside: Answer(1e9)), 200, timeout_s=5)
    assert many.failed == 200
    assert many.ended_at <= 600


def test_a_window_that_is_half_in_use_stays() -> None:
    pace = Pace()
    first = burst(Receiver(lambda _now, _inside: Answer(0.005)), 2_000, pace=pace)
    window = pace.at_once
    for second in range(100):
        pace.room(window // 2 + 1, first.ended_at + second)
    assert pace.at_once == window
    pace.room(0, first.ended_at + 100 + 3 * IDLE_S)
    assert pace.at_once < window / 2


def test_a_receiver_that_refuses_is_asked_one_by_one_and_often() -> None:
    told = burst(Receiver(lambda _now, _inside: Answer(0.001, None)), 200)
    assert (told.failed, told.executions) == (200, 800)
    assert told.ended_at <= 200


def test_an_attempt_that_others_have_overtaken_says_nothing_of_the_receiver() -> None:
    pace = Pace()
    began = 0.0, pace.answers
    for number in range(1, 50):
        answered = number * 0.1, pace.answers
        pace.end(*answered, number * 0.1 + 0.01, Sign.WELL, 5.0)
    assert not pace.end(*began, 5.0, Sign.LEFT, 5.0)
    assert pace.at_once == START


def test_where_answers_take_long_a_timeout_counts_though_others_have_overtaken_it() -> None:
    pace = Pace()
    began = 0.0, pace.answers
    answered = 0.1, pace.answers
    pace.end(*answered, 4.0, Sign.WELL, 5.0)
    assert pace.end(*began, 5.0, Sign.LEFT, 5.0)
    assert pace.at_once < START


def test_one_round_makes_it_smaller_once() -> None:
    pace = Pace()
    begun = [(0.0, pace.answers) for _ in range(START)]
    for one in begun:
        pace.end(*one, 1.0, Sign.OVERLOADED, 5.0)
    assert pace.at_once == START // 2
    pace.end(1.0, pace.answers, 1.1, Sign.OVERLOADED, 5.0)
    assert pace.at_once == START // 4


def test_it_grows_only_while_it_is_what_keeps_others_waiting() -> None:
    pace = Pace()
    for number in range(1_000):
        pace.end(float(number), pace.answers, number + 0.01, Sign.WELL, 5.0)
    assert pace.at_once == START


def test_what_fails_alone_is_no_crowd_and_what_fails_beside_others_is() -> None:
    pace = Pace()
    assert pace.fail(0.0) == 0.0
    assert pace.fail(20.0) < 0.01
    crowds = [pace.fail(20.0) for _ in range(20)]
    assert crowds == sorted(crowds)
    assert crowds[-1] == 1.0


@pytest.mark.parametrize(
    ("outcome", "status", "phase", "sign"),
    [
        (Outcome.SUCCEEDED, 200, Phase.READING, Sign.WELL),
        (Outcome.REJECTED, 200, Phase.READING, Sign.WELL),
        (Outcome.REJECTED, 302, Phase.READING, Sign.WELL),
        (Outcome.REJECTED, 404, Phase.READING, Sign.WELL),
        (Outcome.REJECTED, 410, Phase.READING, Sign.WELL),
        (Outcome.REJECTED, 500, Phase.READING, Sign.NOTHING),
        (Outcome.REJECTED, 429, Phase.READING, Sign.THROTTLED),
        (Outcome.REJECTED, 502, Phase.READING, Sign.OVERLOADED),
        (Outcome.REJECTED, 503, Phase.READING, Sign.OVERLOADED),
        (Outcome.REJECTED, 504, Phase.READING, Sign.OVERLOADED),
        (Outcome.TIMED_OUT, None, Phase.RESOLVING, Sign.NOTHING),
        (Outcome.TIMED_OUT, None, Phase.CONNECTING, Sign.LATE),
        (Outcome.TIMED_OUT, None, Phase.TLS, Sign.LATE),
        (Outcome.TIMED_OUT, None, Phase.SENDING, Sign.LEFT),
        (Outcome.TIMED_OUT, None, Phase.AWAITING_RESPONSE, Sign.LEFT),
        (Outcome.TIMED_OUT, 200, Phase.READING, Sign.LATE),
        (Outcome.UNREACHABLE, None, None, Sign.NOTHING),
        (Outcome.UNREACHABLE, None, Phase.RESOLVING, Sign.NOTHING),
        (Outcome.UNREACHABLE, None, Phase.CONNECTING, Sign.BROKEN),
        (Outcome.UNREACHABLE, None, Phase.TLS, Sign.BROKEN),
        (Outcome.UNREACHABLE, None, Phase.AWAITING_RESPONSE, Sign.BROKEN),
        (Outcome.UNREACHABLE, None, Phase.READING, Sign.NOTHING),
        (Outcome.DENIED, None, Phase.RESOLVING, Sign.NOTHING),
    ],
)
def test_what_the_end_of_an_attempt_says(
    outcome: Outcome, status: int | None, phase: Phase | None, sign: Sign
) -> None:
    assert sign_of(outcome, status, phase) is sign

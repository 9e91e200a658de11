from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskd.domain.model import Outcome, TaskState
from taskd.domain.retry import (
    MAX_ABANDONED_ALONE,
    MAX_DELAY_S,
    MAX_WAIT_MS,
    SPREAD_AT_LEAST_MS,
    SPREAD_PART,
    Decision,
    after_abandoned,
    after_attempt,
    retry_delay_s,
)

FAILURES = [Outcome.REJECTED, Outcome.TIMED_OUT, Outcome.UNREACHABLE, Outcome.DENIED]
steps = st.integers(0, 3600)
totals = st.integers(0, 10)


def decide(
    outcome: Outcome = Outcome.REJECTED,
    *,
    status: int | None = None,
    retry_after_s: float | None = None,
    failures: int = 0,
    step: int = 5,
    retry_total: int = 3,
    crowd: float = 0.0,
    chance: float = 1.0,
) -> Decision:
    return after_attempt(
        outcome=outcome,
        http_status=status,
        retry_after_s=retry_after_s,
        failures=failures,
        step=step,
        retry_total=retry_total,
        crowd=crowd,
        chance=lambda: chance,
    )


def test_the_wait_grows_by_step() -> None:
    assert [retry_delay_s(5, n) for n in (1, 2, 3)] == [5, 10, 15]
    assert [retry_delay_s(1000, n) for n in (3, 4, 10)] == [3000, 3600, 3600]
    assert retry_delay_s(0, 10) == 0


@pytest.mark.parametrize("outcome", FAILURES)
def test_the_defaults_retry_after_5_10_and_15_seconds_and_then_fail(outcome: Outcome) -> None:
    decisions = [decide(outcome, failures=failures) for failures in range(4)]
    assert [d.delay_ms for d in decisions] == [5000, 10_000, 15_000, None]
    assert [d.state for d in decisions] == [TaskState.RETRYING] * 3 + [TaskState.FAILED]
    assert [d.failures for d in decisions] == [1, 2, 3, 4]


def test_without_retries_the_first_failure_is_the_end() -> None:
    assert decide(retry_total=0) == Decision(TaskState.FAILED, 1, None)


@given(st.integers(0, 20), totals)
def test_success_is_the_end_whatever_failed_before(failures: int, retry_total: int) -> None:
    decision = decide(Outcome.SUCCEEDED, status=200, failures=failures, retry_total=retry_total)
    assert decision == Decision(TaskState.SUCCEEDED, failures, None)


def test_gone_is_the_end_at_once() -> None:
    assert decide(status=410, retry_total=10) == Decision(TaskState.FAILED, 1, None)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("retry_after_s", "delay_ms"),
    [(None, 5000), (0, 5000), (4.9, 5000), (7.25, 7250), (3600, 3_600_000), (1e9, 3_600_000)],
)
def test_a_longer_retry_after_wins_when_throttled(
    status: int, retry_after_s: float | None, delay_ms: int
) -> None:
    assert decide(status=status, retry_after_s=retry_after_s).delay_ms == delay_ms


@pytest.mark.parametrize("status", [None, 200, 302, 400, 500, 502])
def test_retry_after_counts_on_no_other_status(status: int | None) -> None:
    assert decide(status=status, retry_after_s=60).delay_ms == 5000


@given(
    outcome=st.sampled_from(FAILURES),
    status=st.none() | st.integers(100, 599),
    retry_after_s=st.none() | st.floats(0, 1e9),
    step=steps,
    retry_total=totals,
)
def test_a_task_that_always_fails_ends_after_its_retries_and_waits_by_the_rule(
    outcome: Outcome,
    status: int | None,
    retry_after_s: float | None,
    step: int,
    retry_total: int,
) -> None:
    failures = 0
    for attempt in range(1, retry_total + 2):
        decision = decide(
            outcome,
            status=status,
            retry_after_s=retry_after_s,
            failures=failures,
            step=step,
            retry_total=retry_total,
        )
        failures = decision.failures
        assert failures == attempt
        if decision.state is TaskState.FAILED:
            assert decision.delay_ms is None
            assert status == 410 or attempt == retry_total + 1
            return
        assert decision.state is TaskState.RETRYING
        assert decision.delay_ms is not None
        assert retry_delay_s(step, attempt) * 1000 <= decision.delay_ms <= MAX_DELAY_S * 1000
    pytest.fail("the task never ended")


@given(
    step=steps,
    failures=st.integers(0, 9),
    retry_after_s=st.none() | st.floats(0, 1e9),
    crowd=st.floats(0, 1),
    chance=st.floats(0, 1),
)
def test_those_that_would_come_at_once_are_spread_and_none_comes_earlier(
    step: int,
    failures: int,
    retry_after_s: float | None,
    crowd: float,
    chance: float,
) -> None:
    def delay(crowd: float, chance: float) -> int:
        decision = decide(
            status=503,
            retry_after_s=retry_after_s,
            failures=failures,
            step=step,
            retry_total=10,
            crowd=crowd,
            chance=chance,
        )
        assert decision.delay_ms is not None
        return decision.delay_ms

    alone = delay(0.0, chance)
    assert alone == delay(crowd, 0.0) >= retry_delay_s(step, failures + 1) * 1000
    most = max(alone * SPREAD_PART, SPREAD_AT_LEAST_MS)
    assert alone <= delay(crowd, chance) <= alone + most * crowd + 1
    assert delay(1.0, 1.0) >= alone + most - 1
    assert delay(1.0, 1.0) <= MAX_WAIT_MS


@given(step=steps, retry_after_s=st.floats(0, 1e9), status=st.sampled_from([429, 503]))
def test_retry_after_never_makes_a_wait_shorter(
    step: int, retry_after_s: float, status: int
) -> None:
    without = decide(step=step).delay_ms
    given_one = decide(step=step, status=status, retry_after_s=retry_after_s).delay_ms
    assert without is not None
    assert given_one is not None
    assert given_one >= without


@pytest.mark.parametrize("alone", range(MAX_ABANDONED_ALONE + 2))
def test_an_abandoned_task_runs_again_until_the_fifth_time_that_it_was_alone(alone: int) -> None:
    expected = TaskState.FAILED if alone >= 5 else TaskState.RETRYING
    assert after_abandoned(alone=alone, cancel_requested=False) is expected


@pytest.mark.parametrize("alone", range(MAX_ABANDONED_ALONE + 2))
def test_an_abandoned_task_under_a_cancel_wish_is_cancelled(alone: int) -> None:
    assert after_abandoned(alone=alone, cancel_requested=True) is TaskState.CANCELLED

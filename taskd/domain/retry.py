"""Decides whether and when a task is attempted again. Pure functions, no clock."""

from __future__ import annotations

import math
from collections.abc import Callable

from taskd.domain.model import Outcome, TaskState
from taskd.domain.record import record

MAX_DELAY_S = 3600
"""The retry rule's longest wait, whatever step or Retry-After say; the spread comes on top."""

MAX_WAIT_MS = 4_000_000
"""No retry is due later than this after the attempt before it: more than `MAX_DELAY_S` and the
tenth by which retries are spread."""

SPREAD_PART = 0.1
SPREAD_AT_LEAST_MS = 500
"""Retries that would be due together are spread: at full crowd up to this part of their wait
later, or up to `SPREAD_AT_LEAST_MS` where that is more."""

MAX_ABANDONED_ALONE = 5
"""A task fails once this many nodes in a row died while they worked on it and hardly any
other: it is then the likely cause."""

_THROTTLED = frozenset({429, 503})
_GONE = 410


@record
class Decision:
    """The decision on a task whose attempt has ended."""

    state: TaskState
    """``succeeded``, ``failed`` or ``retrying``."""
    failures: int
    """Failed attempts so far, this one included."""
    delay_ms: int | None
    """Time from the end of this attempt to the next one; only with ``retrying``."""


def retry_delay_s(step: int, n: int) -> int:
    """Return the seconds before retry ``n`` (1 for the first): min(step × n, 3600)."""
    return min(step * n, MAX_DELAY_S)


def after_attempt(
    *,
    outcome: Outcome,
    http_status: int | None,
    retry_after_s: float | None,
    failures: int,
    step: int,
    retry_total: int,
    crowd: float,
    chance: Callable[[], float],
) -> Decision:
    """Decide on a task whose attempt ended by itself.

    Args:
        outcome: any but ``cancelled`` and ``abandoned``, which are no result of
            the attempt.
        http_status: of the answer, if there was one.
        retry_after_s: the answer's Retry-After in seconds; counts on 429 and 503 only, and
            only if it is longer than the rule's wait.
        failures: failed attempts before this one.
        step: seconds by which the wait before each retry grows.
        retry_total: retries after the first attempt.
        crowd: how crowded the moment is with failures at the same origin, from 0 (this one
            is alone) to 1; the part of the spread that is used.
        chance: returns a number from 0 to 1, each equally likely.
    """
    if outcome is Outcome.SUCCEEDED:
        return Decision(TaskState.SUCCEEDED, failures, None)
    failures += 1
    if http_status == _GONE or failures > retry_total:
        return Decision(TaskState.FAILED, failures, None)
    delay_s: float = retry_delay_s(step, failures)
    if http_status in _THROTTLED and retry_after_s is not None:
        delay_s = max(delay_s, min(retry_after_s, MAX_DELAY_S))
    delay_ms = delay_s * 1000
    spread_ms = max(delay_ms * SPREAD_PART, SPREAD_AT_LEAST_MS) * crowd
    return Decision(TaskState.RETRYING, failures, math.ceil(delay_ms + spread_ms * chance()))


def after_abandoned(*, alone: int, cancel_requested: bool) -> TaskState:
    """Return the next state of a task whose node died during an attempt.

    Args:
        alone: attempts abandoned in a row while the task was nearly alone in flight, this
            one included.
        cancel_requested: whether a cancel was requested.
    """
    if cancel_requested:
        return TaskState.CANCELLED
    return TaskState.FAILED if alone >= MAX_ABANDONED_ALONE else TaskState.RETRYING

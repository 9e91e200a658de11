"""What becomes of a task when its lease ends: the rules every Store shares.

Pure functions. An adapter reads the row, asks here, and writes what it is told,
all in one transaction.
"""

from __future__ import annotations

from dataclasses import dataclass

from taskd.model import Attempt, DeliveryWord, Outcome, Settlement, TaskState
from taskd.retry import after_abandoned

WAITING = (TaskState.SCHEDULED, TaskState.RETRYING)
"""The states that a lease or a cancel ends."""

_SETTLED = frozenset(
    {TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED, TaskState.RETRYING}
)
_YIELD_TO_WISH = frozenset({TaskState.RETRYING, TaskState.FAILED})


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningTask:
    """What the end of a lease depends on, as the row says it."""

    task_id: int
    app_id: int
    token: int
    node: str
    leased_at: int
    attempt: int
    """Number of the attempt under way."""
    failures: int
    abandoned: int
    """Attempts abandoned in a row, before this one."""
    sent: bool
    cancel_requested: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """What the row says once the lease has ended; the lease's own columns are
    emptied, its token stays."""

    task_id: int
    state: TaskState
    due_at: int | None
    attempt: int
    failures: int
    abandoned: int
    sent: bool
    cancel_word: DeliveryWord | None
    finished_at: int | None


def check_settlement(settlement: Settlement) -> None:
    """Refuse a settlement that could not be written as it stands.

    Raises:
        ValueError: its state is none a lease ends in, or ``due_at`` does not go
            with it. A mistake of the caller's.
    """
    if settlement.state not in _SETTLED:
        raise ValueError(f"a lease does not end as {settlement.state.value}")
    if (settlement.due_at is not None) != (settlement.state is TaskState.RETRYING):
        raise ValueError("due_at goes with retrying, and only with it")


def settled(task: RunningTask, settlement: Settlement) -> Ended:
    """The row after its lease was settled. See `Store.settle`."""
    state = settlement.state
    if task.cancel_requested and state in _YIELD_TO_WISH:
        state = TaskState.CANCELLED
    attempt, abandoned = task.attempt, task.abandoned
    if settlement.attempt is None:
        attempt -= 1
        if state is TaskState.RETRYING and attempt == 0:
            state = TaskState.SCHEDULED
    elif settlement.attempt.outcome is not Outcome.ABANDONED:
        abandoned = 0
    return Ended(
        task_id=task.task_id,
        state=state,
        due_at=settlement.due_at if state in WAITING else None,
        attempt=attempt,
        failures=settlement.failures,
        abandoned=abandoned,
        sent=task.sent or settlement.sent,
        cancel_word=settlement.word if state is TaskState.CANCELLED else None,
        finished_at=settlement.settled_at if state.terminal else None,
    )


def reaped(task: RunningTask, *, now: int) -> Ended:
    """The row after its lease was reaped. See `Store.reap`."""
    abandoned = task.abandoned + 1
    state = after_abandoned(abandoned=abandoned, cancel_requested=task.cancel_requested)
    return Ended(
        task_id=task.task_id,
        state=state,
        due_at=None if state.terminal else now,
        attempt=task.attempt,
        failures=task.failures,
        abandoned=abandoned,
        sent=True,
        cancel_word=DeliveryWord.UNKNOWN if state is TaskState.CANCELLED else None,
        finished_at=now if state.terminal else None,
    )


def abandoned_attempt(task: RunningTask, *, now: int) -> Attempt:
    """What is kept of an attempt whose node was lost."""
    return Attempt(
        attempt=task.attempt,
        started_at=task.leased_at,
        ended_at=now,
        outcome=Outcome.ABANDONED,
        error=f"its node {task.node} was lost, so nobody knows how it ended",
    )


def waiting_cancel_word(*, sent: bool) -> DeliveryWord:
    """How sure the cancellation of a waiting task is."""
    return DeliveryWord.BETWEEN_ATTEMPTS if sent else DeliveryWord.NEVER_SENT

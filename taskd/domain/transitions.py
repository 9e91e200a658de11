"""Decides what becomes of a task when its lease ends: the rules that all Stores share.

Pure functions. In one transaction, an adapter reads the row, calls these and writes their
results.
"""

from __future__ import annotations

from collections.abc import Sequence

from taskd.domain.model import Attempt, CancelCertainty, DueTask, Outcome, Settlement, TaskState
from taskd.domain.record import record
from taskd.domain.retry import MAX_WAIT_MS, after_abandoned

MAX_LEASE_MS = 3_600_000
"""The longest lease that can be configured: `[worker] lease`."""

AFTER_ALL = 2**63 - 1
"""Later than any time, and greater than any id."""

NEARLY_ALONE = 3
"""A task counts as the likely cause of its node's death if no more tasks than this were in
flight, itself included."""

NODE_ENDS_KEPT_MS = 30 * 86_400_000
"""How long the Store keeps how a node ended. A node's leases last an hour at most."""

RECENT_DEATHS_MS = 600_000

KINDS = (1, 2, 3)
"""The kinds of suspects: attempts abandoned in a row, 3 for three or more."""

WAITING = (TaskState.SCHEDULED, TaskState.RETRYING)
"""The states of a task that waits: a lease or a cancel ends them."""

_SETTLED = frozenset(
    {TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED, TaskState.RETRYING}
)
_YIELD_TO_CANCEL = frozenset({TaskState.RETRYING, TaskState.FAILED})


@record(kw_only=True)
class RunningTask:
    """The columns of a running task's row that decide how its lease ends."""

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


@record(kw_only=True)
class WaitingTask:
    """The columns that show whether a clock that was ahead dated a waiting task."""

    task_id: int
    app_id: int
    state: TaskState
    due_at: int
    created_at: int
    ended_at: int | None
    """When its last attempt ended; None before the first."""
    abandoned: bool
    """Whether that attempt was abandoned, so that the next one is due at once."""


@record(kw_only=True)
class Ended:
    """The row's columns once the lease has ended. The lease's own columns are emptied, but
    its token stays."""

    task_id: int
    state: TaskState
    due_at: int | None
    attempt: int
    failures: int
    abandoned: int
    sent: bool
    cancel_certainty: CancelCertainty | None
    finished_at: int | None


def check_settlement(settlement: Settlement) -> None:
    """Refuse a settlement that could not be written as it stands.

    Raises:
        ValueError: no lease ends in its state, or ``due_at`` does not go with it. It is
            the caller's mistake.
    """
    if settlement.state not in _SETTLED:
        raise ValueError(f"a lease does not end as {settlement.state.value}")
    if (settlement.due_at is not None) != (settlement.state is TaskState.RETRYING):
        raise ValueError("due_at goes with retrying, and only with it")


def settled(task: RunningTask, settlement: Settlement) -> Ended:
    """Return the row after its lease was settled. See `Store.settle`."""
    state = settlement.state
    if task.cancel_requested and state in _YIELD_TO_CANCEL:
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
        cancel_certainty=settlement.certainty if state is TaskState.CANCELLED else None,
        finished_at=settlement.settled_at if state.terminal else None,
    )


@record
class NodeEnd:
    """How a node ended whose leases are reaped."""

    stopping: bool
    """It was told to stop."""
    in_flight: int
    """Leases that it had when the first of them was reaped, counted up to
    `NEARLY_ALONE` + 1."""

    @property
    def blames(self) -> bool:
        """Whether its tasks are the likely cause of its end."""
        return not self.stopping and self.in_flight <= NEARLY_ALONE


def reaped(task: RunningTask, node: NodeEnd, *, alone: int, now: int) -> tuple[Ended, int]:
    """Return the row after its lease was reaped, and how many attempts in a row were
    abandoned while the task was nearly alone in flight.

    Args:
        task: the row.
        node: how its node ended.
        alone: this number before.
        now: the moment of reaping.
    """
    abandoned = task.abandoned + (not node.stopping)
    alone += node.blames
    state = after_abandoned(alone=alone, cancel_requested=task.cancel_requested)
    ended = Ended(
        task_id=task.task_id,
        state=state,
        due_at=None if state.terminal else now,
        attempt=task.attempt,
        failures=task.failures,
        abandoned=abandoned,
        sent=True,
        cancel_certainty=CancelCertainty.UNKNOWN if state is TaskState.CANCELLED else None,
        finished_at=now if state.terminal else None,
    )
    return ended, alone


def cleared(task: RunningTask, ended: Ended) -> bool:
    """Whether a task that was a suspect is none any more."""
    return task.abandoned > 0 and (ended.abandoned == 0 or ended.state.terminal)


def reached_in(tasks: Sequence[WaitingTask], limit: int, app_id: int | None) -> DueTask | None:
    """Return where a walk through waiting tasks goes on; None if it is over.

    Args:
        tasks: the tasks that one step of the walk found.
        limit: how many the step could find at most.
        app_id: the last application that it reached, if other ones may follow.
    """
    if len(tasks) == limit:
        last = tasks[-1]
        return DueTask(task_id=last.task_id, app_id=last.app_id, due_at=last.due_at)
    if app_id is None:
        return None
    return DueTask(task_id=AFTER_ALL, app_id=app_id, due_at=AFTER_ALL)


def brought_forward(task: WaitingTask, *, now: int) -> int | None:
    """Return the new due time of a waiting task that a clock dated which has been set back
    since; None if its due time stays.

    A retry waits from now on as long as it was to wait, so never less than the retry rule
    says. A task that was to run as soon as it was created is due now. A task that asked for
    a moment keeps it.
    """
    if task.state is TaskState.RETRYING:
        wait_ms = MAX_WAIT_MS
        if task.ended_at is not None and task.ended_at > now:
            if task.abandoned:
                wait_ms = 0
            elif task.due_at >= task.ended_at:  # else it was brought forward before
                wait_ms = min(task.due_at - task.ended_at, MAX_WAIT_MS)
        due_at = now + wait_ms
    elif now < task.created_at and task.due_at <= task.created_at:
        due_at = now
    else:
        return None
    return due_at if due_at < task.due_at else None


def abandoned_attempt(task: RunningTask, *, now: int) -> Attempt:
    """Return the record of an attempt whose node was lost."""
    return Attempt(
        attempt=task.attempt,
        started_at=task.leased_at,
        ended_at=now,
        outcome=Outcome.ABANDONED,
        error=f"its node {task.node} was lost, so nobody knows how it ended",
    )


def waiting_cancel_certainty(*, sent: bool) -> CancelCertainty:
    """Return the cancel certainty of a waiting task."""
    return CancelCertainty.BETWEEN_ATTEMPTS if sent else CancelCertainty.NEVER_SENT

"""One execution: an attempt under its lease, from its start to its settlement.

::

    lease taken ── due? ── attempt ──┬─ ended by itself ── retry rule ──┐
                    │                ├─ Ending.CANCEL ── cancelled ─────┤
                    │                ├─ Ending.DRAIN ── given back ─────┼── settle
                    └─ not yet ──────┴──────────────── given back ──────┘
                                     └─ Ending.LEASE_LOST ── nothing to settle

Every path but the last settles. If settling fails, it is tried again for as long
as the daemon runs; if the daemon dies first, the lease is reaped, the attempt is
recorded as abandoned, and the task is delivered again: at least once.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import replace

import trio

from taskd.clock import Clock, iso_utc
from taskd.delivery.attempt import Delivery
from taskd.delivery.progress import Progress
from taskd.delivery.verdict import AttemptResult, kept_text
from taskd.domain import retry
from taskd.domain.model import (
    Attempt,
    CancelCertainty,
    DueTask,
    LeasedTask,
    Outcome,
    Phase,
    Settlement,
    TaskState,
)
from taskd.domain.record import record
from taskd.engine.contents import Contents
from taskd.engine.pace import Sign, sign_of
from taskd.engine.registry import Ending, Execution
from taskd.errors import LeaseLost, StoreUnavailable, SystemShort
from taskd.ports.store import Store
from taskd.runtime.logs import log_event
from taskd.runtime.logs.task_log import TaskNaming, log_failed, naming, without_queries

logger = logging.getLogger("taskd.attempt")

_SETTLE_DEADLINE_S = 5.0
_PUT_OFF_MS = (1_000, 3_000)
"""The shortest and the longest time for which an attempt is put off that this system has no
room for."""

_SETTLE_RETRY_S = (0.1, 0.3, 1.0, 2.0)


def cancel_certainty(progress: Progress, *, sent_before: bool) -> CancelCertainty:
    """Return the cancel certainty for an attempt that is interrupted at this progress."""
    if not progress.sent:
        return CancelCertainty.BETWEEN_ATTEMPTS if sent_before else CancelCertainty.NEVER_SENT
    if progress.last is Phase.READING:
        return CancelCertainty.ABORTED_DURING_RESPONSE
    return CancelCertainty.ABORTED_BEFORE_RESPONSE


@record
class _Span:
    started_at: int
    ended_at: int


class Executor:
    """Runs executions to their settled end.

    Args:
        store: where they are settled.
        delivery: makes the attempt.
        clock: the wall clock.
        schedule: is told of tasks that are to be attempted again.
        contents: the room for contents that leases left in the Store.
    """

    def __init__(
        self,
        *,
        store: Store,
        delivery: Delivery,
        clock: Clock,
        schedule: Callable[[DueTask], None],
        contents: Contents,
    ) -> None:
        self._contents = contents
        self._store = store
        self._delivery = delivery
        self._clock = clock
        self._schedule = schedule
        self.settle_failures = 0
        """Tries to settle that failed, since the start."""

    async def run(self, execution: Execution, task: LeasedTask) -> None:
        """Make the attempt and settle it. A cancel from outside of the execution's own
        scope leaves the lease to be reaped."""
        execution.trio_task = trio.lowlevel.current_task()
        started_at = self._clock.now_ms()
        began = trio.current_time()
        result: AttemptResult | None = None
        put_off_ms = 0
        with execution.scope:
            try:
                content = await self._content(execution, task)
                if task.left_bytes:
                    started_at, began = self._clock.now_ms(), trio.current_time()
                if await self._may_start(execution, task):
                    whole = replace(task, content=content) if task.left_bytes else task
                    result = await self._attempt(execution, whole)
            except SystemShort:  # raised by the transport, or by `_content`
                put_off_ms = random.randint(*_PUT_OFF_MS)  # noqa: S311 - no secret
        if execution.timed_out():
            result = self._timed_out(execution, task)
        self._end_in_slot(execution, task, result)
        expired = execution.scope.cancelled_caught and execution.ending is None and result is None
        if expired:
            execution.ending = Ending.LEASE_LOST
        span = _Span(started_at, started_at + round((trio.current_time() - began) * 1000))
        execution.progress.finish()
        if execution.ending is Ending.LEASE_LOST and result is None:
            self._log_lost(task)
            if execution.progress.sent or not expired:
                return
            # Nothing was sent, and the lease may still be ours: giving it back avoids an
            # attempt that would count as abandoned.
        if result is not None:
            settlement = self._ended(execution, task, result, span)
        else:
            settlement = self._interrupted(execution, task, span, put_off_ms)
        state = await self._settle(task, settlement)
        execution.certainty = settlement.certainty
        execution.state = state
        if settlement.attempt is not None:
            told = None if result is None else result.detail
            error = told or settlement.attempt.error
            self._log_attempt(execution, task, settlement, state, error)
            if state is TaskState.FAILED:
                log_failed(_naming(task), attempts=task.attempt, error=error)
        if state in (TaskState.RETRYING, TaskState.SCHEDULED) and settlement.due_at is not None:
            self._schedule(
                DueTask(task_id=task.lease.task_id, app_id=task.app.id, due_at=settlement.due_at)
            )

    async def _content(self, execution: Execution, task: LeasedTask) -> bytes:
        """Return the task's content. One that the lease left in the Store is read once
        there is room.

        Raises:
            SystemShort: it can't be read now.
        """
        if not task.left_bytes:
            return task.content
        await self._contents.take(task.app.id, task.left_bytes)
        execution.content_bytes = task.left_bytes
        try:
            content = await self._store.content(task.lease.task_id)
        except StoreUnavailable as error:
            log_event(
                logger,
                logging.ERROR,
                "a task's content can't be read, its attempt is put off",
                **_naming(task),
                reason=str(error),
            )
            raise SystemShort(str(error)) from error
        if content is None:  # it was taken over, ended and purged
            execution.ending = Ending.LEASE_LOST
            execution.scope.cancel()
            await trio.lowlevel.checkpoint()
        return content or b""

    async def _may_start(self, execution: Execution, task: LeasedTask) -> bool:
        """Whether the attempt may be made now: the wall clock may have stepped
        back since the lease, or the node may have been asleep for longer than it."""
        await trio.lowlevel.checkpoint_if_cancelled()  # ended before it began
        now = self._clock.now_ms()
        if now < task.due_at:
            return False
        if now < task.lease.expires_at:
            return True
        length_ms = task.lease.expires_at - task.leased_at
        try:
            extended = await self._store.extend([task.lease], expires_at=now + length_ms)
        except StoreUnavailable:
            return False
        if task.lease.task_id in extended.lost:
            execution.ending = Ending.LEASE_LOST
            return False
        return True

    async def _attempt(self, execution: Execution, task: LeasedTask) -> AttemptResult:
        execution.begin_attempt(task.timeout_ms / 1000)
        try:
            return await self._delivery.attempt(task, execution.progress)
        except SystemShort:
            raise
        except Exception as error:  # noqa: BLE001 - a defect of ours costs one attempt, not the daemon
            return self._failed_within(execution, task, error)

    def _timed_out(self, execution: Execution, task: LeasedTask) -> AttemptResult:
        try:
            return self._delivery.timed_out(task, execution.progress)
        except Exception as error:  # noqa: BLE001 - as above
            return self._failed_within(execution, task, error)

    def _failed_within(
        self, execution: Execution, task: LeasedTask, error: Exception
    ) -> AttemptResult:
        log_event(
            logger,
            logging.ERROR,
            "an attempt failed within",
            error=error,
            **_naming(task),
            attempt=task.attempt,
        )
        self._end_in_slot(execution, task, None)  # it says nothing of the receiver
        return AttemptResult(
            outcome=Outcome.UNREACHABLE, error="an internal error; the daemon's log has it"
        )

    @staticmethod
    def _end_in_slot(execution: Execution, task: LeasedTask, result: AttemptResult | None) -> None:
        """Tell the slot that the attempt has ended, if it began, and what that says of the
        receiver: nothing without a result."""
        answered: bool | None = None
        sign = Sign.NOTHING
        if result is not None:
            answered = result.outcome is not Outcome.TIMED_OUT and not result.unanswered
            sign = sign_of(result.outcome, result.http_status, execution.progress.last)
        execution.slot.end(
            trio.current_time(), answered=answered, sign=sign, timeout_s=task.timeout_ms / 1000
        )

    def _ended(
        self, execution: Execution, task: LeasedTask, result: AttemptResult, span: _Span
    ) -> Settlement:
        """Return the settlement of an attempt that ended by itself."""
        sent = execution.progress.sent
        succeeded = result.outcome is Outcome.SUCCEEDED
        decision = retry.after_attempt(
            outcome=result.outcome,
            http_status=result.http_status,
            retry_after_s=result.retry_after_s,
            failures=task.failures,
            step=task.step,
            retry_total=task.retry_total,
            crowd=0.0 if succeeded else execution.slot.fail(trio.current_time()),
            chance=random.random,
        )
        now = self._clock.now_ms()
        return Settlement(
            lease=task.lease,
            state=decision.state,
            settled_at=now,
            due_at=None if decision.delay_ms is None else now + decision.delay_ms,
            attempt=Attempt(
                attempt=task.attempt,
                started_at=span.started_at,
                ended_at=span.ended_at,
                outcome=result.outcome,
                http_status=result.http_status,
                response=result.response,
                error=result.error,
            ),
            failures=decision.failures,
            sent=sent,
            # For a cancel that came too late for this attempt, but in time for the next.
            certainty=(
                CancelCertainty.BETWEEN_ATTEMPTS
                if sent or task.sent_before
                else CancelCertainty.NEVER_SENT
            ),
        )

    def _interrupted(
        self, execution: Execution, task: LeasedTask, span: _Span, put_off_ms: int
    ) -> Settlement:
        """Return the settlement of an attempt that was cancelled, stopped or not begun. One
        that was put off is due again after ``put_off_ms``."""
        progress = execution.progress
        now = self._clock.now_ms()
        again_at = max(task.due_at, now + put_off_ms) if put_off_ms else task.due_at
        cancelled = execution.ending is Ending.CANCEL
        attempt = None
        if cancelled or progress.sent:
            cause = "cancelled" if cancelled else "the daemon was stopped"
            where = f"while {progress.last}" if progress.last else "before the attempt began"
            answer = progress.answer
            attempt = Attempt(
                attempt=task.attempt,
                started_at=span.started_at,
                ended_at=span.ended_at,
                outcome=Outcome.CANCELLED if cancelled else Outcome.ABANDONED,
                http_status=None if answer is None else answer.status,
                response=None if answer is None else kept_text(answer),
                error=f"{cause} {where}",
            )
        return Settlement(
            lease=task.lease,
            state=TaskState.CANCELLED if cancelled else TaskState.RETRYING,
            settled_at=now,
            due_at=None if cancelled else again_at,
            attempt=attempt,
            failures=task.failures,
            sent=progress.sent,
            certainty=cancel_certainty(progress, sent_before=task.sent_before),
        )

    async def _settle(self, task: LeasedTask, settlement: Settlement) -> TaskState | None:
        """Settle, and try again until it is done. Returns the task's state; None if the lease
        was lost, or an earlier try settled the task and its answer did not come."""
        tries = 0
        while True:
            try:
                # The end of an attempt is written even while the daemon stops.
                return await self._store.settle(settlement, within_s=_SETTLE_DEADLINE_S)
            except LeaseLost as error:
                log_event(
                    logger,
                    logging.WARNING,
                    "an attempt's end was not kept: its lease had been taken over",
                    **_naming(task),
                    reason=str(error),
                )
                return None
            except StoreUnavailable as error:
                reason = str(error)
            self.settle_failures += 1
            delay_s = _SETTLE_RETRY_S[min(tries, len(_SETTLE_RETRY_S) - 1)]
            tries += 1
            log_event(
                logger,
                logging.ERROR,
                "an attempt's end could not be kept, it is tried again",
                **_naming(task),
                tries=tries,
                delay_s=delay_s,
                reason=reason,
            )
            await trio.sleep(delay_s)

    def _log_lost(self, task: LeasedTask) -> None:
        log_event(
            logger,
            logging.WARNING,
            "an attempt was given up: its lease was taken over, or not extended in time",
            **_naming(task),
            attempt=task.attempt,
        )

    def _log_attempt(
        self,
        execution: Execution,
        task: LeasedTask,
        settlement: Settlement,
        state: TaskState | None,
        error: str | None,
    ) -> None:
        attempt = settlement.attempt
        if attempt is None or not logger.isEnabledFor(logging.INFO):
            return
        progress = execution.progress
        log_event(
            logger,
            logging.INFO,
            "attempt",
            **_naming(task),
            attempt=attempt.attempt,
            outcome=attempt.outcome,
            status=attempt.http_status,
            state=state,
            ms=attempt.ended_at - attempt.started_at,
            lateness_ms=attempt.started_at - task.due_at,
            address=progress.address,
            **{f"{phase}_ms": round(ms, 2) for phase, ms in progress.timings_ms.items()},
            next=None if settlement.due_at is None else iso_utc(settlement.due_at),
            error=without_queries(error),
        )


def _naming(task: LeasedTask) -> TaskNaming:
    return naming(task.lease.task_id, task.task_no, task.app)

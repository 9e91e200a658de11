"""Attempts without an execution."""

from __future__ import annotations

import trio

from taskd.delivery.attempt import AttemptResult, Delivery
from taskd.delivery.progress import Progress
from taskd.domain.model import LeasedTask


async def attempted(delivery: Delivery, task: LeasedTask, progress: Progress) -> AttemptResult:
    """Make one attempt within the task's timeout, as an execution does."""
    with trio.move_on_after(task.timeout_ms / 1000):
        return await delivery.attempt(task, progress)
    return delivery.timed_out(task, progress)

"""The executions that live on this node, by coroutine_id."""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import Enum

import trio

from taskd.delivery.progress import Progress
from taskd.domain.model import CancelCertainty, Lease, TaskState
from taskd.engine.inspection import CountedCoroutine
from taskd.engine.slots import Slot

_SAFE_PART = 0.9


class Ending(Enum):
    """Why an execution is ended from outside."""

    CANCEL = "cancel"
    """The application asked for it."""
    DRAIN = "drain"
    """The daemon stops."""
    LEASE_LOST = "lease_lost"
    """Another node has the task, or may take it now."""


class Execution:
    """One task in work: its cancel scope, its progress, and its end.

    It is registered before its lease is asked for, so that a cancel which finds the task
    running in the Store finds its scope here. Only a task that is added under a lease has no
    id before it is durable: it is registered right afterwards, and a cancel that comes in
    between asks again.

    Attributes:
        task_id: the task's id, which is its coroutine_id.
        slot: the slot it holds on this node.
        scope: cancelling it ends the coroutine. Its deadline is the earlier of the next two.
        lease_until: when the lease can't be relied on any more; infinite where this node
            need not doubt its leases.
        timeout_at: when the attempt's time is over; infinite before it begins.
        progress: where the attempt is.
        lease: the lease it works under, None until it is taken.
        coroutine: the running coroutine, None until it is started.
        trio_task: the Trio task that drives it, None until its first step.
        started_at: `trio.current_time()` of the start.
        ending: why it was ended from outside, None if it was not.
        state: the state that was written at its end; None if none was.
        certainty: what a cancel is told if ``state`` is ``cancelled``.
        content_bytes: bytes that it holds of `Contents`.
        done: set once the coroutine has unwound and its end is durable.
    """

    __slots__ = (
        "certainty",
        "content_bytes",
        "coroutine",
        "done",
        "ending",
        "lease",
        "lease_until",
        "progress",
        "scope",
        "slot",
        "started_at",
        "state",
        "task_id",
        "timeout_at",
        "trio_task",
    )

    def __init__(self, task_id: int, slot: Slot) -> None:
        self.task_id = task_id
        self.slot = slot
        self.scope = trio.CancelScope()
        self.lease_until = self.timeout_at = math.inf
        self.progress = Progress()
        self.lease: Lease | None = None
        self.coroutine: CountedCoroutine | None = None
        self.trio_task: trio.lowlevel.Task | None = None
        self.started_at = trio.current_time()
        self.ending: Ending | None = None
        self.state: TaskState | None = None
        self.certainty: CancelCertainty | None = None
        self.content_bytes = 0
        self.done = trio.Event()

    def rely_on_lease(self, until: float) -> None:
        """Have the scope end the coroutine at this moment, for the lease; or sooner, if the
        attempt's time is over before."""
        self.lease_until = until
        self.scope.deadline = min(until, self.timeout_at)

    def begin_attempt(self, timeout_s: float) -> None:
        """Note that the attempt begins, and have the scope end it when its time is over. The
        attempt is the last thing in the scope."""
        now = trio.current_time()
        self.slot.begin(now)
        self.timeout_at = now + timeout_s
        if self.timeout_at < self.lease_until:
            self.scope.deadline = self.timeout_at

    def timed_out(self) -> bool:
        """Whether what the scope has cut off was an attempt whose time was over. If it was
        ended from outside as well, or its lease can't be relied on, that goes first.

        To be asked as soon as the scope was left: an extension of the lease that comes after
        the scope was cancelled for it makes no timeout of that."""
        return (
            self.scope.cancelled_caught
            and self.ending is None
            and self.timeout_at <= trio.current_time() < self.lease_until
        )

    def end(self, ending: Ending) -> None:
        """End the coroutine at its next checkpoint. The first reason stands."""
        if self.ending is None:
            self.ending = ending
            self.scope.cancel()


def safe_until(asked_at: float, lease_ms: int) -> float:
    """Return until when an execution may go on under a lease that was asked for at
    ``asked_at``: a tenth of the lease before its end. Both are `trio.current_time()`."""
    return asked_at + lease_ms * _SAFE_PART / 1000


class Registry:
    """The executions of this node, which never reaps their leases."""

    def __init__(self) -> None:
        self._executions: dict[int, Execution] = {}
        self._empty = trio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._executions)

    def __iter__(self) -> Iterator[Execution]:
        """A snapshot: executions may come and go while it is walked."""
        return iter(list(self._executions.values()))

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._executions

    def get(self, task_id: int) -> Execution | None:
        """The execution of this task, if it lives here."""
        return self._executions.get(task_id)

    def task_ids(self) -> frozenset[int]:
        """The tasks that live here now."""
        return frozenset(self._executions)

    def add(self, execution: Execution) -> None:
        """Register an execution; its task must not be registered."""
        self._executions[execution.task_id] = execution
        if len(self._executions) == 1:
            self._empty = trio.Event()

    def remove(self, execution: Execution) -> None:
        """Remove an execution, and wake the coroutines that wait for its end."""
        del self._executions[execution.task_id]
        if not self._executions:
            self._empty.set()
        execution.done.set()

    async def wait_empty(self) -> None:
        """Return once no execution lives here."""
        while self._executions:
            await self._empty.wait()

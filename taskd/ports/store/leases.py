"""Part of the Store: who works on which task."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from taskd.domain.model import (
    WHOLE,
    CancelDecision,
    DueTask,
    Lease,
    LeasedTask,
    ReapedTask,
    Settlement,
    Shard,
    Suspects,
    TaskState,
)
from taskd.domain.record import record


@record
class ExtendResult:
    """What `extend` did."""

    lost: frozenset[int]
    """Task ids whose token is not current any more."""
    cancel_requested: frozenset[int]
    """Task ids under a cancel request; their leases were extended like the others."""


class Leases(Protocol):
    """Who works on which task, from its due time to its end.

    What `taskd.ports.store.Store` promises holds for each method.
    """

    async def find_due(
        self,
        *,
        until: int,
        after: int | None = None,
        limit_per_app: int,
        skip_apps: Collection[int] = (),
        shard: Shard = WHOLE,
    ) -> list[DueTask]:
        """Waiting tasks with ``after < due_at <= until`` (no lower bound without
        ``after``), each app's earliest first, at most ``limit_per_app`` of each,
        none of ``skip_apps``. With a ``shard``, the shard's tasks among each app's
        earliest ``limit_per_app * shard.of``, which may be more than ``limit_per_app``.
        The cost does not grow with the length of an app's backlog."""
        ...

    async def lease(
        self,
        task_ids: Sequence[int],
        *,
        node: str,
        now: int,
        expires_at: int,
        suspects: bool = True,
        room: int | None = None,
    ) -> list[LeasedTask]:
        """Lease those of the tasks that are waiting and due at ``now``: they become
        ``running`` with a new token and the next attempt number. The others stay as they
        are, and without ``suspects`` so do the tasks that `find_suspects` finds. Of
        concurrent callers, one gets each task.

        Contents of up to `model.SHORT_CONTENT` bytes are returned with their tasks. Longer
        ones are too, in the order of the ids, while they fit into ``room`` bytes together
        (None: all fit); `content` reads the others."""
        ...

    async def extend(self, leases: Sequence[Lease], *, expires_at: int) -> ExtendResult:
        """Move the expiry of leases that are still held."""
        ...

    async def settle(self, settlement: Settlement, *, within_s: float | None = None) -> TaskState:
        """End a lease: write attempt and task together, return the state written. For
        ``within_s`` see `taskd.ports.store.Store`.

        With a cancel request on the row, ``retrying`` and ``failed`` become
        ``cancelled``, with the settlement's certainty. ``finished_at`` is
        ``settled_at`` for terminal states. A settlement with an attempt resets
        the count of abandoned attempts in a row, unless that attempt's outcome
        is ``abandoned`` (by a drain): then the count stays. A settlement
        ``retrying`` without an attempt gives the attempt's number back; the task
        becomes ``scheduled`` again if it had no attempt before.

        Raises:
            LeaseLost: the token is stale; nothing was changed.
        """
        ...

    async def request_cancel(
        self,
        app_id: int,
        task_id: int | None = None,
        *,
        task_no: str | None = None,
        now: int,
        within_s: float | None = None,
    ) -> CancelDecision:
        """Cancel the app's task of this id or taskNo (exactly one is given) if it waits;
        write a cancel request on its row if it runs. For ``within_s`` see
        `taskd.ports.store.Store`.

        If a cancel and a lease are concurrent, one comes first: either the task is
        cancelled and can't be leased, or it runs under the request.
        """
        ...

    async def reap(
        self,
        *,
        now: int,
        expired_at: int | None,
        exclude: Collection[int],
        limit: int,
        node: str | None = None,
        alive: Collection[str] = (),
    ) -> list[ReapedTask]:
        """End leases that expired at or before ``expired_at`` (None: all leases,
        as a lone node does at its start), except those of the tasks in ``exclude`` and of
        the nodes in ``alive``; with ``node``, only those of this node, which is known to
        be dead.

        Each task's attempt is recorded as abandoned, started at its lease and
        ended ``now``. The task gets the state of `transitions.reaped`, is due
        ``now`` if it is to run again, and counts as having sent something. Whether it
        was nearly alone in flight is judged by all leases that its node had when the
        first of them was reaped.
        """
        ...

    async def find_suspects(self, *, now: int, after: int, limit: int) -> Suspects:
        """Suspects: waiting tasks, due at ``now`` and with ids greater than ``after``, whose
        nodes died during their last attempts. Returns the first ``limit`` each of those
        abandoned once, twice, and more often in a row. Each of them may be what its node
        died of."""
        ...

    async def note_stopping(self, node: str, *, now: int) -> None:
        """Record that this node was told to stop: if it is killed before it has stopped,
        none of its tasks is suspected as the cause."""
        ...

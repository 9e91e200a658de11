"""Part of the Store: who works on which task."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class ExtendResult:
    """What became of the leases that were to be extended."""

    lost: frozenset[int]
    """Task ids whose token is not current any more."""
    cancel_requested: frozenset[int]
    """Task ids under a cancel wish; these were extended all the same."""


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
        none of ``skip_apps``. Of a ``shard``: those of its tasks that are among each
        app's earliest ``limit_per_app * part.of``, which may be more than
        ``limit_per_app``. Costs no more for apps with long backlogs."""
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
        """Take those of the tasks that are waiting and due at ``now``: they become
        ``running`` with a new token and the next attempt number. The others are
        left alone, and without ``suspects`` so are those that `find_suspects` finds. Of
        two callers at once, one gets each task.

        Contents of more than `contents.SHORT` bytes come with it as far as they have no
        more than ``room`` bytes together (None: all do), in the order of the ids; the
        others are left to `content`."""
        ...

    async def extend(self, leases: Sequence[Lease], *, expires_at: int) -> ExtendResult:
        """Move the expiry of leases that are still held."""
        ...

    async def settle(self, settlement: Settlement) -> TaskState:
        """End a lease: write attempt and task together, return the state written.

        With a cancel wish on the row, ``retrying`` and ``failed`` become
        ``cancelled``, with the settlement's word. ``finished_at`` is
        ``settled_at`` for terminal states. A settlement with an attempt resets
        the count of abandoned attempts in a row, unless that attempt's outcome
        is ``abandoned`` (a drain's), which leaves it as it is. A settlement
        ``retrying`` without an attempt gives the attempt's number back and
        leaves the task ``scheduled`` where it never had another.

        Raises:
            LeaseLost: the token is stale; nothing was changed.
        """
        ...

    async def request_cancel(
        self, app_id: int, task_id: int | None = None, *, task_no: str | None = None, now: int
    ) -> CancelDecision:
        """Cancel a waiting task, or note the wish on a running one: the app's task of
        this id or taskNo (exactly one is given).

        Of a cancel and a lease at once, one wins: either the task is cancelled
        and no lease gets it, or it is running under the wish.
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
        as a lone node does at its start), except of the tasks in ``exclude`` and of the
        nodes in ``alive``, which are known to live; with ``node``, only those of this
        node, which is known to be dead.

        Each task's attempt is recorded as abandoned, started at its lease and
        ended ``now``; the task becomes what `transitions.reaped` says, due
        ``now`` where it is to run again, and counts as having sent something. Whether it
        was nearly alone in flight is judged by all leases that its node had when the
        first of them was reaped.
        """
        ...

    async def find_suspects(self, *, now: int, after: int, limit: int) -> Suspects:
        """Waiting tasks with ids greater than ``after`` that are due at ``now`` and whose
        nodes died during their last attempts: the first ``limit`` each of those abandoned
        once, twice, and more often in a row. Each was in flight when a node died, so each
        may be why."""
        ...

    async def note_stopping(self, node: str, *, now: int) -> None:
        """Keep that this node was told to stop: should it be killed before it has
        stopped, none of its tasks was the cause."""
        ...

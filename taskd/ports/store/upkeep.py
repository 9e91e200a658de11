"""Part of the Store: deleting what is old, correcting due times, telling the state."""

from __future__ import annotations

from typing import Protocol

from taskd.domain.model import DueTask
from taskd.domain.record import record


@record
class BroughtForward:
    """What a call of `Upkeep.bring_forward` did."""

    tasks: tuple[DueTask, ...]
    """The tasks that are due sooner now."""
    reached: DueTask | None
    """Where the next call goes on; None if this one was the last."""


class Upkeep(Protocol):
    """Keeps a Store small and its times right, and tells whether it works.

    What `taskd.ports.store.Store` promises holds for each method.
    """

    async def bring_forward(self, *, now: int, after: DueTask | None, limit: int) -> BroughtForward:
        """Correct times that were set by a clock ahead of ``now``: make waiting tasks due
        sooner, as `transitions.brought_forward` says, and let no lease end later than one
        taken at ``now`` could.

        Shortens up to ``limit`` leases, or looks at up to ``limit`` tasks that wait for a time
        after ``now``, ordered by app, due time and id. To be called with what the last call
        reached, beginning with None, until that is None.
        """
        ...

    async def last_moment(self) -> int | None:
        """The latest time at which one of the kept tasks was created or ended; None if
        there are no tasks."""
        ...

    async def purge(self, *, finished_before: int, limit: int) -> int:
        """Delete up to ``limit`` tasks that ended before ``finished_before``, with their
        attempts. Returns how many."""
        ...

    async def purge_nonces(self, *, now: int, limit: int) -> int:
        """Delete up to ``limit`` nonces that have expired by ``now``. Returns how many."""
        ...

    async def probe(self) -> None:
        """Check that a write would be durable now.

        Raises:
            StoreUnavailable: it would not; says why.
        """
        ...

    def degraded(self) -> str | None:
        """What is wrong although the Store works, as a sentence, or None. Never waits."""
        ...

    def end_by(self, latest: float) -> None:
        """Let no call with ``within_s``, made before or after this one, wait beyond this
        moment, by `trio.current_time`."""
        ...

    async def aclose(self) -> None:
        """Finish the pending writes and close. Later calls raise `StoreUnavailable`."""
        ...

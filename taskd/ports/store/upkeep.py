"""Part of the Store: what keeps it in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from taskd.domain.model import DueTask


@dataclass(frozen=True, slots=True)
class BroughtForward:
    """What became of waiting tasks that were looked at."""

    tasks: tuple[DueTask, ...]
    """Those that are due sooner now."""
    reached: DueTask | None
    """The last one that was looked at; None where there are no more after it."""


class Upkeep(Protocol):
    """What keeps a Store small, its times right, and its state known.

    What `taskd.ports.store.Store` promises holds for each method.
    """

    async def bring_forward(self, *, now: int, after: DueTask | None, limit: int) -> BroughtForward:
        """Make those waiting tasks due sooner which were dated by a clock that was ahead
        of ``now``, as `transitions.brought_forward` says, and let no lease end later than
        it could by ``now``.

        Looks at up to ``limit`` tasks that wait for a time after ``now``, by app, due
        time and id, and begins after ``after``.
        """
        ...

    async def last_moment(self) -> int | None:
        """The latest time at which a task was created or ended, of those that are kept;
        None if there are none."""
        ...

    async def purge(self, *, finished_before: int, limit: int) -> int:
        """Delete up to ``limit`` tasks, with their attempts, that ended before
        then. Returns how many."""
        ...

    async def purge_nonces(self, *, now: int, limit: int) -> int:
        """Forget up to ``limit`` nonces that have expired. Returns how many."""
        ...

    async def probe(self) -> None:
        """Make sure that a write would be durable now.

        Raises:
            StoreUnavailable: it would not, and why.
        """
        ...

    def degraded(self) -> str | None:
        """What is not as it should be, though it does what it is asked to, or None.
        Never waits."""
        ...

    async def aclose(self) -> None:
        """Finish the writes in hand and close. Later calls raise
        `StoreUnavailable`."""
        ...

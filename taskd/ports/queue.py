"""The Queue port: wake-ups. Losing, doubling or reordering them costs time only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import trio

from taskd.domain.model import DueTask, Shard


class Queue(Protocol):
    """Wake-ups: "look at this task now".

    The Store decides what a wake-up is worth, so an adapter may drop, repeat or
    reorder them. It shares out fairly: of what waits here, tasks of different apps take
    turns. What waits here already is not held twice.
    """

    def publish(self, tasks: Iterable[DueTask]) -> None:
        """Offer tasks that are due to any node. Never waits; drops what it has no
        room for."""
        ...

    def backfill(self, tasks: Iterable[DueTask]) -> None:
        """Offer tasks to this node alone: what it found in the Store itself. Never
        waits; drops what it has no room for."""
        ...

    def local_capacity(self) -> int:
        """How many tasks that fall due now this node had better begin by itself than
        `publish`; none while others wait here for their turn."""
        ...

    def in_flight_grace_ms(self) -> int:
        """How long a wake-up may be under way: what is overdue for less is left to
        it by those who read the Store. 0 where nothing carries it."""
        ...

    def shard(self) -> Shard:
        """Which part of a backlog this node had better look for in the Store, where
        all nodes look; `WHOLE` where it can't be told who else does."""
        ...

    def saturated(self) -> frozenset[int]:
        """Apps of which it holds so many, or which may begin so little, that reading
        more of them from the Store is not worth while yet. Asked once before each
        such reading."""
        ...

    def take(self, limit: int, admit: Callable[[int], bool]) -> list[DueTask]:
        """Up to ``limit`` wake-ups, apps taking turns. Never waits.

        ``admit(app_id)`` is asked before each one is taken. Once it says no, that
        app's stay where they are, and it is not asked about it again before `resume`,
        whichever nodes come or go. Where it raises, all that was not taken stays.
        """
        ...

    def resume(self, app_ids: Iterable[int]) -> None:
        """Tell of apps that may perhaps be admitted again. Never waits."""
        ...

    def room(self, free: int) -> None:
        """Tell how many more tasks this node could work on now. Never waits."""
        ...

    def finish(self, tasks: Iterable[DueTask]) -> None:
        """Tell what the Store has answered for, of what was taken: they are leased
        here, or gone, or taken elsewhere. Never waits."""
        ...

    def release(self, tasks: Iterable[DueTask]) -> None:
        """Tell what the Store could not be asked about, of what was taken: it may
        go elsewhere. Never waits."""
        ...

    async def wait(self) -> None:
        """Return once something was offered since the last `wait` returned. What joins
        an app that was set aside wakes nobody. Several may wait: all return."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = ...) -> None:
        """Carry wake-ups between the nodes, until cancelled. What it has not handed on
        by then stays here, and so does what is offered afterwards. It may run again."""
        ...

    def degraded(self) -> str | None:
        """What does not work and is made up for, or None."""
        ...

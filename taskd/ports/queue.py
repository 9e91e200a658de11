"""The Queue port: wake-ups. Losing, doubling or reordering them costs time only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import trio

from taskd.domain.model import DueTask, Shard


class Queue(Protocol):
    """Wake-ups: "look at this task now".

    A wake-up promises nothing: the Store decides whether its task may be leased. So an
    adapter may drop, repeat or reorder wake-ups. It shares out fairly: the apps whose
    wake-ups wait here take turns. It holds one wake-up of a task at most.
    """

    def publish(self, tasks: Iterable[DueTask]) -> None:
        """Offer due tasks to any node. Never waits; drops those that there is no room
        for."""
        ...

    def backfill(self, tasks: Iterable[DueTask]) -> None:
        """Offer tasks that this node found in the Store to this node alone. Never waits;
        drops those that there is no room for."""
        ...

    def local_capacity(self) -> int:
        """How many of the tasks that fall due now this node should begin itself, rather
        than `publish` them; 0 while wake-ups wait here for their turn."""
        ...

    def in_flight_grace_ms(self) -> int:
        """How long a wake-up may be under way between nodes. The sweep passes over tasks
        that are overdue for less than this: their wake-ups may still come. 0 where
        wake-ups stay on this node."""
        ...

    def shard(self) -> Shard:
        """The part of a backlog that this node's sweep should read, where all nodes sweep;
        `WHOLE` where the adapter does not know the other nodes."""
        ...

    def saturated(self) -> frozenset[int]:
        """Apps of which the sweep should read no more tasks yet: many of their wake-ups
        wait here, or they may begin nothing now. Called once before each sweep."""
        ...

    def take(self, limit: int, admit: Callable[[int], bool]) -> list[DueTask]:
        """Up to ``limit`` wake-ups, apps taking turns. Never waits.

        ``admit(app_id)`` is called before each one is taken. Once it returns False, that
        app's wake-ups stay here, and it is not called for the app again before `resume`,
        whichever nodes come or go. If it raises, the wake-ups not yet taken stay here.
        """
        ...

    def resume(self, app_ids: Iterable[int]) -> None:
        """Have `take` ask for these apps again: perhaps they may begin tasks now. Never
        waits."""
        ...

    def room(self, free: int) -> None:
        """Note how many more tasks this node could work on now. Never waits."""
        ...

    def finish(self, tasks: Iterable[DueTask]) -> None:
        """Note the taken tasks that the Store has answered for: they are leased by this
        node or by another, or gone. Never waits."""
        ...

    def release(self, tasks: Iterable[DueTask]) -> None:
        """Note the taken tasks that the Store could not be asked about: other nodes may
        have them. Never waits."""
        ...

    async def wait(self) -> None:
        """Return once a wake-up was offered since the last `wait` returned. Wake-ups of
        an app that `admit` refused don't count. Several tasks may wait: all return."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = ...) -> None:
        """Carry wake-ups between the nodes, until cancelled. Those not handed on by then
        stay here, and so do those offered afterwards. It may be run again."""
        ...

    def degraded(self) -> str | None:
        """What does not work although the Queue makes up for it, as a sentence, or None."""
        ...

"""Nodes of a test, each with its end of a port: begun, ended in order, killed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import trio

P = TypeVar("P")


@dataclass(eq=False)
class Node(Generic[P]):
    """A node that lives.

    Attributes:
        port: its Queue, or its Bus.
        leave: called when it begins to end in order.
        cut: called when it is killed: what it says from then on reaches nobody.
        bury: called once it has ended, however it did.
    """

    name: str
    port: P
    leave: Callable[[], object] = lambda: None
    cut: Callable[[], object] = lambda: None
    bury: Callable[[], object] = lambda: None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)

    async def run(
        self,
        work: Callable[..., Awaitable[None]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Do a node's work until it ends."""
        try:
            with self.scope:
                await work(task_status=task_status)
        finally:
            self.bury()
            self.ended.set()

    async def end(self) -> None:
        """End in order."""
        self.leave()
        self.scope.cancel()
        await self.ended.wait()

    async def kill(self) -> None:
        """End as kill -9 does: without a word to anybody."""
        self.cut()
        self.scope.cancel()
        await self.ended.wait()


async def until(condition: Callable[[], object], within_s: float = 15.0) -> None:
    """Wait until a callable is true."""
    with trio.move_on_after(within_s):
        while not condition():
            await trio.sleep(0.002)
        return
    raise AssertionError(f"did not come true within {within_s} s")

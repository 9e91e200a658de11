"""Calls of many tasks that go together: whatever waits is carried in one round trip.

A round trip through a worker thread costs far more than what is carried in it. So
while one is under way, callers gather, and all of them go with the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import trio

from taskd.errors import BusUnavailable

A = TypeVar("A")
R = TypeVar("R")


@dataclass(slots=True, eq=False)
class _Call(Generic[A, R]):
    argument: A
    done: trio.Event = field(default_factory=trio.Event)
    result: R | None = None
    error: BusUnavailable | None = None
    left: bool = False
    """Its caller waits no more."""


class Batcher(Generic[A, R]):
    """See the module.

    Args:
        carry: carries out calls together and answers each, in order. Raises
            `BusUnavailable` where it can't; then nobody knows of any of them.
        limit: calls that go together at most.
    """

    def __init__(
        self, carry: Callable[[Sequence[A]], Awaitable[Sequence[R]]], *, limit: int
    ) -> None:
        self._carry = carry
        self._limit = limit
        self._waiting: deque[_Call[A, R]] = deque()
        self._wake = trio.Event()
        self._running = False
        self.calls = 0
        """Calls carried out."""
        self.trips = 0
        """Round trips that took."""

    async def call(self, argument: A) -> R:
        """Have one call carried out. Cancelled here, it may be carried out or not.

        Raises:
            BusUnavailable: whether it was carried out is not known.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._running:
            raise BusUnavailable("the bus is not at work")
        call: _Call[A, R] = _Call(argument)
        self._waiting.append(call)
        self._wake.set()
        try:
            await call.done.wait()
        finally:
            call.left = True
        if call.error is not None:
            # One error for many callers: each raises its own.
            raise BusUnavailable(str(call.error)) from call.error
        result: R = call.result  # type: ignore[assignment] # set wherever there is no error
        return result

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry calls, until cancelled."""
        self._running = True
        batch: list[_Call[A, R]] = []
        try:
            task_status.started()
            while True:
                await self._wake.wait()
                batch = self._take()
                if not batch:
                    self._wake = trio.Event()
                    continue
                try:
                    results = await self._carry([call.argument for call in batch])
                except BusUnavailable as error:
                    # Who waits behind them was not sent yet; he would only wait as
                    # long for the same.
                    self._fail([*batch, *self._waiting], error)
                    self._waiting.clear()
                    continue
                self.calls += len(batch)
                self.trips += 1
                for call, result in zip(batch, results, strict=True):
                    call.result = result
                    call.done.set()
        finally:
            self._running = False
            self._fail([*batch, *self._waiting], BusUnavailable("the bus has ended"))
            self._waiting.clear()

    def _take(self) -> list[_Call[A, R]]:
        batch: list[_Call[A, R]] = []
        while self._waiting and len(batch) < self._limit:
            call = self._waiting.popleft()
            if not call.left:
                batch.append(call)
        return batch

    @staticmethod
    def _fail(calls: Sequence[_Call[A, R]], error: BusUnavailable) -> None:
        for call in calls:
            if not call.done.is_set():
                call.error = error
                call.done.set()

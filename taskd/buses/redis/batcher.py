"""Shares round trips: the calls of many Trio tasks are carried out together.

A round trip through a worker thread costs far more than the calls in it. So calls that
come while one is under way wait, and go together in the next.
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
    """Whether its caller waits no more."""


class Batcher(Generic[A, R]):
    """See the module.

    Args:
        carry: carries out calls together and returns the result of each, in order. Raises
            `BusUnavailable` if it can't; then each of them may have been carried out or not.
        limit: the most calls in one round trip.
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
        """Round trips for them."""

    async def call(self, argument: A) -> R:
        """Carry out one call. If this is cancelled, it may still be carried out.

        Raises:
            BusUnavailable: it may have been carried out or not.
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
            # Several callers share the error: each raises a copy of its own.
            raise BusUnavailable(str(call.error)) from call.error
        result: R = call.result  # type: ignore[assignment] # set wherever there is no error
        return result

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry calls out, until cancelled."""
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
                    # Calls that wait were not sent yet; they fail too, rather than wait
                    # as long for the same error.
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

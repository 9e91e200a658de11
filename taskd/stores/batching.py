"""How calls share transactions, the same for every store that has a writer.

```
 execute(operation, argument) ──►  the store's queue
   waits, cancellable                │  the store's writer takes what waits
                                     ▼
                                   carry_out(calls)   commit, the store's own:
                                     │                  answers(calls, session)
                                     ▼                  each operation, once, with
   result or error            ◄──  wake(calls)          all its arguments
```

A store's writer decides how calls reach it, how many share a transaction, and how that is
committed and repeated. The rest is here.

Order. Callers of one batch have all called and none has been answered, so any order among
them is right; calls of one operation keep theirs. A caller that was cancelled, and may have
called again since, is left out when its batch begins. Cancelled later, it changes nothing
but that nobody is told.

Failure. An operation reads, decides, then writes, so an argument that it refuses (a taken
taskNo, a stale lease) has written nothing and disturbs no other. If the database fails, all
of the batch that is not committed yet get `StoreUnavailable`, and none of them has written
anything; the next batch tries afresh. If anything else goes wrong, each of the batch is tried
again in a transaction of its own, so that only the culprit fails.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import trio

from taskd.errors import StoreError, StoreUnavailable

BATCH = 500
"""Once a transaction has so many calls, no more join it."""

A = TypeVar("A")
R = TypeVar("R")


def _weightless(_argument: object) -> int:
    return 0


@dataclass(frozen=True, slots=True)
class Operation(Generic[A, R]):
    """A kind of write.

    ``run`` is awaited in a transaction, with its session and the arguments of all callers,
    and answers as many results, in order; an error among them is raised at its caller, and
    must have written nothing. It may be run again in another transaction, and keeps nothing
    of the one before.
    """

    name: str
    run: Callable[[Any, Sequence[A]], Awaitable[Sequence[R | StoreError]]]
    weigh: Callable[[A], int] = _weightless
    """An argument's bytes, where a transaction may have so many."""
    patient: bool = False
    """Whether a call may wait a little for others to share a transaction with: nobody
    outside waits for its result."""


_PENDING: Any = object()


@dataclass(slots=True, eq=False)
class Call:
    """One write that somebody waits for."""

    operation: Operation[Any, Any]
    argument: Any
    task: trio.lowlevel.Task
    cancelled: bool = False
    """Whether nobody waits for it any more. Set and heeded on the Trio thread, where one who
    is cancelled and one who is woken exclude each other."""
    result: Any = _PENDING
    """What its caller is told, an `Exception` by raising it; set once that is certain."""


Answers = Sequence[tuple[Sequence[Call], Sequence[object]]]
"""What calls of one operation each are to be told, once their transaction is committed."""


async def answers(calls: Sequence[Call], session: object) -> Answers:
    """Carry out calls in the transaction of a session, each operation once."""
    groups: dict[str, list[Call]] = {}
    for call in calls:
        groups.setdefault(call.operation.name, []).append(call)
    answered = []
    for name, group in groups.items():
        results = await group[0].operation.run(session, [call.argument for call in group])
        if len(results) != len(group):
            raise ValueError(f"{name} has {len(results)} results for {len(group)} calls")
        answered.append((group, results))
    return answered


def fail(calls: Iterable[Call], error: StoreUnavailable) -> None:
    """Have those of the calls that have no result yet fail, each with an error of its own."""
    for call in calls:
        if call.result is _PENDING:
            call.result = StoreUnavailable(str(error))
            call.result.__cause__ = error


def wake(calls: Iterable[Call]) -> None:
    """Tell those who wait for these calls, which have results. On the Trio thread."""
    for call in calls:
        if not call.cancelled:
            trio.lowlevel.reschedule(call.task)


@dataclass(frozen=True, kw_only=True, slots=True)
class WriterStatistics:
    """What a writer has done since it was made."""

    calls: int
    """Calls that were carried out, refused ones included."""
    batches: int
    """Transactions that were committed."""
    repeats: int
    """Transactions that were repeated, after a conflict or a broken connection."""
    failures: int
    """Batches that the database failed."""
    busy_s: float
    """Seconds spent on transactions, waiting for the disk or the server included."""
    waiting: int
    """About how many calls wait for their batch now."""


class BatchingWriter(ABC):
    """What takes calls and has each answered. Made and called on the Trio thread.

    Args:
        add: puts a call where this writer takes it from; may not wait.
    """

    def __init__(self, add: Callable[[Call], object]) -> None:
        self._add = add
        self._closing = False
        self._calls = self._batches = self._repeats = self._failures = 0
        self._busy_s = 0.0

    async def execute(self, operation: Operation[A, R], argument: A) -> R:
        """Carry out one write and wait until it is durable.

        Cancelled, it is left out if its batch has not begun, and carried out otherwise.

        Raises:
            StoreError: what the operation answered.
            StoreUnavailable: the database failed or is closed. Nothing was written,
                unless its message says that nobody knows.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closing:
            raise StoreUnavailable("the store is closed")
        call = Call(operation, argument, trio.lowlevel.current_task())
        self._add(call)

        def abandon(_raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            call.cancelled = True
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abandon)
        result = call.result
        if isinstance(result, Exception):
            try:
                raise result
            finally:
                del result, call  # the traceback would keep itself alive
        written: R = result
        return written

    def statistics(self) -> WriterStatistics:
        """What it has done, and how much waits."""
        return WriterStatistics(
            calls=self._calls,
            batches=self._batches,
            repeats=self._repeats,
            failures=self._failures,
            busy_s=self._busy_s,
            waiting=self._waiting(),
        )

    async def carry_out(self, batch: Sequence[Call]) -> None:
        """Write a batch: all of it together or, where that can't be, each alone.

        Afterwards each call whose caller waited as it began has a result, and the others
        have none. Cancelled or killed, it leaves those without one that are not committed,
        or not known to be.
        """
        started = time.perf_counter()
        calls = [call for call in batch if not call.cancelled]
        lots = [calls] if calls else []
        try:
            while lots:
                lot = lots.pop()
                try:
                    answered = await self._commit(lot)
                except StoreUnavailable as error:
                    failed = [*lot, *(call for rest in lots for call in rest)]
                    self._failures += 1
                    self._failed(len(failed), error)
                    fail(failed, error)
                    return
                except Exception as error:  # noqa: BLE001 - it is raised at its caller
                    if len(lot) > 1:
                        lots += [[call] for call in reversed(lot)]
                    else:
                        lot[0].result = self._reason(error)
                else:
                    self._calls += len(lot)
                    self._batches += 1
                    for group, results in answered:
                        for call, result in zip(group, results, strict=True):
                            call.result = result
        finally:
            self._busy_s += time.perf_counter() - started

    @abstractmethod
    async def _commit(self, calls: Sequence[Call]) -> Answers:
        """Carry out calls in one transaction (see `answers`) and commit it, durably.

        Raises:
            StoreUnavailable: the database failed. Nothing was written, unless its message
                says that nobody knows.
            Exception: one of the calls, or all of them together, can't be written; nothing
                was.
        """

    @abstractmethod
    def _waiting(self) -> int:
        """About how many calls wait for their batch."""

    def _reason(self, error: Exception) -> Exception:
        """What the caller is told of a call that failed alone."""
        return error

    def _failed(self, writes: int, error: StoreUnavailable) -> None:  # noqa: B027 - optional
        """Take note that so many calls of a batch were not written, and why."""

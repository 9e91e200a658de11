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

A store's writer decides how calls reach it, how many share a transaction, and how this is
committed and repeated. The rest is here.

Order. The calls of one batch are concurrent: none had an answer when the others were made. So
any order among them is right; calls of one operation keep theirs. A call whose caller was
cancelled when the batch begins is left out, since the caller may have called again. A later
cancel does not stop the call, but nobody is told its result.

Failure. An operation reads, decides, then writes. So a refused argument (a taken taskNo, a
stale lease) has written nothing, or a nonce at most, and does not disturb the others. If the
database fails, all calls of the batch that are not committed get `StoreUnavailable` and have
written nothing, unless its message says that nobody knows; the next batch tries afresh. After
any other error each call of the batch is tried again in a transaction of its own, so that only
the culprit fails.
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
"""Once a transaction has this many calls, no more join it."""

A = TypeVar("A")
R = TypeVar("R")


def _weightless(_argument: object) -> int:
    return 0


@dataclass(frozen=True, slots=True)
class Operation(Generic[A, R]):
    """A kind of write.

    ``run`` is awaited in a transaction, with its session and the arguments of all calls, and
    returns a result for each, in order. An error among the results is raised at its caller;
    its argument must have written nothing, or a nonce at most. ``run`` may be repeated in
    another transaction, so it keeps no state.
    """

    name: str
    run: Callable[[Any, Sequence[A]], Awaitable[Sequence[R | StoreError]]]
    weigh: Callable[[A], int] = _weightless
    """Returns about how many bytes an argument writes, for a writer that bounds them."""
    patient: bool = False
    """Whether a call may be put off a little, to share the transaction of others: no client
    waits for its result."""


_PENDING: Any = object()


@dataclass(slots=True, eq=False)
class Call:
    """One write that somebody waits for."""

    operation: Operation[Any, Any]
    argument: Any
    task: trio.lowlevel.Task
    cancelled: bool = False
    """Whether the caller was cancelled, so nobody waits for the call. The Trio thread sets this,
    and reads it in `wake`, so a caller is either cancelled or woken, never both."""
    result: Any = _PENDING
    """The call's result; an `Exception` is raised at the caller. Set once it is certain."""


Answers = Sequence[tuple[Sequence[Call], Sequence[object]]]
"""By operation: its calls and their results, which hold once the transaction is committed."""


async def answers(calls: Sequence[Call], session: object) -> Answers:
    """Carry out calls in a session's transaction; each operation runs once for all its calls."""
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
    """Have calls that have no result yet fail with this error, each with its own copy."""
    for call in calls:
        if call.result is _PENDING:
            call.result = StoreUnavailable(str(error))
            call.result.__cause__ = error


def wake(calls: Iterable[Call]) -> None:
    """Wake the callers of calls that have results. Runs on the Trio thread."""
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
    """Takes calls, and gets each a result. Made and called on the Trio thread.

    Args:
        add: puts a call where the writer takes its batches from, without waiting.
    """

    def __init__(self, add: Callable[[Call], object]) -> None:
        self._add = add
        self._closing = False
        self._calls = self._batches = self._repeats = self._failures = 0
        self._busy_s = 0.0

    async def execute(self, operation: Operation[A, R], argument: A) -> R:
        """Carry out one write and wait until it is durable.

        If the caller is cancelled, the write is left out if its batch has not begun, and
        carried out otherwise.

        Raises:
            StoreError: the operation refused the argument.
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
        """Return what the writer has done, and how many calls wait."""
        return WriterStatistics(
            calls=self._calls,
            batches=self._batches,
            repeats=self._repeats,
            failures=self._failures,
            busy_s=self._busy_s,
            waiting=self._waiting(),
        )

    async def carry_out(self, batch: Sequence[Call]) -> None:
        """Write a batch: all calls together or, if that fails, each alone.

        Afterwards each call has a result, but for those whose callers were cancelled before
        the batch began. If this method itself is cancelled or interrupted, calls that are not
        committed, or not known to be, have none.
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
        """Return the exception for the caller of a call that failed alone."""
        return error

    def _failed(self, writes: int, error: StoreUnavailable) -> None:  # noqa: B027 - optional
        """Note that this many calls of a batch were not written, and why."""

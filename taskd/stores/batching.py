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

Deadlines. A call with one can't be cancelled: its caller waits until there is a result, or the
deadline has passed. The caller is then told whether the call was left out, as if it had been
cancelled, or had begun, so that nobody knows. All deadlines of a writer share one timer.

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
from taskd.runtime.deadlines import Deadlines

BATCH = 500
"""Once a transaction has this many calls, no more join it."""

ROW_BYTES = 500
"""About how many bytes a task's row takes, without a long content."""

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
    quick: bool = False
    """Whether a call takes microseconds, as long as it weighs little."""
    patient: bool = False
    """Whether a call may be put off a little, to share the transaction of others: no client
    waits for its result."""


_PENDING: Any = object()


@dataclass(slots=True, eq=False)
class Call:
    """One write that somebody waits for."""

    operation: Operation[Any, Any]
    argument: Any
    task: trio.lowlevel.Task | None
    """The caller, as long as it waits. Only the Trio thread uses this: so a caller is woken,
    cancelled or given up, once."""
    cancelled: bool = False
    """Whether the caller was cancelled or given up, so nobody waits for the call. The Trio
    thread sets this."""
    begun: bool = False
    """Whether the call may be written, or was. Set before `cancelled` is read, which the Trio
    thread sets before it reads this: so a call that has not begun by then never will."""
    result: Any = _PENDING
    """The call's result; an `Exception` is raised at the caller. Set once it is certain."""
    given_up: StoreUnavailable | None = None
    """What the caller is told instead, if it does not wait any longer. See `give_up`."""


Answers = Sequence[tuple[Sequence[Call], Sequence[object]]]
"""By operation: its calls and their results, which hold once the transaction is committed."""


def begin(batch: Iterable[Call]) -> list[Call]:
    """Begin a batch: return those of its calls that somebody waits for. They are written from
    now on, whatever their callers do."""
    calls = []
    for call in batch:
        call.begun = True
        if not call.cancelled:
            calls.append(call)
    return calls


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


def overrule(calls: Iterable[Call], error: StoreUnavailable) -> None:
    """Have calls fail with this error, each with its own copy, whatever results they have."""
    for call in calls:
        call.result = _PENDING
    fail(calls, error)


def give_up(calls: Iterable[Call], error: StoreUnavailable) -> None:
    """Wake the callers of calls that take too long, each with its own copy of this error. Runs
    on the Trio thread. A result that comes later is nobody's."""
    for call in calls:
        task, call.task = call.task, None
        if task is not None:
            call.cancelled = True
            call.given_up = StoreUnavailable(str(error))
            trio.lowlevel.reschedule(task)


def wake(calls: Iterable[Call]) -> None:
    """Wake the callers of calls that have results. Runs on the Trio thread."""
    for call in calls:
        task, call.task = call.task, None
        if task is not None:
            trio.lowlevel.reschedule(task)


def _refuse(_raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED


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
        self._deadlines: Deadlines[tuple[Call, float]] = Deadlines(self._be_late)
        """Calls with a deadline, and when they were made."""

    async def execute(
        self, operation: Operation[A, R], argument: A, *, within_s: float | None = None
    ) -> R:
        """Carry out one write and wait until it is durable.

        If the caller is cancelled, the write is left out if its batch has not begun, and
        carried out otherwise. With ``within_s`` no cancel from outside reaches it: the caller
        waits, and is given up once so many seconds have passed, or at the moment of `end_by`.

        Raises:
            StoreError: the operation refused the argument.
            StoreUnavailable: the database failed or is closed, or the caller was given up.
                Nothing was written, unless its message says that nobody knows.
        """
        if within_s is None:
            await trio.lowlevel.checkpoint_if_cancelled()
        if self._closing:
            raise StoreUnavailable("the store is closed")
        call = Call(operation, argument, trio.lowlevel.current_task())
        if within_s is None:
            self._add(call)

            def abandon(_raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
                call.cancelled = True
                call.task = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abandon)
        else:
            now = trio.current_time()
            deadline = self._deadlines.deadline(now, within_s)
            if deadline <= now:
                raise StoreUnavailable("there was no time left to write this: nothing was written")
            self._add(call)
            number = self._deadlines.keep((call, now), deadline)
            await trio.lowlevel.wait_task_rescheduled(_refuse)
            self._deadlines.remove(number)
        result = call.given_up or call.result
        if isinstance(result, Exception):
            try:
                raise result
            finally:
                del result, call  # the traceback would keep itself alive
        written: R = result
        return written

    def end_by(self, latest: float) -> None:
        """Let no deadline of a call, present or future, be later than this moment.

        Args:
            latest: by `trio.current_time()`.
        """
        self._deadlines.end_by(latest)

    def _be_late(self, waiting: tuple[Call, float]) -> None:
        """Give up a caller whose deadline has passed, unless it was woken just before."""
        call, asked_at = waiting
        call.cancelled = True
        unknown = "whether this was written is not known"
        what = unknown if call.begun else "nothing was written"
        waited_s = trio.current_time() - asked_at
        late = f"the store did not answer within {waited_s:.3g} s; {what}"
        give_up([call], StoreUnavailable(late))

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
        calls = begin(batch)
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
                    self._keep(answered)
        finally:
            self._busy_s += time.perf_counter() - started

    def _keep(self, answered: Answers) -> None:
        """Keep the results of calls that are committed."""
        self._batches += 1
        for group, results in answered:
            self._calls += len(group)
            for call, result in zip(group, results, strict=True):
                call.result = result

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

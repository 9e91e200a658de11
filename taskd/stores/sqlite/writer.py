"""The one thread that writes: whatever waits becomes one transaction.

```
 Trio thread                          writer thread
 execute(operation, argument)
   waits, cancellable
 end of the loop's pass: all ──► queue ──► take all that waits (up to BATCH)
   that it has asked for                   BEGIN · each operation, once, with all
                                           its arguments · COMMIT (fsync)
   results or errors           ◄── one run_sync_soon for the whole batch
```

What one pass of Trio's loop asks for is handed over together, when the pass ends: the
first of it does not set out alone, and nothing waits for company that does not come,
but for calls that are patient: an attempt's end is put off for up to 2 ms, and is often
written with a create's or a lease's commit.

A commit costs an fsync however much it holds, so callers share it, and the
busier the store, the more do.

Order. Callers of one batch have all called and none has been answered, so any
order among them is right; calls of one operation keep theirs. A caller that was
cancelled, and may have called again since, is left out when its batch begins.

Several processes may write to one file. Each has a writer, and they take turns:
``turn`` is held from before BEGIN to after COMMIT.

Failure. An operation reads, decides, then writes, so an argument that is refused
(a taken taskNo, a stale lease) has written nothing and disturbs no other. If the
database fails, the whole batch is rolled back and all its callers get
`StoreUnavailable`; the next batch tries afresh. If anything else goes wrong, each
of the batch is tried again in a transaction of its own, so that only the culprit
fails. Killed anywhere, the file has the whole batch or none of it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import trio

from taskd.errors import StoreError, StoreUnavailable
from taskd.runtime import signals
from taskd.stores.sqlite.checkpoint import WAL_BOUND_PAGES, Checkpointer
from taskd.stores.sqlite.guard import FileGuard

logger = logging.getLogger("taskd.stores.sqlite")

BATCH = 500
"""Once a transaction has so many calls, no more join it."""

_PATIENCE_S = 0.002
"""How long a transaction of patient calls alone is put off, so that it may be shared."""

_CACHE_KIB = 16_384

_REUSABLE = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY})
_CALLERS_FAULT = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
    sqlite3.NotSupportedError,
)

A = TypeVar("A")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Operation(Generic[A, R]):
    """A kind of write.

    ``run`` is called in a transaction with the arguments of all callers and
    answers as many results, in order; an error among them is raised at its
    caller, and must have written nothing.
    """

    name: str
    run: Callable[[sqlite3.Connection, Sequence[A]], Sequence[R | StoreError]]
    patient: bool = False
    """Whether a call may wait for others to share a transaction with: nobody outside
    waits for its result."""


@dataclass(slots=True, eq=False)
class _Call:
    operation: Operation[Any, Any]
    argument: Any
    task: trio.lowlevel.Task
    cancelled: bool = False
    result: Any = None


@dataclass(frozen=True, kw_only=True, slots=True)
class WriterStatistics:
    """What a writer has done since it was started."""

    calls: int
    """Calls that were carried out, refused ones included."""
    batches: int
    """Transactions that were committed."""
    failures: int
    """Transactions that the database failed."""
    busy_s: float
    """Seconds spent on transactions, the waiting for the disk included."""
    waiting: int
    """Calls that this pass has made, and earlier passes whose calls wait."""


class Writer:
    """The writer thread and its queue. Made and called on the Trio thread.

    Args:
        guard: of the files of a database that was prepared and is locked; closed by the
            writer's end.
        checkpointer: told of what is committed; stopped by the writer's end.
        on_closed: called in the writer thread after its connection was closed.
        turn: held while it writes, where other processes write as well.
    """

    def __init__(
        self,
        guard: FileGuard,
        checkpointer: Checkpointer,
        on_closed: Callable[[], None],
        turn: contextlib.AbstractContextManager[object] | None = None,
    ) -> None:
        self._turn = contextlib.nullcontext() if turn is None else turn
        self._guard = guard
        self._checkpointer = checkpointer
        self._on_closed = on_closed
        self._token = trio.lowlevel.current_trio_token()
        self._asked: list[_Call] = []
        """What this pass of Trio's loop has asked for so far."""
        # A pass's calls each. None is the last thing ever put in.
        self._queue: queue.SimpleQueue[list[_Call] | None] = queue.SimpleQueue()
        self._passes = _Passes(self._hand_over)
        self._connection: sqlite3.Connection | None = None
        self._closing = False
        self._closed = trio.Event()
        self._calls = self._batches = self._failures = 0
        self._busy_s = 0.0
        self._thread = threading.Thread(target=self._run, name="taskd-store-writer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        trio.lowlevel.add_instrument(self._passes)
        signals.start_deaf(self._thread)

    def _hand_over(self) -> None:
        if self._asked:
            self._queue.put(self._asked)
            self._asked = []

    async def execute(self, operation: Operation[A, R], argument: A) -> R:
        """Carry out one write and wait until it is on disk.

        Raises:
            StoreError: what the operation answered.
            StoreUnavailable: the database failed or is closed; nothing was written.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closing:
            raise StoreUnavailable("the store is closed")
        call = _Call(operation, argument, trio.lowlevel.current_task())
        self._asked.append(call)

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

    async def aclose(self) -> None:
        """Finish what waits and end the thread."""
        if not self._closing:
            self._closing = True
            self._hand_over()
            self._queue.put(None)
            trio.lowlevel.remove_instrument(self._passes)
        await self._closed.wait()

    def statistics(self) -> WriterStatistics:
        """What it has done, and how much waits."""
        return WriterStatistics(
            calls=self._calls,
            batches=self._batches,
            failures=self._failures,
            busy_s=self._busy_s,
            waiting=len(self._asked) + self._queue.qsize(),
        )

    # What follows runs in the writer thread.

    def _run(self) -> None:
        closing = False
        while not closing:
            first = self._queue.get()
            rest: list[list[_Call] | None] = []
            if first is not None and all(call.operation.patient for call in first):
                with contextlib.suppress(queue.Empty):
                    rest.append(self._queue.get(timeout=_PATIENCE_S))
            taken = [first, *rest]
            calls: list[_Call] = []
            try:
                with self._turn:
                    batch, closing = self._collect(taken)
                    calls = [call for call in batch if not call.cancelled]
                    started = time.perf_counter()
                    self._write(calls)
                    self._busy_s += time.perf_counter() - started
            except BaseException as error:
                logger.exception("the store's writer failed")
                # Without a turn they have not been collected.
                batch, closing = (calls, closing) if calls else self._collect(taken)
                calls = batch
                for call in calls:
                    call.result = StoreUnavailable(f"the store's writer failed: {error!r}")
            self._soon(functools.partial(_wake, calls))
            self._finish_checkpoint()
        self._close()

    def _finish_checkpoint(self) -> None:
        if self._connection is None or not self._checkpointer.nearly_done:
            return
        try:
            with self._turn:
                self._checkpointer.finish(self._connection)
        except OSError as error:
            logger.warning("the write-ahead log is copied later: %s", error)

    def _collect(self, taken: list[list[_Call] | None]) -> tuple[list[_Call], bool]:
        """The calls that were taken from the queue, and those that wait in it; and
        whether they were the last there will be."""
        batch: list[_Call] = []
        while taken:
            calls = taken.pop(0)
            if calls is None:
                return batch, True
            batch += calls
            if not taken and len(batch) < BATCH:
                with contextlib.suppress(queue.Empty):
                    taken.append(self._queue.get_nowait())
        return batch, False

    def _write(self, calls: list[_Call]) -> None:
        if not calls:
            return
        try:
            self._transact(calls)
        except StoreUnavailable as error:
            self._failures += 1
            for call in calls:
                call.result = StoreUnavailable(str(error))
            self._checkpointer.hurry()
            return
        except sqlite3.Error as error:
            if not isinstance(error, _CALLERS_FAULT):
                self._fail(calls, error)
                return
            culprit: Exception = error
        except Exception as error:  # noqa: BLE001  it is raised at its caller
            culprit = error
        else:
            self._calls += len(calls)
            self._batches += 1
            return
        if len(calls) == 1:
            calls[0].result = culprit
            return
        for call in calls:
            self._write([call])

    def _transact(self, calls: list[_Call]) -> None:
        if self._connection is None:
            self._connection = self._guard.connect("rw")
            self._connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            self._connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_BOUND_PAGES}")
        connection = self._connection
        groups: dict[str, list[_Call]] = {}
        for call in calls:
            groups.setdefault(call.operation.name, []).append(call)
        connection.execute("BEGIN IMMEDIATE")
        try:
            self._guard.check_before_commit()
            for group in groups.values():
                results = group[0].operation.run(connection, [call.argument for call in group])
                for call, result in zip(group, results, strict=True):
                    call.result = result
            connection.execute("COMMIT")
        except BaseException:
            self._roll_back(connection)
            raise
        self._checkpointer.committed(connection)
        self._guard.check_after_commit()

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        # SQLite has rolled back on its own after some errors, a full disk among them.
        if not connection.in_transaction:
            return
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            logger.warning("a rollback failed, the connection is made anew: %s", error)
            self._discard()

    def _fail(self, calls: list[_Call], error: sqlite3.Error) -> None:
        self._failures += 1
        logger.error("the database failed %d writes, none was kept: %s", len(calls), error)
        for call in calls:
            call.result = self._guard.heed(error)
            call.result.__cause__ = error
        if getattr(error, "sqlite_errorcode", None) not in _REUSABLE:
            # What SQLite remembers of the file may be wrong after an I/O error.
            self._discard()

    def _discard(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error as error:
                logger.warning("a broken connection did not close: %s", error)

    def _close(self) -> None:
        try:
            self._checkpointer.stop()
            connection, self._connection = self._connection, None
            self._guard.close(connection)
            self._on_closed()
        except Exception:
            logger.exception("the store did not close cleanly; what was written is safe")
        self._soon(self._closed.set)

    def _soon(self, function: Callable[[], object]) -> None:
        try:
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            # Nobody is left to be told; what was committed stays so.
            logger.debug("the event loop ended before its writes did")


class _Passes(trio.abc.Instrument):
    """Calls a function after each pass of Trio's loop, before it looks for what comes
    from outside."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then

    def before_io_wait(self, timeout: float) -> None:
        """See `trio.abc.Instrument`."""
        del timeout
        self._then()


def _wake(calls: Sequence[_Call]) -> None:
    for call in calls:
        if not call.cancelled:
            trio.lowlevel.reschedule(call.task)

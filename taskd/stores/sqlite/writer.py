"""The one thread that writes: all waiting calls become one transaction (`batching`).

```
 Trio thread                          writer thread
 execute(operation, argument)
   waits, cancellable
 end of the loop's pass: all ──► queue ──► take all that waits (up to BATCH)
   that it has asked for                   BEGIN · the operations · COMMIT (fsync)
   results or errors           ◄── one run_sync_soon for the whole batch
```

The calls of one pass of Trio's loop are handed over together, when the pass ends. So the
first one gets no transaction of its own, and no call waits for others that may not come.
Only patient calls do: an attempt's end is put off for up to 2 ms, and is often written with
a create's or a lease's commit.

A commit costs one fsync whatever its size, so calls share it: the busier the store, the more
of them.

Several processes may write to one file. Each has a writer, and they take turns:
``turn`` is held from before BEGIN to after COMMIT.

Failure. The batch is rolled back. After a kill at any moment the file has the whole batch or
none of it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence

import trio

from taskd.errors import StoreUnavailable
from taskd.runtime import signals
from taskd.stores.batching import BATCH, Answers, BatchingWriter, Call, answers, fail, wake
from taskd.stores.operations.session import Session, at_once
from taskd.stores.sqlite.checkpoint import WAL_BOUND_PAGES, Checkpointer
from taskd.stores.sqlite.guard import FileGuard

logger = logging.getLogger("taskd.stores.sqlite")

_PATIENCE_S = 0.002
"""Seconds for which a transaction of patient calls alone is put off, so that others may share
it."""

_CACHE_KIB = 16_384

_REUSABLE = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY})
_CALLERS_FAULT = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
    sqlite3.NotSupportedError,
)


class Writer(BatchingWriter):
    """The writer thread and its queue. Made and called on the Trio thread.

    Args:
        guard: of the files of a database that was prepared and is locked; the writer closes
            it at its end.
        checkpointer: is told of each commit; the writer stops it at its end.
        on_closed: called in the writer thread after its connection was closed.
        turn: held while the writer writes; None: no other process writes.
        session: makes an operation's session of a connection.
    """

    def __init__(
        self,
        guard: FileGuard,
        checkpointer: Checkpointer,
        on_closed: Callable[[], None],
        turn: contextlib.AbstractContextManager[object] | None,
        session: Callable[[sqlite3.Connection], Session],
    ) -> None:
        # The calls of the current pass of Trio's loop.
        self._asked: list[Call] = []
        super().__init__(self._asked.append)
        self._turn = contextlib.nullcontext() if turn is None else turn
        self._session = session
        self._guard = guard
        self._checkpointer = checkpointer
        self._on_closed = on_closed
        self._token = trio.lowlevel.current_trio_token()
        # Each item is the calls of one pass; the last item is None.
        self._queue: queue.SimpleQueue[list[Call] | None] = queue.SimpleQueue()
        self._passes = _Passes(self._hand_over)
        self._connection: sqlite3.Connection | None = None
        self._closed = trio.Event()
        self._thread = threading.Thread(target=self._run, name="taskd-store-writer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        trio.lowlevel.add_instrument(self._passes)
        signals.start_deaf(self._thread)

    def _hand_over(self) -> None:
        if self._asked:
            self._queue.put(self._asked.copy())
            self._asked.clear()

    async def aclose(self) -> None:
        """Finish what waits and end the thread."""
        if not self._closing:
            self._closing = True
            self._hand_over()
            self._queue.put(None)
            trio.lowlevel.remove_instrument(self._passes)
        await self._closed.wait()
        self._deadlines.close()

    def _waiting(self) -> int:
        # The calls of a pass that was handed over count as one.
        return len(self._asked) + self._queue.qsize()

    # What follows runs in the writer thread.

    def _run(self) -> None:
        closing = False
        while not closing:
            first = self._queue.get()
            rest: list[list[Call] | None] = []
            if first is not None and all(call.operation.patient for call in first):
                with contextlib.suppress(queue.Empty):
                    rest.append(self._queue.get(timeout=_PATIENCE_S))
            taken = [first, *rest]
            batch: list[Call] = []
            try:
                with self._turn:
                    batch, closing = self._collect(taken)
                    at_once(self.carry_out(batch))
            except BaseException as error:
                logger.exception("the store's writer failed")
                if taken:  # the turn could not be taken
                    batch, closing = self._collect(taken)
                fail(batch, StoreUnavailable(f"the store's writer failed: {error!r}"))
            self._soon(functools.partial(wake, batch))
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

    def _collect(self, taken: list[list[Call] | None]) -> tuple[list[Call], bool]:
        """Return the calls that were taken from the queue and those that wait in it, and whether
        they are the last ones."""
        batch: list[Call] = []
        while taken:
            calls = taken.pop(0)
            if calls is None:
                return batch, True
            batch += calls
            if not taken and len(batch) < BATCH:
                with contextlib.suppress(queue.Empty):
                    taken.append(self._queue.get_nowait())
        return batch, False

    async def _commit(self, calls: Sequence[Call]) -> Answers:
        try:
            return await self._transact(calls)
        except StoreUnavailable:
            self._checkpointer.hurry()
            raise
        except sqlite3.Error as error:
            if isinstance(error, _CALLERS_FAULT):
                raise
            raise self._unavailable(len(calls), error) from error
        except OSError as error:  # the guard reads the files itself
            raise StoreUnavailable(f"the database can't be used now: {error}") from error

    async def _transact(self, calls: Sequence[Call]) -> Answers:
        if self._connection is None:
            self._connection = self._guard.connect("rw")
            self._connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            self._connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_BOUND_PAGES}")
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            self._guard.check_before_commit()
            answered = await answers(calls, self._session(connection))
            connection.execute("COMMIT")
        except BaseException:
            self._roll_back(connection)
            raise
        self._checkpointer.committed(connection)
        try:
            self._guard.check_after_commit()
        except OSError as error:
            raise StoreUnavailable(f"{error}; whether this was kept is not known") from error
        return answered

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        # SQLite has rolled back on its own after some errors, a full disk among them.
        if not connection.in_transaction:
            return
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            logger.warning("a rollback failed, the connection is made anew: %s", error)
            self._discard()

    def _unavailable(self, writes: int, error: sqlite3.Error) -> StoreUnavailable:
        logger.error("the database failed %d writes, none was kept: %s", writes, error)
        reason = self._guard.heed(error)
        if getattr(error, "sqlite_errorcode", None) not in _REUSABLE:
            # What SQLite has cached of the file may be wrong after an I/O error.
            self._discard()
        return reason

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
    """Calls a function after each pass of Trio's loop, before the loop waits for I/O."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then

    def before_io_wait(self, timeout: float) -> None:
        """See `trio.abc.Instrument`."""
        del timeout
        self._then()

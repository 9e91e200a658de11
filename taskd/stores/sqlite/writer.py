"""Writes: in the event loop where that takes microseconds, else in a thread.

```
 Trio thread                                    writer thread
 execute(operation, argument)
   waits, cancellable
 end of the loop's pass: all that it has
 asked for becomes one transaction
   BEGIN · the operations · COMMIT ──────────►  fdatasync of the log (`log_sync`)
   result or error                 ◄──────────
```

The calls of one pass of Trio's loop are written together, when the pass ends. So the first
one gets no transaction of its own, and no call waits for others that may not come. Only
patient calls do: an attempt's end is put off for up to 2 ms, and is often written with a
create's or a lease's commit. A sync costs the same whatever a commit holds, so calls share
it: those of the passes that end while a sync is under way share the next.

Everything else is written in the thread, as its own turn comes: operations that are not
`quick`, or much at once; what is written while the disk is slow; and whatever did not go well
in the loop, where nothing waits, nothing is repeated, and nothing is logged. So the loop only
knows transactions that succeed, and rolls back any other without a trace.

The connection is used by the loop or by the thread, never by both: the loop leaves it alone
from when it hands a batch to the thread until that has been written.

Several processes may write to one file. Each has a writer, and they take turns: ``turn`` is
held from before BEGIN to after COMMIT. The loop takes it only if it is free. The sync is
outside of it: whoever syncs makes the commits of all durable.

Failure. A batch that fails is rolled back. After a kill at any moment the file has the whole
batch or none of it; after a power cut, the batches that were synced, and of later ones the
first few or none. If a sync fails, all that it would have covered are told that nobody knows,
and nothing is written until the log has been restored (`LogSync.restore`). If it hangs, the
same is told once it has taken `HANG_S`, and calls are refused until it ends.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import trio

from taskd.errors import StoreError, StoreUnavailable
from taskd.runtime import signals
from taskd.runtime.alarm import Alarm
from taskd.stores.batching import (
    BATCH,
    Answers,
    BatchingWriter,
    Call,
    Operation,
    WriterStatistics,
    answers,
    begin,
    fail,
    give_up,
    overrule,
    wake,
)
from taskd.stores.operations.session import Session, at_once
from taskd.stores.sqlite.checkpoint import WAL_BOUND_PAGES, Checkpointer
from taskd.stores.sqlite.guard import FileGuard
from taskd.stores.sqlite.header import Position
from taskd.stores.sqlite.log_sync import LogSync

logger = logging.getLogger("taskd.stores.sqlite")

A = TypeVar("A")

HANG_S = 5.0
"""Seconds after which a sync counts as hung."""

_LOOKS = 5
"""How often a sync is seen under way before it counts as hung."""

_PATIENCE_S = 0.002
"""Seconds for which a transaction of patient calls alone is put off, so that others may share
it."""

_LOOP_BYTES = 32_768
"""What a batch may write in the loop, as its operations weigh it: some 50 rows."""

_SLOW_S = 0.002
_PENALTY = 5
"""A transaction in the loop that takes longer than the former has the thread write for this many
times as long. So slow transactions never take more than a sixth of the loop's time, and one that
was only short of a core costs little."""

_LOOP_LOG_PAGES = WAL_BOUND_PAGES - 2_048
"""Once the log has so many pages, the thread writes: SQLite may make a checkpoint."""

_BUSY_MS = 5_000
"""For which the thread waits for SQLite's lock, that another program may hold."""

_CACHE_KIB = 16_384

_UNSYNCED = 1
"""How many jobs the thread has at most. With one, a commit begins once the one before is synced,
so a power cut leaves no more than one of each process half written."""

_HANGS = f"the disk has not synced the store's log for {HANG_S:g} s"
_UNKNOWN = "whether this was kept is not known"

_REUSABLE = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY})
_CALLERS_FAULT = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
    sqlite3.NotSupportedError,
)


class Turn(contextlib.AbstractContextManager[object], Protocol):
    """The right to write, see `files.WriteTurn`."""

    def take_if_free(self) -> bool:
        """Take the turn if that needs no waiting; returns whether it was taken."""
        ...

    def release(self) -> None:
        """Give the turn up."""
        ...


class _NoTurn(contextlib.nullcontext[None]):
    """Of a process that is the only one to write."""

    def take_if_free(self) -> bool:
        return True

    def release(self) -> None:
        pass


class _NotHere(Exception):
    """This batch is not for the loop."""


class _Unsure(StoreUnavailable):
    """A transaction was committed, and may be lost."""


@dataclass(slots=True, eq=False)
class _Job:
    """Calls that the thread has: to be written, if they are not yet, and then to be synced."""

    calls: Sequence[Call]
    written: bool
    reads: Sequence[Call] = ()
    """Those that wait for the sync only."""
    position: Position | None = None
    """Of their commit in the log, where it is known, and of all that the reads have seen."""
    failed: bool = False
    """Whether their sync has failed."""

    @property
    def all(self) -> Sequence[Call]:
        return (*self.calls, *self.reads)


async def _nothing(
    _session: Session, positions: Sequence[Position | None]
) -> list[StoreError | None]:
    return [None] * len(positions)


_NOTHING = Operation("nothing", _nothing)
"""To be synced only, up to a position."""


class Writer(BatchingWriter):
    """See the module. Made and called on the Trio thread.

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
        turn: Turn | None,
        session: Callable[[sqlite3.Connection], Session],
    ) -> None:
        super().__init__(self._ask)
        self._turn: Turn = _NoTurn() if turn is None else turn
        self._session = session
        self._guard = guard
        self._checkpointer = checkpointer
        self._log = LogSync(guard)
        self._on_closed = on_closed
        self._token = trio.lowlevel.current_trio_token()
        self._connection: sqlite3.Connection | None = None
        self._asked: list[Call] = []
        """Calls that are part of no batch yet."""
        self._reads: list[Call] = []
        """Calls that wait for the next sync. They are told together, and take nobody's place: a
        job for each would leave none to those that write, as long as readers come."""
        self._pressing = False
        """Whether they are written when the pass ends."""
        self._patient_until = math.inf
        self._jobs: deque[_Job] = deque()
        """Those that are not synced yet, in order."""
        self._hangs = False
        self._slow_until = 0.0
        self._passes = _Passes(self._begin_pass, self._end_pass)
        self._done: deque[_Job] = deque()
        """Those that the thread is done with."""
        self._loop_waits = False
        """Whether the loop is about to wait, or waits, so that it has to be woken."""
        self._alarm = Alarm(self._look)
        # Each item is a job; the last item is None.
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._sync_began: float | None = None
        """When the sync began that is under way, by `time.perf_counter`. The thread sets it."""
        self._seen_sync: float | None = None
        self._seen = 0
        self._watch_at = 0.0
        self._sync_s = 0.0
        self._unsynced = False
        """Whether the thread may have made a commit of this job that is not synced yet."""
        self._closed = trio.Event()
        self._thread = threading.Thread(target=self._run, name="taskd-store-writer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        trio.lowlevel.add_instrument(self._passes)
        self._alarm.start()
        signals.start_deaf(self._thread)

    async def aclose(self) -> None:
        """Finish what waits and end the thread."""
        if not self._closing:
            self._closing = True
            with contextlib.suppress(KeyError):  # it has failed, and Trio has removed it
                trio.lowlevel.remove_instrument(self._passes)
            self._alarm.close()
            self._begin_pass()
            calls = self._take(len(self._asked))
            self._give(_Job(calls, written=False, reads=self._take_reads()))
            self._queue.put(None)
        await self._closed.wait()
        self._deadlines.close()

    async def until_durable(self, position: Position | None) -> None:
        """Wait until no power cut can undo what was committed up to a position.

        Raises:
            StoreUnavailable: that can't be made sure now.
        """
        if not self._log.is_durable(position):
            await self.execute(_NOTHING, position)

    def statistics(self) -> WriterStatistics:
        """See `BatchingWriter.statistics`."""
        statistics = super().statistics()
        return replace(statistics, busy_s=statistics.busy_s + self._sync_s)

    def _waiting(self) -> int:
        return len(self._asked) + sum(len(job.calls) for job in self._jobs if not job.written)

    def _ask(self, call: Call) -> None:
        if self._hangs:
            raise StoreUnavailable(f"{_HANGS}; nothing was written")
        if call.operation is _NOTHING:
            call.result = None
            self._reads.append(call)
            return
        self._asked.append(call)
        if not call.operation.patient:
            self._pressing = True
        elif len(self._asked) == 1:
            self._patient_until = trio.current_time() + _PATIENCE_S
            self._alarm.by(self._patient_until)

    def _take(self, most: int) -> list[Call]:
        taken = self._asked[:most]
        del self._asked[:most]
        self._pressing = bool(self._asked)
        return taken

    def _take_reads(self) -> list[Call]:
        taken, self._reads = self._reads, []
        return taken

    def _give(self, job: _Job) -> None:
        self._jobs.append(job)
        self._queue.put(job)
        if len(self._jobs) == 1:
            self._watch_at = trio.current_time() + HANG_S / _LOOKS
            self._alarm.by(self._watch_at)

    def _begin_pass(self) -> None:
        """Go on after the jobs that are done, as Trio begins to run what is ready."""
        self._loop_waits = False
        while self._done:
            self._finish(self._done.popleft())

    def _end_pass(self, timeout: float) -> None:
        """Write what was asked for, as Trio begins to wait for so many seconds."""
        self._write_asked()
        if timeout > 0:
            self._loop_waits = True
            if self._done:
                self._soon(self._begin_pass)

    def _write_asked(self) -> None:
        if len(self._jobs) >= _UNSYNCED or self._is_lent():
            return
        calls: list[Call] = []
        # A batch has none left if all its callers were cancelled.
        while self._pressing and not calls:
            calls = begin(self._take(BATCH))
        if calls or self._reads:
            written = not calls or self._write_here(calls)
            position = self._position() if written else None
            self._give(_Job(calls, written, self._take_reads(), position))
            if self._patient_until < math.inf and not self._asked:
                self._patient_until = math.inf
                self._alarm.put_off(self._watch_at)

    def _is_lent(self) -> bool:
        """Whether the thread has the connection."""
        return not all(job.written for job in self._jobs)

    def _write_here(self, calls: Sequence[Call]) -> bool:
        """Write calls in the loop. Returns whether they have results; if not, nothing was
        written."""
        connection = self._connection
        if connection is None or time.perf_counter() < self._slow_until or not _is_little(calls):
            return False
        began = time.perf_counter()
        try:
            if not self._turn.take_if_free():
                return False
            try:
                answered = at_once(self._transact(connection, calls, _check_append))
            finally:
                self._release()
        except _Unsure as error:
            self._failures += 1
            self._checkpointer.hurry()
            overrule(calls, error)
        except Exception:  # noqa: BLE001 - the thread tries again, and tells what is wrong
            return False
        else:
            self._keep(answered)
        finally:
            took = time.perf_counter() - began
            self._busy_s += took
            if took > _SLOW_S:
                self._slow_until = began + took * (1 + _PENALTY)
        return True

    def _position(self) -> Position | None:
        """Return the position of what was committed just now. (The thread could look itself,
        but would have to wait for the interpreter once more.) None if it can't be read, which
        the sync finds as well."""
        try:
            return self._guard.position()
        except (OSError, StoreUnavailable):
            return None

    def _release(self) -> None:
        try:
            self._turn.release()
        except OSError:
            logger.exception("the turn to write can't be given up, and no other worker can write")

    def _finish(self, job: _Job) -> None:
        self._jobs.popleft()
        self._failures += job.failed
        if self._hangs:
            self._hangs = False
            if not job.failed:
                logger.info("the disk has synced the store's log after all")
        wake(job.all)
        self._wake_readers()
        if self._checkpointer.nearly_done and job.calls:
            self._give(_Job((), written=False))

    def _wake_readers(self) -> None:
        """Wake those who wait for what is durable by now."""
        if self._reads:
            reads = self._take_reads()
            wake(read for read in reads if self._log.is_durable(read.argument))
            self._reads = [read for read in reads if read.task is not None]

    def _look(self) -> None:
        """Look whether patient calls have waited for long enough, and whether a sync hangs."""
        now = trio.current_time()
        if self._asked and not self._pressing:
            if now >= self._patient_until:
                self._pressing = True
            else:
                self._alarm.by(self._patient_until)
        if self._jobs and not self._hangs:
            if now >= self._watch_at:
                self._watch(now)
            self._alarm.by(self._watch_at)

    def _watch(self, now: float) -> None:
        """Count how often one sync was seen under way. A process that was stopped meanwhile has
        seen it no more often."""
        began = self._sync_began
        self._seen += 1
        if began is None or began != self._seen_sync:
            self._seen_sync, self._seen = began, 0
        if self._seen >= _LOOKS:
            self._give_up()
        self._watch_at = now + HANG_S / _LOOKS

    def _give_up(self) -> None:
        """Tell all who wait for a sync that hangs."""
        self._hangs = True
        logger.error("%s; writes are refused until it has", _HANGS)
        unknown = StoreUnavailable(f"{_HANGS}; {_UNKNOWN}")
        for job in self._jobs:
            give_up(job.all, unknown)
        give_up(self._take_reads(), unknown)
        give_up(self._take(len(self._asked)), StoreUnavailable(f"{_HANGS}; nothing was written"))

    # What follows runs in the writer thread, but for `_transact`.

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                self._carry(job)
            except BaseException as error:
                logger.exception("the store's writer failed")
                job.failed = True
                overrule(job.all, StoreUnavailable(f"the store's writer failed: {error!r}"))
            job.written = True
            self._done.append(job)
            if self._loop_waits or self._closing:
                self._soon(self._begin_pass)
        self._close()

    def _carry(self, job: _Job) -> None:
        """Write a job's calls if they are not, and sync."""
        if self._guard.in_doubt is not None and not self._restored(job):
            return
        if not job.written:
            try:
                with self._turn:
                    self._write(job.calls)
            except Exception as error:
                logger.exception("the store's writer failed")
                fail(job.calls, StoreUnavailable(f"the store's writer failed: {error!r}"))
            job.written = True
        self._sync(job)

    def _write(self, calls: Sequence[Call]) -> None:
        self._wait_for_locks(_BUSY_MS)
        self._unsynced = False
        try:
            if calls:
                at_once(self.carry_out(calls))
            elif self._connection is not None:
                self._timed(self._checkpointer.finish, self._connection)
        finally:
            self._wait_for_locks(0)

    def _wait_for_locks(self, longest_ms: int) -> None:
        if self._connection is not None:
            self._connection.execute(f"PRAGMA busy_timeout = {longest_ms}")

    def _sync(self, job: _Job) -> None:
        try:
            self._timed(self._log.sync, job.position)
        except (OSError, StoreUnavailable) as error:
            self._fail(job, self._guard.in_doubt or f"the database can't be used now: {error}")

    def _timed(self, sync: Callable[[A], object], argument: A) -> None:
        began = time.perf_counter()
        self._sync_began = began
        try:
            sync(argument)
        finally:
            self._sync_began = None
            self._sync_s += time.perf_counter() - began

    def _restored(self, job: _Job) -> bool:
        """Whether the files, which are in doubt, could be restored. If not, the calls fail."""
        self._sync_began = time.perf_counter()
        try:
            with self._turn:
                self._log.restore()
        except (OSError, sqlite3.Error, StoreUnavailable) as error:
            self._fail(job, f"{self._guard.in_doubt}, nor restored: {error}")
            return False
        finally:
            self._sync_began = None
        logger.warning("the store's log was written anew and synced: writes are taken again")
        # What SQLite has cached may be wrong.
        self._discard()
        return True

    def _fail(self, job: _Job, why: str) -> None:
        job.failed = True
        what = _UNKNOWN if job.written else "nothing was written"
        overrule(job.calls, StoreUnavailable(f"{why}; {what}"))
        overrule(job.reads, StoreUnavailable(f"{why}; {_UNKNOWN}"))

    async def _commit(self, calls: Sequence[Call]) -> Answers:
        try:
            if self._connection is None:
                self._connection = self._connect()
            if self._unsynced:
                # Each call of a batch has a commit of its own: no power cut may tear them all.
                self._timed(self._log.sync, None)
            self._unsynced = True
            return await self._transact(self._connection, calls, _check_files)
        except StoreUnavailable:
            self._checkpointer.hurry()
            raise
        except sqlite3.Error as error:
            if isinstance(error, _CALLERS_FAULT):
                raise
            raise self._unavailable(len(calls), error) from error
        except OSError as error:  # the guard reads the files itself
            raise StoreUnavailable(f"the database can't be used now: {error}") from error

    def _connect(self) -> sqlite3.Connection:
        connection = self._guard.connect("rw")
        try:
            self._log.open()
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_BOUND_PAGES}")
        except BaseException:
            connection.close()
            raise
        return connection

    async def _transact(
        self,
        connection: sqlite3.Connection,
        calls: Sequence[Call],
        check: Callable[[FileGuard], None],
    ) -> Answers:
        """Carry out calls and commit them, unless the check of the files raises."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            check(self._guard)
            answered = await answers(calls, self._session(connection))
            connection.execute("COMMIT")
        except BaseException:
            self._roll_back(connection)
            raise
        self._checkpointer.committed(connection)
        try:
            self._guard.check_after_commit()
        except (OSError, StoreUnavailable) as error:
            raise _Unsure(f"{error}; {_UNKNOWN}") from error
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
            self._log.close()
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


def _check_files(guard: FileGuard) -> None:
    guard.check_before_commit()


def _check_append(guard: FileGuard) -> None:
    """Refuse a transaction in the loop that does more than to append to the log."""
    if not guard.only_appends(most_frames=_LOOP_LOG_PAGES):
        raise _NotHere


def _is_little(calls: Sequence[Call]) -> bool:
    weight = 0
    for call in calls:
        operation = call.operation
        if not operation.quick:
            return False
        weight += operation.weigh(call.argument)
    return weight <= _LOOP_BYTES


class _Passes(trio.abc.Instrument):
    """Calls functions as a pass of Trio's loop begins and ends. The loop waits for I/O in
    between.

    Trio logs what an instrument raises, and uses it no more: then nothing would ever be written
    again, and every caller would wait. So an error ends Trio's run, and with it the process."""

    def __init__(self, begin: Callable[[], None], end: Callable[[float], None]) -> None:
        self._begin = begin
        self._end = end

    def before_io_wait(self, timeout: float) -> None:
        """See `trio.abc.Instrument`."""
        try:
            self._end(timeout)
        except BaseException as error:
            trio.lowlevel.spawn_system_task(_fail_run, error)
            raise

    def after_io_wait(self, timeout: float) -> None:
        """See `trio.abc.Instrument`. What is woken here runs in this pass."""
        del timeout
        try:
            self._begin()
        except BaseException as error:
            trio.lowlevel.spawn_system_task(_fail_run, error)
            raise


async def _fail_run(error: BaseException) -> None:
    raise error

"""Keeps the write-ahead log short without holding up commits.

Every commit appends to the log; a checkpoint copies the log's pages into the database.
Once all of them are copied, the next commit starts the log from its beginning.

A thread of its own copies and syncs while commits go on. Under constant load it never
reaches the end, since there is always one commit more. So when little is left, the writer
copies the rest between two batches: a few pages, and a sync of a file that the thread has
synced already (1.5 ms instead of 12 ms, measured). If processes share the file, each makes
its own checkpoints, and each writer copies in its turn to write.

If a reader that does not end holds the checkpoints up, that is reported (`wal_watch`). If the
thread can't keep up, SQLite makes the writer copy once the log is past `WAL_BOUND_PAGES`.
"""

from __future__ import annotations

import logging
import sqlite3
import threading

from taskd.errors import StoreUnavailable
from taskd.runtime import signals
from taskd.stores.sqlite.guard import FileGuard
from taskd.stores.sqlite.wal_watch import LogWatch

logger = logging.getLogger("taskd.stores.sqlite")

WAL_BOUND_PAGES = 16_384
"""64 MiB of log, from which on the writer makes a checkpoint at every commit."""

_CHANGES = 5_000
"""Rows changed between two checkpoints: some 8 MiB of log. A number of calls would not do: one
call may create a thousand tasks, or purge as many."""

_LOOK_EVERY_S = 1.0

_BEGIN_ANEW = "INSERT OR REPLACE INTO meta (name, value) VALUES ('probe', NULL)"
_PASSIVE = "PRAGMA wal_checkpoint(PASSIVE)"


class Checkpointer:
    """The thread that makes checkpoints. The writer calls `committed`, `finish` and `hurry`.

    Args:
        guard: of the database's files. Nothing is copied while they are not in order.
    """

    def __init__(self, guard: FileGuard) -> None:
        self._guard = guard
        self._connection: sqlite3.Connection | None = None
        self._watch = LogWatch(guard)
        self._limited = False
        """Whether the writer's next commit may cut the log's file."""
        self._changes = self._seen = 0
        self._commits = self._seen_commits = 0
        self._wanted = threading.Event()
        self.nearly_done = False
        """Whether `finish` has something to do."""
        self._stopping = False
        self._failing = False
        self._thread = threading.Thread(
            target=self._run, name="taskd-store-checkpoint", daemon=True
        )

    def start(self) -> None:
        """Start the thread."""
        signals.start_deaf(self._thread)

    def committed(self, connection: sqlite3.Connection) -> None:
        """Note how much the writer has changed, and wake the thread if a checkpoint is due."""
        self._commits += 1
        total = connection.total_changes
        # The count of a new connection begins at 0.
        self._changes += total - self._seen if total >= self._seen else total
        self._seen = total
        if self._changes >= _CHANGES and not self._wanted.is_set():
            self._changes = 0
            self._wanted.set()

    def finish(self, connection: sqlite3.Connection) -> None:
        """Copy what the thread has left, if it is done. The writer calls this with its
        connection, outside of a transaction, in its turn to write."""
        if self.nearly_done:
            self.nearly_done = False
            try:
                self._guard.check(alone=True)
                _checkpoint(connection)
                if self._watch.cutting or self._limited:
                    self._limited = self._watch.cutting
                    self._watch.limit(connection)
            except (StoreUnavailable, sqlite3.Error) as error:
                self._heed(error)
                self._note(error)
            else:
                self._note(None)

    def degraded(self) -> str | None:
        """Return why the log can't be shortened, or None if it can."""
        return self._watch.held

    def hurry(self) -> None:
        """Have the thread look at the files now."""
        self._wanted.set()

    def stop(self) -> None:
        """End the thread, close its connection, and wait for it. The writer's
        connection may be open."""
        self._stopping = True
        self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        wanted = False
        while not self._stopping:
            try:
                self._look(copy=wanted)
            except Exception:
                logger.exception("the store's checkpointing failed, it is tried again")
            wanted = self._wanted.wait(_LOOK_EVERY_S)
            self._wanted.clear()
        self._discard()

    def _look(self, *, copy: bool) -> None:
        """Look at the files, and copy if ``copy`` is set or the log is long."""
        try:
            if self._connection is None:
                self._connection = self._guard.connect("rw")
            self._guard.check()
        except StoreUnavailable:
            self._save()  # the guard has logged what is wrong
            return
        except sqlite3.Error as error:
            self._note(error)
            return
        if copy or self._watch.is_long:
            failure = self._copy(self._connection)
            self._note(failure)
            self.nearly_done = failure is None

    def _copy(self, connection: sqlite3.Connection) -> Exception | None:
        try:
            _checkpoint(connection)
            self._guard.sync()
            # This copies only what was committed meanwhile.
            busy, frames, copied = _checkpoint(connection)
            self._guard.sync()
            self._guard.copied()
            if not busy:  # else another process makes a checkpoint
                self._watch.note(frames, copied)
                self._cut(connection)
        except (sqlite3.Error, OSError) as error:
            self._heed(error)
            # What SQLite has cached of the file may be wrong after an I/O error.
            self._discard()
            return error
        return None

    def _heed(self, error: Exception) -> None:
        """Have the files doubted if SQLite could not sync one: the next sync would succeed, and
        prove nothing."""
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_IOERR_FSYNC:
            self._guard.doubt(f"{self._guard.path} or its log could not be synced: {error}")

    def _cut(self, connection: sqlite3.Connection) -> None:
        """If the log's file is too long and no commit has come since the last look, begin the
        log anew, which cuts the file."""
        commits, self._seen_commits = self._seen_commits, self._commits
        if self._watch.cutting and commits == self._commits:
            self._watch.limit(connection)
            connection.execute(_BEGIN_ANEW)

    def _save(self) -> None:
        """Copy a log that has lost its name into the database: the next start would not find
        it."""
        if self._connection is None or not self._guard.log_is_lost or self._guard.in_doubt:
            return
        try:
            busy, frames, copied = _checkpoint(self._connection)
        except sqlite3.Error as error:
            self._heed(error)
            self._note(error)
            return
        if not busy and frames == copied:
            self._guard.saved()

    def _discard(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _note(self, failure: Exception | None) -> None:
        if failure is not None and not self._failing:
            logger.warning("the write-ahead log can't be copied, it grows: %s", failure)
        elif failure is None and self._failing:
            logger.info("the write-ahead log is copied again")
        self._failing = failure is not None


def _checkpoint(connection: sqlite3.Connection) -> tuple[int, int, int]:
    """Copy as much as readers allow. Returns whether another checkpoint prevented it, how many
    frames the log has, and how many of them are copied."""
    busy, frames, copied = connection.execute(_PASSIVE).fetchone()
    return busy, frames, copied

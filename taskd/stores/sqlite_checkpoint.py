"""Keeps the write-ahead log short without holding up commits.

Every commit appends to the log; a checkpoint copies its pages into the database.
Once all of it is copied, the next commit starts the log from its beginning.

A thread of its own copies and syncs while commits go on. Under constant load it
never sees the end, since there is always one commit more; so when little is left
the writer copies the rest between two batches, which is a few pages and a sync
of what the thread has synced already (1.5 ms instead of 12 ms, measured). Where
processes share the file, each checkpoints for itself, and its writer in its turn.

Where the thread can't keep up, SQLite makes the writer copy once the log is past
`WAL_BOUND_PAGES`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from pathlib import Path

from taskd.stores.sqlite_schema import connect

logger = logging.getLogger("taskd.stores.sqlite")

WAL_BOUND_PAGES = 16_384
"""64 MiB: from there on the writer checkpoints by itself, at every commit."""

_CHANGES = 5_000
"""Rows changed between two checkpoints: some 8 MiB of log. Calls would not do: one may
create a thousand tasks, or purge as many."""

_PASSIVE = "PRAGMA wal_checkpoint(PASSIVE)"


class Checkpointer:
    """The checkpointing thread. `committed` and `finish` are the writer's to call.

    Args:
        path: the database. It is opened once, for syncing, and must not be closed
            before SQLite has closed it: the process would lose SQLite's locks.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._changes = self._seen = 0
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
        self._thread.start()

    def committed(self, connection: sqlite3.Connection) -> None:
        """Note what the writer has changed, and wake the thread where it is time."""
        total = connection.total_changes
        # A connection that was made anew counts anew.
        self._changes += total - self._seen if total >= self._seen else total
        self._seen = total
        if self._changes >= _CHANGES and not self._wanted.is_set():
            self._changes = 0
            self._wanted.set()

    def finish(self, connection: sqlite3.Connection) -> None:
        """Copy what the thread has left, if it is done, on the writer's connection
        and outside of a transaction."""
        if self.nearly_done:
            self.nearly_done = False
            self._note(_checkpoint(connection))

    def stop(self) -> None:
        """End the thread and wait for it. The writer's connection may be open."""
        self._stopping = True
        self._wanted.set()
        self._thread.join()

    def close(self) -> None:
        """Close the file, once every connection to it is closed."""
        os.close(self._file)

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            if self._stopping:
                return
            failure = self._copy()
            self._note(failure)
            self.nearly_done = failure is None
            self._wanted.clear()
            if self._stopping:
                return

    def _copy(self) -> Exception | None:
        try:
            with contextlib.closing(connect(self._path, mode="rw")) as connection:
                # The second round has only what was committed during the first.
                for _ in range(2):
                    failure = _checkpoint(connection)
                    if failure is not None:
                        return failure
                    os.fdatasync(self._file)
        except (sqlite3.Error, OSError) as error:
            return error
        return None

    def _note(self, failure: Exception | None) -> None:
        if failure is not None and not self._failing:
            logger.warning("the write-ahead log can't be copied, it grows: %s", failure)
        elif failure is None and self._failing:
            logger.info("the write-ahead log is copied again")
        self._failing = failure is not None


def _checkpoint(connection: sqlite3.Connection) -> Exception | None:
    try:
        connection.execute(_PASSIVE).fetchone()
    except sqlite3.Error as error:
        return error
    return None

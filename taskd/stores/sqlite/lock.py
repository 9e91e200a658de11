"""The right to be the only daemon on a SQLite database.

These are two locks, which the kernel releases when their holder ends, however it ends, so
no lock is ever stale. SQLite's own locks would let a second daemon in between two
transactions.

- an exclusive ``flock`` on ``NAME.lock``, the only lock that older versions know. The
  content of this file is a `Record`.
- a lock on a byte of the database that SQLite leaves alone, for an open file description.
  It holds by whatever name the database is opened: in spite of a removed lock file, a hard
  link, or a folder that is mounted twice.

Processes that a holder forks hold both locks too: these are free once all of them have
ended.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from taskd.errors import StoreRefused
from taskd.stores.sqlite.files import (
    FILE_MODE,
    FileId,
    lock_path,
    make_file,
    refuse_special,
    status_of,
    wal_path,
)
from taskd.stores.sqlite.header import DatabaseHeader
from taskd.stores.sqlite.holders import openers
from taskd.stores.sqlite.lock_record import Record, State, write_line

_GLANCE_S = 0.02
_BYTE = 2**62
"""The byte of a database that is locked. SQLite's own are at 2**30."""


class StoreLock:
    """Both locks: `take` gets the first, `seize` the second, `release` gives both up.

    Attributes:
        before: the record that the last holder left.
        database: the database's file, once it is seized.
        database_fd: open on that file. When this closes, the process loses SQLite's locks,
            so only `release` closes it.
        file: the lock file.
    """

    def __init__(self, path: Path, fd: int, before: Record) -> None:
        self._path = path
        self._fd = fd
        self.before = before
        self.file = FileId.of(os.fstat(fd))
        self.database = FileId(0, 0)
        self.database_fd = -1
        self._used = False

    @classmethod
    def take(cls, database: Path, *, patience_s: float = 0.0) -> Self:
        """Take the lock beside a database, or say who has it.

        Args:
            database: the path of the database.
            patience_s: seconds to wait for the holder to end. Processes that a killed holder
                forked are killed with it, and that takes a moment.

        Raises:
            StoreRefused: another process holds it, the lock file can't be made, or the path
                is that of a folder, a device or a pipe.
        """
        refuse_special(database)
        path = lock_path(database)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        except OSError as error:
            raise StoreRefused(f"the lock file {path} can't be opened: {error.strerror}") from error
        try:
            _within(patience_s, lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB))
            before = Record.read(fd)
            if before.pid:
                write_line(fd, "pid", os.getpid())
            else:
                Record(pid=str(os.getpid()), state=State.NEW).write(fd)
        except BlockingIOError:
            holder = Record.read(fd).pid
            os.close(fd)
            raise _in_use(database, f"process {holder or 'unknown'}") from None
        except OSError as error:
            os.close(fd)
            raise StoreRefused(f"the lock file {path} can't be held: {error.strerror}") from error
        return cls(database, fd, before)

    def seize(self, *, patience_s: float = 0.0) -> None:
        """Take the lock on the database itself. Makes the database if it is missing.

        Raises:
            StoreRefused: another process holds it, or it can't be opened.
        """
        path = self._path
        make_file(path)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise StoreRefused(f"the database {path} can't be opened: {error.strerror}") from error
        self.database, self.database_fd = FileId.of(os.fstat(fd)), fd
        try:
            _within(patience_s, lambda: _lock_byte(fd))
        except BlockingIOError:
            others = ", ".join(str(process) for process in openers(self.database))
            raise _in_use(path, others or "a process that can't be seen from here") from None
        except OSError as error:
            raise StoreRefused(f"the database {path} can't be locked: {error.strerror}") from error

    def record(self) -> Record:
        """Return what the lock file says now."""
        return Record.read(self._fd)

    def note(self, record: Record) -> None:
        """Write a record into the lock file, durably.

        Raises:
            StoreRefused: it can't be written.
        """
        self._used = record.state is State.RUNNING
        try:
            record.write(self._fd)
        except OSError as error:
            raise StoreRefused(
                f"the lock file {lock_path(self._path)} can't be written: {error.strerror}"
            ) from error

    def note_log(self, log: FileId | None, index: FileId | None) -> None:
        """Note which files the write-ahead log and its index are, or that there are
        none."""
        write_line(self._fd, "index", index and index.inode, durably=False)
        write_line(self._fd, "log", log and log.inode)

    def note_header(self, header: DatabaseHeader) -> None:
        """Note the counts that the database's header has now."""
        write_line(self._fd, "schema", header.schema, durably=False)
        write_line(self._fd, "changes", header.changes, durably=False)

    def note_state(self, state: State, *, durably: bool = True) -> None:
        """Note what has become of the database while it is used; ``durably``: for after a power
        cut as well."""
        write_line(self._fd, "state", state, durably=durably)

    def release(self) -> None:
        """Give the locks up, and note whether the database was closed. The lock file stays: if
        it were deleted, two processes could hold locks on two files of its name."""
        try:
            self._note_end()
        finally:
            if self.database_fd >= 0:
                os.close(self.database_fd)
            os.close(self._fd)

    def _note_end(self) -> None:
        record = self.record()
        if not self._used or record.state is not State.RUNNING or record.log is not None:
            return
        status, log = status_of(self._path), status_of(wal_path(self._path))
        if status is not None and FileId.of(status) == self.database and not (log and log.st_size):
            write_line(self._fd, "stamp", (status.st_size, status.st_mtime_ns), durably=False)
            write_line(self._fd, "state", State.CLOSED)


def _in_use(database: Path, holder: str) -> StoreRefused:
    return StoreRefused(f"the database {database} is in use by another taskd, {holder}")


def _lock_byte(fd: int) -> None:
    wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, _BYTE, 1, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted)
    except OSError as error:
        if error.errno == errno.EACCES:  # one of two codes for a byte that is locked
            raise BlockingIOError from error
        if error.errno != errno.EINVAL:
            raise
        # This kernel, as in some sandboxes, has no such locks. SQLite has no ``flock`` on the
        # file.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _within(patience_s: float, lock: Callable[[], None]) -> None:
    """Take a lock. Waits for this time at most, then raises `BlockingIOError`."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            lock()
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
        else:
            return
        time.sleep(_GLANCE_S)  # noqa: TID251 - in a thread, or before Trio runs

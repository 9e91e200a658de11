"""The files of a SQLite store: folder, database, and the locks beside it.

``NAME.lock`` is held by one daemon, with an exclusive ``flock``. The kernel gives it
up when its holder ends, however it ends, so there is no stale one. SQLite's own locks
would let a second daemon in between two transactions. Processes that a holder has
forked hold it with it: it is free once all of them have ended.

``NAME.turn`` is held by one of those processes while it writes. They would queue for
SQLite's own lock as well, but by sleeping and looking again.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from taskd.errors import StoreRefused

_FOLDER_MODE = 0o700
_FILE_MODE = 0o600
_LOCK_GLANCE_S = 0.02


class StoreLock:
    """The right to be the only daemon on a database, until `release`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def take(cls, database: Path, *, patience_s: float = 0.0) -> StoreLock:
        """Take the lock, or say who has it.

        Args:
            database: whose.
            patience_s: how long to wait for its holder to end. Whatever a holder that
                was killed has forked is killed with it, and that takes a moment.

        Raises:
            StoreRefused: another process holds it, or the lock file can't be made.
        """
        path = lock_path(database)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        except OSError as error:
            raise StoreRefused(f"the lock file {path} can't be opened: {error.strerror}") from error
        try:
            _flock_within(fd, patience_s)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise StoreRefused(
                f"the database {database} is in use by another taskd, process {holder or 'unknown'}"
            ) from None
        except OSError as error:
            os.close(fd)
            raise StoreRefused(f"the lock file {path} can't be held: {error.strerror}") from error
        return cls(fd)

    def release(self) -> None:
        """Give the lock up. The file stays: to delete it would let two processes
        hold locks on two files of its name."""
        os.close(self._fd)


class WriteTurn:
    """The right to write, among the processes that share a database; a context
    manager, for one thread at a time. Blocks until it is this one's turn.

    A holder that is killed loses it. One that is stopped keeps it, and holds up the
    others until its supervisor kills it.
    """

    def __init__(self, database: Path) -> None:
        path = database.with_name(database.name + ".turn")
        # Opened by each process for itself: forked ones would share one lock.
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)

    def __enter__(self) -> Self:
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file. It stays, as the other one does."""
        os.close(self._fd)


def _flock_within(fd: int, patience_s: float) -> None:
    """Take a lock, waiting so long at most; raises `BlockingIOError` then."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
        else:
            return
        time.sleep(_LOCK_GLANCE_S)  # noqa: TID251 - in a thread, or before Trio runs


def lock_path(database: Path) -> Path:
    """Where the lock of this database is."""
    return database.with_name(database.name + ".lock")


def wal_path(database: Path) -> Path:
    """Where SQLite keeps this database's write-ahead log."""
    return database.with_name(database.name + "-wal")


def make_folder(folder: Path) -> None:
    """Make the folder and those above it, where missing, for this user only.

    Raises:
        StoreRefused: it can't be made.
    """
    try:
        for missing in reversed([part for part in (folder, *folder.parents) if not part.exists()]):
            missing.mkdir(mode=_FOLDER_MODE, exist_ok=True)
    except OSError as error:
        raise StoreRefused(f"the folder {folder} can't be made: {error.strerror}") from error


def make_file(database: Path) -> None:
    """Make an empty database file, where missing, for this user only. SQLite
    gives its ``-wal`` and ``-shm`` the mode of the database.

    Raises:
        StoreRefused: it can't be made.
    """
    try:
        fd = os.open(database, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
    except FileExistsError:
        _check_usable(database)
        return
    except OSError as error:
        raise StoreRefused(f"the database {database} can't be made: {error.strerror}") from error
    os.close(fd)
    # The file's name must survive a power cut as surely as what will be in it.
    folder_fd = os.open(database.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder_fd)
    finally:
        os.close(folder_fd)


def _check_usable(database: Path) -> None:
    """Say what SQLite would not: why a file that is there can't be opened."""
    if database.is_dir():
        raise StoreRefused(f"the database {database} is a folder, and must be a file")
    try:
        os.close(os.open(database, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise StoreRefused(f"the database {database} can't be opened: {error.strerror}") from error

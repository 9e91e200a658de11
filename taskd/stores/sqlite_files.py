"""The files of a SQLite store: folder, database, and the lock that one daemon holds.

The lock is an exclusive ``flock`` on ``NAME.lock`` beside the database. The
kernel gives it up when its holder ends, however it ends, so there is no stale
one. SQLite's own locks would let a second daemon in between two transactions.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from taskd.errors import StoreRefused

_FOLDER_MODE = 0o700
_FILE_MODE = 0o600


class StoreLock:
    """The right to be the only daemon on a database, until `release`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def take(cls, database: Path) -> StoreLock:
        """Take the lock, or say who has it.

        Raises:
            StoreRefused: another process holds it, or the lock file can't be made.
        """
        path = lock_path(database)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        except OSError as error:
            raise StoreRefused(f"the lock file {path} can't be opened: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
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

"""The files of a SQLite store: where they are, how they are made and told apart.

Beside the database are SQLite's ``-wal`` and ``-shm``, the ``.lock`` of the one daemon that
may be at work on it (`lock`), and ``.turn``, which each of that daemon's processes locks
while it writes. SQLite's own lock would do, but its waiters sleep and look again.
"""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from taskd.errors import StoreRefused

FILE_MODE = 0o600

_FOLDER_MODE = 0o700


class FileId(NamedTuple):
    """A file's identity, whatever its name. No other file gets it while this one is open."""

    device: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """Return the identity of the file with this status."""
        return cls(status.st_dev, status.st_ino)


class WriteTurn:
    """The right to write, for one at a time of the processes that share a database. A context
    manager for one thread at a time, which blocks until it is this process's turn.

    A process that is killed loses the turn. One that is stopped keeps it, and holds up the
    others until its supervisor kills it.
    """

    def __init__(self, database: Path) -> None:
        path = beside(database, ".turn")
        # Each process opens the file itself: with an inherited descriptor all share one lock.
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)

    def __enter__(self) -> Self:
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.release()

    def take_if_free(self) -> bool:
        """Take the turn if no other process has it; returns whether it was taken."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Give the turn up."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file. It stays on the disk, as the lock file does."""
        os.close(self._fd)


def beside(database: Path, suffix: str) -> Path:
    """Return the path beside this database that has its name and this suffix."""
    return database.with_name(database.name + suffix)


def lock_path(database: Path) -> Path:
    """Return the path of this database's lock file."""
    return beside(database, ".lock")


def wal_path(database: Path) -> Path:
    """Return the path of this database's write-ahead log."""
    return beside(database, "-wal")


def shm_path(database: Path) -> Path:
    """Return the path of the index of this database's write-ahead log."""
    return beside(database, "-shm")


def status_of(path: Path) -> os.stat_result | None:
    """Return the status of the file at this path; None if there is none.

    Raises:
        StoreRefused: it can't be read.
    """
    try:
        return path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreRefused(f"{path} can't be looked at: {error.strerror}") from error


def refuse_special(database: Path) -> None:
    """Refuse a path that can't be a database: a folder, a device, or a pipe, which SQLite would
    wait for.

    Raises:
        StoreRefused: it is one, or its status can't be read.
    """
    status = status_of(database)
    if status is None or stat.S_ISREG(status.st_mode):
        return
    what = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
    raise StoreRefused(f"the database {database} is {what}, and must be a file")


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
        fd = os.open(database, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    except FileExistsError:
        return
    except OSError as error:
        raise StoreRefused(f"the database {database} can't be made: {error.strerror}") from error
    os.close(fd)
    # The file's name must survive a power cut as surely as what will be in it.
    sync_folder(database.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut.

    Raises:
        OSError: they may not.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

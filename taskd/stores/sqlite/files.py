"""The files of a SQLite store: where they are, how they are made, and which is which.

Beside the database stand SQLite's ``-wal`` and ``-shm``, the ``.lock`` of the one
daemon that may be at work on it (`lock`), and ``.turn``, which is held by one
of that daemon's processes while it writes. They would queue for SQLite's own lock as
well, but by sleeping and looking again.
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
    """Which file it is, whatever its name. No other has it as long as somebody has
    this one open."""

    device: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """The file that this was asked of."""
        return cls(status.st_dev, status.st_ino)


class WriteTurn:
    """The right to write, among the processes that share a database; a context
    manager, for one thread at a time. Blocks until it is this one's turn.

    A holder that is killed loses it. One that is stopped keeps it, and holds up the
    others until its supervisor kills it.
    """

    def __init__(self, database: Path) -> None:
        path = beside(database, ".turn")
        # Opened by each process for itself: forked ones would share one lock.
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
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file. It stays, as the lock does."""
        os.close(self._fd)


def beside(database: Path, suffix: str) -> Path:
    """The file that stands beside this database under its name and this suffix."""
    return database.with_name(database.name + suffix)


def lock_path(database: Path) -> Path:
    """Where the lock of this database is."""
    return beside(database, ".lock")


def wal_path(database: Path) -> Path:
    """Where SQLite keeps this database's write-ahead log."""
    return beside(database, "-wal")


def shm_path(database: Path) -> Path:
    """Where SQLite keeps the index of this database's write-ahead log."""
    return beside(database, "-shm")


def status_of(path: Path) -> os.stat_result | None:
    """What is known of the file at this path; None where there is none.

    Raises:
        StoreRefused: that can't be found out.
    """
    try:
        return path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreRefused(f"{path} can't be looked at: {error.strerror}") from error


def refuse_special(database: Path) -> None:
    """Refuse what can be no database: a folder, or a pipe, which SQLite would wait for.

    Raises:
        StoreRefused: it is one, or that can't be found out.
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
    """Have the names in a folder survive a power cut.

    Raises:
        OSError: they may not.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

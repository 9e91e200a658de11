"""Copies a SQLite store while it is used, and puts such a backup in a store's place.

A backup is the view of one reader: it has all that was acknowledged before it began, and
writers go on beside it. (SQLite's own ``.backup`` gives up its view between two steps, and
begins anew after a write.) A backup is one file, checked before it gets its name.

A restore keeps the previous files under another name. While it moves files, the lock file
says so, and starts are refused: after a kill at any moment another restore completes the
work.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from taskd.errors import StoreError, StoreRefused
from taskd.stores.sqlite.check import refuse_mixture
from taskd.stores.sqlite.files import (
    FILE_MODE,
    FileId,
    beside,
    lock_path,
    make_folder,
    refuse_special,
    status_of,
    sync_folder,
    wal_path,
)
from taskd.stores.sqlite.lock import StoreLock
from taskd.stores.sqlite.lock_record import Record, State
from taskd.stores.sqlite.schema import check_library, connect, damaged, explained, refuse_others

_PAGES_AT_ONCE = 4_096
"""16 MiB of pages in one step. An interrupt takes effect between two steps."""

ID_MARGIN = 10_000_000
"""How far a restore raises the counter of task ids if it can't know which ids were given since
the backup."""

_SUFFIXES = ("", "-wal", "-shm", "-journal")
"""Suffixes of a database's files. The database is moved first: a start refuses a log alone."""

_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})


@dataclass(frozen=True, kw_only=True, slots=True)
class Copied:
    """What a backup or a restore has copied."""

    apps: int
    tasks: int
    size: int
    """Bytes of the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Restored:
    """What a restore has done."""

    copied: Copied
    kept: Path | None
    """The new path of the previous database, with its files beside it; None: there was none."""
    ids_after: int
    """Tasks that are created from now on have higher ids than this."""


def back_up(path: Path, file: Path) -> Copied:
    """Copy a database, used or not, into a new file for this user only.

    Raises:
        StoreRefused: there is no database, it is damaged, or the file can't be made or
            is there already. No new file is left behind.
        StoreUnavailable: the database can't be read now.
    """
    check_library()
    source, file = path.resolve(), file.absolute()
    if status_of(source) is None:
        raise StoreRefused(f"there is no database {path}, so there is nothing to back up")
    refuse_special(source)
    refuse_mixture(source)
    with _new_file(file) as partial:
        with explained(source), contextlib.closing(connect(source, mode="ro")) as connection:
            _copy(connection, source, partial)
        # The database may have been replaced while it was opened.
        refuse_mixture(source)
        with explained(source), contextlib.closing(connect(partial, mode="rw")) as copy:
            return _complete(copy, partial, source)


def restore(path: Path, file: Path, *, label: str) -> Restored:
    """Put a backup in the place of a store that nobody uses. Raises the counter of task
    ids, so that no id that was given since the backup is given again.

    Args:
        path: the store's database. There need not be one.
        file: the backup.
        label: the previous files are kept under their names with ``.before-`` and this.

    Raises:
        StoreRefused: the store is in use, or the file is no backup of one. Nothing
            was changed.
        StoreUnavailable: the backup can't be read now.
    """
    check_library()
    target, file = path.resolve(), file.absolute()
    _refuse_no_file(file, target)
    make_folder(target.parent)
    lock = StoreLock.take(target)
    try:
        if status_of(target) is not None:
            lock.seize()
        partial = beside(target, ".restoring")
        partial.unlink(missing_ok=True)
        with _made(partial):
            with explained(file), contextlib.closing(_open_backup(file)) as connection:
                _copy(connection, file, partial)
            with explained(file), contextlib.closing(connect(partial, mode="rw")) as copy:
                copied = _complete(copy, partial, file)
                ids_after = _raise_ids(copy, target)
            _give_away(partial, target)
            _sync(partial)
            kept = _swap(target, partial, lock, label)
    except OSError as error:
        raise StoreRefused(f"{error.filename or target}: {error.strerror}") from error
    finally:
        lock.release()
    return Restored(copied=copied, kept=kept, ids_after=ids_after)


def _copy(source: sqlite3.Connection, path: Path, partial: Path) -> None:
    """Copy a database as it is at this moment."""
    # This transaction holds the view until all steps of the copy are done.
    source.execute("BEGIN")
    if not refuse_others(source, path):
        raise StoreRefused(f"{path} is empty, and no store of taskd's")
    with contextlib.closing(sqlite3.connect(partial, isolation_level=None)) as target:
        # Without journal and syncs: a copy that is not completed is deleted anyway.
        target.execute("PRAGMA journal_mode = OFF").fetchone()
        target.execute("PRAGMA synchronous = OFF")
        try:
            source.backup(target, pages=_PAGES_AT_ONCE)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise StoreRefused(f"there is no room for the copy in {partial.parent}") from error
            raise
    source.execute("ROLLBACK")


def _complete(copy: sqlite3.Connection, partial: Path, source: Path) -> Copied:
    """Make a copy a single file, and check it."""
    copy.execute("PRAGMA journal_mode = DELETE").fetchone()
    (found,) = copy.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise StoreRefused(damaged(source, str(found).splitlines()[-1]))
    (apps,) = copy.execute("SELECT count(*) FROM apps").fetchone()
    (tasks,) = copy.execute("SELECT count(*) FROM tasks").fetchone()
    return Copied(apps=apps, tasks=tasks, size=partial.stat().st_size)


@contextlib.contextmanager
def _new_file(file: Path) -> Iterator[Path]:
    """Let a file be written under another name, and give it its own at the end."""
    there = f"{file} is there already; nothing was written"
    if os.path.lexists(file):
        raise StoreRefused(there)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        with _made(partial):
            yield partial
            _sync(partial)
            _name(partial, file)
            sync_folder(file.parent)
    except FileExistsError as error:
        raise StoreRefused(there) from error
    except OSError as error:
        raise StoreRefused(f"{file} can't be written: {error.strerror}") from error


def _name(partial: Path, file: Path) -> None:
    """Give a file a name that no other has.

    Raises:
        FileExistsError: another file has it.
    """
    try:
        file.hardlink_to(partial)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Another file is unlikely to get the name between this look and the rename.
        if os.path.lexists(file):
            raise FileExistsError from error
        partial.rename(file)


@contextlib.contextmanager
def _made(partial: Path) -> Iterator[None]:
    """Make a file for this user only, and remove this name of it at the end."""
    os.close(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE))
    try:
        yield
    finally:
        for suffix in _SUFFIXES:
            beside(partial, suffix).unlink(missing_ok=True)


def _sync(partial: Path) -> None:
    with partial.open("rb") as file:
        os.fsync(file.fileno())


def _give_away(partial: Path, target: Path) -> None:
    """If root restores for another user, give the new files to that user."""
    if os.geteuid() == 0:
        owner = (status_of(target) or target.parent.stat()).st_uid
        for file in (partial, lock_path(target)):
            os.chown(file, owner, -1)


def _refuse_no_file(file: Path, target: Path) -> None:
    status, there = status_of(file), status_of(target)
    if status is None:
        raise StoreRefused(f"there is no file {file}")
    if not file.is_file():
        raise StoreRefused(f"{file} is no file, and so no backup")
    if there is not None and FileId.of(status) == FileId.of(there):
        raise StoreRefused(f"{file} is the store's own database")


def _open_backup(file: Path) -> sqlite3.Connection:
    log = status_of(wal_path(file))
    if log is not None and log.st_size:  # the backup is a copy of both files
        return connect(file, mode="ro")
    # ``immutable``: SQLite makes no file beside it, whose medium may be read-only.
    uri = f"{file.as_uri()}?mode=ro&immutable=1"
    return sqlite3.connect(uri, uri=True, isolation_level=None)


def _raise_ids(copy: sqlite3.Connection, target: Path) -> int:
    """Let a copy give only ids that the store it replaces has not given; return the highest
    id that is left out."""
    highest = _highest_id(copy)
    given = None
    if status_of(target) is not None:
        with contextlib.suppress(StoreError, sqlite3.Error):
            refuse_mixture(target)
            with contextlib.closing(connect(target, mode="ro")) as old:
                given = _highest_id(old) if refuse_others(old, target) else None
    wanted = highest + ID_MARGIN if given is None else max(highest, given)
    if wanted > highest:
        copy.execute("DELETE FROM sqlite_sequence WHERE name = 'tasks'")
        copy.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('tasks', ?)", (wanted,))
    return wanted


def _highest_id(connection: sqlite3.Connection) -> int:
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'tasks'").fetchone()
    return int(row[0]) if row else 0


def _swap(target: Path, partial: Path, lock: StoreLock, label: str) -> Path | None:
    """Move the files that are there away, and a complete copy into their place."""
    made = Record(pid=str(os.getpid()))
    there = [suffix for suffix in _SUFFIXES if os.path.lexists(beside(target, suffix))]
    kept = target.with_name(lock.before.kept) if lock.before.kept else None
    if there and (kept is None or any(os.path.lexists(beside(kept, one)) for one in there)):
        # These are not the rest of a restore that was killed: it had moved all files before.
        kept = _free(beside(target, f".before-{label}"))
    name = None if kept is None else kept.name
    lock.note(replace(made, state=State.RESTORING, kept=name))
    for suffix in there:
        if kept is not None:
            beside(target, suffix).rename(beside(kept, suffix))
    partial.rename(target)
    sync_folder(target.parent)
    status = target.stat()
    lock.note(
        replace(
            made,
            state=State.CLOSED,
            database=status.st_ino,
            stamp=(status.st_size, status.st_mtime_ns),
        )
    )
    return kept


def _free(path: Path) -> Path:
    names = (beside(path, f"-{number}") for number in itertools.count(2))
    return next(
        name
        for name in itertools.chain([path], names)
        if not any(os.path.lexists(beside(name, suffix)) for suffix in _SUFFIXES)
    )

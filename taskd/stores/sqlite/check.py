"""Finds out whether a database may be used, before anything is written to it.

After a clean end it may. After any other end, or if another program has changed it since, its
files are checked: the log has to be this database's, with nothing missing in its middle, and
the database must not be damaged.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sqlite3
import threading
import time
from pathlib import Path

from taskd.errors import StoreRefused, StoreUnavailable
from taskd.stores.sqlite.files import (
    beside,
    lock_path,
    shm_path,
    status_of,
    sync_folder,
    wal_path,
)
from taskd.stores.sqlite.header import (
    FRAME_HEADER,
    INDEX_HEADER,
    LOG_HEADER,
    SALTS,
    FrameHeader,
    LogHeader,
    LogIndex,
    frame_offset,
    header_of,
)
from taskd.stores.sqlite.lock import StoreLock
from taskd.stores.sqlite.lock_record import Record, State, boot_id
from taskd.stores.sqlite.schema import connect, damaged, explained, refuse_others

logger = logging.getLogger("taskd.stores.sqlite")

_PROCESSES = 64
"""More than write to one database. Each may have a commit in the log that is not synced yet."""

_CHUNK = 1_048_576

CHECK_S = 5.0
"""Seconds for which a start looks for damage at most."""


def refuse_missing(path: Path, before: Record) -> None:
    """Refuse to make a new database where there was one before.

    Raises:
        StoreRefused: there was one, or a restore was not finished.
    """
    if before.state is State.RESTORING:
        raise StoreRefused(
            f"{path}: putting a backup in its place was not finished: run taskd restore again"
        )
    status, log = status_of(path), status_of(wal_path(path))
    if status is not None and (status.st_size or not path.is_file()):
        return
    what = "is missing" if status is None else "is empty"
    if log is not None and log.st_size:
        raise StoreRefused(
            f"{path} {what}, and {wal_path(path).name} belongs to one: put the database back, "
            "or restore a backup with taskd restore"
        )
    if before.existed:
        raise StoreRefused(
            f"{path} {what}, though there was a database: put it back, or restore a backup with "
            f"taskd restore; to begin with none, remove {path.name}.lock"
        )


def admit(path: Path, lock: StoreLock, *, newest: int) -> None:
    """Refuse a database that is damaged, or whose log was replaced or cut. If the database was
    replaced, the log of the one before is set aside.

    Raises:
        StoreRefused: see above, or the database is not taskd's.
        StoreUnavailable: it can't be read now.
    """
    before, status = lock.before, os.fstat(lock.database_fd)
    if status.st_size and before.state is State.NEW and beside(path, "-journal").exists():
        _undo_making(path)
        status = os.fstat(lock.database_fd)
    if not status.st_size:
        return
    if before.database == status.st_ino:
        _refuse_anothers_log(path, before)
    log = status_of(wal_path(path))
    if log is not None and log.st_ino == before.log:
        _set_anothers_log_aside(path, before, status, lock.database_fd)
    if _is_doubtful(before):
        _sync_anew(wal_path(path))
    if before.database == status.st_ino and header_of(lock.database_fd) is None:
        # For a file that was never taskd's, `check` says so.
        raise StoreRefused(damaged(path, "it has no readable beginning"))
    if not _was_closed(before, status, log):
        bound_s = None if before.state is State.DAMAGED else CHECK_S
        torn = _PROCESSES if _may_be_torn(before) else 1
        check(path, newest=newest, within_s=bound_s, torn=torn)


def refuse_mixture(path: Path) -> None:
    """Refuse to read a database, used or not, together with a log that is known to be
    another database's.

    Raises:
        StoreRefused: it has such a log, its own log is gone, or the database is gone.
    """
    status = status_of(path)
    if status is None:
        raise StoreRefused(f"the database {path} is missing")
    try:
        with lock_path(path).open("rb") as file:
            before = Record.read(file.fileno())
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreRefused(f"{lock_path(path)} can't be read: {error.strerror}") from error
    if before.database == status.st_ino:
        _refuse_anothers_log(path, before)
    elif (log := status_of(wal_path(path))) is not None and log.st_ino == before.log:
        raise StoreRefused(
            f"{path} was replaced, and {wal_path(path).name} belongs to the file before: stop "
            "taskd, and put that one back or start it with this one"
        )


def _undo_making(path: Path) -> None:
    """Have SQLite undo the first change of a database that was being made. That change has a
    journal instead of the log, and a connection that only reads can't undo it."""
    with explained(path), contextlib.closing(connect(path, mode="rw")) as connection:
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()


def _was_closed(before: Record, status: os.stat_result, log: os.stat_result | None) -> bool:
    """Whether its last user has closed the database, and nobody has changed it since."""
    return (
        before.state is State.CLOSED
        and before.database == status.st_ino
        and before.stamp == (status.st_size, status.st_mtime_ns)
        and not (log and log.st_size)
    )


def _may_be_torn(before: Record) -> bool:
    """Whether a power cut may have undone what the log's index tells of. The kernel may have
    written the index to the disk, and not the commits that were being synced."""
    return _is_doubtful(before) or before.boot is None or before.boot != boot_id()


def _is_doubtful(before: Record) -> bool:
    """Whether a sync has failed, so that the kernel may take for written what is not."""
    return before.state in (State.DOUBTFUL, State.UNCOPIED)


def _sync_anew(wal: Path) -> None:
    """Write a log over itself, and sync that: all that is read from it now is on the disk."""
    try:
        log = os.open(wal, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreUnavailable(f"{wal} can't be opened: {error.strerror}") from error
    try:
        for place in range(0, os.fstat(log).st_size, _CHUNK):
            os.pwrite(log, os.pread(log, _CHUNK, place), place)
        os.fdatasync(log)
    except OSError as error:
        raise StoreUnavailable(f"{wal} could not be synced: {error.strerror}") from error
    finally:
        os.close(log)
    logger.warning("%s was written anew and synced, since a sync of it has failed", wal)


def _refuse_anothers_log(path: Path, before: Record) -> None:
    """Refuse a database whose log is not the one that taskd writes or wrote, or was cut. A log
    that is gone proves nothing: other programs fold it into the database, and delete it."""
    if before.log is None:
        return
    wal = wal_path(path)
    # The index is read first: what it says stays true if the log is written to meanwhile.
    index = _left_index(path)
    log = status_of(wal)
    if log is not None and log.st_size and log.st_ino != before.log:
        raise StoreRefused(
            f"{wal} is not the log that the last taskd wrote, and would be applied to {path.name}: "
            "put that one back, or move this one away to go on with the database as it is"
        )
    is_cut = _is_gone if _may_be_torn(before) else _is_cut
    if index is not None and index.copied < index.frames and is_cut(wal, log, index):
        raise StoreRefused(
            f"{wal} was removed or cut, and the newest tasks with it: put it back, restore a "
            f"backup with taskd restore, or remove {wal.name} and {shm_path(path).name} to go on "
            "with the database as it is"
        )
    if log is None and before.state is not State.SAVED:
        logger.warning(
            "%s is gone, which the last taskd had not closed: unless another program has put "
            "what was in it into the database, the newest tasks are missing",
            wal,
        )


def _left_index(path: Path) -> LogIndex | None:
    """Return what the log's index says, before SQLite makes it anew; None if it can't be read."""
    try:
        with shm_path(path).open("rb") as file:
            return LogIndex.read(file.read(INDEX_HEADER))
    except OSError:
        return None


def _is_gone(_wal: Path, log: os.stat_result | None, _index: LogIndex) -> bool:
    return log is None or not log.st_size


def _is_cut(wal: Path, log: os.stat_result | None, index: LogIndex) -> bool:
    if log is None or not log.st_size:
        return True
    # An index from before the log was last begun anew, with other salts, proves nothing.
    with wal.open("rb") as file:
        return log.st_size < index.log_bytes and file.read(LOG_HEADER)[SALTS] == index.salts


def _set_anothers_log_aside(
    path: Path, before: Record, status: os.stat_result, database_fd: int
) -> None:
    """Set the last taskd's log aside if the database is not the last taskd's."""
    header = header_of(database_fd)
    if header is None:
        return  # it is damaged, whichever database it was
    if before.database == status.st_ino and header.follows(before.changes, before.schema):
        return
    wal = wal_path(path)
    names = (f"{wal.name}.aside-{number}" for number in itertools.count(1))
    aside = next(wal.with_name(name) for name in names if not wal.with_name(name).exists())
    wal.rename(aside)
    sync_folder(wal.parent)
    logger.warning("%s is another file than it was: the log that belongs to that one was set "
                   "aside as %s", path, aside.name)  # fmt: skip


def check(path: Path, *, newest: int, within_s: float | None, torn: int) -> None:
    """Look for damage, without writing to the database or to its log.

    Args:
        path: the database.
        newest: the newest schema that is known.
        within_s: seconds to look at most; None: as long as it takes.
        torn: how many commits may be torn.

    Raises:
        StoreRefused: the database is damaged, or not taskd's.
        StoreUnavailable: it can't be read now.
    """
    index = -1
    began = time.monotonic()
    try:
        with explained(path), contextlib.closing(connect(path, mode="ro")) as connection:
            refuse_others(connection, path, newest=newest)
            # Closed only after SQLite's connection: this process would lose SQLite's locks.
            # A copy that SQLite has made may have neither log nor index.
            with contextlib.suppress(FileNotFoundError):
                index = os.open(shm_path(path), os.O_RDONLY | os.O_CLOEXEC)
            problem = _problem_of_log(path, index, torn) or quick_check(connection, within_s)
    finally:
        if index >= 0:
            os.close(index)
    took_s = time.monotonic() - began
    if problem is not None:
        raise StoreRefused(damaged(path, problem))
    if within_s is not None and took_s >= within_s:
        logger.warning("the search for damage in %s was cut short after %.1f s; it found none so "
                       "far", path, took_s)  # fmt: skip
    else:
        logger.info("no damage was found in %s, which its last user has not closed, or another "
                    "has changed since (%.1f s)", path, took_s)  # fmt: skip


def quick_check(connection: sqlite3.Connection, within_s: float | None) -> str | None:
    """Return the first damage that SQLite finds in a database within these seconds (None: no
    limit), or None."""
    # A progress handler would not do: for it, most of the check is one step.
    timer = threading.Timer(within_s or 0, connection.interrupt)
    if within_s is not None:
        timer.start()
    try:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            return None
        raise
    finally:
        timer.cancel()
        if within_s is not None:
            timer.join()  # this process may be about to fork
    # The first line is a heading.
    return None if found == "ok" else str(found).splitlines()[-1]


def _problem_of_log(path: Path, index: int, torn: int) -> str | None:
    """Return what is wrong with a log beyond what a power cut does to it, or None.

    SQLite reads a log up to the first frame that does not fit, and reports nothing. A power
    cut may leave such frames of the last ``torn`` commits, which were being written or synced.
    If more follow them, their own commit had been acknowledged. A frame that seems to end a
    commit may do so by half a header that an older log has left, so it has to be whole.
    """
    try:
        log = os.open(wal_path(path), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        frames = LogIndex.read(os.pread(index, INDEX_HEADER, 0)) if index >= 0 else None
        beginning = os.pread(log, LOG_HEADER + FRAME_HEADER, 0)
        header = LogHeader.read(beginning)
        if header is None:
            blank = len(beginning) <= LOG_HEADER or not any(beginning)
            return None if blank else f"{wal_path(path).name} has no readable beginning"
        ended = 0
        for number in itertools.count(frames.frames if frames else 0):
            data = os.pread(log, FRAME_HEADER, frame_offset(number, header.page_size))
            frame = FrameHeader.read(data)
            if frame is None:
                return None
            if frame.salts == header.salts:
                if ended >= torn:
                    return f"page {number} of {wal_path(path).name} or one before is not readable"
                ended += frame.ends_commit and _is_whole(log, number, header)
    finally:
        os.close(log)
    return None


def _is_whole(log: int, number: int, header: LogHeader) -> bool:
    """Whether a frame of an open log is as it was written. Not known, and taken as False, after a
    frame whose header is not."""
    start, size = header.checksum, header.page_size
    if number:
        before = FrameHeader.read(os.pread(log, FRAME_HEADER, frame_offset(number - 1, size)))
        if before is None:
            return False
        start = before.checksum
    frame = os.pread(log, FRAME_HEADER + size, frame_offset(number, size))
    if len(frame) < FRAME_HEADER + size:
        return False
    return FrameHeader.checksum_of(frame, header, start) is not None

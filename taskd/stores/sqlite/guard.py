"""Checks that the files which a store has open are those that the next start will find.

A file can be removed, replaced or cut while it is in use. SQLite goes on with the file that
it has open, and writes acknowledged then are lost. So before and after each commit, before
each checkpoint and at each probe, the names are compared with the open files. On a difference
nothing is written any more, and nothing is done by name. SQLite would do that at the end:
closing the last connection folds the log into the database and deletes the log by its name. A
read-only connection can't do so, so one, the anchor, is then closed last.

Once the same files are back, the store goes on. Damage that SQLite has found stays.

All methods may be called in any thread. They take some system calls, which as a rule don't
wait for the disk: the files were looked at just before.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from functools import partial
from pathlib import Path
from typing import Self

from taskd.errors import StoreUnavailable
from taskd.stores.sqlite.files import FileId, lock_path, shm_path, status_of, sync_folder, wal_path
from taskd.stores.sqlite.header import (
    FRAME_HEADER,
    INDEX_HEADER,
    LOG_HEADER,
    SALTS,
    FrameHeader,
    LogIndex,
    Position,
    frame_offset,
    header_of,
)
from taskd.stores.sqlite.lock import StoreLock
from taskd.stores.sqlite.lock_record import State
from taskd.stores.sqlite.schema import connect, damaged, tells_damage, unavailable

logger = logging.getLogger("taskd.stores.sqlite")

_SECOND_LOOK_S = 0.02
_LOOKS = 5


class FileGuard:
    """See the module. Made by `open`.

    Attributes:
        path: the database, without symbolic links.
        log_is_lost: whether the log's name is gone, or another file's, and the database's
            name is right: a checkpoint then saves what is in the log.
    """

    def __init__(self, named: Path, lock: StoreLock) -> None:
        self.path = named.resolve()
        self._lock = lock
        # `os.stat` takes half as long for a text as for a `Path`.
        self._named = str(named.absolute())
        self._log, self._index = str(wal_path(self.path)), str(shm_path(self.path))
        self._lock_file = str(lock_path(self.path))
        self._log_id = self._index_id = FileId(0, 0)
        self._log_fd = self._index_fd = -1
        self._anchor: sqlite3.Connection | None = None
        self._size = self._changed_ns = self._changes = self._schema = 0
        self._noting = threading.Lock()
        self._fault: str | None = None
        self._damage: str | None = None
        self._doubt: str | None = None
        self._uncopied = False
        self.log_is_lost = False

    @classmethod
    def open(cls, named: Path, lock: StoreLock) -> Self:
        """Open the anchor and note which files are in use.

        Args:
            named: the database, as the configuration names it.
            lock: on it, held by this process or its parent.

        Raises:
            StoreUnavailable: the files are not those that the lock is for, or can't be opened.
        """
        guard = cls(named, lock)
        try:
            guard._open()
        except BaseException as error:
            guard._close_all()
            if isinstance(error, sqlite3.Error):
                raise unavailable(error) from error
            if isinstance(error, OSError):
                raise StoreUnavailable(f"{guard.path} can't be opened: {error.strerror}") from error
            raise
        return guard

    def _open(self) -> None:
        _refuse(self._fault_of_database())
        known = self._lock.record()
        if known.log is not None:  # another process of this daemon has it open, or had
            _refuse(_other_inode(self._log, known.log) or _other_inode(self._index, known.index))
        self._anchor = connect(
            self.path, mode="ro", verify=lambda: _refuse(self._fault_of_database())
        )
        self._anchor.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        self._log_fd = os.open(self._log, os.O_RDONLY | os.O_CLOEXEC)
        # Closed only after SQLite's own connections: they would lose their locks.
        self._index_fd = os.open(self._index, os.O_RDONLY | os.O_CLOEXEC)
        self._log_id = FileId.of(os.fstat(self._log_fd))
        self._index_id = FileId.of(os.fstat(self._index_fd))
        if known.log is None:
            # Else a power cut may leave the note of this log beside the name of the one before.
            sync_folder(self.path.parent)
            self._lock.note_log(self._log_id, self._index_id)
            self.copied()
        if known.state in (State.DOUBTFUL, State.UNCOPIED):
            # Linux tells no descriptor of a failure that another process was told of before.
            self.doubt("a sync of the files has failed in another process")
        self.check(in_doubt=True)

    def connect(self, mode: str, *, in_doubt: bool = False) -> sqlite3.Connection:
        """Open one more connection: see `schema.connect`.

        Args:
            mode: see there.
            in_doubt: see `check`.

        Raises:
            StoreUnavailable: the files are not in order, see `check`.
            sqlite3.Error: it can't be opened.
        """
        check = partial(self.check, in_doubt=in_doubt)
        check()
        return connect(self.path, mode=mode, verify=check)

    def check(self, *, alone: bool = False, in_doubt: bool = False) -> None:
        """Make sure that the next start will find what is written now.

        Args:
            alone: whether no other connection can write meanwhile.
            in_doubt: whether this is to end the `doubt`, which is then no fault.

        Raises:
            StoreUnavailable: it would not find it; says why.
        """
        fault = self._find() or (None if in_doubt else self._doubt)
        looks = 1 if alone else _LOOKS
        while fault is None and looks:
            fault = self._fault_of_content()
            looks -= 1
            if fault is None:
                break
            if looks:
                # A commit that begins the log anew changes the index first: look again.
                fault = None
                time.sleep(_SECOND_LOOK_S)  # noqa: TID251 - there is next to never a second look
        self._note(fault or self._doubt)
        _refuse(fault)

    def check_before_commit(self) -> None:
        """Do what `check` does, in a transaction that writes. As long as all was well it does
        next to nothing, because every commit pays for it.

        Raises:
            StoreUnavailable: see `check`. Nothing is to be written.
        """
        in_order = self._fault is None and self._doubt is None
        if not in_order or not self._ends_as_known(self.log_index()):
            self.check(alone=True)

    def only_appends(self, *, most_frames: int) -> bool:
        """Whether all is well, and the commit of this transaction, which writes, only appends
        to the log. If the log is begun anew, SQLite syncs its header; while a transaction that
        began before the last frame was copied is under way, it is not.

        Args:
            most_frames: whether the log has fewer frames is asked as well.
        """
        index = self.log_index()
        return (
            self._fault is None
            and self._doubt is None
            and index is not None
            and index.copied < index.frames < most_frames
            and self._ends_as_known(index)
        )

    def check_after_commit(self) -> None:
        """Make sure that the next start will find what was committed just now.

        Raises:
            StoreUnavailable: it may not find it.
        """
        fault = self._fault_of_database() or _difference(self._log, self._log_id)
        if fault is not None:
            self._note(fault)
            raise StoreUnavailable(f"{fault}; whether this was kept is not known")

    def heed(self, error: sqlite3.Error) -> StoreUnavailable:
        """Note the damage that an error may tell of; return the port's error for it."""
        if tells_damage(error) and self._damage is None and self._find() is None:
            self._damage = damaged(self.path, error)
            with contextlib.suppress(OSError):
                self._lock.note_state(State.DAMAGED)
            self._note(self._damage)
        return StoreUnavailable(self._damage) if self._damage else unavailable(error)

    def doubt(self, why: str) -> None:
        """Refuse writes and checkpoints until `trust`: a sync of the files has failed, and what
        they hold may not be on the disk. Processes that open them later learn of it."""
        self._doubt = why
        self._note(why)
        self._note_doubt(State.DOUBTFUL, State.RUNNING)

    def trust(self) -> None:
        """Take writes again after `doubt`, when the log has been written anew.

        Raises:
            OSError, StoreUnavailable: what was copied from it into the database may be lost, so
                only a restart, which copies all of it anew, ends the doubt.
        """
        self.sync()
        if self._uncopied or self._lock.record().state is State.UNCOPIED:
            raise StoreUnavailable(
                f"{self.path} could not be synced: restart taskd, which copies the log into it anew"
            )
        self._doubt = None
        self._note_doubt(State.RUNNING, State.DOUBTFUL)
        self.check(alone=True)

    def _note_doubt(self, state: State, *before: State) -> None:
        """Note a state in place of another. Not durably: after a power cut there is no doubt."""
        try:
            if self._lock.record().state in before:
                self._lock.note_state(state, durably=False)
        except OSError as error:
            logger.warning("%s can't be written: %s", self._lock_file, error.strerror)

    @property
    def in_doubt(self) -> str | None:
        """What `doubt` was told, or None."""
        return self._doubt

    def copied(self) -> None:
        """Note in the lock file that a checkpoint has written to the database."""
        header = header_of(self._lock.database_fd)
        if header is not None:
            with contextlib.suppress(OSError):
                self._lock.note_header(header)

    def saved(self) -> None:
        """Note in the lock file that all of a log that lost its name is in the database."""
        if self._lock.record().state is State.RUNNING:
            self._lock.note_state(State.SAVED)
            logger.warning("what was in %s has been saved into the database", self._log)

    def log_index(self) -> LogIndex | None:
        """Return what the log's index says; None if it was cut."""
        return LogIndex.read(os.pread(self._index_fd, INDEX_HEADER, 0))

    def position(self) -> Position | None:
        """Return up to where the log has been written; None if its index does not tell now.

        Raises:
            StoreUnavailable: the index was cut.
        """
        data = os.pread(self._index_fd, INDEX_HEADER, 0)
        if len(data) < INDEX_HEADER:
            raise StoreUnavailable(_told(self._index, "was cut"))
        return Position.read(data)

    def check_log(self, file: FileId) -> None:
        """Make sure that a file, which was opened by the log's name, is the log.

        Raises:
            StoreUnavailable: it is another file.
        """
        if file != self._log_id:
            raise StoreUnavailable(_told(self._log, _REPLACED))

    @property
    def index_file(self) -> FileId:
        """The file of the log's index, of which each reader of the database has a byte locked."""
        return self._index_id

    def sync(self) -> None:
        """Make what is in the database's file survive a power cut.

        Raises:
            OSError: it may not; the files are in doubt from here on, see `trust`.
        """
        try:
            os.fdatasync(self._lock.database_fd)
        except OSError as error:
            self._uncopied = True
            self.doubt(f"{self.path} could not be synced: {error.strerror}")
            self._note_doubt(State.UNCOPIED, State.RUNNING, State.DOUBTFUL)
            raise

    def log_size(self) -> int:
        """Return the size of the log's file in bytes."""
        return os.fstat(self._log_fd).st_size

    def close(self, writer: sqlite3.Connection | None) -> None:
        """Close the last two connections, after all others. The log is folded into the database
        if the files are in order, and left alone otherwise.

        Args:
            writer: the connection that may write, if there is one.
        """
        try:
            try:
                self.check()
                writer = writer or connect(self.path, mode="rw", verify=self.check)
            except (StoreUnavailable, sqlite3.Error):
                if writer is not None:
                    writer.close()
                return
            if self._anchor is not None:
                self._anchor.close()
                self._anchor = None
            writer.close()
            if not Path(self._log).exists():
                self._lock.note_log(None, None)
        finally:
            self._close_all()

    def _close_all(self) -> None:
        if self._anchor is not None:
            self._anchor.close()
        for fd in (self._log_fd, self._index_fd):
            if fd >= 0:
                os.close(fd)

    def _find(self) -> str | None:
        """Return what is wrong, as far as names and sizes show it, or None."""
        fault = self._fault_of_database() or self._damage
        if fault is not None:
            self.log_is_lost = False
            return fault
        fault = _difference(self._log, self._log_id)
        self.log_is_lost = fault is not None
        return (
            fault
            or _difference(self._index, self._index_id)
            or _difference(self._lock_file, self._lock.file)
        )

    def _fault_of_database(self) -> str | None:
        # Read before the file is looked at: other threads may note newer values meanwhile.
        size, changed_ns = self._size, self._changed_ns
        changes, schema = self._changes, self._schema
        try:
            status = os.stat(self._named)  # noqa: PTH116 - a `Path` takes twice the time
        except OSError:
            return _told(self._named, _GONE)
        if (status.st_dev, status.st_ino) != self._lock.database:
            return _told(self._named, _REPLACED)
        if not status.st_nlink:  # a file that is mounted keeps this name when it is removed
            return _told(self._named, _GONE)
        if status.st_size < size and not self._was_vacuumed(status.st_size):
            return _told(self._named, "was cut")
        self._size = status.st_size
        if status.st_mtime_ns != changed_ns:  # by a checkpoint, as a rule
            header = header_of(self._lock.database_fd)
            if header is None or not header.follows(changes, schema):
                return _told(self._named, "was written over")
            self._changes, self._schema = header.changes, header.schema
            self._changed_ns = status.st_mtime_ns
        return None

    def _was_vacuumed(self, size: int) -> bool:
        """Whether a database that has become shorter is as long as its log's index says: a
        checkpoint cuts it after a ``VACUUM`` by another program."""
        index = self.log_index() if self._index_fd >= 0 else None
        return index is not None and 0 < index.pages * index.page_size == size

    def _fault_of_content(self) -> str | None:
        index = self.log_index()
        if index is None:
            return _told(self._index, "was cut")
        if index.frames and (
            os.pread(self._log_fd, LOG_HEADER, 0)[SALTS] != index.salts
            or self.log_size() < index.log_bytes
        ):
            return _told(self._log, "was cut or written over")
        return None

    def _ends_as_known(self, index: LogIndex | None) -> bool:
        """Whether the log's last frame is where the index says, so that the log was not cut.
        Holds only while nobody can write."""
        if index is None:
            return False
        if not index.frames:
            return True
        place = frame_offset(index.frames - 1, index.page_size)
        return FrameHeader.salts_of(os.pread(self._log_fd, FRAME_HEADER, place)) == index.salts

    def _note(self, fault: str | None) -> None:
        if fault == self._fault:
            return
        with self._noting:
            if fault == self._fault:
                return
            self._fault = fault
        if fault is None:
            if self._lock.record().state is State.SAVED:
                self._lock.note_state(State.RUNNING)
            logger.warning("the files of %s are as they were: writes are taken again", self.path)
        else:
            logger.error("writes are refused: %s", fault)


def _refuse(fault: str | None) -> None:
    if fault is not None:
        raise StoreUnavailable(fault)


_GONE = "was removed or renamed"
_REPLACED = "was replaced"


def _difference(path: str, file: FileId) -> str | None:
    """Return how the file at a path differs from the one that is open, or None."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a `Path` takes twice the time
    except OSError:
        return _told(path, _GONE)
    if (status.st_dev, status.st_ino) == file:
        return None
    return _told(path, _REPLACED)


def _other_inode(path: str, inode: int | None) -> str | None:
    """Return how the file at a path differs from the one that another process has open, or
    None."""
    status = status_of(Path(path))
    if status is None:
        return _told(path, _GONE)
    return None if status.st_ino == inode else _told(path, _REPLACED)


def _told(path: str, what: str) -> str:
    return (
        f"{path} {what} while taskd had it open: put the same file back, or restart taskd to go on "
        "with what is there"
    )

"""Makes commits durable: syncs the write-ahead log, beside SQLite.

With ``synchronous = NORMAL`` SQLite syncs the log only when it begins it anew, and before a
checkpoint copies from it. A COMMIT then takes microseconds, so it may run in the event loop,
and the sync follows in a thread. Until then other connections see the commit already, though
a power cut may still undo it: whatever tells of it waits for `LogSync.is_durable`.

A position is a log's salts and the number of its frames, so it covers the commits of all
processes. (SQLite counts commits as well, but from 0 again after a process was killed in the
midst of one.) A sync makes all of them durable, whoever made them.

Failure. Linux reports a write that failed once, at the next sync, and takes it for done from
then on: another sync succeeds, and proves nothing. So after a failed sync the files are in
doubt: nothing is written or copied until `LogSync.restore` has read the log back, found all
of it, written it once more, and synced that.
"""

from __future__ import annotations

import contextlib
import os

from taskd.errors import StoreUnavailable
from taskd.stores.sqlite.files import FileId, sync_folder, wal_path
from taskd.stores.sqlite.guard import FileGuard
from taskd.stores.sqlite.header import (
    FRAME_HEADER,
    LOG_HEADER,
    FrameHeader,
    LogHeader,
    LogIndex,
    Position,
    frame_offset,
)


class LogSync:
    """A descriptor of the log, to sync it by. The writer's thread opens it, syncs and restores.

    Args:
        guard: of the database's files.
    """

    def __init__(self, guard: FileGuard) -> None:
        self._guard = guard
        self._path = wal_path(guard.path)
        self._fd = -1
        self._durable: Position | None = None

    def open(self) -> None:
        """Open the log, if it is not open, and sync its name.

        A descriptor is kept as long as the store is open. Linux tells each one once of a write
        that failed while it was open, and tells one that is opened later of nothing.

        Raises:
            OSError: it can't be opened.
            StoreUnavailable: another file has its name.
        """
        fd = self._fd if self._fd >= 0 else os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._guard.check_log(FileId.of(self._path.stat()))
            self._guard.check_log(FileId.of(os.fstat(fd)))
            sync_folder(self._path.parent)
        except BaseException:
            if fd != self._fd:
                os.close(fd)
            raise
        self._fd = fd

    def close(self) -> None:
        """Close the log."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def is_durable(self, position: Position | None) -> bool:
        """Whether a power cut can undo no commit up to this position, as far as is known. In any
        thread."""
        durable = self._durable
        return (
            durable is not None
            and position is not None
            and position.salts == durable.salts
            and position.frames <= durable.frames
        )

    def sync(self, position: Position | None = None) -> None:
        """Make all commits up to a position durable.

        Args:
            position: of this process's latest commit, if it is known; None: until now.

        Raises:
            OSError: they may not be; the files are in doubt from here on.
            StoreUnavailable: the files are in doubt, or see `open`.
        """
        if self._guard.in_doubt is not None:
            raise StoreUnavailable(self._guard.in_doubt)
        if position is None:
            position = self._guard.position()
        if self.is_durable(position):
            return
        if self._fd < 0:
            self.open()
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._guard.doubt(f"{self._path} could not be synced: {error.strerror}")
            raise
        self._durable = position

    def restore(self) -> None:
        """End the doubt, if all that was committed is in the log still, by writing it anew.

        Raises:
            OSError, sqlite3.Error, StoreUnavailable: the doubt lasts.
        """
        with contextlib.closing(self._guard.connect("rw", in_doubt=True)) as connection:
            # While this lasts, no process commits, or begins the log anew.
            connection.execute("BEGIN IMMEDIATE")
            self.open()
            index = self._guard.log_index()
            if index is None:
                raise StoreUnavailable(f"the index of {self._path} was cut")
            self._write_anew(index)
            os.fdatasync(self._fd)
            connection.execute("ROLLBACK")
        self._guard.trust()
        self._durable = index.position

    def _write_anew(self, index: LogIndex) -> None:
        beginning = os.pread(self._fd, LOG_HEADER, 0)
        header = LogHeader.read(beginning)
        if not index.frames:
            return
        if header is None or header.salts != index.salts:
            raise self._lost(0)
        # All of it is read before any is written: reading what is not there must change nothing.
        checksum = header.checksum
        length = FRAME_HEADER + header.page_size
        for number in range(index.frames):
            frame = os.pread(self._fd, length, frame_offset(number, header.page_size))
            so_far = FrameHeader.checksum_of(frame, header, checksum)
            if so_far is None:
                raise self._lost(number)
            checksum = so_far
        if checksum != index.checksum:
            raise self._lost(index.frames - 1)
        os.pwrite(self._fd, beginning, 0)
        for number in range(index.frames):
            place = frame_offset(number, header.page_size)
            os.pwrite(self._fd, os.pread(self._fd, length, place), place)

    def _lost(self, frame: int) -> StoreUnavailable:
        return StoreUnavailable(
            f"the disk has lost page {frame} of {self._path}, which was not synced and not "
            "acknowledged: restart taskd to go on with what is there"
        )

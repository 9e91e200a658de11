"""Watches the length of the write-ahead log.

A reader sees the database as it was when its transaction began. So later commits have to
stay in the log until the reader ends, and a forgotten reader lets the log grow without end.
That is reported, with the reader's process as far as Linux tells it. Once the reader has
ended, the file is cut step by step, since cutting 300 MiB off holds up a commit for 70 ms.
"""

from __future__ import annotations

import logging
import sqlite3
import time

from taskd.runtime.logs import log_event
from taskd.stores.sqlite.guard import FileGuard
from taskd.stores.sqlite.header import LogIndex
from taskd.stores.sqlite.holders import READER_SLOTS, readers

logger = logging.getLogger("taskd.stores.sqlite")

_MIB = 2**20

HELD_BYTES = 16 * _MIB
"""A log that is longer, and in which checkpoints get no further, is reported. A usual log is
shorter."""

HELD_S = 5.0
"""Seconds for which checkpoints have got no further before that is reported. A read of taskd's
own takes milliseconds."""

CUT_FROM = 80 * _MIB
"""Bytes from which on the file is cut. A log does not become as long by itself."""

CUT_TO = 16 * _MIB
_CUT_STEP = 32 * _MIB
"""Bytes that one commit cuts off, the one that begins the log anew: some 6 ms."""

_NO_LIMIT = -1


class LogWatch:
    """See the module. `note` is called after each checkpoint, by one thread.

    Attributes:
        held: the sentence that is reported while a reader holds the log, or None.
        cutting: whether the file is too long, and nobody holds it.
    """

    def __init__(self, guard: FileGuard) -> None:
        self._guard = guard
        self._position: int | None = None
        """The frame at which checkpoints stop before the log's end; None if they reach it."""
        self._since = 0.0
        self.held: str | None = None
        self.cutting = False

    @property
    def is_long(self) -> bool:
        """Whether another checkpoint is due, whatever has changed since the last one."""
        if self.cutting or self.held is not None:
            return True  # another process may have seen it end
        index = self._guard.log_index()
        return index is not None and index.log_bytes > HELD_BYTES and index.copied < index.frames

    def note(self, frames: int, copied: int) -> None:
        """Take note of a checkpoint.

        Args:
            frames: how many the log has.
            copied: how many of them are in the database.
        """
        position = copied if copied < frames else None
        if position is None or position != self._position:
            self._position, self._since = position, time.monotonic()
            if self.held is not None:
                self.held = None
                log_event(
                    logger,
                    logging.INFO,
                    "the write-ahead log can be shortened again",
                    bytes=self._guard.log_size(),
                )
        index, for_s = self._guard.log_index(), time.monotonic() - self._since
        is_held = position is not None and for_s > HELD_S
        if is_held and index is not None and index.log_bytes > HELD_BYTES:
            self._tell(index, for_s)
        size = self._guard.log_size()
        self.cutting = self.held is None and size > (CUT_TO if self.cutting else CUT_FROM)

    def _tell(self, index: LogIndex, for_s: float) -> None:
        # The first slot is for readers that need no frame of the log.
        slots = {
            slot
            for slot, mark in zip(READER_SLOTS, index.marks, strict=True)
            if slot == READER_SLOTS[0] or mark <= index.copied
        }
        processes = readers(self._guard.index_file, frozenset(slots))
        who = ", ".join(map(str, processes)) or "a process that can't be seen from here"
        first = self.held is None
        self.held = (
            f"the write-ahead log has grown to {index.log_bytes // _MIB} MiB and can't be "
            f"shortened: {who} has been reading the database for over {for_s:.0f} s"
        )
        if first:
            log_event(
                logger,
                logging.WARNING,
                "the write-ahead log can't be shortened, it grows",
                bytes=index.log_bytes,
                held_by=who,
                for_s=round(for_s, 1),
            )

    def limit(self, connection: sqlite3.Connection) -> None:
        """Let the next commit on this connection cut the file by a step, if the file is too
        long and that commit begins the log anew."""
        limit = max(CUT_TO, self._guard.log_size() - _CUT_STEP) if self.cutting else _NO_LIMIT
        connection.execute(f"PRAGMA journal_size_limit = {limit}").fetchone()

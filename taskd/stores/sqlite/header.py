"""Reads the headers of SQLite's files, without SQLite.

Source: "Database File Format" and "WAL-mode File Format" of SQLite's documentation.
The index of a write-ahead log is in the byte order of the machine, all else is
big-endian.
"""

from __future__ import annotations

import os
import struct
from typing import Literal, NamedTuple, Self

DATABASE_HEADER = 100
LOG_HEADER = 32
FRAME_HEADER = 24
SALTS = slice(16, 24)
"""Where the salts are in a log's header."""
INDEX_HEADER = 120
"""Bytes at the beginning of a log's index that `LogIndex.read` reads: its header, twice, and the
state of checkpoints and readers."""

_INDEX = struct.Struct("=14xHIIII8s56xI5I")
_POSITION = struct.Struct("=16xI12x8s8x")
"""Of an index's header, in one of its two copies."""
_MAGIC = b"SQLite format 3\0"
_WAL_MODE = 2
_LOG_MAGIC = 0x377F0682
_LOG_CHECKSUM = 24


class DatabaseHeader(NamedTuple):
    """The header of a database, as the last checkpoint left it."""

    in_wal_mode: bool
    """True of each database that taskd has opened, and of no copy that taskd or
    ``VACUUM INTO`` makes."""
    changes: int
    """Grows whenever the first page is written."""
    schema: int
    """Grows with each change of the schema. In a copy that SQLite makes it begins anew."""

    @classmethod
    def read(cls, data: bytes) -> Self | None:
        """Return the header in a database's first 100 bytes; None if they are no header."""
        if len(data) < DATABASE_HEADER or not data.startswith(_MAGIC):
            return None
        version, changes, schema = struct.unpack_from(">18xB5xI12xI", data)
        return cls(version == _WAL_MODE, changes, schema)

    def follows(self, changes: int | None, schema: int | None) -> bool:
        """Whether this may be a later header of a database in use that had these counts (None:
        not known), and not that of a copy that was written over the database."""
        return (
            self.in_wal_mode
            and (changes is None or self.changes >= changes)
            and (schema is None or self.schema >= schema)
        )


class LogHeader(NamedTuple):
    """The header of a write-ahead log."""

    page_size: int
    salts: bytes
    """Each frame that was written since the log was last begun anew has the same salts."""
    checksum: tuple[int, int]
    order: Literal["<", ">"]
    """In which order its checksums take bytes, as `struct` names it."""

    @classmethod
    def read(cls, data: bytes) -> Self | None:
        """Return the header in a log's first 32 bytes; None if SQLite would not take it."""
        if len(data) < LOG_HEADER:
            return None
        magic, page_size, salts, *checksum = struct.unpack_from(">I4xI4x8sII", data)
        order: Literal["<", ">"] = ">" if magic & 1 else "<"
        if magic & ~1 != _LOG_MAGIC or checksum != [*_checksum(data[:_LOG_CHECKSUM], order)]:
            return None
        return cls(page_size, salts, (checksum[0], checksum[1]), order)


class FrameHeader(NamedTuple):
    """The header of one page in a log."""

    ends_commit: bool
    salts: bytes
    checksum: tuple[int, int]
    """Of the frames up to this one."""

    @classmethod
    def read(cls, data: bytes) -> Self | None:
        """Return the header in a frame's first 24 bytes; None if there are fewer."""
        if len(data) < FRAME_HEADER:
            return None
        pages, salts, first, second = struct.unpack_from(">4xI8sII", data)
        return cls(bool(pages), salts, (first, second))

    @staticmethod
    def checksum_of(data: bytes, log: LogHeader, start: tuple[int, int]) -> tuple[int, int] | None:
        """Return the checksum of the frames up to a whole one; None if it is not what the frame
        says, or the frame is not of this log as it was last begun.

        Args:
            data: the frame, its header included.
            log: the log's header.
            start: the checksum of the frames before.
        """
        first, second = struct.unpack_from(">II", data, 16)
        checksum = _checksum(data[:8], log.order, start)
        checksum = _checksum(data[FRAME_HEADER:], log.order, checksum)
        if checksum != (first, second) or FrameHeader.salts_of(data) != log.salts:
            return None
        return checksum

    @staticmethod
    def salts_of(data: bytes) -> bytes:
        """Return `salts` alone."""
        return data[8:16]


class Position(NamedTuple):
    """Up to where a log has been written, by all processes."""

    salts: bytes
    """Of the log. It has other ones each time it is begun anew."""
    frames: int

    @classmethod
    def read(cls, data: bytes) -> Self | None:
        """Return the position in the first bytes of an index, which has two copies; None if
        they differ, since a process changes them, or was killed while it did."""
        half = _POSITION.size
        if data[:half] != data[half : 2 * half]:
            return None
        frames, salts = _POSITION.unpack(data[:half])
        return cls(salts, frames)


class LogIndex(NamedTuple):
    """The beginning of a ``-shm`` file, by which all connections to a database know its log."""

    page_size: int
    frames: int
    """Frames of the log that are valid."""
    pages: int
    """Pages that the database has with these frames."""
    checksum: tuple[int, int]
    """Of the frames, up to the last one."""
    salts: bytes
    copied: int
    """Frames that a checkpoint has copied into the database."""
    marks: tuple[int, ...]
    """How many frames the readers of each slot see."""

    @classmethod
    def read(cls, data: bytes) -> Self | None:
        """Return the index in the first bytes of a ``-shm``; None if they are too few."""
        if len(data) < INDEX_HEADER:
            return None
        size, frames, pages, first, second, salts, copied, *marks = _INDEX.unpack(data)
        page_size = 65_536 if size == 1 else size
        return cls(page_size, frames, pages, (first, second), salts, copied, tuple(marks))

    @property
    def position(self) -> Position:
        """Up to where the log has been written."""
        return Position(self.salts, self.frames)

    @property
    def log_bytes(self) -> int:
        """Bytes that the log's file has to have at least."""
        return self.frames and frame_offset(self.frames, self.page_size)


def header_of(database: int) -> DatabaseHeader | None:
    """Return the header of an open database; None if it has none."""
    return DatabaseHeader.read(os.pread(database, DATABASE_HEADER, 0))


def frame_offset(number: int, page_size: int) -> int:
    """Return where the frame of this number, counted from 0, begins in a log."""
    return LOG_HEADER + number * (FRAME_HEADER + page_size)


def _checksum(data: bytes, order: str, start: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    first, second = start
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for one, other in zip(words[::2], words[1::2], strict=True):
        first = first + one + second & 0xFFFFFFFF
        second = second + other + first & 0xFFFFFFFF
    return first, second

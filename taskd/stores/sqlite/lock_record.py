"""The content of a SQLite store's lock file: who holds it, and how the last holder ended.

Each line has a fixed place and length, so it can be written anew by itself, and a kill
leaves either the old line or the new one. Older versions know only the first line::

    4711                      the holder's process
    state running             State
    database 131075           inode of the database
    log 131080                inode of its write-ahead log, "-" where nobody has it open
    index 131081              inode of the log's index
    changes 17                SQLite's count of changes, once they are in the database
    schema 12                 its count of changes of the schema
    stamp 8192 1700000000…    the database's size and change time at a clean end
    boot 2d1f8a0c-…           the machine's start, by Linux's id, in which it was held
    kept taskd.db.before-…    the name under which a restore keeps the previous database

Inodes stay the same when the machine restarts; device numbers may not.
"""

from __future__ import annotations

import contextlib
import enum
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

_PID_WIDTH = 32
_WIDTH = 64
_UNKNOWN = "-"


class State(enum.StrEnum):
    """What became of a database when it was last held."""

    NEW = "new"
    """It is being made, and may still be empty."""
    RUNNING = "running"
    """It is in use, or its last user came to an unclean end."""
    CLOSED = "closed"
    """Its last user has closed it, and everything is in the database itself."""
    SAVED = "saved"
    """As running, but its log lost its name, and all of the log is in the database."""
    DOUBTFUL = "doubtful"
    """As running, but a sync of its log has failed, and nobody has written the log anew."""
    UNCOPIED = "uncopied"
    """As running, but the database could not be synced: it is to be copied from its log anew."""
    DAMAGED = "damaged"
    """Its last user has found damage in it."""
    RESTORING = "restoring"
    """A backup is being put in its place, or a restore came to an unclean end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """The lines, see the module; None: not known."""

    pid: str = ""
    state: State | None = None
    database: int | None = None
    log: int | None = None
    index: int | None = None
    changes: int | None = None
    schema: int | None = None
    stamp: tuple[int, int] | None = None
    boot: str | None = None
    kept: str | None = None
    """The last line, since it may be longer than the others' fixed length."""

    @property
    def existed(self) -> bool:
        """Whether there was a database. A record of an older version has the process only, and
        was written once there was a database."""
        return bool(self.pid) and self.state is not State.NEW

    @classmethod
    def read(cls, fd: int) -> Self:
        """Return the record in a lock file."""
        pid, *rest = os.pread(fd, 4096, 0).decode("utf-8", "replace").split("\n")
        lines = dict(line.rstrip().partition(" ")[::2] for line in rest)
        state = lines.get("state", "")
        size, _, changed = lines.get("stamp", "").partition(" ")
        stamp = (_number(size), _number(changed))
        return cls(
            pid=pid.strip(),
            state=State(state) if state in list(State) else None,
            database=_number(lines.get("database", "")),
            log=_number(lines.get("log", "")),
            index=_number(lines.get("index", "")),
            changes=_number(lines.get("changes", "")),
            schema=_number(lines.get("schema", "")),
            stamp=None if stamp[0] is None or stamp[1] is None else (stamp[0], stamp[1]),
            boot=_text(lines.get("boot")),
            kept=_text(lines.get("kept")),
        )

    def write(self, fd: int) -> None:
        """Write all lines at once, and make them survive a power cut."""
        os.pwrite(fd, b"".join(_line(name, getattr(self, name)) for name in _NAMES), 0)
        os.fdatasync(fd)


def write_line(fd: int, name: str, value: object, *, durably: bool = True) -> None:
    """Write one line of a `Record` anew: any but ``kept``, which has no fixed length."""
    number = _NAMES.index(name)
    place = _PID_WIDTH + _WIDTH * (number - 1) if number else 0
    os.pwrite(fd, _line(name, value), place)
    if durably:
        os.fdatasync(fd)


_NAMES = [field.name for field in fields(Record)]


def _line(name: str, value: object) -> bytes:
    if name == "pid":
        return str(value).ljust(_PID_WIDTH - 1).encode() + b"\n"
    if isinstance(value, tuple):
        value = " ".join(map(str, value))
    text = f"{name} {_UNKNOWN if value is None else value}"
    return text.encode().ljust(_WIDTH - 1) + b"\n"


def boot_id() -> str | None:
    """Return the id of the machine's start; None if it can't be told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() or None
    except OSError:
        return None


def _text(line: str | None) -> str | None:
    return None if line == _UNKNOWN else line


def _number(text: str) -> int | None:
    with contextlib.suppress(ValueError):
        return int(text)
    return None

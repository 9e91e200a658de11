"""Finds the processes that have a SQLite database open, and those that read it, in Linux's
``/proc``, as far as this user may see them."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from taskd.stores.sqlite.files import FileId

_PROC = Path("/proc")
_LOCK = re.compile(r"\d+: POSIX +\w+ +\w+ +(\d+) +\w+:\w+:(\d+) +(\d+) +(\d+)")
_COMMANDS = frozenset({"serve", "backup", "export", "import"})

READER_SLOTS = range(123, 128)
"""Bytes of a ``-shm`` file. Each reader of the log has one of them locked, shared with others
that read the same state: SQLite's ``WAL_READ_LOCK``."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process, as messages name it."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.name})"


def openers(file: FileId) -> list[Process]:
    """Return the processes that have this file open, apart from this process."""
    return [_process(pid) for pid in _pids() if pid != os.getpid() and any(_open_files(pid, file))]


def readers(shm: FileId, slots: frozenset[int]) -> list[Process]:
    """Return the processes that hold one of these slots of a log's index, this one included.

    Args:
        shm: the ``-shm`` file.
        slots: some of `READER_SLOTS`.
    """
    pids: dict[int, None] = {}
    with contextlib.suppress(OSError):
        for line in (_PROC / "locks").read_text().splitlines():
            lock = _lock(line)
            if lock is not None and lock[1] == shm.inode and slots.intersection(lock[2]):
                pids[lock[0]] = None
    # Files of two file systems may have the same inode: a process that does not have this file
    # open is left out.
    return [_process(pid) for pid in pids if _may_have_open(pid, shm)]


def _lock(line: str) -> tuple[int, int, range] | None:
    """Return the process, the inode and the bytes of a line such as
    ``7: POSIX  ADVISORY  READ 4711 fe:00:131080 124 124``; None for other kinds of locks, and
    for processes that only wait."""
    match = _LOCK.match(line)
    if match is None:
        return None
    pid, inode, first, last = map(int, match.groups())
    return pid, inode, range(first, last + 1)


def _pids() -> Iterator[int]:
    with contextlib.suppress(OSError):
        for entry in _PROC.iterdir():
            if entry.name.isdecimal():
                yield int(entry.name)


def _open_files(pid: int, file: FileId) -> Iterator[Path]:
    with contextlib.suppress(OSError):  # it has ended, or is another user's
        for entry in (_PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):
                if FileId.of(entry.stat()) == file:
                    yield entry


def _may_have_open(pid: int, file: FileId) -> bool:
    if not os.access(_PROC / str(pid) / "fd", os.R_OK):
        return True
    return any(_open_files(pid, file))


def _process(pid: int) -> Process:
    folder = _PROC / str(pid)
    try:
        words = (folder / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
        return Process(pid, _own_command(words) or (folder / "comm").read_text().strip())
    except OSError:
        return Process(pid, "unknown")


def _own_command(words: list[str]) -> str | None:
    """Return which of taskd's commands these words started. Nothing else of them is returned:
    other programs' words may be secret."""
    names = [Path(word).name for word in words]
    if "taskd" not in names:
        return None
    command = next((word for word in words[names.index("taskd") :] if word in _COMMANDS), None)
    return command and f"taskd {command}"

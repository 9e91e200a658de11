"""The names of this machine's hosts file (hosts(5)).

Only the names are read. What they lead to is up to the C library, which knows in what order
its sources are asked (nsswitch.conf(5)).
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

LONGEST_BYTES = 262_144
"""Bytes of the file that are read; what follows is ignored."""

LOOK_EVERY_S = 1.0
"""How often the file is looked at."""

_ALWAYS = frozenset({"localhost"})


class HostsFile:
    """The names of a file, which is read again when it has changed.

    Args:
        path: of the file. If it can't be read, ``localhost`` is the only name.
        now: a monotonic clock, in seconds.
    """

    def __init__(
        self, path: Path = Path("/etc/hosts"), now: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._now = now
        self._looked_at = float("-inf")
        self._version: tuple[int, ...] | None = None
        self._names = _ALWAYS

    def has(self, name: str) -> bool:
        """Whether the file has a name; the name is in lower case."""
        now = self._now()
        if now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            self._look()
        return name in self._names

    def _look(self) -> None:
        try:
            there = self._path.stat()
            version = (there.st_ino, there.st_dev, there.st_size, there.st_mtime_ns)
            if version == self._version:
                return
            self._version = version
            self._names = _ALWAYS | names_in(_beginning(self._path, there))
        except OSError:  # missing or not readable, so that the C library can't read it either
            self._version, self._names = None, _ALWAYS


def _beginning(path: Path, there: os.stat_result) -> bytes:
    if not stat.S_ISREG(there.st_mode):  # opening a pipe could block
        return b""
    with path.open("rb") as file:
        return file.read(LONGEST_BYTES)


def names_in(data: bytes) -> frozenset[str]:
    """The names in the text of a hosts file, in lower case."""
    names: set[str] = set()
    for line in filter(None, data.decode("latin-1").lower().split("\n")):
        names.update(line.partition("#")[0].split()[1:])
    return frozenset(names)

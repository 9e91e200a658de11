"""Records what a process does to a store, and reads such a recording."""

from __future__ import annotations

import enum
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_MAGIC, _WHOLE = 0x54554350, 0x444E4550
_HEAD = struct.Struct("=IIQqqII")


class Kind(enum.IntEnum):
    """What happened. The numbers are the recorder's."""

    START = 1
    """A process has begun. ``inode`` is the store's folder."""
    OPENED = 2
    """A file of the store was opened, and made if it was missing. ``data`` is its name, ``place``
    its size."""
    REMOVED = 3
    """``data`` is the name."""
    RENAMED = 4
    """``data`` is the old name, a slash, and the new one."""
    WRITTEN = 5
    """``data`` was written at ``place``, and the call is over."""
    CUT = 6
    """The file was made as long as ``place``, shorter or longer."""
    SYNCING = 7
    """A sync of a file, or of the store's folder, begins."""
    SYNCED = 8
    """The sync of the same ``number`` and process has succeeded."""
    SENDING = 9
    """``data`` is about to be sent to the port ``place``."""
    SENT = 10
    """Only ``place`` bytes were sent of what has the same ``number`` and process."""


class Event(NamedTuple):
    """One thing that a process did. Files are known by their inodes."""

    kind: Kind
    inode: int = 0
    place: int = 0
    number: int = 0
    pid: int = 0
    data: bytes | memoryview = b""


class Recorder:
    """The library to be preloaded, and where it writes.

    Args:
        folder: for the library and the recording.
        store: the database that the processes will use.
        unsynced: the end of the name of one of the store's files, whose syncs are left out.
    """

    def __init__(self, folder: Path, store: Path, *, unsynced: str | None = None) -> None:
        self.path = folder / "recording"
        self._store = store.resolve()
        self.environ = {
            "LD_PRELOAD": str(build(folder)),
            "POWER_CUT_STORE": str(self._store),
            "POWER_CUT_RECORD": str(self.path),
        }
        if unsynced is not None:
            self.environ["POWER_CUT_UNSYNCED"] = self._store.name + unsynced

    def note_files(self) -> None:
        """Record what the store's files hold, once no process uses them any more. A process that
        was killed may have written what it could not record."""
        with self.path.open("ab") as recording:
            for path in sorted(self._store.parent.glob(f"{self._store.name}*")):
                inode, content = path.stat().st_ino, path.read_bytes()
                for event in (
                    Event(Kind.OPENED, inode, data=path.name.encode()),
                    Event(Kind.WRITTEN, inode, data=content),
                    Event(Kind.CUT, inode, len(content)),
                ):
                    recording.write(encoded(event))

    def events(self) -> list[Event]:
        """Return all that was recorded, in order. What was sent is what was really sent."""
        data = memoryview(self.path.read_bytes())
        events = list(_decoded(data))
        sent = {
            (event.pid, event.number): event.place for event in events if event.kind is Kind.SENT
        }
        return [
            event
            if event.kind is not Kind.SENDING
            else event._replace(data=event.data[: sent.get((event.pid, event.number))])
            for event in events
        ]


def build(folder: Path) -> Path:
    """Compile the recorder."""
    library = folder / "recorder.so"
    source = Path(__file__).with_name("recorder.c")
    subprocess.run(
        ["cc", "-O2", "-Wall", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True
    )
    return library


def encoded(event: Event) -> bytes:
    """Return an event as the recorder writes it."""
    kind, inode, place, number, pid, data = event
    head = _HEAD.pack(_MAGIC, kind, inode, place, number, pid, len(data))
    return head + data + _WHOLE.to_bytes(4, sys.byteorder)


def _decoded(data: memoryview) -> Iterator[Event]:
    """Yield the events that are whole. A kill may have come in the midst of one."""
    place = 0
    magic, whole = _MAGIC.to_bytes(4, sys.byteorder), _WHOLE.to_bytes(4, sys.byteorder)
    while place + _HEAD.size <= len(data):
        found, kind, inode, where, number, pid, length = _HEAD.unpack_from(data, place)
        start, end = place + _HEAD.size, place + _HEAD.size + length
        if found == _MAGIC and data[end : end + 4] == whole:
            yield Event(Kind(kind), inode, where, number, pid, data[start:end])
            place = end + 4
        else:
            next_one = bytes(data[place + 1 :]).find(magic)
            if next_one < 0:
                return
            place += 1 + next_one

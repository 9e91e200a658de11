"""The files of a store as a power cut may leave them.

`Disk` is told the events of a recording one after the other. At any moment it makes states:

- All that was written before the beginning of a sync that has succeeded is there.
- Of each sector that was written to since, any of the versions that it has had may be there.
  Sectors of one write, of several writes and of several files do not depend on each other. A
  sector may also have the beginning of a newer version before the end of an older one.
- Changes of a file's size, and changes of names, reach the disk in their order, as they do in
  the journals of file systems, but later than the data or earlier. Where a file is longer and
  its data is missing, there are zeros. What was cut off does not come back after the cut.
- The log's index is written to through memory and never synced. What it was at any event may
  be there.
- The name of a new file is there for sure once its folder was synced, not once the file was.

This takes no knowledge of SQLite. What SQLite relies on is in the functions of its ``wal.c``:
``walCheckpoint`` syncs the log before it writes to the database, with ``synchronous=NORMAL`` as
with ``FULL``, and the database once all of the log is in it, before it says so in the index
(``nBackfill``). ``walRestartLog`` begins the log anew only then. ``walFrames`` writes and syncs
the header of a log that begins before its first frame. With ``FULL`` it also syncs each commit,
before the index tells of it; with ``NORMAL`` the index tells of commits that are not synced.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.support.power_cut.recording import Event, Kind

Pick = Callable[[Sequence[int]], int]
"""Gets the moments at which one thing was changed since it was synced, and returns how many of
these changes are on the disk."""

WHOLE_SECTORS = (".lock",)
"""Files of which no sector is torn. The lines of a lock file rely on a sector of 512 bytes being
written as a whole, which all disks promise; SQLite's files do not."""


_PART = 4096


@dataclass(frozen=True, slots=True)
class State:
    """What is on the disk."""

    files: dict[str, bytes]
    """Content by name."""
    inodes: dict[str, int]
    """The inode that each file had when it was recorded."""


@dataclass(slots=True)
class _Change:
    moment: int
    place: int
    data: bytes | memoryview | None
    """None: the file was made as long as ``place``."""
    size: int
    """The file's, after it."""


@dataclass(slots=True)
class _File:
    inode: int
    synced: bytearray = field(default_factory=bytearray)
    live: bytearray = field(default_factory=bytearray)
    pending: list[_Change] = field(default_factory=list)
    forgotten: int = 0
    """Changes that were pending and have been synced."""


class Disk:
    """See the module. Before the first event the folder is empty."""

    def __init__(self) -> None:
        self.moment = 0
        """Events that were applied."""
        self._folder: int | None = None
        self._by_inode: dict[int, _File] = {}
        self._names: dict[str, _File] = {}
        self._synced_names: dict[str, _File] = {}
        self._pending_names: list[tuple[int, dict[str, _File | None]]] = []
        self._forgotten_names = 0
        self._syncs: dict[tuple[int, int], tuple[_File | None, int]] = {}

    def apply(self, event: Event) -> None:
        """Take note of what happened next."""
        self.moment += 1
        match event.kind:
            case Kind.START:
                self._folder = event.inode
            case Kind.OPENED:
                self._open(_text(event), event.inode)
            case Kind.REMOVED:
                self._rename({_text(event): None})
            case Kind.RENAMED:
                old, new = _text(event).split("/")
                self._rename({old: None, new: self._names.get(old)})
            case Kind.WRITTEN:
                self._change(event.inode, event.place, event.data)
            case Kind.CUT:
                self._change(event.inode, event.place, None)
            case Kind.SYNCING:
                self._begin_sync(event)
            case Kind.SYNCED:
                self._end_sync(event)

    def name_of(self, inode: int) -> str:
        """Return a name of the file with this inode; nothing if there is no such file."""
        return next((name for name, file in self._names.items() if file.inode == inode), "")

    def is_unsynced(self, name: str) -> bool:
        """Whether something of the file with this name may be lost."""
        return name in self._names and bool(self._names[name].pending)

    def live(self) -> State:
        """Return what the processes themselves see, synced or not."""
        return self._state(self._names, lambda file, _: bytes(file.live))

    def cut_power(
        self, pick: Pick, *, sector: int = 512, tear: Callable[[], bool] = lambda: False
    ) -> State:
        """Return what is on the disk after a power cut now.

        Args:
            pick: decides for each name, size and sector.
            sector: bytes that are written as a whole, unless they are torn.
            tear: whether a sector is torn between the version picked and the next one.
        """
        kept = pick([moment for moment, _ in self._pending_names])
        names = dict(self._synced_names)
        for _, changed in self._pending_names[:kept]:
            _rename(names, changed)

        def content(file: _File, name: str) -> bytes:
            torn = _never if name.endswith(WHOLE_SECTORS) else tear
            return _content(file, pick, sector, torn)

        return self._state(names, content)

    def _state(self, names: dict[str, _File], content: Callable[[_File, str], bytes]) -> State:
        return State(
            {name: content(file, name) for name, file in names.items()},
            {name: file.inode for name, file in names.items()},
        )

    def _open(self, name: str, inode: int) -> None:
        known = self._names.get(name)
        if known is None or known.inode != inode:
            # The number may have been that of a file which is gone.
            same = [file for file in self._names.values() if file.inode == inode]
            file = same[0] if same else _File(inode)
            self._by_inode[inode] = file
            self._rename({name: file})

    def _rename(self, changed: dict[str, _File | None]) -> None:
        _rename(self._names, changed)
        self._pending_names.append((self.moment, changed))

    def _change(self, inode: int, place: int, data: bytes | memoryview | None) -> None:
        file = self._by_inode[inode]
        parts: list[tuple[int, bytes | memoryview | None]]
        if data is None:
            parts = [(place, None)] if place != len(file.live) else []
        else:
            # Whole files are written to a recording; next to nothing of them has changed.
            steps = range(0, len(data), _PART)
            parts = [(place + step, data[step : step + _PART]) for step in steps]
        for start, part in parts:
            if part is None or bytes(file.live[start : start + len(part)]) != bytes(part):
                _apply(file.live, start, part)
                file.pending.append(_Change(self.moment, start, part, len(file.live)))

    def _begin_sync(self, event: Event) -> None:
        file = None if event.inode == self._folder else self._by_inode[event.inode]
        if file is None:
            count = self._forgotten_names + len(self._pending_names)
        else:
            count = file.forgotten + len(file.pending)
        self._syncs[event.pid, event.number] = (file, count)

    def _end_sync(self, event: Event) -> None:
        file, count = self._syncs.pop((event.pid, event.number))
        if file is None:
            new = max(0, count - self._forgotten_names)
            for _, changed in self._pending_names[:new]:
                _rename(self._synced_names, changed)
            del self._pending_names[:new]
            self._forgotten_names += new
        else:
            new = max(0, count - file.forgotten)
            for change in file.pending[:new]:
                _apply(file.synced, change.place, change.data)
            del file.pending[:new]
            file.forgotten += new


def _content(file: _File, pick: Pick, sector: int, tear: Callable[[], bool]) -> bytes:
    if not file.pending:
        return bytes(file.synced)
    now, disk = bytearray(file.synced), bytearray(file.synced)
    sizes = [len(now), *(change.size for change in file.pending)]
    resized = [
        (change.moment, change.size)
        for before, change in zip(sizes, file.pending, strict=False)
        if change.size != before
    ]
    last_resize = pick([moment for moment, _ in resized])
    size = resized[last_resize - 1][1] if last_resize else len(disk)
    versions: dict[int, list[tuple[int, bytes]]] = {}
    lost_from: int | None = None
    for change in file.pending:
        before = len(now)
        _apply(now, change.place, change.data)
        if change.data is None:
            if change.size >= before:
                continue
            if (change.moment, change.size) in resized[:last_resize]:
                # Nothing from before can be in what was cut off.
                first = -(-change.size // sector)
                for number in [one for one in versions if one >= first]:
                    del versions[number]
                del disk[change.size :]
            else:
                # What came into the place of what was cut off can't be there before the cut.
                first = -(-change.size // sector)
                lost_from = first if lost_from is None else min(lost_from, first)
            continue
        end = change.place + len(change.data)
        for number in range(change.place // sector, -(-end // sector)):
            if lost_from is None or number < lost_from:
                whole = bytes(now[number * sector : (number + 1) * sector])
                versions.setdefault(number, []).append((change.moment, whole))
    for number, of_sector in versions.items():
        count = pick([moment for moment, _ in of_sector])
        if count:
            _apply(disk, number * sector, of_sector[count - 1][1])
        if count < len(of_sector) and tear():
            newer = of_sector[count][1]
            _apply(disk, number * sector, newer[: random.Random(number).randrange(len(newer))])
    _apply(disk, size, None)
    return bytes(disk)


def _apply(content: bytearray, place: int, data: bytes | memoryview | None) -> None:
    if len(content) < place:
        content.extend(bytes(place - len(content)))
    if data is None:
        del content[place:]
    else:
        content[place : place + len(data)] = data


def _rename(names: dict[str, _File], changed: dict[str, _File | None]) -> None:
    for name, file in changed.items():
        if file is None:
            names.pop(name, None)
        else:
            names[name] = file


def _text(event: Event) -> str:
    return bytes(event.data).decode()


def _never() -> bool:
    return False


def picks(rng: random.Random, moment: int) -> tuple[str, Pick]:
    """Return one of the ways to choose what is on the disk, and its name."""

    def every(chance: float) -> Pick:
        def pick(moments: Sequence[int]) -> int:
            return len(moments) if rng.random() < chance else rng.randint(0, len(moments))

        return pick

    def until(last: int) -> Pick:
        return lambda moments: bisect.bisect_right(moments, last)

    def newest(first: int, chance: float) -> Pick:
        """What was changed last is there, and what came before it is not, as a rule."""

        def pick(moments: Sequence[int]) -> int:
            if moments and moments[-1] >= first:
                return len(moments)
            return len(moments) if rng.random() < chance else 0

        return pick

    back = int(rng.expovariate(1 / 40))
    ways: list[tuple[str, Pick]] = [
        ("nothing", lambda moments: 0),
        ("everything", len),
        ("half", every(0.0)),
        ("most", every(0.9)),
        ("nearly all", every(0.99)),
        (f"what is older than the last {back} events", until(moment - back)),
        (f"the last {back} events", newest(moment - back, 0.3)),
    ]
    return rng.choice(ways)

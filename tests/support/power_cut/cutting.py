"""Cuts the power at many moments of a recording, and has the product start after each."""

from __future__ import annotations

import queue
import random
import shutil
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.power_cut.crash_states import Disk, State, picks
from tests.support.power_cut.facts import Facts, Told, losses
from tests.support.power_cut.life import Life
from tests.support.power_cut.opening import Opener, content_of, write_state
from tests.support.power_cut.recording import Event, Kind

_DATABASE, _LOG = "taskd.db", "taskd.db-wal"
_OPENERS = 2
_WAITING = 4
"""States that are made before they are opened: each takes some MB of memory."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """A power cut, and what is to be found after it."""

    number: int
    what: str
    state: State
    live: State
    told: Mapping[int, Told]
    nonces: frozenset[str]


@dataclass
class Cuts:
    """What came of many power cuts."""

    facts: Facts = field(repr=False)
    """What had been told in the end."""
    made: int = 0
    faults: list[str] = field(default_factory=list)
    """What was wrong after a power cut, and after which."""
    purged: set[int] = field(default_factory=set, repr=False)
    """Tasks that a cut found gone, since the daemon had purged them."""
    copies: int = 0
    """Times that the database was synced, at the end of a checkpoint as a rule."""
    logs: int = 0
    """Times that the log was begun, or begun anew."""
    last: State = field(default_factory=lambda: State({}, {}), repr=False)
    """What the daemon itself saw in the end."""


def cut(
    life: Life, folder: Path, *, count: int | None, seed: int, patience: int | None = None
) -> Cuts:
    """Cut the power again and again.

    Args:
        life: that has been lived.
        folder: for the states.
        count: of the cuts; None: one after each event.
        seed: of all choices.
        patience: with so many faults found, no more are looked for.
    """
    rng = random.Random(seed)
    events = life.recorder.events()
    moments = Counter(range(len(events))) if count is None else _moments(life, events, count, rng)
    cuts = Cuts(_facts_of(life))
    waiting: queue.Queue[_Cut | None] = queue.Queue(_WAITING)
    library = Path(life.recorder.environ["LD_PRELOAD"])
    disk = Disk()
    with ExitStack() as stack:
        opening = [
            _Opening(stack.enter_context(Opener(library)), folder / str(number), waiting, cuts)
            for number in range(_OPENERS)
        ]
        for thread in opening:
            thread.start()
        for moment, event in enumerate(events):
            disk.apply(event)
            cuts.copies += event.kind is Kind.SYNCED and disk.name_of(event.inode) == _DATABASE
            cuts.logs += _begins_log(event, disk.name_of(event.inode))
            if event.kind is Kind.SENDING:
                cuts.facts.note(event)
            for _ in range(moments[moment]):
                way, pick = picks(rng, disk.moment)
                sector = rng.choice([512, 512, 4096])
                torn = rng.choice([0.0, 0.0, 0.2])
                what = f"{way}, by {sector} bytes, {torn:.0%} torn, after {event.kind.name}"
                waiting.put(
                    _Cut(
                        disk.moment,
                        what,
                        disk.cut_power(pick, sector=sector, tear=lambda: rng.random() < torn),  # noqa: B023 - it is called at once
                        disk.live(),
                        dict(cuts.facts.tasks),
                        frozenset(cuts.facts.nonces),
                    )
                )
            if patience is not None and len(cuts.faults) >= patience:
                break
        for _ in opening:
            waiting.put(None)
        for thread in opening:
            thread.join()
            if thread.failure is not None:
                raise thread.failure
    cuts.last = disk.live()
    return cuts


def _facts_of(life: Life) -> Facts:
    return Facts(life.asked, life.receiver_port)


def _begins_log(event: Event, name: str) -> bool:
    return event.kind is Kind.WRITTEN and name == _LOG and not event.place and bool(event.data)


def _moments(life: Life, events: Sequence[Event], count: int, rng: random.Random) -> Counter[int]:
    """Choose after which events the power is cut: a fifth after any, and a fifth each after one
    that tells news while the log is not synced, after a detail that does, where files are made,
    removed, cut or begun anew, and where a checkpoint writes."""
    telling, details, turning, copying = [], [], [], []
    disk, facts = Disk(), _facts_of(life)
    for at, event in enumerate(events):
        disk.apply(event)
        name = disk.name_of(event.inode)
        if event.kind is Kind.SENDING:
            if facts.note(event) and disk.is_unsynced(_LOG):
                telling.append(at)
                if _DETAIL in bytes(event.data):
                    details.append(at)
        elif event.kind in _RARE or _begins_log(event, name):
            turning.append(at)
        elif name == _DATABASE:
            copying.append(at)
    chosen: Counter[int] = Counter()
    anywhere = range(len(events))
    for number in range(count):
        at = rng.choice((anywhere, telling, details, turning, copying)[number % 5] or anywhere)
        if number % 5 == _TURNING:
            at = min(len(events) - 1, at + rng.choice([0, 1, 3, 30]))  # soon after it, too
        chosen[at] += 1
    return chosen


_TURNING = 3
_DETAIL = b'"trace_list"'
_RARE = frozenset({Kind.START, Kind.OPENED, Kind.REMOVED, Kind.RENAMED, Kind.CUT})


class _Opening(threading.Thread):
    """Opens the states that wait, one after the other, and compares."""

    def __init__(
        self, opener: Opener, folder: Path, waiting: queue.Queue[_Cut | None], cuts: Cuts
    ) -> None:
        super().__init__(daemon=True)
        self.failure: BaseException | None = None
        self._opener, self._folder, self._waiting, self._cuts = opener, folder, waiting, cuts

    def run(self) -> None:
        while (one := self._waiting.get()) is not None:
            if self.failure is None:
                try:
                    self._check(one)
                except BaseException as error:  # noqa: BLE001 - raised by `cut`
                    self.failure = error

    def _check(self, one: _Cut) -> None:
        database = self._write(one.state, self._folder / "cut")
        problem, found = self._opener.open(database)
        wrong = losses(one.told, one.nonces, found, None) if problem is None else [problem]
        if problem is None and wrong:
            live = content_of(self._write(one.live, self._folder / "live"))
            wrong = losses(one.told, one.nonces, found, live)
            self._cuts.purged |= one.told.keys() - live.tasks.keys()
        self._cuts.made += 1
        if wrong:
            self._cuts.faults.append(
                f"power cut {one.number} ({one.what}): {'; '.join(wrong[:3])} ({len(wrong)} in all)"
            )

    def _write(self, state: State, folder: Path) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_state(state, folder)
        return folder / _DATABASE

"""Shares a node's slots out among applications and origins, so that some stay free for those
that hold theirs briefly. No I/O, no waiting; moments are `trio.current_time()`.

::

    take ─┬─ counted ─┬─ use ── begin ── end ── leave      an execution
          │           └─ give_back                         not begun after all
          └─ refused ── the app waits until `woken` names it

An origin may hold at most `_SHARE` times the free slots: the more are held, the fewer it may
have (the dynamic threshold by which switches share their memory; A. Choudhury and E. Hahne,
1998). The slots that are free for an app are those beyond a reserve, which depends on its
standing: how it has answered lately. So some slots are left for apps that answer at once,
however many hang. While nothing is known of many apps, each gets a few slots at most, so that
all get one.

An origin also has no more slots than the attempts that it turns out to bear at once; see `pace`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import islice

from taskd.engine.pace import START, Pace, Sign
from taskd.engine.slot_reports import Shortage, SlotsStatistics, Slowed
from taskd.engine.standing import PROMPT_S, Manners, Standing

__all__ = [
    "FORGET_S",
    "NEW_AT_ONCE",
    "PROMPT_S",
    "Shortage",
    "Slot",
    "Slots",
    "SlotsStatistics",
    "Slowed",
    "Standing",
]

NEW_AT_ONCE = 16
"""Attempts that an origin may have under way for an app of which nothing is known, while no
slot is held."""

_HASTE = 4
"""`NEW_AT_ONCE` falls with this power of the free part of the slots. With half of them free
it is 1, so each of these may go to another unknown origin."""

FORGET_S = 600.0
"""After this long without an attempt, an app or an origin is forgotten."""

_SHARE = 4
"""An origin may hold at most so many times the free slots."""

_REMEMBERED = 50_000
_FORGOTTEN_AT_ONCE = 1_000
_LOOKED_AT = 64
_NAMED = 5
_ALARM_S = 0.01

_RESERVED_EIGHTHS = {
    Standing.PROMPT: 0,
    Standing.NEW: 1,
    Standing.SLOW: 2,
    Standing.SILENT: 4,
}
"""Eighths of all slots that are kept from apps of each standing."""


@dataclass(slots=True, eq=False)
class _Origin:
    name: str
    pace: Pace
    held: int = 0
    """Slots that were taken and not given back."""
    called: int = 0
    """Apps that were woken for it and have not asked yet."""
    waiting: OrderedDict[int, None] = field(default_factory=OrderedDict)
    """Apps that wait until this origin holds fewer slots."""
    seen_at: float = 0.0
    alarm_at: float = math.inf
    """When waiting apps are to be woken even if no attempt ends."""
    sign: Sign = Sign.NOTHING
    """The sign of its last trouble."""


@dataclass(slots=True, eq=False)
class _Waiter:
    origin: str
    standing: Standing | None
    """None: it waits for its own origin, not for the node's room."""


class Slot:
    """The slot of one execution. Made by `Slots.use`.

    Attributes:
        app_id: the application whose task it is for.
        origin: of the application's URL.
        began_at: when the attempt began; negative before.
        answers_before: how many attempts the origin had answered at that moment.
    """

    __slots__ = ("_slots", "answers_before", "app_id", "began_at", "origin")

    def __init__(self, slots: Slots, app_id: int, origin: str) -> None:
        self._slots = slots
        self.app_id = app_id
        self.origin = origin
        self.began_at = -1.0
        self.answers_before = 0

    def begin(self, now: float) -> None:
        """Note that the attempt begins."""
        self.began_at = now
        self._slots.note_begin(self)

    def end(
        self,
        now: float,
        *,
        answered: bool | None,
        sign: Sign = Sign.NOTHING,
        timeout_s: float = math.inf,
    ) -> None:
        """Note that the attempt has ended. Only the first call counts.

        Args:
            now: when it ended.
            answered: whether the receiver answered, if only by refusing the connection;
                None where the end does not say, as after a cancel.
            sign: what the end says to the pace.
            timeout_s: how long it was allowed to take.
        """
        self._slots.note_end(self, now, answered=answered, sign=sign, timeout_s=timeout_s)

    def fail(self, now: float) -> float:
        """Note, before the slot is left, that the attempt failed and is to be repeated.
        Returns how crowded with failures its origin is, as `Pace.fail` does."""
        return self._slots.note_failure(self, now)

    def leave(self) -> None:
        """Give the slot back."""
        self._slots.leave(self)


class Slots:
    """See the module.

    Args:
        size: how many slots there are.
        per_origin: how many one origin may have at most.
        start_at: how many attempts at once an origin is sent while nothing is known of it.
    """

    def __init__(self, size: int, per_origin: int, *, start_at: int = START) -> None:
        self._start_at = start_at
        self._now = -math.inf
        self._held = 0
        self._reserved = 0
        self._origins: OrderedDict[str, _Origin] = OrderedDict()
        self._apps: OrderedDict[int, Manners] = OrderedDict()
        self._waiters: OrderedDict[int, _Waiter] = OrderedDict()
        self._short: dict[Standing, OrderedDict[int, None]] = {
            standing: OrderedDict() for standing in Standing
        }
        """Apps that wait for the node's room."""
        self._woken: list[int] = []
        self._called: list[_Origin] = []
        """The origin of each app in `_woken` that waited for its origin."""
        self._asked: list[_Origin] = []
        """The same for the apps that `woken` returned last."""
        self._room_freed = False
        self._alarms: list[tuple[float, str]] = []
        self._troubled: dict[str, _Origin] = {}
        """Origins that had trouble and may be sent fewer attempts at once."""
        self.limit(size, per_origin)

    def limit(self, size: int, per_origin: int) -> None:
        """Change the bounds. Slots held beyond a smaller one stay held."""
        self.size = size
        self._per_origin = per_origin
        self._reserves = {
            standing: max(size * eighths // 8, 1) if eighths and size > 1 else 0
            for standing, eighths in _RESERVED_EIGHTHS.items()
        }
        self._open_to_new = size - self._reserves[Standing.NEW]
        self._room_freed = True
        for at in self._origins.values():
            self._wake_at(at)

    @property
    def free(self) -> int:
        """Slots that are not held."""
        return max(self.size - self._held, 0)

    @property
    def reserved(self) -> int:
        """Slots that were taken and are not used yet."""
        return self._reserved

    def held_at(self, origin: str) -> int:
        """Return how many slots an origin holds."""
        known = self._origins.get(origin)
        return 0 if known is None else known.held

    def take(self, app_id: int, origin: str, now: float, wanted: int = 1) -> int:
        """Take as many slots as an app may have, ``wanted`` at most; returns how many. If it
        is none, the app waits, and `woken` will name it."""
        self._now = now
        app, at = self._app(app_id, now), self._origin(origin, now)
        standing = app.standing(now)
        taken = self._take(at, standing, wanted)
        if taken:
            self._stop_waiting(app_id)
        else:
            waiter = self._waiters.get(app_id)
            if waiter is None or waiter.origin != origin:
                self._stop_waiting(app_id)
                waiter = self._waiters[app_id] = _Waiter(origin, standing)
                self._wait(app_id, waiter, at, standing)
        return taken

    def take_before_others(self, app_id: int, origin: str, now: float, wanted: int) -> int:
        """Take slots as `take` does, for tasks that did not wait for their turn: none while
        other apps wait that come first. The app does not wait for more."""
        self._now = now
        app, at = self._app(app_id, now), self._origin(origin, now)
        standing = app.standing(now)
        if self._woken or at.waiting or at.called:
            return 0
        if any(self._short[other] for other in Standing if other <= standing):
            return 0
        return self._take(at, standing, wanted)

    def use(self, app_id: int, origin: str) -> Slot:
        """Have an execution use a slot that was taken."""
        self._reserved -= 1
        return Slot(self, app_id, origin)

    def give_back(self, origin: str, number: int) -> None:
        """Give back slots that were taken and not used."""
        self._reserved -= number
        self._free(self._origins[origin], number)

    def leave(self, slot: Slot) -> None:
        """See `Slot.leave`."""
        self._free(self._origins[slot.origin], 1)

    def note_begin(self, slot: Slot) -> None:
        """See `Slot.begin`."""
        self._app(slot.app_id, slot.began_at).running[slot] = None
        slot.answers_before = self._origins[slot.origin].pace.answers

    def note_end(
        self, slot: Slot, now: float, *, answered: bool | None, sign: Sign, timeout_s: float
    ) -> None:
        """See `Slot.end`."""
        self._now = now
        if not self._app(slot.app_id, now).note_end(slot, now, answered=answered):
            return
        at = self._origins[slot.origin]
        if at.pace.end(slot.began_at, slot.answers_before, now, sign, timeout_s):
            at.sign = sign
            self._troubled[at.name] = at

    def note_failure(self, slot: Slot, now: float) -> float:
        """See `Slot.fail`."""
        return self._origins[slot.origin].pace.fail(now)

    @property
    def opens_at(self) -> float:
        """When waiting apps are to be woken even if no attempt ends before."""
        return self._alarms[0][0] if self._alarms else math.inf

    def woken(self, now: float) -> list[int]:
        """Return apps that waited and are to ask again now, each once."""
        self._now = now
        while self._alarms and self._alarms[0][0] <= now:
            self._sound(self._alarms[0][0], heappop(self._alarms)[1])
        asked, self._asked = self._asked, []
        for at in asked:
            at.called -= 1
        # Room that a woken app did not take goes to the next one.
        for at in asked:
            self._wake_at(at)
        if self._room_freed:
            self._room_freed = False
            self._wake_short(now)
        woken, self._woken = self._woken, []
        self._asked, self._called = self._called, []
        self._room_freed = bool(woken)
        return woken

    def tend(self, now: float) -> bool:
        """Forget apps and origins without attempts, and look again at some waiting apps, in
        case none of the events that wake them came. Returns whether any app waits. To be
        called every second or so."""
        self._now = now
        self._forget(now)
        for app_id in list(islice(self._waiters, _LOOKED_AT)):
            waiter = self._waiters[app_id]
            self._waiters.move_to_end(app_id)
            standing = self._app(app_id, now).standing(now)
            if self._share(self._origin(waiter.origin, now), standing) > 0:
                self._wake(app_id)
        self._room_freed = bool(self._waiters or self._woken)
        return self._room_freed

    def slowed(self) -> list[Slowed]:
        """Return the origins that trouble has slowed and that tasks wait for."""
        well = [name for name, at in self._troubled.items() if not at.pace.slowed]
        for name in well:
            del self._troubled[name]
        return [
            Slowed(at.name, at.pace.at_once, at.sign.value, len(at.waiting) + at.called)
            for at in self._troubled.values()
            if at.waiting or at.called
        ]

    def shortage(self) -> Shortage | None:
        """Return which origins hold the node's room, if apps wait for it; else None."""
        waiting = sum(map(len, self._short.values()))
        if not waiting:
            return None
        held = [(at.name, at.held) for at in self._origins.values() if at.held]
        held.sort(key=lambda pair: (-pair[1], pair[0]))
        return Shortage(
            size=self.size,
            held=self._held,
            waiting=waiting,
            holders=tuple(held[:_NAMED]),
            others=max(len(held) - _NAMED, 0),
        )

    def statistics(self) -> SlotsStatistics:
        """Return what is held and known now."""
        return SlotsStatistics(
            size=self.size,
            held=self._held,
            reserved=self._reserved,
            waiting=len(self._waiters),
            short=sum(map(len, self._short.values())),
            apps=len(self._apps),
            origins=len(self._origins),
        )

    def _take(self, at: _Origin, standing: Standing, wanted: int) -> int:
        taken = 0
        while taken < wanted and self._share(at, standing) > 0:
            at.held += 1
            self._held += 1
            taken += 1
            at.pace.take(self._now)
        self._reserved += taken
        if taken < wanted and at.held < self._per_origin and self._open_at(at) <= 0:
            at.pace.bind(self._now)
        return taken

    def _open_at(self, at: _Origin) -> int:
        """Return how many more slots an origin may hold, however many the node has free."""
        return min(self._per_origin - at.held, at.pace.room(at.held, self._now))

    def _wait(self, app_id: int, waiter: _Waiter, at: _Origin, standing: Standing) -> None:
        """Have an app wait for its origin, or else for the node's room."""
        if self._open_at(at) > 0:
            waiter.standing = standing
            self._short[standing][app_id] = None
        else:
            waiter.standing = None
            at.waiting[app_id] = None
            self._set_alarm(at)

    def _set_alarm(self, at: _Origin) -> None:
        opens_at = max(at.pace.opens_at(at.held), self._now + _ALARM_S)
        if at.held < self._per_origin and opens_at < at.alarm_at:
            at.alarm_at = opens_at
            heappush(self._alarms, (opens_at, at.name))

    def _sound(self, alarm_at: float, name: str) -> None:
        at = self._origins.get(name)
        if at is None or at.alarm_at != alarm_at:
            return
        at.alarm_at = math.inf
        self._wake_at(at)
        if at.waiting:
            self._set_alarm(at)

    def _share(self, at: _Origin, standing: Standing) -> int:
        """Return how many more slots an origin may hold now for an app of this standing; 0
        or less for none. Each slot that is taken makes it less by more than one."""
        room = self.free - self._reserves[standing]
        if room <= 0:
            return 0
        if standing is Standing.NEW:
            share = max(int(NEW_AT_ONCE * (room / self._open_to_new) ** _HASTE), 1)
        else:
            share = _SHARE * room
        held = at.held
        paced = at.pace.room(held, self._now)
        return min(share - held, self._per_origin - held, paced)

    def _free(self, at: _Origin, number: int) -> None:
        at.held -= number
        self._held -= number
        self._room_freed = True
        self._wake_at(at)

    def _wake_at(self, at: _Origin) -> None:
        """Wake as many of an origin's waiting apps as it may hold more slots."""
        while at.waiting and self._open_at(at) > at.called:
            at.called += 1
            self._called.append(at)
            self._wake(next(iter(at.waiting)))

    def _wake_short(self, now: float) -> None:
        """Wake as many of the apps that wait for the node's room as there is room for, those
        of a better standing first."""
        free = self.free
        for standing, apps in self._short.items():
            looks = _LOOKED_AT
            while apps and free > self._reserves[standing] and looks > 0:
                app_id = next(iter(apps))
                waiter = self._waiters[app_id]
                now_is = self._app(app_id, now).standing(now)
                if self._share(self._origin(waiter.origin, now), now_is) > 0:
                    self._wake(app_id)
                    free -= 1
                    continue
                # It waits behind the others, or among the apps of its present standing.
                del apps[app_id]
                self._wait(app_id, waiter, self._origins[waiter.origin], now_is)
                looks -= 1

    def _wake(self, app_id: int) -> None:
        self._stop_waiting(app_id)
        self._woken.append(app_id)

    def _stop_waiting(self, app_id: int) -> None:
        waiter = self._waiters.pop(app_id, None)
        if waiter is None:
            return
        if waiter.standing is None:
            del self._origins[waiter.origin].waiting[app_id]
        else:
            del self._short[waiter.standing][app_id]

    def _app(self, app_id: int, now: float) -> Manners:
        app = self._apps.get(app_id)
        if app is None:
            app = self._apps[app_id] = Manners()
        else:
            self._apps.move_to_end(app_id)
        app.seen_at = now
        return app

    def _origin(self, name: str, now: float) -> _Origin:
        at = self._origins.get(name)
        if at is None:
            at = self._origins[name] = _Origin(name, Pace(self._start_at))
        else:
            self._origins.move_to_end(name)
        at.seen_at = now
        return at

    def _forget(self, now: float) -> None:
        for _ in range(_FORGOTTEN_AT_ONCE):
            app_id, app = next(iter(self._apps.items()), (0, None))
            if app is None or not self._is_past(app.seen_at, len(self._apps), now):
                break
            if app.running:
                self._app(app_id, now)
            else:
                del self._apps[app_id]
        for _ in range(_FORGOTTEN_AT_ONCE):
            name, at = next(iter(self._origins.items()), ("", None))
            if at is None or not self._is_past(at.seen_at, len(self._origins), now):
                break
            if at.held or at.waiting or at.called:
                self._origin(name, now)
            else:
                del self._origins[name]
                self._troubled.pop(name, None)

    def _is_past(self, seen_at: float, known: int, now: float) -> bool:
        return now - seen_at > FORGET_S or known > _REMEMBERED

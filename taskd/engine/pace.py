"""How many attempts at once a receiver is sent: as many as it turns out to bear. Pure, no
clock; times are Trio's.

::

    unknown ── 8 ──► one more for each answer, twice as many a round      it binds
                       │
        the first cut  ▼  half as many, once a round
                      one more a round ◄── answers      additive increase,
                       │                                 multiplicative decrease
                       └── trouble, or answers that only take longer for it

The rule is TCP's (RFC 5681), with attempts for segments: the window is what may be under
way. A round is as long as an attempt takes: only one that began after a cut can tell whether
that was enough. Beside loss there is delay, as in TCP Vegas and HyStart: by when the first
request of a queue runs out of its time, a queue of as many stands behind it.
"""

from __future__ import annotations

import math
from enum import Enum

from taskd.domain.model import Outcome, Phase

START = 8
"""Attempts at once that an origin is sent while nothing is known of it. One process of half a
second each answers so many within the usual timeouts."""

PROBE_S = 10.0
_FIRST_PROBE_S = 0.5
_QUICK_PROBES = 4
"""An origin where nothing ends is sent one more attempt after half a second, and then after
twice as long each time, and no longer than `PROBE_S`: others of it may be answered."""

IDLE_S = 10.0
"""How long a window is taken to be right that is not made use of. It halves each time
(RFC 2861)."""

_FORGIVEN_S = 60.0
_FORGIVEN_AFTER = 250
"""After this long, and so many answers, without trouble the window grows as it did at first."""

_SLOW_PART = 0.25
"""An answer is slow that took more than this part of its timeout, and so much more than
what is usual: ``_TIMES_LEAST`` times the least, ``_TIMES_KNOWN`` times what fewer attempts
did not shorten."""
_TIMES_LEAST = 2.0
_TIMES_KNOWN = 1.5
_NEVER_SLOW_S = 0.1
_LEAST_KEPT_S = 300.0

_STEP = 0.875
"""What slow answers leave of the window; trouble leaves half."""
_STEPS_END_AT = 4
"""Slow answers alone make the window no smaller."""
_NO_SHORTER = 0.75
"""Of half as many, each should take half as long. If it takes this part or more, others
are to blame, or the work itself."""

_PROMPT_PART = 0.125
"""If answers take less than this part of a timeout, and went past it, the origin is well."""

_LEFT_S = 60.0
"""What timed out counts as still there for as long again as it had waited, and no longer
than this."""

_DEAD_AFTER_S = 60.0
_DEAD_AFTER_ANSWERS = 100
_DEAD_AT_ONCE = 8.0
"""What has answered nothing for so long, and for so many times as long as it used to take, does
not work off a queue: it is sent so many at once, lest its tasks wait for each other's timeouts
one by one."""

_SERVED_PART = 0.25
"""Of what was answered while another waited in vain, so much may be under way: then it
waits for no more than that part of its timeout."""

_CAUTION = 8
"""Where it was too much before, the window grows so many times more slowly."""

_FIRST_PAUSE_S = 0.02
_PAUSE_GONE_S = 0.002

CROWD = 8
"""So many failures within about a second are many at once."""

_THROTTLED = 429
_OVERLOADED = frozenset({_THROTTLED, 502, 503, 504})
_SERVER_ERRORS = 500
_BROKEN = frozenset({Phase.CONNECTING, Phase.TLS, Phase.SENDING, Phase.AWAITING_RESPONSE})


class Sign(Enum):
    """What the end of an attempt says of how much its receiver can bear."""

    WELL = "answered"
    """In time, be it with a refusal of this task."""
    NOTHING = "nothing"
    BROKEN = "broken connections"
    """It refused the connection, or broke it before it answered."""
    OVERLOADED = "overload"
    """It said that it is too much."""
    THROTTLED = "throttling"
    """It said that they come too fast."""
    LATE = "timeouts"
    """It did not answer in time."""
    LEFT = "requests left unanswered"
    """The same, and it may still have the request before it."""


_LONGEST_PAUSE_S = {Sign.BROKEN: 0.2, Sign.OVERLOADED: 0.5, Sign.THROTTLED: 1.0}
"""Where one at a time is too much as well, the next waits: for twice as long each time, and
no longer than this. What is left unanswered makes a pause of its own."""

_TIMEOUTS = (Sign.LATE, Sign.LEFT)

_PAUSE_KEPT = {Sign.THROTTLED: 0.95}
"""What an answer leaves of that; half otherwise."""


_LATE = {
    None: Sign.NOTHING,
    Phase.RESOLVING: Sign.NOTHING,
    Phase.SENDING: Sign.LEFT,
    Phase.AWAITING_RESPONSE: Sign.LEFT,
}


def sign_of(outcome: Outcome, status: int | None, phase: Phase | None) -> Sign:
    """What an attempt's end says.

    Args:
        outcome: of the attempt.
        status: of the answer, if there was one. 502 and 504 are what a proxy says of a
            receiver that refuses, or does not answer in time.
        phase: the one that it was in last.
    """
    if outcome is Outcome.SUCCEEDED:
        return Sign.WELL
    if status in _OVERLOADED:
        return Sign.THROTTLED if status == _THROTTLED else Sign.OVERLOADED
    if outcome is Outcome.TIMED_OUT:
        return _LATE.get(phase, Sign.LATE)
    if outcome is Outcome.UNREACHABLE:
        return Sign.BROKEN if phase in _BROKEN else Sign.NOTHING
    if outcome is Outcome.REJECTED and status is not None and status < _SERVER_ERRORS:
        return Sign.WELL
    return Sign.NOTHING


class Pace:
    """How many attempts at once one origin may be sent. See the module.

    Args:
        start: while nothing is known.

    Attributes:
        answers: how many attempts have been answered.
        cut_at: when trouble last made it fewer.
    """

    __slots__ = (
        "_answered_at",
        "_answered_began",
        "_credit",
        "_cut_answers",
        "_ease",
        "_failures",
        "_failures_at",
        "_known_s",
        "_least_before_s",
        "_least_s",
        "_least_since",
        "_left",
        "_left_began",
        "_left_until",
        "_most",
        "_next_at",
        "_pause_s",
        "_probes",
        "_probing",
        "_slow",
        "_slow_at",
        "_slow_s",
        "_start",
        "_taken_at",
        "_too_much",
        "_used_at",
        "_usual_s",
        "_window",
        "answers",
        "cut_at",
    )

    def __init__(self, start: int = START) -> None:
        self._start = start
        self._window = float(start)
        self._most = math.inf
        """Where it grows slowly from, and where yet more so."""
        self._too_much = 1e9
        self.answers = self._cut_answers = 0
        self._probes = 0
        """Attempts that were sent beyond the window since the last answer."""
        self._probing = False
        self._credit = 0
        """Answers that it may grow by yet."""
        self._used_at = math.inf
        """When half of it was last in use."""
        self.cut_at = -math.inf
        self._taken_at = -math.inf
        self._answered_at = self._answered_began = -math.inf
        """When the youngest attempt began that was answered."""
        self._least_s = self._least_before_s = math.inf
        self._least_since = -math.inf
        self._usual_s = 0.0
        self._known_s = 0.0
        self._slow = 0
        """Slow answers in a row."""
        self._slow_at = 0.0
        """The window when they became so, 0 for not; and how long they took at most."""
        self._slow_s = 0.0
        self._left = 0
        self._left_began = -math.inf
        self._left_until = -math.inf
        self._pause_s = 0.0
        self._ease = 0.5
        self._next_at = -math.inf
        self._failures = 0.0
        self._failures_at = -math.inf

    @property
    def at_once(self) -> int:
        """How many may be under way."""
        return int(self._window)

    @property
    def slowed(self) -> bool:
        """Whether trouble has made it no more than what an unknown origin is sent."""
        return self._window <= self._start and self.cut_at > -math.inf

    def room(self, held: int, now: float) -> int:
        """How many more may begin where so many are held; 0 or less for none."""
        window = self._window
        if held + held >= window:
            self._used_at = now
        elif now - self._used_at > IDLE_S:
            window = self._decayed(now)
        if now < self._next_at:
            return 0
        more = int(window) - held
        if self._left:
            if now >= self._left_until:
                self._left = 0
            more -= self._left
        if more <= 0 and now >= self._taken_at + self._probe_s():
            self._probing = True
            return 1
        return more

    def opens_at(self, held: int) -> float:
        """When there may be room though nothing ends until then."""
        if int(self._window) - held - self._left > 0:
            return self._next_at
        opens_at = self._taken_at + self._probe_s()
        if self._left:
            opens_at = min(opens_at, self._left_until)
        return max(opens_at, self._next_at)

    def bind(self, now: float) -> None:
        """Note that there was no room for what there was."""
        self._credit = int(self._window)
        self._used_at = now

    def take(self, now: float) -> None:
        """Note that one more is held."""
        self._taken_at = now
        if self._probing:
            self._probing = False
            self._probes += 1
        if self._pause_s:
            self._next_at = now + self._pause_s

    def end(self, began_at: float, before: int, now: float, sign: Sign, timeout_s: float) -> bool:
        """Note how an attempt ended; returns whether it was trouble.

        Args:
            began_at: when it began.
            before: what `answers` was then.
            now: when.
            sign: what follows from its end.
            timeout_s: how long it might have taken.
        """
        if sign is Sign.WELL:
            self._note_answer(began_at, now, timeout_s)
            return False
        if sign is Sign.NOTHING:
            return False
        if sign is Sign.LEFT:
            prompt = self._usual_s < timeout_s * _PROMPT_PART
            if prompt and self._answered_began > began_at:
                return False
            if not self._is_dead(now):
                self._left += 1
                self._left_began = max(self._left_began, began_at)
                self._left_until = now + min(now - began_at, _LEFT_S)
        if began_at >= self.cut_at:
            self._cut(now, sign, self.answers - before)
        return True

    def fail(self, now: float) -> float:
        """Note a failed attempt that is to be repeated; returns how crowded the moment is
        with such, from 0 for a single one to 1."""
        beside = self._failures * math.pow(0.5, now - self._failures_at)
        self._failures, self._failures_at = beside + 1.0, now
        return min(beside / CROWD, 1.0)

    def _is_forgiven(self, now: float) -> bool:
        return (
            now - self.cut_at > _FORGIVEN_S and self.answers - self._cut_answers > _FORGIVEN_AFTER
        )

    def _is_dead(self, now: float) -> bool:
        """Whether it has not answered for so long that no queue can be why."""
        silent_s = now - self._answered_at
        return silent_s > max(_DEAD_AFTER_S, _DEAD_AFTER_ANSWERS * self._usual_s)

    def _probe_s(self) -> float:
        usual_s = 2 * self._usual_s
        longest_s = max(PROBE_S, usual_s)
        if self._left or self._probes > _QUICK_PROBES:
            return longest_s
        return min(max(_FIRST_PROBE_S, usual_s) * (1 << self._probes), longest_s)

    def _decayed(self, now: float) -> float:
        halvings = int((now - self._used_at) / IDLE_S)
        self._used_at += halvings * IDLE_S
        if self._window > self._start:
            self._window = max(self._window * math.pow(0.5, halvings), float(self._start))
        return self._window

    def _note_answer(self, began_at: float, now: float, timeout_s: float) -> None:
        took = now - began_at
        self.answers += 1
        beyond, self._probes = self._probes, 0
        self._answered_at = now
        if began_at > self._answered_began:
            self._answered_began = began_at
            if self._left and began_at > self._left_began:
                self._left = 0
        if self._pause_s:
            self._ease_pause()
        if now - self._least_since > _LEAST_KEPT_S:
            self._least_before_s, self._least_s = self._least_s, math.inf
            self._least_since, self._known_s = now, 0.0
        self._least_s = min(self._least_s, took)
        usual_s = self._usual_s
        self._usual_s = usual_s + (took - usual_s) / 8 if usual_s else took
        if took > timeout_s * _SLOW_PART and took > self._slow_beyond_s():
            self._note_slow(took)
            return
        if self._slow:
            self._slow = 0
        self._slow_at = 0.0
        if beyond and took < timeout_s * _PROMPT_PART:
            self._window += beyond  # what holds it is no queue
        if self._credit and not self._pause_s:
            self._grow(now)

    def _grow(self, now: float) -> None:
        self._credit -= 1
        window = self._window
        if window < self._most or self._is_forgiven(now):
            self._window = window + 1.0
        elif int(window) + 1 < int(self._too_much):
            self._window = window + 1.0 / window
        else:
            self._window = window + 1.0 / (window * _CAUTION)

    def _slow_beyond_s(self) -> float:
        least = min(self._least_s, self._least_before_s)
        return max(least * _TIMES_LEAST, self._known_s * _TIMES_KNOWN, _NEVER_SLOW_S)

    def _note_slow(self, took: float) -> None:
        self._slow += 1
        if self._slow_at:
            self._slow_s = max(self._slow_s, took)
        if self._slow < max(self._window / 2, 2):
            return
        self._slow = 0
        at_end = self._window <= _STEPS_END_AT
        if not self._slow_at:
            self._slow_at, self._slow_s = self._window, took
        if at_end or (self._window <= self._slow_at / 2 and took >= self._slow_s * _NO_SHORTER):
            self._window, self._most = max(self._window, self._slow_at), self._too_much / 2
            self._known_s, self._slow_at = took, 0.0
            return
        self._window = max(self._window * _STEP, _STEPS_END_AT)
        self._most = min(self._most, self._window)
        self._credit = 0

    def _cut(self, now: float, sign: Sign, served: int) -> None:
        window = self._window
        less = window / 2
        if sign is Sign.LEFT:
            less = min(less, served * _SERVED_PART)
        less = max(less, _DEAD_AT_ONCE if sign in _TIMEOUTS and self._is_dead(now) else 1.0)
        if self._answered_began >= self.cut_at and self.answers:
            # Else it is out of order, and this says nothing of how much it bears.
            self._most, self._too_much = less, window
        if window <= 1.0 and sign in _LONGEST_PAUSE_S:
            pause = max(2 * self._pause_s, _FIRST_PAUSE_S)
            self._pause_s = min(pause, _LONGEST_PAUSE_S[sign])
            self._next_at = now + self._pause_s
            self._ease = _PAUSE_KEPT.get(sign, 0.5)
        self._window = less
        self._credit = 0
        self._slow = 0
        self._slow_at = 0.0
        self.cut_at, self._cut_answers = now, self.answers

    def _ease_pause(self) -> None:
        self._pause_s *= self._ease
        if self._pause_s < _PAUSE_GONE_S:
            self._pause_s = 0.0
        self._next_at = min(self._next_at, self._taken_at + self._pause_s)

"""Finds how many attempts at once an origin bears, which is how many it is sent. Pure, no
clock; moments are `trio.current_time()`.

::

    unknown ── 8 ──► a full window grows by one for each answer: it doubles each round
                       │
            trouble    ▼    the window is halved, once a round
                     then one more each round          (additive increase,
                       ▲                                 multiplicative decrease)
                       └── trouble, or answers that only get slower, make it less again

The rule is TCP's (RFC 5681), with attempts for segments: the window is the number of attempts
that may be under way. A round lasts as long as an attempt: only an attempt that began after a
cut shows whether the cut was enough. As in TCP Vegas and HyStart, delay is a sign beside loss:
by the time the first request of a queue times out, another full queue stands behind it.
"""

from __future__ import annotations

import math
from enum import Enum

from taskd.domain.model import Outcome, Phase

START = 8
"""Attempts at once that an origin is sent while nothing is known of it. A receiver of one
process that takes half a second for each answers so many within the usual timeouts."""

PROBE_S = 10.0
_FIRST_PROBE_S = 0.5
_QUICK_PROBES = 4
"""An origin where no attempt ends is sent one more after half a second, then after twice as
long each time, `PROBE_S` at most: its other requests may be answered."""

IDLE_S = 10.0
"""A window halves after each such time in which less than half of it is used (RFC 2861)."""

_FORGIVEN_S = 60.0
_FORGIVEN_AFTER = 250
"""After so long and so many answers without trouble, the window grows as it did at first."""

_SLOW_PART = 0.25
"""A slow answer takes more than this part of its timeout, and more than each of these:
`_TIMES_LEAST` times the shortest answer of late, `_TIMES_KNOWN` times the duration that fewer
attempts at once did not shorten, and `_NEVER_SLOW_S`."""
_TIMES_LEAST = 2.0
_TIMES_KNOWN = 1.5
_NEVER_SLOW_S = 0.1
_LEAST_KEPT_S = 300.0

_STEP = 0.875
"""The part of the window that slow answers leave; trouble leaves half."""
_STEPS_END_AT = 4
"""Slow answers alone make the window no smaller than this."""
_NO_SHORTER = 0.75
"""Half as many attempts at once should take half as long. If they take this part or more, the
receiver's other work or the request's own makes them slow, and the window is restored."""

_PROMPT_PART = 0.125
"""A prompt answer takes less than this part of a timeout. A timeout is no trouble of an origin
that is usually prompt and has answered a younger attempt meanwhile."""

_LEFT_S = 60.0
"""A request that was left unanswered counts as under way for as long again as it had waited,
and no longer than this."""

_DEAD_AFTER_S = 60.0
_DEAD_AFTER_ANSWERS = 100
_DEAD_AT_ONCE = 8.0
"""An origin works off no queue if it has answered nothing for `_DEAD_AFTER_S`, and for
`_DEAD_AFTER_ANSWERS` times as long as an answer usually took. It is sent `_DEAD_AT_ONCE`
attempts at once, so that its tasks do not wait for each other's timeouts one by one."""

_SERVED_PART = 0.25
"""After an attempt was left unanswered, the window is at most this part of the number that
were answered while it waited: an attempt then waits for this part of its timeout at most."""

_CAUTION = 8
"""From the size on that was too much before, the window grows so many times more slowly."""

_FIRST_PAUSE_S = 0.02
_PAUSE_GONE_S = 0.002

CROWD = 8
"""So many failures within about a second make a moment fully crowded; see `Pace.fail`."""

_THROTTLED = 429
_OVERLOADED = frozenset({_THROTTLED, 502, 503, 504})
_SERVER_ERRORS = 500
_BROKEN = frozenset({Phase.CONNECTING, Phase.TLS, Phase.SENDING, Phase.AWAITING_RESPONSE})


class Sign(Enum):
    """How an attempt's end shows whether its receiver bears the load."""

    WELL = "answered"
    """It answered in time, if only to refuse this task."""
    NOTHING = "nothing"
    BROKEN = "broken connections"
    """It refused the connection, or broke it before it answered."""
    OVERLOADED = "overload"
    """It, or a proxy before it, answered that it has too much to do."""
    THROTTLED = "throttling"
    """It answered that attempts come too fast."""
    LATE = "timeouts"
    """It did not answer in time."""
    LEFT = "requests left unanswered"
    """It did not answer in time, and may still work on the request."""


_LONGEST_PAUSE_S = {Sign.BROKEN: 0.2, Sign.OVERLOADED: 0.5, Sign.THROTTLED: 1.0}
"""Where one attempt at a time is too much as well, the next one waits: twice as long each time,
and no longer than this. Requests left unanswered need no such pause: they hold the window."""

_TIMEOUTS = (Sign.LATE, Sign.LEFT)

_PAUSE_KEPT = {Sign.THROTTLED: 0.95}
"""The part of this pause that an answer leaves; half after other signs."""


_LATE = {
    None: Sign.NOTHING,
    Phase.RESOLVING: Sign.NOTHING,
    Phase.SENDING: Sign.LEFT,
    Phase.AWAITING_RESPONSE: Sign.LEFT,
}


def sign_of(outcome: Outcome, status: int | None, phase: Phase | None) -> Sign:
    """Return what an attempt's end says of its receiver.

    Args:
        outcome: of the attempt.
        status: of the answer, if there was one. A proxy answers 502 or 504 for a receiver
            that refuses, or does not answer in time.
        phase: the attempt's last.
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
        start: the window while nothing is known.

    Attributes:
        answers: how many attempts have been answered.
        cut_at: when trouble last cut the window.
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
        """The window grows slowly from this size on, and yet more so from `_too_much` on."""
        self._too_much = 1e9
        self.answers = self._cut_answers = 0
        self._probes = 0
        """Attempts that were sent beyond the window since the last answer."""
        self._probing = False
        self._credit = 0
        """Answers that may yet make the window grow."""
        self._used_at = math.inf
        """When half of the window was last in use."""
        self.cut_at = -math.inf
        self._taken_at = -math.inf
        self._answered_at = self._answered_began = -math.inf
        """When the youngest of the answered attempts began."""
        self._least_s = self._least_before_s = math.inf
        self._least_since = -math.inf
        self._usual_s = 0.0
        self._known_s = 0.0
        self._slow = 0
        """Slow answers in a row."""
        self._slow_at = 0.0
        """The window when answers became slow, 0 while they are not; `_slow_s` is the longest."""
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
        """How many attempts may be under way."""
        return int(self._window)

    @property
    def slowed(self) -> bool:
        """Whether trouble has cut the window to that of an unknown origin, or below."""
        return self._window <= self._start and self.cut_at > -math.inf

    def room(self, held: int, now: float) -> int:
        """Return how many more attempts may begin while ``held`` slots are; 0 or less for
        none."""
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
        """Return when there may be room even if no attempt ends before."""
        if int(self._window) - held - self._left > 0:
            return self._next_at
        opens_at = self._taken_at + self._probe_s()
        if self._left:
            opens_at = min(opens_at, self._left_until)
        return max(opens_at, self._next_at)

    def bind(self, now: float) -> None:
        """Note that attempts had to wait for this window: answers may make it grow."""
        self._credit = int(self._window)
        self._used_at = now

    def take(self, now: float) -> None:
        """Note that one more slot is held."""
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
            before: `answers` at its beginning.
            now: when it ended.
            sign: what its end says.
            timeout_s: how long it was allowed to take.
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
        """Note a failed attempt that is to be repeated; returns how crowded with failures the
        moment is, from 0 for a single one to 1."""
        beside = self._failures * math.pow(0.5, now - self._failures_at)
        self._failures, self._failures_at = beside + 1.0, now
        return min(beside / CROWD, 1.0)

    def _is_forgiven(self, now: float) -> bool:
        return (
            now - self.cut_at > _FORGIVEN_S and self.answers - self._cut_answers > _FORGIVEN_AFTER
        )

    def _is_dead(self, now: float) -> bool:
        """Whether the origin has been silent for so long that no queue can be the reason."""
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
        took_s = now - began_at
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
        self._least_s = min(self._least_s, took_s)
        usual_s = self._usual_s
        self._usual_s = usual_s + (took_s - usual_s) / 8 if usual_s else took_s
        if took_s > timeout_s * _SLOW_PART and took_s > self._slow_beyond_s():
            self._note_slow(took_s)
            return
        if self._slow:
            self._slow = 0
        self._slow_at = 0.0
        if beyond and took_s < timeout_s * _PROMPT_PART:
            self._window += beyond  # probes were answered promptly: no queue holds the others up
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
        least_s = min(self._least_s, self._least_before_s)
        return max(least_s * _TIMES_LEAST, self._known_s * _TIMES_KNOWN, _NEVER_SLOW_S)

    def _note_slow(self, took_s: float) -> None:
        self._slow += 1
        if self._slow_at:
            self._slow_s = max(self._slow_s, took_s)
        if self._slow < max(self._window / 2, 2):
            return
        self._slow = 0
        at_end = self._window <= _STEPS_END_AT
        if not self._slow_at:
            self._slow_at, self._slow_s = self._window, took_s
        if at_end or (self._window <= self._slow_at / 2 and took_s >= self._slow_s * _NO_SHORTER):
            self._window, self._most = max(self._window, self._slow_at), self._too_much / 2
            self._known_s, self._slow_at = took_s, 0.0
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
            # An origin without an answer since the last cut is out of order, and its
            # failures say nothing of how much it bears.
            self._most, self._too_much = less, window
        if window <= 1.0 and sign in _LONGEST_PAUSE_S:
            pause_s = max(2 * self._pause_s, _FIRST_PAUSE_S)
            self._pause_s = min(pause_s, _LONGEST_PAUSE_S[sign])
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

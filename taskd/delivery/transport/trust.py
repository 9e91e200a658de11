"""How long the receivers of each origin are known to keep an idle connection.

A receiver that closes idle connections says so to nobody, and a request that meets the
close fails: whether it was read can't be known. So the first connection of an origin
that is used again is on trial, alone; when it has answered, each may be.

::

                ┌── answered ──► proven ── found closed after a long idle time:
    new ── trial                   │       kept for half of it
     ▲          └── closed ──┐     │
     │                       ▼     ▼ found closed after a short one
     └── watched: open ◄── not kept at all, for a while: 5 s, then twice that, …
         for 100 ms
"""

from __future__ import annotations

from collections import OrderedDict

WATCHED_S = 0.1
"""How long a connection must have been seen to stay open, where one was closed before;
and the shortest time that keeping one is worth."""

TRIAL_S = 1.0
"""How long another trial waits for one that has no answer yet: a receiver may be well and
take its time."""

FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 640.0
"""How long an origin is gone by what was learnt of it."""

MOST_ORIGINS = 4096


class Trust:
    """What is known of one origin.

    Attributes:
        keep_s: how long an idle connection is kept; 0: not at all.
        proven: whether a kept connection has answered since one was closed.
        warned: whether one was closed soon after it had been left idle.
        trial_at: when a request was sent that will tell; None: none is under way.
    """

    __slots__ = ("_pause_s", "_until", "keep_s", "proven", "trial_at", "warned")

    def __init__(self, keep_s: float) -> None:
        self.keep_s = keep_s
        self.proven = False
        self.warned = False
        self.trial_at: float | None = None
        self._until = 0.0
        self._pause_s = 0.0

    def closed(self, idle_s: float, now: float) -> None:
        """Learn that a connection was closed that had been idle for so long."""
        keep_s = idle_s / 2
        if keep_s < WATCHED_S:
            keep_s = 0.0
            self.proven = False
            self.warned = True
        self.keep_s = min(self.keep_s, keep_s)
        if now < self._until:
            return  # of the same time as what was learnt before
        recently = self._pause_s and now < self._until + LONGEST_PAUSE_S
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S) if recently else FIRST_PAUSE_S
        self._until = now + self._pause_s

    def may_try(self, idle_s: float, now: float) -> bool:
        """Whether a connection that has been idle for so long may be tried, while none
        has answered."""
        if self.warned and idle_s < WATCHED_S:
            return False
        return self.trial_at is None or now - self.trial_at >= TRIAL_S

    def answered(self) -> None:
        """Learn that a connection that had been kept has answered."""
        self.proven = True
        self.warned = False

    def refresh(self, keep_s: float, now: float) -> None:
        """Forget how long connections are kept, once that is to be found out anew."""
        if self._until and now >= self._until:
            self.keep_s = keep_s


class TrustBook:
    """What is known of each origin, of the latest ones.

    Args:
        keep_s: how long an idle connection is kept where nothing else is known.
    """

    def __init__(self, keep_s: float) -> None:
        self.keep_s = keep_s
        self._origins: OrderedDict[str, Trust] = OrderedDict()

    def of(self, origin: str, now: float) -> Trust:
        """What is known of an origin."""
        trust = self._origins.get(origin)
        if trust is None:
            trust = self._origins[origin] = Trust(self.keep_s)
            if len(self._origins) > MOST_ORIGINS:
                self._origins.popitem(last=False)
        elif trust.keep_s != self.keep_s:
            trust.refresh(self.keep_s, now)
        return trust

    def renew(self, keep_s: float) -> None:
        """Forget everything, and go by another time."""
        self.keep_s = keep_s
        self._origins.clear()

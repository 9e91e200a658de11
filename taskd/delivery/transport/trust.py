"""How long the receivers of each origin are known to keep an idle connection.

A receiver closes idle connections without notice, and a request that meets the close fails:
whether it was read can't be known. So the first kept connection of an origin that is used
again is on trial, alone. Once it has answered, every kept connection may be used.

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
"""How long a connection must have stayed open, after another was closed early; and the
shortest time for which keeping one is worth it."""

TRIAL_S = 1.0
"""How long a trial without an answer holds up the next one: a healthy receiver may be slow."""

FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 640.0
"""How long what was learnt of an origin holds: at first, and at most."""

MOST_ORIGINS = 4096


class Trust:
    """What is known of one origin.

    Attributes:
        keep_s: how long an idle connection is kept; 0: not at all.
        proven: whether a kept connection has answered, and none was closed early since.
        warned: whether one was closed early, and no kept one has answered since.
        trial_at: when the request on trial was sent; None if none is under way.
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
        """Learn that a connection was closed after it had been idle for so long."""
        keep_s = idle_s / 2
        if keep_s < WATCHED_S:
            keep_s = 0.0
            self.proven = False
            self.warned = True
        self.keep_s = min(self.keep_s, keep_s)
        if now < self._until:
            return  # still the pause of what was learnt before
        recently = self._pause_s and now < self._until + LONGEST_PAUSE_S
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S) if recently else FIRST_PAUSE_S
        self._until = now + self._pause_s

    def may_try(self, idle_s: float, now: float) -> bool:
        """Whether a connection that has been idle for so long may be put on trial."""
        if self.warned and idle_s < WATCHED_S:
            return False
        return self.trial_at is None or now - self.trial_at >= TRIAL_S

    def answered(self) -> None:
        """Learn that a kept connection has answered."""
        self.proven = True
        self.warned = False

    def refresh(self, keep_s: float, now: float) -> None:
        """Go back to keeping connections for ``keep_s``, once the pause is over."""
        if self._until and now >= self._until:
            self.keep_s = keep_s


class TrustBook:
    """What is known of each of the latest `MOST_ORIGINS` origins.

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
        """Forget everything, and keep connections for ``keep_s`` from now on."""
        self.keep_s = keep_s
        self._origins.clear()

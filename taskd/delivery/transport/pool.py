"""Idle connections, kept for a short while."""

from __future__ import annotations

from collections import OrderedDict, deque

from taskd.delivery.transport.connection import Connection
from taskd.delivery.transport.trust import Trust, TrustBook

KEEP_S = 4.0
"""How long an idle connection is kept: common receivers close theirs after 5 s or more."""

MAX_AGE_S = 60.0
"""The age from which on a connection is not kept: one in steady use would never notice that
its name leads to another address by now."""


class IdlePool:
    """Connections that wait for their next request, per origin.

    The one used last is taken first, so that those not needed grow old. All are kept for
    the same time at most, so the one that became idle first is over first: every operation
    looks only at an end of a list.

    Args:
        keep_s: how long a connection may be idle, where its origin is not known to
            close it sooner. 0: none is kept.
        max_per_origin: idle connections kept to one origin.
        max_idle: idle connections kept in all.
    """

    def __init__(self, *, max_per_origin: int, max_idle: int, keep_s: float = KEEP_S) -> None:
        self._trust = TrustBook(keep_s)
        self._max_per_origin = max_per_origin
        self._max_idle = max_idle
        self._by_age: OrderedDict[Connection, None] = OrderedDict()
        self._by_origin: dict[str, deque[Connection]] = {}
        self.discarded = 0
        """Connections found closed by the receiver, or with unasked bytes."""

    def __len__(self) -> int:
        return len(self._by_age)

    def keeps(self, origin: str, now: float) -> bool:
        """Whether a connection to the origin would be kept."""
        return self._trust.of(origin, now).keep_s > 0

    def take(self, origin: str, now: float) -> Connection | None:
        """A connection to the origin that is fit for use, or None. It is the caller's until
        it is given back."""
        idle = self._by_origin.get(origin)
        if not idle:
            return None
        trust = self._trust.of(origin, now)
        if not trust.proven:
            return self._take_on_trial(idle, trust, now)
        while idle:
            connection = idle[-1]
            self._remove_newest(idle, connection)
            if self._is_fit(connection, trust, now):
                return connection
        return None

    def give_back(self, connection: Connection, now: float, *, reusable: bool) -> None:
        """Take a connection back. It is closed if it may not or should not be used again.
        Where there are too many, the one that became idle first is closed."""
        origin = connection.origin
        trust = self._trust.of(origin, now)
        if connection.on_trial:
            connection.on_trial, trust.trial_at = False, None
            if connection.answered:
                trust.answered()
        if not reusable or trust.keep_s <= 0 or now - connection.opened_at >= MAX_AGE_S:
            connection.close()
            return
        idle = self._by_origin.get(origin)
        if idle is None:
            idle = self._by_origin[origin] = deque()
        elif trust.warned:  # one is enough to watch, and must grow old enough for a trial
            connection.close()
            return
        connection.idle_since = now
        self._by_age[connection] = None
        idle.append(connection)
        if len(idle) > self._max_per_origin:
            self._close_oldest(idle[0])
        if len(self._by_age) > self._max_idle:
            self._close_oldest(next(iter(self._by_age)))

    def note_closed(self, connection: Connection, now: float) -> None:
        """Learn that a connection was found closed when it was used again after
        idling."""
        self._note_closed(connection, self._trust.of(connection.origin, now), now)

    def close_idle(self, now: float) -> None:
        """Close the connections that have been idle for too long."""
        while self._by_age:
            oldest = next(iter(self._by_age))
            if now - oldest.idle_since < self._trust.keep_s:
                return
            self._close_oldest(oldest)

    def close_all(self) -> int:
        """Close every one; returns how many that were."""
        number = len(self._by_age)
        while self._by_age:
            self._close_oldest(next(iter(self._by_age)))
        return number

    def renew(self, keep_s: float) -> None:
        """Close every one, forget what is known of origins, and keep connections for
        ``keep_s`` from now on."""
        self.close_all()
        self._trust.renew(keep_s)

    def _take_on_trial(
        self, idle: deque[Connection], trust: Trust, now: float
    ) -> Connection | None:
        """The oldest idle connection, for a trial. One is on trial at a time; if the origin
        has closed one early before, only one that has stayed open for `WATCHED_S`."""
        connection = idle[0]
        if not trust.may_try(now - connection.idle_since, now):
            return None
        self._remove_oldest(idle, connection)
        if not self._is_fit(connection, trust, now):
            return None
        connection.on_trial, trust.trial_at = True, now
        return connection

    def _is_fit(self, connection: Connection, trust: Trust, now: float) -> bool:
        """Whether a connection that was taken out may be used; else it is closed."""
        connection.rested_s = now - connection.idle_since
        if connection.rested_s < trust.keep_s:
            if not connection.is_stale():
                return True
            self.discarded += 1
            self._note_closed(connection, trust, now)
        connection.close()
        return False

    def _note_closed(self, connection: Connection, trust: Trust, now: float) -> None:
        trust.closed(connection.rested_s, now)
        if not trust.keep_s:
            idle = self._by_origin.get(connection.origin)
            while idle:
                self._close_oldest(idle[0])

    def _remove_newest(self, idle: deque[Connection], connection: Connection) -> None:
        idle.pop()
        self._forget(idle, connection)

    def _remove_oldest(self, idle: deque[Connection], connection: Connection) -> None:
        idle.popleft()
        self._forget(idle, connection)

    def _forget(self, idle: deque[Connection], connection: Connection) -> None:
        del self._by_age[connection]
        if not idle:
            del self._by_origin[connection.origin]

    def _close_oldest(self, connection: Connection) -> None:
        self._remove_oldest(self._by_origin[connection.origin], connection)
        connection.close()

"""Idle connections, kept for a short while."""

from __future__ import annotations

from collections import OrderedDict, deque

from taskd.transport.connection import Connection

IDLE_S = 4.0
"""Receivers close idle connections too, the common ones after 5 s and more."""


MAX_AGE_S = 60.0
"""A connection in steady use would else never notice that its name leads to
another address by now."""


class IdlePool:
    """Connections that wait for their next request, per origin.

    The one used last is taken first, so that those not needed grow old. Since
    all live equally long, the one that was idle first is over first: every
    operation looks at an end of a list only.

    Args:
        max_per_origin: idle connections kept to one origin.
        max_idle: idle connections kept in all.
    """

    def __init__(self, *, max_per_origin: int, max_idle: int) -> None:
        self._max_per_origin = max_per_origin
        self._max_idle = max_idle
        self._by_age: OrderedDict[Connection, None] = OrderedDict()
        self._by_origin: dict[str, deque[Connection]] = {}
        self.discarded = 0
        """Connections found closed by the receiver, or with unasked bytes."""

    def __len__(self) -> int:
        return len(self._by_age)

    def take(self, origin: str, now: float) -> Connection | None:
        """A connection to the origin that is fit for use, the caller's from now on."""
        idle = self._by_origin.get(origin)
        while idle:
            connection = idle[-1]
            fresh = now - connection.idle_since < IDLE_S
            self._remove_newest(idle, connection)
            if fresh:
                if not connection.is_stale():
                    return connection
                self.discarded += 1
            connection.close()
        return None

    def keep(self, connection: Connection, now: float) -> None:
        """Take a connection over. Those that are too many are closed, the oldest
        first; so is this one if it has served for long enough."""
        if now - connection.opened_at >= MAX_AGE_S:
            connection.close()
            return
        connection.idle_since = now
        self._by_age[connection] = None
        idle = self._by_origin.get(connection.origin)
        if idle is None:
            idle = self._by_origin[connection.origin] = deque()
        idle.append(connection)
        if len(idle) > self._max_per_origin:
            self._close_oldest(idle[0])
        if len(self._by_age) > self._max_idle:
            self._close_oldest(next(iter(self._by_age)))

    def close_idle(self, now: float) -> None:
        """Close those whose time is over."""
        while self._by_age:
            oldest = next(iter(self._by_age))
            if now - oldest.idle_since < IDLE_S:
                return
            self._close_oldest(oldest)

    def close_all(self) -> None:
        """Close every one."""
        while self._by_age:
            self._close_oldest(next(iter(self._by_age)))

    def _remove_newest(self, idle: deque[Connection], connection: Connection) -> None:
        idle.pop()
        del self._by_age[connection]
        if not idle:
            del self._by_origin[connection.origin]

    def _close_oldest(self, connection: Connection) -> None:
        idle = self._by_origin[connection.origin]
        idle.popleft()
        if not idle:
            del self._by_origin[connection.origin]
        del self._by_age[connection]
        connection.close()

"""Time, as it is passed in.

Due times are judged by the wall clock, durations and deadlines by Trio's
monotonic clock (``trio.current_time()``). Nothing else in the package asks the
operating system for the time.
"""

from __future__ import annotations

import datetime
import time
from functools import lru_cache
from typing import Protocol


class Clock(Protocol):
    """The wall clock."""

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch, rounded down, so that a moment is
        never taken to have come before it has."""
        ...


class SystemClock:
    """The machine's wall clock. It may step in both directions."""

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return time.time_ns() // 1_000_000


def since_boot_ns() -> int:
    """Nanoseconds since the machine was started, its sleep included. Never steps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class SharedClock:
    """A clock that is kept elsewhere, by which several machines go: the time it was
    found to show, and what has gone by here since. Steps of this machine's own
    clock do not move it."""

    def __init__(self) -> None:
        self._ahead_ns = time.time_ns() - since_boot_ns()

    def set(self, ahead_ns: int) -> None:
        """Take note of by how much it is ahead of `since_boot_ns`."""
        self._ahead_ns = ahead_ns

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return (since_boot_ns() + self._ahead_ns) // 1_000_000


def iso_utc(ms: int) -> str:
    """ISO 8601 in UTC with milliseconds, e.g. ``2021-07-16T06:59:39.000Z``."""
    seconds, rest = divmod(ms, 1000)
    return f"{_to_the_second(seconds)}.{rest:03d}Z"


@lru_cache(maxsize=256)  # what is told of many tasks at once is often of the same second
def _to_the_second(seconds: int) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.replace(tzinfo=None).isoformat()

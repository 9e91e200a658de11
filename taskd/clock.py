"""Clocks, which other modules get passed in.

Due times are judged by the wall clock, durations and deadlines by Trio's monotonic clock
(``trio.current_time()``). Nothing else in the package asks the operating system for the time,
but for what only measures how long something took (``time.perf_counter()``).
"""

from __future__ import annotations

import datetime
import time
from functools import lru_cache
from typing import Protocol


class Clock(Protocol):
    """The wall clock."""

    def now_ms(self) -> int:
        """Return the milliseconds since the Unix epoch, rounded down, so that no moment
        seems to have come before it has."""
        ...


class FineClock(Clock, Protocol):
    """A wall clock that tells more than milliseconds."""

    def now_ns(self) -> int:
        """Return the nanoseconds since the Unix epoch."""
        ...


class SystemClock:
    """The machine's wall clock. It may step in both directions."""

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return time.time_ns() // 1_000_000

    def now_ns(self) -> int:
        """See `FineClock.now_ns`."""
        return time.time_ns()


def since_boot_ns() -> int:
    """Return the nanoseconds since the machine was started, its sleep included. Never steps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class SharedClock:
    """A clock that several machines share: the time that the shared clock was last found to
    show, plus the time that has passed here since. Steps of this machine's wall clock do not
    move it."""

    def __init__(self) -> None:
        self._ahead_ns = time.time_ns() - since_boot_ns()

    def set(self, ahead_ns: int) -> None:
        """Set by how much the shared clock is ahead of `since_boot_ns`."""
        self._ahead_ns = ahead_ns

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return self.now_ns() // 1_000_000

    def now_ns(self) -> int:
        """See `FineClock.now_ns`."""
        return since_boot_ns() + self._ahead_ns


def iso_utc(ms: int) -> str:
    """Return a moment as ISO 8601 in UTC, e.g. ``2021-07-16T06:59:39.000Z``."""
    seconds, rest = divmod(ms, 1000)
    return f"{_to_the_second(seconds)}.{rest:03d}Z"


@lru_cache(maxsize=256)  # moments of many tasks are often of the same second
def _to_the_second(seconds: int) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.replace(tzinfo=None).isoformat()

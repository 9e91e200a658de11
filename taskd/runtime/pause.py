"""Pauses that another coroutine may end."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import time
from typing import Protocol

import trio

_SHORTEST_S = 1e-9
"""0 would mean: never."""


class Pause(Protocol):
    """Lets one coroutine at a time wait."""

    async def wait(self, longest_s: float) -> None:
        """Wait for so many seconds (`math.inf`: without a bound), or until `end` is called. If
        that was called since the last wait, this one ends at once."""

    def end(self) -> None:
        """End the pause. A closed one may be ended still."""

    def close(self) -> None:
        """Give up what the system lends it: nobody waits any more."""


class CoarsePause:
    """A pause by Trio's clock, which a test may replace. The system's is rounded up to whole
    milliseconds, as `epoll_wait` takes them."""

    def __init__(self) -> None:
        self._ended = trio.Event()

    async def wait(self, longest_s: float) -> None:
        """See `Pause.wait`."""
        with trio.move_on_after(longest_s):
            await self._ended.wait()
            self._ended = trio.Event()

    def end(self) -> None:
        """See `Pause.end`."""
        self._ended.set()

    def close(self) -> None:
        """See `Pause.close`."""


class FinePause:
    """A pause to the microsecond: a ``timerfd`` of Linux, which the loop waits for.

    Raises:
        OSError: the system has no descriptor left.
    """

    def __init__(self) -> None:
        self._system = ctypes.CDLL(None, use_errno=True)  # Python has it from 3.13 on
        self._fd = self._system.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise _failed("timerfd_create")
        self._ended = False

    async def wait(self, longest_s: float) -> None:
        """See `Pause.wait`."""
        self._set(_SHORTEST_S if self._ended else longest_s)
        await trio.lowlevel.wait_readable(self._fd)
        self._ended = False
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)

    def end(self) -> None:
        """See `Pause.end`."""
        self._ended = True
        if self._fd >= 0:
            self._set(_SHORTEST_S)

    def close(self) -> None:
        """See `Pause.close`."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _set(self, after_s: float) -> None:
        after_ns = 0 if math.isinf(after_s) else max(round(after_s * 1e9), 1)
        seconds, rest = divmod(after_ns, 1_000_000_000)
        setting = _Setting(0, 0, seconds, rest)
        if self._system.timerfd_settime(self._fd, 0, ctypes.byref(setting), None):
            raise _failed("timerfd_settime")


class _Setting(ctypes.Structure):
    """Linux's ``struct itimerspec``."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("after_s", ctypes.c_long),
        ("after_ns", ctypes.c_long),
    )


def _failed(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")

"""Reading what a body holds without holding up everybody else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeVar

import trio

READ_AT_ONCE = 32 * 1024
"""Bytes of a body that are read on the event loop; a longer one is read in a thread,
one at a time."""

AT_ONCE_S = 0.01
"""What takes longer than this on the event loop is begun anew in the thread."""

T = TypeVar("T")


class TakesLong(Exception):
    """A body takes longer to read than the event loop may be held up."""


class Reader:
    """Reads bodies, long ones in a thread."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(1)

    async def read(self, function: Callable[[float], T], size: int) -> T:
        """What a function makes of a body of so many bytes.

        Args:
            function: is told the `time.perf_counter` from which on it may raise
                `TakesLong`; what else it raises is the caller's.
            size: of the body.
        """
        if size <= READ_AT_ONCE:
            try:
                return function(time.perf_counter() + AT_ONCE_S)
            except TakesLong:
                pass
        # Half a second of work may be in a megabyte; deliveries must go on beside it.
        return await trio.to_thread.run_sync(function, math.inf, limiter=self._limiter)

"""Reading what a body holds without holding up everybody else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

READ_AT_ONCE = 32 * 1024
"""Bytes of a body that are read on the event loop; a longer one is read in a thread,
one at a time."""

T = TypeVar("T")


class Reader:
    """Reads bodies, long ones in a thread."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(1)

    async def read(self, function: Callable[[], T], size: int) -> T:
        """What a function makes of a body of so many bytes; it may raise."""
        if size <= READ_AT_ONCE:
            return function()
        # Half a second of work may be in a megabyte; deliveries must go on beside it.
        return await trio.to_thread.run_sync(function, limiter=self._limiter)

"""Shares room out among calls that need different amounts of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

import trio

from taskd.runtime.fair_lock import FairLock


class Limiter:
    """Lets in as many calls as fit, in the order of `FairLock`: a party's own as they came.

    Args:
        size: all the room there is. A call that needs more gets all of it.
    """

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._turns = FairLock()
        self._left = trio.Event()

    @asynccontextmanager
    async def taken(self, need: int, whose: Hashable = None) -> AsyncIterator[None]:
        """Wait for so much room, and hold it within the block."""
        need = min(need, self._size)
        async with self._turns.taken(whose, need):  # a call that fits overtakes none before it
            while self._free < need:
                self._left = trio.Event()
                await self._left.wait()
            self._free -= need
        try:
            yield
        finally:
            self._free += need
            self._left.set()

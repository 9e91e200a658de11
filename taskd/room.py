"""Room that is shared by those who need more of it or less."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Room:
    """Lets in as many as fit, strictly in the order in which they came.

    Args:
        size: all the room there is. Who needs more gets all of it.
    """

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._first = trio.Lock()
        self._left = trio.Event()

    @asynccontextmanager
    async def taken(self, need: int) -> AsyncIterator[None]:
        """Wait for so much room, and hold it within the block."""
        need = min(need, self._size)
        async with self._first:  # a small need that comes later does not overtake
            while self._free < need:
                self._left = trio.Event()
                await self._left.wait()
            self._free -= need
        try:
            yield
        finally:
            self._free += need
            self._left.set()

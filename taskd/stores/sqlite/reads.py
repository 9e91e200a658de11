"""Reads a SQLite store beside its writer.

There are a few read-only connections, each used by one thread at a time. Each statement of a
query sees the database at one moment.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TypeVar

import trio

from taskd.errors import StoreUnavailable
from taskd.stores.sqlite.guard import FileGuard

T = TypeVar("T")

_CONNECTIONS = 3
_CACHE_KIB = 4_096


class Readers:
    """The read connections.

    If a caller is cancelled, its query goes on to its end in the thread; its connection
    and its place in the limit stay taken until then.
    """

    def __init__(self, guard: FileGuard) -> None:
        self._guard = guard
        self._limiter = trio.CapacityLimiter(_CONNECTIONS)
        self._idle: list[sqlite3.Connection] = []
        self._closed = False

    async def run(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Run a query in a thread.

        Raises:
            StoreUnavailable: the database can't be read now, or is closed.
        """
        return await trio.to_thread.run_sync(
            self._run, query, limiter=self._limiter, abandon_on_cancel=True
        )

    async def aclose(self) -> None:
        """Wait for the queries under way, and close."""
        self._closed = True
        for borrower in range(_CONNECTIONS):
            # Once all places in the limit are taken, no query runs any more.
            await self._limiter.acquire_on_behalf_of((self, borrower))
        while self._idle:
            self._idle.pop().close()
        for borrower in range(_CONNECTIONS):
            self._limiter.release_on_behalf_of((self, borrower))

    def _run(self, query: Callable[[sqlite3.Connection], T]) -> T:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        connection: sqlite3.Connection | None = None
        try:
            connection = self._idle.pop() if self._idle else self._connect()
            result = query(connection)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, sqlite3.Error):
                raise self._guard.heed(error) from error
            raise
        self._idle.append(connection)
        return result

    def _connect(self) -> sqlite3.Connection:
        connection = self._guard.connect("ro")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        return connection

"""A bounded number of connections, made when needed and checked before reuse."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from taskd.errors import StoreRefused, StoreUnavailable
from taskd.stores.mysql.connection import IDLE_S, MySQLConnection
from taskd.stores.mysql.target import MySQLTarget

ACQUIRE_S = 10.0

_PING_AFTER_S = 3.0
_MAX_IDLE_S = IDLE_S / 2
"""Idle seconds after which a connection is replaced, well before the server ends it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolStatistics:
    """What a pool holds and has done."""

    in_use: int
    idle: int
    opened: int
    """Connections ever made."""
    discarded: int
    """Connections that broke, or were found broken."""


class Pool:
    """See the module.

    Args:
        target: where to.
        tls: see `MySQLConnection.open`.
        size: connections at most.
        autocommit: see `MySQLConnection.open`.
    """

    def __init__(
        self, target: MySQLTarget, tls: ssl.SSLContext | None, *, size: int, autocommit: bool
    ) -> None:
        self._target = target
        self._tls = tls
        self._autocommit = autocommit
        self._size = size
        self._places = trio.Semaphore(size, max_value=size)
        self._idle: list[tuple[MySQLConnection, float]] = []
        self._closed = False
        self._opened = self._discarded = 0

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[MySQLConnection]:
        """Lend a connection. Afterwards it is kept if it is in order and has no transaction
        open, and closed otherwise.

        Raises:
            StoreUnavailable: none is free within `ACQUIRE_S`, or none can be made.
        """
        await self._take_place()
        try:
            connection = await self._checked_out()
            try:
                yield connection
            finally:
                await self._put_back(connection)
        finally:
            self._places.release()

    async def forget_idle(self) -> None:
        """Close the idle connections: after one connection broke, they can't be trusted."""
        while self._idle:
            await self._discard(self._idle.pop()[0])

    async def aclose(self) -> None:
        """Close the idle connections now, and the lent ones as they come back."""
        self._closed = True
        while self._idle:
            await self._idle.pop()[0].aclose()

    def statistics(self) -> PoolStatistics:
        """Return what the pool holds and has done."""
        return PoolStatistics(
            in_use=self._size - self._places.value,
            idle=len(self._idle),
            opened=self._opened,
            discarded=self._discarded,
        )

    async def _take_place(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        try:
            with trio.fail_after(ACQUIRE_S):
                await self._places.acquire()
        except trio.TooSlowError as error:
            raise StoreUnavailable(
                f"the database can't be used now: none of {self._size} connections has become "
                f"free within {ACQUIRE_S:g} s"
            ) from error

    async def _checked_out(self) -> MySQLConnection:
        while self._idle:
            connection, used_at = self._idle.pop()
            idle_s = trio.current_time() - used_at
            if idle_s < _PING_AFTER_S:
                return connection
            if await self._answers(connection, idle_s):
                return connection
        if self._closed:
            raise StoreUnavailable("the store is closed")
        try:
            connection = await MySQLConnection.open(
                self._target, self._tls, autocommit=self._autocommit
            )
        except StoreRefused as error:
            # The server met all conditions when the store was opened, so it may do so again.
            raise StoreUnavailable(str(error)) from error
        self._opened += 1
        return connection

    async def _answers(self, connection: MySQLConnection, idle_s: float) -> bool:
        try:
            if idle_s < _MAX_IDLE_S:
                await connection.ping()
                return True
        except StoreUnavailable:
            pass  # it is replaced; if that fails too, its error tells why
        except BaseException:
            await self._discard(connection)
            raise
        await self._discard(connection)
        return False

    async def _put_back(self, connection: MySQLConnection) -> None:
        if not connection.usable or connection.in_transaction or self._closed:
            await self._discard(connection)
        else:
            self._idle.append((connection, trio.current_time()))

    async def _discard(self, connection: MySQLConnection) -> None:
        self._discarded += 1
        await connection.aclose()

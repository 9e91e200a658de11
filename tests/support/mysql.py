"""MySQL stores to test on."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from taskd.errors import StoreUnavailable
from taskd.stores.mysql.connection import MySQLConnection
from taskd.stores.mysql.schema import connected, migrate
from taskd.stores.mysql.store import MySQLStore
from taskd.stores.mysql.target import MySQLTarget, parse_mysql_url
from tests.support.proxy import Proxy
from tests.support.stores import DEADLINE_S


def run_bounded(main: Callable[[], Awaitable[None]]) -> None:
    """Run it under Trio, with a deadline."""

    async def bounded() -> None:
        with trio.fail_after(DEADLINE_S):
            await main()

    trio.run(bounded)


@asynccontextmanager
async def opened_at(target: MySQLTarget) -> AsyncIterator[MySQLStore]:
    """A store, its database brought to the newest schema; closed at the end."""
    await migrate(target)
    store = await MySQLStore.open(target)
    try:
        yield store
    finally:
        await store.aclose(within_s=5)


@asynccontextmanager
async def opened_mysql(url: str) -> AsyncIterator[MySQLStore]:
    """The same by its URL."""
    async with opened_at(parse_mysql_url(url)) as store:
        yield store


@asynccontextmanager
async def through(url: str, proxy: Proxy) -> AsyncIterator[MySQLStore]:
    """The same with a proxy on its way to the server."""
    async with opened_at(dataclasses.replace(parse_mysql_url(url), port=proxy.port)) as store:
        yield store


@asynccontextmanager
async def transaction(url: str) -> AsyncIterator[MySQLConnection]:
    """Somebody else's, on the same database; rolled back at the end."""
    async with connected(parse_mysql_url(url)) as connection:
        await connection.execute("START TRANSACTION")
        yield connection
        await connection.rollback()


async def locks_waited_for(connection: MySQLConnection) -> None:
    """Return once somebody waits for a lock of this server's."""
    waiting = "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
    while (await connection.execute(waiting)).rows == ((0,),):
        await trio.sleep(0.15)  # asked more often, the server repeats its answer


async def until_it_works(call: Callable[[], Awaitable[object]]) -> None:
    """Call it again and again until the store is available."""
    while True:
        try:
            await call()
        except StoreUnavailable:
            await trio.sleep(0.05)
        else:
            return

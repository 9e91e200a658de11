"""MySQL stores to test on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from taskd.stores.mysql import MySQLStore
from taskd.stores.mysql_schema import migrate
from taskd.stores.mysql_target import parse_mysql_url
from tests.support.stores import DEADLINE_S

MySQLCheck = Callable[[MySQLStore], Awaitable[None]]


@asynccontextmanager
async def opened_mysql(url: str) -> AsyncIterator[MySQLStore]:
    """A store on the database of this URL, brought to the newest schema; closed at
    the end."""
    target = parse_mysql_url(url)
    await migrate(target)
    store = await MySQLStore.open(target)
    try:
        yield store
    finally:
        await store.aclose()


def run_on_mysql(url: str, check: MySQLCheck) -> None:
    """Run a check on such a store, with a deadline."""

    async def main() -> None:
        with trio.fail_after(DEADLINE_S):
            async with opened_mysql(url) as store:
                await check(store)

    trio.run(main)

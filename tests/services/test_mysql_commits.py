"""A COMMIT that was not answered: what became of it is found out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from taskd.domain.model import TaskState
from taskd.errors import DuplicateTaskNo, LeaseLost, StoreUnavailable
from taskd.stores.mysql.connection import MySQLConnection
from taskd.stores.mysql.errors import ConnectionLost
from taskd.stores.mysql.schema import connected
from taskd.stores.mysql.target import parse_mysql_url
from tests.support.mysql import (
    locks_waited_for,
    opened_mysql,
    through,
)
from tests.support.proxy import Proxy
from tests.support.stores import (
    detail,
    lease_one,
    new_app,
    new_task,
    nonce,
    succeeded,
)
from tools.servers import Database

pytestmark = pytest.mark.deadline(240)


@pytest.fixture
def proxy(database_server: Database) -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", database_server.port)) as proxy:
        yield proxy


class Lost:
    """Loses a connection round its COMMIT: before the server has seen it, or after."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, committed: bool) -> None:
        self.times = 1
        self.count = 0
        commit = MySQLConnection.commit

        async def broken(connection: MySQLConnection) -> None:
            if self.times:
                self.times -= 1
                self.count += 1
                if committed:
                    await commit(connection)
                connection._usable = False
                raise ConnectionLost("the database can't be used now: the connection was lost")
            await commit(connection)

        monkeypatch.setattr(MySQLConnection, "commit", broken)


@pytest.mark.parametrize("committed", [True, False])
async def test_what_became_of_a_commit_that_was_not_answered_is_found_out(
    database_url: str, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    async with opened_mysql(database_url) as store:
        app = await store.create_app(new_app())
        lost = Lost(monkeypatch, committed=committed)
        # Carried out before: taken for that. Not carried out: carried out again.
        task_id = await store.create_task(new_task(app), nonce("n-1"))
        assert (await detail(store, app, task_id)).task_no == "order-1"
        lost.times = 1
        leased = await lease_one(store, task_id)
        assert leased.attempt == leased.lease.token == 1
        lost.times = 1
        assert await store.settle(succeeded(leased)) is TaskState.SUCCEEDED
        assert lost.count == 3
        found = await detail(store, app, task_id)
        assert len(found.attempts) == found.attempt == 1
        with pytest.raises(LeaseLost):
            await store.settle(succeeded(leased))
        with pytest.raises(DuplicateTaskNo):
            await store.create_task(new_task(app))
        repeats = [writer.repeats for writer in store.statistics().writers.values()]
        assert sum(repeats) == (0 if committed else 3)


async def _nothing() -> None:
    await trio.lowlevel.checkpoint()


async def test_a_commit_still_under_way_is_waited_for_before_its_end_is_judged(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is lost here, but the server has the COMMIT and is slow."""

    async with opened_mysql(database_url) as store:
        app = await store.create_app(new_app())
        commit = MySQLConnection.commit
        slow: list[MySQLConnection] = []

        async def lost(connection: MySQLConnection) -> None:
            if slow:
                await commit(connection)
                return
            slow.append(connection)
            monkeypatch.setattr(connection, "aclose", _nothing)
            connection._usable = False
            raise ConnectionLost("the connection was lost")

        monkeypatch.setattr(MySQLConnection, "commit", lost)
        results: list[int] = []

        async def create() -> None:
            results.append(await store.create_task(new_task(app)))

        async with (
            connected(parse_mysql_url(database_url)) as other,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(create)
            # It is looked for now, and waits for the lock of the row.
            await locks_waited_for(other)
            slow[0]._usable = True
            await commit(slow[0])
        assert len(results) == 1
        assert store.statistics().writers["submit"].repeats == 0
        assert (await detail(store, app, results[0])).task_no == "order-1"
        await trio.aclose_forcefully(slow[0]._stream)


async def test_if_it_can_not_be_found_out_the_caller_is_told_that_nobody_knows(
    database_url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskd.stores.mysql.writer.FIND_OUT_S", 0.5)

    async with through(database_url, proxy) as store:
        app = await store.create_app(new_app())
        commit = MySQLConnection.commit

        async def lost(connection: MySQLConnection) -> None:
            await commit(connection)
            proxy.cut()
            connection._usable = False
            raise ConnectionLost("the connection was lost")

        monkeypatch.setattr(MySQLConnection, "commit", lost)
        with pytest.raises(StoreUnavailable, match="whether that was made is not known"):
            await store.create_task(new_task(app))
        monkeypatch.setattr(MySQLConnection, "commit", commit)
        proxy.heal()
        with pytest.raises(DuplicateTaskNo):
            await store.create_task(new_task(app))

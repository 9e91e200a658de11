"""A MySQL store whose server restarts, kills, refuses or goes silent: a retry that is safe,
or a clear error, and never half of a change."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from taskd.domain.model import App, TaskState
from taskd.errors import StoreUnavailable
from taskd.stores.mysql.connection import MySQLConnection
from taskd.stores.mysql.schema import migrate
from taskd.stores.mysql.store import MySQLStore
from taskd.stores.mysql.target import MySQLTarget, parse_mysql_url
from tests.support.mysql import (
    opened_at,
    opened_mysql,
    through,
    until_it_works,
)
from tests.support.proxy import Proxy
from tests.support.stores import (
    T0,
    add,
    detail,
    lease_one,
    new_app,
    new_task,
    nonce,
    succeeded,
)
from tools.servers import Database

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.deadline(240),
]  # a MySQL on a busy machine takes its time


@pytest.fixture
def proxy(database_server: Database) -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", database_server.port)) as proxy:
        yield proxy


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_nothing_acknowledged_is_lost_when_the_server_goes_and_comes_back(
    private_database: Callable[..., Database], end: str
) -> None:
    server = private_database()

    async with opened_mysql(server.create_database()) as store:
        app = await store.create_app(new_app())
        acknowledged: dict[str, int] = {}
        refused: set[str] = set()
        unknown: set[str] = set()
        rounds_over = False

        async def create(caller: int) -> None:
            number = 0
            while not rounds_over:
                number += 1
                task_no = f"{caller}-{number}"
                try:
                    task_id = await store.create_task(new_task(app, task_no), nonce(task_no))
                except StoreUnavailable as error:
                    (unknown if "not known" in str(error) else refused).add(task_no)
                    await trio.sleep(0.25)
                else:
                    acknowledged[task_no] = task_id

        async with trio.open_nursery() as nursery:
            for caller in range(16):
                nursery.start_soon(create, caller)
            for _ in range(4):
                before = len(acknowledged)
                while len(acknowledged) < before + 100:
                    await trio.sleep(0.005)
                await trio.to_thread.run_sync(getattr(server, end))
                await trio.to_thread.run_sync(server.start)
            before = len(acknowledged)
            while len(acknowledged) < before + 100:
                await trio.sleep(0.005)
            rounds_over = True
        for task_no, task_id in acknowledged.items():
            found = await store.task_detail(app.id, task_no=task_no)
            assert found is not None
            assert found.id == task_id
        for task_no in refused:
            assert await store.task_detail(app.id, task_no=task_no) is None
            await store.use_nonce(nonce(task_no))
        assert refused or store.statistics().writers["submit"].repeats


async def test_an_idle_connection_that_was_killed_costs_no_error(
    database_server: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a look at it: the first statement finds it dead.
    monkeypatch.setattr("taskd.stores.mysql.pool._PING_AFTER_S", 60.0)

    async with opened_mysql(database_url) as store:
        app = await store.create_app(new_app())
        (task_id,) = await add(store, app, 1)
        await store.find_due(until=T0, limit_per_app=1)
        await store.probe()
        _kill_all(database_server, database_url)
        leased = await lease_one(store, task_id)
        assert (await detail(store, app, task_id)).state is TaskState.RUNNING
        assert await store.settle(succeeded(leased)) is TaskState.SUCCEEDED
        assert store.statistics().writers["lease"].failures == 0


def _kill_all(server: Database, url: str, *, only: str = "TRUE") -> int:
    database = url.rpartition("/")[2]
    found = server.execute(
        f"SELECT id FROM information_schema.processlist WHERE db = '{database}' AND {only}"
    )
    for (number,) in found:
        try:
            server.execute(f"KILL {number}")
        except AssertionError as error:
            if "Unknown thread id" not in str(error):  # it has ended by itself in between
                raise
    return len(found)


async def test_connections_killed_in_mid_statement_leave_all_or_nothing(
    database_server: Database, database_url: str
) -> None:
    async with opened_mysql(database_url) as store:
        app = await store.create_app(new_app())
        created: list[int] = []
        unknown = 0
        over = False

        async def work(caller: int) -> None:
            nonlocal unknown
            number = 0
            while not over:
                number += 1
                with_content = new_task(app, f"{caller}-{number}", content=b"x" * 5_000)
                try:
                    task_id = await store.create_task(with_content)
                    created.append(task_id)
                    leased = await lease_one(store, task_id)
                    assert leased.content == with_content.content
                    await store.settle(succeeded(leased))
                except StoreUnavailable as error:
                    unknown += "not known" in str(error)

        killed = 0
        async with trio.open_nursery() as nursery:
            for caller in range(8):
                nursery.start_soon(work, caller)
            while killed < 20:
                killed += await trio.to_thread.run_sync(
                    lambda: _kill_all(database_server, database_url, only="command = 'Query'")
                )
            over = True
        assert unknown == 0
        for task_id in created:
            found = await detail(store, app, task_id)
            assert (found.state is TaskState.SUCCEEDED) == (len(found.attempts) == 1)
        (orphans,) = database_server.execute(
            "SELECT COUNT(*) FROM contents LEFT JOIN tasks ON id = task_id WHERE id IS NULL",
            database=database_url.rpartition("/")[2],
        )
        assert orphans == ["0"]


async def test_a_server_that_became_read_only_is_unavailable_until_it_is_not(
    private_database: Callable[..., Database],
) -> None:
    server = private_database()

    url = server.create_database()
    password = _create_plain_user(server, url)
    target = dataclasses.replace(parse_mysql_url(url), user="app", password=password)
    async with opened_at(target) as store:
        app = await store.create_app(new_app())
        (task_id,) = await add(store, app, 1)
        server.execute("SET GLOBAL read_only = 1")
        for call in (
            lambda: store.create_task(new_task(app, "other")),
            lambda: lease_one(store, task_id),
            store.probe,
        ):
            with pytest.raises(StoreUnavailable, match="it is read-only"):
                await call()
        assert (await detail(store, app, task_id)).state is TaskState.SCHEDULED
        opened_before = store.statistics().write_pool.opened
        server.execute("SET GLOBAL read_only = 0")
        await store.create_task(new_task(app, "other"))
        # After a failover the name may lead elsewhere: a new connection asks it.
        assert store.statistics().write_pool.opened > opened_before


async def test_too_many_connections_are_unavailable_and_the_store_recovers(
    private_database: Callable[..., Database],
) -> None:
    server = private_database(options=["--max-connections=10"])

    url = server.create_database()
    password = _create_plain_user(server, url)
    target = dataclasses.replace(parse_mysql_url(url), user="app", password=password)
    await migrate(target)
    held: list[MySQLConnection] = []
    store = await MySQLStore.open(target)
    try:
        with pytest.raises(StoreUnavailable, match="it has too many connections"):
            await _hold(target, held)
        with pytest.raises(StoreUnavailable, match="it has too many connections"):
            await store.create_app(new_app())
        for connection in held:
            await connection.aclose()
        await until_it_works(lambda: store.create_app(new_app()))
    finally:
        await store.aclose()


def _create_plain_user(server: Database, url: str) -> str:
    """A user ``app`` with no right beyond its database; its password."""
    return server.create_user("app", on=f"`{url.rpartition('/')[2]}`.*")


async def _hold(target: MySQLTarget, held: list[MySQLConnection]) -> None:
    while True:
        held.append(await MySQLConnection.open(target, None, autocommit=True))


async def test_a_users_own_limit_of_connections_is_unavailable(
    private_database: Callable[..., Database],
) -> None:
    server = private_database()

    url = server.create_database()
    password = server.create_user("app")
    server.execute("ALTER USER app@'127.0.0.1' WITH MAX_USER_CONNECTIONS 1")
    target = dataclasses.replace(parse_mysql_url(url), user="app", password=password)
    connection = await MySQLConnection.open(target, None, autocommit=True)
    with pytest.raises(StoreUnavailable, match="max_user_connections"):
        await MySQLConnection.open(target, None, autocommit=True)
    await connection.aclose()


async def test_a_silent_server_ends_in_an_error_in_bounded_time(
    database_url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskd.stores.mysql.connection.CONNECT_S", 0.5)
    monkeypatch.setattr("taskd.stores.mysql.pool.ACQUIRE_S", 0.5)
    monkeypatch.setattr(
        "taskd.stores.mysql.connection.MySQLConnection.execute.__kwdefaults__", {"within_s": 0.5}
    )

    async with through(database_url, proxy) as store:
        app = await store.create_app(new_app())
        (task_id,) = await add(store, app, 1)
        proxy.freeze()
        for call in (
            lambda: store.create_task(new_task(app, "late"), nonce("late")),
            lambda: lease_one(store, task_id),
            lambda: store.find_due(until=T0, limit_per_app=1),
            store.time_ms,
            store.probe,
        ):
            with trio.fail_after(5), pytest.raises(StoreUnavailable, match="not answered"):
                await call()
        proxy.thaw()
        # What was on the way when it went silent has come to nothing.
        await until_it_works(store.probe)
        assert await store.task_detail(app.id, task_no="late") is None
        await store.create_task(new_task(app, "late"), nonce("late"))
        assert (await lease_one(store, task_id)).attempt == 1


async def test_callers_that_go_away_do_not_disturb_a_silent_server_or_each_other(
    database_url: str, proxy: Proxy
) -> None:
    async with through(database_url, proxy) as store:
        app = await store.create_app(new_app())
        proxy.freeze()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.create_task, new_task(app, "first"))
            await wait_all_tasks_blocked()
            for number in range(20):
                nursery.start_soon(store.create_task, new_task(app, f"order-{number}"))
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        proxy.thaw()
        await store.probe()
        # The first was on its way already; the others left before their batch.
        assert await store.task_detail(app.id, task_no="first") is not None
        for number in range(20):
            assert await store.task_detail(app.id, task_no=f"order-{number}") is None
        assert store.statistics().write_pool.discarded == 0


async def test_closing_a_store_whose_server_is_silent_does_not_wait_for_ever(
    database_url: str, proxy: Proxy
) -> None:
    target = dataclasses.replace(parse_mysql_url(database_url), port=proxy.port)
    await migrate(target)
    store = await MySQLStore.open(target)
    app = await store.create_app(new_app())
    proxy.freeze()
    errors: list[StoreUnavailable] = []

    async def create(number: int) -> None:
        try:
            await store.create_task(new_task(app, f"order-{number}"))
        except StoreUnavailable as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(create, number)
        await wait_all_tasks_blocked()
        with trio.fail_after(3):
            await store.aclose(within_s=0.3)
    assert len(errors) == 3
    assert all("whether this was written is not known" in str(each) for each in errors)


async def test_random_faults_leave_the_ledger_true(database_url: str, proxy: Proxy) -> None:
    """Connections cut again and again under load: every task is where its caller was
    told that it is."""

    async with through(database_url, proxy) as store:
        app = await store.create_app(new_app())
        settled: set[int] = set()
        created: set[int] = set()
        unknown = 0
        over = False

        async def work(caller: int, app: App) -> None:
            nonlocal unknown
            number = 0
            while not over:
                number += 1
                try:
                    task_id = await store.create_task(new_task(app, f"{caller}-{number}"))
                    created.add(task_id)
                    leased = await lease_one(store, task_id)
                    assert leased.lease.token == 1
                    await store.settle(succeeded(leased))
                    settled.add(task_id)
                except StoreUnavailable as error:
                    unknown += "not known" in str(error)
                    await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            for caller in range(12):
                nursery.start_soon(work, caller, app)
            for _ in range(25):
                reached = len(settled) + 3
                with trio.fail_after(10):
                    while len(settled) < reached:
                        await trio.sleep(0.005)
                await trio.sleep(random.uniform(0, 0.05))
                proxy.cut()
                proxy.heal()
            over = True
        assert len(settled) > 50
        assert unknown == 0
        for task_id in created:
            found = await detail(store, app, task_id)
            if task_id in settled:
                assert found.state is TaskState.SUCCEEDED
                assert len(found.attempts) == 1
            else:
                assert found.state in {TaskState.SCHEDULED, TaskState.RUNNING}

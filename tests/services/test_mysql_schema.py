"""What a MySQL store needs before it opens: a server, a database, a schema."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import trio

from taskd.domain.model import SuccessRule, TaskState
from taskd.errors import StoreRefused, StoreUnavailable
from taskd.stores.mysql.connection import MySQLConnection
from taskd.stores.mysql.schema import MIGRATIONS, Migrated, connected, migrate
from taskd.stores.mysql.store import MySQLStore
from taskd.stores.mysql.target import MySQLTarget, parse_mysql_url
from tests.support.mysql import opened_mysql
from tests.support.stores import T0, add, detail, new_app
from tools.servers import Database

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.deadline(240),
]  # a MySQL on a busy machine takes its time


async def test_migrating_an_empty_database_makes_it_ready_and_again_changes_nothing(
    database_url: str,
) -> None:
    target = parse_mysql_url(database_url)
    assert await migrate(target) == Migrated(before=0, now=len(MIGRATIONS))
    async with opened_mysql(database_url) as store:
        app = await store.create_app(new_app())
    assert await migrate(target) == Migrated(before=len(MIGRATIONS), now=len(MIGRATIONS))
    async with opened_mysql(database_url) as store:
        assert await store.app_by_key("key-1") == app


async def test_many_migrate_at_once_and_each_step_is_done_once(database_url: str) -> None:
    # Neither statement can be run twice, so a second node at the same step would fail.
    once = ("CREATE TABLE step (n INT) ENGINE=InnoDB", "ALTER TABLE step ADD COLUMN m INT")

    target = parse_mysql_url(database_url)
    done: list[Migrated] = []

    async def one() -> None:
        done.append(await migrate(target, (*MIGRATIONS, once)))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(one)
    assert sorted(each.before for each in done) == [0] + [len(MIGRATIONS) + 1] * 7


async def test_a_migration_that_was_cut_off_goes_on_where_it_was(database_url: str) -> None:
    statements = [statement for migration in MIGRATIONS for statement in migration]

    target = parse_mysql_url(database_url)
    for length in range(len(statements)):
        broken = (*statements[:length], "THIS IS NO STATEMENT")
        with pytest.raises(StoreUnavailable):
            await migrate(target, [broken])
        with pytest.raises(StoreRefused, match="run `taskd migrate`"):
            await MySQLStore.open(target)
    assert await migrate(target) == Migrated(before=0, now=len(MIGRATIONS))
    async with opened_mysql(database_url) as store:
        await store.probe()


async def test_a_migration_killed_after_its_first_table_goes_on(
    database_server: Database, database_url: str
) -> None:
    database = database_url.rpartition("/")[2]
    database_server.execute("CREATE TABLE meta (name VARCHAR(32), value TEXT)", database=database)

    assert (await migrate(parse_mysql_url(database_url))).before == 0


async def test_a_database_of_version_1_keeps_its_apps_and_tasks(
    database_server: Database, database_url: str
) -> None:
    target = parse_mysql_url(database_url)
    assert await migrate(target, MIGRATIONS[:1]) == Migrated(before=0, now=1)
    database_server.execute(
        "INSERT INTO apps VALUES (7, 'key-1', 'secret', 'n', 'http://h/', 5, 3, 'r', 1);"
        "INSERT INTO tasks (id, app_id, lane, moment, state, timeout_ms, runtime, created_at,"
        " task_no, name, content) VALUES (42, 7, 7, 1, 0, 1000, 1, 1, 'order-1', 'n', '1')",
        database=target.database,
    )
    # The second time as if the first had been cut off before its version was noted.
    for _ in range(2):
        assert await migrate(target) == Migrated(before=1, now=len(MIGRATIONS))
        async with opened_mysql(database_url) as store:
            app = await store.app_by_key("key-1")
            assert app is not None
            assert (app.id, app.link_url, app.success) == (7, "http://h/", SuccessRule.BODY)
            assert (await detail(store, app, 42)).state is TaskState.SCHEDULED
        database_server.execute(
            "UPDATE meta SET value = '1' WHERE name = 'schema'", database=target.database
        )


async def test_a_migration_keeps_what_is_there(database_url: str) -> None:
    more = ("CREATE TABLE IF NOT EXISTS more (n INT) ENGINE=InnoDB",)

    async with opened_mysql(database_url) as store:
        app = await store.create_app(new_app())
        (task_id,) = await add(store, app, 1)
        target = parse_mysql_url(database_url)
        now = len(MIGRATIONS)
        assert await migrate(target, (*MIGRATIONS, more)) == Migrated(now, now + 1)
        assert (await detail(store, app, task_id)).state is TaskState.SCHEDULED


@pytest.mark.parametrize(
    ("statements", "told"),
    [
        ("", r"no tables of taskd's yet: run `taskd migrate`"),
        ("UPDATE meta SET value = '0' WHERE name = 'schema'", r"run `taskd migrate`"),
        (
            "UPDATE meta SET value = '99' WHERE name = 'schema'",
            rf"of a newer taskd \(schema 99, this one knows {len(MIGRATIONS)}\): use that version",
        ),
        ("DELETE FROM meta", r"is not taskd's"),
        ("DROP TABLE meta", r"is not taskd's"),
        ("CREATE TABLE shop (n INT)", r"is not taskd's"),
    ],
    ids=["empty", "older", "newer", "unmarked", "markless", "another's"],
)
async def test_a_database_of_another_version_or_program_is_refused(
    database_server: Database, database_url: str, statements: str, told: str
) -> None:
    target = parse_mysql_url(database_url)
    if "meta" in statements:
        await migrate(target)
    if statements:
        database_server.execute(statements, database=target.database)
    with pytest.raises(StoreRefused, match=told) as caught:
        await MySQLStore.open(target)
    assert str(target) in str(caught.value)
    if "migrate" not in told:
        before = database_server.execute("SHOW TABLES", database=target.database)
        with pytest.raises(StoreRefused, match=told):
            await migrate(target)
        assert database_server.execute("SHOW TABLES", database=target.database) == before


async def test_an_older_schema_is_refused_by_a_newer_taskd(database_url: str) -> None:
    target = parse_mysql_url(database_url)
    await migrate(target)
    now = len(MIGRATIONS)
    told = rf"schema {now}, this one needs {now + 1}\): run `taskd migrate`"
    with pytest.raises(StoreRefused, match=told):
        await MySQLStore.open(target, migrations=(*MIGRATIONS, ()))


def _changed(target: MySQLTarget, **changes: object) -> MySQLTarget:
    return dataclasses.replace(target, **changes)  # type: ignore[arg-type] # by the tests below


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"password": "geheim"}, StoreRefused, "user or password is wrong"),
        ({"user": "nobody"}, StoreRefused, "user or password is wrong"),
        ({"database": "absent"}, StoreRefused, "no database absent: CREATE DATABASE it"),
        ({"port": 1}, StoreUnavailable, "can't be used now"),
        ({"host": "host.invalid"}, StoreUnavailable, "can't be used now"),
    ],
    ids=["password", "user", "database", "port", "host"],
)
async def test_what_is_wrong_with_the_url_is_told_in_one_sentence(
    database_url: str, changes: dict[str, object], error: type[Exception], told: str
) -> None:
    target = _changed(parse_mysql_url(database_url), **changes)
    for opening in (MySQLStore.open(target), migrate(target)):
        with pytest.raises(error, match=told) as caught:
            await opening
        assert "\n" not in str(caught.value)
        assert target.password not in str(caught.value)


async def test_a_user_without_rights_is_told_so(
    database_server: Database, database_url: str
) -> None:
    target = parse_mysql_url(database_url)
    password = database_server.create_user("reader", "SELECT", on=f"`{target.database}`.*")
    with pytest.raises(StoreRefused, match="lacks a right that taskd needs"):
        await migrate(_changed(target, user="reader", password=password))
    password = database_server.create_user("stranger", "SELECT", on="mysql.*")
    with pytest.raises(StoreRefused, match="no right to use the database"):
        await migrate(_changed(target, user="stranger", password=password))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--innodb-flush-log-at-trx-commit=2"], "innodb_flush_log_at_trx_commit is 2, not 1"),
        (["--innodb-flush-log-at-trx-commit=0"], "innodb_flush_log_at_trx_commit is 0, not 1"),
        (["--log-bin=binlog", "--sync-binlog=0"], "sync_binlog is 0, not 1"),
    ],
)
async def test_a_server_that_may_lose_a_commit_is_refused_unless_that_is_wished(
    private_database: Callable[..., Database], options: list[str], told: str
) -> None:
    server = private_database(options=options)

    target = parse_mysql_url(server.create_database())
    await migrate(target)
    with pytest.raises(StoreRefused, match=told):
        await MySQLStore.open(target)
    store = await MySQLStore.open(target, durability="relaxed")
    try:
        assert store.durability_note is not None
        assert told in store.durability_note
        await store.probe()
    finally:
        await store.aclose()


async def test_a_binary_log_that_is_synced_is_durable(
    private_database: Callable[..., Database],
) -> None:
    server = private_database(options=["--log-bin=binlog", "--sync-binlog=1"])

    async with opened_mysql(server.create_database()) as store:
        assert store.durability_note is None
        await store.probe()


async def test_a_server_that_is_made_less_durable_is_found_out_by_the_probe(
    private_database: Callable[..., Database],
) -> None:
    server = private_database()

    async with opened_mysql(server.create_database()) as store:
        await store.probe()
        server.execute("SET GLOBAL innodb_flush_log_at_trx_commit = 2")
        with pytest.raises(StoreUnavailable, match="innodb_flush_log_at_trx_commit is 2"):
            await store.probe()
        server.execute("SET GLOBAL innodb_flush_log_at_trx_commit = 1")
        await store.probe()


@pytest.mark.parametrize(
    ("version", "accepted"),
    [
        ("10.11.19-MariaDB-0+deb12u1", True),
        ("5.5.5-10.6.3-MariaDB-log", True),
        ("11.4.2-MariaDB", True),
        ("10.5.23-MariaDB", False),
        ("8.0.36", True),
        ("8.4.2-commercial", True),
        ("9.1.0", True),
        ("5.7.44-log", False),
        ("of clay", False),
    ],
)
async def test_a_server_that_lacks_what_is_needed_is_refused(
    database_url: str, monkeypatch: pytest.MonkeyPatch, version: str, accepted: bool
) -> None:
    monkeypatch.setattr("taskd.stores.mysql.schema._SERVER", f"SELECT '{version}'")

    target = parse_mysql_url(database_url)
    if accepted:
        async with connected(target) as connection:
            assert isinstance(connection, MySQLConnection)
        return
    with pytest.raises(StoreRefused, match=r"taskd needs (10\.6|8\.0) or newer"):
        await migrate(target)


async def test_ids_are_not_given_again_after_a_restart_of_the_server(
    private_database: Callable[..., Database],
) -> None:
    server = private_database()
    url = server.create_database()

    async with opened_mysql(url) as store:
        app = await store.create_app(new_app())
        *_, last = await add(store, app, 5)
        for task_id in range(1, last + 1):
            await store.request_cancel(app.id, task_id, now=T0)
        assert await store.purge(finished_before=T0 + 1, limit=100) == 5
    server.restart()
    async with opened_mysql(url) as store:
        (fresh,) = await add(store, app, 1)
        assert fresh > last

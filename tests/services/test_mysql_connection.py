"""Connections to MySQL: in order, or never used again."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
import trio

from taskd.errors import StoreUnavailable
from taskd.stores.mysql.connection import IDLE_S, LOCK_WAIT_S, MySQLConnection
from taskd.stores.mysql.errors import ConnectionLost, DuplicateKey, Refused
from taskd.stores.mysql.pool import Pool
from taskd.stores.mysql.rows import inserts, literal
from taskd.stores.mysql.target import parse_mysql_url
from tests.support.proxy import Proxy
from tools.servers import Database


@pytest.fixture
def proxy(database_server: Database) -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", database_server.port)) as proxy:
        yield proxy


@asynccontextmanager
async def opened(url: str, *, port: int | None = None) -> AsyncIterator[MySQLConnection]:
    target = parse_mysql_url(url)
    target = dataclasses.replace(target, port=port or target.port)
    with trio.fail_after(30):
        connection = await MySQLConnection.open(target, None, autocommit=True)
        try:
            yield connection
        finally:
            await connection.aclose()


@asynccontextmanager
async def pooled(url: str, *, size: int = 1, port: int | None = None) -> AsyncIterator[Pool]:
    target = parse_mysql_url(url)
    target = dataclasses.replace(target, port=port or target.port)
    pool = Pool(target, None, size=size, autocommit=False)
    with trio.fail_after(30):
        try:
            yield pool
        finally:
            await pool.aclose()


async def test_a_session_is_strict_in_utc_and_gives_up_locks_and_idle_nodes(
    database_url: str,
) -> None:
    async with opened(database_url) as connection:
        (row,) = (
            await connection.execute(
                "SELECT @@sql_mode, @@time_zone, @@character_set_client, "
                "@@character_set_results, @@collation_connection, "
                "@@innodb_lock_wait_timeout, @@lock_wait_timeout, @@wait_timeout"
            )
        ).rows
        # One server has the one name, one the other, some both.
        isolation = await connection.execute(
            "SHOW VARIABLES WHERE Variable_name IN ('tx_isolation', 'transaction_isolation')"
        )
        assert {value for _, value in isolation.rows} == {"READ-COMMITTED"}
        assert "STRICT_ALL_TABLES" in row[0]
        assert row[1:] == (
            "+00:00", "utf8mb4", "utf8mb4", "utf8mb4_bin",
            LOCK_WAIT_S, LOCK_WAIT_S, IDLE_S,
        )  # fmt: skip


@pytest.mark.parametrize("value", ["", "'", "\\", "\\'", "a\0b", "%s", "\x1a\n\r", "订单 😀", "ß"])
async def test_a_value_comes_back_as_it_was_written_into_a_statement(
    database_url: str, value: str
) -> None:
    async with opened(database_url) as connection:
        for each in (value, value.encode(), value.encode() + bytes(range(256))):
            statement = b"SELECT " + literal(each)
            assert (await connection.execute(statement)).rows == ((each,),)


async def test_a_statement_that_is_refused_leaves_the_connection_in_order(
    database_url: str,
) -> None:
    async with opened(database_url) as connection:
        await connection.execute("CREATE TABLE t (n INT PRIMARY KEY, s VARCHAR(3)) ENGINE=InnoDB")
        await connection.execute("INSERT INTO t VALUES (1, 'a')")
        with pytest.raises(DuplicateKey):
            await connection.execute("INSERT INTO t VALUES (1, 'a')")
        with pytest.raises(Refused, match="Data too long"):
            await connection.execute("INSERT INTO t VALUES (2, 'long')")
        assert connection.usable
        assert (await connection.execute("SELECT n FROM t")).rows == ((1,),)


async def test_a_statement_over_the_servers_limit_is_refused_before_it_is_sent(
    private_database: Callable[..., Database],
) -> None:
    server = private_database(options=["--max-allowed-packet=1M"])

    async with opened(server.create_database()) as connection:
        assert connection.max_packet == 1_048_576
        with pytest.raises(Refused, match="raise its max_allowed_packet"):
            await connection.execute(b"SELECT '" + b"x" * 1_100_000 + b"'")
        assert (await connection.execute("SELECT 1")).rows == ((1,),)


async def test_answers_of_many_mebibytes_come_back_whole(database_url: str) -> None:
    # More than a packet of the protocol can hold, so it comes in several.

    async with opened(database_url) as connection:
        await connection.execute("CREATE TABLE t (b LONGBLOB) ENGINE=InnoDB")
        for length in (1, 0xFFFFFF // 2, 15_000_000):
            part = random.randbytes(1000) * (length // 1000 + 1)
            ((statement, _),) = inserts("INSERT INTO t VALUES", [(part[:length],)])
            try:
                await connection.execute(statement)
            except Refused:
                assert len(statement) >= connection.max_packet
                continue
            ((told,),) = (await connection.execute("SELECT b FROM t")).rows
            assert told == part[:length]
            await connection.execute("DELETE FROM t")


def test_rows_are_split_into_statements_of_bounded_size() -> None:
    rows = [(n, b"x" * 300_000) for n in range(10)]
    parts = list(inserts("INSERT INTO t VALUES", rows))
    assert sum(count for _, count in parts) == 10
    assert all(len(statement) < 1_400_000 for statement, _ in parts)
    assert list(inserts("INSERT INTO t VALUES", [])) == []


async def test_a_connection_is_not_used_again_after_a_cancel_in_mid_statement(
    database_url: str,
) -> None:
    async with pooled(database_url) as pool:
        seen = set()
        for turn in range(60):
            value = None
            with trio.move_on_after(random.choice([0.0005, 0.001, 0.003])):
                async with pool.connection() as connection:
                    await connection.execute("DO SLEEP(0.0005)")
                    ((value,),) = (await connection.execute(f"SELECT {turn}")).rows
            # An answer that was left on the wire would be taken for this one's.
            async with pool.connection() as connection:
                assert (await connection.execute("SELECT 'own'")).rows == (("own",),)
            assert value in {None, turn}
            seen.add(value is None)
        assert seen == {True, False}
        assert pool.statistics().discarded > 0


async def test_a_statement_cancelled_while_it_is_sent_leaves_no_half_of_it(
    database_url: str, proxy: Proxy
) -> None:
    async with pooled(database_url, port=proxy.port) as pool:
        async with pool.connection() as connection:
            await connection.execute("DO 0")
            proxy.freeze()
            with trio.move_on_after(0.2) as scope:
                # More than the buffers on the way hold.
                await connection.execute(b"SELECT '" + b"x" * 12_000_000 + b"'")
            assert scope.cancelled_caught
            assert not connection.usable
            with pytest.raises(ConnectionLost):
                await connection.execute("SELECT 1")
        proxy.thaw()
        async with pool.connection() as connection:
            assert (await connection.execute("SELECT 1")).rows == ((1,),)
        assert pool.statistics().opened == 2


async def test_a_transaction_that_was_cancelled_is_not_committed_by_the_next(
    database_url: str,
) -> None:
    async with pooled(database_url) as pool:
        async with pool.connection() as connection:
            await connection.execute("CREATE TABLE t (n INT) ENGINE=InnoDB")
        with trio.move_on_after(0.3):
            async with pool.connection() as connection:
                await connection.execute("INSERT INTO t VALUES (1)")
                await trio.sleep_forever()
        async with pool.connection() as connection:
            await connection.execute("INSERT INTO t VALUES (2)")
            await connection.commit()
            assert (await connection.execute("SELECT n FROM t")).rows == ((2,),)
            await connection.rollback()


async def test_a_rollback_is_carried_out_although_its_task_is_cancelled(database_url: str) -> None:
    async with pooled(database_url) as pool:
        with trio.CancelScope() as scope:
            async with pool.connection() as connection:
                await connection.execute("CREATE TABLE t (n INT) ENGINE=InnoDB")
                await connection.execute("INSERT INTO t VALUES (1)")
                assert connection.in_transaction
                scope.cancel()
                await connection.rollback()
                assert not connection.in_transaction
        async with pool.connection() as connection:
            assert (await connection.execute("SELECT n FROM t")).rows == ()
            await connection.rollback()
        assert pool.statistics().opened == 1


async def test_a_rollback_does_not_wait_for_ever(
    database_url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskd.stores.mysql.connection.ROLLBACK_S", 0.2)

    async with opened(database_url, port=proxy.port) as connection:
        proxy.freeze()
        with pytest.raises(StoreUnavailable, match=r"within 0\.2 s"):
            await connection.rollback()
        assert not connection.usable


async def test_a_statement_is_given_up_at_its_deadline(database_url: str) -> None:
    async with opened(database_url) as connection:
        with pytest.raises(StoreUnavailable, match=r"has not answered within 0\.1 s"):
            await connection.execute("DO SLEEP(5)", within_s=0.1)
        assert not connection.usable


async def test_closing_closes_the_socket_and_tells_the_server(
    private_database: Callable[..., Database],
) -> None:
    server = private_database()
    count = "SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'app'"

    with trio.fail_after(30):
        password = server.create_user("app")
        target = parse_mysql_url(server.create_database())
        target = dataclasses.replace(target, user="app", password=password)
        for broken in (False, True):
            connection = await MySQLConnection.open(target, None, autocommit=True)
            assert server.execute(count) == [["1"]]
            if broken:
                with trio.move_on_after(0.01):
                    await connection.execute("DO SLEEP(0.1)")
            await connection.aclose()
            assert connection._stream.socket.fileno() == -1
            while server.execute(count) != [["0"]]:
                await trio.sleep(0.01)
            (aborted,) = server.execute("SHOW GLOBAL STATUS LIKE 'Aborted_clients'")
            assert aborted[1] == str(int(broken))


async def test_a_connection_that_lay_idle_is_looked_at_before_it_is_used(
    database_server: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskd.stores.mysql.pool._PING_AFTER_S", 0.0)

    async with pooled(database_url) as pool:
        async with pool.connection() as connection:
            ((number,),) = (await connection.execute("SELECT CONNECTION_ID()")).rows
        database_server.execute(f"KILL {number}")
        async with pool.connection() as connection:
            ((other,),) = (await connection.execute("SELECT CONNECTION_ID()")).rows
            await connection.rollback()
        assert other != number
        async with pool.connection() as connection:
            assert (await connection.execute("SELECT CONNECTION_ID()")).rows == ((other,),)
            await connection.rollback()
        monkeypatch.setattr("taskd.stores.mysql.pool._MAX_IDLE_S", 0.0)
        async with pool.connection() as connection:
            assert (await connection.execute("SELECT CONNECTION_ID()")).rows != ((other,),)


async def test_a_pool_has_no_more_connections_than_it_may(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskd.stores.mysql.pool.ACQUIRE_S", 0.1)

    async with pooled(database_url, size=2) as pool:
        async with pool.connection(), pool.connection():
            assert pool.statistics().in_use == 2
            with pytest.raises(StoreUnavailable, match="none of 2 connections"):
                async with pool.connection():
                    pass
        async with pool.connection(), pool.connection():
            assert pool.statistics().opened == 2
        await pool.aclose()
        with pytest.raises(StoreUnavailable, match="closed"):
            async with pool.connection():
                pass


async def test_a_caller_that_goes_away_while_it_waits_for_a_place_leaves_it_free(
    database_url: str,
) -> None:
    async with pooled(database_url) as pool:
        for _ in range(30):
            async with trio.open_nursery() as nursery:
                for seconds in (0.0, 0.0002, 0.001, 0.002):
                    nursery.start_soon(_glance, pool, seconds)
        assert pool.statistics().in_use == 0
        async with pool.connection() as connection:
            await connection.ping()


async def _glance(pool: Pool, seconds: float) -> None:
    with trio.move_on_after(seconds):
        async with pool.connection() as connection:
            await connection.execute("DO SLEEP(0.001)")

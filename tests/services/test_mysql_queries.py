"""What the MySQL store's statements cost on a large table, and that MySQL has all of what
they use."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import pytest
import trio

from taskd.model import DeliveryWord, NewTask, TaskState
from taskd.stores.mysql import MySQLStore
from taskd.stores.mysql_connection import Answer, MySQLConnection
from taskd.stores.mysql_schema import MIGRATIONS, connected, migrate
from taskd.stores.mysql_target import parse_mysql_url
from tests.support.mysql import opened_mysql, run_bounded
from tests.support.servers import Database
from tests.support.stores import (
    T0,
    cancelled,
    lease_one,
    new_app,
    new_task,
    nonce,
    retrying,
    succeeded,
)

ROWS = 1_000_000
APPS = 50
RUNNING = 2_000
_TABLES = ("tasks", "attempts", "contents", "nonces", "apps", "batches")
_HEAVY_APP = APPS
"""Half of what waits is this one's."""

# A third waits, some run, the rest is over; moments are spread over eleven days.
_FILL = f"""
INSERT INTO apps (app_key, secret_key, name, link_url, step, retry_total, remark, created_at)
SELECT CONCAT('key-', seq), 's', 'n', 'http://127.0.0.1:9/', 5, 3, '', {T0}
FROM seq_1_to_{APPS};
INSERT INTO tasks (app_id, lane, moment, state, attempt, token, node, leased_at, timeout_ms,
    runtime, created_at, task_no, name, content)
SELECT app_id, IF(seq % 3 = 0, app_id, IF(seq <= {RUNNING}, -1, -2)),
    {T0 - 500_000_000} + seq * 1000, IF(seq % 3 = 0, 0, IF(seq <= {RUNNING}, 1, 3)), 1, 1,
    IF(seq % 3 <> 0 AND seq <= {RUNNING}, 'node-x', NULL), {T0}, 5000, {T0}, {T0},
    CONCAT('no-', seq), 'name', '{{"order":1001}}'
FROM (SELECT seq, IF(seq % 2 = 0, {_HEAVY_APP}, (seq DIV 2) % {APPS} + 1) AS app_id
      FROM seq_1_to_{ROWS}) AS numbers;
INSERT INTO attempts (task_id, attempt, started_at, ended_at, outcome)
SELECT id, 1, {T0}, {T0}, 'succeeded' FROM tasks WHERE lane = -2;
INSERT INTO contents SELECT id, content FROM tasks WHERE id <= 20000;
INSERT INTO nonces SELECT UNHEX(MD5(seq)), {T0} + seq FROM seq_1_to_100000;
"""


@pytest.fixture(scope="module", params=["known", "unknown"])
def large_url(request: pytest.FixtureRequest, database_server: Database) -> Iterator[str]:
    """A database with a million tasks, of which the server has statistics or has not."""
    url = database_server.create_database()
    database = url.rpartition("/")[2]

    async def fill() -> None:
        await migrate(parse_mysql_url(url))

    trio.run(fill)
    if request.param == "unknown":
        for table in _TABLES:
            database_server.execute(
                f"ALTER TABLE {table} STATS_AUTO_RECALC=0; ANALYZE TABLE {table}",
                database=database,
            )
    database_server.execute(_FILL, database=database)
    if request.param == "known":
        database_server.execute(f"ANALYZE TABLE {','.join(_TABLES)}", database=database)
    yield url
    database_server.drop_database(url)


class Watched:
    """Notes every statement of a store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.statements: list[str] = []
        execute = MySQLConnection.execute

        async def noted(
            connection: MySQLConnection, statement: str | bytes, *, within_s: float = 10.0
        ) -> Answer:
            text = statement if isinstance(statement, str) else statement.decode(errors="replace")
            self.statements.append(text)
            return await execute(connection, statement, within_s=within_s)

        monkeypatch.setattr(MySQLConnection, "execute", noted)

    def taken(self) -> list[str]:
        """Those since it was last asked, but for the ones that concern no table."""
        taken, self.statements = self.statements, []
        return [each for each in taken if re.match(r"\(?(SELECT|INSERT|UPDATE|DELETE)\b", each)]


async def use_everything(store: MySQLStore) -> None:
    """Call every method so that each of its statements is needed."""
    app = await store.create_app(new_app("fresh"), nonce("n-0", expires_at=1))
    assert await store.app_by_key("key-7") is not None
    assert await store.app_by_id(8) is not None
    ids = []

    async def create(task: NewTask, name: str) -> None:
        ids.append(await store.create_task(task, nonce(name, expires_at=1)))

    async with trio.open_nursery() as nursery:
        for number in range(40):
            content = b"x" * (3_000 if number % 2 else 30)
            task = new_task(app, f"fresh-{number}", content=content)
            nursery.start_soon(create, task, f"n-fresh-{number}")
    for again in ("fresh-0", "fresh-1"):
        with pytest.raises(Exception, match="taskNo already"):
            await store.create_task(new_task(app, again))
        with pytest.raises(Exception, match="used before"):
            await store.use_nonce(nonce("n-fresh-1"))
    due = await store.find_due(until=T0, limit_per_app=10)
    assert len(due) == 10 * (APPS + 1)
    await store.find_due(until=T0, after=T0 - 5_000_000, limit_per_app=10)
    leased = await store.lease(ids[:20], node="n", now=T0, expires_at=T0 + 30_000)
    assert len(leased) == 20
    await store.extend([each.lease for each in leased], expires_at=T0 + 60_000)
    await store.settle(succeeded(leased[0]))
    await store.settle(retrying(leased[1], due_at=T0 + 5))
    await store.settle(cancelled(leased[2], DeliveryWord.UNKNOWN))
    await store.request_cancel(app.id, leased[3].lease.task_id, now=T0)
    await store.request_cancel(app.id, ids[30], now=T0)
    assert (await store.request_cancel(app.id, task_no="fresh-31", now=T0)).task_id == ids[31]
    assert await store.task_detail(app.id, task_id=ids[0]) is not None
    assert await store.task_detail(app.id, task_no="fresh-1") is not None
    old = T0 - 499_000_000
    assert len(await store.reap(now=T0, expired_at=old, exclude=range(1, 300), limit=50)) == 50
    assert await store.purge(finished_before=T0, limit=50) == 50
    assert await store.purge_nonces(now=T0, limit=10) == 10
    await store.time_ms()
    await store.probe()
    assert (await lease_one(store, ids[35])).attempt == 1


def test_every_statement_uses_an_index_and_reads_few_rows_of_a_million(
    large_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        watched = Watched(monkeypatch)
        async with opened_mysql(large_url) as store:
            watched.taken()
            await use_everything(store)
            statements = watched.taken()
        explained = 0
        async with connected(parse_mysql_url(large_url)) as connection:
            for statement in statements:
                if re.search(r"\b(FROM|UPDATE|INTO|JOIN)\b", statement) is None:
                    continue
                rows = (await connection.execute(f"EXPLAIN {statement}")).rows
                explained += 1
                for row in rows:
                    _check_plan(row, statement)
        assert explained > 60

    run_bounded(main)


def _check_plan(row: Sequence[object], statement: str) -> None:
    _, select_type, table, access, _, key, _, _, rows, extra = row
    if table not in _TABLES or select_type == "INSERT":
        return
    if table == "apps" and access == "index":
        return  # what is due is looked for in each of them
    assert access in {"const", "eq_ref", "ref", "range"}, (access, statement)
    assert key is not None, statement
    assert "filesort" not in str(extra), (extra, statement)
    assert "temporary" not in str(extra), (extra, statement)
    # A range that is read in order up to a LIMIT is stopped there.
    if " LIMIT " not in statement:
        assert int(str(rows)) <= 500, (rows, statement)


def test_the_statements_read_no_more_rows_than_they_need(
    large_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the server counts them, statement by statement."""

    async def main() -> None:
        counts: list[tuple[int, str]] = []
        execute = MySQLConnection.execute

        async def counted(
            connection: MySQLConnection, statement: str | bytes, *, within_s: float = 10.0
        ) -> Answer:
            before = await _rows_read(connection, execute)
            answer = await execute(connection, statement, within_s=within_s)
            read = await _rows_read(connection, execute) - before
            text = statement if isinstance(statement, str) else statement.decode(errors="replace")
            counts.append((read, text[:300]))
            return answer

        async with opened_mysql(large_url) as store:
            app = await store.app_by_key("key-3")
            assert app is not None
            monkeypatch.setattr(MySQLConnection, "execute", counted)
            # Each app's first, whatever else waits in it.
            due = await store.find_due(until=T0, limit_per_app=5)
            assert 5 * APPS <= len(due) <= 5 * (APPS + 1)
            assert len(await store.find_due(until=T0, after=T0 - 10**7, limit_per_app=5)) >= 250
            leased = await store.lease(
                [each.task_id for each in due], node="n", now=T0, expires_at=T0 + 1
            )
            assert len(leased) == len(due)
            for each in leased[:5]:
                assert await store.settle(succeeded(each)) is TaskState.SUCCEEDED
            await store.reap(now=T0, expired_at=T0 - 499_000_000, exclude=(), limit=20)
            await store.purge(finished_before=T0, limit=20)
            await store.purge_nonces(now=T0 + 50, limit=20)
            await store.task_detail(app.id, task_no="no-2")
        assert len(counts) > 30
        worst, statement = max(counts)
        # Two per id, one for the lock and one for the change, and little besides.
        assert worst <= 2 * len(due) + 50, statement

    run_bounded(main)


async def _rows_read(connection: MySQLConnection, execute: object) -> int:
    assert callable(execute)
    answer = await execute(
        connection,
        "SELECT SUM(variable_value) FROM information_schema.session_status "
        "WHERE variable_name IN ('ROWS_READ')",
    )
    return int(answer.rows[0][0])


_NOT_IN_MYSQL = {
    "RETURNING": r"\bRETURNING\b",
    "sequences": r"\bNEXTVAL\b|\bNEXT VALUE\b|\bseq_\d",
    "CREATE OR REPLACE TABLE": r"\bCREATE OR REPLACE\b",
    "IF EXISTS in ALTER": r"\bALTER TABLE\b.*\bIF (NOT )?EXISTS\b",
    "VALUES as a table": r"(FROM|JOIN|\()\s*\(?\s*VALUES\b",
    "aliases of inserted rows (not in MariaDB)": r"\bAS \w+ ON DUPLICATE\b",
    "JSON operators (not in MariaDB)": r"->>?",
    "LATERAL (not in MariaDB)": r"\bLATERAL\b",
    "SET STATEMENT": r"\bSET STATEMENT\b",
    "max_statement_time": r"max_statement_time",
    "max_execution_time (not in MariaDB)": r"max_execution_time",
    "tx_isolation, transaction_isolation": r"\b(tx|transaction)_isolation\b",
    "OFFSET … FETCH": r"\bFETCH (FIRST|NEXT)\b",
    "system versioning": r"\bSYSTEM VERSIONING\b",
    "PERSISTENT columns": r"\bPERSISTENT\b",
    "NOWAIT and WAIT n": r"\b(NO)?WAIT\b\s*\d*",
    "LIMIT ROWS EXAMINED": r"\bROWS EXAMINED\b",
    "MariaDB's comments": r"/\*M?!",
    "words that MySQL has reserved since 8.0": r"\b(CUBE|CUME_DIST|DENSE_RANK|EMPTY|EXCEPT|"
    r"FIRST_VALUE|FUNCTION|GROUPING|GROUPS|INTERSECT|LAG|LAST_VALUE|LEAD|MANUAL|NTH_VALUE|NTILE|"
    r"OF|OVER|PARALLEL|PERCENT_RANK|QUALIFY|RANK|RECURSIVE|ROW_NUMBER|SYSTEM|TABLESAMPLE|WINDOW)\b",
}


@pytest.mark.parametrize("feature", _NOT_IN_MYSQL)
def test_no_statement_uses_what_one_of_the_two_servers_lacks(
    statements_of_a_store: list[str], feature: str
) -> None:
    for statement in statements_of_a_store:
        assert not re.search(_NOT_IN_MYSQL[feature], statement, re.IGNORECASE | re.DOTALL), (
            statement[:500]
        )


@pytest.fixture(scope="module")
def statements_of_a_store(large_url: str) -> list[str]:
    """All that a store says: schema, session, and each method's."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        watched = Watched(monkeypatch)

        async def main() -> None:
            async with opened_mysql(large_url) as store:
                app = await store.create_app(new_app("scanned"))
                task_id = await store.create_task(new_task(app), nonce("n-scanned"))
                leased = await lease_one(store, task_id)
                await store.extend([leased.lease], expires_at=T0 + 1)
                await store.request_cancel(app.id, task_id, now=T0)
                await store.settle(succeeded(leased))
                other = await store.create_task(new_task(app, "other", content=b"x" * 3_000))
                await store.request_cancel(app.id, other, now=T0)
                await store.find_due(until=T0, after=1, limit_per_app=1)
                await store.task_detail(app.id, task_no="other")
                await store.reap(now=T0, expired_at=None, exclude=(), limit=1)
                await store.purge(finished_before=T0 + 1, limit=1)
                await store.purge_nonces(now=T0, limit=1)
                await store.time_ms()
                await store.probe()

        run_bounded(main)
        statements = [*watched.statements, *(each for m in MIGRATIONS for each in m)]
    assert len(statements) > 60
    return statements

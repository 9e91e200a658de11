"""How the MySQL store's statements are planned on a large table, and that MySQL and MariaDB
have all of what they use. What they cost is in `test_mysql_rows`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import pytest

from taskd.stores.mysql.connection import Answer, MySQLConnection
from taskd.stores.mysql.schema import MIGRATIONS, connected
from taskd.stores.mysql.target import parse_mysql_url
from tests.support.mysql import opened_mysql, run_bounded
from tests.support.mysql_filled import TABLES, filled, use_everything
from tests.support.stores import T0, lease_one, new_app, new_task, nonce, succeeded
from tools.servers import Database

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.deadline(240),
]  # a MySQL on a busy machine takes its time

ROWS = 100_000


@pytest.fixture(scope="module", params=["known", "unknown"])
def large_url(request: pytest.FixtureRequest, database_server: Database) -> Iterator[str]:
    """A database with many tasks, of which the server has statistics or has not."""
    url = filled(database_server, ROWS, known=request.param == "known")
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


async def test_every_statement_uses_an_index_and_sorts_nothing(
    database_server: Database, large_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch)
    async with opened_mysql(large_url) as store:
        watched.taken()
        await use_everything(store)
        statements = watched.taken()
    explained = 0
    async with connected(parse_mysql_url(large_url)) as connection:
        if database_server.name == "MySQL":
            await connection.execute("SET SESSION explain_format = 'TRADITIONAL'")
        for statement in statements:
            if re.search(r"\b(FROM|UPDATE|INTO|JOIN)\b", statement) is None:
                continue
            rows = (await connection.execute(f"EXPLAIN {statement}")).rows
            explained += 1
            for row in rows:
                _check_plan(row, statement)
    assert explained > 60


_BY_INDEX = {"const", "eq_ref", "ref", "range", "unique_subquery"}
_COLUMNS_OF_MYSQL = 12
_MYSQL_ONLY = (3, 10)
"""The places of ``partitions`` and ``filtered`` in a plan."""


def _check_plan(row: Sequence[object], statement: str) -> None:
    if len(row) == _COLUMNS_OF_MYSQL:
        row = [value for column, value in enumerate(row) if column not in _MYSQL_ONLY]
    _, select_type, table, access, _, key, _, _, rows, extra = row
    if table not in TABLES or select_type == "INSERT":
        return
    if table == "apps" and access in {"index", "ALL"} and "earliest" in statement:
        return  # what is due is looked for in each of them
    if not re.search(r"ORDER BY id DESC LIMIT 1\b", statement):
        assert access in _BY_INDEX, (access, statement)
    assert key is not None, statement
    assert "filesort" not in str(extra), (extra, statement)
    # What moves in the index that it was found in has to be put aside first.
    if not statement.startswith("UPDATE"):
        assert "temporary" not in str(extra), (extra, statement)
    # A range that is read in order up to a LIMIT is stopped there.
    if " LIMIT " not in statement:
        assert int(str(rows)) <= 500, (rows, statement)


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

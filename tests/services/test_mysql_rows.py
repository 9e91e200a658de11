"""How many rows each of the MySQL store's statements touches, as the server counts them.

Every statement has a bound, by what it is asked for: its LIMITs, its ids, its rows. A
table twice as large raises it by nothing. It is the server's own count of what it read
and wrote that is held against the bound, and not its plan.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import pytest

import taskd.stores.mysql
from taskd.stores.mysql import (
    schema,
    statements,
    writer,
)
from taskd.stores.mysql import store as mysql
from taskd.stores.mysql.connection import Answer, MySQLConnection
from taskd.stores.mysql.schema import connected
from taskd.stores.mysql.statements import STRIDE, MySQLStatements
from taskd.stores.mysql.target import parse_mysql_url
from tests.support.mysql import opened_mysql, run_bounded
from tests.support.mysql_filled import APPS, RUNNING, filled, move_some, use_everything
from tools.servers import Database

pytestmark = pytest.mark.timeout(300)  # a MySQL on a busy machine takes its time

ROWS = 40_000

Bound = Callable[[str], int]
"""How many rows a statement may touch, by its text."""


def listed(statement: str) -> int:
    """Elements of its lists after IN."""
    lists = re.findall(r"\bIN \((.*?)\)(?= |$|\n)", statement, re.DOTALL)
    return sum(each.count(",") + 1 for each in lists)


def limits(statement: str) -> int:
    """The sum of its LIMITs."""
    return sum(map(int, re.findall(r"\bLIMIT (\d+)", statement)))


def rows(statement: str) -> int:
    """Rows that it inserts, or that its JSON_TABLE has."""
    return statement.count("),(") + statement.count("],[") + 1


def once(_: str) -> int:
    return 1


def listed_or_limit(statement: str) -> int:
    return listed(statement) + limits(statement)


def times(factor: int, size: Bound, more: int = 3) -> Bound:
    return lambda statement: factor * size(statement) + more


# Per row: to find it, to read it, and to change it; where the server has to put rows
# aside to go on with them, to write and read them once more. An index is entered once
# more than it has ranges.
BOUNDS: dict[tuple[ModuleType, str], Bound] = {
    (mysql, "_OLD_BATCHES"): lambda _: 100,  # all of nodes of a week
    (mysql, "_FORGET_BATCHES"): times(4, listed),
    (writer, "_NUMBER"): times(3, once),
    (writer, "_WHICH_NUMBER"): times(2, once),
    (statements, "APPS_BY_ID"): times(2, listed),
    (statements, "APP_BY_KEY"): times(2, once),
    (statements, "APP_IDS"): times(2, listed),
    (statements, "ADD_NONCES"): times(2, rows),
    (statements, "FIND_NONCES"): times(2, listed),
    (statements, "FIND_EXPIRED_NONCES"): times(2, limits),
    (statements, "FORGET_NONCES"): times(3, listed),
    (statements, "ADD_APP"): times(2, once),
    (statements, "ADD_TASKS"): times(2, rows),
    (statements, "TAKE_BACK"): times(3, listed),
    (statements, "ADD_CONTENTS"): times(1, rows),
    (statements, "FIND_TASK_NOS"): times(2, listed),
    (statements, "DETAIL_BY_ID"): times(3, once, more=5),  # and its attempts
    (statements, "DETAIL_BY_NO"): times(3, once, more=5),
    (statements, "COUNT_WAITING"): times(4, limits),
    (statements, "CONTENT"): times(2, once),
    # Twice an application's first: to choose it, and to tell it.
    (statements, "FIND_APPS"): lambda _: 6 * (APPS + 1) + 5,
    (statements, "FIND_FIRST"): lambda s: 4 * limits(s) + 3 * (s.count("UNION") + 1),
    (statements, "FIND_WAITING"): times(3, listed),
    (statements, "FIND_UNSUSPECTED"): times(3, listed),  # and whether it is suspected
    (statements, "LEASE"): times(4, listed),
    (statements, "FIND_LENGTHS"): times(2, listed),
    (statements, "FIND_CONTENTS"): times(2, listed),
    (statements, "FIND_RUNNING"): times(2, listed),
    (statements, "EXTEND"): times(4, listed),
    (statements, "END"): times(8, rows),
    (statements, "ADD_ATTEMPTS"): times(1, rows),
    # It passes over those that it is told of.
    (statements, "FIND_EXPIRED"): times(2, listed_or_limit),
    (statements, "FIND_TASKS"): times(2, listed),
    (statements, "CANCEL"): times(8, rows),
    (statements, "REQUEST_CANCEL"): times(4, listed),
    (statements, "FIND_END"): times(2, once),
    # Until it has found a few of a node.
    (statements, "COUNT_IN_FLIGHT"): lambda _: 2 * RUNNING,
    (statements, "NOTE_END"): times(3, once),
    (statements, "FORGET_ENDS"): lambda _: 100,  # all that are too old
    (statements, "FIND_ALONE"): times(2, listed),
    (statements, "SUSPECT"): times(4, rows),
    (statements, "CLEAR"): times(3, listed),
    (statements, "FIND_SUSPECTS"): times(4, limits),
    (statements, "COUNT_DEATHS"): lambda _: 100,  # all of ten minutes
    (statements, "FIND_LATE_LEASE"): times(2, once),
    (statements, "SHORTEN"): times(4, limits),
    (statements, "FIND_LATER"): times(4, limits),
    (statements, "FIND_LATER_AT"): times(4, limits),
    (statements, "NEXT_APP"): times(2, once),
    (statements, "BRING_FORWARD"): times(8, rows),
    (statements, "LAST_CREATED"): times(2, once),
    (statements, "LAST_FINISHED"): times(2, once),
    (statements, "FIND_FINISHED"): times(2, limits),
    (statements, "PURGE[0]"): times(4, listed),
    (statements, "PURGE[1]"): times(3, listed),
    (statements, "PURGE[2]"): times(3, listed),
    (schema, "_VERSION"): times(2, once),
    (statements, "APPS_AFTER"): times(2, limits),
    (statements, "APPS_LIKE"): times(6, once),
    (statements, "PUT_APPS"): times(2, rows),
    (statements, "STRIDE_END"): lambda _: 3 * STRIDE + 5,
    # All of a stride may be over.
    (statements, "TASKS_AFTER"): lambda _: 2 * STRIDE + 5,
    (statements, "ATTEMPTS"): times(3, listed),
    (statements, "TASKS_LIKE"): times(8, once),
    (statements, "COUNT_APPS"): times(2, once),
    (statements, "PUT_TASKS"): times(2, rows),
    (statements, "COUNT_RUNNING"): lambda _: 2 * RUNNING,
}

_STRIDES = {"STRIDE_END", "TASKS_AFTER"}
"""Statements that look at more than a quarter of the test's table."""

_NO_TABLE = {"_TIME", "_SERVER", "_FLUSH", "_TABLES", "_LIMITS"}
"""Statements that ask no table of taskd's."""

_FIRST_WORDS = re.compile(rb"\s*\(?(SELECT|INSERT|UPDATE|DELETE|REPLACE|WITH)\b")


def constants() -> Iterator[tuple[ModuleType, str, str]]:
    """Every statement that the store's modules and their classes hold: where, by which name,
    its text."""
    for found in pkgutil.iter_modules(
        taskd.stores.mysql.__path__, f"{taskd.stores.mysql.__name__}."
    ):
        module = importlib.import_module(found.name)
        named = [*vars(module).items()]
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == module.__name__:
                named += vars(value).items()
        for name, value in named:
            texts = value if isinstance(value, tuple) else (value,)
            for number, text in enumerate(texts):
                if isinstance(text, str | bytes) and name not in _NO_TABLE:
                    raw = text if isinstance(text, bytes) else text.encode()
                    own = name if texts == (value,) else f"{name}[{number}]"
                    if _FIRST_WORDS.match(raw):
                        yield module, own, raw.decode()


def test_every_statement_has_a_bound() -> None:
    assert {(module, name) for module, name, _ in constants()} == set(BOUNDS)


@dataclass(frozen=True)
class Counted:
    """A statement that was sent."""

    module: ModuleType
    name: str
    text: str
    touched: int
    """Rows read and written, as the server counts."""


class Counter:
    """Counts the rows of every statement of a store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counted: list[Counted] = []
        self._execute = MySQLConnection.execute
        # A statement may hold another's whole text, so the longest goes first.
        self._patterns = [
            (module, name, _pattern(text))
            for module, name, text in sorted(constants(), key=lambda each: -len(each[2]))
        ]
        counter = self

        async def counted(
            connection: MySQLConnection, statement: str | bytes, *, within_s: float = 60.0
        ) -> Answer:
            return await counter.run(connection, statement, within_s)

        monkeypatch.setattr(MySQLConnection, "execute", counted)

    async def run(
        self, connection: MySQLConnection, statement: str | bytes, within_s: float
    ) -> Answer:
        raw = statement if isinstance(statement, bytes) else statement.encode()
        text = raw.decode(errors="replace")
        before = await self._touched(connection)
        try:
            return await self._execute(connection, statement, within_s=within_s)
        finally:
            if _FIRST_WORDS.match(raw) and connection.usable:
                touched = await self._touched(connection) - before
                found = [(m, n) for m, n, p in self._patterns if p.match(text)]
                if found:
                    self.counted.append(Counted(*found[0], text, touched))
                else:
                    assert re.search(r"\bFROM \w+|INTO|UPDATE \w+ SET", text) is None or (
                        "information_schema" in text
                    ), text

    async def _touched(self, connection: MySQLConnection) -> int:
        answer = await self._execute(connection, "SHOW SESSION STATUS LIKE 'Handler%'")
        return sum(
            int(value)
            for name, value in answer.rows
            if re.fullmatch(r"Handler_(read_\w+|write|update|delete|tmp_\w+)", name)
        )


def _pattern(text: str) -> re.Pattern[str]:
    parts = re.split(r"\{\w*\}|%[db]", text)
    return re.compile(".*".join(map(re.escape, parts)), re.DOTALL)


@pytest.fixture(params=["known", "unknown"])
def counted_twice(
    request: pytest.FixtureRequest, database_server: Database, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[list[Counted], list[Counted]]]:
    """What all statements touch in a table, and in one of twice the size, whose
    statistics the server has or has not."""
    urls = [
        filled(database_server, size, known=request.param == "known") for size in (ROWS, 2 * ROWS)
    ]
    counter = Counter(monkeypatch)

    async def count(url: str) -> list[Counted]:
        counter.counted = []
        async with opened_mysql(url) as store:
            await move_some(store, await use_everything(store))
        # What is only needed when something fails in between.
        async with connected(parse_mysql_url(url)) as connection:
            # The table was altered: who opens it first reads what is known of its columns.
            await connection.execute("DO (SELECT 1 FROM tasks LIMIT 1)")
            await connection.execute(writer._WHICH_NUMBER.format(lane="lane-1"))
            await connection.execute(MySQLStatements.TAKE_BACK.format(ids="(7,70,700)"))
        return counter.counted

    counts: list[list[Counted]] = []

    async def main() -> None:
        counts.extend([await count(url) for url in urls])

    run_bounded(main)
    monkeypatch.undo()
    yield counts[0], counts[1]
    for url in urls:
        database_server.drop_database(url)


def test_no_statement_touches_more_rows_than_its_bound_whatever_the_tables_size(
    counted_twice: tuple[list[Counted], list[Counted]],
) -> None:
    small, large = counted_twice
    # By their texts: some say the same at two places.
    texts = {(module, name): text for module, name, text in constants()}
    assert {texts[each.module, each.name] for each in large} == set(texts.values())
    for each in (*small, *large):
        bound = BOUNDS[each.module, each.name](each.text)
        assert each.touched <= bound, (each.name, bound, each.touched, each.text[:500])
        assert bound < ROWS / 4 or each.name in _STRIDES, each.name
    assert [each.name for each in small] == [each.name for each in large]
    for one, other in zip(small, large, strict=True):
        assert other.touched <= one.touched + 2, (one.name, one.touched, other.touched)

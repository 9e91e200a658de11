"""An operation's session with a SQLite database, which answers everything at once."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Sequence
from types import NoneType
from typing import Any

from taskd.domain.model import App
from taskd.domain.transitions import Ended
from taskd.stores.encoding import STATE_CODES
from taskd.stores.operations.session import Row, Scalar, Value
from taskd.stores.sqlite.apps import AppReader
from taskd.stores.sqlite.rows import execute_rows
from taskd.stores.sqlite.statements import Packed, SQLiteStatements

_FIND_TASK_NOS = """
SELECT app_id, task_no, id, state FROM {rows} AS v CROSS JOIN tasks
WHERE v.column1 IS NOT NULL AND app_id = v.column1 AND task_no = v.column2"""
"""A CROSS JOIN is carried out from left to right: one look into the index for each row."""

_SCALARS = (int, str, bytes, NoneType)


class SQLiteSession(SQLiteStatements):
    """A connection, and what the store remembers.

    Args:
        connection: in a transaction, or a reader's.
        apps: those that were read.
    """

    def __init__(self, connection: sqlite3.Connection, apps: AppReader) -> None:
        self._connection = connection
        self._apps = apps

    async def fetch(self, statement: str, **values: Value) -> Sequence[Row]:
        """See `Session.fetch`."""
        cursor = self._connection.execute(statement, _bound(values))
        if type(statement) is Packed:
            (text,) = cursor.fetchone()
            rows: list[Row] = json.loads(text)
            return rows
        return cursor.fetchall()

    async def execute(self, statement: str, **values: Value) -> None:
        """See `Session.execute`."""
        self._connection.execute(statement, _bound(values))

    async def execute_many(self, statement: str, rows: Sequence[Sequence[Scalar]]) -> None:
        """See `Session.execute_many`."""
        if rows:
            execute_rows(self._connection, statement, rows)

    async def app_by_id(self, app_id: int) -> App | None:
        """See `Session.app_by_id`."""
        return self._apps.read_by_id(self._connection, app_id)

    async def find_task_nos(
        self, keys: Collection[tuple[int, str]]
    ) -> dict[tuple[int, str], tuple[int, int]]:
        """See `Session.find_task_nos`."""
        rows = execute_rows(self._connection, _FIND_TASK_NOS, list(keys))
        return {(app_id, task_no): (task_id, state) for app_id, task_no, task_id, state in rows}

    def ended_row(self, app_id: int, ended: Ended) -> Sequence[Scalar]:
        """See `Session.ended_row`."""
        del app_id
        return (
            ended.task_id,
            STATE_CODES[ended.state],
            ended.due_at,
            ended.attempt,
            ended.failures,
            ended.abandoned,
            int(ended.sent),
            ended.cancel_word and ended.cancel_word.value,
            ended.finished_at,
        )


def _bound(values: dict[str, Value]) -> dict[str, Any]:
    """Values as they are bound; a collection as ``json_each`` takes it."""
    bound: dict[str, Any] = values
    for name, value in values.items():
        if not isinstance(value, _SCALARS):
            bound[name] = _listed(value)
    return bound


def _listed(values: Collection[Scalar]) -> str:
    items = list(values)
    # Numbers stand in a list of Python's as they do in one of JSON, and sooner.
    return json.dumps(items) if isinstance(items[0], str) else str(items)

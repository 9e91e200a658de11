"""An operation's session with a MySQL database."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

from taskd.domain.model import App
from taskd.domain.transitions import Ended
from taskd.stores.encoding import STATE_CODES, as_text
from taskd.stores.mysql.connection import MySQLConnection
from taskd.stores.mysql.reads import AppReader
from taskd.stores.mysql.rows import inserts, literal, of_task_nos, row, table
from taskd.stores.mysql.schema import OVER
from taskd.stores.mysql.statements import MySQLStatements
from taskd.stores.operations.session import Row, Scalar, Value

_FIND_TASK_NOS = b"SELECT app_id, task_no, id, state FROM tasks FORCE INDEX (tasks_task_no) WHERE "

_LOOKED_UP = 1_000
"""Tasks that one statement looks for: it may not grow past what a server takes."""

_TABLE = "{table}"


class MySQLSession(MySQLStatements):
    """A connection, and what the store remembers.

    Args:
        connection: in a transaction, or a reader's.
        apps: those that were read.
    """

    def __init__(self, connection: MySQLConnection, apps: AppReader) -> None:
        self._connection = connection
        self._apps = apps

    async def fetch(self, statement: str, **values: Value) -> Sequence[Row]:
        """See `Session.fetch`."""
        return (await self._connection.execute(_filled(statement, values))).rows

    async def execute(self, statement: str, **values: Value) -> None:
        """See `Session.execute`."""
        await self._connection.execute(_filled(statement, values))

    async def execute_many(self, statement: str, rows: Sequence[Sequence[Scalar]]) -> None:
        """See `Session.execute_many`."""
        if not rows:
            return
        if _TABLE in statement:
            await self._connection.execute(statement.replace(_TABLE, table(rows)))
            return
        for part, _ in inserts(statement, rows):
            await self._connection.execute(part)

    async def app_by_id(self, app_id: int) -> App | None:
        """See `Session.app_by_id`."""
        return await self._apps.read_by_id(self._connection, app_id)

    async def find_task_nos(
        self, keys: Collection[tuple[int, str]]
    ) -> dict[tuple[int, str], tuple[int, int]]:
        """See `Session.find_task_nos`."""
        found: dict[tuple[int, str], tuple[int, int]] = {}
        listed = list(keys)
        for start in range(0, len(listed), _LOOKED_UP):
            some = of_task_nos(listed[start : start + _LOOKED_UP])
            rows = (await self._connection.execute(_FIND_TASK_NOS + some)).rows
            found |= {
                (app_id, as_text(task_no)): (task_id, state)
                for app_id, task_no, task_id, state in rows
            }
        return found

    def ended_row(self, app_id: int, ended: Ended) -> Sequence[Scalar]:
        """See `Session.ended_row`."""
        if ended.due_at is not None:
            lane, moment = app_id, ended.due_at
        else:
            lane, moment = OVER, ended.finished_at or 0
        return (
            ended.task_id,
            STATE_CODES[ended.state],
            lane,
            moment,
            ended.attempt,
            ended.failures,
            ended.abandoned,
            int(ended.sent),
            "" if ended.cancel_word is None else ended.cancel_word.value,
        )


@cache
def _pieces(statement: str) -> tuple[list[tuple[bytes, str]], bytes]:
    """A statement's texts before each value's place, with the value's name, and its end."""
    *pieces, end = re.split(r"\{(\w+)\}", statement)
    texts = [text.encode() for text in pieces[::2]]
    return list(zip(texts, pieces[1::2], strict=True)), end.encode()


def _filled(statement: str, values: dict[str, Value]) -> bytes:
    """A statement with its values; those of a collection in ascending order, which is the
    order that locks are taken in."""
    pieces, end = _pieces(statement)
    return b"".join([text + _written(values[name]) for text, name in pieces]) + end


def _written(value: Value) -> bytes:
    if value is None or isinstance(value, int | str | bytes):
        return literal(value)
    ordered: list[Any] = sorted(value)
    return row(ordered)

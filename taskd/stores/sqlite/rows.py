"""Runs statements over rows.

Each statement releases Python's global lock and takes it back several times, and beside a
busy Trio thread each time means a wait. So many rows go in as one ``VALUES`` list and come
back as one JSON text. For a few rows a plain statement each costs less: such lists and texts
cost more than the rows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import cache
from typing import Any, Self

from taskd.stores.encoding import INLINE_CONTENT

SqlValue = str | bytes | int | None

_PLACE = "{rows}"
_NAMES = tuple(f"c{number}" for number in range(1, 33))
MAX_ROWS = 512
"""Rows of one statement at most; more of them take several."""

FEW = 4
"""Up to so many rows, each has a statement of its own, if there is a plain one."""


class WithPlain(str):
    """A statement over many rows or ids that has a plain one for a single row or id.

    Args:
        statement: the statement over many.
        plain: does the same to one. It takes a row's values as ``:c1``, ``:c2`` and so on, or
        one of the ids as ``:ids``, and answers plain rows. No id is given twice.
    """

    __slots__ = ("plain",)

    plain: str

    def __new__(cls, statement: str, plain: str) -> Self:
        """Keep both."""
        made = super().__new__(cls, statement)
        made.plain = plain
        return made


def named(row: Sequence[SqlValue]) -> dict[str, SqlValue]:
    """Return a row's values by the names that a plain statement has for them. (Python 3.14 takes
    no sequence for ``?1``.)"""
    return dict(zip(_NAMES, row, strict=False))


@cache
def _with_rows(template: str, columns: int, rows: int) -> str:
    row = "(" + ",".join("?" * columns) + ")"
    return template.replace(_PLACE, "(VALUES " + ",".join([row] * rows) + ")")


def execute_rows(
    connection: sqlite3.Connection, template: str, rows: Sequence[Sequence[SqlValue]]
) -> list[Any]:
    """Run a statement over many rows.

    Args:
        connection: within a transaction.
        template: the statement, with ``{rows}`` where the list of rows goes; it
            must leave out rows whose ``column1`` is NULL, which fill the list up
            to the next power of two (so that few statements are ever compiled). If it is
            `WithPlain` and fails, it may have written the rows before the one that failed.
        rows: at least one, of the same width.

    Returns:
        The rows it answers.
    """
    answer: list[Any] = []
    if len(rows) <= FEW and isinstance(template, WithPlain):
        for row in rows:
            answer += connection.execute(template.plain, named(row))
        return answer
    columns = len(rows[0])
    for start in range(0, len(rows), MAX_ROWS):
        part = rows[start : start + MAX_ROWS]
        size = 1 << (len(part) - 1).bit_length()
        values = [value for row in part for value in row]
        values += [None] * ((size - len(part)) * columns)
        answer += connection.execute(_with_rows(template, columns, size), values).fetchall()
    return answer


def inline_content(content: bytes) -> str | None:
    """Return a content as it stands in its task's row; None if it has to stand apart."""
    if len(content) > INLINE_CONTENT or b"\0" in content:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None  # apart it is a blob, which comes back as it is

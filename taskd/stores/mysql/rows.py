"""Values as they stand in a statement's text, and statements over many rows.

Every value is written here, so every value is escaped here. The session's sql_mode
leaves the backslash its meaning, and its character set is UTF-8, in which no other
character has a quote's or a backslash's byte in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

SqlValue = str | bytes | int | None

MAX_STATEMENT = 1_048_576
"""Bytes after which rows go into another statement; a single row may be longer."""


def literal(value: SqlValue) -> bytes:
    """A value as it stands in a statement; bytes are binary strings.

    Raises:
        UnicodeEncodeError: a text holds half a surrogate pair.
    """
    if value is None:
        return b"NULL"
    if isinstance(value, int):
        return b"%d" % value
    if isinstance(value, str):
        return b"'" + _escaped(value.encode()) + b"'"
    return b"_binary'" + _escaped(value) + b"'"


def _escaped(text: bytes) -> bytes:
    return text.replace(b"\\", b"\\\\").replace(b"'", b"\\'").replace(b"\0", b"\\0")


def row(values: Iterable[SqlValue]) -> bytes:
    """Values in parentheses: a row of ``VALUES``, or the list of an ``IN``."""
    return b"(" + b",".join([literal(value) for value in values]) + b")"


def ids(values: Iterable[int]) -> str:
    """Ids in parentheses, in ascending order: the order that locks are taken in."""
    return f"({','.join(map(str, sorted(values)))})"


def of_task_nos(keys: Iterable[tuple[int, str]]) -> bytes:
    """The condition for tasks that have one of these pairs of app and taskNo; at least
    one is given."""
    by_app: dict[int, list[bytes]] = {}
    for app_id, task_no in keys:
        by_app.setdefault(app_id, []).append(task_no.encode())
    return b" OR ".join(
        b"app_id = %d AND task_no IN %b" % (app_id, row(task_nos))
        for app_id, task_nos in by_app.items()
    )


def inserts(head: str, rows: Sequence[Sequence[SqlValue]]) -> Iterator[tuple[bytes, int]]:
    """``INSERT`` statements over many rows, and how many rows each has.

    Args:
        head: up to ``VALUES``, with or without the ``{rows}`` that stand for the rows.
        rows: any number.
    """
    begin = head.removesuffix(" {rows}").encode() + b" "
    part: list[bytes] = []
    size = 0
    for values in rows:
        text = row(values)
        if part and size + len(text) > MAX_STATEMENT:
            yield begin + b",".join(part), len(part)
            part, size = [], 0
        part.append(text)
        size += len(text) + 1
    if part:
        yield begin + b",".join(part), len(part)


def table(rows: Sequence[Sequence[SqlValue]]) -> str:
    """Rows as the text that ``JSON_TABLE`` reads; of ASCII, and without NULL and bytes."""
    return literal(json.dumps(rows, separators=(",", ":"))).decode()

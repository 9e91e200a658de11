"""Writes values into a statement's text, and many rows into few statements.

Every value is written here, so every value is escaped here. In the session's sql_mode a
backslash escapes, and in its character set, UTF-8, the bytes of a quote and of a backslash
are in no other character.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

SqlValue = str | bytes | int | None

MAX_STATEMENT = 1_048_576
"""Bytes after which rows go into another statement; a single row may be longer."""


def literal(value: SqlValue) -> bytes:
    """Return a value as it stands in a statement; bytes become a binary string.

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
    """Return values in parentheses: a row of ``VALUES``, or the list of an ``IN``."""
    return b"(" + b",".join([literal(value) for value in values]) + b")"


def of_task_nos(keys: Iterable[tuple[int, str]]) -> bytes:
    """Return the condition for tasks with one of these pairs of app and taskNo, at least one."""
    by_app: dict[int, list[bytes]] = {}
    for app_id, task_no in keys:
        by_app.setdefault(app_id, []).append(task_no.encode())
    return b" OR ".join(
        b"app_id = %d AND task_no IN %b" % (app_id, row(task_nos))
        for app_id, task_nos in by_app.items()
    )


def inserts(head: str, rows: Sequence[Sequence[SqlValue]]) -> Iterator[tuple[bytes, int]]:
    """Yield ``INSERT`` statements over many rows, and how many rows each has.

    Args:
        head: up to ``VALUES``, with or without the ``{rows}`` that stands for the rows.
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
    """Return rows, of neither NULL nor bytes, as the text that ``JSON_TABLE`` reads, in ASCII."""
    return literal(json.dumps(rows, separators=(",", ":"))).decode()

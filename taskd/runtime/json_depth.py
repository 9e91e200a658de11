"""Counts how deep a JSON text is nested and how many values it has, before it is parsed.

Python's parser goes as deep as the text does, and the depth at which it, or the machine's
stack, gives up differs between Pythons. It also lets no other thread run until it has made all
of the text's values. So texts from outside are counted here first, in one pass whose work is
bounded by the text's length, whether it is JSON or not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

MAX_DEPTH = 64
"""Arrays and objects inside one another that a task or a request may have."""

MAX_READ_DEPTH = 256
"""Arrays and objects inside one another, up to which a text may be given to a parser.
Every Python that is supported reads a text of this depth, wherever it is called."""

_SHORT = 1024 * 1024
_SLICE = 64 * 1024
_NO_BRACKET = bytes(byte for byte in range(256) if byte not in b'[]{}"')
_NO_BEGINNING = bytes(byte for byte in range(256) if byte not in b'[{,"')
_TO_SQUARE = bytes.maketrans(b"{}", b"[]")
_STEPS = {ord("["): 1, ord("]"): -1}
_ROUNDS = 3


class NestedTooDeep(ValueError):
    """A text is nested deeper than allowed. It may be no JSON at all."""


def deeper_than(text: bytes | bytearray, limit: int) -> bool:
    """Whether arrays and objects are nested deeper than this."""
    # A long text is not counted in one go: no other thread could run meanwhile.
    if len(text) <= _SHORT and text.count(b"[") + text.count(b"{") <= limit:
        return False
    return first_deeper(text, limit) is not None


def first_deeper(text: bytes | bytearray, limit: int) -> int | None:
    """Return where the first array or object begins that is nested deeper than this; None if
    there is none.

    In a text that is no JSON, this holds up to where it stops being JSON: a parser that reads
    up to the returned place goes no deeper.

    Args:
        text: UTF-8.
        limit: 1 for one array or object with none in it.
    """
    start = depth = 0
    in_string = False
    for part in _parts(text):
        brackets, ends_in_string = _outside_strings(part, _NO_BRACKET, in_string=in_string)
        if _may_exceed(brackets, limit - depth):
            return start + _place(part, limit - depth, in_string=in_string)
        depth += 2 * brackets.count(b"[") - len(brackets)
        in_string = ends_in_string
        start += len(part)
    return None


def more_values_than(text: bytes | bytearray, limit: int) -> bool:
    """Whether a JSON text holds more values than this. A pair of key and value counts as
    one, and an empty array or object may count as one too many."""
    # The shortest text is `[],`, which counts as two in three bytes.
    if 2 * len(text) <= 3 * limit:
        return False
    values = 1
    in_string = False
    for part in _parts(text):
        beginnings, in_string = _outside_strings(part, _NO_BEGINNING, in_string=in_string)
        values += len(beginnings)
        if values > limit:
            return True
    return False


def load_json(text: bytes | bytearray | str, *, max_depth: int = MAX_READ_DEPTH) -> Any:  # noqa: ANN401 - any JSON value
    """Return the value of a JSON text from outside.

    Raises:
        NestedTooDeep: it is nested deeper than ``max_depth``.
        ValueError: it is no JSON, or holds a number of thousands of digits.
    """
    refuse_deep(text, max_depth)
    return json.loads(text)


def refuse_deep(text: bytes | bytearray | str, limit: int = MAX_READ_DEPTH) -> None:
    """Make sure that a text may be given to a parser.

    Raises:
        NestedTooDeep: it is nested deeper than ``limit``.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if deeper_than(data, limit):
        raise NestedTooDeep(f"it is nested more than {limit} deep")


def _parts(text: bytes | bytearray) -> Iterator[bytes | bytearray]:
    """Yield the text in slices, none of which ends between a backslash and the byte that it
    escapes. Other threads may run between two of them."""
    start = 0
    while start < len(text):
        part = text[start : start + _SLICE]
        if start + len(part) < len(text) and _ends_in_escape(part):
            part = part[:-1]
        yield part
        start += len(part)


def _ends_in_escape(part: bytes | bytearray) -> bool:
    """Whether the last byte is a backslash that escapes the next one."""
    return (len(part) - len(part.rstrip(b"\\"))) % 2 == 1


def _outside_strings(
    part: bytes | bytearray, without: bytes, *, in_string: bool
) -> tuple[bytes, bool]:
    """Return the part's bytes outside of strings, without those of ``without`` and with
    square brackets for curly ones; and whether the part ends inside a string."""
    marks = part.replace(b"\\\\", b"").replace(b'\\"', b"").translate(_TO_SQUARE, without)
    # Two quotes in a row open and close, or close and open: nothing is between them.
    pieces = marks.replace(b'""', b"").split(b'"')
    return b"".join(pieces[in_string::2]), in_string ^ (len(pieces) % 2 == 0)


def _may_exceed(brackets: bytes, limit: int) -> bool:
    """Whether brackets are nested deeper than this."""
    left = brackets
    for removed in range(_ROUNDS):
        # Without its innermost pairs a text is one level less deep, at most.
        if left.count(b"[") + removed <= limit:
            return False
        left = left.replace(b"[]", b"")
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > limit


def _place(part: bytes | bytearray, limit: int, *, in_string: bool) -> int:
    """Return where brackets that are nested deeper than this first are."""
    depth = 0
    escaped = False
    for at, byte in enumerate(part):
        if in_string:
            if escaped:
                escaped = False
            elif byte == ord("\\"):
                escaped = True
            elif byte == ord('"'):
                in_string = False
        elif byte == ord('"'):
            in_string = True
        elif byte in b"[{":
            depth += 1
            if depth > limit:
                return at
        elif byte in b"]}":
            depth -= 1
    return len(part)

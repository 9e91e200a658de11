"""How deep a JSON text is nested and how much is in it, counted before a parser sees it.

Python's parser goes as deep as the text does, and where it gives up, or the machine's
stack does, differs between Pythons. And it lets nobody else run until it has made a
value of all that is in the text. So whatever comes from outside is counted here first, in
one pass whose work is bounded by the text's length, JSON or not.
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
    """A text is nested deeper than it may be. It may be no JSON at all."""


def deeper_than(text: bytes | bytearray, limit: int) -> bool:
    """Whether arrays and objects stand deeper inside one another than this."""
    # A long text is not counted in one go: nobody else could run meanwhile.
    if len(text) <= _SHORT and text.count(b"[") + text.count(b"{") <= limit:
        return False
    return first_deeper(text, limit) is not None


def first_deeper(text: bytes | bytearray, limit: int) -> int | None:
    """Where the first array or object begins that is nested deeper than this; None
    where there is none.

    Of a text that is no JSON, this holds up to where it stops being JSON: a parser
    that reads up to the place that is returned goes no deeper.

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
    one, and what is empty may count as one too many."""
    # What is written shortest is `[],`: two of these in three bytes.
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
    """What a JSON text from outside stands for.

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
    """The text in slices, none of which ends between a backslash and what it escapes.
    Between two of them others may run."""
    start = 0
    while start < len(text):
        part = text[start : start + _SLICE]
        if start + len(part) < len(text) and _ends_in_escape(part):
            part = part[:-1]
        yield part
        start += len(part)


def _ends_in_escape(part: bytes | bytearray) -> bool:
    """Whether the last byte is a backslash that belongs to what follows."""
    return (len(part) - len(part.rstrip(b"\\"))) % 2 == 1


def _outside_strings(
    part: bytes | bytearray, without: bytes, *, in_string: bool
) -> tuple[bytes, bool]:
    """What stands outside of strings, without these bytes and with square brackets for
    curly ones, and whether the part ends inside a string."""
    marks = part.replace(b"\\\\", b"").replace(b'\\"', b"").translate(_TO_SQUARE, without)
    # Two quotes in a row open and close, or close and open: nothing is between them.
    pieces = marks.replace(b'""', b"").split(b'"')
    return b"".join(pieces[in_string::2]), in_string ^ (len(pieces) % 2 == 0)


def _may_exceed(brackets: bytes, limit: int) -> bool:
    """Whether brackets go deeper than this."""
    left = brackets
    for removed in range(_ROUNDS):
        # Without its innermost pairs a text is one level less deep, at most.
        if left.count(b"[") + removed <= limit:
            return False
        left = left.replace(b"[]", b"")
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > limit


def _place(part: bytes | bytearray, limit: int, *, in_string: bool) -> int:
    """Where brackets that go deeper than this do so first."""
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

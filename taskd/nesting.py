"""How deep a JSON text is nested, counted before a parser sees it.

Python's parser goes as deep as the text does, and where it gives up, or the machine's
stack does, differs between Pythons. So whatever comes from outside is counted here
first, in one pass whose work is bounded by the text's length, JSON or not.
"""

from __future__ import annotations

import json
from itertools import accumulate
from typing import Any

MAX_DEPTH = 64
"""Arrays and objects inside one another that a task or a request may have."""

MAX_READ_DEPTH = 256
"""Arrays and objects inside one another, up to which a text may be given to a parser.
Every Python that is supported reads a text of this depth, wherever it is called."""

_SLICE = 64 * 1024
_NO_MARK = bytes(byte for byte in range(256) if byte not in b'[]{}"')
_TO_SQUARE = bytes.maketrans(b"{}", b"[]")
_STEPS = {ord("["): 1, ord("]"): -1}
_ROUNDS = 3


class NestedTooDeep(ValueError):
    """A text is nested deeper than it may be. It may be no JSON at all."""


def deeper_than(text: bytes | bytearray, limit: int) -> bool:
    """Whether arrays and objects stand deeper inside one another than this."""
    if text.count(b"[") + text.count(b"{") <= limit:
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
    while start < len(text):
        part = text[start : start + _SLICE]
        if start + len(part) < len(text) and _ends_in_escape(part):
            part = part[:-1]
        outside, ends_in_string = _brackets(part, in_string=in_string)
        if _may_exceed(outside, limit - depth):
            return start + _place(part, limit - depth, in_string=in_string)
        depth += 2 * outside.count(b"[") - len(outside)
        in_string = ends_in_string
        start += len(part)
    return None


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


def _ends_in_escape(part: bytes | bytearray) -> bool:
    """Whether the last byte is a backslash that belongs to what follows."""
    return (len(part) - len(part.rstrip(b"\\"))) % 2 == 1


def _brackets(part: bytes | bytearray, *, in_string: bool) -> tuple[bytes, bool]:
    """The brackets outside of strings, all of them square, and whether the part ends
    inside a string."""
    marks = part.replace(b"\\\\", b"").replace(b'\\"', b"").translate(_TO_SQUARE, _NO_MARK)
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

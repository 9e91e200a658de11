"""The API's JSON: read strictly, and without changing a value on its way.

The depth of nesting is counted first, on the bytes. One pass of the C parser then reads
most texts; its hooks stop at anything that may be wrong. Where they stop, a second pass
finds out what is wrong, and where. The work of each pass is bounded by the text's length.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import NoReturn, Self

from taskd.errors import InvalidInput
from taskd.runtime.json_depth import (
    MAX_DEPTH,
    MAX_READ_DEPTH,
    deeper_than,
    first_deeper,
    more_values_than,
)

MAX_ITEMS = 1_000
"""Items of an array that are judged one by one."""

MAX_VALUES = 1_000_000
"""Values of one text. The parser may let no other thread run until it has made them all."""

MAX_DIGITS = 17
"""Significant digits of a fraction in a value that is serialised again."""

MAX_NAME = 64
"""Characters of a client's field name that a message repeats."""

_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1
_MAX_INT_CHARACTERS = 20
_LOW_CHARACTERS = 18
_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
_EXPONENT = re.compile("[eE]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BOM = "\ufeff"
_AT_A_TIME = 1_000_000
_LONGEST_MATCH = 6


class NotJSON(ValueError):
    """The text is no JSON at all; the message says where and why."""


class Fraction(float):
    """A JSON number with a fraction or an exponent, with its text."""

    __slots__ = ("text",)

    def __new__(cls, text: str) -> Self:
        """Read a number's text."""
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str

    @property
    def survives(self) -> bool:
        """Whether serialising it again gives the same number."""
        if not math.isfinite(self):
            return False
        digits = _EXPONENT.split(self.text)[0].lstrip("-0.").replace(".", "")
        if not digits:
            return True
        # Checked first, since Decimal refuses exponents far beyond those of a double.
        if not self or len(digits) > MAX_DIGITS:
            return False
        return Decimal(self.text) == Decimal(float.__repr__(self))


class _Suspicious(Exception):
    """The quick pass met something that a closer look must judge."""


class _Huge(str):
    """The text of an integer past 64 bits."""

    __slots__ = ()


class _Constant(str):
    """``NaN``, ``Infinity`` or ``-Infinity``."""

    __slots__ = ()


class _Pairs(list[tuple[str, object]]):
    """An object as it was written, doubled keys included."""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise _Suspicious
    return values


def _integer(text: str) -> int:
    if len(text) <= _LOW_CHARACTERS:
        return int(text)
    number = _any_integer(text)
    if isinstance(number, _Huge):
        raise _Suspicious
    return number


def _any_integer(text: str) -> int | _Huge:
    # Python refuses to read integers of thousands of digits; they are too long anyway.
    if len(text) <= _MAX_INT_CHARACTERS and _MIN_INT <= (number := int(text)) <= _MAX_INT:
        return number
    return _Huge(text)


def _stop(_: str) -> NoReturn:
    raise _Suspicious


def _refuse_constant(name: str) -> NoReturn:
    raise NotJSON(f"{name} is no JSON value")


_quick = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=Fraction, parse_constant=_stop
)
_close = json.JSONDecoder(
    object_pairs_hook=_Pairs, parse_int=_any_integer, parse_float=Fraction, parse_constant=_Constant
)
_plain = json.JSONDecoder(parse_int=len, parse_float=len, parse_constant=_refuse_constant)


def parse_object(body: bytes | bytearray, items: str | None = None) -> dict[str, object]:
    """The object that a request's body holds.

    Integers fit in 64 bits; numbers with a fraction are `Fraction`; strings and
    keys hold no NUL and no lone surrogate; no key comes twice.

    Args:
        body: as it came.
        items: the name of a field that may hold an array of objects. Each object is judged
            by itself, by the rules of a body; an `InvalidInput` that says what is wrong
            takes the place of one that breaks them. An array of more than `MAX_ITEMS` is
            not judged: its caller refuses it.

    Raises:
        NotJSON: it is not UTF-8, or no JSON.
        InvalidInput: it is JSON, but no object, or breaks one of these rules; it holds more
            than `MAX_VALUES`; or it is nested deeper than `MAX_READ_DEPTH`, and JSON up to
            that point.
    """
    if more_values_than(body, MAX_VALUES):
        raise InvalidInput("", f"the body holds more than {MAX_VALUES} values")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise NotJSON(f"the body is not UTF-8 at byte {error.start}") from error
    if text.startswith(_BOM):
        raise NotJSON("the body begins with a byte order mark; send it without")
    deep = deeper_than(body, MAX_DEPTH)
    if deep and not _may_be_parsed(_close, body, "the body"):
        raise InvalidInput("", f"the body is nested more than {MAX_DEPTH} deep")
    if deep or ("\\u" in text and _holds(_ESCAPE, text)):
        return _look_closely(text, items)
    try:
        value = _parse(_quick, text, "the body")
    except _Suspicious:
        return _look_closely(text, items)
    if not isinstance(value, dict):
        raise _not_an_object("the body", value)
    if items is not None and type(field := value.get(items)) is list and len(field) <= MAX_ITEMS:
        field[:] = [
            item if type(item) is dict else _not_an_object("the task", item) for item in field
        ]
    return value


def check_text(text: str) -> bytes:
    """Make sure that a string is JSON text, nested at most `MAX_DEPTH` deep; returns it
    in UTF-8.

    Numbers, escapes and keys may be written in any way: the text is passed on as it is.

    Raises:
        NotJSON: it is no JSON, is nested deeper, or holds more than `MAX_VALUES`.
    """
    data = text.encode()
    if more_values_than(data, MAX_VALUES):
        raise NotJSON(f"it holds more than {MAX_VALUES} values")
    deep = deeper_than(data, MAX_DEPTH)
    if not deep or _may_be_parsed(_plain, data, "it"):
        _parse(_plain, text, "it")
    if deep:
        raise NotJSON(f"it is nested more than {MAX_DEPTH} deep")
    return data


def check_survives(value: object) -> None:
    """Make sure that serialising a value again changes none of its numbers.

    Raises:
        ValueError: it would; the message says which.
    """
    for part in _parts(value):
        if isinstance(part, Fraction) and not part.survives:
            number = (
                part.text
                if len(part.text) <= _LOW_CHARACTERS * 2
                else part.text[:_LOW_CHARACTERS] + "…"
            )
            raise ValueError(
                f"the number {number} would not survive being written again; send the content "
                "as a string that holds JSON text"
            )


def _may_be_parsed(decoder: json.JSONDecoder, data: bytes | bytearray, what: str) -> bool:
    """Whether a text is nested no deeper than `MAX_READ_DEPTH`.

    Raises:
        NotJSON: it is nested deeper, but stops being JSON before that point.
    """
    end = first_deeper(data, MAX_READ_DEPTH)
    if end is None:
        return True
    text = data[:end].decode()
    try:
        decoder.decode(text)
    except json.JSONDecodeError as error:
        if error.pos < len(text):
            raise _not_json(what, error) from error
    return False


def _parse(decoder: json.JSONDecoder, text: str, what: str) -> object:
    """The value of a text that is nested no deeper than `MAX_READ_DEPTH`."""
    try:
        try:
            # `decode` calls this too, but also looks for white space around the text.
            value, end = decoder.scan_once(text, 0)  # type: ignore[attr-defined] # typeshed leaves it out
        except (StopIteration, json.JSONDecodeError):
            value, end = None, -1
        return value if end == len(text) else decoder.decode(text)
    except json.JSONDecodeError as error:
        raise _not_json(what, error) from error


def _not_json(what: str, error: json.JSONDecodeError) -> NotJSON:
    problem = error.msg.removesuffix(" at")
    return NotJSON(f"{what} is not JSON: {problem} at character {error.pos}")


def _look_closely(text: str, items: str | None = None) -> dict[str, object]:
    return _examined("the body", _parse(_close, text, "the body"), items)


def _examined(what: str, value: object, items: str | None = None) -> dict[str, object]:
    if not isinstance(value, _Pairs):
        if _depth(value) > MAX_DEPTH:
            raise InvalidInput("", f"{what} is nested more than {MAX_DEPTH} deep")
        raise _not_an_object(what, value)
    values: dict[str, object] = {}
    for key, field in value:
        _check_string("", key)
        name = key[:MAX_NAME]
        if key in values:
            raise InvalidInput(name, "is given twice")
        if key == items and type(field) is list:
            values[key] = field if len(field) > MAX_ITEMS else list(map(_examined_item, field))
            continue
        if _depth(field) >= MAX_DEPTH:
            raise InvalidInput(name, f"is nested more than {MAX_DEPTH} deep")
        for part in _parts(field):
            _check_part(name, part)
        values[key] = _settled(field)
    return values


def _examined_item(item: object) -> dict[str, object] | InvalidInput:
    try:
        return _examined("the task", item)
    except InvalidInput as error:
        return error


def _check_part(name: str, part: object) -> None:
    if isinstance(part, _Huge):
        raise InvalidInput(name, "must not hold an integer past 64 bits")
    if isinstance(part, _Constant):
        raise InvalidInput(name, f"must not hold {part}, which is no JSON value")
    if isinstance(part, str):
        _check_string(name, part)
    elif isinstance(part, _Pairs) and len(dict(part)) != len(part):
        raise InvalidInput(name, "must not hold an object that has a key twice")


def _check_string(name: str, text: str) -> None:
    where = "" if name else "a key of the body "
    if "\0" in text:
        raise InvalidInput(name, where + "must not hold the character U+0000")
    if not text.isascii() and _holds(_SURROGATE, text):
        raise InvalidInput(name, where + "must not hold half of a surrogate pair")


def _holds(pattern: re.Pattern[str], text: str) -> bool:
    """Whether a pattern matches somewhere. A long text is searched in parts, between which
    other threads may run."""
    return any(
        pattern.search(text, start, start + _AT_A_TIME + _LONGEST_MATCH)
        for start in range(0, len(text), _AT_A_TIME)
    )


def _not_an_object(what: str, value: object) -> InvalidInput:
    kind = "an array" if type(value) is list else "another value"
    return InvalidInput("", f"{what} must be a JSON object, got {kind}")


def _children(value: object) -> Iterator[object]:
    if isinstance(value, _Pairs):
        for key, child in value:
            yield key
            yield child
    elif isinstance(value, list):
        yield from value
    elif isinstance(value, dict):
        yield from value.values()


def _parts(value: object) -> Iterator[object]:
    """The value and all that is in it, keys of pairs included."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        yield part
        if isinstance(part, list | dict):
            waiting.extend(_children(part))


def _depth(value: object) -> int:
    """How many arrays and objects stand inside one another."""
    depth = 0
    level = [value]
    while level := [part for part in level if isinstance(part, list | dict)]:
        depth += 1
        level = [child for part in level for child in _children(part)]
    return depth


def _settled(value: object) -> object:
    """The value with plain dicts in place of `_Pairs`. It is at most `MAX_DEPTH` deep."""
    if isinstance(value, _Pairs):
        return {key: _settled(child) for key, child in value}
    if isinstance(value, list):
        return [_settled(child) for child in value]
    return value

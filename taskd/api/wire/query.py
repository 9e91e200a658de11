"""Query strings, read strictly."""

from __future__ import annotations

import re
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

from taskd.api.wire.envelope import InvalidFields, Refusal
from taskd.api.wire.strict_json import MAX_NAME
from taskd.errors import InvalidInput

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_BAD_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_NUMBER = re.compile(r"[1-9][0-9]{0,15}")


def parse_query(query: bytes, *, numbers: frozenset[str]) -> dict[str, object]:
    """The fields of a query string such as ``coroutine_id=42``.

    Percent-encoded bytes of values are decoded as UTF-8. A plain ``+`` is refused, since
    some programs read it as a space and some do not. A value of a field in ``numbers``
    becomes an integer if it is 1 to 16 ASCII digits, the first of them not 0; all other
    values stay strings.

    Raises:
        Refusal: it is no query string (400).
        InvalidFields: a field comes twice (422).
    """
    values: dict[str, object] = {}
    for piece in query.split(b"&") if query else ():
        raw_name, equals, raw_value = piece.partition(b"=")
        name = raw_name.decode("latin-1")
        if not equals or not _NAME.fullmatch(name):
            raise _malformed("must be NAME=VALUE, joined by &")
        if name in values:
            raise InvalidFields([InvalidInput(name[:MAX_NAME], "is given twice")])
        text = _decoded(raw_value)
        values[name] = int(text) if name in numbers and _NUMBER.fullmatch(text) else text
    return values


def _decoded(raw: bytes) -> str:
    if b"+" in raw:
        raise _malformed("must not contain +: write %2B for a plus, %20 for a space")
    if _BAD_PERCENT.search(raw):
        raise _malformed("has a % that two hexadecimal digits do not follow")
    try:
        text = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError as error:
        raise _malformed("is not UTF-8 once its percent-encoding is decoded") from error
    if "\0" in text:
        raise _malformed("must not hold the character U+0000")
    return text


def _malformed(problem: str) -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, f"the query string {problem}")

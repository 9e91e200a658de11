"""What costs more than its length is found."""

from __future__ import annotations

import re

import pytest

from tests.support.costs import KIB
from tests.support.growth import Make, Read, check_growth, in_pieces, no_memory_work, repeated

_UNANCHORED = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
"""Quadratic on a string without end: it is tried from each of its quotes."""


def copied_once_for_each_piece(data: bytes) -> bytes:
    buffer = b""
    for piece in in_pieces(data, 16):
        buffer = buffer + piece
    return buffer


@pytest.mark.parametrize(
    ("read", "make"),
    [
        (lambda data: _UNANCHORED.sub(b"", data), repeated(b'"', b'\\"', b"")),
        (copied_once_for_each_piece, repeated(b"", b"a", b"")),
        (lambda data: [data.count(b"a") for _ in data[::64]], repeated(b"", b"b", b"")),
    ],
    ids=["expression", "copies", "counts"],
)
def test_what_costs_more_than_its_length_is_found(read: Read, make: Make) -> None:
    with no_memory_work(), pytest.raises(AssertionError, match="it costs more than its length"):
        check_growth(read, make, 256 * KIB)


def test_what_the_interpreter_has_to_stop_is_found() -> None:
    def deeper(left: bytes) -> object:
        return left and deeper(left[1:])

    with pytest.raises(AssertionError, match="the interpreter's limit judges"):
        check_growth(deeper, repeated(b"", b"a", b""), 64 * KIB)

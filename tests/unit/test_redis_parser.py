"""What Redis answers, in segments of any length, and what is no answer of its."""

from __future__ import annotations

import itertools
import socket
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import InvalidResponse, ResponseError

from taskd.buses.redis.link import make_connection
from taskd.buses.redis.parser import MAX_LINE, MAX_STRING, BoundedParser
from taskd.buses.redis.target import RedisTarget

_ANSWERS = (
    b"+OK\r\n:42\r\n$5\r\na\r\nbc\r\n$-1\r\n*-1\r\n*2\r\n$1\r\na\r\n*1\r\n:1\r\n$0\r\n\r\n+a\nb\r\n"
)
_READ = [b"OK", 42, b"a\r\nbc", None, None, [b"a", [1]], b"", b"a\nb"]


class Wire:
    """A socket that gives what it has, piece by piece."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = iter(pieces)

    def recv(self, _most: int) -> bytes:
        return next(self._pieces, b"")

    def settimeout(self, _seconds: float) -> None:
        pass


def connected(wire: object) -> Any:  # noqa: ANN401 - redis-py's connection, which has no types
    connection: Any = make_connection(RedisTarget(host="a"))
    connection._sock = wire
    connection._parser.on_connect(connection)
    assert isinstance(connection._parser, BoundedParser)
    return connection


def read(connection: Any) -> object:  # noqa: ANN401 - as above
    return connection._parser.read_response(disable_decoding=True)


@given(st.sets(st.integers(0, len(_ANSWERS))))
def test_answers_are_the_same_however_they_arrive(cuts: set[int]) -> None:
    edges = sorted({0, *cuts, len(_ANSWERS)})
    connection = connected(Wire(*(_ANSWERS[a:b] for a, b in itertools.pairwise(edges))))
    assert [read(connection) for _ in _READ] == _READ


def test_an_error_is_read_as_one() -> None:
    answer = read(connected(Wire(b"-NOPERM no\r", b"\n")))
    assert isinstance(answer, ResponseError)
    assert "no" in str(answer)


@pytest.mark.parametrize(
    "pieces",
    [
        [b"-" + b"x" * MAX_LINE + b"\r\n"],
        [b"+", *[b"x" * 1000] * 100],
        [b"$%d\r\n" % (MAX_STRING + 1)],
        [b"*1\r\n" * 100],
        [b"*9\r\n" * 100_000],
    ],
    ids=["line", "line without end", "string", "lists", "many lists"],
)
def test_what_is_larger_than_any_answer_is_refused(pieces: list[bytes]) -> None:
    with pytest.raises(InvalidResponse):
        read(connected(Wire(*pieces)))


def test_a_string_as_long_as_it_may_be_is_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        text = b"x" * MAX_STRING
        sender = threading.Thread(
            target=theirs.sendall, args=(b"$%d\r\n%s\r\n" % (MAX_STRING, text),)
        )
        sender.start()
        assert read(connected(ours)) == text
        sender.join()

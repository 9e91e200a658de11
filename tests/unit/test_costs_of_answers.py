"""No answer costs more than its length: a receiver's here, the daemon's at its clients'.

What reads a part of one has a line in `READERS`.
"""

from __future__ import annotations

import io
from http.client import HTTPMessage, HTTPResponse
from typing import Any

import pytest

from taskd.cli.boundary import plain
from taskd.cli.task_text import live_frames
from taskd.client import Client, _Answer, _taken
from taskd.delivery.egress import Egress
from taskd.delivery.progress import Response
from taskd.delivery.transport import parse_target
from taskd.delivery.transport.parsing import MAX_HEAD, ResponseReader
from taskd.delivery.transport.tunnel import LONGEST_ANSWER, Answer
from taskd.delivery.verdict import judge, parse_retry_after
from taskd.errors import RequestRefused
from tests.support.costs import (
    BARE,
    IN_BODY,
    KIB,
    MIB,
    OF_JSON,
    OF_STREAMS,
    Reader,
    Segments,
    check_costs,
    text,
)
from tests.support.growth import Read, in_pieces

_OK = b"HTTP/1.1 200 OK\r\n"
_BROKEN = _OK + b"no colon\r\n"
_ANSWERS = (
    *(
        (b"", b""),
        (b"HTTP/1.1 200 ", b"\r\n\r\n"),
        (_OK, b"\r\n\r\n"),
        (_OK + b"a", b": 1\r\n\r\n"),
    ),
    *((_OK + b"Retry-After: ", b"\r\n\r\n"), (_OK + b"Content-Length: ", b"\r\n\r\n")),
    *((_OK + b"Content-Length: 65536\r\n\r\n", b""), (_OK + b"\r\n", b"")),
    *((_OK + b"Transfer-Encoding: chunked\r\n\r\n", b""), (b"HTTP/1.1 100 \r\n\r\n", b"")),
    (_OK + b"Transfer-Encoding: chunked\r\n\r\n1;", b""),
    *((_BROKEN, b""), (_BROKEN + b"Retry-After: ", b"\r\n\r\n"), (_BROKEN + b"\r\n", b"")),
    (_OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\na", b"\r\n\r\n"),
)


def tunnelled(size: int) -> Read:
    def read(data: bytes) -> None:
        answer = Answer()
        for piece in in_pieces(data, size):
            answer.feed(piece)

    return read


def response(size: int) -> Read:
    def read(data: bytes) -> None:
        reader = ResponseReader()
        reader.begin(MAX_HEAD)
        for piece in in_pieces(data, size):
            reader.feed(piece)
            if reader.complete:
                break
        else:
            reader.end_of_stream()
        judge(reader.response(), 0)

    return read


def target(url: str) -> object:
    return parse_target.__wrapped__(url)


def egress_of(network: str) -> None:
    Egress().check(network)


# Of the daemon, to its clients.


class _Socket:
    """What `http.client` reads from."""

    def __init__(self, data: bytes, size: int) -> None:
        self._raw = _Raw(Segments(data, size))

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self._raw)


class _Raw(io.RawIOBase):
    def __init__(self, segments: Segments) -> None:
        self._segments = segments

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - as it is declared there
        piece = self._segments.recv(len(buffer))[: len(buffer)]
        buffer[: len(piece)] = piece
        return len(piece)


def answer_of_daemon(data: bytes) -> None:
    client = Client("http://a", "k", "secret-of-the-app")
    client._skew(401, data.decode("latin-1"), "timestamps: ")
    _taken(RequestRefused(1, "", []), data.decode("latin-1"))


def answer_to_client(data: bytes) -> None:
    Client("http://a")._data(_Answer(200, HTTPMessage(), data))


def http_client(size: int) -> Read:
    def read(data: bytes) -> None:
        sock: Any = _Socket(data, size)
        with HTTPResponse(sock) as answer:
            answer.begin()
            answer.read()

    return read


_HTTP = b"HTTP/1.0 200 OK\r\n"
_HTTPS = (
    *((b"", b""), (_HTTP, b"\r\n\r\n"), (_HTTP + b"\r\n", b""), (_HTTP + b"\r\n[", b"]")),
    (_HTTP + b"Transfer-Encoding: chunked\r\n\r\n", b""),
)

READERS = {
    "a proxy's answer": Reader(tunnelled(4096), LONGEST_ANSWER, _ANSWERS[:4], units=OF_STREAMS),
    "a proxy's answer in segments": Reader(
        tunnelled(1), LONGEST_ANSWER, _ANSWERS[:3], units=OF_STREAMS
    ),
    "an answer": Reader(response(16 * KIB), 512 * KIB, _ANSWERS),
    "an answer in segments": Reader(response(1), MAX_HEAD, _ANSWERS[::2], units=OF_STREAMS),
    "an answer's meaning": Reader(lambda data: judge(Response(200, data, None), 0), 64 * KIB),
    "Retry-After": Reader(
        text(lambda value: parse_retry_after(value, 0)), 64 * KIB, (*BARE, (b"Sun, 06 ", b""))
    ),
    "a linkUrl": Reader(text(target), 2 * KIB, (*BARE, (b"http://", b"/"), (b"http://[", b"]"))),
    "an address": Reader(text(egress_of), 64 * KIB, (*BARE, (b"::", b"1"))),
    "the daemon's answer": Reader(
        answer_to_client,
        MIB,
        (*BARE, *IN_BODY),
        units=OF_JSON,
    ),
    "the daemon's date": Reader(answer_of_daemon, 64 * KIB, (*BARE, (b"Sun, 06 ", b""))),
    "the daemon's HTTP": Reader(http_client(64 * KIB), MIB, _HTTPS),
    "the daemon's HTTP in segments": Reader(
        http_client(1), 64 * KIB, _HTTPS[1::2], units=OF_STREAMS
    ),
    "a stack that is shown": Reader(
        text(lambda value: live_frames({"trace_list": value})), 256 * KIB, units=OF_JSON
    ),
    "what is shown": Reader(text(plain), 256 * KIB),
}


@pytest.mark.parametrize("name", READERS)
def test_nothing_costs_more_than_its_length(name: str) -> None:
    check_costs(READERS[name])

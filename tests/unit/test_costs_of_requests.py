"""No request costs more than its length, whatever its bytes.

What reads a part of one has a line in `READERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import trio

from taskd.api import authentication
from taskd.api.endpoints.batches import Batches
from taskd.api.endpoints.tasks import parse_content, parse_task
from taskd.api.http import router
from taskd.api.http.body_framing import Chunked, Counted, Framing
from taskd.api.http.body_intake import Buffered, read_body
from taskd.api.http.heads import MAX_HEAD as MAX_HEAD_OF_REQUEST
from taskd.api.http.heads import HeadGatherer, read_head
from taskd.api.wire.body import read_object
from taskd.api.wire.envelope import Answer, InvalidFields, shown
from taskd.api.wire.fields import Fields
from taskd.api.wire.query import parse_query
from taskd.api.wire.strict_json import Fraction, parse_object
from taskd.api.wire.timestamps import parse_delay, parse_runtime, parse_wall_seconds
from taskd.clock import SystemClock
from taskd.domain.model import App
from tests.support.api import config_of
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
from tests.support.growth import Read, in_pieces, numbered, repeated


def loaded(read: Callable[[Any], object]) -> Read:
    """A reader of what a request's JSON held."""
    return lambda data: read(parse_object(data))


_ZONE = ZoneInfo("UTC")
_APP = App(
    id=1,
    app_key="key",
    secret_key="secret",
    name="name",
    link_url="http://a/",
    step=0,
    retry_total=0,
    remark="",
    created_at=0,
)
_TASK = b'{"taskNo":"a","name":"a","timeout":1,"content":'
_IN_TASK = ((_TASK + b"[", b"1]}"), (_TASK + b'"', b'"}'), (_TASK + b'1,"runtime":"', b'"}'))
_IN_BATCH = tuple((b'{"tasks":[' + before, after + b"]}") for before, after in (*BARE, *_IN_TASK))


def create(data: bytes) -> object:
    return parse_task(read_object(data), app_id=1, now=0, zone=_ZONE)


def batch(data: bytes) -> object:
    nothing: Any = None  # the service is not asked
    batches = Batches(nothing, config_of(), SystemClock(), nothing)
    return batches._parse(data, _APP, float("inf"))


def unknown_fields(values: dict[str, object]) -> object:
    fields = Fields(values, frozenset({"coroutine_id", "taskId", "taskNo"}))
    fields.integer("a", 1, 2)
    assert len(InvalidFields(fields.errors).answer.encode()) < 10_000
    return shown(values.get("a"))


def headers(value: str) -> None:
    for at in range(5):
        good = ["k", "n" * 16, "1626418779", "A" * 86 + "==", "0" * 64]
        good[at] = value
        try:
            authentication._check_form(authentication._Signed(*good), opaque=at != 4)
        except Exception:  # noqa: BLE001 - as it should
            continue
    parse_wall_seconds(value, _ZONE)


def request_line(data: bytes) -> object:
    router.request_id({b"x-request-id": data})
    return router._JSON.fullmatch(data)


def head_in_pieces(size: int) -> Read:
    def read(data: bytes) -> None:
        gatherer = HeadGatherer()
        for piece in in_pieces(data, size):
            if gatherer.feed(piece) is not None:
                return

    return read


def body_in_pieces(framing: Callable[[int], Framing], size: int) -> Read:
    async def read(data: bytes) -> None:
        receive = Segments(data, size).receive
        await read_body(receive, framing(len(data)), b"", max_body=MIB, buffered=Buffered())

    return lambda data: trio.run(read, data)


_LINE = b"POST / HTTP/1.1\r\n"
_HEADS = (
    *((b"", b""), (b"POST /", b" HTTP/1.1\r\n\r\n"), (_LINE, b"\r\n\r\n")),
    *((_LINE + b"a", b": 1\r\n\r\n"), (_LINE + b"a: a", b"a\r\n\r\n")),
    *((_LINE + b"Host: ", b"\r\n\r\n"), (_LINE + b"Host: a\r\nConnection: ", b"\r\n\r\n")),
    *((_LINE + b"Content-Length: ", b"\r\n\r\n"), (b"POST http://", b" HTTP/1.1\r\n\r\n")),
)

READERS = {
    "a body": Reader(
        parse_object,
        MIB,
        (*BARE, *IN_BODY),
        (
            numbered(b"{", '"#":0,', b'"0":1}'),
            numbered(b'{"a":{', '"#":0,', b'"0":1}}'),
            repeated(b"{", b'"a":1,', b'"a":1}'),
            repeated(b'{"a":[', b'{"b":0,"b":0},', b"0]}"),
            repeated(b'{"a":[', b"[" * 60 + b"]" * 60 + b",", b"0]}"),
            repeated(b'{"a":[', b"[" * 250 + b"]" * 250 + b",", b"0]}"),
            lambda size: b'{"a":' + b"[" * (size // 2) + b"]" * (size // 2) + b"}",
        ),
        units=OF_JSON,
    ),
    "a batch": Reader(
        batch,
        256 * KIB,
        _IN_BATCH,
        (repeated(b'{"tasks":[', b'{"a":1},', b"{}]}"),),
        units=OF_JSON,
    ),
    "a task": Reader(create, 256 * KIB, _IN_TASK, units=OF_JSON),
    "a content string": Reader(
        text(parse_content),
        MIB,
        (*BARE, (b"[" * 65 + b'"', b""), (b'"', b'"'), (b"[", b"1]")),
        units=OF_JSON,
    ),
    "fields": Reader(
        loaded(unknown_fields),
        256 * KIB,
        ((b'{"a":"', b'"}'),),
        (numbered(b"{", '"#":0,', b'"a":1}'),),
        units=OF_JSON,
    ),
    "a fraction": Reader(
        text(lambda number: parse_content(Fraction(number))),
        256 * KIB,
        ((b"1.", b"1"), (b"0.", b"1"), (b"1e", b"1"), (b"", b".5"), (b"1e-", b"1")),
        units=OF_JSON,
    ),
    "a runtime": Reader(text(lambda value: parse_runtime(value, _ZONE)), 256 * KIB),
    "a delay": Reader(text(lambda value: parse_delay(value, 0)), 256 * KIB),
    "a runtime's fraction": Reader(
        text(lambda value: parse_runtime(Fraction(value), _ZONE)), 256 * KIB, ((b"1", b".5"),)
    ),
    "a query": Reader(
        lambda data: parse_query(data, numbers=frozenset({"a"})),
        256 * KIB,
        (*BARE, (b"a=", b""), (b"a=1&b=", b"%")),
        (numbered(b"", "a#=%41&", b"a=1"),),
    ),
    "the signing headers": Reader(text(headers), 16 * KIB),
    "a request's line": Reader(
        request_line, 16 * KIB, (*BARE, (b"application/json", b"x"), (b"http://", b"/"))
    ),
    "a head": Reader(read_head, 64 * KIB, _HEADS),
    "a head in segments": Reader(head_in_pieces(1), MAX_HEAD_OF_REQUEST, _HEADS, units=OF_STREAMS),
    "a head in long segments": Reader(head_in_pieces(64), MAX_HEAD_OF_REQUEST, _HEADS),
    "a body in segments": Reader(body_in_pieces(Counted, 64), MIB, units=OF_STREAMS),
    "a body in chunks": Reader(
        body_in_pieces(lambda _: Chunked(), 16 * KIB),
        256 * KIB,
        (*BARE, (b"1;", b""), (b'1;a="', b""), (b"0\r\n", b"\r\n")),
        (
            repeated(b"", b"1\r\na\r\n", b"0\r\n\r\n"),
            repeated(b"", b"0001;a=b\r\na\r\n", b"0\r\n\r\n"),
        ),
    ),
    "a body in chunks, in segments": Reader(
        body_in_pieces(lambda _: Chunked(), 1),
        64 * KIB,
        (*BARE, (b"1;", b""), (b"0\r\n", b"\r\n")),
        units=OF_STREAMS,
    ),
    "an answer": Reader(
        lambda data: Answer(200, 0, data.decode(errors="surrogateescape"), []).encode(), MIB
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_nothing_costs_more_than_its_length(name: str) -> None:
    check_costs(READERS[name])

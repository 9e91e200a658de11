"""No input costs more than its length: every parser of what comes from outside, at the
largest input that it is given, against a straight line.

A new parser is a line in `READERS`: what reads it, how long its input may be, and what
comes before and after the bytes that are repeated. What comes in segments is read in
segments too.
"""

from __future__ import annotations

import io
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPMessage, HTTPResponse
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import trio
import trio_mysql.connections  # type: ignore[import-untyped] # it has no types
from redis.connection import Connection as RedisConnection
from trio_mysql import err

from taskd import transfer
from taskd.api import auth, front
from taskd.api.batches import Batches
from taskd.api.bodies import Chunked, Counted, Framing
from taskd.api.body import read_object
from taskd.api.envelope import Answer, InvalidFields, shown
from taskd.api.fields import Fields
from taskd.api.heads import MAX_HEAD as MAX_HEAD_OF_REQUEST
from taskd.api.heads import HeadGatherer, read_head
from taskd.api.intake import Buffered, read_body
from taskd.api.jsontext import Fraction, parse_object
from taskd.api.moments import parse_delay, parse_runtime, parse_wall_seconds
from taskd.api.query import parse_query
from taskd.api.tasks import parse_content, parse_task
from taskd.buses.redis_link import make_connection
from taskd.buses.redis_target import RedisTarget, parse_redis_url
from taskd.buses.signal_wire import MAX_MESSAGE, decode
from taskd.cli.boundary import plain
from taskd.cli.bulk_lines import LineReader
from taskd.cli.show import live_frames
from taskd.cli.spoken import _JSON_IN_FILE
from taskd.cli.tasks import _content, _number_or_text
from taskd.client import Client, _Answer, _taken, normalise_url
from taskd.clock import SystemClock
from taskd.config import SECTIONS, load_config, load_toml, settings_of, without_password
from taskd.egress import Egress
from taskd.errors import RequestRefused
from taskd.model import App
from taskd.nesting import load_json
from taskd.progress import Response
from taskd.queues import nsq_lookup, nsq_wire
from taskd.queues.nsq_connection import _negotiated
from taskd.queues.nsq_target import parse_nsq_url
from taskd.stores import mysql_errors, mysql_schema
from taskd.stores.mysql_target import parse_mysql_url
from taskd.texts import lines_of, unmarked
from taskd.transport import parse_target
from taskd.transport.parsing import MAX_HEAD, ResponseReader
from taskd.uplink import Kind, Splitter, Uplink, frame, split_address
from taskd.verdict import judge, parse_retry_after
from tests.support.api import config_of
from tests.support.growth import (
    Make,
    Read,
    check_growth,
    in_pieces,
    no_collections,
    numbered,
    repeated,
)

KIB = 1024
MIB = 1024 * KIB

_OF_JSON = (
    *(b'"', b"\\", b'\\"', b"[", b"]", b"[],", b'{"a":', b",", b":", b"-", b" ", b"\n", b"0", b"1"),
    *(b"1.5,", b"1e9,", b"1,", b"a", b"\xff", "名".encode(), b"\\u0000", b"\\ud800", b"\\u0061"),
)
_OF_ALL = (
    *_OF_JSON,
    *(b"'", b";", b"=", b"&", b"a=1&", b"%", b"%41", b"+", b".", b"a.", b"/", b"@", b"#", b"?"),
    *(b"\t", b"\r\n", b"\0", b"a ", b"a: a\r\n", b"1\r\na\r\n", b"$1\r\na\r\n", b"*1\r\n"),
)
"""What is repeated, wherever a reader's shapes let it stand."""

_OF_STREAMS = (
    *(b"a", b" ", b"\t", b":", b",", b";", b"0", b"\n", b"\r\n", b"a ", b"a: a\r\n", b"\xff"),
    *(b"1\r\na\r\n", b"$1\r\na\r\n", b"*1\r\n", b"+a\r\n", b"[", b'"'),
)
"""The same, for what is read byte by byte."""

Around = tuple[bytes, bytes]
_BARE: tuple[Around, ...] = ((b"", b""),)


@dataclass(frozen=True)
class Reader:
    """A parser of what comes from outside."""

    read: Read
    largest: int
    around: tuple[Around, ...] = _BARE
    """What comes before and after what is repeated."""
    more: tuple[Make, ...] = ()
    """Shapes of its own."""
    units: tuple[bytes, ...] = _OF_ALL
    """What is repeated."""

    def shapes(self) -> Iterator[Make]:
        for before, after in self.around:
            for unit in self.units:
                yield repeated(before, unit, after)
        yield from self.more


def text(read: Callable[[str], object]) -> Read:
    """A reader of what was decoded elsewhere."""
    return lambda data: read(data.decode("latin-1"))


def loaded(read: Callable[[Any], object]) -> Read:
    """A reader of what a request's JSON held."""
    return lambda data: read(parse_object(data))


# Requests.

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
_IN_BODY = (
    *((b'{"a":', b"}"), (b'{"a":"', b'"}'), (b'{"a":"', b""), (b'{"a":[', b"1]}")),
    *((b'{"a":' + b"[" * 65 + b'"', b""), (b'{"a":"\\u0000","b":[', b"1]}")),
)
_TASK = b'{"taskNo":"a","name":"a","timeout":1,"content":'
_IN_TASK = ((_TASK + b"[", b"1]}"), (_TASK + b'"', b'"}'), (_TASK + b'1,"runtime":"', b'"}'))
_IN_BATCH = tuple((b'{"tasks":[' + before, after + b"]}") for before, after in (*_BARE, *_IN_TASK))


def create(data: bytes) -> object:
    return parse_task(read_object(data), app_id=1, now=0, zone=_ZONE)


def batch(data: bytes) -> object:
    nothing: Any = None  # neither the service nor the authenticator is asked
    batches = Batches(nothing, nothing, config_of(), SystemClock(), nothing)
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
            auth._check_form(auth._Signed(*good), opaque=at != 4)
        except Exception:  # noqa: BLE001 - as it should
            continue
    parse_wall_seconds(value, _ZONE)


def request_line(data: bytes) -> object:
    front.request_id({b"x-request-id": data})
    return front._JSON.fullmatch(data)


def head_in_pieces(size: int) -> Read:
    def read(data: bytes) -> None:
        gatherer = HeadGatherer()
        for piece in in_pieces(data, size):
            if gatherer.feed(piece) is not None:
                return

    return read


class _Segments:
    """A stream of short segments, to whoever reads from it."""

    def __init__(self, data: bytes, size: int) -> None:
        self._pieces = in_pieces(data, size)

    async def receive(self) -> bytes:
        return next(self._pieces, b"")

    async def receive_some(self, _most: int) -> bytes:
        return next(self._pieces, b"")

    def recv(self, _most: int) -> bytes:
        return next(self._pieces, b"")


def body_in_pieces(framing: Callable[[int], Framing], size: int) -> Read:
    async def read(data: bytes) -> None:
        receive = _Segments(data, size).receive
        await read_body(receive, framing(len(data)), b"", max_body=MIB, buffered=Buffered())

    return lambda data: trio.run(read, data)


_LINE = b"POST / HTTP/1.1\r\n"
_HEADS = (
    *((b"", b""), (b"POST /", b" HTTP/1.1\r\n\r\n"), (_LINE, b"\r\n\r\n")),
    *((_LINE + b"a", b": 1\r\n\r\n"), (_LINE + b"a: a", b"a\r\n\r\n")),
    *((_LINE + b"Host: ", b"\r\n\r\n"), (_LINE + b"Host: a\r\nConnection: ", b"\r\n\r\n")),
    *((_LINE + b"Content-Length: ", b"\r\n\r\n"), (b"POST http://", b" HTTP/1.1\r\n\r\n")),
)


REQUESTS = {
    "a body": Reader(
        parse_object,
        MIB,
        (*_BARE, *_IN_BODY),
        (
            numbered(b"{", '"#":0,', b'"0":1}'),
            numbered(b'{"a":{', '"#":0,', b'"0":1}}'),
            repeated(b"{", b'"a":1,', b'"a":1}'),
            repeated(b'{"a":[', b'{"b":0,"b":0},', b"0]}"),
            repeated(b'{"a":[', b"[" * 60 + b"]" * 60 + b",", b"0]}"),
            repeated(b'{"a":[', b"[" * 250 + b"]" * 250 + b",", b"0]}"),
            lambda size: b'{"a":' + b"[" * (size // 2) + b"]" * (size // 2) + b"}",
        ),
        units=_OF_JSON,
    ),
    "a batch": Reader(
        batch,
        256 * KIB,
        _IN_BATCH,
        (repeated(b'{"tasks":[', b'{"a":1},', b"{}]}"),),
        units=_OF_JSON,
    ),
    "a task": Reader(create, 256 * KIB, _IN_TASK, units=_OF_JSON),
    "a content string": Reader(
        text(parse_content),
        MIB,
        (*_BARE, (b"[" * 65 + b'"', b""), (b'"', b'"'), (b"[", b"1]")),
        units=_OF_JSON,
    ),
    "fields": Reader(
        loaded(unknown_fields),
        256 * KIB,
        ((b'{"a":"', b'"}'),),
        (numbered(b"{", '"#":0,', b'"a":1}'),),
        units=_OF_JSON,
    ),
    "a fraction": Reader(
        text(lambda number: parse_content(Fraction(number))),
        256 * KIB,
        ((b"1.", b"1"), (b"0.", b"1"), (b"1e", b"1"), (b"", b".5"), (b"1e-", b"1")),
        units=_OF_JSON,
    ),
    "a runtime": Reader(text(lambda value: parse_runtime(value, _ZONE)), 256 * KIB),
    "a delay": Reader(text(lambda value: parse_delay(value, 0)), 256 * KIB),
    "a runtime's fraction": Reader(
        text(lambda value: parse_runtime(Fraction(value), _ZONE)), 256 * KIB, ((b"1", b".5"),)
    ),
    "a query": Reader(
        lambda data: parse_query(data, numbers=frozenset({"a"})),
        256 * KIB,
        (*_BARE, (b"a=", b""), (b"a=1&b=", b"%")),
        (numbered(b"", "a#=%41&", b"a=1"),),
    ),
    "the signing headers": Reader(text(headers), 16 * KIB),
    "a request's line": Reader(
        request_line, 16 * KIB, (*_BARE, (b"application/json", b"x"), (b"http://", b"/"))
    ),
    "a head": Reader(read_head, 64 * KIB, _HEADS),
    "a head in segments": Reader(head_in_pieces(1), MAX_HEAD_OF_REQUEST, _HEADS, units=_OF_STREAMS),
    "a head in long segments": Reader(head_in_pieces(64), MAX_HEAD_OF_REQUEST, _HEADS),
    "a body in segments": Reader(body_in_pieces(Counted, 64), MIB, units=_OF_STREAMS),
    "a body in chunks": Reader(
        body_in_pieces(lambda _: Chunked(), 16 * KIB),
        256 * KIB,
        (*_BARE, (b"1;", b""), (b'1;a="', b""), (b"0\r\n", b"\r\n")),
        (
            repeated(b"", b"1\r\na\r\n", b"0\r\n\r\n"),
            repeated(b"", b"0001;a=b\r\na\r\n", b"0\r\n\r\n"),
        ),
    ),
    "a body in chunks, in segments": Reader(
        body_in_pieces(lambda _: Chunked(), 1),
        64 * KIB,
        (*_BARE, (b"1;", b""), (b"0\r\n", b"\r\n")),
        units=_OF_STREAMS,
    ),
    "an answer": Reader(
        lambda data: Answer(200, 0, data.decode(errors="surrogateescape"), []).encode(), MIB
    ),
}


# Answers of receivers, and where they are.

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


ANSWERS = {
    "an answer": Reader(response(16 * KIB), 512 * KIB, _ANSWERS),
    "an answer in segments": Reader(response(1), MAX_HEAD, _ANSWERS[::2], units=_OF_STREAMS),
    "an answer's meaning": Reader(lambda data: judge(Response(200, data, None), 0), 64 * KIB),
    "Retry-After": Reader(
        text(lambda value: parse_retry_after(value, 0)), 64 * KIB, (*_BARE, (b"Sun, 06 ", b""))
    ),
    "a linkUrl": Reader(text(target), 2 * KIB, (*_BARE, (b"http://", b"/"), (b"http://[", b"]"))),
    "an address": Reader(text(egress_of), 64 * KIB, (*_BARE, (b"::", b"1"))),
}


# What an operator or a client's user gives.

_NSQ, _REDIS, _MYSQL = b"nsq://a", b"redis://a", b"mysql://u@a/d"


def every_kind(value: str) -> None:
    for section in SECTIONS:
        for setting in settings_of(section).values():
            try:
                setting.kind.parse(setting.kind.from_text(value), Path("/"))
            except ValueError:
                continue


def environment(name: str) -> None:
    load_config(None, {"TASKD_" + name.replace("\0", "").upper(): "1"})


def lines(size: int) -> Read:
    def read(data: bytes) -> None:
        for _ in LineReader().batches(in_pieces(data, size)):
            pass

    return read


def exported(line: str) -> None:
    for entry in transfer._entries(iter([(1, line)])):
        assert entry.number


_IMPORTED = b'{"task":{"content":"","attempts":['

_FORMS = (*_BARE, (b"[log]\n", b""), (b"[log]\nformat", b"="), (b"[log]\n", b"\nformat='json'"))

GIVEN = {
    "TOML": Reader(
        lambda data: load_toml(data.decode(errors="replace")),
        64 * KIB,
        (
            *(*_BARE, (b"x=", b""), (b'x="', b'"'), (b'x="""', b'"""'), (b"x='''", b"'''")),
            *((b"[", b"]"), (b"x=[", b"]"), (b"x={", b"}"), (b'x="""', b""), (b"#", b"")),
        ),
        (
            repeated(b"", b'"a".', b"a=1"),
            repeated(b"", b"a . ", b"a=1"),
            repeated(b"x={", b"a.", b"a=1}"),
            repeated(b"", b"[[a]]\n", b""),
            repeated(b"", b"a.b.c=1\n", b""),
            numbered(b"", "[a#]\nb.c=1\n", b""),
            numbered(b"[a]\n", "b.c#='''\n'''\n", b""),
        ),
    ),
    "a setting": Reader(
        text(every_kind), 64 * KIB, (*_BARE, (b"sqlite:///", b""), (b"nsq://", b""))
    ),
    "a variable": Reader(
        text(environment),
        64 * KIB,
        (*_BARE, (b"SERVER_", b""), (b"SERVE_", b"_")),
        (
            repeated(b"SERVER", b"_SERVICE_PORT", b"-"),
            repeated(b"SERVER", b"_PORT_1_TCP_PORT", b"-"),
            repeated(b"SERVER", b"_ENV_", b"-"),
        ),
    ),
    "the log's form": Reader(
        text(_JSON_IN_FILE.search), 128 * KIB, _FORMS, (repeated(b"", b"[log]\n", b"format"),)
    ),
    "a text that is piped": Reader(
        lambda data: list(lines_of(io.BytesIO(data))), MIB, units=_OF_STREAMS
    ),
    "chunks that are piped": Reader(
        lambda data: list(unmarked(in_pieces(data))), 64 * KIB, units=_OF_STREAMS
    ),
    "a URL that is shown": Reader(text(without_password), 64 * KIB, (*_BARE, (b"nsq://:", b"@a"))),
    "NSQ's URL": Reader(
        text(parse_nsq_url),
        64 * KIB,
        (
            (_NSQ, b""),
            (b"nsq://", b":"),
            (_NSQ + b"?", b""),
            (_NSQ + b"?topic=", b""),
            (b"nsq://:", b"@a"),
            (_NSQ + b"?lookupd=", b""),
        ),
        (repeated(_NSQ + b"?lookupd=a", b"&lookupd=a", b""), repeated(b"nsq://", b"a-", b"a,")),
    ),
    "Redis' URL": Reader(
        text(parse_redis_url),
        64 * KIB,
        ((_REDIS, b""), (b"redis://:", b"@a"), (_REDIS + b"?", b"")),
    ),
    "MySQL's URL": Reader(
        text(parse_mysql_url),
        64 * KIB,
        ((_MYSQL, b""), (b"mysql://", b"@a/d"), (_MYSQL + b"?", b"")),
    ),
    "the daemon's URL": Reader(text(normalise_url), 64 * KIB, (*_BARE, (b"http://", b"/"))),
    "a content option": Reader(
        text(_content), MIB, (*_BARE, (b'["', b'"]'), (b"[", b"1]")), units=_OF_JSON
    ),
    "a runtime option": Reader(text(_number_or_text), 64 * KIB, (*_BARE, (b"1.", b"1"))),
    "a file of tasks": Reader(lines(64 * KIB), MIB, (*_BARE, *_IN_BODY), units=_OF_JSON),
    "a pipe of tasks": Reader(lines(7), 128 * KIB, ((b'{"a":"', b'"}\n'),), units=_OF_STREAMS),
    "an import": Reader(
        text(exported),
        256 * KIB,
        (*_BARE, *_IN_BODY, (_IMPORTED, b"1]}}"), (b'{"app":{"a":"', b'"}}')),
        units=_OF_JSON,
    ),
}


# Other servers, other processes, and the daemon as its clients see it.


class _Socket:
    """What `http.client` reads from."""

    def __init__(self, data: bytes, size: int) -> None:
        self._raw = _Raw(_Segments(data, size))

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self._raw)


class _Raw(io.RawIOBase):
    def __init__(self, segments: _Segments) -> None:
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


def redis_answer(size: int) -> Read:
    def read(data: bytes) -> None:
        connection: Any = make_connection(RedisTarget(host="a"))
        assert isinstance(connection, RedisConnection)
        stream: Any = _Segments(data, size)
        connection._sock = stream
        connection._parser.on_connect(connection)
        connection._parser.read_response(disable_decoding=True)

    return read


def frames_of_nsqd(size: int) -> Read:
    def read(data: bytes) -> None:
        framer = nsq_wire.Framer()
        for piece in in_pieces(len(data).to_bytes(4, "big") + data, size):
            for each in framer.feed(piece):
                nsq_wire.decode_body(getattr(each, "body", b""))

    return read


def answer_of_nsqd(data: bytes) -> None:
    frame_of_it: Any = type("Frame", (), {"data": data})
    nsq_wire.error_text(frame_of_it)
    nsq_wire.is_fatal(frame_of_it)
    _negotiated(frame_of_it)


def nsqlookupd(data: bytes) -> None:
    _, body = nsq_lookup._take_apart(data)
    for producer in nsq_lookup._producers(load_json(body)):
        nsq_lookup._tombstoned(producer, "taskd")
        nsq_lookup._address(producer)


def mysql_packet(size: int) -> Read:
    async def packet(data: bytes) -> None:
        connection = trio_mysql.connections.Connection.__new__(trio_mysql.connections.Connection)
        connection._rbuf, connection._rbuf_offset, connection._next_seq_id = bytearray(), 0, 0
        connection._result, connection.encoding = None, "utf-8"
        whole = len(data).to_bytes(3, "little") + b"\0" + data
        stream: Any = _Segments(whole, size)
        connection._sock = stream
        try:
            read = await connection._read_packet()
        finally:
            connection._sock = None
        while read._position < len(data):
            read.read_length_coded_string()

    return lambda data: trio.run(packet, data)


def mysql_error(value: str) -> None:
    mysql_errors.translated(err.OperationalError(1205, value), database="d")
    mysql_schema._check_server(value)


def uplink_frames(size: int) -> Read:
    def read(data: bytes) -> None:
        splitter = Splitter()
        for piece in in_pieces(frame(Kind.WAKE, data), size):
            for _, payload in splitter.feed(piece):
                split_address(payload)

    return read


def crew(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Uplink(ours, "a")._handle(Kind.CREW, data)


_HTTP = b"HTTP/1.0 200 OK\r\n"
_PRODUCER = b'{"broadcast_address":"a","tcp_port":1},'
_HTTPS = (
    *((b"", b""), (_HTTP, b"\r\n\r\n"), (_HTTP + b"\r\n", b""), (_HTTP + b"\r\n[", b"]")),
    (_HTTP + b"Transfer-Encoding: chunked\r\n\r\n", b""),
)

OTHERS = {
    "a signal": Reader(decode, MAX_MESSAGE, (*_BARE, *_IN_BODY), units=_OF_JSON),
    "Redis": Reader(
        redis_answer(64 * KIB), MIB, ((b"-", b"\r\n"), (b"*9999\r\n", b""), (b":", b"\r\n"))
    ),
    "Redis in segments": Reader(
        redis_answer(1),
        64 * KIB,
        ((b"-", b"\r\n"), (b"$65536\r\n", b"\r\n"), (b"*9\r\n", b"")),
        units=_OF_STREAMS,
    ),
    "nsqd": Reader(
        frames_of_nsqd(64 * KIB), MIB, ((b"\0\0\0\2" + b"a" * 26, b""), (b"\0\0\0\0", b""))
    ),
    "nsqd in segments": Reader(frames_of_nsqd(16), MIB, ((b"\0\0\0\2" + b"a" * 26, b""),)),
    "nsqd's words": Reader(answer_of_nsqd, MIB, (*_BARE, *_IN_BODY), units=_OF_JSON),
    "nsqlookupd": Reader(
        nsqlookupd,
        MIB,
        _HTTPS,
        (
            repeated(_HTTP + b'\r\n{"producers":[', _PRODUCER, b"1]}"),
            numbered(
                _HTTP + b'\r\n{"producers":[', '{"broadcast_address":"a#","tcp_port":1},', b"1]}"
            ),
        ),
        units=_OF_JSON,
    ),
    "MySQL": Reader(mysql_packet(64 * KIB), MIB, ((b"\1", b""), (b"\xff\1\1#", b""))),
    "MySQL in segments": Reader(mysql_packet(16), 256 * KIB, ((b"\xfd\0\0\4", b""),)),
    "MySQL's words": Reader(text(mysql_error), MIB),
    "the supervisor": Reader(uplink_frames(64 * KIB), MIB),
    "the supervisor in segments": Reader(uplink_frames(16), MIB, units=_OF_STREAMS),
    "a crew": Reader(crew, MIB),
    "the daemon's answer": Reader(
        answer_to_client,
        MIB,
        (*_BARE, *_IN_BODY),
        units=_OF_JSON,
    ),
    "the daemon's date": Reader(answer_of_daemon, 64 * KIB, (*_BARE, (b"Sun, 06 ", b""))),
    "the daemon's HTTP": Reader(http_client(64 * KIB), MIB, _HTTPS),
    "the daemon's HTTP in segments": Reader(
        http_client(1), 64 * KIB, _HTTPS[1::2], units=_OF_STREAMS
    ),
    "a stack that is shown": Reader(
        text(lambda value: live_frames({"trace_list": value})), 256 * KIB, units=_OF_JSON
    ),
    "what is shown": Reader(text(plain), 256 * KIB),
}

READERS = {
    f"{group}: {name}": reader
    for group, readers in (
        ("requests", REQUESTS),
        ("answers", ANSWERS),
        ("given", GIVEN),
        ("others", OTHERS),
    )
    for name, reader in readers.items()
}


@pytest.mark.parametrize("name", READERS)
def test_nothing_costs_more_than_its_length(name: str) -> None:
    reader = READERS[name]
    with no_collections():
        for make in reader.shapes():
            check_growth(reader.read, make, reader.largest)


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
    with no_collections(), pytest.raises(AssertionError, match="it costs more than its length"):
        check_growth(read, make, 256 * KIB)


def test_what_the_interpreter_has_to_stop_is_found() -> None:
    def deeper(left: bytes) -> object:
        return left and deeper(left[1:])

    with pytest.raises(AssertionError, match="the interpreter's limit judges"):
        check_growth(deeper, repeated(b"", b"a", b""), 64 * KIB)

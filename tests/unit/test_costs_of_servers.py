"""Nothing that another server or process says costs more than its length.

What reads it has a line in `READERS`.
"""

from __future__ import annotations

import socket
from typing import Any

import pytest
import trio
import trio_mysql.connections  # type: ignore[import-untyped] # it has no types
from redis.connection import Connection as RedisConnection
from trio_mysql import err

from taskd.buses.redis.link import make_connection
from taskd.buses.redis.target import RedisTarget
from taskd.buses.signal_wire import MAX_MESSAGE, decode
from taskd.link import Kind, Splitter, Uplink, frame, split_address
from taskd.queues.nsq import lookup, wire
from taskd.queues.nsq.connection import _negotiated
from taskd.runtime.json_depth import load_json
from taskd.stores.mysql import errors, schema
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


def redis_answer(size: int) -> Read:
    def read(data: bytes) -> None:
        connection: Any = make_connection(RedisTarget(host="a"))
        assert isinstance(connection, RedisConnection)
        stream: Any = Segments(data, size)
        connection._sock = stream
        connection._parser.on_connect(connection)
        connection._parser.read_response(disable_decoding=True)

    return read


def frames_of_nsqd(size: int) -> Read:
    def read(data: bytes) -> None:
        framer = wire.Framer()
        for piece in in_pieces(len(data).to_bytes(4, "big") + data, size):
            for each in framer.feed(piece):
                wire.decode_body(getattr(each, "body", b""))

    return read


def answer_of_nsqd(data: bytes) -> None:
    frame_of_it: Any = type("Frame", (), {"data": data})
    wire.error_text(frame_of_it)
    wire.is_fatal(frame_of_it)
    _negotiated(frame_of_it)


def nsqlookupd(data: bytes) -> None:
    _, body = lookup._take_apart(data)
    for producer in lookup._producers(load_json(body)):
        lookup._tombstoned(producer, "taskd")
        lookup._address(producer)


def mysql_packet(size: int) -> Read:
    async def packet(data: bytes) -> None:
        connection = trio_mysql.connections.Connection.__new__(trio_mysql.connections.Connection)
        connection._rbuf, connection._rbuf_offset, connection._next_seq_id = bytearray(), 0, 0
        connection._result, connection.encoding = None, "utf-8"
        whole = len(data).to_bytes(3, "little") + b"\0" + data
        stream: Any = Segments(whole, size)
        connection._sock = stream
        try:
            read = await connection._read_packet()
        finally:
            connection._sock = None
        while read._position < len(data):
            read.read_length_coded_string()

    return lambda data: trio.run(packet, data)


def mysql_error(value: str) -> None:
    errors.translated(err.OperationalError(1205, value), database="d")
    schema._check_server(value)


def uplink_frames(size: int) -> Read:
    def read(data: bytes) -> None:
        splitter = Splitter()
        for piece in in_pieces(frame(Kind.WAKE, data), size):
            for _, payload in splitter.feed(piece):
                split_address(payload)

    return read


def members(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Uplink(ours, "a")._handle(Kind.MEMBERS, data)


_HTTP = b"HTTP/1.0 200 OK\r\n"
_PRODUCER = b'{"broadcast_address":"a","tcp_port":1},'
_HTTPS = (
    *((b"", b""), (_HTTP, b"\r\n\r\n"), (_HTTP + b"\r\n", b""), (_HTTP + b"\r\n[", b"]")),
    (_HTTP + b"Transfer-Encoding: chunked\r\n\r\n", b""),
)

READERS = {
    "a signal": Reader(decode, MAX_MESSAGE, (*BARE, *IN_BODY), units=OF_JSON),
    "Redis": Reader(
        redis_answer(64 * KIB), MIB, ((b"-", b"\r\n"), (b"*9999\r\n", b""), (b":", b"\r\n"))
    ),
    "Redis in segments": Reader(
        redis_answer(1),
        64 * KIB,
        ((b"-", b"\r\n"), (b"$65536\r\n", b"\r\n"), (b"*9\r\n", b"")),
        units=OF_STREAMS,
    ),
    "nsqd": Reader(
        frames_of_nsqd(64 * KIB), MIB, ((b"\0\0\0\2" + b"a" * 26, b""), (b"\0\0\0\0", b""))
    ),
    "nsqd in segments": Reader(frames_of_nsqd(16), MIB, ((b"\0\0\0\2" + b"a" * 26, b""),)),
    "nsqd's words": Reader(answer_of_nsqd, MIB, (*BARE, *IN_BODY), units=OF_JSON),
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
        units=OF_JSON,
    ),
    "MySQL": Reader(mysql_packet(64 * KIB), MIB, ((b"\1", b""), (b"\xff\1\1#", b""))),
    "MySQL in segments": Reader(mysql_packet(16), 256 * KIB, ((b"\xfd\0\0\4", b""),)),
    "MySQL's words": Reader(text(mysql_error), MIB),
    "the supervisor": Reader(uplink_frames(64 * KIB), MIB),
    "the supervisor in segments": Reader(uplink_frames(16), MIB, units=OF_STREAMS),
    "members": Reader(members, MIB),
}


@pytest.mark.parametrize("name", READERS)
def test_nothing_costs_more_than_its_length(name: str) -> None:
    check_costs(READERS[name])

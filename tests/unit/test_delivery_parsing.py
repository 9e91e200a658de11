from __future__ import annotations

import contextlib
import gc
import itertools
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskd.delivery.progress import Response
from taskd.delivery.transport.parsing import MAX_HEAD, MAX_PIECES, ResponseReader
from taskd.errors import UnreadableResponse

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nsuccess"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nsuc\r\n4;x=y\r\ncess\r\n0\r\n"


def read(*parts: bytes, limit: int = 64, end: bool = False) -> ResponseReader:
    reader = ResponseReader()
    reader.begin(limit)
    for part in parts:
        reader.feed(part)
    if end:
        reader.end_of_stream()
    return reader


@pytest.mark.parametrize(
    ("data", "reusable"),
    [
        (OK, True),
        (CHUNKED + b"\r\n", True),
        (CHUNKED + b"Trailer: x\r\n\r\n", False),
        (OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), False),
        (OK.replace(b"HTTP/1.1", b"HTTP/1.0"), False),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, False),
        (OK + b"\r\n", False),
        (OK + b"\r\n\r\n", False),
        (OK + b"x", False),
        (OK + OK, False),
        (CHUNKED + b"\r\n\r\n", False),
        (CHUNKED + b"\r\n" + OK, False),
        (OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + b"x", False),
    ],
)
def test_a_success_is_read_and_its_connection_reused_only_if_nothing_was_strange(
    data: bytes, reusable: bool
) -> None:
    reader = read(data)
    assert reader.complete
    assert reader.response() == Response(200, b"success", None)
    assert reader.reusable is reusable


@given(st.sampled_from([OK, CHUNKED + b"\r\n"]), st.sets(st.integers(0, 100)))
def test_a_response_is_the_same_however_its_bytes_arrive(data: bytes, cuts: set[int]) -> None:
    edges = sorted({0, *cuts, len(data)})
    parts = [data[a:b] for a, b in itertools.pairwise(edges) if data[a:b]]
    reader = read(*parts)
    assert reader.complete
    assert reader.response().body == b"success"


def test_a_body_apart_from_its_head_leaves_the_connection_reusable() -> None:
    assert read(OK[:-7], b"suc", b"cess").reusable
    assert not read(OK[:-7], b"success\r\n").reusable


def test_one_reader_reads_one_response_after_another() -> None:
    reader = ResponseReader()
    for data in (OK, CHUNKED + b"\r\n", b"HTTP/1.1 204 No Content\r\n\r\n", OK):
        reader.begin(64)
        reader.feed(data)
        assert reader.complete
        assert reader.reusable
    assert reader.response().status == 200


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_body_has_none_whatever_its_headers_say(status: int) -> None:
    reader = read(b"HTTP/1.1 %d X\r\nContent-Length: 7\r\n\r\nsuccess" % status)
    assert reader.response().body == b""
    assert not reader.reusable


def test_interim_responses_are_passed_over() -> None:
    reader = read(b"HTTP/1.1 103 Early Hints\r\nRetry-After: 9\r\nContent-Encoding: br\r\n\r\n")
    assert not reader.begun
    assert not reader.complete
    reader.feed(b"HTTP/1.1 100 Continue\r\n\r\nH")
    assert reader.begun
    reader.feed(OK[1:])
    assert reader.response() == Response(200, b"success", None)


def test_a_body_without_length_ends_with_the_stream() -> None:
    reader = read(b"HTTP/1.0 200 OK\r\n\r\nsucc", b"ess")
    assert not reader.complete
    reader.end_of_stream()
    assert reader.complete
    assert not reader.reusable
    assert reader.response().body == b"success"


@pytest.mark.parametrize("data", [b"", OK[:4], OK[:20], OK[:-1], CHUNKED, CHUNKED[:-5]])
def test_a_cut_response_is_never_complete(data: bytes) -> None:
    assert not read(*([data] if data else []), end=True).complete


def test_the_first_retry_after_counts() -> None:
    reader = read(
        b"HTTP/1.1 503 X\r\nretry-AFTER: 7\r\nRetry-After: 8\r\nContent-Length: 0\r\n\r\n"
    )
    assert reader.response() == Response(503, b"", "7")


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"garbage\r\n\r\n",
        b"220 mail.test ESMTP\r\n",
        b"HTTP/1.1 2x0 OK\r\n",
        b"HTTP/1.1 2000 OK\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 1 OK\r\n\r\n",
    ],
)
def test_what_has_no_status_is_refused(data: bytes) -> None:
    with pytest.raises(UnreadableResponse, match="not valid HTTP"):
        read(data)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (
            b"\x15\x03\x01\x00\x02\x02\x16",
            "the answer is TLS, not HTTP: should the linkUrl begin wi",
        ),
        (b"\x16\x03\x01\x02\x00", "the answer is TLS, not HTTP"),
        (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18), "the answer is HTTP/2, and only"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", r"begins with 'SSH-2.0-OpenSSH_9.2\r\n'"),
        (b"\x1b[31m\xff\0" + b"x" * 99, r"begins with '\x1b[31mÿ\x00xxxxxxxxxxxxxxxxxxxxxxxxx'…"),
    ],
)
def test_another_protocol_is_named(data: bytes, told: str) -> None:
    with pytest.raises(UnreadableResponse) as caught:
        read(data)
    assert told in str(caught.value)


def test_the_first_location_is_kept() -> None:
    data = (
        b"HTTP/1.1 302 X\r\nLOCATION: /a\xc3\xa9\xff\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n"
    )
    assert read(data).response() == Response(302, b"", None, "/aé\ufffd")
    interim = b"HTTP/1.1 103 Early\r\nLocation: /a\r\n\r\n"
    assert read(interim + OK).response().location is None


@pytest.mark.parametrize(
    ("data", "status", "problem"),
    [
        (b"HTTP/2.0 200 OK\r\n\r\n", 200, "it is in HTTP/2.0"),
        (b"HTTP/0.9 200 OK\r\n\r\n", 200, "it is in HTTP/0.9"),
        (b"HTTP/2 429 X\r\n\r\n", 429, "its head is not valid HTTP"),
        (b"HTTP/1.2 503 X\r\n\r\n", 503, "its head is not valid HTTP"),
        (b"HTTP/1.1 200 OK\n\n", 200, "its head is not valid HTTP"),
        (HEAD + b"A: b\r\n c\r\n\x00: d\r\n\r\n", 200, "its head is not valid HTTP"),
        (HEAD + b"no colon\r\n\r\n", 200, "its head is not valid HTTP"),
        (HEAD + b"A: \x01\r\n\r\n", 200, "its head is not valid HTTP"),
        (HEAD + b"Content-Length: -1\r\n\r\n", 200, "its head is not valid HTTP"),
        (HEAD + b"Content-Length:\r\n\r\n", 200, "its head is not valid HTTP"),
        (HEAD + b"Content-Length: 1, 1\r\n\r\n", 200, "its head is not valid HTTP"),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 200, "its head is not"),
        (HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 200, "its head is"),
        (HEAD + b"Content-Length: 99999999999999999999\r\n\r\n", 200, "its head is not valid"),
        (HEAD + b"Content-Length: 65\r\n\r\n", 200, "over the limit of 64 bytes"),
        (HEAD + b"\r\n" + b"x" * 65, 200, "over the limit of 64 bytes"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n41\r\n" + b"x" * 65, 200, "over the limit"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 200, "its body is not valid HTTP"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nxx", 200, "its body is not valid HTTP"),
        (b"HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", 101, "switch protocols"),
        (b"HTTP/1.1 101 X\r\n\r\n\x00\x01", 101, "switch protocols"),
        (b"HTTP/1.1 102 X\r\n\r\nHTTP/1.1 410 X\n\n", 410, "its head is not valid HTTP"),
        (b"HTTP/1.1 102 X\n\n\r\nHTTP/1.1 410 X\r\n\r\n", 410, "its head is not valid HTTP"),
    ],
)
def test_what_is_wrong_beside_the_status_is_told_and_leaves_the_status(
    data: bytes, status: int, problem: str
) -> None:
    reader = read(data, end=True)
    if not reader.complete:
        reader.cut("the connection was closed")
    answer = reader.response()
    assert answer.status == status
    assert answer.problem is not None
    assert problem in answer.problem
    assert reader.decided
    assert not reader.reusable


WRONG = [
    b"Content-Encoding: br\r\nContent-Length: 4\r\n\r\nbusy",
    b"Content-Encoding: gzip\r\nContent-Encoding: br\r\n\r\nbusy",
    b"Transfer-Encoding: gzip\r\n\r\nbusy",
    b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbusy\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n4\r\nbusyx",
    b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\nbusy",
    b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nbusy",
    b"Content-Length: many\r\n\r\nbusy",
    b"Content-Length: 18446744073709551616\r\n\r\nbusy",
    b"Content-Length: 5\r\n\r\nbusy",
    b"Content-Length: 65\r\n\r\nbusy",
    b"Nonsense\r\n\r\nbusy",
]


@given(st.sampled_from([410, 429, 503]), st.sampled_from(WRONG), st.sets(st.integers(0, 120)))
@pytest.mark.parametrize("break_", [b"\r\n", b"\n"])
def test_a_status_and_its_retry_after_are_the_same_whatever_else_is_wrong(
    break_: bytes, status: int, wrong: bytes, cuts: set[int]
) -> None:
    data = b"HTTP/1.1 %d X\r\nRetry-After: 7\r\n" % status + wrong
    head, blank, body = data.partition(b"\r\n\r\n")
    data = (head + blank).replace(b"\r\n", break_) + body
    edges = sorted({0, *cuts, len(data)})
    reader = read(*(data[a:b] for a, b in itertools.pairwise(edges) if data[a:b]), end=True)
    answer = reader.response()
    assert (answer.status, answer.retry_after) == (status, "7")
    assert b"busy" in answer.body
    assert reader.decided
    assert not reader.reusable or wrong is WRONG[0]


@pytest.mark.parametrize(
    ("headers", "encoding"),
    [
        (b"Content-Encoding: gzip\r\nContent-Length: 7\r\n\r\n", "gzip"),
        (b"Content-Encoding: GZip\r\n\r\n", "GZip"),
        (b"Transfer-Encoding: identity\r\n\r\n", "identity"),
        (b"Content-Encoding: br\r\nTransfer-Encoding: gzip\r\n\r\n", "br, gzip"),
        (b"Content-Encoding: identity\r\n\r\n", None),
        (b"Content-Encoding: \r\n\r\n", None),
    ],
)
def test_a_body_is_read_as_it_is_whatever_encoding_it_claims(
    headers: bytes, encoding: str | None
) -> None:
    reader = read(HEAD + headers + b"success", end=True)
    assert reader.complete
    assert reader.response() == Response(200, b"success", None, encoding=encoding)


@pytest.mark.parametrize("status", [99, 600, 999])
def test_a_status_that_means_nothing_is_told_as_it_is(status: int) -> None:
    reader = read(b"HTTP/1.1 %03d X\r\nContent-Length: 0\r\n\r\n" % status)
    assert reader.complete
    assert reader.decided
    assert reader.response() == Response(status, b"", None)


@pytest.mark.parametrize(
    "framing",
    [b"Content-Length: 50000\r\n\r\n", b"\r\n", b"Transfer-Encoding: chunked\r\n\r\nc350\r\n"],
)
@pytest.mark.parametrize("limit", [64, 4096, 10_000])
def test_of_a_body_over_the_limit_4_kib_are_read_at_least(framing: bytes, limit: int) -> None:
    reader = read(HEAD + framing, limit=limit)
    while not reader.complete:
        reader.feed(b"x" * 100)
    assert 4096 <= len(reader.response().body) <= max(limit, 4096) + 100
    assert reader.response().problem == f"its body is over the limit of {limit} bytes"
    assert reader.received_bytes < max(limit, 4096) + 400


def test_a_head_that_is_refused_and_never_ends_is_bounded() -> None:
    reader = read(HEAD + b"nonsense\r\n")
    for _ in range(MAX_HEAD // 160):
        reader.feed(b"HTTP/1.1 100 X\r\n" * 10)
    with pytest.raises(UnreadableResponse, match="head is over 65536 bytes"):
        reader.feed(b"HTTP/1.1 100 X\r\n" * 10)
    reader = read(HEAD + b"nonsense\r\n")
    with pytest.raises(UnreadableResponse, match="not valid HTTP"):
        reader.end_of_stream()


def feed_until_refused(first: bytes, more: bytes) -> int:
    reader = read(first)
    with contextlib.suppress(UnreadableResponse):
        while reader.received_bytes < 100 * MAX_HEAD and not reader.complete:
            reader.feed(more)
    return reader.received_bytes


@pytest.mark.parametrize(
    ("first", "more"),
    [
        (HEAD, b"A: b\r\n"),
        (HEAD + b"A", b"A" * 1000),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (CHUNKED, b"Trailer: x\r\n"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 1000),
    ],
)
def test_heads_trailers_and_chunk_extensions_are_bounded(first: bytes, more: bytes) -> None:
    assert feed_until_refused(first, more) < 2 * MAX_HEAD


def test_a_header_comes_in_only_so_many_pieces() -> None:
    reader = read(HEAD + b"a: ")
    for _ in range(MAX_PIECES - 1):
        reader.feed(b"x")
    with pytest.raises(UnreadableResponse, match="head comes in more than 4096 pieces"):
        reader.feed(b"x")


def test_a_trailer_comes_in_only_so_many_pieces() -> None:
    reader = read(CHUNKED + b"a: ")
    while not reader.complete:
        reader.feed(b"x")
    assert reader.response().problem == "it spends more than 4096 pieces on its chunks or trailers"
    assert reader.response().body == b"success"


@pytest.mark.parametrize(
    ("framing", "piece"),
    [
        (b"Content-Length: 9000\r\n\r\n", b"x"),
        (b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
)
def test_a_body_comes_in_any_number_of_pieces(framing: bytes, piece: bytes) -> None:
    reader = read(HEAD + framing, limit=9000)
    for _ in range(9000):
        for byte in piece:
            reader.feed(bytes([byte]))
    assert len(reader.response().body) == 9000
    assert reader.response().problem is None


@given(st.lists(st.binary(min_size=1)), st.binary())
def test_arbitrary_bytes_are_read_or_refused(parts: list[bytes], tail: bytes) -> None:
    for start in (b"", HEAD, HEAD + b"Transfer-Encoding: chunked\r\n\r\n"):
        reader = ResponseReader()
        reader.begin(64)
        with contextlib.suppress(UnreadableResponse):
            for part in (*([start] if start else []), *parts, tail + b"\r\n"):
                if not reader.complete:
                    reader.feed(part)
            reader.end_of_stream()
        if reader.head_done:
            assert 0 <= reader.response().status <= 999


def test_a_closed_reader_needs_no_garbage_collection() -> None:
    class Traced(ResponseReader):
        __slots__ = ("__weakref__",)

    gc.collect()
    gc.disable()
    try:
        reader = Traced()
        reader.begin(64)
        reader.feed(OK)
        trace = weakref.ref(reader)
        reader.close()
        del reader
        assert trace() is None
    finally:
        gc.enable()

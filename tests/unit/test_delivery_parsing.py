from __future__ import annotations

import contextlib
import gc
import itertools
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskd.errors import UnreadableResponse
from taskd.transport.parsing import MAX_HEAD, Response, ResponseReader

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
    ("data", "problem"),
    [
        (b"garbage\r\n\r\n", "not valid HTTP"),
        (b"\x16\x03\x01\x02\x00", "not valid HTTP"),
        (b"HTTP/1.1 2x0 OK\r\n", "not valid HTTP"),
        (b"HTTP/1.1 2000 OK\r\n", "not valid HTTP"),
        (b"HTTP/1.1 099 OK\r\n\r\n", "impossible status 99"),
        (b"HTTP/1.1 600 OK\r\n\r\n", "impossible status 600"),
        (b"HTTP/2.0 200 OK\r\n\r\n", "HTTP/2.0"),
        (b"HTTP/0.9 200 OK\r\n\r\n", "HTTP/0.9"),
        (b"HTTP/1.1 200 OK\n\n", "not valid HTTP"),
        (HEAD + b"A: b\r\n c\r\n\x00: d\r\n\r\n", "not valid HTTP"),
        (HEAD + b"no colon\r\n\r\n", "not valid HTTP"),
        (HEAD + b"Content-Length: -1\r\n\r\n", "not valid HTTP"),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", "not valid HTTP"),
        (HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "not valid HTTP"),
        (HEAD + b"Content-Length: 99999999999999999999\r\n\r\n", "not valid HTTP"),
        (HEAD + b"Content-Length: 65\r\n\r\n", "over the limit of 64 bytes"),
        (HEAD + b"\r\n" + b"x" * 65, "over the limit of 64 bytes"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n41\r\n" + b"x" * 65, "over the limit"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "not valid HTTP"),
        (HEAD + b"Transfer-Encoding: gzip\r\n\r\n", "Transfer-Encoding is not chunked"),
        (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n", "Transfer-Encoding is not chunked"),
        (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 7\r\n\r\nsuccess", "encoded as 'gzip'"),
        (b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", "switch protocols"),
        (b"HTTP/1.1 101 X\r\n\r\n", "switch protocols"),
    ],
)
def test_what_is_no_response_for_us_is_refused_with_the_reason(data: bytes, problem: str) -> None:
    with pytest.raises(UnreadableResponse, match=problem):
        read(data)


def test_an_encoding_of_identity_is_read() -> None:
    assert read(OK.replace(b"\r\n\r\n", b"\r\nContent-Encoding: identity\r\n\r\n")).complete


def feed_until_refused(first: bytes, more: bytes) -> int:
    reader = read(first)
    with contextlib.suppress(UnreadableResponse):
        while reader.received_bytes < 100 * MAX_HEAD:
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


@given(st.lists(st.binary(min_size=1)), st.binary())
def test_arbitrary_bytes_are_read_or_refused(parts: list[bytes], tail: bytes) -> None:
    for start in (b"", HEAD, HEAD + b"Transfer-Encoding: chunked\r\n\r\n"):
        with contextlib.suppress(UnreadableResponse):
            read(*([start] if start else []), *parts, tail + b"\r\n", end=True)


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

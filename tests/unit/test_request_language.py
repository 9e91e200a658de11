"""The language of requests: what is taken of it, what is refused, that it does not matter
where the bytes are cut, and that two other parsers read what is taken as it is read here."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator

import h11
import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from taskd.api.http.body_framing import Chunked, Counted, Framing
from taskd.api.http.heads import MAX_HEAD, Head, HeadGatherer, read_head
from taskd.api.wire.envelope import Refusal

_CREATE = (
    b"POST /task/create HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
    b"app_key: a\r\nContent-Length: 2\r\n\r\n{}"
)
_DETAIL = b"GET /task/detail?coroutine_id=42 HTTP/1.1\r\nHost: test\r\nAccept: */*\r\n\r\n"
_CHUNKS = (
    b"POST /task/create HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;a=b\r\n{    \r\n1\r\n}\r\n0\r\nTrailer: x\r\n\r\n"
)

_LINES = st.sampled_from(
    [
        b"Host: test",
        b"Host: ",
        b"Content-Length: 2",
        b"content-length: 02",
        b"Content-Length: 2, 2",
        b"Content-Length: 9999999",
        b"Content-Length: +2",
        b"Content_Length: 2",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: Chunked ",
        b"Transfer-Encoding: identity",
        b"Transfer-Encoding: gzip, chunked",
        b"Connection: keep-alive",
        b"Connection: close",
        b"Connection: Upgrade",
        b"Upgrade: h2c",
        b"Expect: 100-continue",
        b"Accept: a  b",
        b"Accept:\tx ",
        b"Accept: ",
        b"Accept:",
        b"Accept : x",
        b" folded",
        b"app_key: a",
        b"nonce: \xff",
        b"a\x00b: c",
        b"a: b\x00",
        b"Content-Type: application/json",
    ]
)
_ENDS = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\n\r\n", b"", b"\r\r\n"])
_FIRST = st.sampled_from(
    [
        b"POST /task/create HTTP/1.1",
        b"POST /task/create HTTP/1.0",
        b"POST /task/create HTTP/1.2",
        b"post /task/create HTTP/1.1",
        b"POST  /task/create HTTP/1.1",
        b"POST /task/create?a=b HTTP/1.1",
        b"POST /task/create? HTTP/1.1",
        b"POST http://test/task/create HTTP/1.1",
        b"POST http://x/task/create HTTP/1.1",
        b"POST /task/./create HTTP/1.1",
        b"POST /task/cr\xe9ate HTTP/1.1",
        b"GET /task/detail?coroutine_id=1 HTTP/1.1",
        b"GET /task/detail HTTP/1.1",
        b"GET /healthz HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"CONNECT x:443 HTTP/1.1",
        b"\r\nGET /healthz HTTP/1.1",
    ]
)
_BODIES = st.sampled_from(
    [
        b"",
        b"{}",
        b"{}GET / HTTP/1.1\r\n\r\n",
        b"0\r\n\r\n",
        b"2\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}\n0\r\n\r\n",
        b"\r\n",
    ]
)


@st.composite
def _requests(draw: st.DrawFn) -> bytes:
    lines = [draw(_FIRST), b"Host: test", *draw(st.lists(_LINES, max_size=5))]
    head = b"".join(line + draw(_ENDS) for line in lines)
    return head + draw(_ENDS) + draw(_BODIES)


@st.composite
def _mutants(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from([_CREATE, _DETAIL, _CHUNKS])))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(
            st.binary(max_size=3) | st.sampled_from([b"\r\n", b"\n", b" ", b"\t", b":", b"\0"])
        )
    return bytes(data)


@st.composite
def _cut(draw: st.DrawFn) -> list[bytes]:
    """Bytes in the pieces in which they come."""
    data = draw(_requests() | _mutants() | st.binary(max_size=60))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))
    edges = [0, *cuts, len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a < b]


Reading = tuple[str, object, object, object]


def reading_of(pieces: list[bytes]) -> Reading:
    """What is made of the bytes: of one request and what comes behind it."""
    coming = iter(pieces)
    try:
        head, rest = head_of(coming)
        if head is None:
            return "more", None, None, None
        framing: Framing = Chunked() if head.chunked else Counted(head.length)
        body = framing.feed(rest)
        while not framing.complete:
            piece = next(coming, None)
            if piece is None:
                return "more of its body", None, None, None
            body += framing.feed(piece)
    except Refusal as refusal:
        return "refused", refusal.answer.status, refusal.answer.msg, None
    head.end = 0
    return "read", head, body, framing.rest + b"".join(coming)


def head_of(coming: Iterator[bytes]) -> tuple[Head | None, bytes]:
    """The head of what comes, as a connection reads it, and what came behind it."""
    data = next(coming, b"")
    head = read_head(data)
    if head is not None:
        return head, data[head.end :]
    gatherer, fed = HeadGatherer(), 0
    while data:
        head = gatherer.feed(data)
        if head is not None:
            return head, data[head.end - fed :]
        fed += len(data)
        data = next(coming, b"")
    return None, b""


@given(_cut())
@settings(max_examples=400)
@example([_CREATE[:-1], b"}"])
@example([b"\r", b"\n", _DETAIL])
@example([b"GET / HTTP/1.1\r\nHost: x\r", b"\r\n"])
def test_it_does_not_matter_where_the_bytes_are_cut(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    assert reading_of(pieces) == reading_of([data] if data else [])
    assert reading_of([data[at : at + 1] for at in range(len(data))]) == reading_of(pieces)


class _Heard:
    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.complete = False

    def on_url(self, part: bytes) -> None:
        self.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.complete and not self.body:
            self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_body(self, part: bytes) -> None:
        self.body += part

    def on_message_complete(self) -> None:
        self.complete = True


def as_h11_reads(data: bytes) -> tuple[object, ...]:
    """Method, target, version, headers, body, and what is left."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    request = connection.next_event()
    assert isinstance(request, h11.Request)
    body = b""
    while isinstance(event := connection.next_event(), h11.Data):
        body += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage)
    headers = dict(request.headers)
    return request.method, request.target, headers, body, connection.trailing_data[0]


def as_llhttp_reads(data: bytes) -> tuple[object, ...]:
    """Method, target, headers and body of one request."""
    heard = _Heard()
    parser = httptools.HttpRequestParser(heard)
    # Behind a head that asks for another protocol, llhttp reads no body. taskd speaks no other,
    # and a server that does not may ignore the header.
    head, blank, body = data.partition(b"\r\n\r\n")
    parser.feed_data(_UPGRADE.sub(b"\r\nxpgrade:", head) + blank + body)
    headers = dict(heard.headers)
    if (asked := headers.pop(b"xpgrade", None)) is not None:
        headers[b"upgrade"] = asked
    headers.pop(b"trailer", None)
    return parser.get_method(), heard.target, headers, heard.body


_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
_ASKS_FOR_MORE = _CREATE.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", 1)


@given(_requests() | _mutants())
@settings(max_examples=400)
@example(_CREATE)
@example(_DETAIL)
@example(_CHUNKS)
@example(_CREATE + _DETAIL)
@example(_ASKS_FOR_MORE)
def test_what_is_taken_two_other_parsers_read_alike(data: bytes) -> None:
    kind, head, body, rest = reading_of([data] if data else [])
    if kind != "read":
        return
    assert isinstance(head, Head)
    assert isinstance(rest, bytes)
    while data.startswith(b"\r\n"):  # h11 passes over one only, llhttp over any
        data = data[2:]
    method, target, headers, others_body, left = as_h11_reads(data)
    assert method == head.method.encode()
    assert path_and_query(target) == (head.path, head.query)
    assert without_case(headers) == without_case(head.headers)
    assert (others_body, left) == (body, rest)
    if method not in {b"GET", b"POST", b"OPTIONS"}:
        return  # llhttp knows some methods only
    whole = data[: len(data) - len(rest)]
    method, target, headers, others_body = as_llhttp_reads(whole)
    assert method == head.method.encode()
    assert path_and_query(target) == (head.path, head.query)
    assert headers.keys() == head.headers.keys() - {b"trailer"}  # type: ignore[attr-defined]
    assert others_body == body


def without_case(headers: object) -> dict[bytes, bytes]:
    """Headers without what h11 changes: letters, and what comes in pieces."""
    assert isinstance(headers, dict)
    return {name: value.lower() for name, value in headers.items() if name != b"connection"}


def path_and_query(target: object) -> tuple[str, bytes]:
    assert isinstance(target, bytes)
    if not target.startswith((b"/", b"*")):
        target = b"/" + target.split(b"/", 3)[3]
    path, _, query = target.partition(b"?")
    return path.decode(), query


def _with(*lines: bytes, first: bytes = b"POST /task/create HTTP/1.1") -> bytes:
    return b"\r\n".join([first, b"Host: test", *lines, b"", b""])


_TAKEN = {
    "a plain request": _CREATE,
    "a query": _DETAIL,
    "an empty line before it": b"\r\n" + _DETAIL,
    "several empty lines before it": b"\r\n\r\n\r\n" + _DETAIL,
    "HTTP/1.0": b"GET /healthz HTTP/1.0\r\n\r\n",
    "no blank before a value": _with(b"a:b"),
    "blanks around a value": _with(b"a: \t b \t"),
    "blanks within a value": _with(b"a: b  c\td"),
    "no value": _with(b"a:"),
    "bytes above 0x7f in a value": _with(b"a: \xc3\xa4"),
    "every character of a name": _with(b"!#$%&'*+-.^_`|~09AZaz: b"),
    "no host in Host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "a host and a port": b"GET / HTTP/1.1\r\nHost: a-b_c.example.:9502\r\n\r\n",
    "an IPv6 address": b"GET / HTTP/1.1\r\nHost: [::1]:9502\r\n\r\n",
    "hosts that no name can be": b"GET / HTTP/1.1\r\nHost: a..b\r\n\r\n",
    "an absolute target of its Host": _with(first=b"GET http://test/healthz?a=b HTTP/1.1"),
    "an absolute target without a path": _with(first=b"OPTIONS https://TEST HTTP/1.1"),
    "a star": _with(first=b"OPTIONS * HTTP/1.1"),
    "another method": _with(first=b"M-SEARCH / HTTP/1.1"),
    "a length of 0": _with(b"Content-Length: 0"),
    "a header twice": _with(b"a: 1", b"a: 2"),
    "chunks": _CHUNKS,
    "chunks, in other letters": _CHUNKS.replace(b": chunked", b": CHUNKED"),
    "an extension": _CHUNKS.replace(b"a=b", b'a;b=c;d="e f\\"g"'),
    "Expect": _CREATE.replace(b"app_key: a", b"Expect: 100-Continue"),
    "Expect under HTTP/1.0, which has none": _with(b"Expect: something", first=b"GET / HTTP/1.0"),
    "as long a head as there may be": _with(b"a: " + b"b" * (MAX_HEAD - len(_with(b"a: ")))),
}


@pytest.mark.parametrize("name", _TAKEN)
def test_what_is_taken(name: str) -> None:
    data = _TAKEN[name]
    assert reading_of([data])[0] == "read"
    for size in (1, 7, 4096):
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        assert reading_of(pieces) == reading_of([data])


_LINE_FORM = "its first line must be METHOD TARGET HTTP/1.1"
_FIELD_FORM = "must be NAME: VALUE, with no blank before the colon"
_REFUSED = {
    "a method in small letters": (_CREATE.replace(b"POST", b"post"), "of capital letters"),
    "two blanks": (_CREATE.replace(b"POST ", b"POST  "), _LINE_FORM),
    "a tab": (_CREATE.replace(b"POST ", b"POST\t"), _LINE_FORM),
    "a long method": (_CREATE.replace(b"POST", b"P" * 33), "of capital letters"),
    "no target": (b"GET HTTP/1.1\r\nHost: x\r\n\r\n", _LINE_FORM),
    "HTTP/0.9": (b"GET /\r\n\r\n", _LINE_FORM),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "only HTTP/1.1 is spoken here"),
    "HTTP/1.2": (_CREATE.replace(b"/1.1", b"/1.2"), "only HTTP/1.1 is spoken here"),
    "http/1.1": (_CREATE.replace(b"HTTP", b"http"), _LINE_FORM),
    "a fragment": (_CREATE.replace(b"create", b"create#a"), _LINE_FORM),
    "bytes above 0x7f in a target": (_CREATE.replace(b"create", b"\xc3\xa4"), _LINE_FORM),
    "a target that is no path": (_CREATE.replace(b"/task", b"task"), "must be a path"),
    "CONNECT": (_with(first=b"CONNECT test:443 HTTP/1.1"), "must be a path"),
    "ftp": (_with(first=b"GET ftp://test/ HTTP/1.1"), "must be a path"),
    "another host in the target": (
        _with(first=b"POST http://other/task/create HTTP/1.1"),
        "its target names another host than the header Host",
    ),
    "a user in the target": (_with(first=b"GET http://a@test/ HTTP/1.1"), "names another host"),
    "bare LF": (_CREATE.replace(b"\r\n", b"\n"), "line 1 does not end in CR LF"),
    "one bare LF": (_CREATE.replace(b"test\r\n", b"test\n"), "line 2 does not end in CR LF"),
    "bare LF at the end": (_with()[:-2] + b"\n", "line 3 does not end in CR LF"),
    "bare LF before it": (b"\n" + _DETAIL, "line 1 does not end in CR LF"),
    "bare CR": (_CREATE.replace(b"test\r\n", b"test\r"), "line 2 has a control character"),
    "NUL in a value": (_with(b"a: b\0c"), "line 3 has a control character"),
    "NUL in a name": (_with(b"a\0: b"), "line 3 has a control character"),
    "NUL in the target": (_with(first=b"GET /\0 HTTP/1.1"), "line 1 has a control character"),
    "DEL": (_with(b"a: \x7f"), "line 3 has a control character"),
    "a folded line": (_with(b"a: b", b" c"), "line 4 begins with a blank"),
    "a folded first line": (b"GET / HTTP/1.1\r\n Host: x\r\n\r\n", "line 2 begins with a blank"),
    "a blank before the colon": (_with(b"a : b"), f"line 3 {_FIELD_FORM}"),
    "no colon": (_with(b"a"), f"line 3 {_FIELD_FORM}"),
    "no name": (_with(b": a"), f"line 3 {_FIELD_FORM}"),
    "bytes above 0x7f in a name": (_with(b"\xc3\xa4: a"), f"line 3 {_FIELD_FORM}"),
    "no Host": (b"GET / HTTP/1.1\r\n\r\n", "the header Host is missing"),
    "Host twice": (_with(b"Host: test"), "the header Host must not come twice"),
    "no host in Host": (_DETAIL.replace(b"test", b"a b"), "the header Host must be a host"),
    "a path in Host": (_DETAIL.replace(b"test", b"a/b"), "the header Host must be a host"),
    "a user in Host": (_DETAIL.replace(b"test", b"a@b"), "the header Host must be a host"),
    "bytes above 0x7f in Host": (_DETAIL.replace(b"test", b"\xff"), "Host must be a host"),
    "a length twice": (_with(b"Content-Length: 2", b"Content-Length: 2"), "must not come twice"),
    "a list of lengths": (_CREATE.replace(b": 2", b": 2,2"), "Content-Length must be digits"),
    "a length with zeros": (_CREATE.replace(b": 2", b": 02"), "Content-Length must be digits"),
    "a length with a sign": (_CREATE.replace(b": 2", b": +2"), "Content-Length must be digits"),
    "a length of none": (_CREATE.replace(b": 2", b":"), "Content-Length must be digits"),
    "a length in hexadecimal": (_CREATE.replace(b": 2", b": 0x2"), "must be digits"),
    "a length and chunks": (
        _CHUNKS.replace(b"Transfer", b"Content-Length: 15\r\nTransfer"),
        "must not be given together",
    ),
    "chunks twice": (
        _CHUNKS.replace(b"Transfer", b"Transfer-Encoding: chunked\r\nTransfer", 1),
        "the header Transfer-Encoding must not come twice",
    ),
    "chunks under HTTP/1.0": (_CHUNKS.replace(b"/1.1", b"/1.0"), "has no Transfer-Encoding"),
    "another coding": (_CHUNKS.replace(b"chunked", b"gzip, chunked"), "must be chunked"),
    "identity": (_CHUNKS.replace(b"chunked", b"identity"), "must be chunked"),
    "a quoted coding": (_CHUNKS.replace(b"chunked", b'"chunked"'), "must be chunked"),
    "another expectation": (_with(b"Expect: 200-ok"), "Expect must be 100-continue"),
    "a chunk that is longer": (_CHUNKS.replace(b"1\r\n}\r", b"1\r\n}}"), "longer than its size"),
    "a chunk that ends in LF": (_CHUNKS.replace(b"}\r\n", b"}\n"), "longer than its size"),
    "a size that ends in LF": (_CHUNKS.replace(b"1\r\n}", b"1\n}"), "must be hexadecimal digits"),
    "a size with a sign": (_CHUNKS.replace(b"1\r\n}", b"+1\r\n}"), "must be hexadecimal digits"),
    "a size with 0x": (_CHUNKS.replace(b"1\r\n}", b"0x1\r\n}"), "must be hexadecimal digits"),
    "a size behind a blank": (_CHUNKS.replace(b"1\r\n}", b" 1\r\n}"), "be hexadecimal digits"),
    "a blank behind a size": (_CHUNKS.replace(b"1\r\n}", b"1 \r\n}"), "be hexadecimal digits"),
    "a size of nine digits": (_CHUNKS.replace(b"1\r\n}", b"000000001\r\n}"), "hexadecimal"),
    "a long extension": (_CHUNKS.replace(b"a=b", b"a" * 300), "not given in a short line"),
    "an extension without a name": (_CHUNKS.replace(b"a=b", b"=b"), "be hexadecimal digits"),
    "a trailer that is none": (_CHUNKS.replace(b"Trailer: x", b"Trailer x"), "must be headers"),
    "long trailers": (
        _CHUNKS.replace(b"Trailer: x", b"Trailer: " + b"x" * MAX_HEAD),
        "what trails behind the body is longer than 16384 bytes",
    ),
    "one byte more than there may be": (
        _with(b"a: " + b"b" * (MAX_HEAD + 1 - len(_with(b"a: ")))),
        "the request's line and headers are longer than 16384 bytes",
    ),
    "a head without an end": (_with(b"a: " + b"b" * 10**6), "are longer than 16384 bytes"),
    "many headers": (_with(*[b"a:"] * 5000), "are longer than 16384 bytes"),
    "empty lines without an end": (b"\r\n" * MAX_HEAD, "are longer than 16384 bytes"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01", "line 1 has a control character"),
}


@pytest.mark.parametrize("name", _REFUSED)
def test_what_is_refused(name: str) -> None:
    data, sentence = _REFUSED[name]
    kind, status, msg, _ = reading_of([data])
    assert (kind, status) == ("refused", 400)
    assert sentence in str(msg)
    assert len(str(msg)) < 200
    for size in (1, 7, 4096):
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        assert reading_of(pieces) == reading_of([data])


def test_options_of_a_connection_may_come_in_pieces() -> None:
    for lines, last in (
        ([b"Connection: close"], True),
        ([b"Connection: Close"], True),
        ([b"Connection: a,close ,b"], True),
        ([b"Connection: close", b"Connection: a"], True),
        ([b"Connection: closed"], False),
        ([b"Connection: keep-alive"], False),
        ([], False),
    ):
        head = read_head(_with(*lines))
        assert head is not None
        assert head.last == last


def test_a_length_of_any_number_of_digits_costs_no_more_than_to_read_it() -> None:
    head = read_head(_with(b"Content-Length: " + b"9" * 16_000))
    assert head is not None
    assert head.length >= 10**15


def _many_lines(size: int) -> list[bytes]:
    return [b"GET / HTTP/1.1\r\n" + b"a:\r\n" * (size // 4)]


def _bytewise(size: int) -> list[bytes]:
    return [b"G"] * size


def _tiny_chunks(size: int) -> list[bytes]:
    return [_CHUNKS.partition(b"5;")[0], b"1\r\na\r\n" * (size // 6)]


def _slow_trailer(size: int) -> list[bytes]:
    return [_CHUNKS.partition(b"5;")[0] + b"0\r\n", *[b"a"] * size]


@pytest.mark.parametrize("make", [_many_lines, _bytewise, _tiny_chunks, _slow_trailer])
def test_no_bytes_cost_more_than_their_number(make: Callable[[int], list[bytes]]) -> None:
    def cost(size: int) -> float:
        pieces = make(size)
        best = float("inf")
        for _ in range(5):
            began = time.thread_time()
            reading_of(pieces)
            best = min(best, time.thread_time() - began)
        return best

    # Sixteen times as many bytes, which quadratic work would make 256 times as dear.
    assert cost(16_000) < 64 * cost(1000) + 0.01

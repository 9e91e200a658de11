"""What the lane takes, against two parsers of HTTP: what it reads, both read alike."""

from __future__ import annotations

import json

import h11
import httptools
import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from taskd.api import intake
from taskd.api.envelope import Answer, done
from taskd.api.front import Front
from taskd.api.lane import MAX_PLAIN, Lane, Plain
from taskd.api.request import Request

_CREATE = (
    b"POST /task/create HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
    b"app_key: a\r\nContent-Length: 2\r\n\r\n{}"
)
_DETAIL = b"GET /task/detail?coroutine_id=42 HTTP/1.1\r\nHost: test\r\nAccept: */*\r\n\r\n"

_LINES = st.sampled_from(
    [
        b"Host: test",
        b"Content-Length: 2",
        b"content-length: 02",
        b"Content-Length: 2, 2",
        b"Content-Length: 9999999",
        b"Content-Length: +2",
        b"Content_Length: 2",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: identity",
        b"Connection: keep-alive",
        b"Connection: close",
        b"Connection: Upgrade",
        b"Upgrade: h2c",
        b"Expect: 100-continue",
        b"Accept: a  b",
        b"Accept:\tx",
        b"Accept: ",
        b"Accept : x",
        b" folded",
        b"app_key: a",
        b"nonce: \xff",
        b"Content-Type: application/json",
    ]
)
_ENDS = st.sampled_from([b"\r\n"] * 8 + [b"\n", b"\r", b"\r\n\r\n", b""])
_FIRST = st.sampled_from(
    [
        b"POST /task/create HTTP/1.1",
        b"POST /task/create HTTP/1.0",
        b"post /task/create HTTP/1.1",
        b"POST  /task/create HTTP/1.1",
        b"POST /task/create?a=b HTTP/1.1",
        b"POST http://x/task/create HTTP/1.1",
        b"POST /task/./create HTTP/1.1",
        b"GET /task/detail?coroutine_id=1 HTTP/1.1",
        b"GET /task/detail HTTP/1.1",
        b"GET /healthz HTTP/1.1",
    ]
)
_BODIES = st.sampled_from([b"", b"{}", b"{}GET / HTTP/1.1\r\n\r\n", b"0\r\n\r\n", b"\r\n"])


@st.composite
def _requests(draw: st.DrawFn) -> bytes:
    lines = [draw(_FIRST), b"Host: test", *draw(st.lists(_LINES, max_size=5))]
    head = b"".join(line + draw(_ENDS) for line in lines)
    return head + draw(_ENDS) + draw(_BODIES)


@st.composite
def _mutants(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from([_CREATE, _DETAIL])))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(
            st.binary(max_size=3) | st.sampled_from([b"\r\n", b"\n", b" ", b"\t", b":", b"\0"])
        )
    return bytes(data)


async def _echo(request: Request) -> Answer:
    await trio.lowlevel.checkpoint()
    return done([request.body.decode()])


async def _framework(*_: object) -> None:
    raise AssertionError


class _Settings:
    closing = False

    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:
        return [(b"server", protocol.encode())]


def lane_of(*, max_body: int = 4096, draining: bool = False, closing: bool = False) -> Lane:
    front = Front(
        endpoints={
            "/task/create": {"POST": _echo},
            "/task/detail": {"GET": _echo, "POST": _echo},
        },
        framework=_framework,
        views=frozenset(),
        draining=lambda: draining,
        max_body=max_body,
    )
    settings = _Settings()
    settings.closing = closing
    return Lane(front, settings)


def as_h11_reads(data: bytes) -> tuple[object, ...]:
    """Method, target, version, headers, body, and what is left."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    request = connection.next_event()
    assert isinstance(request, h11.Request)
    body = b""
    while isinstance(event := connection.next_event(), h11.Data):
        body += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage) or event is h11.NEED_DATA
    return (
        request.method,
        request.target,
        request.http_version,
        list(request.headers),
        body,
        connection.trailing_data[0],
    )


class _Heard:
    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""

    def on_url(self, part: bytes) -> None:
        self.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, part: bytes) -> None:
        self.body += part


def as_llhttp_reads(data: bytes) -> tuple[object, ...]:
    """Method, target, version, headers and body of one request."""
    heard = _Heard()
    parser = httptools.HttpRequestParser(heard)
    parser.feed_data(data)
    return (
        parser.get_method(),
        heard.target,
        parser.get_http_version().encode(),
        heard.headers,
        heard.body,
    )


def as_read(plain: Plain, data: bytes) -> tuple[object, ...]:
    """The same of what the lane has read."""
    request = plain.request
    target = request.path.encode() + (b"?" + request.query if request.query else b"")
    body = data[plain.head : plain.size]
    return request.method.encode(), target, b"1.1", list(request.headers.items()), body


@given(_requests() | _mutants())
@example(_CREATE)
@example(_DETAIL)
@example(_CREATE + _DETAIL)
@example(_CREATE[:-1])
def test_what_it_takes_is_what_two_parsers_read(data: bytes) -> None:
    plain = lane_of().read(data)
    if plain is None:
        return
    read = as_read(plain, data)
    assert as_h11_reads(data) == (*read, data[plain.size :])
    assert as_llhttp_reads(data[: plain.size]) == read


@pytest.mark.parametrize("data", [_CREATE, _DETAIL, _CREATE + _DETAIL, _CREATE[:-2]])
def test_a_plain_request_is_taken(data: bytes) -> None:
    plain = lane_of().read(data)
    assert plain is not None
    assert plain.size == (len(_DETAIL) if data is _DETAIL else len(_CREATE))
    assert plain.request.path in {"/task/create", "/task/detail"}
    assert plain.request.headers[b"host"] == b"test"


@pytest.mark.parametrize(
    "change",
    [
        (b"POST", b"PUT"),
        (b"/task/create", b"/healthz"),
        (b"/task/create", b"http://test/task/create"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"Host: test\r\n", b""),
        (b"app_key: a", b"Host: test"),
        (b"app_key: a", b"app_key: a\r\napp_key: a"),
        (b"app_key: a", b"app_key: \xe4"),
        (b"app_key: a", b"app_key: a "),
        (b"app_key: a", b"app_key:a"),
        (b"app_key: a", b"app_key: a\r\n b"),
        (b"app_key: a", b"Transfer-Encoding: chunked"),
        (b"app_key: a", b"Expect: 100-continue"),
        (b"app_key: a", b"Upgrade: h2c"),
        (b"app_key: a", b"Connection: close"),
        (b"app_key: a", b"a: " + b"b" * 9000),
        (b"Length: 2", b"Length: 02"),
        (b"Length: 2", b"Length: 5000"),
        (b"Length: 2", b"Length: 2\r\nContent-Length: 2"),
        (b"Content-Length: 2\r\n", b""),
        (b"\r\n", b"\n"),
        (b"\r\n\r\n{}", b"\r\n"),
    ],
)
def test_what_is_out_of_the_ordinary_is_left_to_hypercorn(change: tuple[bytes, bytes]) -> None:
    data = _CREATE.replace(*change)
    assert data != _CREATE
    assert lane_of().read(data) is None


def test_what_is_long_is_left_to_hypercorn() -> None:
    lane = lane_of(max_body=10**6)
    for length, taken in ((MAX_PLAIN // 2, True), (MAX_PLAIN, False)):
        data = _CREATE.replace(b"Length: 2", b"Length: %d" % length)
        assert (lane.read(data) is not None) == taken


def test_a_get_with_a_body_is_left_to_hypercorn() -> None:
    data = _DETAIL.replace(b"Accept: */*", b"Content-Length: 2") + b"{}"
    assert lane_of().read(data) is None


@pytest.mark.parametrize("state", ["draining", "closing"])
def test_nothing_is_taken_while_clients_are_told_to_go(state: str) -> None:
    assert lane_of(draining=state == "draining", closing=state == "closing").read(_CREATE) is None


class _Wire:
    """A connection whose client sends these pieces, and then nothing any more."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.written: list[bytes] = []
        self.told: list[str] = []

    async def receive(self) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""

    async def write(self, data: bytes) -> None:
        self.written.append(data)

    def occupy(self) -> None:
        self.told.append("occupy")

    def rest(self) -> None:
        self.told.append("rest")

    def leave(self) -> None:
        self.told.append("leave")


def left_of(wire: _Wire, data: bytes) -> bytes:
    """What `Lane.take` leaves of some bytes."""

    async def main() -> bytes:
        lane = lane_of()
        left = await lane.take(wire, data)
        assert lane._front.buffered.held == 0
        return left

    return trio.run(main)


def bodies_of(wire: _Wire) -> list[object]:
    return [json.loads(answer.partition(b"\r\n\r\n")[2])["data"] for answer in wire.written]


def test_an_answer_is_one_write() -> None:
    wire = _Wire()
    assert left_of(wire, _CREATE.replace(b"app_key: a", b"X-Request-Id: mine")) == b""
    (answer,) = wire.written
    assert answer == (
        b"HTTP/1.1 200 \r\ncontent-type: application/json\r\ncontent-length: 36\r\n"
        b"x-request-id: mine\r\nserver: h11\r\n\r\n"
        b'{"code":0,"msg":"ok!","data":["{}"]}'
    )
    assert wire.told == ["occupy", "rest"]


def test_pipelined_requests_are_answered_up_to_one_that_is_not_plain() -> None:
    wire = _Wire()
    rest = b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n" + _CREATE
    assert left_of(wire, _CREATE + _DETAIL + rest) == rest
    assert bodies_of(wire) == [["{}"], [""]]
    assert wire.told == ["occupy", "rest"] * 2


def test_a_body_in_pieces_is_waited_for() -> None:
    wire = _Wire(b"{", b"}", b"never asked for")
    assert left_of(wire, _CREATE[:-2]) == b""
    assert bodies_of(wire) == [["{}"]]
    assert wire.pieces == [b"never asked for"]


def test_what_comes_behind_a_body_is_read_too() -> None:
    wire = _Wire(b"{}" + _DETAIL + b"GET")
    assert left_of(wire, _CREATE[:-2]) == b"GET"
    assert bodies_of(wire) == [["{}"], [""]]


def test_a_body_that_does_not_come_is_left_to_hypercorn() -> None:
    wire = _Wire(b"{")
    assert left_of(wire, _CREATE[:-2]) == _CREATE[:-1]
    assert wire.written == []
    assert wire.told == ["occupy"]


def test_a_body_is_not_waited_for_long() -> None:
    wire = _Wire(b"{")

    async def never() -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    wire.receive = never  # type: ignore[method-assign]
    assert left_of(wire, _CREATE[:-2]) == _CREATE[:-2]


def test_there_is_no_room_beside_too_many_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MAX_BUFFERED", 1)
    wire = _Wire()
    assert left_of(wire, _CREATE) == _CREATE
    assert wire.told == []

"""Requests over sockets: however their bytes come, whatever stands behind them, and
whenever their client stops sending or reading."""

from __future__ import annotations

import itertools
import os
import re
import socket
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from taskd.api.http import stream as wires
from taskd.domain import signing
from taskd.domain.model import App
from tests.support.api import (
    ADMIN_KEY,
    ADMIN_SECRET,
    HEALTH,
    LINK_URL,
    NOW_S,
    TASK,
    Api,
    Wire,
    config_of,
    encode,
    request_bytes,
    running_api,
    until,
)

pytestmark = pytest.mark.deadline(30)

_JSON = {"Content-Type": "application/json"}
_UNSIGNED = request_bytes("POST", "/task/create", _JSON, b"{}")

Make = Callable[[Api, str], bytes]


def create(api: Api, task_no: str, **more: str) -> bytes:
    body = encode(TASK | {"taskNo": task_no})
    return request_bytes("POST", "/task/create", _JSON | more | api.signed(body), body)


def closing_create(api: Api, task_no: str) -> bytes:
    return create(api, task_no, Connection="close")


def old_create(api: Api, task_no: str) -> bytes:
    return create(api, task_no).replace(b"HTTP/1.1", b"HTTP/1.0")


def chunked_create(api: Api, task_no: str) -> bytes:
    body = encode(TASK | {"taskNo": task_no})
    headers = _JSON | {"Transfer-Encoding": "chunked"} | api.signed(body)
    head = request_bytes("POST", "/task/create", headers, b"", length=False)
    return head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


def expecting_create(api: Api, task_no: str) -> bytes:
    return create(api, task_no, Expect="100-continue")


def long_create(api: Api, task_no: str) -> bytes:
    body = encode(TASK | {"taskNo": task_no, "content": '"' + "x" * 100_000 + '"'})
    return request_bytes("POST", "/task/create", _JSON | api.signed(body), body)


_JUNK = {
    "nothing": b"",
    "an empty line": b"\r\n",
    "a request": HEALTH,
    "many requests": HEALTH * 2000,
    "no request": b"\x00\xff nonsense \n\r\n\r\n",
    "half a request": HEALTH[:-2],
    "a megabyte": b"x" * 1_000_000,
}


@pytest.mark.parametrize("junk", _JUNK)
@pytest.mark.parametrize("make", [closing_create, old_create])
async def test_what_stands_behind_a_last_request_was_never_asked(
    api: Api, junk: str, make: Make
) -> None:
    for number in range(10):
        wire = await api.connect()
        async with wire.stream, trio.open_nursery() as nursery:
            nursery.start_soon(wire.send, make(api, f"no-{number}") + _JUNK[junk])
            reply = await wire.reply()
            assert (reply.status, reply.code) == (200, 0)
            assert reply.headers["connection"] == "close"
            # And no reset, which would have taken the answer with it.
            assert await wire.stream.receive_some(1) == b""
        assert api.kept() == (1, number + 1)


async def test_what_comes_late_behind_a_last_request_is_read_away(api: Api) -> None:
    wire = await api.connect()
    async with wire.stream:
        await wire.send(closing_create(api, "a"))
        await until(lambda: api.server.connections == 0)
        await wire.send(HEALTH)
        await wire.send(HEALTH)
        assert (await wire.reply()).code == 0
        assert await wire.stream.receive_some(1) == b""


@pytest.mark.parametrize("before", [b"\r\n", b"\r\n\r\n"])
async def test_empty_lines_before_a_request_are_passed_over(api: Api, before: bytes) -> None:
    wire = await api.connect()
    async with wire.stream:
        for number in range(2):
            await wire.send(before + create(api, f"a-{number}"))
            assert (await wire.reply()).code == 0
        await wire.send(before + create(api, "b") + before + create(api, "c"))
        assert [(await wire.reply()).code for _ in "bc"] == [0, 0]


_MAKES = [create, closing_create, old_create, chunked_create, expecting_create, long_create]


@pytest.mark.parametrize("pieces", [1, 2, 5])
@pytest.mark.parametrize("make", _MAKES)
async def test_a_client_that_closes_its_half_gets_its_answer(make: Make, pieces: int) -> None:
    async with running_api(config_of(max_body=200000)) as api:
        data = make(api, "order-1001")
        size = -(-len(data) // pieces)
        wire = await api.connect()
        assert isinstance(wire.stream, trio.SocketStream)
        async with wire.stream:
            for at in range(0, len(data), size):
                await wire.send(data[at : at + size])
                await trio.testing.wait_all_tasks_blocked(0.001)
            await wire.stream.send_eof()
            reply = await wire.reply()
            if reply.status == 100:
                reply = await wire.reply()
            assert (reply.status, reply.code) == (200, 0)
            await wire.closed()
        assert api.kept() == (1, 1)


async def test_a_client_that_closes_its_half_gets_all_its_answers() -> None:
    async with running_api(config_of(max_body=200000)) as api:
        wire = await api.connect()
        assert isinstance(wire.stream, trio.SocketStream)
        async with wire.stream:
            makes = [create, chunked_create, create, long_create, create]
            asked = [make(api, f"no-{number}") for number, make in enumerate(makes)]
            await wire.send(b"".join(asked) + HEALTH)
            await wire.stream.send_eof()
            assert [(await wire.reply()).code for _ in (*asked, HEALTH)] == [0] * 6
            await wire.closed()


@pytest.mark.parametrize("make", [create, chunked_create])
async def test_a_client_that_closes_its_half_too_early_is_told_so(api: Api, make: Make) -> None:
    data = make(api, "order-1001")
    head = data.index(b"\r\n\r\n") + 4
    for cut in (1, 20, head - 1, head, head + 1, len(data) - 1):
        wire = await api.connect()
        assert isinstance(wire.stream, trio.SocketStream)
        async with wire.stream:
            await wire.send(data[:cut])
            await wire.stream.send_eof()
            reply = await wire.reply()
            what = "request" if cut < head else "body"
            assert (reply.status, reply.code) == (400, 400)
            assert reply.msg.startswith(f"the {what} ended before")
            await wire.closed()
    assert api.kept() == (1, 0)


async def test_who_asks_whether_to_send_a_body_that_is_too_long_is_told_so(api: Api) -> None:
    headers = _JSON | {"Expect": "100-continue", "Content-Length": "5000"}
    wire = await api.connect()
    async with wire.stream:
        await wire.send(request_bytes("POST", "/task/create", headers, b"", length=False))
        reply = await wire.reply()
        assert (reply.status, reply.headers["connection"]) == (413, "close")
        await wire.closed()


async def test_a_head_in_small_pieces_is_read_as_one_in_one_piece(api: Api) -> None:
    wire = await api.connect()
    async with wire.stream:
        padding = {f"x-{number}": "y" * 1000 for number in range(15)}
        for size in (1000, 16_384):
            data = create(api, f"of-{size}", **padding)
            assert data.index(b"\r\n\r\n") > 15_000
            for at in range(0, len(data), size):
                await wire.send(data[at : at + size])
                await trio.testing.wait_all_tasks_blocked(0.001)
            assert (await wire.reply()).code == 0


@pytest.fixture
def full_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has no room for what is written at once."""

    def refuse(*_: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr(wires, "os", SimpleNamespace(read=os.read, write=refuse))


async def stuck(api: Api) -> tuple[Wire, trio.Event]:
    """A connection for whose client an answer waits, and what makes room for it."""
    wire = await api.connect()
    await until(lambda: api.server.connections == 1)
    (one,) = api.server._connections
    entered, room = trio.Event(), trio.Event()
    stream = one._wire._stream
    send_all = stream.send_all

    async def wait_for_room(data: bytes | bytearray | memoryview) -> None:
        entered.set()
        await room.wait()
        await send_all(data)

    stream.send_all = wait_for_room  # type: ignore[method-assign]
    await wire.send(_UNSIGNED)
    await entered.wait()
    return wire, room


@pytest.mark.usefixtures("full_kernel")
@pytest.mark.parametrize("beside", [b"", _UNSIGNED, HEALTH * 1000], ids=["", "one", "many"])
async def test_a_client_that_reads_no_answers_does_not_hold_up_the_end(
    api: Api, beside: bytes
) -> None:
    wire, _ = await stuck(api)
    async with wire.stream:
        await wire.send(beside)
        with trio.fail_after(2):
            await api.server.close(0.2)
        assert api.server.connections == 0


@pytest.mark.usefixtures("full_kernel")
async def test_a_client_that_reads_late_gets_every_answer(api: Api) -> None:
    wire, room = await stuck(api)
    async with wire.stream:
        await wire.send(_UNSIGNED + HEALTH + _UNSIGNED)
        room.set()
        statuses = [(await wire.reply()).status for _ in range(4)]
        assert statuses == [401, 401, 200, 401]


async def test_an_answer_that_does_not_fit_into_the_kernel_is_sent_all_the_same(api: Api) -> None:
    wire = await api.connect()
    async with wire.stream, trio.open_nursery() as nursery:
        await until(lambda: api.server.connections == 1)
        (one,) = api.server._connections
        nursery.start_soon(one._send, b"x" * 20_000_000)
        length = 0
        while length < 20_000_000:
            length += len(await wire.stream.receive_some(1_000_000))


@pytest.mark.deadline(60)
async def test_what_is_closed_writes_to_nobody_elses_connection() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    wire = wires.Wire(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
    descriptor = ours.fileno()
    await wire.close()
    after = [socket.socketpair()]
    while descriptor not in {one.fileno() for pair in after for one in pair}:
        after.append(socket.socketpair())
    assert wire.write_now(b"503") == b""
    for pair in after:
        for one in pair:
            one.setblocking(False)
            with pytest.raises(BlockingIOError):
                one.recv(1)
    for one in (theirs, *itertools.chain.from_iterable(after)):
        one.close()


_KEYS = App(
    id=0,
    app_key="0123456789abcdef",
    secret_key="fedcba9876543210fedcba9876543210",
    name="both",
    link_url=LINK_URL,
    step=5,
    retry_total=3,
    remark="",
    created_at=0,
)


def signed(method: str, target: str, body: bytes, number: int, *, admin: bool = False) -> bytes:
    key, secret = (ADMIN_KEY, ADMIN_SECRET) if admin else (_KEYS.app_key, _KEYS.secret_key)
    data = target.partition("?")[2].encode() if method == "GET" else body
    nonce = f"nonce-0123456789-{number}"
    headers = signing.sign_headers(key, secret, data, now_ms=NOW_S * 1000, nonce=nonce)
    return request_bytes(method, target, _JSON | headers, body)


_BODIES = [
    encode(TASK),
    encode(TASK | {"taskNo": "other", "content": {"a": [1, 2.5, "ä"]}}),
    encode(TASK | {"timeout": 0, "nane": "x"}),
    b"{",
    b"",
    encode(TASK | {"name": "n" * 5000}),
    b" " * 3000 + encode(TASK | {"taskNo": "late"}),
]
_WHOLE = [
    *(signed("POST", "/task/create", body, number) for number, body in enumerate(_BODIES)),
    signed("GET", "/task/detail?coroutine_id=1", b"", 10),
    signed("GET", "/task/detail?taskNo=order-1001", b"", 11),
    signed("GET", "/task/detail", b"", 12),
    signed("POST", "/task/detail", b'{"taskId":1}', 13),
    signed("POST", "/task/cancel", b'{"coroutine_id":1}', 14),
    signed("POST", "/task/cancel?x=1", b'{"coroutine_id":1}', 15),
    signed("POST", "/application/create", b'{"appName":1}', 16, admin=True),
    signed("POST", "/task/create", encode(TASK), 17, admin=True),
    _UNSIGNED,
    request_bytes("PUT", "/task/create", _JSON, b"{}"),
    request_bytes("GET", "/task/create", {}, b""),
    request_bytes("POST", "/task/creat", _JSON, b"{}"),
    request_bytes("HEAD", "/readyz", {}, b""),
    HEALTH,
    b"POST /task/detail HTTP/1.1\r\nHost:\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
]
_CHANGES = st.sampled_from(
    [
        (b"\r\n", b"\n"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        (b"\r\n\r\n", b"\r\nConnection: Keep-Alive\r\n\r\n"),
        (b"\r\n\r\n", b"\r\nX-Request-Id: mine.1\r\n\r\n"),
        (b"\r\n\r\n", b"\r\nX-Request-Id: no good\r\n\r\n"),
        (b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"),
        (b"\r\n\r\n", b"\r\nnonce: another\r\n\r\n"),
        (b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\n"),
        (b"app_key: ", b"app-key: "),
        (b"app_key: ", b"app_key:"),
        (b"app_key: 0", b"app_key: 1"),
        (b"Content-Length: ", b"Content-Length: 0"),
        (b"Content-Length: ", b"Content-Length: 1"),
        (b"application/json", b"application/json; charset=utf-8"),
        (b"application/json", b"text/plain"),
        (b"Host: test\r\n", b""),
        (b"Host: test\r\n", b"Host: a..b\r\n"),
        (b"Host: test\r\n", b"Host: .\r\n"),
        (b"POST", b"post"),
        (b"POST", b"\r\nPOST"),
        (b"/task", b"http://x/task"),
        (b"/task", b"http://test/task"),
        (b"signature: ", b"signature:  "),
    ]
)


@st.composite
def _streams(draw: st.DrawFn) -> list[bytes]:
    """What a client sends, in the pieces that it sends."""
    data = b""
    for request in draw(st.lists(st.sampled_from(_WHOLE), min_size=1, max_size=4)):
        changed = request
        for before, after in draw(st.lists(_CHANGES, max_size=2)):
            changed = changed.replace(before, after, 1)
        data += changed
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=3)) + data[at + draw(st.integers(0, 3)) :]
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=4)))
    edges = [0, *cuts, len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a < b]


async def answers_of(api: Api, pieces: list[bytes]) -> bytes:
    """All that comes back until the server closes."""
    stream = await trio.open_tcp_stream(api.host, api.port)
    answers = b""
    async with stream:
        for piece in pieces:
            await stream.send_all(piece)
            await trio.testing.wait_all_tasks_blocked(0.001)
        await stream.send_eof()
        while data := await stream.receive_some(65_536):
            answers += data
    # Nobody goes by these two, and they differ between any two answers.
    answers = re.sub(rb"date: [^\r]*", b"date: now", answers)
    return re.sub(rb"x-request-id: [0-9a-f]{16}\r", b"x-request-id: random\r", answers)


@given(_streams())
@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@example([b"".join(_WHOLE[:3] + _WHOLE[7:12])[:-1]])
@example([_WHOLE[0][:-1], b"}" + HEALTH])
def test_nobody_can_tell_how_a_stream_was_cut(pieces: list[bytes]) -> None:
    assert trio.run(outcome, pieces) == trio.run(outcome, [b"".join(pieces)])


async def outcome(pieces: list[bytes]) -> tuple[bytes, tuple[int, int]]:
    """What comes back, and what is kept."""
    with trio.fail_after(30):
        async with running_api() as api:
            await api.node.store.create_app(_KEYS)
            return await answers_of(api, pieces), api.kept()

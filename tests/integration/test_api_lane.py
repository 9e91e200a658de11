"""The lane over sockets: that it is gone through, and that nobody can tell."""

from __future__ import annotations

import itertools
import os
import re
from types import SimpleNamespace

import pytest
import trio
from hypercorn.protocol.h11 import H11Protocol
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from taskd import signing
from taskd.api import connection
from taskd.model import App
from tests.support.api import (
    ADMIN_KEY,
    ADMIN_SECRET,
    HEALTH,
    LINK_URL,
    NOW_S,
    TASK,
    Api,
    SlowStore,
    Wire,
    detail_request,
    encode,
    request_bytes,
    running_api,
    until,
    with_api,
    with_store,
)

_JSON = {"Content-Type": "application/json"}
_UNSIGNED = request_bytes("POST", "/task/create", _JSON, b"{}")


def create_request(api: Api, task_no: str = "order-1001") -> bytes:
    body = encode(TASK | {"taskNo": task_no})
    return request_bytes("POST", "/task/create", _JSON | api.signed(body), body)


@pytest.fixture
def no_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypercorn answers nothing."""

    async def refuse(*_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise AssertionError("this was for the lane")

    monkeypatch.setattr(H11Protocol, "_create_stream", refuse)


@pytest.mark.usefixtures("no_streams")
def test_plain_requests_do_not_reach_hypercorn() -> None:
    async def test(api: Api) -> None:
        wire = await api.connect()
        async with wire.stream:
            for number in range(3):
                await wire.send(create_request(api, f"no-{number}"))
                assert (await wire.reply()).code == 0
            await wire.send(detail_request(api))
            assert (await wire.reply()).data["state"] == "scheduled"
            await wire.send(_UNSIGNED)
            assert (await wire.reply()).status == 401

    with_api(test)


@pytest.mark.usefixtures("no_streams")
def test_a_body_that_follows_its_headers_is_the_lanes_too() -> None:
    async def test(api: Api) -> None:
        whole = create_request(api)
        end = whole.index(b"\r\n\r\n") + 4
        wire = await api.connect()
        async with wire.stream:
            await wire.send(whole[:end])
            await trio.testing.wait_all_tasks_blocked()
            await wire.send(whole[end:])
            assert (await wire.reply()).code == 0

    with_api(test)


def test_a_slow_body_is_hypercorns() -> None:
    async def test(api: Api) -> None:
        whole = create_request(api)
        wire = await api.connect()
        async with wire.stream:
            await wire.send(whole[:-5])
            buffered = api.server._app.front.buffered
            await until(lambda: any(one._mixed for one in api.server._connections))
            await wire.send(whole[-5:])
            assert (await wire.reply()).code == 0
            await until(lambda: buffered.held == 0)

    with_api(test)


def test_the_lane_and_hypercorn_take_turns_on_a_connection() -> None:
    async def test(api: Api) -> None:
        wire = await api.connect()
        async with wire.stream:
            for number in range(3):
                await wire.send(create_request(api, f"a-{number}"))
                assert (await wire.reply()).code == 0
                await wire.send(HEALTH)
                assert (await wire.reply()).status == 200
            # And in one piece: what stands behind is answered behind.
            await wire.send(create_request(api, "b") + HEALTH + create_request(api, "c") + HEALTH)
            answers = [await wire.reply() for _ in range(4)]
        assert [("taskId" in answer.data) for answer in answers] == [True, False, True, False]
        assert api.kept() == (1, 5)

    with_api(test)


@pytest.fixture
def full_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has no room for what is written at once."""

    def refuse(*_: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr(connection, "os", SimpleNamespace(read=os.read, write=refuse))


async def stuck(api: Api) -> tuple[Wire, trio.Event]:
    """A connection for whose client an answer of the lane's waits, and what makes room
    for it."""
    wire = await api.connect()
    await until(lambda: api.server.connections == 1)
    (one,) = api.server._connections
    room = trio.Event()
    send_all = one._stream.send_all

    async def wait_for_room(data: bytes | bytearray | memoryview) -> None:
        await room.wait()
        await send_all(data)

    one._stream.send_all = wait_for_room  # type: ignore[method-assign]
    await wire.send(_UNSIGNED)
    await until(one._sending.locked)
    return wire, room


@pytest.mark.usefixtures("full_kernel")
@pytest.mark.parametrize("beside", [b"", _UNSIGNED, HEALTH * 1000], ids=["", "one", "many"])
def test_a_client_that_reads_no_answers_does_not_hold_up_the_end(beside: bytes) -> None:
    async def test(api: Api) -> None:
        wire, _ = await stuck(api)
        async with wire.stream:
            await wire.send(beside)
            with trio.fail_after(2):
                await api.server.close(0.2)
            assert api.server.connections == 0

    with_api(test)


@pytest.mark.usefixtures("full_kernel")
def test_a_client_that_reads_late_gets_every_answer() -> None:
    async def test(api: Api) -> None:
        wire, room = await stuck(api)
        async with wire.stream:
            await wire.send(_UNSIGNED + HEALTH + _UNSIGNED)
            room.set()
            statuses = [(await wire.reply()).status for _ in range(4)]
            assert statuses == [401, 401, 200, 401]

    with_api(test)


def test_an_answer_that_does_not_fit_into_the_kernel_is_sent_all_the_same() -> None:
    async def test(api: Api) -> None:
        wire = await api.connect()
        async with wire.stream, trio.open_nursery() as nursery:
            await until(lambda: api.server.connections == 1)
            (one,) = api.server._connections
            nursery.start_soon(one.write, b"x" * 20_000_000)
            length = 0
            while length < 20_000_000:
                length += len(await wire.stream.receive_some(1_000_000))

    with_api(test)


def test_a_client_that_reads_no_answers_has_not_ever_more_of_them_kept() -> None:
    async def test(api: Api) -> None:
        stream = await trio.open_tcp_stream(api.host, api.port)
        async with stream:
            await stream.send_all(HEALTH)
            await until(lambda: api.server.connections == 1)
            (one,) = api.server._connections
            with trio.move_on_after(1):
                while True:
                    await stream.send_all(HEALTH * 300)
            # One piece of what it sends may have been read meanwhile.
            assert len(one._unsent) < 3 * 3 * 16_384 / len(HEALTH)

    with_api(test)


def test_the_limit_of_a_request_whose_client_has_left_ends_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "WATCH_S", 0.02)
    monkeypatch.setattr(connection, "FINISH_S", 5.0)
    store = SlowStore()

    async def test(api: Api) -> None:
        wire = await api.connect()
        assert isinstance(wire.stream, trio.SocketStream)
        async with wire.stream:
            await wire.send(detail_request(api))
            await wire.stream.send_eof()
            await store.entered.wait()
            (one,) = api.server._connections
            await until(lambda: one._client_left)
            store.may_go_on.set()
            assert (await wire.reply()).status == 200
            await wire.closed()

    with_store(store, test)


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
        (b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"),
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
        (b"POST", b"post"),
        (b"/task", b"http://x/task"),
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
        if b"HTTP/1.0" in changed or b"Connection: close" in changed:
            # Whether Hypercorn answers a request behind which more comes than may is
            # a matter of chance.
            break
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=3)) + data[at + draw(st.integers(0, 3)) :]
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=2)))
    edges = [0, *cuts, len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a < b]


async def answers_of(api: Api, pieces: list[bytes]) -> bytes:
    """All that comes back until the server closes."""
    stream = await trio.open_tcp_stream(api.host, api.port)
    answers = b""
    async with stream:
        try:
            for piece in pieces:
                await stream.send_all(piece)
                await trio.testing.wait_all_tasks_blocked(0.001)
            await stream.send_eof()
        except trio.BrokenResourceError:
            pass
        try:
            while data := await stream.receive_some(65_536):
                answers += data
        except trio.BrokenResourceError:
            pass
    # Nobody goes by these two, and they differ between any two answers.
    answers = re.sub(rb"date: [^\r]*", b"date: now", answers)
    return re.sub(rb"x-request-id: [0-9a-f]{16}\r", b"x-request-id: random\r", answers)


_settings = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@given(_streams())
@_settings
@example([request for request in _WHOLE if b"Content-Length: 5" not in request])
@example([b"".join(_WHOLE[:3] + _WHOLE[7:12])])
@example([_WHOLE[0][:-1]])
def test_nobody_can_tell_the_lane_from_hypercorn(pieces: list[bytes]) -> None:
    with_lane = trio.run(outcome, pieces, True)
    # Where bytes are no HTTP, what Hypercorn does is partly a matter of chance.
    without = [trio.run(outcome, pieces, False)]
    while with_lane not in without and len(without) < _TRIES:
        without.append(trio.run(outcome, pieces, False))
    assert with_lane in without


_TRIES = 6


def leave(data: bytes) -> None:
    """Leave all to Hypercorn."""


async def outcome(pieces: list[bytes], lane: bool) -> tuple[bytes, tuple[int, int]]:
    """What comes back, and what is kept."""
    with trio.fail_after(30):
        async with running_api() as api:
            if not lane:
                api.server._lane.read = leave  # type: ignore[method-assign]
            await api.node.store.create_app(_KEYS)
            return await answers_of(api, pieces), api.kept()

"""The server under clients that are slow, gone, many, or out of their mind."""

from __future__ import annotations

import socket
import struct
from contextlib import AsyncExitStack

import pytest
import trio
from quart_trio import QuartTrio

from taskd.api import server
from taskd.api.http import body_intake, connection
from taskd.api.http import stream as wires
from tests.support.api import (
    HEALTH,
    TASK,
    Api,
    Reply,
    SlowStore,
    Wire,
    detail_request,
    encode,
    request_bytes,
    running_api,
    until,
)

pytestmark = pytest.mark.deadline(30)


async def stuffed(api: Api) -> Wire:
    """A connection whose client asks and asks and never reads, until it is stuck."""
    stream = await trio.open_tcp_stream(api.host, api.port)
    stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
    wire = Wire(stream)
    while True:
        with trio.move_on_after(0.5) as stuck:
            try:
                await wire.send(HEALTH * 200)
            except trio.BrokenResourceError:
                return wire
        if stuck.cancelled_caught:
            return wire


async def test_a_client_that_reads_nothing_does_not_hold_up_the_end(api: Api) -> None:
    wire = await stuffed(api)
    async with wire.stream:
        with trio.fail_after(2):
            await api.server.close(0.2)
        assert api.server.connections == 0


async def test_a_client_that_reads_nothing_is_cut_off_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wires, "SEND_S", 0.3)
    async with running_api() as api:
        wire = await stuffed(api)
        async with wire.stream:
            await until(lambda: api.server.connections == 0)


@pytest.mark.parametrize(
    "beginning", [b"GET /healthz HTTP/1.1\r\nHost: test\r\n", b"G", b"\r\n", b"\x16\x03\x01"]
)
async def test_headers_that_do_not_come_end_the_connection(
    beginning: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.2)
    async with running_api() as api:
        wire = await api.connect()
        async with wire.stream:
            await wire.send(beginning)
            with trio.fail_after(3):
                await wire.closed()
        await until(lambda: api.server.connections == 0)


async def test_headers_that_trickle_in_end_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.3)
    async with running_api() as api:
        wire = await api.connect()

        async def trickle() -> None:
            await wire.send(b"GET / HTTP/1.1\r\n")
            try:
                while True:
                    await wire.send(b"a: b\r\n")
                    await trio.sleep(0.05)
            except trio.BrokenResourceError:
                pass

        async with wire.stream, trio.open_nursery() as nursery:
            nursery.start_soon(trickle)
            with trio.fail_after(3):
                await wire.closed()
            nursery.cancel_scope.cancel()


async def test_an_idle_connection_is_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "KEEP_ALIVE_S", 0.2)
    async with running_api() as api:
        wire = await api.connect()
        async with wire.stream:
            await wire.send(HEALTH)
            assert (await wire.reply()).status == 200
            with trio.fail_after(3):
                await wire.closed()


async def test_a_body_that_stalls_is_answered_and_the_connection_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(body_intake, "BODY_TIMEOUT_S", 0.2)
    async with running_api() as api:
        wire = await api.connect()
        async with wire.stream:
            headers = {"Content-Type": "application/json", "Content-Length": "100"}
            await wire.send(request_bytes("POST", "/task/create", headers, b"{", length=False))
            reply = await wire.reply()
            assert reply.status == 400
            assert reply.msg == "the body did not arrive within 0.2 s"
            with trio.fail_after(3):
                await wire.closed()


async def test_pipelined_requests_are_answered_in_order(api: Api) -> None:
    bodies = [encode(TASK | {"taskNo": f"no-{number}"}) for number in range(20)]
    headers = {"Content-Type": "application/json"}
    requests = [
        request_bytes("POST", "/task/create", headers | api.signed(body), body) for body in bodies
    ]
    wire = await api.connect()
    async with wire.stream:
        await wire.send(b"".join(requests))
        ids = [(await wire.reply()).data["taskId"] for _ in requests]
    assert ids == sorted(ids)
    for number, task_id in enumerate(ids):
        task = await api.task(f"no-{number}")
        assert task is not None
        assert task.id == task_id


async def test_hundreds_of_connections_are_served_side_by_side(api: Api) -> None:
    replies: list[Reply] = []

    async def talk(number: int) -> None:
        wire = await api.connect()
        async with wire.stream:
            for turn in range(3):
                body = encode(TASK | {"taskNo": f"{number}-{turn}"})
                headers = {"Content-Type": "application/json"} | api.signed(body)
                await wire.send(request_bytes("POST", "/task/create", headers, body))
                replies.append(await wire.reply())

    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(talk, number)
    assert [reply.code for reply in replies] == [0] * 600
    assert api.kept() == (1, 600)


async def test_where_all_connections_are_taken_the_longest_idle_one_goes() -> None:
    with trio.fail_after(30):
        async with running_api(max_connections=2) as api:
            wires = []
            for _ in range(2 * (1 + server.STRANGERS) + 1):
                wire = await api.connect()
                await wire.send(HEALTH)
                assert (await wire.reply()).status == 200
                wires.append(wire)
            await wires[0].closed()
            await wires[1].send(HEALTH)
            assert (await wires[1].reply()).status == 200
            for wire in wires:
                await wire.stream.aclose()


async def test_a_create_is_kept_even_where_the_client_leaves_before_the_answer(api: Api) -> None:
    for number in range(20):
        body = encode(TASK | {"taskNo": f"no-{number}"})
        headers = {"Content-Type": "application/json"} | api.signed(body)
        wire = await api.connect()
        await wire.send(request_bytes("POST", "/task/create", headers, body))
        await wire.stream.aclose()
    await until(lambda: api.kept() == (1, 20))
    await until(lambda: api.server.connections == 0)


async def test_a_request_that_breaks_off_leaves_nothing_behind(api: Api) -> None:
    body = encode(TASK)
    headers = {"Content-Type": "application/json"} | api.signed(body)
    whole = request_bytes("POST", "/task/create", headers, body)
    for cut in range(1, len(whole), 37):
        wire = await api.connect()
        await wire.send(whole[:cut])
        await wire.stream.aclose()
    await until(lambda: api.server.connections == 0)
    assert api.kept() == (1, 0)
    assert (await api.post("/task/create", TASK)).code == 0


async def test_a_request_whose_client_has_reset_its_connection_may_go_on_for_a_while_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "FINISH_S", 0.2)
    store = SlowStore()
    async with running_api(store=store) as api:
        wire = await api.connect()
        assert isinstance(wire.stream, trio.SocketStream)
        await wire.send(detail_request(api))
        await store.entered.wait()
        wire.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await wire.stream.aclose()  # which resets it
        await until(lambda: api.server.connections == 0, within_s=5)


async def test_a_request_whose_client_only_closed_its_half_may_take_as_long_as_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "WATCH_S", 0.01)
    monkeypatch.setattr(connection, "FINISH_S", 0.0)
    store = SlowStore()
    looks = 0
    look = connection.Connection.look

    def counting(one: connection.Connection) -> None:
        nonlocal looks
        looks += 1
        look(one)

    monkeypatch.setattr(connection.Connection, "look", counting)
    async with running_api(store=store) as api:
        wire = await api.connect()
        assert isinstance(wire.stream, trio.SocketStream)
        async with wire.stream:
            await wire.send(detail_request(api))
            await wire.stream.send_eof()
            await store.entered.wait()
            await until(lambda: looks > 3)
            store.may_go_on.set()
            assert (await wire.reply()).status == 200
            await wire.closed()


async def test_a_page_that_fails_is_answered_500(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("boom")

    async with running_api() as api:
        monkeypatch.setattr(QuartTrio, "handle_request", fail)
        reply = await api.raw(HEALTH)
        assert (reply.status, reply.code) == (500, 500)
        assert reply.headers["x-request-id"] in reply.msg
        monkeypatch.undo()
        assert (await api.raw(HEALTH)).status == 200
    assert [record.message for record in caplog.records].count("unexpected error") == 1


async def test_a_client_that_closes_its_half_gets_its_answer(api: Api) -> None:
    wire = await api.connect()
    assert isinstance(wire.stream, trio.SocketStream)
    async with wire.stream:
        await wire.send(HEALTH)
        await wire.stream.send_eof()
        assert (await wire.reply()).status == 200
        await wire.closed()


@pytest.mark.parametrize(
    ("data", "msg"),
    [
        (b"nonsense\r\n\r\n", "its first line must be METHOD TARGET HTTP/1.1"),
        (b"GET / HTTP/1.1\r\n\r\n", "the header Host is missing"),
        (b"GET / HTTP/x\r\nHost: x\r\n\r\n", "its first line must be METHOD TARGET HTTP/1.1"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n", "line 3 must be NAME: VALUE"),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "the header Content-Length must not come twice",
        ),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
            "Transfer-Encoding must be chunked",
        ),
        (
            b"POST / HTTP/1.1\r\nHost:\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
            "Content-Length and Transfer-Encoding must not be given together",
        ),
        (
            b"POST /task/create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "a chunk's size must be hexadecimal digits",
        ),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "only HTTP/1.1 is spoken here"),
        (
            b"GET / HTTP/1.1\r\nHost: x\r\na: " + b"b" * 100_000 + b"\r\n\r\n",
            "the request's line and headers are longer than 16384 bytes",
        ),
    ],
)
async def test_what_is_no_http_is_answered_in_the_envelope(api: Api, data: bytes, msg: str) -> None:
    wire = await api.connect()
    async with wire.stream:
        await wire.send(data)
        reply = await wire.reply()
        assert (reply.status, reply.code, reply.data) == (400, 400, [])
        assert msg in reply.msg
        assert reply.headers["connection"] == "close"
        with trio.fail_after(5):
            await wire.closed()
        await until(lambda: api.server.connections == 0, within_s=5)


async def test_an_absolute_target_and_a_star_are_answered(api: Api) -> None:
    assert (await api.raw(request_bytes("OPTIONS", "*", {}, b""))).status == 405
    assert (await api.raw(request_bytes("GET", "*", {}, b""))).status == 404
    reply = await api.raw(request_bytes("GET", "http://test/healthz", {}, b""))
    assert reply.status == 200
    body = encode(TASK)
    headers = {"Content-Type": "application/json"} | api.signed(body)
    target = "http://test/task/create"
    assert (await api.raw(request_bytes("POST", target, headers, body))).code == 0


async def test_expect_100_continue_is_answered(api: Api) -> None:
    body = encode(TASK)
    headers = {"Content-Type": "application/json", "Expect": "100-continue"}
    whole = request_bytes("POST", "/task/create", headers | api.signed(body), body)
    wire = await api.connect()
    async with wire.stream:
        await wire.send(whole.removesuffix(body))
        assert (await wire.reply()).status == 100
        await wire.send(body)
        assert (await wire.reply()).code == 0


@pytest.mark.parametrize("upgrade", ["websocket", "h2c"])
@pytest.mark.parametrize("version", ["12", "13"])
async def test_an_upgrade_is_not_taken_up(api: Api, upgrade: str, version: str) -> None:
    headers = {
        "Connection": "Upgrade, HTTP2-Settings",
        "Upgrade": upgrade,
        "HTTP2-Settings": "",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": version,
    }
    wire = await api.connect()
    async with wire.stream:
        for _ in range(2):
            await wire.send(request_bytes("GET", "/healthz", headers, b""))
            reply = await wire.reply()
            assert (reply.status, reply.code) == (200, 0)


@pytest.fixture
def small_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few bytes of bodies may be held."""
    monkeypatch.setattr(body_intake, "MAX_BUFFERED", 9_800)


@pytest.mark.usefixtures("small_room")
async def test_bodies_of_who_is_no_signer_are_not_held(api: Api) -> None:
    head = b"POST /task/create HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n"
    async with AsyncExitStack() as stack:
        wires = [await api.connect() for _ in range(5)]
        for wire in wires:
            await stack.enter_async_context(wire.stream)
            await wire.send(head + b" " * 3_900)
        for wire in wires:
            await wire.send(b" " * 100)
            assert (await wire.reply()).status == 415
        assert api.server._router.buffered.held == 0


@pytest.mark.usefixtures("small_room")
async def test_bodies_are_held_up_to_a_bound(api: Api) -> None:
    buffered = api.server._router.buffered
    body = b" " * 4_000

    def request() -> bytes:
        headers = {"Content-Type": "application/json"} | api.signed(body)
        return request_bytes("POST", "/task/create", headers, body)

    async with AsyncExitStack() as stack:
        waiting = [await stack.enter_async_context((await api.connect()).stream) for _ in "12"]
        for stream in waiting:
            await stream.send_all(request()[:-100])
        await until(lambda: buffered.held == 7_800)
        third = await api.connect()
        await stack.enter_async_context(third.stream)
        await third.send(request()[:-100])
        reply = await third.reply()
        assert (reply.status, reply.code) == (503, 503)
        assert "large requests" in reply.msg
    await until(lambda: buffered.held == 0)
    assert (await api.post("/task/create", TASK)).code == 0
    assert buffered.held == 0


async def test_stop_accepting_closes_the_listeners_and_still_answers_kept_connections(
    api: Api,
) -> None:
    wire = await api.connect()
    async with wire.stream:
        await wire.send(HEALTH)
        assert "connection" not in (await wire.reply()).headers
        api.server.stop_accepting()

        async def refused() -> bool:
            try:
                stream = await trio.open_tcp_stream(api.host, api.port)
            except OSError:
                return True
            await stream.aclose()
            return False

        with trio.fail_after(2):
            while not await refused():
                await trio.sleep(0.01)
        await wire.send(HEALTH)
        reply = await wire.reply()
        assert reply.status == 200
        assert reply.headers["connection"] == "close"
        await wire.closed()


async def told_well_and_to_close(sock: socket.socket) -> None:
    """A request to `HEALTH` that was sent is answered, as the connection's last."""
    with sock:
        reply = await trio.to_thread.run_sync(sock.recv, 65_536)
    assert reply.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in reply


async def test_who_is_in_the_systems_queue_when_the_listeners_close_is_answered(api: Api) -> None:
    """And not reset, which would leave a client in doubt of what was done."""
    # Without a step of Trio in between, so nothing of this has been accepted.
    waiting = [socket.create_connection((api.host, api.port), timeout=5) for _ in range(20)]
    for sock in waiting:
        sock.sendall(HEALTH)
    api.server.stop_accepting()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((api.host, api.port), timeout=5)
    for sock in waiting:
        await told_well_and_to_close(sock)


async def test_who_has_asked_in_the_moment_of_the_close_is_answered(api: Api) -> None:
    """By a connection that was not taken yet, and by one that was kept and idle."""
    kept = socket.create_connection((api.host, api.port), timeout=5)
    kept.sendall(HEALTH)
    reply = await trio.to_thread.run_sync(kept.recv, 65_536)
    assert b"connection: close" not in reply
    # Without a step of Trio in between, so nothing of this has been read.
    asking = [kept]
    asking += [socket.create_connection((api.host, api.port), timeout=5) for _ in range(20)]
    for sock in asking:
        sock.sendall(HEALTH)
    with trio.fail_after(2):
        await api.server.close(1)
    assert api.server.connections == 0
    for sock in asking:
        await told_well_and_to_close(sock)


# Which of two tasks that are ready Trio runs first is chance.
@pytest.mark.parametrize("_again", range(12))
async def test_who_has_just_come_in_the_moment_of_the_close_is_answered(
    api: Api, _again: int
) -> None:
    # None is there but this, so nothing keeps the server from being closed.
    sock = socket.create_connection((api.host, api.port), timeout=5)
    sock.sendall(HEALTH)
    with trio.fail_after(2):
        await api.server.close(1)
    await told_well_and_to_close(sock)


async def test_farewell_waits_for_the_connections_that_are_kept(api: Api) -> None:
    wire = await api.connect()
    async with wire.stream:
        await wire.send(HEALTH)
        await wire.reply()
        api.server.say_goodbye()
        with trio.move_on_after(0.05) as waited:
            await api.server.farewell()
        assert waited.cancelled_caught
        await wire.send(HEALTH)
        assert (await wire.reply()).headers["connection"] == "close"
        with trio.fail_after(2):
            await api.server.farewell()


async def test_close_waits_for_requests_in_hand_and_not_for_idle_connections() -> None:
    store = SlowStore()
    async with running_api(store=store) as api:
        idle, busy = await api.connect(), await api.connect()
        await idle.send(HEALTH)
        assert (await idle.reply()).status == 200
        await busy.send(detail_request(api))
        await store.entered.wait()
        async with idle.stream, busy.stream, trio.open_nursery() as nursery:
            nursery.start_soon(api.server.close, 10)
            await idle.closed()
            store.may_go_on.set()
            reply = await busy.reply()
            assert (reply.status, reply.headers["connection"]) == (200, "close")
            await busy.closed()
        assert api.server.connections == 0


async def test_close_cuts_off_a_request_that_takes_longer_than_its_grace() -> None:
    store = SlowStore()
    async with running_api(store=store) as api:
        busy = await api.connect()
        await busy.send(detail_request(api))
        await store.entered.wait()
        began = trio.current_time()
        async with busy.stream, trio.open_nursery() as nursery:
            nursery.start_soon(api.server.close, 0.2)
            await busy.closed()
        assert 0.15 <= trio.current_time() - began < 2
        assert api.server.connections == 0


async def test_serve_ends_once_closed() -> None:
    with trio.fail_after(10):
        async with running_api() as api:
            await api.server.close(0.1)

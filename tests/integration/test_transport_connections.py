"""Which connections the transport makes, keeps and closes."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Sequence

import pytest
import trio
import trio.testing

from taskd.delivery.egress import Egress
from taskd.delivery.progress import Progress
from taskd.delivery.resolver import Resolver
from taskd.delivery.transport import Transport, parse_target
from taskd.delivery.transport.connection import Connection
from taskd.delivery.transport.pool import KEEP_S
from taskd.delivery.transport.request import Request
from taskd.domain.model import Phase
from taskd.errors import Denied, Unreachable, UnreadableResponse
from tests.support.blackhole import blackhole
from tests.support.scripted import SUCCESS, Peer, scripted

pytestmark = pytest.mark.deadline(20)


async def serve_forever(peer: Peer) -> None:
    while True:
        await peer.answer()


async def post(transport: Transport, url: str, progress: Progress | None = None) -> int:
    answer = await transport.post(parse_target(url), [], b"{}", progress or Progress())
    return answer.status


def resolving(*addresses: str) -> tuple[Resolver, list[str]]:
    asked: list[str] = []

    def lookup(host: str) -> Sequence[str]:
        asked.append(host)
        return addresses

    return Resolver(lookup), asked


def open_sockets() -> int:
    names = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]  # noqa: PTH208 - fds
    return sum(os.path.lexists(name) and "socket:" in os.readlink(name) for name in names)  # noqa: PTH115 - as above


async def test_a_name_is_resolved_for_each_new_connection_and_sent_as_host() -> None:
    hosts: list[str] = []

    async def script(peer: Peer) -> None:
        hosts.append((await peer.read_request()).headers["Host"])
        await peer.send(SUCCESS.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    resolver, asked = resolving("127.0.0.1")
    transport = Transport(egress=Egress(), resolver=resolver)
    async with scripted(script) as receiver:
        for _ in range(2):
            await post(transport, receiver.url(host="App.test"))
        assert hosts == [f"app.test:{receiver.port}"] * 2
    assert asked == ["app.test"] * 2
    await transport.aclose()


async def test_a_kept_connection_is_used_without_resolving() -> None:
    resolver, asked = resolving("127.0.0.1")
    transport = Transport(egress=Egress(), resolver=resolver)
    async with scripted(serve_forever) as receiver:
        for _ in range(3):
            await post(transport, receiver.url(host="app.test"))
    assert asked == ["app.test"]
    await transport.aclose()


@pytest.mark.parametrize(
    "addresses",
    [("127.0.0.1", "169.254.169.254"), ("169.254.169.254", "127.0.0.1"), ("::ffff:a9fe:a9fe",)],
)
async def test_one_denied_address_denies_the_name_and_nothing_is_connected(
    addresses: tuple[str, ...],
) -> None:
    resolver, _ = resolving(*addresses)
    transport = Transport(egress=Egress(), resolver=resolver)
    async with scripted(serve_forever) as receiver:
        progress = Progress()
        with pytest.raises(
            Denied,
            match=r"app\.test is denied, since its address .*metadata .*allowed_networks",
        ):
            await post(transport, receiver.url(host="app.test"), progress)
        assert progress.phase is Phase.RESOLVING
        assert not progress.sent
        assert receiver.connections == 0


async def test_a_denied_literal_address_is_not_connected() -> None:
    transport = Transport(egress=Egress(strict=True))
    async with scripted(serve_forever) as receiver:
        with pytest.raises(Denied, match=r"127\.0\.0\.1 is denied: loopback"):
            await post(transport, receiver.url())
        assert receiver.connections == 0


async def test_a_name_that_leads_elsewhere_later_is_checked_again() -> None:
    answers = [["127.0.0.1"], ["169.254.169.254"]]

    async def script(peer: Peer) -> None:
        await peer.answer(SUCCESS.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    transport = Transport(egress=Egress(), resolver=Resolver(lambda _: answers.pop(0)))
    async with scripted(script) as receiver:
        assert await post(transport, receiver.url(host="app.test")) == 200
        with pytest.raises(Denied):
            await post(transport, receiver.url(host="app.test"))


async def test_a_refused_address_gives_way_to_the_next() -> None:
    resolver, _ = resolving("127.0.0.3", "127.0.0.1")
    transport = Transport(egress=Egress(), resolver=resolver)
    async with scripted(serve_forever) as receiver:
        progress = Progress()
        assert await post(transport, receiver.url(host="app.test"), progress) == 200
        assert progress.address == f"127.0.0.1:{receiver.port}"
    await transport.aclose()


async def test_where_no_address_accepts_each_is_told_of() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        resolver, _ = resolving("127.0.0.1", "127.0.0.2")
        transport = Transport(egress=Egress(), resolver=resolver)
        with pytest.raises(Unreachable) as caught:
            await post(transport, f"http://app.test:{port}/secret?token=1")
    assert str(caught.value) == (
        f"can't connect to http://app.test:{port} "
        "(127.0.0.1: Connection refused; 127.0.0.2: Connection refused)"
    )


async def test_proxy_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    transport = Transport(egress=Egress())
    async with scripted(serve_forever) as receiver:
        assert await post(transport, receiver.url()) == 200
    await transport.aclose()


async def cancel_when(reached: Callable[[], bool], work: Callable[[], Awaitable[object]]) -> None:
    """Start the work, and cancel it once it is blocked where it should be."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        while not reached():
            await trio.testing.wait_all_tasks_blocked(0.005)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("phase", "body"),
    [
        (Phase.CONNECTING, b"{}"),
        (Phase.SENDING, b"x" * 20_000_000),
        (Phase.AWAITING_RESPONSE, b"{}"),
        (Phase.READING, b"{}"),
    ],
)
async def test_a_cancellation_closes_the_connection(phase: Phase, body: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_head()
        if phase is Phase.READING:
            await peer.send(b"HTTP/1.1 2")
        await trio.sleep_forever()

    async def attempt(port: int) -> None:
        transport, progress = Transport(egress=Egress()), Progress()
        target = parse_target(f"http://127.0.0.1:{port}/")

        async def work() -> None:
            await transport.post(target, [], body, progress)

        before = open_sockets()
        await cancel_when(lambda: progress.phase is phase, work)
        assert open_sockets() <= before + 1  # the receiver's end, at most
        statistics = transport.statistics()
        assert (statistics.active, statistics.idle) == (0, 0)

    if phase is Phase.CONNECTING:
        with blackhole() as port:
            await attempt(port)
    else:
        async with scripted(script) as receiver:
            await attempt(receiver.port)


async def test_no_socket_is_left_behind_by_hundreds_of_odd_ends() -> None:
    ends = [SUCCESS, SUCCESS + b"x", b"garbage\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\n\r\nsuccess"]
    turn = [0]

    async def script(peer: Peer) -> None:
        turn[0] += 1
        await peer.answer(ends[turn[0] % len(ends)])

    async with scripted(script) as receiver:
        before = open_sockets()
        transport = Transport(egress=Egress())
        for _ in range(300):
            with contextlib.suppress(Unreachable, UnreadableResponse):
                await post(transport, receiver.url())
        await transport.aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert open_sockets() <= before
        assert transport.statistics().opened > 100


async def test_a_closed_transport_closes_each_connection_when_its_request_ends() -> None:
    asked = trio.Event()
    go_on = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_request()
        asked.set()
        await go_on.wait()
        await peer.send(SUCCESS)
        await peer.wait_closed()

    transport = Transport(egress=Egress())
    async with scripted(script) as receiver, trio.open_nursery() as nursery:
        nursery.start_soon(post, transport, receiver.url())
        await asked.wait()
        await transport.aclose()
        assert transport.statistics().active == 1
        go_on.set()
    assert transport.statistics().idle == 0
    with pytest.raises(Unreachable, match="the transport is closed"):
        await post(transport, receiver.url())


async def test_the_stack_shows_the_exchange_in_plain_frames_of_one_task() -> None:
    frames: list[tuple[str, dict[str, object]]] = []

    transport = Transport(egress=Egress())
    tasks: list[trio.lowlevel.Task] = []

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await trio.testing.wait_all_tasks_blocked()
        for frame, _ in tasks[0].iter_await_frames():
            frames.append((frame.f_code.co_name, dict(frame.f_locals)))
        await peer.send(SUCCESS)
        await peer.wait_closed()

    async with scripted(script) as receiver, trio.open_nursery() as nursery:

        async def attempt() -> None:
            tasks.append(trio.lowlevel.current_task())
            await post(transport, receiver.url())

        nursery.start_soon(attempt)
    await transport.aclose()
    names = [name for name, _ in frames]
    assert names[:4] == ["attempt", "post", "post", "exchange"]
    variables = frames[3][1]
    assert variables["received_bytes"] == 0
    request = variables["request"]
    assert isinstance(request, Request)
    assert variables["sent_bytes"] == len(request)
    assert str(variables["address"]).startswith("127.0.0.1:")


def connection(origin: str, now: float) -> tuple[Connection, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return Connection(ours, origin=origin, address="a", opened_at=now), theirs


def test_the_transport_closes_what_was_idle_too_long() -> None:
    clock = trio.testing.MockClock(rate=1.0)

    async def main() -> None:
        transport = Transport(egress=Egress())
        async with scripted(serve_forever) as receiver:
            await post(transport, receiver.url())
            transport.close_idle()
            assert transport.statistics().idle == 1
            clock.jump(KEEP_S)
            transport.close_idle()
            assert transport.statistics().idle == 0

    trio.run(main, clock=clock)


@pytest.mark.parametrize("data", [SUCCESS, b""])
async def test_an_answer_sent_before_the_connection_broke_is_read_though_nothing_can_be_sent(
    data: bytes,
) -> None:
    ours, theirs = connection("http://app.test:80", 0.0)
    theirs.sendall(data)
    theirs.close()
    request = Request(b"POST / HTTP/1.1\r\n\r\n")
    if data:
        answer, reusable = await ours.exchange(request, 64, Progress())
        assert answer.body == b"success"
        assert not reusable
    else:
        with pytest.raises(Unreachable, match="closed the connection without an answer"):
            await ours.exchange(request, 64, Progress())
    ours.close()


async def test_an_idle_connection_that_was_reset_is_stale() -> None:
    async def script(peer: Peer) -> None:
        await peer.answer()
        await trio.testing.wait_all_tasks_blocked()
        peer.reset()
        done.release()

    done = trio.Semaphore(0)

    transport = Transport(egress=Egress())
    async with scripted(script) as receiver:
        for _ in range(2):
            assert await post(transport, receiver.url()) == 200
            await done.acquire()
        assert receiver.connections == 2
    await transport.aclose()

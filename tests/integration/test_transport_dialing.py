"""Which of a name's addresses is connected to, and what becomes of the others."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence

import pytest
import trio
import trio.testing

from taskd.delivery.egress import Egress
from taskd.delivery.progress import Progress
from taskd.delivery.resolver import Resolver
from taskd.delivery.transport import Transport, dialing, parse_target
from taskd.delivery.transport.dialing import SHUNNED_S, Dialer, in_turns
from taskd.domain.model import Phase
from taskd.errors import Unreachable
from tests.support.blackhole import blackhole
from tests.support.scripted import Peer, scripted

pytestmark = pytest.mark.deadline(20)

CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 7\r\n\r\nsuccess"


async def serve(peer: Peer) -> None:
    await peer.answer(CLOSING)


def open_sockets() -> int:
    names = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]  # noqa: PTH208 - fds
    return sum(os.path.lexists(name) and "socket:" in os.readlink(name) for name in names)  # noqa: PTH115 - as above


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses to which connections were begun, in order."""
    addresses: list[str] = []
    begin = dialing._begin

    def noted(address: str, port: int) -> socket.socket:
        addresses.append(address)
        return begin(address, port)

    monkeypatch.setattr(dialing, "_begin", noted)
    return addresses


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No address is tried beside another one, unless that has failed."""
    monkeypatch.setattr(dialing, "HEAD_START_S", 1000.0)


def transport_to(*addresses: str) -> Transport:
    return Transport(egress=Egress(), resolver=Resolver(lambda _: addresses))


async def post(transport: Transport, port: int, progress: Progress | None = None) -> str | None:
    """POST once, over a connection of its own; the address that was connected to."""
    progress = progress or Progress()
    answer = await transport.post(parse_target(f"http://app.test:{port}/"), [], b"{}", progress)
    assert answer.body == b"success"
    assert progress.address is not None
    return progress.address.rpartition(":")[0].strip("[]")


@contextlib.contextmanager
def blackholes(addresses: Sequence[str], port: int) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for address in addresses:
            stack.enter_context(blackhole(address, port))
        yield


@pytest.mark.parametrize(
    ("silent", "good"), [("::1", "127.0.0.1"), ("127.0.0.1", "::1"), ("127.0.0.2", "127.0.0.1")]
)
async def test_a_silent_address_is_overtaken_and_tried_last_from_then_on(
    silent: str, good: str, tried: list[str]
) -> None:
    transport = transport_to(silent, good)
    async with scripted(serve, host=good) as receiver:
        with blackholes([silent], receiver.port):
            before = open_sockets()
            # Far less than a share of the caller's deadline, were it shared out.
            with trio.fail_after(5):
                assert await post(transport, receiver.port) == good
            assert tried == [silent, good]
            for _ in range(3):
                assert await post(transport, receiver.port) == good
            assert tried == [silent, good, good, good, good]
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert open_sockets() == before


def test_an_address_that_was_overtaken_is_tried_first_again_after_a_while(
    tried: list[str],
) -> None:
    clock = trio.testing.MockClock(rate=1.0)

    async def main() -> None:
        transport = transport_to("127.0.0.2", "127.0.0.1")
        async with scripted(serve) as receiver:
            with blackholes(["127.0.0.2"], receiver.port):
                await post(transport, receiver.port)
            clock.jump(SHUNNED_S - 60)
            await post(transport, receiver.port)
            assert tried == ["127.0.0.2", "127.0.0.1", "127.0.0.1"]
            clock.jump(61)
            await post(transport, receiver.port)
            assert tried[3:] == ["127.0.0.2", "127.0.0.1"]  # refused by now, and so last again
            await post(transport, receiver.port)
            assert tried[5:] == ["127.0.0.1"]

    trio.run(main, clock=clock)


@pytest.mark.usefixtures("patient")
async def test_the_next_address_is_tried_at_once_when_one_fails(tried: list[str]) -> None:
    transport = transport_to("127.0.0.4", "::1", "127.0.0.3", "127.0.0.1")
    async with scripted(serve) as receiver:
        assert await post(transport, receiver.port) == "127.0.0.1"
        assert tried == ["127.0.0.4", "::1", "127.0.0.3", "127.0.0.1"]
        assert await post(transport, receiver.port) == "127.0.0.1"
        assert tried[4:] == ["127.0.0.1"]


async def test_an_address_that_fails_gives_way_while_another_is_silent(
    tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = dialing._begin

    def begun(address: str, port: int) -> socket.socket:
        # After the first one, nothing but a failure lets the next begin.
        monkeypatch.setattr(dialing, "HEAD_START_S", 1000.0)
        return begin(address, port)

    monkeypatch.setattr(dialing, "_begin", begun)
    monkeypatch.setattr(dialing, "HEAD_START_S", 0.01)

    transport = transport_to("127.0.0.2", "127.0.0.3", "127.0.0.1")
    async with scripted(serve) as receiver:
        with blackholes(["127.0.0.2"], receiver.port):
            assert await post(transport, receiver.port) == "127.0.0.1"
    assert tried == ["127.0.0.2", "127.0.0.3", "127.0.0.1"]


async def test_a_shunned_address_serves_where_the_others_fail(tried: list[str]) -> None:
    transport = transport_to("127.0.0.2", "127.0.0.1")
    async with scripted(serve, host="127.0.0.1") as receiver:
        port = receiver.port
        assert await post(transport, port) == "127.0.0.1"
    with socket.socket() as moved:
        moved.bind(("127.0.0.2", port))
        moved.listen()
        async with trio.open_nursery() as nursery:

            async def answer(listener: trio.SocketListener) -> None:
                stream = await listener.accept()
                await serve(Peer(stream, stream))
                await stream.aclose()

            moved.setblocking(False)
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(moved.dup()))
            nursery.start_soon(answer, listener)
            assert await post(transport, port) == "127.0.0.2"
            await listener.aclose()
    assert tried == ["127.0.0.2", "127.0.0.1", "127.0.0.1", "127.0.0.2"]


async def test_many_silent_addresses_are_tried_a_few_at_a_time(
    tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = [f"127.0.0.{number}" for number in range(2, 22)]
    most = [0]
    begin = dialing._begin

    transport = transport_to(*silent, "127.0.0.1")
    async with scripted(serve) as receiver:
        with blackholes(silent, receiver.port):
            before = open_sockets()

            def counted(address: str, port: int) -> socket.socket:
                sock = begin(address, port)
                most[0] = max(most[0], open_sockets() - before)
                return sock

            monkeypatch.setattr(dialing, "_begin", counted)
            monkeypatch.setattr(dialing, "HEAD_START_S", 0.01)
            assert await post(transport, receiver.port) == "127.0.0.1"
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert open_sockets() == before
    assert tried == [*silent, "127.0.0.1"]
    assert most[0] == dialing.MOST_AT_ONCE


async def test_where_no_address_accepts_each_is_told_of_in_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dialing, "HEAD_START_S", 0.01)
    monkeypatch.setattr(dialing, "MOST_AT_ONCE", 1)

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        with blackholes(["127.0.0.2"], port):
            transport = transport_to("127.0.0.2", "::1", "127.0.0.3", "127.0.0.4", "127.0.0.5")
            before = open_sockets()
            with pytest.raises(Unreachable) as caught:
                await post(transport, port)
            assert open_sockets() == before
    assert str(caught.value) == (
        f"can't connect to http://app.test:{port} (127.0.0.2: no answer; "
        "::1: Connection refused; 127.0.0.3: Connection refused; and 2 more)"
    )
    assert not transport._dialer._shunned  # nobody was better


async def until(reached: Callable[[], bool], work: Callable[[], Awaitable[object]]) -> None:
    """Start the work, and cancel it once it is where it should be."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        while not reached():
            await trio.testing.wait_all_tasks_blocked(0.005)
        nursery.cancel_scope.cancel()


async def test_a_cancellation_in_a_race_closes_each_of_its_sockets(
    tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialing, "HEAD_START_S", 0.01)
    silent = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]

    transport = transport_to(*silent)
    with blackhole(silent[0]) as port, blackholes(silent[1:], port):
        before, progress = open_sockets(), Progress()

        async def work() -> None:
            await post(transport, port, progress)

        await until(lambda: len(tried) == 3, work)
        assert open_sockets() == before
        assert progress.phase is Phase.CONNECTING
        assert progress.address == f"127.0.0.4:{port}"
        assert not progress.sent
        assert transport.statistics().active == 0


@pytest.mark.parametrize("bad", ["255.255.255.255", "127.0.0.2"])
@pytest.mark.parametrize("times", [1, 3])
async def test_an_address_that_fails_at_once_or_soon_is_told_and_leaves_no_socket(
    bad: str, times: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        before = open_sockets()
        with pytest.raises(Unreachable, match=rf"can't connect to o \({bad}: [A-Z][a-z ]+\)"):
            await Dialer().dial([bad] * times, port, "o", Progress())
        assert open_sockets() == before
        progress = Progress()
        (await Dialer().dial([bad, "127.0.0.1"], port, "o", progress)).close()
        assert progress.address == f"127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("addresses", "slow", "ordered"),
    [
        ("a b c", "", "a b c"),
        (":a :b c d e", "", ":a c :b d e"),
        ("a :b :c :d", "", "a :b :c :d"),
        ("a b :c", "", "a :c b"),
        (":a :b c", ":a :b", "c :a :b"),
        (":a b :c d", ":a d", "b :c :a d"),
        ("a b", "a b", "a b"),
        ("a", "b", "a"),
    ],
)
def test_families_take_turns_and_slow_ones_come_last(
    addresses: str, slow: str, ordered: str
) -> None:
    assert in_turns(addresses.split(), set(slow.split())) == ordered.split()


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialing, "MOST_ORIGINS", 3)

    dialer = Dialer()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for origin in ("a", "b", "c", "a", "d"):
            sock = await dialer.dial(["127.0.0.2", "127.0.0.1"], port, origin, Progress())
            sock.close()
        assert list(dialer._shunned) == ["c", "a", "d"]
        assert [list(known) for known in dialer._shunned.values()] == [["127.0.0.2"]] * 3

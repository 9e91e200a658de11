"""Kept connections that their receiver closes: what is sent again, and what is learnt."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import pytest
import trio
import trio.testing
import trustme

from taskd.delivery.egress import Egress
from taskd.delivery.progress import Progress
from taskd.delivery.transport import Transport, parse_target
from taskd.delivery.transport.connection import Connection
from taskd.domain.model import CancelCertainty, Phase
from taskd.engine.execution import cancel_certainty
from taskd.errors import Unreachable
from tests.support.blackhole import blackhole
from tests.support.scripted import SUCCESS, Peer, Receiver, Request, scripted

pytestmark = pytest.mark.deadline(20)

Close = Callable[[Peer], None]


async def post(
    transport: Transport, receiver: Receiver, body: bytes, progress: Progress | None = None
) -> None:
    target = parse_target(receiver.url())
    headers = [("nonce", body.decode()[:9])]
    answer = await transport.post(target, headers, body, progress or Progress())
    assert answer.body == b"success"


@pytest.fixture
def unnoticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A close is still on its way when the connection is looked at."""
    monkeypatch.setattr(Connection, "is_stale", lambda _: False)


def reset(peer: Peer) -> None:
    peer.reset()


def finish(peer: Peer) -> None:
    """The connection is closed by the end of the script."""


@pytest.mark.usefixtures("unnoticed")
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("close", [finish, reset])
@pytest.mark.parametrize("size", [3, 20_000_000])
async def test_a_request_that_comes_after_the_close_is_sent_once_more(
    close: Close, tls: bool, size: int
) -> None:
    requests: list[Request] = []
    closed = trio.Event()
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def script(peer: Peer) -> None:
        requests.append(await peer.read_request())
        await peer.send(SUCCESS)
        if len(requests) == 1:
            await trio.testing.wait_all_tasks_blocked()
            close(peer)
            await trio.aclose_forcefully(peer.stream)
            closed.set()
        else:
            await peer.wait_closed()

    with authority.cert_pem.tempfile() as ca_file:
        transport = Transport(egress=Egress(), ca_file=ca_file)
    async with scripted(script, tls=context if tls else None) as receiver:
        await post(transport, receiver, b"one")
        await closed.wait()
        await trio.testing.wait_all_tasks_blocked()
        progress = Progress()
        await post(transport, receiver, b"2" * size, progress)
        assert [request.body for request in requests] == [b"one", b"2" * size]
        assert receiver.connections == 2
        assert progress.sent
        assert progress.phase is Phase.READING
        assert Phase.CONNECTING in progress.timings_ms
        statistics = transport.statistics()
        assert (statistics.sent_again, statistics.reused, statistics.active) == (1, 1, 0)
    await transport.aclose()


@pytest.mark.parametrize("close", [finish, reset])
async def test_a_request_that_was_read_is_not_sent_again(close: Close) -> None:
    bodies: list[bytes] = []

    async def script(peer: Peer) -> None:
        bodies.append((await peer.read_request()).body)
        await peer.send(SUCCESS)
        bodies.append((await peer.read_request()).body)
        close(peer)

    transport = Transport(egress=Egress())
    async with scripted(script) as receiver:
        await post(transport, receiver, b"one")
        progress = Progress()
        with pytest.raises(Unreachable, match="closed the connection without an answer"):
            await post(transport, receiver, b"two", progress)
        assert progress.sent
        assert receiver.connections == 1
        assert transport.statistics().sent_again == 0
    assert bodies == [b"one", b"two"]


async def test_a_request_whose_answer_had_begun_is_not_sent_again() -> None:
    async def script(peer: Peer) -> None:
        await peer.answer()
        await peer.read_request()
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()

    transport = Transport(egress=Egress())
    async with scripted(script) as receiver:
        await post(transport, receiver, b"one")
        with pytest.raises(Unreachable, match="after an interim answer"):
            await post(transport, receiver, b"two")
        assert receiver.connections == 1
        await post(transport, receiver, b"three")
    await transport.aclose()


async def test_a_new_connection_that_breaks_is_not_tried_again() -> None:
    async def script(peer: Peer) -> None:
        peer.reset()

    transport = Transport(egress=Egress())
    async with scripted(script) as receiver:
        with pytest.raises(Unreachable, match="without an answer"):
            await post(transport, receiver, b"one")
        assert receiver.connections == 1
        assert transport.statistics().sent_again == 0


async def test_a_receiver_that_reads_no_second_request_fails_one_and_is_learnt_from() -> None:
    """Many requests at a time, to a receiver that closes each connection some time
    after its answer and does not look at it any more."""
    let_go = trio.Event()
    closes: list[str | None] = []

    async def script(peer: Peer) -> None:
        request = await peer.read_request()
        closes.append(request.headers.get("Connection"))
        await peer.send(SUCCESS)
        if request.headers.get("Connection") != "close":
            await let_go.wait()

    transport = Transport(egress=Egress())
    failed: list[Unreachable] = []

    async def one() -> None:
        try:
            await post(transport, receiver, b"x")
        except Unreachable as error:
            failed.append(error)

    async with scripted(script) as receiver:
        await post(transport, receiver, b"first")
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(one)
            while len(closes) < 20:
                await trio.testing.wait_all_tasks_blocked(0.005)
            assert not failed
            let_go.set()
        assert len(failed) == 1
        assert closes == [None] * 20
        for _ in range(5):
            await post(transport, receiver, b"y")
        assert closes[20:] == ["close"] * 5
        assert receiver.connections == 25
        assert transport.statistics().idle == 0


async def test_with_no_keep_alive_each_request_says_that_it_is_the_last() -> None:
    closes: list[str | None] = []

    async def script(peer: Peer) -> None:
        closes.append((await peer.read_request()).headers.get("Connection"))
        await peer.send(SUCCESS)
        await peer.wait_closed()

    transport = Transport(egress=Egress(), keep_alive_s=0.0)
    async with scripted(script) as receiver:
        for _ in range(3):
            await post(transport, receiver, b"x")
        assert receiver.connections == 3
        assert transport.statistics().idle == 0
    assert closes == ["close"] * 3


@pytest.mark.usefixtures("unnoticed")
async def test_the_second_connection_has_the_same_deadline_and_its_cancel_is_told_the_truth() -> (
    None
):
    async def script(peer: Peer) -> None:
        await peer.answer()

    transport = Transport(egress=Egress())
    async with scripted(script) as receiver:
        await post(transport, receiver, b"one")
        await trio.testing.wait_all_tasks_blocked()
    with blackhole("127.0.0.1", receiver.port):
        progress = Progress()
        with trio.move_on_after(0.3) as scope:
            await post(transport, receiver, b"two", progress)
        assert scope.cancelled_caught
        assert progress.phase is Phase.CONNECTING
        # A byte has left, though nobody can have read it.
        assert progress.sent
        word = cancel_certainty(progress, sent_before=False)
        assert word is CancelCertainty.ABORTED_BEFORE_RESPONSE
        statistics = transport.statistics()
        assert (statistics.active, statistics.idle, statistics.sent_again) == (0, 0, 1)

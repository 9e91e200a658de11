"""A machine that is out of files, ports or threads: not the application's fault."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

import pytest
import trio

from taskd.delivery.egress import Egress
from taskd.delivery.progress import Progress
from taskd.delivery.resolver import Resolver
from taskd.delivery.transport import Transport, parse_target
from taskd.errors import SystemShort, Unreachable
from tests.support.files import no_file_left
from tests.support.receiver import Receiver
from tests.support.scripted import SUCCESS, Peer, scripted

pytestmark = pytest.mark.deadline(20)

_HEADERS = [("Taskd-Task-Id", "1"), ("Taskd-Task-No", "n"), ("Taskd-Attempt", "1")]


async def post(
    transport: Transport, url: str, progress: Progress | None = None, body: bytes = b"{}"
) -> int:
    answer = await transport.post(parse_target(url), _HEADERS, body, progress or Progress())
    return answer.status


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["127.0.0.1", "::1"]])
async def test_without_a_file_nothing_is_sent_and_nobody_is_blamed(addresses: list[str]) -> None:
    def lookup(host: str) -> Sequence[str]:
        return addresses

    with Receiver() as receiver:
        transport = Transport(egress=Egress(), resolver=Resolver(lookup))
        url = receiver.url.replace("127.0.0.1", "app.test")
        assert transport.degraded() is None
        # Trio's own thread for lookups is started before.
        assert await post(transport, url) == 200
        transport._pool.close_all()
        progress = Progress()
        with no_file_left(), pytest.raises(SystemShort, match="Too many open files"):
            await post(transport, url, progress)
        assert not progress.sent
        assert "Too many open files" in (transport.degraded() or "")
        assert await post(transport, url) == 200
        await transport.aclose()
        assert len(receiver.ledger()) == 2


async def test_a_lookup_without_a_file_blames_nobody() -> None:
    resolver = Resolver()
    await resolver.resolve("localhost")  # starts the thread
    with no_file_left(), pytest.raises((SystemShort, Unreachable)) as raised:
        await resolver.resolve("taskd.invalid")
    assert raised.type is SystemShort
    with pytest.raises(Unreachable):
        await resolver.resolve("taskd.invalid")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("can't start new thread"),
        OSError(errno.EMFILE, "Too many open files"),
        socket.gaierror(socket.EAI_MEMORY, "Memory allocation failure"),
    ],
)
async def test_what_a_lookup_lacks_is_the_machines(error: Exception) -> None:
    def lookup(host: str) -> Sequence[str]:
        raise error

    with pytest.raises(SystemShort):
        await Resolver(lookup).resolve("app.test")


async def test_connections_that_are_kept_make_room() -> None:
    async def serve(peer: Peer) -> None:
        while True:
            await peer.answer()

    transport = Transport(egress=Egress())
    async with scripted(serve) as one, scripted(serve) as other:
        assert await post(transport, one.url()) == 200
        assert transport.statistics().idle == 1
        with no_file_left():
            assert await post(transport, other.url()) == 200
        assert transport.statistics().opened == 2
        assert transport.degraded() is None
    await transport.aclose()


async def test_a_long_body_is_sent_though_no_file_is_left_to_watch_it_by() -> None:
    body = b"x" * 30_000_000

    async def script(peer: Peer) -> None:
        await peer.answer()
        await trio.sleep(0.2)  # the body's first part fills what lies between
        request = await peer.read_request()
        assert len(request.body) == len(body)
        await peer.send(SUCCESS)

    transport = Transport(egress=Egress())
    async with scripted(script) as receiver:
        assert await post(transport, receiver.url()) == 200
        with no_file_left():
            assert await post(transport, receiver.url(), body=body) == 200
    await transport.aclose()


async def test_no_port_to_connect_from_blames_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(self: socket.socket, address: object) -> None:
        raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    monkeypatch.setattr(
        "taskd.delivery.transport.dialing.socket.socket.connect", connect, raising=False
    )

    transport = Transport(egress=Egress())
    with pytest.raises(SystemShort, match="no port left"):
        await post(transport, "http://127.0.0.1:9/")
    with pytest.raises(Unreachable):  # where there is no IPv6, it is that
        await post(transport, "http://[::1]:9/")
    await transport.aclose()

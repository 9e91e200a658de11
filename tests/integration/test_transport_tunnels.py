"""Proxies that answer as they should not, and receivers with several addresses."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import pytest
import trio

from taskd.clock import SystemClock
from taskd.delivery.attempt import AttemptResult, Delivery
from taskd.delivery.egress import Egress
from taskd.delivery.progress import Progress
from taskd.delivery.resolver import Resolver
from taskd.delivery.transport import Transport, parse_target
from taskd.delivery.transport.tunnel import LONGEST_ANSWER
from taskd.domain.model import Outcome, Phase
from taskd.errors import Unreachable
from taskd.runtime.proxy_url import parse_proxy
from tests.integration.test_delivery import leased
from tests.support.attempts import attempted
from tests.support.scripted import SUCCESS, Peer, Script, scripted

pytestmark = pytest.mark.deadline(20)

MADE = b"HTTP/1.1 200 Connection established\r\n\r\n"


async def asked(peer: Peer) -> str:
    """The address that a tunnel is wanted to."""
    while b"\r\n\r\n" not in peer.buffer:
        await peer.more()
    head, _, peer.buffer = peer.buffer.partition(b"\r\n\r\n")
    line, *headers = head.decode("ascii").split("\r\n")
    method, authority, version = line.split(" ")
    assert (method, version) == ("CONNECT", "HTTP/1.1")
    assert headers == [f"Host: {authority}"]
    return authority


def answering(answer: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await asked(peer)
        await peer.send(answer)
        await trio.sleep_forever()

    return script


async def close(peer: Peer) -> None:
    await asked(peer)


async def reset(peer: Peer) -> None:
    await asked(peer)
    peer.reset()


def transport_through(
    port: int, addresses: Sequence[str] = ("10.0.0.1",), *, keep_alive_s: float = 4.0
) -> Transport:
    return Transport(
        egress=Egress(),
        resolver=Resolver(lambda _: addresses),
        proxy=parse_proxy(f"http://127.0.0.1:{port}"),
        keep_alive_s=keep_alive_s,
    )


async def post(transport: Transport, url: str = "http://app.test/") -> Progress:
    progress = Progress()
    response = await transport.post(parse_target(url), [], b"{}", progress)
    assert response.body == b"success"
    return progress


@pytest.mark.parametrize("url", ["http://app.test/", "https://app.test/"])
@pytest.mark.parametrize(
    ("script", "told"),
    [
        (close, "the proxy closed the connection without an answer"),
        (reset, "the proxy closed the connection: Connection reset by peer"),
        (answering(b"SSH-2.0-x\r\n"), "the proxy does not speak HTTP/1.1"),
        (answering(b"HTTP/2 200\r\n\r\n"), "the proxy does not speak HTTP/1.1"),
        (answering(b"HTTP/1.1 OK\r\n\r\n"), "the proxy's answer has no status"),
        (answering(b"HTTP/1.1 200 OK\nA: b\n\n\r\n\r\n"), "the proxy's answer has no status"),
        (answering(b"HTTP/1.1 502 Bad Gateway\r\n\r\n"), "the proxy answered 502 Bad Gateway"),
        (answering(b"HTTP/1.1 301\r\nLocation: x\r\n\r\n"), "the proxy answered 301"),
        (answering(b"HTTP/1.1 101 Switch\r\n\r\n"), "the proxy answered 101 Switch"),
        (answering(b"HTTP/1.1 403 \x1b[31m\xff\r\n\r\n"), "the proxy answered 403 �[31m�"),
        (answering(MADE + SUCCESS), "the proxy sent something behind its answer, unasked"),
        (
            answering(b"HTTP/1.1 200 OK\r\nA: " + b"x" * LONGEST_ANSWER),
            "the proxy's answer is over 16384 bytes long",
        ),
        (
            answering(b"HTTP/1.1 100 Continue\r\n\r\n" * LONGEST_ANSWER),
            "the proxy's answer is over 16384 bytes long",
        ),
    ],
)
async def test_what_a_proxy_does_wrong_is_told_as_the_proxys_and_nothing_is_sent(
    script: Script, told: str, url: str
) -> None:
    async with scripted(script) as proxy:
        transport, progress = transport_through(proxy.port), Progress()
        with pytest.raises(Unreachable) as caught:
            await transport.post(parse_target(url), [], b"{}", progress)
        origin = parse_target(url).origin
        way = f"can't connect to {origin} through the proxy http://127.0.0.1:{proxy.port}"
        assert str(caught.value) == f"{way} (10.0.0.1: {told})"
        assert progress.phase is Phase.CONNECTING
        assert not progress.sent
        assert proxy.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        MADE,
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 204 \r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nVia: x\r\n\r\n",
    ],
)
async def test_a_tunnel_is_one_whatever_headers_the_answer_has(answer: bytes) -> None:
    async def script(peer: Peer) -> None:
        assert await asked(peer) == "10.0.0.1:80"
        for byte in answer:  # in the smallest of pieces
            await peer.send(bytes([byte]))
        while True:
            request = await peer.answer()
            assert request.line == "POST / HTTP/1.1"
            assert request.headers["Host"] == "app.test"

    async with scripted(script) as proxy:
        transport = transport_through(proxy.port)
        for _ in range(2):
            assert (await post(transport)).address == "10.0.0.1:80"
        assert proxy.connections == 1
        await transport.aclose()


async def test_addresses_are_tried_beside_each_other_and_the_slow_one_last_from_then_on() -> None:
    wanted: list[str] = []

    async def script(peer: Peer) -> None:
        wanted.append(await asked(peer))
        if wanted[-1].startswith("[fd12::1]"):
            await trio.sleep_forever()
        await peer.send(MADE)
        await peer.answer()

    async with scripted(script) as proxy:
        transport = transport_through(proxy.port, ["fd12::1", "10.0.0.1"], keep_alive_s=0.0)
        for _ in range(2):
            assert (await post(transport)).address == "10.0.0.1:80"
        assert wanted == ["[fd12::1]:80", "10.0.0.1:80", "10.0.0.1:80"]
        await transport.aclose()


async def test_an_address_that_the_proxy_refuses_is_followed_by_the_next_at_once() -> None:
    async def script(peer: Peer) -> None:
        if (await asked(peer)).startswith("10.0.0.1"):
            await peer.send(b"HTTP/1.1 502 No\r\n\r\n")
            return
        await peer.send(MADE)
        await peer.answer()

    async with scripted(script) as proxy:
        transport = transport_through(proxy.port, ["10.0.0.1", "10.0.0.2"])
        assert (await post(transport)).address == "10.0.0.2:80"
        await transport.aclose()


async def test_a_proxy_that_wants_a_login_is_asked_once() -> None:
    async with scripted(answering(b"HTTP/1.1 407 Login\r\n\r\n")) as proxy:
        transport = transport_through(proxy.port, ["10.0.0.1", "10.0.0.2"])
        with pytest.raises(Unreachable, match=r"demands a user and password \(407\)"):
            await post(transport)
        assert proxy.connections == 1


async def test_a_name_that_only_the_proxy_could_resolve_is_told() -> None:
    def lookup(host: str) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    proxy = parse_proxy("http://proxy.test:3128")
    transport = Transport(egress=Egress(), resolver=Resolver(lookup), proxy=proxy)
    told = r"app\.test can't be resolved: .*names are looked up here, not by the proxy"
    with pytest.raises(Unreachable, match=told):
        await post(transport)
    told = r"the proxy http://proxy\.test:3128 can't be used: the name proxy\.test can't be"
    with pytest.raises(Unreachable, match=told):
        await post(transport, "http://10.0.0.1/")


async def stay_silent(peer: Peer) -> None:
    await asked(peer)
    await peer.wait_closed()


async def test_a_silent_proxy_is_unreachable_and_leaves_nothing_behind() -> None:
    async def attempt(port: int) -> AttemptResult:
        transport = transport_through(port)
        task = leased("http://app.test/", timeout_ms=400)
        return await attempted(Delivery(transport, SystemClock()), task, Progress())

    async with scripted(stay_silent) as proxy:
        result = await attempt(proxy.port)
        assert result.outcome is Outcome.UNREACHABLE
        assert result.unanswered
        assert result.error == (
            "attempt 2 ran out of its 400 ms while connecting through the proxy "
            f"http://127.0.0.1:{proxy.port} (http://app.test:80, 10.0.0.1:80)"
        )


async def test_a_request_cut_off_in_a_tunnel_is_told_with_its_address() -> None:
    async def script(peer: Peer) -> None:
        await asked(peer)
        await peer.send(MADE)
        await peer.read_request()

    async with scripted(script) as proxy:
        transport = transport_through(proxy.port)
        told = r"at 10\.0\.0\.1:80 through the proxy closed the connection without an answer"
        with pytest.raises(Unreachable, match=told):
            await post(transport)

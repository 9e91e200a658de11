"""Callbacks through Debian's tinyproxy."""

from __future__ import annotations

import signal
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trustme

from taskd.delivery.egress import Egress
from taskd.delivery.progress import Progress
from taskd.delivery.resolver import Resolver
from taskd.delivery.transport import Transport, parse_target
from taskd.errors import Denied, Unreachable
from taskd.runtime.proxy_url import parse_proxy
from tests.support.daemon import Daemon, wait_until
from tests.support.receiver import Receiver
from tests.support.scripted import Peer, scripted
from tests.support.workers import events
from tools.servers import Tinyproxy

pytestmark = pytest.mark.deadline(20)

MakeProxy = Callable[..., Tinyproxy]
PASSWORD = "hunter2"
QUOTED = "h%75nter2"


def through(
    proxy: Tinyproxy, *, login: str = "", egress: Egress | None = None, ca_file: Path | None = None
) -> Transport:
    return Transport(
        egress=egress or Egress(),
        resolver=Resolver(lambda _: ["127.0.0.1"]),
        proxy=parse_proxy(f"http://{login}{proxy.address}"),
        ca_file=ca_file,
    )


async def serve(peer: Peer) -> None:
    while True:
        request = await peer.answer()
        assert request.headers["Host"].startswith("app.test:")


async def post(transport: Transport, url: str) -> Progress:
    progress = Progress()
    response = await transport.post(parse_target(url), [], b"{}", progress)
    assert response.body == b"success"
    return progress


async def test_requests_go_through_one_tunnel_to_the_address_that_was_judged(
    tinyproxy: MakeProxy,
) -> None:
    proxy = tinyproxy()

    transport = through(proxy)
    async with scripted(serve) as receiver:
        for _ in range(3):
            progress = await post(transport, receiver.url(host="app.test"))
            assert progress.address == f"127.0.0.1:{receiver.port}"
            assert progress.via == f"the proxy http://{proxy.address}"
        assert receiver.connections == 1
        assert proxy.asked_for() == [f"127.0.0.1:{receiver.port}"]
    await transport.aclose()


async def test_tls_goes_through_to_the_receiver_and_is_verified_by_name(
    tinyproxy: MakeProxy, tmp_path: Path
) -> None:
    proxy, authority = tinyproxy(), trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("app.test").configure_cert(context)
    names: list[str | None] = []
    context.sni_callback = lambda _sock, name, _context: names.append(name)

    transport = through(proxy, ca_file=tmp_path / "ca.pem")
    async with scripted(serve, tls=context) as receiver:
        await post(transport, receiver.url(host="app.test"))
        told = r"TLS with other\.test through the proxy failed: .*Hostname mismatch"
        with pytest.raises(Unreachable, match=told):
            await post(transport, receiver.url(host="other.test"))
    await transport.aclose()
    assert names == ["app.test", "other.test"]


@pytest.mark.parametrize(
    ("login", "told"),
    [
        (f"user:{QUOTED}@", None),
        ("user:wrong@", "the proxy .* does not accept the login"),
        ("", "the proxy .* demands a user and password"),
    ],
)
async def test_a_proxy_that_wants_a_login(
    tinyproxy: MakeProxy, login: str, told: str | None
) -> None:
    proxy = tinyproxy(f"BasicAuth user {PASSWORD}")

    transport = through(proxy, login=login)
    async with scripted(serve) as receiver:
        if told is None:
            await post(transport, receiver.url(host="app.test"))
            await transport.aclose()
            return
        with pytest.raises(Unreachable, match=told) as caught:
            await post(transport, receiver.url(host="app.test"))
        assert "wrong" not in str(caught.value)
        assert receiver.connections == 0


async def test_a_port_that_the_proxy_does_not_allow_is_told(tinyproxy: MakeProxy) -> None:
    proxy = tinyproxy("ConnectPort 443")

    transport = through(proxy)
    async with scripted(serve) as receiver:
        origin = f"http://app.test:{receiver.port}"
        with pytest.raises(Unreachable) as caught:
            await post(transport, f"{origin}/")
        assert str(caught.value) == (
            f"can't connect to {origin} through the proxy http://{proxy.address} "
            "(127.0.0.1: the proxy answered 403 Access violation)"
        )


async def test_a_receiver_that_the_proxy_can_not_reach_and_a_proxy_that_is_gone(
    tinyproxy: MakeProxy,
) -> None:
    proxy = tinyproxy()

    transport = through(proxy)
    with pytest.raises(Unreachable, match=r"the proxy answered 500 Unable to connect"):
        await post(transport, "http://app.test:1/")
    proxy.stop()
    told = rf"can't connect to the proxy http://{proxy.address} \(127.0.0.1: Connection refused"
    with pytest.raises(Unreachable, match=told):
        await post(transport, "http://app.test:1/")


async def test_a_tunnel_that_went_while_it_was_idle_costs_no_attempt(tinyproxy: MakeProxy) -> None:
    proxy = tinyproxy()

    transport = through(proxy)
    async with scripted(serve) as receiver:
        await post(transport, receiver.url(host="app.test"))
        proxy.kill()
        proxy.start()
        await post(transport, receiver.url(host="app.test"))
        assert receiver.connections == 2
    await transport.aclose()


async def test_a_denied_address_is_never_asked_for(tinyproxy: MakeProxy) -> None:
    proxy = tinyproxy()

    transport = through(proxy, egress=Egress(strict=True))
    with pytest.raises(Denied, match="loopback"):
        await post(transport, "http://app.test:80/")
    assert proxy.asked_for() == []


def test_a_daemon_delivers_through_a_proxy_from_a_reload_on_and_tells_no_password(
    tinyproxy: MakeProxy, tmp_path: Path
) -> None:
    proxy = tinyproxy(f"BasicAuth user {PASSWORD}")
    with (
        Receiver() as receiver,
        Daemon(tmp_path) as daemon,
        daemon.create_app(receiver.url, retry_total=0) as client,
    ):

        def deliver(number: int) -> None:
            client.create_task(task_no=str(number), name="t", content="{}", timeout=20_000)
            receiver.wait_for(lambda ledger: len(ledger) == number, within_s=20)

        deliver(1)
        assert proxy.asked_for() == []
        url = f"http://user:{QUOTED}@{proxy.address}"
        daemon.write_config({"delivery": {"proxy": url}}, port=int(daemon.url.rpartition(":")[2]))
        daemon.signal(signal.SIGHUP)
        read = "the configuration was read again"
        wait_until(lambda: events(daemon, read), what=read)
        deliver(2)
        assert len(proxy.asked_for()) == 1
        told = events(daemon, read)[-1]["changed"]
        assert f'delivery.proxy = "http://…@{proxy.address}"' in told
        assert "hunter2" not in daemon.log()


async def test_the_phase_before_a_silent_receiver_is_told(tinyproxy: MakeProxy) -> None:
    """What the proxy does is over once there is a tunnel."""
    proxy = tinyproxy()

    async def stay_silent(peer: Peer) -> None:
        await peer.read_request()
        await trio.sleep_forever()

    transport, progress = through(proxy), Progress()
    async with scripted(stay_silent) as receiver:
        with trio.move_on_after(5) as scope:
            async with trio.open_nursery() as nursery:
                target = parse_target(receiver.url(host="app.test"))
                nursery.start_soon(transport.post, target, [], b"{}", progress)
                while progress.phase != "awaiting_response":
                    await trio.sleep(0.005)
                nursery.cancel_scope.cancel()
        assert not scope.cancelled_caught
        assert progress.address == f"127.0.0.1:{receiver.port}"

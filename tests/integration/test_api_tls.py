"""Where the API listens, over TLS and HTTP/2."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest
import trio
import trustme

from taskd.api import connection, protocols
from taskd.api.server import ApiServer
from taskd.config import Config, ServerConfig
from taskd.errors import ConfigError
from tests.support.api import (
    HEALTH,
    TASK,
    Api,
    Reply,
    SlowStore,
    Wire,
    config_of,
    encode,
    request_bytes,
    running_api,
    until,
)


def test_ipv6_is_served_and_its_url_has_brackets() -> None:
    async def main() -> None:
        config = Config(server=ServerConfig(host="::1", port=0))
        async with running_api(config) as api:
            assert api.host == "::1"
            assert (await api.get("/healthz", headers={})).status == 200

    trio.run(main)


def test_an_address_that_is_taken_is_told_in_one_sentence() -> None:
    async def main() -> None:
        async with running_api() as api:
            server = ServerConfig(port=api.port)
            other = ApiServer(api.server._app, Config(server=server))  # type: ignore[arg-type]
            with pytest.raises(OSError, match=rf"can't listen on 127.0.0.1 port {api.port}: "):
                await other.serve()

    trio.run(main)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@contextmanager
def tls_config(folder: Path, authority: trustme.CA) -> Iterator[Config]:
    issued = authority.issue_cert("localhost")
    cert, key = folder / "cert.pem", folder / "key.pem"
    issued.private_key_pem.write_to_path(key)
    for blob in issued.cert_chain_pems:
        blob.write_to_path(cert, append=True)
    plain = config_of()
    server = ServerConfig(port=0, tls_cert=cert, tls_key=key)
    yield Config(server=server, auth=plain.auth)


async def tls_stream(
    api: Api, authority: trustme.CA, *, alpn: list[str] | None = None
) -> trio.SSLStream[trio.SocketStream]:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if alpn:
        context.set_alpn_protocols(alpn)
    plain = await trio.open_tcp_stream(api.host, api.port)
    return trio.SSLStream(plain, context, server_hostname="localhost", https_compatible=True)


def test_tls_is_spoken_where_it_is_configured(tmp_path: Path, authority: trustme.CA) -> None:
    async def main() -> None:
        with trio.fail_after(30), tls_config(tmp_path, authority) as config:
            async with running_api(config) as api:
                stream = await tls_stream(api, authority)
                body = encode(TASK)
                headers = {"Content-Type": "application/json"} | api.signed(body)
                wire = Wire(stream)
                for code in (0, 401):
                    await wire.send(request_bytes("POST", "/task/create", headers, body))
                    assert (await wire.reply()).code == code
                await stream.aclose()
                plain = await api.connect()
                async with plain.stream:
                    await plain.send(HEALTH)
                    await plain.closed()

    trio.run(main)


def test_a_tls_client_that_never_shakes_hands_does_not_hold_up_the_end(
    tmp_path: Path, authority: trustme.CA
) -> None:
    async def main() -> None:
        with trio.fail_after(10), tls_config(tmp_path, authority) as config:
            async with running_api(config) as api:
                wire = await api.connect()
                await until(lambda: api.server.connections == 1)
                await api.server.close(0.1)
                await wire.closed()
                await wire.stream.aclose()

    trio.run(main)


def test_a_tls_handshake_that_does_not_end_is_given_up(
    tmp_path: Path, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HANDSHAKE_S", 0.2)

    async def main() -> None:
        with trio.fail_after(10), tls_config(tmp_path, authority) as config:
            async with running_api(config) as api:
                wire = await api.connect()
                async with wire.stream:
                    await wire.send(b"\x16\x03\x01\x02")
                    await wire.closed()

    trio.run(main)


def test_a_certificate_that_can_not_be_read_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("no certificate")
    (tmp_path / "key.pem").write_text("no key")

    async def main() -> None:
        server = ServerConfig(port=0, tls_cert=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem")
        async with running_api() as api:
            other = ApiServer(api.server._app, Config(server=server))  # type: ignore[arg-type]
            with pytest.raises(ConfigError, match=r"\[server\] tls_cert and tls_key: "):
                await other.serve()

    trio.run(main)


class H2:
    """An HTTP/2 client, by hand."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.connection = h2.connection.H2Connection(
            h2.config.H2Configuration(header_encoding="utf-8")
        )
        self.connection.initiate_connection()
        self.heads: dict[int, dict[str, str]] = {}
        self.bodies: dict[int, bytes] = {}
        self.done: dict[int, Reply] = {}

    async def request(self, method: str, path: str, headers: dict[str, str], body: bytes) -> int:
        number = self.connection.get_next_available_stream_id()
        fields = [(":method", method), (":path", path), (":scheme", "https"), (":authority", "x")]
        fields += [(name.lower(), value) for name, value in headers.items()]
        self.connection.send_headers(number, fields, end_stream=not body)
        await self.flush()
        sent = 0
        while sent < len(body):
            room = min(self.connection.local_flow_control_window(number), 16_384)
            if room == 0:
                await self.pump()
                continue
            piece = body[sent : sent + room]
            sent += len(piece)
            self.connection.send_data(number, piece, end_stream=sent == len(body))
            await self.flush()
        return number

    async def flush(self) -> None:
        await self.stream.send_all(self.connection.data_to_send())

    async def pump(self) -> None:
        """Take what the server says next."""
        data = await self.stream.receive_some(65_536)
        assert data, "the server closed"
        for event in self.connection.receive_data(bytes(data)):
            if isinstance(event, h2.events.ResponseReceived):
                self.heads[event.stream_id] = {str(k): str(v) for k, v in event.headers}
            elif isinstance(event, h2.events.DataReceived):
                body = self.bodies.get(event.stream_id, b"")
                self.bodies[event.stream_id] = body + event.data
            elif isinstance(event, h2.events.StreamEnded):
                head = self.heads[event.stream_id]
                body = self.bodies.get(event.stream_id, b"")
                self.done[event.stream_id] = Reply(int(head[":status"]), head, body)
        await self.flush()

    async def replies(self, *numbers: int) -> list[Reply]:
        """The answers to these requests."""
        while not self.done.keys() >= set(numbers):
            await self.pump()
        return [self.done[number] for number in numbers]


def test_http_2_is_spoken_where_the_client_wants_it(tmp_path: Path, authority: trustme.CA) -> None:
    async def main() -> None:
        with trio.fail_after(30), tls_config(tmp_path, authority) as config:
            async with running_api(config) as api:
                stream = await tls_stream(api, authority, alpn=["h2"])
                await stream.do_handshake()
                assert stream.selected_alpn_protocol() == "h2"
                client = H2(stream)
                numbers = []
                for number in range(30):
                    body = encode(TASK | {"taskNo": f"no-{number}"})
                    headers = {"content-type": "application/json"} | api.signed(body)
                    numbers.append(await client.request("POST", "/task/create", headers, body))
                replies = await client.replies(*numbers)
                assert [reply.code for reply in replies] == [0] * 30
                assert all("x-request-id" in reply.headers for reply in replies)
                number = await client.request("GET", "/nowhere", {}, b"")
                (reply,) = await client.replies(number)
                assert reply.status == 404
                await stream.aclose()

    trio.run(main)


def test_a_413_over_http_2_leaves_the_connection_as_it_is(
    tmp_path: Path, authority: trustme.CA
) -> None:
    async def main() -> None:
        with trio.fail_after(30), tls_config(tmp_path, authority) as config:
            async with running_api(config) as api:
                stream = await tls_stream(api, authority, alpn=["h2"])
                client = H2(stream)
                number = await client.request("POST", "/task/create", {}, b" " * 1_500_000)
                (reply,) = await client.replies(number)
                assert reply.status == 413
                number = await client.request("GET", "/healthz", {}, b"")
                (reply,) = await client.replies(number)
                assert reply.status == 200
                await stream.aclose()

    trio.run(main)


def test_a_client_that_breaks_the_protocols_library_breaks_only_itself(
    tmp_path: Path, authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with trio.fail_after(30), tls_config(tmp_path, authority) as config:
            async with running_api(config) as api:
                good = H2(await tls_stream(api, authority, alpn=["h2"]))
                bad = H2(await tls_stream(api, authority, alpn=["h2"]))
                # Hypercorn stumbles over data of a request that is answered already.
                with pytest.raises((trio.BrokenResourceError, AssertionError)):
                    await bad.request("POST", "/task/create", {}, b" " * 12_000_000)
                number = await good.request("GET", "/healthz", {}, b"")
                (reply,) = await good.replies(number)
                assert reply.status == 200
                await trio.aclose_forcefully(good.stream)
                await trio.aclose_forcefully(bad.stream)

    trio.run(main)
    assert "connection failed" in [record.message for record in caplog.records]


def test_http_2_client_that_keeps_its_window_shut_is_cut_off(
    tmp_path: Path, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocols, "STREAM_SEND_S", 0.3)

    async def main() -> None:
        with trio.fail_after(30), tls_config(tmp_path, authority) as config:
            async with running_api(config) as api:
                stream = await tls_stream(api, authority, alpn=["h2"])
                client = H2(stream)
                client.connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
                await client.request("GET", "/healthz", {}, b"")
                await until(lambda: api.server.connections == 0)
                await trio.aclose_forcefully(stream)

    trio.run(main)


def test_an_http_2_connection_in_hand_does_not_hold_up_the_end(
    tmp_path: Path, authority: trustme.CA
) -> None:
    store = SlowStore()

    async def main() -> None:
        with trio.fail_after(30), tls_config(tmp_path, authority) as config:
            async with running_api(config, store=store) as api:
                stream = await tls_stream(api, authority, alpn=["h2"])
                client = H2(stream)
                query = "coroutine_id=1"
                headers = api.signed(query.encode())
                number = await client.request("GET", f"/task/detail?{query}", headers, b"")
                await store.entered.wait()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(api.server.close, 5)
                    await until(lambda: api.server._protocols.closing)
                    store.may_go_on.set()
                    (reply,) = await client.replies(number)
                    assert reply.code == 0
                await trio.aclose_forcefully(stream)

    trio.run(main)

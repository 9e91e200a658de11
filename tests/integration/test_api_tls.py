"""Where the API listens, and over TLS."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio
import trustme

from taskd.api.http import stream as wires
from taskd.api.server import ApiServer
from taskd.config import Config, ServerConfig
from taskd.errors import ConfigError
from tests.support.api import (
    HEALTH,
    TASK,
    Api,
    Wire,
    config_of,
    encode,
    request_bytes,
    running_api,
    until,
)


async def test_ipv6_is_served_and_its_url_has_brackets() -> None:
    config = Config(server=ServerConfig(host="::1", port=0))
    async with running_api(config) as api:
        assert api.host == "::1"
        assert (await api.get("/healthz", headers={})).status == 200


async def test_an_address_that_is_taken_is_told_in_one_sentence() -> None:
    async with running_api() as api:
        server = ServerConfig(port=api.port)
        other = ApiServer(api.server._api, Config(server=server))
        with pytest.raises(OSError, match=rf"can't listen on 127.0.0.1 port {api.port}: "):
            await other.serve()


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


async def test_tls_is_spoken_where_it_is_configured(tmp_path: Path, authority: trustme.CA) -> None:
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


async def test_no_client_can_have_keys_agreed_upon_in_a_finite_field(
    tmp_path: Path, authority: trustme.CA
) -> None:
    async def shake_hands(api: Api, group: str) -> None:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        context.set_ecdh_curve(group)
        plain = await trio.open_tcp_stream(api.host, api.port)
        async with trio.SSLStream(plain, context, server_hostname="localhost") as stream:
            await stream.do_handshake()

    with trio.fail_after(30), tls_config(tmp_path, authority) as config:
        async with running_api(config) as api:
            await shake_hands(api, "prime256v1")
            for group in ("ffdhe2048", "ffdhe8192"):
                with pytest.raises(trio.BrokenResourceError):
                    await shake_hands(api, group)


async def test_what_is_no_tls_makes_no_line_in_the_log(
    tmp_path: Path, authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "taskd")

    with trio.fail_after(30), tls_config(tmp_path, authority) as config:
        async with running_api(config) as api:
            hello = client_hello(authority)
            garbage = b"\x00\xff" * 100
            pieces = [garbage, HEALTH, hello[:5], hello + garbage, hello[:-9] + garbage]
            for data in [*pieces, hello, hello.replace(b"localhost", b"\xff\x00..local")]:
                wire = await api.connect()
                async with wire.stream:
                    await wire.send(data)
            await until(lambda: api.server.connections == 0)
    assert [record for record in caplog.records if record.name.startswith("taskd.api")] == []


def client_hello(authority: trustme.CA) -> bytes:
    """What a TLS client says first."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("expect", [{}, {"Connection": "close"}, {"Expect": "100-continue"}])
async def test_a_tls_client_that_closes_its_half_gets_its_answers(
    tmp_path: Path, authority: trustme.CA, expect: dict[str, str], pieces: int
) -> None:
    with trio.fail_after(30), tls_config(tmp_path, authority) as config:
        async with running_api(config) as api:
            context = ssl.create_default_context()
            authority.configure_trust(context)
            body = encode(TASK)
            headers = {"Content-Type": "application/json"} | expect | api.signed(body)
            data = HEALTH + request_bytes("POST", "/task/create", headers, body)
            size = -(-len(data) // pieces)
            answers = await half_closed(
                api, context, [data[at : at + size] for at in range(0, len(data), size)]
            )
            assert answers.count(b"HTTP/1.1 200") == 2
            assert b"taskId" in answers


async def half_closed(api: Api, context: ssl.SSLContext, pieces: list[bytes]) -> bytes:
    """All that is answered to who sends some pieces and then TLS' ``close_notify``."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    answers = b""
    async with await trio.open_tcp_stream(api.host, api.port) as stream:

        async def until_it_is_done(step: Callable[[], object]) -> None:
            while True:
                try:
                    step()
                except ssl.SSLWantReadError:
                    if sent := outgoing.read():
                        await stream.send_all(sent)
                    incoming.write(await stream.receive_some())
                else:
                    return

        await until_it_is_done(tls.do_handshake)
        for piece in pieces:
            tls.write(piece)
            await stream.send_all(outgoing.read())
        with suppress(ssl.SSLWantReadError):
            tls.unwrap()
        await stream.send_all(outgoing.read())
        while data := await stream.receive_some():
            incoming.write(data)
            with suppress(ssl.SSLWantReadError):
                while True:
                    answers += tls.read()
    return answers


async def test_a_tls_client_that_never_shakes_hands_does_not_hold_up_the_end(
    tmp_path: Path, authority: trustme.CA
) -> None:
    with trio.fail_after(10), tls_config(tmp_path, authority) as config:
        async with running_api(config) as api:
            wire = await api.connect()
            await until(lambda: api.server.connections == 1)
            await api.server.close(0.1)
            await wire.closed()
            await wire.stream.aclose()


async def test_a_tls_handshake_that_does_not_end_is_given_up(
    tmp_path: Path, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wires, "HANDSHAKE_S", 0.2)

    with trio.fail_after(10), tls_config(tmp_path, authority) as config:
        async with running_api(config) as api:
            wire = await api.connect()
            async with wire.stream:
                await wire.send(b"\x16\x03\x01\x02")
                await wire.closed()


async def test_a_certificate_that_can_not_be_read_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("no certificate")
    (tmp_path / "key.pem").write_text("no key")

    server = ServerConfig(port=0, tls_cert=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem")
    async with running_api() as api:
        other = ApiServer(api.server._api, Config(server=server))
        with pytest.raises(
            ConfigError, match=r"\[server\] tls_cert: .*cert.pem holds no certificate in PEM"
        ):
            await other.serve()


async def test_only_http_1_is_spoken(tmp_path: Path, authority: trustme.CA) -> None:
    with trio.fail_after(30), tls_config(tmp_path, authority) as config:
        async with running_api(config) as api:
            stream = await tls_stream(api, authority, alpn=["h2", "http/1.1"])
            await stream.do_handshake()
            assert stream.selected_alpn_protocol() == "http/1.1"
            await trio.aclose_forcefully(stream)

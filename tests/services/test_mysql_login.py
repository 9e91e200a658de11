"""How the MySQL store logs in: TLS that is TLS, passwords that stay secret, and the ways
to authenticate that the library gets wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from taskd.errors import StoreRefused, StoreUnavailable
from taskd.stores.mysql.connection import MySQLConnection
from taskd.stores.mysql.schema import connected, tls_context
from taskd.stores.mysql.target import MySQLTarget, parse_mysql_url
from tests.support.proxy import Proxy
from tests.support.scripted_mysql import OK, SALT, Peer, Script, greeting, scripted_mysql
from tools.servers import Database

PASSWORD = "geheimes-Wort"


async def log_in(script: Script, *, tls: bool = False) -> Exception | None:
    """Play the script to a client that logs in; how that ended."""
    ended: Exception | None = None
    with trio.fail_after(20):
        async with scripted_mysql(script) as port:
            target = MySQLTarget(
                host="127.0.0.1", port=port, user="me", password=PASSWORD, database="d", tls=tls
            )
            try:
                connection = await MySQLConnection.open(
                    target, tls_context(target), autocommit=True
                )
                await connection.aclose()
            except (StoreRefused, StoreUnavailable) as error:
                ended = error
    if ended is not None:
        assert PASSWORD not in "".join(traceback.format_exception(ended))
    return ended


def scramble() -> bytes:
    once = hashlib.sha256(PASSWORD.encode()).digest()
    twice = hashlib.sha256(once).digest()
    mask = hashlib.sha256(twice + SALT).digest()
    return bytes(a ^ b for a, b in zip(once, mask, strict=True))


async def sha2_scramble(peer: Peer) -> bytes:
    """What a server that knows this user by caching_sha2_password is sent: with the
    login, if that names the method, and else when it asks for it."""
    await peer.greet(plugin="caching_sha2_password")
    login = await peer.receive()
    if b"caching_sha2_password" in login:
        assert scramble() in login
        return scramble()
    return await peer.relay("caching_sha2_password")


async def expect_logged_in(peer: Peer) -> None:
    await peer.send(OK)
    assert b"ISOLATION LEVEL READ COMMITTED" in await peer.receive()


async def test_a_caching_sha2_password_that_the_server_remembers_logs_in() -> None:
    async def script(peer: Peer) -> None:
        assert await sha2_scramble(peer) == scramble()
        await peer.send(b"\x01\x03")
        await expect_logged_in(peer)

    await log_in(script)


async def test_a_caching_sha2_password_that_the_server_forgot_goes_under_its_key() -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )

    async def script(peer: Peer) -> None:
        assert await sha2_scramble(peer) == scramble()
        await peer.send(b"\x01\x04")
        assert await peer.receive() == b"\x02"
        await peer.send(b"\x01" + pem)
        oaep = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)
        masked = key.decrypt(await peer.receive(), oaep)
        told = bytes(byte ^ SALT[n % len(SALT)] for n, byte in enumerate(masked))
        assert told == PASSWORD.encode() + b"\0"
        await expect_logged_in(peer)
        assert PASSWORD.encode() not in peer.received

    await log_in(script)


async def test_a_native_password_goes_as_a_scramble() -> None:
    async def script(peer: Peer) -> None:
        await peer.greet(plugin="mysql_native_password")
        assert PASSWORD.encode() not in await peer.receive()
        await expect_logged_in(peer)

    await log_in(script)


@pytest.mark.parametrize(
    "method", ["mysql_clear_password", "dialog", "mysql_old_password", "client_ed25519"]
)
async def test_a_server_that_asks_for_the_password_itself_is_not_told(method: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet(plugin="mysql_native_password")
        await peer.receive()
        assert await peer.relay(method) == b""
        assert PASSWORD.encode() not in peer.received

    error = await log_in(script)
    assert isinstance(error, StoreRefused)
    assert "the database asks for the password" in str(error)


async def test_a_server_without_tls_is_refused_before_it_is_told_anything() -> None:
    async def script(peer: Peer) -> None:
        await peer.greet(plugin="mysql_native_password", tls=False)
        assert await peer.receive() == b""
        assert peer.received == b""

    error = await log_in(script, tls=True)
    assert isinstance(error, StoreRefused)
    assert "offers no TLS" in str(error)


async def test_what_was_put_in_before_tls_began_is_refused() -> None:
    async def script(peer: Peer) -> None:
        hello = peer.packet(greeting(plugin="mysql_native_password", tls=True))
        await peer.stream.send_all(hello + peer.packet(OK))
        assert await peer.receive() == b""
        assert peer.received == b""

    error = await log_in(script, tls=True)
    assert isinstance(error, StoreRefused)
    assert "more than a server may" in str(error)


@pytest.mark.parametrize(
    "rubbish",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\x00\x00\x00", b"\x05\x00\x00\x00\x0a\x00"],
)
async def test_a_server_that_speaks_something_else_is_told_as_unusable(rubbish: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.stream.send_all(rubbish)

    error = await log_in(script)
    assert isinstance(error, StoreUnavailable)


async def test_a_password_may_have_any_characters(
    database_server: Database, database_url: str
) -> None:
    password = "p@ß/w:ö?r#d€ '\\\""
    quoted = password.replace("\\", "\\\\").replace("'", "\\'")
    database_server.execute(
        f"CREATE USER any_characters@'127.0.0.1' IDENTIFIED BY '{quoted}';"
        "GRANT ALL ON *.* TO any_characters@'127.0.0.1'"
    )

    target = parse_mysql_url(database_url)
    target = dataclasses.replace(target, user="any_characters", password=password)
    async with connected(target) as connection:
        ((user,),) = (await connection.execute("SELECT CURRENT_USER()")).rows
        assert user == "any_characters@127.0.0.1"


def _tls_target(server: Database, **changes: object) -> MySQLTarget:
    assert server.certificates is not None
    target = parse_mysql_url(f"{server.url('d')}?ca_file={server.certificates.ca}")
    return dataclasses.replace(target, **changes)  # type: ignore[arg-type] # by the tests below


async def _cipher(target: MySQLTarget) -> str:
    async with connected(target) as connection:
        ((_, cipher),) = (await connection.execute("SHOW STATUS LIKE 'Ssl_cipher'")).rows
        return str(cipher)


async def test_tls_is_spoken_and_certificate_and_name_are_verified(
    private_database: Callable[..., Database], tmp_path: Path
) -> None:
    server = private_database(tls=True)
    server.create_database("d")
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("no certificate")

    with trio.fail_after(30):
        assert await _cipher(_tls_target(server)) != ""
        for changes, told in (
            ({"ca_file": None}, "its certificate is not valid here"),
            # Reaches the same server by a name that its certificate does not have.
            ({"host": "0.0.0.0"}, "its certificate is not valid here"),
            ({"ca_file": tmp_path / "absent.pem"}, "can't be read"),
            ({"ca_file": nothing}, "can't be read: it holds no PEM certificate"),
        ):
            with pytest.raises(StoreRefused, match=told):
                await _cipher(_tls_target(server, **changes))


async def test_plain_text_is_refused_after_the_login_too(
    database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # As if the look at the greeting were not there: the library goes on in plain text.
    monkeypatch.setattr(
        "taskd.stores.mysql.connection._Wire.require_tls",
        property(lambda _: False, lambda _, value: None),
    )

    target = dataclasses.replace(parse_mysql_url(database_url), tls=True)
    # MariaDB lets such a client in; MySQL does not.
    with pytest.raises((StoreRefused, StoreUnavailable), match=r"does not speak TLS|Bad handshake"):
        await MySQLConnection.open(target, tls_context(target), autocommit=True)


async def test_a_connection_is_given_up_when_the_server_says_nothing(
    database_server: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskd.stores.mysql.connection.CONNECT_S", 0.3)

    with trio.fail_after(20), Proxy(("127.0.0.1", database_server.port)) as proxy:
        proxy.freeze()
        target = dataclasses.replace(parse_mysql_url(database_server.url("d")), port=proxy.port)
        with pytest.raises(StoreUnavailable, match=r"has not answered within 0\.3 s"):
            await MySQLConnection.open(target, None, autocommit=True)


async def test_the_password_is_in_no_log(
    database_server: Database, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    target = dataclasses.replace(parse_mysql_url(database_url), user="nobody")
    with pytest.raises(StoreRefused) as caught:
        async with connected(target):
            pass
    assert database_server.password not in "".join(traceback.format_exception(caught.value))
    assert database_server.password not in caplog.text

"""What a MySQL server has against an account, told in one sentence with what to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import trio

from taskd.errors import StoreRefused
from taskd.stores.mysql.schema import connected, migrate
from taskd.stores.mysql.store import MySQLStore
from taskd.stores.mysql.target import MySQLTarget, parse_mysql_url
from tests.support.stores import DEADLINE_S
from tools.servers import Database, ServerMissing

pytestmark = pytest.mark.deadline(DEADLINE_S)


@pytest.fixture(scope="module")
def tls_server(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Database]:
    """A server that offers TLS, with a database ``d`` that has taskd's tables."""
    kind, template = (request.getfixturevalue(name) for name in ("_database_kind", "_template"))
    try:
        server = kind(tmp_path_factory.mktemp("database"), template, tls=True)
    except ServerMissing as error:
        pytest.skip(str(error))
    with server:
        trio.run(migrate, parse_mysql_url(server.create_database("d")))
        yield server


async def refusal(target: MySQLTarget) -> str | None:
    """Why a node can't start, or None; what it says is one sentence without the
    password, and trying again would not help."""
    try:
        store = await MySQLStore.open(target)
    except StoreRefused as error:
        told = str(error)
        assert "\n" not in told
        assert target.password not in told
        return told
    await store.aclose()
    return None


def as_user(server: Database, change: str) -> MySQLTarget:
    """Where a user comes to, after a change of his account."""
    password = server.create_user("app", on="`d`.*")
    server.execute(f"ALTER USER app@'127.0.0.1' {change}")
    return dataclasses.replace(parse_mysql_url(server.url("d")), user="app", password=password)


def with_tls(server: Database, target: MySQLTarget, *, certificate: bool = False) -> MySQLTarget:
    files = server.certificates
    assert files is not None
    return dataclasses.replace(
        target,
        tls=True,
        ca_file=files.ca,
        cert_file=files.certificate if certificate else None,
        key_file=files.key if certificate else None,
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("ACCOUNT LOCK", "this user's account is locked"),
        ("PASSWORD EXPIRE", "this user's password has expired: ALTER USER"),
        ("IDENTIFIED BY 'another'", "user or password is wrong"),
    ],
)
async def test_what_is_wrong_with_an_account_is_told(
    tls_server: Database, change: str, told: str
) -> None:
    assert told in (await refusal(as_user(tls_server, change)) or "")


async def test_a_user_who_has_to_speak_tls_is_told_so(tls_server: Database) -> None:
    target = as_user(tls_server, "REQUIRE SSL")
    assert "add tls=true to the URL" in (await refusal(target) or "")
    assert await refusal(with_tls(tls_server, target)) is None


async def test_a_user_who_has_to_show_a_certificate_shows_one(tls_server: Database) -> None:
    target = as_user(tls_server, "REQUIRE X509")
    told = await refusal(with_tls(tls_server, target)) or ""
    assert "cert_file" in told
    assert await refusal(with_tls(tls_server, target, certificate=True)) is None


async def test_a_server_that_takes_encrypted_connections_only_names_the_option(
    tls_server: Database,
) -> None:
    target = parse_mysql_url(tls_server.url("d"))
    tls_server.execute("SET GLOBAL require_secure_transport = ON")
    try:
        assert "add tls=true to the URL" in (await refusal(target) or "")
        assert await refusal(with_tls(tls_server, target)) is None
    finally:
        # Whoever turns it off has to come by TLS, too.
        with trio.CancelScope(shield=True):
            await _turn_off(with_tls(tls_server, target))


async def _turn_off(target: MySQLTarget) -> None:
    async with connected(target) as connection:
        await connection.execute("SET GLOBAL require_secure_transport = OFF")

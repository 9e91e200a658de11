"""Getting to a Redis: passwords, users, databases, TLS; and no secret told."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
import trio
import trustme

from taskd.buses.redis.link import Link, make_connection
from taskd.buses.redis.target import parse_redis_url
from taskd.errors import BusUnavailable
from tests.support.clocks import SteppableClock
from tests.support.redis_bus import bus_on, fresh_nonce, told
from tools.servers import Redis

MakeRedis = Callable[..., Redis]
SECRET = "p/a?s#s@w:o%r d[]é"


async def problem(url: str) -> str | None:
    """Why a server can't be used, or None; makes sure that no secret is told."""
    target = parse_redis_url(url)
    link = Link(target, trio.CapacityLimiter(2))
    try:
        assert await link.call(("SET", "x", "1")) == [b"OK"]
    except BusUnavailable as error:
        whole = "".join(traceback.format_exception(error)) + repr(error)
        assert "hunter2" not in whole
        assert SECRET not in whole
        return str(error).removeprefix(f"Redis at {target.address} ")
    finally:
        link.close()
    return None


async def test_a_password_with_any_character(private_redis: MakeRedis) -> None:
    server = private_redis(password=SECRET)
    where = server.address
    assert await problem(f"redis://:{quote(SECRET, safe='')}@{where}/0") is None
    refused = "refuses the user or the password of [bus] url"
    assert await problem(f"redis://:hunter2@{where}/0") == refused
    assert await problem(f"redis://somebody:hunter2@{where}/0") == refused
    assert await problem(f"redis://{where}/0") == "wants a password: give it in [bus] url"


async def test_a_user_who_may_do_just_what_the_documentation_says(private_redis: MakeRedis) -> None:
    server = private_redis()
    server.execute(
        "ACL", "SETUSER", "taskd", "on", ">hunter2", "resetchannels", "&taskd:*", "~taskd:*",
        "-@all", "+@connection", "+eval", "+info", "+get", "+set", "+del", "+exists", "+incr",
        "+pexpire", "+hset", "+hsetnx", "+hget", "+hmget", "+publish", "+subscribe",
    )  # fmt: skip
    server.execute("ACL", "SETUSER", "default", "off")

    clock = SteppableClock()
    url = f"redis://taskd:hunter2@{server.address}/0"
    async with bus_on(url, clock) as bus:
        assert bus.unready() is None
        assert bus.leads_timer()
        assert bus.statistics().subscribed
        assert await told(bus, fresh_nonce(clock)) == "store too"
        assert await told(bus, fresh_nonce(clock)) == "store too"
    async with bus_on(f"{url}?prefix=other", clock) as bus:
        assert "does not let this user do" in (bus.unready() or "")


async def test_a_database_that_is_not_there(redis_server: Redis) -> None:
    assert "DB index is out of range" in (await problem(redis_server.database_url(99)) or "")
    assert await problem(redis_server.database_url(15)) is None


async def test_tls_is_verified(private_redis: MakeRedis, tmp_path: Path) -> None:
    server = private_redis(tls=True, password="hunter2")
    assert server.certificates is not None
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    url = server.url
    assert await problem(f"{url}?ca_file={server.certificates.ca}") is None
    for untrusted in (url, f"{url}?ca_file={other}"):
        assert (await problem(untrusted) or "").startswith("can't be reached by TLS: ")
    plain = await problem(url.replace("rediss:", "redis:"))
    assert plain is not None
    assert plain.startswith("can't be reached")


async def test_a_certificate_for_another_name_is_refused(
    private_redis: MakeRedis, tmp_path: Path
) -> None:
    authority = trustme.CA()
    leaf = authority.issue_cert("redis.example.org")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    leaf.private_key_pem.write_to_path(tmp_path / "key.pem")
    files = ["--tls-cert-file", str(tmp_path / "cert.pem")]
    files += ["--tls-key-file", str(tmp_path / "key.pem")]
    server = private_redis(tls=True, options=files)
    told_ = await problem(f"{server.url}?ca_file={tmp_path / 'ca.pem'}")
    assert told_ is not None
    assert "IP address mismatch" in told_


async def test_a_server_that_wants_a_certificate_is_shown_one(
    private_redis: MakeRedis, tmp_path: Path
) -> None:
    server = private_redis(tls=True, options=["--tls-auth-clients", "yes"])
    assert server.certificates is not None
    files = server.certificates
    ours = f"{server.url}?ca_file={files.ca}"
    assert await problem(f"{ours}&cert_file={files.certificate}&key_file={files.key}") is None
    assert "it asks for a client certificate: give cert_file and key_file" in (
        await problem(ours) or ""
    )


async def test_no_secret_is_logged_or_shown(
    private_redis: MakeRedis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = private_redis(password="other")

    clock = SteppableClock()
    async with bus_on(f"redis://:hunter2@{server.address}/0", clock) as bus:
        assert await told(bus, fresh_nonce(clock)) == "unavailable"
        assert "hunter2" not in (bus.unready() or "hunter2")
    assert caplog.records
    for record in caplog.records:
        assert "hunter2" not in repr(record.__dict__)
    target = parse_redis_url("redis://:hunter2@h/0")
    assert "hunter2" not in repr(target)
    assert "hunter2" not in repr(make_connection(target))

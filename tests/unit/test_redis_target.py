"""The URL of a Redis: what it may say, and what is refused without telling secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskd.buses.redis.target import RedisTarget, parse_redis_url
from taskd.errors import InvalidInput


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("redis://h", RedisTarget(host="h")),
        ("redis://h/", RedisTarget(host="h")),
        ("redis://h:7000/3", RedisTarget(host="h", port=7000, number=3)),
        ("REDIS://H:7000", RedisTarget(host="h", port=7000)),
        ("redis://[::1]:7000/0", RedisTarget(host="::1", port=7000)),
        ("rediss://h", RedisTarget(host="h", tls=True)),
        ("redis://:p%40%2F%25@h", RedisTarget(host="h", password="p@/%")),
        ("redis://me:p:w@h", RedisTarget(host="h", user="me", password="p:w")),
        ("redis://m%3Ae:p@h", RedisTarget(host="h", user="m:e", password="p")),
        ("redis://h?prefix=two", RedisTarget(host="h", prefix="two")),
        ("redis://h/1?prefix={two}:x", RedisTarget(host="h", number=1, prefix="{two}:x")),
    ],
)
def test_what_a_url_says(url: str, target: RedisTarget) -> None:
    assert parse_redis_url(url) == target


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://h", "must begin with redis:// or rediss://"),
        ("h:6379", "must begin with redis:// or rediss://"),
        ("redis://", "names no host"),
        ("redis://:6379", "names no host"),
        ("redis:///0", "names no host"),
        ("redis://h:0", "port: must be between 1 and 65535"),
        ("redis://h:65536", "is no URL"),
        ("redis://h:port", "is no URL"),
        ("redis://h/x", "must be the database's number"),
        ("redis://h/-1", "must be the database's number"),
        ("redis://h/0/1", "must be the database's number"),
        ("redis://hunter2@h", "names a user without a password"),
        ("redis://:hunter2#x@h", "%23"),
        ("redis://:hunter2/x@h", "is no URL"),
        ("redis://:hunter2?x@h", "is no URL"),
        ("redis://:hunter2[x@h", "is no URL"),
        ("redis://:hunter2%x@h", "has a % that no two"),
        ("redis://h?prefix=", "prefix: must be 1 to 64"),
        ("redis://h?prefix=a%20b", "prefix: must be 1 to 64"),
        ("redis://h?prefix=a&prefix=b", "gives an option twice"),
        ("redis://h?timeout=3", "unknown option; known are ca_file, cert_file"),
        ("redis://h?ca_file=/x", "ca_file: is only used with rediss://"),
        ("rediss://h?ca_file=/not/there", "ca_file: /not/there cannot be read: No such file"),
        ("rediss://h?ca_file=/", "ca_file: / cannot be read: Is a directory"),
        ("rediss://h?ca_file=%00", "cannot be read"),
    ],
)
def test_what_is_refused(url: str, problem: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_redis_url(url)
    assert problem in caught.value.problem
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None or "hunter2" not in repr(caught.value.__cause__)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_files_of_tls(tmp_path: Path) -> None:
    ca, cert, key = (tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem"))
    for path in (ca, cert, key):
        path.touch()
    target = parse_redis_url(f"rediss://h?ca_file={ca}&cert_file={cert}&key_file={key}")
    assert (target.ca_file, target.cert_file, target.key_file) == (str(ca), str(cert), str(key))
    with pytest.raises(InvalidInput, match="needed together"):
        parse_redis_url(f"rediss://h?cert_file={cert}")


def test_a_target_shows_no_password_and_people_know_its_address() -> None:
    target = parse_redis_url("redis://me:hunter2@[::1]:7000/2")
    assert "hunter2" not in repr(target)
    assert target.address == "[::1]:7000"

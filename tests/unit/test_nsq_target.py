"""``nsq://`` URLs: what they mean, and what is refused, without repeating a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskd.errors import InvalidInput
from taskd.queues.nsq.target import Address, NsqTarget, parse_nsq_url


def test_one_host() -> None:
    assert parse_nsq_url("nsq://127.0.0.1") == NsqTarget(nsqds=(Address("127.0.0.1", 4150),))


def test_everything_at_once() -> None:
    target = parse_nsq_url(
        "nsq://:p%40ss%3Aword@a:1,[::1]:2,b?topic=t.1&channel=c%23ephemeral"
        "&lookupd=l:3,m&lookupd=[fe80::1]&tls=true&ca_file=/etc/ca.pem&cert_file=/c&key_file=/k"
    )
    assert target == NsqTarget(
        nsqds=(Address("a", 1), Address("::1", 2), Address("b", 4150)),
        lookupds=(Address("l", 3), Address("m", 4161), Address("fe80::1", 4161)),
        topic="t.1",
        channel="c#ephemeral",
        tls=True,
        ca_file=Path("/etc/ca.pem"),
        cert_file=Path("/c"),
        key_file=Path("/k"),
        secret="p@ss:word",
    )
    assert str(target.nsqds[1]) == "[::1]:2"
    assert "p@ss" not in repr(target)


def test_hosts_of_all_kinds() -> None:
    url = f"nsq://nsqd-1.internal.,{'x' * 63}.example,my_service,10.0.0.1"
    hosts = [address.host for address in parse_nsq_url(url).nsqds]
    assert hosts == ["nsqd-1.internal.", "x" * 63 + ".example", "my_service", "10.0.0.1"]


def test_lookupd_alone() -> None:
    target = parse_nsq_url("nsq://?lookupd=l")
    assert target.nsqds == ()
    assert target.lookupds == (Address("l", 4161),)


def test_a_host_that_is_named_twice_is_used_once() -> None:
    assert parse_nsq_url("nsq://a:4150,a").nsqds == (Address("a", 4150),)


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("redis://a", "begin with"),
        ("nsq://", "no server"),
        ("nsq://?topic=x", "no server"),
        ("nsq://a,,b", "host"),
        ("nsq://a b", "host"),
        ("nsq://a..b", "host"),
        ("nsq://.a", "host"),
        ("nsq://" + "x" * 64, "host"),
        ("nsq://a/b", "path"),
        ("nsq://a#b", "fragment"),
        ("nsq://::1", "host"),
        ("nsq://[::1", "host"),
        ("nsq://a:0", "port"),
        ("nsq://a:65536", "port"),
        ("nsq://a:x", "port"),
        ("nsq://a?topic=", "topic"),
        ("nsq://a?topic=a%20b", "topic"),
        ("nsq://a?topic=" + "x" * 65, "topic"),
        ("nsq://a?channel=%C3%A4", "channel"),
        ("nsq://a?topic=x&topic=y", "twice"),
        ("nsq://a?chanel=x", "unknown key"),
        ("nsq://a?tls=perhaps", "tls"),
        ("nsq://a?ca_file=/x", "tls=true"),
        ("nsq://a?tls=true&ca_file=x", "absolute"),
        ("nsq://a?cert_file=/c&key_file=/k", "cert_file without tls=true"),
        ("nsq://a?tls=true&cert_file=/c", "together"),
        ("nsq://a?tls=true&cert_file=/c&key_file=k", "key_file as an absolute"),
        ("nsq://geheim@a", "SECRET"),
        ("nsq://user:geheim@a", "SECRET"),
        ("nsq://:geheim@", "no server"),
        ("nsq://:geheim@a:99999", "port"),
        ("nsq://:geheim@a/path", "path"),
        ("nsq://:geheim@a?geheim=1", "unknown key"),
        ("nsq://:geheim@a?lookupd=ü", "host"),
        ("nsq://:geheim?topic=x", "host"),
        ("nsq://a,:geheim?topic=x", "number 2"),
    ],
)
def test_what_can_not_be_read_is_refused(url: str, word: str) -> None:
    with pytest.raises(InvalidInput, match=word) as refused:
        parse_nsq_url(url)
    assert refused.value.field == "url"
    assert "geheim" not in str(refused.value)

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskd.delivery.egress import Egress
from taskd.delivery.transport import parse_target, validate_link_url
from taskd.errors import InvalidInput


@pytest.mark.parametrize(
    ("url", "origin", "host_header", "path"),
    [
        ("http://example.com", "http://example.com:80", "example.com", "/"),
        ("HTTPS://Example.COM/a", "https://example.com:443", "example.com", "/a"),
        ("https://example.com:8443?q=1", "https://example.com:8443", "example.com:8443", "/?q=1"),
        ("http://example.com:80/", "http://example.com:80", "example.com", "/"),
        ("http://example.com:/x", "http://example.com:80", "example.com", "/x"),
        ("http://a/b@c:9/d?e=http://f/@", "http://a:80", "a", "/b@c:9/d?e=http://f/@"),
        ("http://a?x/y", "http://a:80", "a", "/?x/y"),
        ("http://10.0.0.1:9000/cb", "http://10.0.0.1:9000", "10.0.0.1:9000", "/cb"),
        ("http://[::1]:9000/cb", "http://[::1]:9000", "[::1]:9000", "/cb"),
        ("http://[0:0::1]/", "http://[::1]:80", "[::1]", "/"),
        ("http://a_b.example/", "http://a_b.example:80", "a_b.example", "/"),
        ("http://example.com./", "http://example.com.:80", "example.com.", "/"),
        ("http://帅的应用.中国/", "http://xn--btt7l419czhb.xn--fiqs8s:80", None, "/"),
        ("http://bücher.example/", "http://xn--bcher-kva.example:80", None, "/"),
    ],
)
def test_a_link_url_is_taken_apart(
    url: str, origin: str, host_header: str | None, path: str
) -> None:
    target = parse_target(url)
    assert target.origin == origin
    assert host_header is None or target.host_header == host_header
    assert target.path == path


def test_an_ip_address_is_known_as_one() -> None:
    assert parse_target("http://127.0.0.1:1/").address == "127.0.0.1"
    assert parse_target("https://[2001:DB8::1]/").address == "2001:db8::1"
    assert parse_target("http://localhost/").address is None


def test_a_certificate_is_for_the_name_without_its_last_dot() -> None:
    assert parse_target("https://example.com./").tls_name == "example.com"


def test_the_path_does_not_show_in_the_repr() -> None:
    assert "hunter2" not in repr(parse_target("http://a/x?token=hunter2"))


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "must begin with http"),
        ("example.com", "must begin with http"),
        ("ftp://example.com/", "must begin with http"),
        ("http:/example.com/", "must begin with http"),
        ("//example.com/", "must begin with http"),
        ("http://", "host of 1 to"),
        ("http:///x", "host of 1 to"),
        ("http://:80/", "host of 1 to"),
        ("http://user@example.com/", "user name"),
        ("http://user:pass@example.com/", "user name"),
        ("http://example.com/#top", "fragment"),
        ("http://example.com#", "fragment"),
        ("http://example.com:0/", "port from 1 to 65535"),
        ("http://example.com:65536/", "port from 1 to 65535"),
        ("http://example.com:0000080/", "port from 1 to 65535"),
        ("http://example.com:8x/", "port from 1 to 65535"),
        ("http://example.com:８０/", "port from 1 to 65535"),
        ("http://example.com:-1/", "port from 1 to 65535"),
        ("http://exa mple.com/", "percent-encode"),
        ("http://example.com/a b", "percent-encode"),
        ("http://example.com/a\r\nX: y", "percent-encode"),
        ("http://example.com/a\x00", "percent-encode"),
        ("http://example.com\\@evil/", "percent-encode"),
        ("http://example.com/é", "percent-encode 'é'"),
        ("http://example.com/?q=\u00a0", "ASCII after the host"),
        ("http://a..b/", "valid host name"),
        ("http://.a/", "valid host name"),
        ("http://-a/", "valid host name"),
        ("http://a%31/", "valid host name"),
        ("http://a,b/", "valid host name"),
        (f"http://{'a' * 64}/", "valid host name"),
        (f"http://{'é' * 64}/", "valid host name"),
        (f"http://{'a.' * 127}/", "host of 1 to 253"),
        (f"http://{'é.' * 100}x/", "host of 1 to 253"),
        ("http://straße.de/", "xn-- form"),
        ("http://a\u200db/", "xn-- form"),
        ("http://[::1/", "IPv6 address in brackets"),
        ("http://[::1]x/", "port from 1 to 65535"),
        ("http://[]/", "IPv6 address in brackets"),
        ("http://[127.0.0.1]/", "IPv6 address in brackets"),
        ("http://[fe80::1%25eth0]/", "scope id"),
        ("http://::1/", "valid host name"),
        ("http://2130706433/", "four decimal numbers"),
        ("http://0x7f000001/", "four decimal numbers"),
        ("http://0x7f.1/", "four decimal numbers"),
        ("http://127.1/", "four decimal numbers"),
        ("http://0177.0.0.1/", "four decimal numbers"),
        ("http://127.0.0.0x1/", "four decimal numbers"),
        ("http://127.0.0.1./", "four decimal numbers"),
        ("http://1.2.3.4.5/", "four decimal numbers"),
        ("http://example.0X/", "four decimal numbers"),
        ("http://２１３０７０６４３３/", "four decimal numbers"),
        ("http://a/" + "x" * 2040, "at most 2048 characters"),
    ],
)
def test_a_link_url_that_cannot_be_sent_to_is_refused(url: str, problem: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        validate_link_url(url, Egress())
    assert caught.value.field == "linkUrl"
    assert problem in caught.value.problem


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://[::ffff:169.254.169.254]/",
        "http://0.0.0.0:80/",
        "http://[::]/",
        "http://１６９.２５４.１６９.２５４/",
        "http://169。254。169。254/",
    ],
)
def test_a_literal_address_that_egress_denies_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="is denied"):
        validate_link_url(url, Egress())


def test_a_private_address_is_refused_under_the_strict_policy_only() -> None:
    validate_link_url("http://10.0.0.1/", Egress())
    with pytest.raises(InvalidInput, match="only public addresses"):
        validate_link_url("http://10.0.0.1/", Egress(strict=True))


def test_the_longest_link_url_is_accepted() -> None:
    validate_link_url("http://a/" + "x" * 2039, Egress())


@given(
    st.text()
    | st.builds("http://{}".format, st.text())
    | st.builds("http://{}:{}/{}".format, st.text(), st.text(), st.text())
    | st.from_regex(r"https?://[\[\]0-9a-fx.:%@]{1,20}(/.*)?", fullmatch=True)
)
def test_any_text_is_accepted_or_refused_and_what_is_accepted_is_plain(url: str) -> None:
    try:
        target = parse_target(url)
    except InvalidInput:
        return
    assert (target.host + target.path).isascii()
    assert not set(target.host + target.path) & set(" \r\n\t\0\\#")
    assert 1 <= target.port <= 65535
    assert target.path.startswith("/")

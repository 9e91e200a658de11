from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskd.delivery.egress import Egress
from taskd.errors import ConfigError, Denied

LOCAL = ["127.0.0.1", "127.1.2.3", "::1", "10.0.0.1", "172.16.9.9", "192.168.1.1", "fd12::1"]
PUBLIC = ["8.8.8.8", "1.1.1.1", "223.5.5.5", "2606:4700::1111", "2001:4860:4860::8888"]
ALWAYS_DENIED = [
    ("169.254.169.254", "cloud metadata"),
    ("fd00:ec2::254", "cloud metadata"),
    ("100.100.100.200", "cloud metadata"),
    ("168.63.129.16", "cloud metadata"),
    ("169.254.0.1", "link-local"),
    ("fe80::1", "link-local"),
    ("fe80::1%eth0", "link-local"),
    ("224.0.0.1", "multicast"),
    ("239.255.255.250", "multicast"),
    ("ff02::1", "multicast"),
    ("0.0.0.0", "unspecified"),
    ("0.1.2.3", "unspecified"),
    ("::", "unspecified"),
    ("255.255.255.255", "broadcast"),
]
NOT_PUBLIC = [
    *LOCAL,
    "100.64.0.1",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "240.0.0.1",
    "fec0::1",
    "2001:db8::1",
    "2001:2::1",
    "3fff::1",
    "5f00::1",
    "100::1",
    "4000::1",
]
METADATA = int(IPv4Address("169.254.169.254"))
LEADS_TO_METADATA = [
    "::ffff:169.254.169.254",
    "::169.254.169.254",
    "::ffff:0:169.254.169.254",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::169.254.169.254",
    "64:ff9b:1:fffe::169.254.169.254",
    "64:ff9b:1:a9fe:a9:fe00::",
    "64:ff9b:1:a9:fe:a9fe::",
    "64:ff9b:1:0:a9:fea9:fe00:0",
    "2002:a9fe:a9fe::1",
    str(IPv6Address((0x20010000 << 96) | (METADATA << 64))),
    str(IPv6Address((0x20010000 << 96) | (0x08080808 << 64) | (METADATA ^ 0xFFFFFFFF))),
]


def denial(egress: Egress, address: str) -> str | None:
    try:
        egress.check(address)
    except Denied as error:
        return str(error)
    return None


@pytest.mark.parametrize("address", [*LOCAL, *PUBLIC])
def test_loopback_private_and_public_addresses_are_allowed_by_default(address: str) -> None:
    assert denial(Egress(), address) is None


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("address", "reason"), ALWAYS_DENIED)
def test_dangerous_addresses_are_denied_with_their_reason(
    address: str, reason: str, strict: bool
) -> None:
    text = denial(Egress(strict=strict), address)
    assert text is not None
    assert reason in text
    assert address in text


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_strict_denies_what_is_not_public(address: str) -> None:
    text = denial(Egress(strict=True), address)
    assert text is not None
    assert "only public addresses are allowed" in text


@pytest.mark.parametrize("address", [*PUBLIC, "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"])
def test_strict_allows_public_addresses(address: str) -> None:
    assert denial(Egress(strict=True), address) is None


@pytest.mark.parametrize("address", LEADS_TO_METADATA)
def test_an_ipv4_address_inside_an_ipv6_one_is_judged(address: str) -> None:
    text = denial(Egress(), address)
    assert text is not None
    assert "169.254.169.254" in text or "a9fe" in text
    assert "cloud metadata" in text


@pytest.mark.parametrize("address", ["::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "2002:a00:1::1"])
def test_strict_judges_the_ipv4_address_inside(address: str) -> None:
    assert denial(Egress(strict=True), address) is not None
    assert denial(Egress(), address) is None


def test_allowed_networks_win_over_the_defaults() -> None:
    egress = Egress(strict=True, allowed_networks=["169.254.169.254/32", "10.0.0.0/8", "fe80::/10"])
    assert denial(egress, "169.254.169.254") is None
    assert denial(egress, "10.1.2.3") is None
    assert denial(egress, "::ffff:10.1.2.3") is None
    assert denial(egress, "fe80::1%2") is None
    assert denial(egress, "169.254.169.253") is not None
    assert denial(egress, "192.168.0.1") is not None


def test_denied_networks_win_over_everything() -> None:
    egress = Egress(denied_networks=["10.1.0.0/16"], allowed_networks=["10.0.0.0/8"])
    assert denial(egress, "10.2.0.1") is None
    assert denial(egress, "10.1.0.1") == "10.1.0.1 is denied: in denied_networks (10.1.0.0/16)"
    assert denial(egress, "64:ff9b::10.1.0.1") is not None


def test_a_denial_names_address_rule_and_remedy() -> None:
    remedy = "; if it is to be reached, add it to [delivery] allowed_networks"
    assert denial(Egress(), "169.254.7.7") == (
        f"169.254.7.7 is denied: link-local (169.254.0.0/16){remedy}"
    )
    assert denial(Egress(), "64:ff9b::169.254.169.254") == (
        "64:ff9b::169.254.169.254 is denied: it leads to 169.254.169.254, "
        f"cloud metadata (169.254.169.254/32){remedy}"
    )
    assert denial(Egress(strict=True), "10.1.2.3") == (
        f"10.1.2.3 is denied: private (10.0.0.0/8), and only public addresses are allowed{remedy}"
    )
    with pytest.raises(Denied) as caught:
        Egress().check("fe80::1", name="app.test")
    assert str(caught.value) == (
        f"app.test is denied, since its address fe80::1 is denied: link-local (fe80::/10){remedy}"
    )


def test_allowing_an_ipv6_network_does_not_allow_where_it_leads() -> None:
    egress = Egress(allowed_networks=["64:ff9b::/96"])
    assert denial(egress, "64:ff9b::169.254.169.254") is not None


def test_a_mapped_network_means_its_ipv4_network() -> None:
    egress = Egress(denied_networks=["::ffff:10.0.0.0/104"])
    assert denial(egress, "10.9.9.9") is not None
    assert denial(egress, "11.0.0.1") is None


@pytest.mark.parametrize("key", ["denied_networks", "allowed_networks"])
@pytest.mark.parametrize("text", ["10.0.0.1/8", "ten", "10.0.0.0/33", ""])
def test_a_network_that_cannot_be_read_is_refused_by_its_key(key: str, text: str) -> None:
    networks = {"denied_networks": (), "allowed_networks": (), key: (text,)}
    with pytest.raises(ConfigError, match=rf"\[delivery\] {key}: "):
        Egress(
            denied_networks=networks["denied_networks"],
            allowed_networks=networks["allowed_networks"],
        )


@given(st.text() | st.ip_addresses().map(str))
def test_whatever_is_no_address_is_denied_and_nothing_else_is_raised(text: str) -> None:
    denial(Egress(strict=True), text)
    if not any(character in text for character in ".:"):
        assert denial(Egress(), text) is not None


@given(st.ip_addresses(v=4))
def test_no_embedding_of_an_ipv4_address_is_allowed_where_it_is_not(address: IPv4Address) -> None:
    egress, number = Egress(), int(address)
    if denial(egress, str(address)) is None:
        return
    embeddings = [
        (0xFFFF << 32) | number,
        (0x0064FF9B << 96) | number,
        (0x2002 << 112) | (number << 80),
        (0x20010000 << 96) | (number ^ 0xFFFFFFFF),
    ]
    for embedding in embeddings:
        assert denial(egress, str(IPv6Address(embedding))) is not None


@given(st.ip_addresses())
def test_strict_allows_nothing_that_the_default_denies(
    address: IPv4Address | IPv6Address,
) -> None:
    if denial(Egress(strict=True), str(address)) is None:
        assert denial(Egress(), str(address)) is None
        assert not address.is_private
        assert not address.is_loopback
        assert not address.is_link_local

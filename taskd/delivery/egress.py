"""Which addresses a callback may be sent to.

An address is judged in each of its forms: as itself, and as every IPv4 address
that it leads to (IPv4-mapped, -compatible and -translated, 6to4, Teredo, NAT64).
One denied form denies the address. A form is judged by the first rule that fits:

1. in ``denied_networks``: denied, whatever else is said;
2. in ``allowed_networks``: allowed;
3. link-local, cloud metadata, multicast, unspecified and broadcast: denied;
4. strict, and not a public address, or one of this machine's own interfaces: denied;
5. allowed.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from taskd.delivery.own_addresses import OwnAddresses
from taskd.errors import ConfigError, Denied

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_ALWAYS: tuple[tuple[str, str], ...] = (
    ("169.254.169.254/32", "cloud metadata"),
    ("100.100.100.200/32", "cloud metadata"),
    ("168.63.129.16/32", "cloud metadata"),
    ("192.0.0.192/32", "cloud metadata"),
    ("fd00:ec2::/64", "cloud metadata"),
    ("fd20:ce::254/128", "cloud metadata"),
    ("fd00:42::42/128", "cloud metadata"),
    ("169.254.0.0/16", "link-local"),
    ("fe80::/10", "link-local"),
    ("224.0.0.0/4", "multicast"),
    ("ff00::/8", "multicast"),
    ("255.255.255.255/32", "broadcast"),
    ("0.0.0.0/8", "unspecified"),
    ("::/128", "unspecified"),
)
"""Denied by default, under both policies: network and reason."""

_NOT_PUBLIC: tuple[tuple[str, str], ...] = (
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "shared by carriers"),
    ("127.0.0.0/8", "loopback"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "reserved"),
    ("192.0.2.0/24", "for documentation"),
    ("192.88.99.0/24", "reserved"),
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "for benchmarks"),
    ("198.51.100.0/24", "for documentation"),
    ("203.0.113.0/24", "for documentation"),
    ("240.0.0.0/4", "reserved"),
    ("::1/128", "loopback"),
    ("64:ff9b:1::/48", "a private NAT64"),
    ("fc00::/7", "private"),
    ("fec0::/10", "private"),
    ("2001::/32", "a Teredo tunnel"),
    ("2001::/23", "reserved"),
    ("2001:db8::/32", "for documentation"),
    ("2002::/16", "a 6to4 tunnel"),
    ("3fff::/20", "for documentation"),
)
"""Denied by the strict policy, after the IANA special-purpose registries."""

# All of IPv6 that is in use on the public Internet; the first is NAT64, whose
# IPv4 address is judged by itself.
_PUBLIC_V6 = (IPv6Network("64:ff9b::/96"), IPv6Network("2000::/3"))

_V4_MAPPED = IPv6Network("::ffff:0:0/96")
_V4_IN_LOW_BITS = tuple(IPv6Network(text) for text in ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96"))
_SIX_TO_FOUR = IPv6Network("2002::/16")
_TEREDO = IPv6Network("2001::/32")
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")
_UNUSED_V6 = frozenset({IPv6Address("::"), IPv6Address("::1")})

_REMEDY = "; if it is to be reached, add it to [delivery] allowed_networks"

_DEFAULTS = tuple((ip_network(text), reason) for text, reason in _ALWAYS)
_STRICT = tuple((ip_network(text), reason) for text, reason in _NOT_PUBLIC)


class Egress:
    """The rules on which addresses may be reached.

    Args:
        strict: public addresses only, and none of this machine's own.
        denied_networks: CIDRs that are denied before any other rule.
        allowed_networks: CIDRs that are allowed whatever the defaults deny.
        own: knows this machine's addresses.

    Raises:
        ConfigError: a network can't be read.
    """

    def __init__(
        self,
        *,
        strict: bool = False,
        denied_networks: Iterable[str] = (),
        allowed_networks: Iterable[str] = (),
        own: OwnAddresses | None = None,
    ) -> None:
        self.strict = strict
        self._own = OwnAddresses() if own is None else own
        self._denied = _parse_networks("denied_networks", denied_networks)
        self._allowed = _parse_networks("allowed_networks", allowed_networks)

    def adopt(self, other: Egress) -> None:
        """Use the networks of other rules from now on. ``strict`` stays as it is."""
        self._denied, self._allowed = other._denied, other._allowed

    def check(self, address: str, *, name: str | None = None) -> None:
        """Return if this IP address (a scope id is ignored) may be reached.

        Args:
            address: to be judged.
            name: whose address it is, for the message.

        Raises:
            Denied: it may not; the message says why, and what would allow it.
        """
        try:
            given = ip_address(address.partition("%")[0])
        except ValueError as error:
            raise Denied(f"{address!r} is denied: it is no IP address") from error
        for form in _forms(given):
            reason = self._why_denied(form)
            if reason is not None:
                raise Denied(_message(address, name, None if form == given else form, reason))

    def is_inside(self, address: str) -> bool:
        """Whether an IP address is not a public one of another machine: strict rules deny
        it unless it is in ``allowed_networks``."""
        return any(
            any(form in network for network, _ in _DEFAULTS) or self._why_not_strictly(form)
            for form in _forms(ip_address(address.partition("%")[0]))
        )

    def _why_denied(self, form: Address) -> str | None:
        network = _find(form, self._denied)
        if network is not None:
            return f"in denied_networks ({network})"
        if _find(form, self._allowed) is not None:
            return None
        for network, reason in _DEFAULTS:
            if form in network:
                return f"{reason} ({network}){_REMEDY}"
        return self._why_not_strictly(form) if self.strict else None

    def _why_not_strictly(self, form: Address) -> str | None:
        if (kind := _why_not_public(form)) is not None:
            return f"{kind}, and only public addresses are allowed{_REMEDY}"
        return f"one of this machine's own addresses{_REMEDY}" if self._own.has(form) else None


def _message(address: str, name: str | None, form: Address | None, reason: str) -> str:
    """The sentence on a denied address; it is made nowhere else."""
    whose = "" if name is None else f"{name} is denied, since its address "
    leads = "" if form is None else f"it leads to {form}, "
    return f"{whose}{address} is denied: {leads}{reason}"


def _why_not_public(form: Address) -> str | None:
    for network, reason in _STRICT:
        if form in network:
            return f"{reason} ({network})"
    if isinstance(form, IPv6Address) and _find(form, _PUBLIC_V6) is None:
        return "reserved"
    return None


def _find(form: Address, networks: Iterable[Network]) -> Network | None:
    return next((network for network in networks if form in network), None)


def _forms(address: Address) -> list[Address]:
    """The address and every IPv4 address that it leads to. An IPv4-mapped
    address is nothing but its IPv4 address."""
    if isinstance(address, IPv4Address):
        return [address]
    number = int(address)
    if address in _V4_MAPPED:
        return [_v4(number)]
    forms: list[Address] = [address]
    if address in _UNUSED_V6:
        return forms
    if _find(address, _V4_IN_LOW_BITS) is not None:
        forms.append(_v4(number))
    elif address in _SIX_TO_FOUR:
        forms.append(_v4(number >> 80))
    elif address in _TEREDO:
        forms += [_v4(number >> 64), _v4(~number)]
    elif address in _LOCAL_NAT64:
        forms += _local_nat64(number)
    return forms


def _local_nat64(number: int) -> list[IPv4Address]:
    """The IPv4 address in each layout of RFC 6052, since it can't be known which one the
    site uses. A layout that reads as 0.x.x.x is not used."""
    octets = number.to_bytes(16, "big")
    layouts = (octets[12:16], octets[6:8] + octets[9:11], octets[7:8] + octets[9:12], octets[9:13])
    return [IPv4Address(layout) for layout in layouts if layout[0]]


def _v4(number: int) -> IPv4Address:
    return IPv4Address(number & 0xFFFFFFFF)


def _parse_networks(key: str, texts: Iterable[str]) -> tuple[Network, ...]:
    networks: list[Network] = []
    for text in texts:
        try:
            network = ip_network(text)
        except ValueError as error:
            raise ConfigError(f"[delivery] {key}: {error}") from error
        if isinstance(network, IPv6Network) and network.subnet_of(_V4_MAPPED):
            network = IPv4Network(
                (int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96)
            )
        networks.append(network)
    return tuple(networks)

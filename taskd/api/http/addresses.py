"""Whose address it is, as far as bounds per address go."""

from __future__ import annotations

import ipaddress

_ONE_CUSTOMER = 64
"""Bits of an IPv6 address that are one customer's; the rest may be chosen freely."""


def origin_of(address: str) -> str:
    """What the bounds per address take for one: an IPv4 address, or the /64 that an IPv6
    address is in."""
    if ":" not in address:
        return address
    # A link-local address names its interface, too.
    full = ipaddress.IPv6Address(address.partition("%")[0])
    if full.ipv4_mapped is not None:
        return str(full.ipv4_mapped)
    return str(ipaddress.IPv6Network((full, _ONE_CUSTOMER), strict=False))

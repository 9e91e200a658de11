"""Which addresses the bounds per address count as one."""

from __future__ import annotations

import ipaddress

_CUSTOMER_BITS = 64
"""Leading bits of an IPv6 address that name one customer, who chooses the rest freely."""


def origin_of(address: str) -> str:
    """What the bounds per address count an address as: an IPv4 address as itself, an IPv6
    address as its /64 network."""
    if ":" not in address:
        return address
    # A link-local address also names its interface, behind a %.
    full = ipaddress.IPv6Address(address.partition("%")[0])
    if full.ipv4_mapped is not None:
        return str(full.ipv4_mapped)
    return str(ipaddress.IPv6Network((full, _CUSTOMER_BITS), strict=False))

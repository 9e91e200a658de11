"""HTTP/1.1 on Trio, one request at a time per connection, pooled per origin.

::

    Transport.post ── an idle connection of the origin ─────────────────┐
        └── resolve ── egress ── connect ── TLS ── a new connection ────┤
                                                                        ▼
       idle again ◄── nothing strange about it ◄── Connection.exchange: send, read
       closed     ◄── anything else, a cancellation included

A request is sent once: what breaks after sending began is a failed attempt. Only
where a kept connection had been closed before any of the request came is it sent
once more, over a new one. Everything that waits does so in the caller's task, without a deadline
of its own but for bodies that decide nothing.
"""

from taskd.delivery.progress import Response
from taskd.delivery.transport.target import Target, parse_target, validate_link_url
from taskd.delivery.transport.tls import tls_contexts
from taskd.delivery.transport.transport import Transport, TransportStatistics

__all__ = [
    "Response",
    "Target",
    "Transport",
    "TransportStatistics",
    "parse_target",
    "tls_contexts",
    "validate_link_url",
]

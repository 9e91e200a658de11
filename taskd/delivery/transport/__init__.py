"""HTTP/1.1 on Trio, one request at a time per connection, pooled per origin.

::

    Transport.post ── an idle connection of the origin ─────────────────┐
        └── resolve ── egress ── connect ── TLS ── a new connection ────┤
                                                                        ▼
       idle again ◄── the answer ended cleanly ◄── Connection.exchange: send, read
       closed     ◄── anything else, a cancellation included

A request is sent once: if the connection breaks after sending began, the attempt has
failed. Only if a kept connection had been closed before any of the request came is the
request sent once more, over a new one. All waiting is done in the caller's task and under
its deadline; the one deadline here is for bodies that decide nothing.
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

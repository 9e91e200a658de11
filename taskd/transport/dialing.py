"""Connecting to one of the addresses that egress has approved."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

import trio

from taskd.errors import Unreachable
from taskd.progress import Progress

_MAX_SHARE_S = 3.0
"""The longest wait for an address while others are left to try."""

_SHOWN_FAILURES = 3


async def dial(
    addresses: Sequence[str], port: int, origin: str, progress: Progress
) -> socket.socket:
    """Connect to the first of the addresses that accepts.

    An address that does not answer takes at most a fair share of the time that
    the caller's deadline leaves, and at most 3 s; the last may take what is left.

    Raises:
        Unreachable: none accepted.
    """
    failures: list[str] = []
    for position, address in enumerate(addresses, start=1):
        left = len(addresses) - position
        progress.address = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        try:
            with trio.move_on_after(_share(left)):
                return await _connect(address, port)
            failures.append(f"{address}: no answer")
        except OSError as error:
            failures.append(f"{address}: {error.strerror or error}")
    shown = "; ".join(failures[:_SHOWN_FAILURES])
    more = len(failures) - _SHOWN_FAILURES
    raise Unreachable(
        f"can't connect to {origin} ({shown}{f'; and {more} more' if more > 0 else ''})"
    )


def _share(left: int) -> float:
    """Seconds that an address may take while ``left`` others wait."""
    if not left:
        return float("inf")
    remaining = trio.current_effective_deadline() - trio.current_time()
    # One share more than addresses, for what comes after the connection.
    return min(_MAX_SHARE_S, max(remaining, 0) / (left + 2))


async def _connect(address: str, port: int) -> socket.socket:
    """A connected, non-blocking socket. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            sock.connect((address, port))
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)
            failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failure:
                raise OSError(failure, os.strerror(failure)) from None
    except BaseException:
        sock.close()
        raise
    return sock

"""A request on its way out; what is long is not copied."""

from __future__ import annotations

import socket

from taskd.delivery.transport.secured import Secured

JOINED = 16_384
"""Bytes up to which a request is joined, so that it leaves in one piece."""


class Request:
    """A request, and what is left of it to be sent. Its length is that of the whole.

    Args:
        head: the request line and the headers.
        body: the parts of the body, which are sent one after another.
    """

    __slots__ = ("_length", "_parts")

    def __init__(self, head: bytes, *body: bytes) -> None:
        parts = (head, *body)
        self._length = sum(map(len, parts))
        if self._length <= JOINED:
            parts = (b"".join(parts),)
        self._parts = [memoryview(part) for part in parts if part]

    def __len__(self) -> int:
        return self._length

    def send(self, sock: socket.socket | Secured) -> int:
        """Send what the socket takes of the rest, which must not be empty; returns how many
        bytes that was.

        Raises:
            OSError: nothing was sent. After `ssl.SSLWantReadError` and
                `ssl.SSLWantWriteError` the next call offers the same bytes again, as
                TLS demands.
        """
        parts = self._parts
        if isinstance(sock, Secured) or len(parts) == 1:
            sent = sock.send(parts[0])
        else:
            sent = sock.sendmsg(parts)
        left = sent
        while parts and left >= len(parts[0]):
            left -= len(parts.pop(0))
        if left:
            parts[0] = parts[0][left:]
        return sent

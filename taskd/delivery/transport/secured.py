"""TLS on a socket, with a bounded amount of work in each call.

OpenSSL reads as long as there is something to read, and a peer may send records without
data for ever: session tickets, some 900 in a record, cost the peer nothing and taskd 10 ms.
So OpenSSL does not read from the socket itself. Each call gives it a bounded part of what
has come; the caller then has to call again, as if no more had come.
"""

from __future__ import annotations

import contextlib
import socket
import ssl

_CHUNK_BYTES = 16_384


class Secured:
    """A connected, non-blocking socket with TLS, which it owns.

    Its calls raise what those of `ssl.SSLSocket` do. After `ssl.SSLWantReadError` the
    socket may be readable all the same.

    Args:
        sock: see above.
        context: of a client.
        host: the name or IP address that the certificate must be valid for.
    """

    __slots__ = ("_come", "_going", "_offered", "_sock", "_tls", "_unsent")

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self._sock = sock
        self._come, self._going = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._come, self._going, server_hostname=host)
        self._unsent = bytearray()
        self._offered = 0
        """Bytes of the caller's that OpenSSL has taken and `send` has not reported as sent."""

    def fileno(self) -> int:
        """As of a socket."""
        return self._sock.fileno()

    def getsockopt(self, level: int, option: int, length: int) -> bytes:
        """As of a socket."""
        return self._sock.getsockopt(level, option, length)

    def close(self) -> None:
        """Close the socket. May be repeated."""
        self._sock.close()

    def do_handshake(self) -> None:
        """Go on with the handshake; returns once it is complete."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            if self._unsent:
                raise ssl.SSLWantWriteError from None
            self._fill()
            self._tls.do_handshake()
        finally:
            self._flush()

    def recv(self, most: int) -> bytes:
        """At most this many bytes of what has come; none if the peer has closed."""
        try:
            return self._tls.read(most)
        except ssl.SSLWantReadError:
            self._flush()
            self._fill()
            return self._tls.read(most)

    def send(self, data: bytes | memoryview) -> int:
        """Send the beginning of the data; returns how many bytes. After an error of waiting
        the same data has to be given again."""
        if not self._offered:
            self._offered = self._tls.write(data[:_CHUNK_BYTES])
        self._push()
        if self._unsent:
            raise ssl.SSLWantWriteError
        sent, self._offered = self._offered, 0
        return sent

    def _fill(self) -> None:
        """Take some of what has come."""
        try:
            data = self._sock.recv(_CHUNK_BYTES)
        except BlockingIOError:
            raise ssl.SSLWantReadError from None
        if data:
            self._come.write(data)
        else:
            self._come.write_eof()

    def _flush(self) -> None:
        """Send what can be sent without waiting. An error is ignored, since what the peer
        has sent may still be read."""
        with contextlib.suppress(OSError):
            self._push()

    def _push(self) -> None:
        self._unsent += self._going.read()
        while self._unsent:
            try:
                del self._unsent[: self._sock.send(self._unsent)]
            except BlockingIOError:
                return

"""TLS on a socket, of which no call does more than a bounded amount of work.

OpenSSL goes on reading as long as there is something to read, and a peer may send what
is no data without end: session tickets, some 900 in a record, cost it nothing and us 10 ms.
So OpenSSL does not read from the socket itself: it is given some of what has come, and
whoever called has to come again, as if no more had come.
"""

from __future__ import annotations

import contextlib
import socket
import ssl

_CHUNK = 16_384


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
        """Bytes of the caller's that are in what is unsent, and were not told as sent."""

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
        """Go on with the handshake, until it is made."""
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
        """What has come, of that so many bytes at the most; none where the peer has ended."""
        try:
            return self._tls.read(most)
        except ssl.SSLWantReadError:
            self._flush()
            self._fill()
            return self._tls.read(most)

    def send(self, data: bytes | memoryview) -> int:
        """Send the beginning of the data; how much that was. After an error of waiting the
        same data has to be given again."""
        if not self._offered:
            self._offered = self._tls.write(data[:_CHUNK])
        self._push()
        if self._unsent:
            raise ssl.SSLWantWriteError
        sent, self._offered = self._offered, 0
        return sent

    def _fill(self) -> None:
        """Take some of what has come."""
        try:
            data = self._sock.recv(_CHUNK)
        except BlockingIOError:
            raise ssl.SSLWantReadError from None
        if data:
            self._come.write(data)
        else:
            self._come.write_eof()

    def _flush(self) -> None:
        """Send what can be sent without waiting. Where nothing can be sent any more, what
        the peer had to say may still be read."""
        with contextlib.suppress(OSError):
            self._push()

    def _push(self) -> None:
        self._unsent += self._going.read()
        while self._unsent:
            try:
                del self._unsent[: self._sock.send(self._unsent)]
            except BlockingIOError:
                return

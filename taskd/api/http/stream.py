"""The bytes of one client's connection, over TCP or TLS.

An orderly end takes two steps: this side is closed after the last answer, then what still
comes is read and dropped. Bytes left unread would make the kernel reset the connection, and
the client could lose the answer.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable

import trio

HANDSHAKE_S = 10.0

SEND_S = 30.0
"""How long a client may take to make room for one write."""

LINGER_S = 5.0
"""How long bytes behind the last answer are read and dropped. Many clients read only once
they have sent everything, and see the answer then."""

MAX_LINGER = 4 * 1024 * 1024
"""Bytes that are read and dropped at most."""

_MAX_RECEIVE_BYTES = 16_384

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class SlowReader(Exception):
    """The client did not make room for an answer in time."""


class Wire:
    """See the module.

    Args:
        stream: just accepted.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._tcp = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        self._plain_fd = self._tcp.socket.fileno() if self._tcp is stream else None
        self.broken = False
        """Whether nothing can be sent any more."""

    async def shake_hands(self) -> bool:
        """Make TLS where it is spoken; returns whether the connection can be used."""
        if not isinstance(self._stream, trio.SSLStream):
            return True
        with trio.move_on_after(HANDSHAKE_S):
            try:
                await self._stream.do_handshake()
            except trio.BrokenResourceError:
                return False
            return True
        return False

    async def receive(self) -> bytes:
        """The next bytes; none where the client sends no more."""
        try:
            if self._plain_fd is None:
                return bytes(await self._stream.receive_some(_MAX_RECEIVE_BYTES))
            # Not through the stream, which tries to read before it waits: a client that was
            # just answered has hardly sent its next request.
            while True:
                await trio.lowlevel.wait_readable(self._plain_fd)
                try:
                    return os.read(self._plain_fd, _MAX_RECEIVE_BYTES)
                except BlockingIOError:
                    continue
        except (trio.BrokenResourceError, OSError):
            self.broken = True
            return b""

    def receive_now(self) -> bytes:
        """Bytes that have come already; none if nothing has, and always none with TLS."""
        if self._plain_fd is None:
            return b""
        try:
            return os.read(self._plain_fd, _MAX_RECEIVE_BYTES)
        except OSError:
            return b""

    def write_now(self, data: bytes) -> bytes:
        """Send what can be sent without waiting; returns the rest. Most answers fit into
        the kernel's buffer, and need neither a deadline nor a pass through Trio's
        scheduler."""
        if self.broken:
            return b""
        if self._plain_fd is None:
            return data
        try:
            return data[os.write(self._plain_fd, data) :]
        except BlockingIOError:
            return data
        except OSError:
            self.broken = True
            return b""

    async def write(self, data: bytes) -> None:
        """Send bytes; drops them where they can't be sent.

        Raises:
            SlowReader: the client makes no room.
        """
        if self.broken:
            return
        try:
            with trio.fail_after(SEND_S):
                await self._stream.send_all(data)
        except trio.TooSlowError as error:
            self.broken = True
            raise SlowReader from error
        except (trio.BrokenResourceError, OSError):
            self.broken = True

    async def linger(self, hurried: Callable[[], bool]) -> None:
        """Close this side, then read and drop what the client still sends; while
        ``hurried`` is true, only what has come already."""
        left = MAX_LINGER
        with trio.move_on_after(LINGER_S), contextlib.suppress(trio.BrokenResourceError):
            await self._tcp.send_eof()
            while left > 0 and (self.has_more() or not hurried()):
                data = await self._tcp.receive_some(_MAX_RECEIVE_BYTES)
                if not data:
                    return
                left -= len(data)

    async def close(self) -> None:
        """Close it at once."""
        # From here on the descriptor's number may be another file's.
        self.broken = True
        await trio.aclose_forcefully(self._stream)

    def has_more(self) -> bool:
        """Whether something has come that was not read yet, or the client's close. To close
        the connection now would reset it."""
        return bool(self._poll(select.POLLIN))

    def is_reset(self) -> bool:
        """Whether the client has reset the connection. A client that has closed its side,
        or all of it, may still want an answer."""
        return bool(self._poll(0))

    def _poll(self, events: int) -> list[tuple[int, int]]:
        fd = self._tcp.socket.fileno()
        if fd < 0:
            return []  # closed on this side, and its task has not ended yet
        poll = select.poll()
        poll.register(fd, events)
        return poll.poll(0)

"""Handing accepted connections from the supervisor to a worker.

The supervisor accepts, so that it can share connections out evenly: processes that
accept from one socket, or from sockets of one port, get them by chance, and clients
keep them for long. The descriptor goes over a socket of its own, one a message. The
worker tells at once how many it has taken: what it has not, when it dies, the
supervisor still has and gives to another.
"""

from __future__ import annotations

import array
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator

import trio

from taskd.logs import log_event

logger = logging.getLogger("taskd.uplink")

_ONE = array.array("i").itemsize
_ANCILLARY = socket.CMSG_SPACE(_ONE)


def hand_over(channel: socket.socket, connection: socket.socket) -> bool:
    """Give a connection to whoever reads the channel; False if it takes none now.

    Args:
        channel: non-blocking, of type SOCK_SEQPACKET.
        connection: stays open here; close it.
    """
    try:
        socket.send_fds(channel, [b"c"], [connection.fileno()])
    except OSError:
        return False  # full, or its worker has closed it
    return True


class Handover:
    """The worker's end: where its connections come from.

    Args:
        channel: of type SOCK_SEQPACKET.
        tell: called with the number of connections taken so far, whenever some were,
            before anything is read from them.
    """

    def __init__(
        self, channel: socket.socket, tell: Callable[[int], object] = lambda _taken: None
    ) -> None:
        channel.settimeout(0)
        self._tell = tell
        self._channel = channel
        self._over = False
        self.taken = 0
        """Connections that came so far."""

    async def run(self, take: Callable[[socket.socket], None]) -> None:
        """Pass every connection that comes to ``take``, until cancelled or closed."""
        with contextlib.suppress(trio.ClosedResourceError):
            while not self._over:
                await trio.lowlevel.wait_readable(self._channel)
                for connection in self.waiting():
                    take(connection)

    def waiting(self) -> Iterator[socket.socket]:
        """The connections that have been handed over and not taken yet."""
        while (connection := self._receive()) is not None:
            self.taken += 1
            self._tell(self.taken)
            yield connection

    def close(self) -> None:
        """Take no more: the supervisor hands them to others from here on."""
        trio.lowlevel.notify_closing(self._channel)
        self._channel.close()

    def _receive(self) -> socket.socket | None:
        try:
            data, ancillary, _, _ = self._channel.recvmsg(1, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            return None
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                (fd,) = array.array("i", content[:_ONE])
                connection = socket.socket(fileno=fd)
                connection.settimeout(0)
                return connection
        if data:
            # The kernel could not give it a descriptor: this process has too many.
            log_event(logger, logging.ERROR, "a connection that was handed over is lost")
            return self._receive()
        self._over = True
        return None

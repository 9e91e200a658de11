"""Hands accepted connections from the supervisor to a worker.

The supervisor accepts, so that it can share connections out evenly: processes that accept
from one socket, or from sockets of one port, get them by chance, and clients keep them for
long. Descriptors go over a socket of their own, one in each message. The worker answers each
with a byte on the same socket before it reads from the connection. The supervisor keeps each
connection open until then: connections that a dead worker has not answered, or that a worker
with too many open files has declined, go to another worker.
"""

from __future__ import annotations

import array
import contextlib
import itertools
import logging
import math
import socket
from collections import deque
from collections.abc import Callable, Iterator

import trio

from taskd.runtime.logs import log_event

logger = logging.getLogger("taskd.uplink")

_TELL_EVERY_S = 10.0
_ONE = array.array("i").itemsize
_TAKEN, _NO_ROOM = b"t", b"n"
_ANCILLARY = socket.CMSG_SPACE(_ONE)


def hand_over(channel: socket.socket, connection: socket.socket) -> bool:
    """Send a connection to the worker that reads the channel; False if it takes none now.

    Args:
        channel: non-blocking, of type SOCK_SEQPACKET.
        connection: stays open in this process, which has to close it.
    """
    try:
        socket.send_fds(channel, [b"c"], [connection.fileno()])
    except OSError:
        return False  # full, or its worker has closed it
    return True


def answers(channel: socket.socket) -> list[bool] | None:
    """Return the worker's new answers, in the order of the connections: whether it has taken
    each; None if it takes no more.

    Args:
        channel: the supervisor's end, non-blocking.
    """
    taken: list[bool] = []
    while True:
        try:
            if not (answer := channel.recv(1)):
                return taken or None
        except BlockingIOError:
            return taken
        except OSError:
            return taken or None
        taken.append(answer == _TAKEN)


class Handover:
    """The worker's end: receives its connections.

    Args:
        channel: of type SOCK_SEQPACKET.
    """

    def __init__(self, channel: socket.socket) -> None:
        channel.settimeout(0)
        self._owed: deque[bytes] = deque()
        """Answers that the channel had no room for yet."""
        self._told_at = -math.inf
        self._channel = channel
        self._over = False
        self._make_room: Callable[[], None] | None = None
        self.taken = 0
        """Connections received so far."""

    async def run(
        self,
        take: Callable[[socket.socket], None],
        make_room: Callable[[], None],
        at_once: int,
    ) -> None:
        """Take connections until cancelled, or closed.

        Args:
            take: is given each connection, non-blocking.
            make_room: is called when a connection finds too many files open.
            at_once: connections that are taken in one pass of Trio's loop.
        """
        self._make_room = make_room
        with contextlib.suppress(trio.ClosedResourceError):
            while not self._over:
                await trio.lowlevel.wait_readable(self._channel)
                for connection in itertools.islice(self.waiting(), at_once):
                    take(connection)

    def waiting(self) -> Iterator[socket.socket]:
        """Take the connections that have been handed over, one by one."""
        while (connection := self._receive()) is not None:
            yield connection

    def close(self) -> None:
        """Take no more connections: from here on the supervisor hands them to others."""
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
                self.taken += 1
                self._answer(_TAKEN)
                connection = socket.socket(fileno=fd)
                connection.settimeout(0)
                return connection
        if data:
            # The kernel could not make a descriptor: this process has too many.
            if trio.current_time() - self._told_at >= _TELL_EVERY_S:
                self._told_at = trio.current_time()
                log_event(
                    logger,
                    logging.ERROR,
                    "no connection can be taken, they wait: too many files are open",
                )
            self._answer(_NO_ROOM)
            if self._make_room is not None:
                self._make_room()
            return self._receive()
        self._over = True
        return None

    def _answer(self, answer: bytes) -> None:
        self._owed.append(answer)
        with contextlib.suppress(OSError):  # full: sent with the next answer; or closed
            while self._owed:
                self._channel.send(self._owed[0])
                self._owed.popleft()

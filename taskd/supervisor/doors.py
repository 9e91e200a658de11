"""Where the daemon listens, and who gets the connections.

Each goes to the worker that has the fewest, of those that have room. Which that is, a
worker tells once a second; what was handed to it since then is counted here, and kept
until it says that it has taken it: what it had not when it died, another gets.
"""

from __future__ import annotations

import logging
import math
import selectors
import socket
import time
from collections import deque
from collections.abc import Sequence

from taskd.api.listening import BACKLOG, authority, unbound
from taskd.config import ServerConfig
from taskd.logs import log_event
from taskd.supervisor.process import WorkerProcess
from taskd.uplink import hand_over

logger = logging.getLogger("taskd.supervisor")

_AT_ONCE = 64
_TELL_EVERY_S = 10.0
_CLOSED_S = 1.0
"""How long nothing is accepted after the system could not."""


class Doors:
    """The listening sockets.

    Args:
        server: says where.

    Raises:
        OSError: the address can't be bound.
    """

    def __init__(self, server: ServerConfig) -> None:
        try:
            self.listeners = _bound(server)
        except OSError as error:
            raise unbound(server, error) from error
        scheme = "http" if server.tls_cert is None else "https"
        self.url = f"{scheme}://{authority(self.listeners[0].getsockname()[:2])}"
        """Of the first one."""
        self._open = False
        self._accepted: deque[socket.socket] = deque()
        """What no worker has yet."""
        self._closed_until = 0.0
        self._told_at = -math.inf

    def open(self, selector: selectors.BaseSelector, workers: Sequence[WorkerProcess]) -> None:
        """Watch for connections where a worker can have them; otherwise they wait where
        they are, in the system's queue."""
        wanted = bool(workers) and not self._accepted and time.monotonic() >= self._closed_until
        if wanted == self._open:
            return
        self._open = wanted
        for listener in self.listeners:
            if wanted:
                selector.register(listener, selectors.EVENT_READ, self)
            else:
                selector.unregister(listener)

    def admit(self, listener: socket.socket) -> None:
        """Accept what waits, for `place` to hand on."""
        for _ in range(_AT_ONCE):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                # Out of descriptors, most likely: asked again at once, it is as before.
                self._closed_until = now = time.monotonic() + _CLOSED_S
                if now - self._told_at >= _TELL_EVERY_S:
                    self._told_at = now
                    log_event(logger, logging.ERROR, "can't accept", reason=str(error))
                return
            self._accepted.append(connection)

    def take_back(self, worker: WorkerProcess) -> None:
        """Take back what a worker that has ended had not taken: it is whole still."""
        self._accepted.extendleft(reversed((*worker.refused, *worker.handed)))
        worker.refused.clear()
        worker.handed.clear()

    def place(self, workers: Sequence[WorkerProcess]) -> None:
        """Hand what was accepted to those workers. What none of them takes now waits."""
        for worker in workers:
            self._accepted.extendleft(reversed(worker.refused))
            worker.refused.clear()
        while workers and self._accepted:
            if not _give(self._accepted[0], workers):
                return
            self._accepted.popleft()

    def close(self) -> None:
        """Listen no more."""
        for each in (*self.listeners, *self._accepted):
            each.close()


def _give(connection: socket.socket, workers: Sequence[WorkerProcess]) -> bool:
    now = time.monotonic()
    for worker in sorted(workers, key=lambda one: (one.full, one.connected)):
        if now >= worker.no_room_until and hand_over(worker.connections, connection):
            worker.handed.append(connection)
            return True
    return False


def _bound(server: ServerConfig) -> list[socket.socket]:
    listeners: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            server.host, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            listener = socket.socket(family, kind, protocol)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
            listener.settimeout(0)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners

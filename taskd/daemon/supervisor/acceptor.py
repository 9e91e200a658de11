"""Listens for the daemon, and hands connections to its workers.

Each connection goes to the worker that has the fewest, of those with room. A worker tells its
number once a second; the acceptor counts and keeps the connections that it has handed over
since, until the worker acknowledges each. Unacknowledged connections of a dead worker go to
another one.

While files stay short, here or in all workers, new connections are answered 503.
"""

from __future__ import annotations

import contextlib
import logging
import math
import selectors
import socket
import time
from collections import deque
from collections.abc import Iterable, Sequence

from taskd.api.http.file_shortage import SHORT, Shortage, Spare, Tally, TurnedAway
from taskd.api.http.listeners import BACKLOG, authority, unbound
from taskd.config import ServerConfig
from taskd.daemon.supervisor.worker_process import NO_ROOM_S, WorkerProcess
from taskd.link import hand_over
from taskd.runtime.logs import log_event

logger = logging.getLogger("taskd.supervisor")

_AT_ONCE = 64
_TELL_EVERY_S = 10.0
_CLOSED_S = 0.1
"""How long no connection is accepted after the system could not accept one."""


class Acceptor:
    """The listening sockets.

    Args:
        server: the part of the configuration that has the address.

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
        """The URL of the first listening socket."""
        self._open = False
        self._accepted: deque[socket.socket] = deque()
        """Accepted connections that no worker has yet."""
        self._closed_until = 0.0
        self._told_at = -math.inf
        self._shortage = Shortage()
        self._tally = Tally(logger)
        # With TLS a client can't be told why.
        self._spare = Spare(self._tally) if server.tls_cert is None else None
        self._turned_away: dict[TurnedAway, None] = {}
        """Connections that are being answered that no files are left."""

    def open(self, selector: selectors.BaseSelector, workers: Sequence[WorkerProcess]) -> None:
        """Watch for connections while a worker can have them; otherwise they wait in the
        system's queue."""
        wanted = (
            bool(workers)
            and not self._accepted
            and time.monotonic() >= self._closed_until
            and (self._spare is None or self._spare.guest is None)
        )
        if wanted == self._open:
            return
        self._open = wanted
        for listener in self.listeners:
            if wanted:
                selector.register(listener, selectors.EVENT_READ, self)
            else:
                selector.unregister(listener)

    def admit(self, listener: socket.socket) -> None:
        """Accept waiting connections, for `place` to hand on."""
        for _ in range(_AT_ONCE):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                now = time.monotonic()
                if now - self._told_at >= _TELL_EVERY_S:
                    self._told_at = now
                    log_event(logger, logging.ERROR, "can't accept", reason=str(error))
                lasts = error.errno in SHORT and self._shortage.lasts(now)
                if not (lasts and self._spend_spare(listener, now)):
                    # At once it would fail again.
                    self._closed_until = now + _CLOSED_S
                return
            self._shortage.end()
            self._accepted.append(connection)

    def _spend_spare(self, listener: socket.socket, now: float) -> bool:
        """Turn away the connection that waits longest in the system's queue; returns whether
        this could be tried."""
        if self._spare is None:
            return False
        try:
            guest = self._spare.accept(listener, now)
        except (BlockingIOError, ConnectionAbortedError):
            return True
        except OSError:
            return False
        if guest is None:
            return False
        self._turned_away[guest] = None
        return True

    def take_back(self, worker: WorkerProcess) -> None:
        """Take back the connections that an ended worker had not taken: they are unused."""
        self._accepted.extendleft(reversed((*worker.refused, *worker.handed)))
        worker.refused.clear()
        worker.handed.clear()

    def place(self, workers: Sequence[WorkerProcess]) -> None:
        """Hand accepted connections to these workers. Connections that none of them takes now
        wait; they are turned away once all workers have had too many files open for
        `NO_ROOM_S`."""
        for worker in workers:
            self._accepted.extendleft(reversed(worker.refused))
            worker.refused.clear()
        while workers and self._accepted:
            if not _give(self._accepted[0], workers):
                break
            self._accepted.popleft()
        now = time.monotonic()
        if self._accepted and self._spare is not None and _have_no_room(workers, now):
            while self._accepted and len(self._turned_away) < _AT_ONCE:
                self._turned_away[TurnedAway(self._accepted.popleft(), now)] = None
                self._tally.count()

    def see_off(self, selector: selectors.BaseSelector) -> None:
        """Answer the connections that are turned away, and close the answered ones."""
        now = time.monotonic()
        self._tally.tell(now)
        for guest in list(self._turned_away):
            if guest.look(now):
                del self._turned_away[guest]
                with contextlib.suppress(KeyError):  # it was gone at the first look
                    selector.unregister(guest.sock)
                self._close(guest)
            elif guest.sock not in selector.get_map():
                selector.register(guest.sock, selectors.EVENT_READ, guest)

    def look_at(self, workers: Iterable[WorkerProcess]) -> float:
        """Return when the acceptor has work even if no event comes before."""
        now = time.monotonic()
        times = [self._closed_until]
        if self._accepted:
            times += [worker.no_room_until for worker in workers]
        times = [at for at in times if at > now]
        return min((*times, *(guest.look_at for guest in self._turned_away)), default=math.inf)

    def _close(self, guest: TurnedAway) -> None:
        if self._spare is not None and self._spare.guest is guest:
            self._spare.give_back()
        else:
            guest.close()

    def dismiss(self) -> None:
        """Answer and close at once the connections that are turned away."""
        for guest in self._turned_away:
            guest.close()
        self._turned_away.clear()
        self._tally.tell(math.inf)

    def close(self) -> None:
        """Stop listening, and answer no connection: a worker that was just forked closes its
        copies of the supervisor's sockets by this."""
        leaving = [guest.sock for guest in self._turned_away]
        for each in (*self.listeners, *self._accepted, *leaving):
            each.close()
        if self._spare is not None:
            self._spare.close()


def _have_no_room(workers: Sequence[WorkerProcess], now: float) -> bool:
    """Whether all workers had no room when they were last asked, and have had none for
    `NO_ROOM_S`."""
    return bool(workers) and all(
        now < worker.no_room_until
        and worker.no_room_since is not None
        and now - worker.no_room_since >= NO_ROOM_S
        for worker in workers
    )


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

"""Tells clients 503 where no more files can be opened, instead of leaving them to wait.

A process that accepts keeps a spare descriptor. While it has as many files open as it may,
it closes the spare, accepts one connection in its place, answers and closes that, and opens
the spare again::

    spare ─► accepted ─► waiting for its request ─► told ─► being drained ─► spare
                              ASK_S at most             MOST_S at most, in all

The request is read and dropped, however long it is: if bytes came to a closed socket, the
kernel would reset the connection, and the client could lose the answer. With TLS no answer
can be given without a handshake, so clients of an https port wait in the system's queue.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import socket
from http import HTTPStatus

import trio

from taskd.api.http.heads import Head, read_head
from taskd.api.http.rendering import Renderer
from taskd.api.http.router import request_id
from taskd.api.wire.envelope import Refusal
from taskd.runtime.logs import log_event

SHORT = frozenset({errno.EMFILE, errno.ENFILE})
"""Errors of opening where too many files are open: in this process, in the system."""

SHORTAGE_S = 0.2
"""How long accepting must have failed before a client is turned away. Meanwhile strangers
that are closed, and answers that are sent, may make room."""

ASK_S = 0.05
"""How long to wait for a request before the answer, and again after it. Most requests have
come before the connection is accepted."""

LINGER_S = 0.1
"""How long to wait after the answer for each next byte of a request that is not complete."""

_WHOLE_S = 0.01
"""How long to wait for the client's close after a complete request. It may have sent
another request."""

MOST_S = 1.0
"""What one connection may take in all."""

_TELL_EVERY_S = 10.0
_FORGOTTEN_S = 1.0
_MAX_RECEIVE_BYTES = 65_536
_READS = 4

_NO_FILE = Refusal(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "too many files are open: nothing was done, try again",
    headers=((b"retry-after", b"1"),),
).answer
_BODY = _NO_FILE.encode()
_renderer = Renderer()


class Shortage:
    """Tells a shortage that lasts from one that passes."""

    def __init__(self) -> None:
        self._since = 0.0
        self._failed_at = -math.inf

    def lasts(self, now: float) -> bool:
        """Note that nothing can be accepted; returns whether that has been so for
        `SHORTAGE_S`."""
        if now - self._failed_at > _FORGOTTEN_S:
            self._since = now
        self._failed_at = now
        return now - self._since >= SHORTAGE_S

    def end(self) -> None:
        """Note that something was accepted."""
        self._failed_at = -math.inf


class TurnedAway:
    """A connection that is told 503. No method waits.

    Args:
        sock: accepted; it is closed by `close`.
        now: a monotonic clock's time, in seconds.
    """

    def __init__(self, sock: socket.socket, now: float) -> None:
        sock.settimeout(0)
        self.sock = sock
        self.look_at = now + ASK_S
        """When to `look` at it, if it does not become readable before."""
        self._over_at = now + MOST_S
        self._told = False
        self._linger_s = ASK_S

    def look(self, now: float) -> bool:
        """Do what can be done now; True once it may be closed."""
        for _ in range(_READS):
            try:
                data = self.sock.recv(_MAX_RECEIVE_BYTES)
            except BlockingIOError:
                break
            except OSError:
                return True  # it has left
            if not data:
                return True
            if not self._told:
                self._tell(data)
            self.look_at = min(now + self._linger_s, self._over_at)
        if now < self.look_at:
            return False
        if self._told:
            return True
        self._tell(b"")
        self.look_at = min(now + self._linger_s, self._over_at)
        return False

    def close(self) -> None:
        """Close it; answer first, if that was not done."""
        if not self._told:
            self.look(math.inf)
        self.sock.close()

    def _tell(self, data: bytes) -> None:
        """Answer a request that begins with these bytes, and close this side."""
        self._told = True
        head = _head(data)
        if head is not None and not head.chunked and head.end + head.length <= len(data):
            self._linger_s = _WHOLE_S
        elif data:
            self._linger_s = LINGER_S
        answer = _renderer.render(
            _NO_FILE,
            _BODY,
            request_id(head.headers if head is not None else {}),
            last=True,
            headed=head is not None and head.method == "HEAD",
        )
        with contextlib.suppress(OSError):  # it has left
            self.sock.send(answer)
            self.sock.shutdown(socket.SHUT_WR)


def _head(data: bytes) -> Head | None:
    try:
        return read_head(data)
    except Refusal:
        return None


class Tally:
    """Counts connections that are turned away, and logs their number now and then.

    Args:
        logger: is told.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._untold = 0
        self._told_at = -math.inf

    def count(self) -> None:
        """Count one more."""
        self._untold += 1

    def tell(self, now: float) -> None:
        """Log how many there were, at most once in `_TELL_EVERY_S`."""
        if self._untold and now - self._told_at >= _TELL_EVERY_S:
            log_event(
                self._logger,
                logging.WARNING,
                "turned away with 503: too many files are open",
                number=self._untold,
            )
            self._untold, self._told_at = 0, now


class Spare:
    """A descriptor that is kept free for one connection at a time.

    Args:
        tally: counts the connections that had it.
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self.guest: TurnedAway | None = None
        """The connection that has it."""
        self._fd: int | None = None
        self.keep()

    def keep(self) -> bool:
        """Open it if it is not there; returns whether it is now."""
        if self._fd is None and self.guest is None:
            with contextlib.suppress(OSError):
                self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        return self._fd is not None

    def accept(self, listener: socket.socket, now: float) -> TurnedAway | None:
        """Accept a connection in its place, until `give_back`; None while there is no
        spare.

        Raises:
            OSError: there is no connection, or it can't be accepted.
        """
        if not self.keep():
            return None
        self._drop()
        try:
            sock, _ = listener.accept()
        except OSError:
            self.keep()
            raise
        self._tally.count()
        self.guest = TurnedAway(sock, now)
        return self.guest

    def give_back(self) -> None:
        """Close the connection that has it, and open the spare again."""
        if self.guest is not None:
            self.guest.close()
            self.guest = None
        self.keep()

    async def turn_away(self, listener: socket.socket) -> bool:
        """Turn one connection away; False while there is no spare.

        Raises:
            OSError: see `accept`.
        """
        guest = self.accept(listener, trio.current_time())
        if guest is None:
            return False
        try:
            while not guest.look(trio.current_time()):
                with trio.move_on_at(guest.look_at):
                    await trio.lowlevel.wait_readable(guest.sock)
        except trio.ClosedResourceError:
            pass  # by `turn_away_all`
        finally:
            self.give_back()
        return True

    def turn_away_all(self, listener: socket.socket, most: int) -> None:
        """Turn away at most this many connections that the system has accepted, without
        waiting for them: the listener is about to be closed, which would reset them."""
        if self.guest is not None:
            trio.lowlevel.notify_closing(self.guest.sock)
        self.give_back()
        with contextlib.suppress(OSError):  # there are no more, or they can't be had
            for _ in range(most):
                if self.accept(listener, math.inf) is None:
                    return
                self.give_back()

    def close(self) -> None:
        """Close the spare."""
        self._drop()

    def _drop(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

"""Who connects where no more files can be opened: told 503, instead of left to wait.

A process that accepts keeps a spare descriptor. While it has as many files open as it may,
it closes the spare, accepts one connection in its place, answers that and closes it, and
opens the spare again::

    spare ─► accepted ─► waiting for its request ─► told ─► being drained ─► spare
                              ASK_S at most             MOST_S at most, in all

The request is read away, however long it is, since the kernel would take the answer back
where bytes came to a closed socket. Nothing can be said without TLS to who expects it, so
these wait in the system's queue.
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
"""What opening fails with where there are too many files: this process's, the system's."""

SHORTAGE_S = 0.2
"""How long nothing must have been accepted before anybody is turned away. Strangers may
make room meanwhile, and answers that are sent."""

ASK_S = 0.05
"""How long a request is waited for before the answer, and again after it. It has mostly come
before the connection is accepted."""

LINGER_S = 0.1
"""How long the rest of a request is waited for, each byte of it, after the answer."""

_WHOLE_S = 0.01
"""And the client's end, where there is no rest. It may be that it has sent another request."""

MOST_S = 1.0
"""What one may take in all."""

_TELL_EVERY_S = 10.0
_FORGOTTEN_S = 1.0
_MAX_RECEIVE = 65_536
_READS = 4

_NO_FILE = Refusal(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "too many files are open: nothing was done, try again",
    headers=((b"retry-after", b"1"),),
).answer
_BODY = _NO_FILE.encode()
_renderer = Renderer()


class Shortage:
    """Tells one that lasts from one that passes."""

    def __init__(self) -> None:
        self._since = 0.0
        self._failed_at = -math.inf

    def lasts(self, now: float) -> bool:
        """Take note that nothing can be accepted; whether that has been so for
        `SHORTAGE_S`."""
        if now - self._failed_at > _FORGOTTEN_S:
            self._since = now
        self._failed_at = now
        return now - self._since >= SHORTAGE_S

    def end(self) -> None:
        """Something was accepted."""
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
        """When to look at it, where it does not become readable before."""
        self._over_at = now + MOST_S
        self._told = False
        self._linger_s = ASK_S

    def look(self, now: float) -> bool:
        """Do what can be done now; True once it may be closed."""
        for _ in range(_READS):
            try:
                data = self.sock.recv(_MAX_RECEIVE)
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
        """Close it; if it was told nothing yet, it is first."""
        if not self._told:
            self.look(math.inf)
        self.sock.close()

    def _tell(self, data: bytes) -> None:
        """Answer a request that begins with these bytes, and say that no more follows."""
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
    """Counts who is turned away, and tells so now and then.

    Args:
        logger: is told.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._untold = 0
        self._told_at = -math.inf

    def count(self) -> None:
        """One more was turned away."""
        self._untold += 1

    def tell(self, now: float) -> None:
        """Log how many there were, where that is not too soon after the last time."""
        if self._untold and now - self._told_at >= _TELL_EVERY_S:
            log_event(
                self._logger,
                logging.WARNING,
                "turned away with 503: too many files are open",
                number=self._untold,
            )
            self._untold, self._told_at = 0, now


class Spare:
    """A descriptor that is kept for a connection.

    Args:
        tally: counts the connections that had it.
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self.guest: TurnedAway | None = None
        """Who has it."""
        self._fd: int | None = None
        self.keep()

    def keep(self) -> bool:
        """Whether it is there; it is opened where it is not, and can be."""
        if self._fd is None and self.guest is None:
            with contextlib.suppress(OSError):
                self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        return self._fd is not None

    def accept(self, listener: socket.socket, now: float) -> TurnedAway | None:
        """Accept a connection in its place, to `give_back` later; None where there is no
        spare now.

        Raises:
            OSError: there is none to accept, or it can't be had.
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
        """Close the connection that has it, and keep it again."""
        if self.guest is not None:
            self.guest.close()
            self.guest = None
        self.keep()

    async def turn_away(self, listener: socket.socket) -> bool:
        """Turn one away, if there is one; False where there is no spare now.

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
        """Turn away those that the system has accepted, so many at most, and wait for
        none of them: the listener is about to be closed, which would reset them."""
        if self.guest is not None:
            trio.lowlevel.notify_closing(self.guest.sock)
        self.give_back()
        with contextlib.suppress(OSError):  # there are no more, or they can't be had
            for _ in range(most):
                if self.accept(listener, math.inf) is None:
                    return
                self.give_back()

    def close(self) -> None:
        """Keep none any more."""
        self._drop()

    def _drop(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

"""One worker process on its supervisor's side: forks it, reads from it and writes to it.

It is forked, not started anew, so that it shares the memory of imported modules and holds the
store's lock with its parent. The parent runs no thread and no event loop, so that the copied
state is consistent.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from taskd.daemon.adapters import new_node
from taskd.daemon.supervisor.signal_pipe import SIGNALS, forget_signals
from taskd.link import MAY_BE_LOST, Kind, Splitter, answers, frame
from taskd.runtime.logs import log_event

logger = logging.getLogger("taskd.supervisor")

MAX_UNSENT = 8 * 1024 * 1024
"""Bytes that may wait for a worker to take them; signals and wake-ups beyond are dropped."""

ASK_AGAIN_S = 0.1
"""How long a worker is given no connection after it had no room for one. Meanwhile it closes
strangers' connections."""

NO_ROOM_S = 1.0
"""The same, once a worker has had no room for this time."""

_RECEIVE = 65_536
_PR_SET_PDEATHSIG = 1
_FAILED = 70


@dataclass(frozen=True, slots=True)
class Ends:
    """The worker's ends of its two channels, and its name."""

    control: socket.socket
    connections: socket.socket
    node: str


@dataclass(slots=True, eq=False)
class WorkerProcess:
    """A forked worker, and its state as its supervisor knows it."""

    seat: int
    """Its number, from 0; its successor has the same."""
    node: str
    pid: int
    control: socket.socket
    connections: socket.socket
    started_at: float
    heard_at: float
    """When it last showed that it lives, or was started."""
    ready: bool = False
    leaving: bool = False
    """It was told to stop, or said that it does."""
    handed: deque[socket.socket] = field(default_factory=deque)
    """Connections that were handed to it and that it has not taken yet, oldest first."""
    refused: list[socket.socket] = field(default_factory=list)
    """Handed connections that it had no room for, oldest first: they go to another."""
    no_room_until: float = 0.0
    """Until when it gets no connection, since it had no room."""
    no_room_since: float | None = None
    """Since when it has had no room each time that it was asked."""
    open: int = 0
    """Connections that it has taken and not closed, by its last heartbeat and answers."""
    full: bool = False
    """Whether it closes others' connections for new ones, by its last heartbeat."""
    failure: str | None = None
    """Why it could not start."""
    dropped: int = 0
    """Frames that were dropped, since it did not take them in time."""
    splitter: Splitter = field(default_factory=Splitter)
    unsent: bytearray = field(default_factory=bytearray)

    @property
    def connected(self) -> int:
        """Connections that it has, as far as is known."""
        return self.open + len(self.handed)

    def note_heartbeat(self, payload: bytes) -> None:
        """Note the counts of connections in its heartbeat."""
        connections, full = payload.split()
        self.open, self.full = int(connections), full == b"1"

    def note_taken(self) -> bool:
        """Close this end of the connections that it has taken, and set those apart that it
        has no room for; False once it takes no more."""
        taken = answers(self.connections)
        for was_taken in (taken or ())[: len(self.handed)]:
            connection = self.handed.popleft()
            if was_taken:
                connection.close()
                self.open += 1
                self.no_room_since = None
            else:
                self.refused.append(connection)
                now = time.monotonic()
                if self.no_room_since is None or now - self.no_room_until > NO_ROOM_S:
                    self.no_room_since = now
                lasts = now - self.no_room_since >= NO_ROOM_S
                self.no_room_until = now + (NO_ROOM_S if lasts else ASK_AGAIN_S)
        return taken is not None

    def receive(self) -> list[tuple[Kind, bytes]] | None:
        """Return the frames that are complete; None if it has ended.

        Raises:
            BlockingIOError: there is nothing more to read now.
            Malformed: it sent bytes that are no frames.
        """
        try:
            data = self.control.recv(_RECEIVE)
        except BlockingIOError:
            raise
        except OSError:
            return None
        return self.splitter.feed(data) if data else None

    def post(self, kind: Kind, payload: bytes = b"") -> None:
        """Send a frame, or keep it until the worker takes it. Frames that may be lost are
        dropped beyond `MAX_UNSENT`."""
        data = frame(kind, payload)
        if kind in MAY_BE_LOST and len(self.unsent) + len(data) > MAX_UNSENT:
            self.dropped += 1
            return
        self.unsent += data
        self.send()

    def send(self) -> None:
        """Send waiting frames, as far as the worker takes them."""
        while self.unsent:
            try:
                sent = self.control.send(self.unsent[:_RECEIVE])
            except BlockingIOError:
                return
            except OSError:
                self.unsent.clear()  # it has ended, which its reader finds out
                return
            del self.unsent[:sent]

    def kill(self, number: signal.Signals) -> None:
        """Send it a signal. It is a child that was not waited for, so no other process can
        have its pid."""
        os.kill(self.pid, number)

    def close(self) -> None:
        """Close this end of its channels and of the connections handed to it."""
        self.control.close()
        self.connections.close()
        for connection in (*self.handed, *self.refused):
            connection.close()


def fork(seat: int, *, body: Callable[[Ends], int], close: Callable[[], None]) -> WorkerProcess:
    """Fork a worker.

    Args:
        seat: its number.
        body: runs in the worker; returns its exit code.
        close: closes, in the worker, the descriptors of the supervisor alone.

    Raises:
        OSError: the system has no room for one; no resources of it are left.
    """
    control, theirs = socket.socketpair()
    try:
        connections, handed = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError:
        control.close()
        theirs.close()
        raise
    node = new_node()
    parent = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        pid = os.fork()
    except OSError:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for end in (control, theirs, connections, handed):
            end.close()
        raise
    if pid == 0:
        code = _FAILED
        try:
            _die_with(parent)
            control.close()
            connections.close()
            close()
            # Signals stay blocked until the worker handles them: see `run.serve`.
            forget_signals()
            code = body(Ends(theirs, handed, node))
        except BaseException as error:  # noqa: BLE001 - nobody is left to raise it to
            log_event(logger, logging.CRITICAL, "a worker failed", error=error)
        finally:
            os._exit(code)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    handed.close()
    control.settimeout(0)
    connections.settimeout(0)
    now = time.monotonic()
    return WorkerProcess(
        seat=seat,
        node=node,
        pid=pid,
        control=control,
        connections=connections,
        started_at=now,
        heard_at=now,
    )


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, in whatever way: it would
    otherwise go on delivering while no process holds the store for it."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(_FAILED)

"""The worker's end of the frames: sends and receives them, and knows the other workers.

All frames between workers go through the supervisor. If it ends, this process has lost its
right to the store and ends too: see `SupervisorLost`.
"""

from __future__ import annotations

import logging
import socket
from collections import deque
from collections.abc import Callable

import trio

from taskd.link.frames import MAY_BE_LOST, Kind, Malformed, Splitter, frame
from taskd.runtime.logs import log_event

logger = logging.getLogger("taskd.uplink")

MAX_UNSENT = 8 * 1024 * 1024
"""Bytes that may wait for the supervisor to take them; wake-ups and signals beyond are
dropped."""

_RECEIVE = 65_536


class SupervisorLost(Exception):
    """The supervisor has ended, or sends no frames: no process holds the store for this one
    any more."""


class Uplink:
    """See the module. Does its work in `run`.

    Args:
        control: the socket to the supervisor, a stream.
        node: this process's name as a node.
    """

    def __init__(self, control: socket.socket, node: str) -> None:
        control.settimeout(0)
        self.node = node
        self.leader: str | None = None
        """The node whose timer reads ahead."""
        self.others: tuple[str, ...] = ()
        """The other nodes that take work."""
        self.alive: frozenset[str] = frozenset()
        """All nodes that live, stopping ones included."""
        self.dropped = 0
        """Frames that were dropped, since the supervisor did not take them."""
        self._socket = control
        self._unsent = bytearray()
        self._more = trio.Event()
        self._gone: deque[str] = deque()
        self._watchers: list[Callable[[], None]] = []
        self._news = trio.Event()
        self._handlers: dict[Kind, Callable[[bytes], None]] = {
            Kind.MEMBERS: self._note_members,
            Kind.GONE: self._note_gone,
        }

    def on(self, kind: Kind, handler: Callable[[bytes], None]) -> None:
        """Have frames of a kind passed to a handler, which must not wait."""
        self._handlers[kind] = handler

    def on_members(self, watcher: Callable[[], None]) -> None:
        """Have a function called, which must not wait, when `others` has changed."""
        self._watchers.append(watcher)

    def post(self, kind: Kind, payload: bytes = b"", *, to: str | None = None) -> bool:
        """Send a frame, at once if the socket takes it. Never waits; False if the frame was
        dropped."""
        data = frame(kind, payload, to=to)
        if self._unsent:
            if kind in MAY_BE_LOST and len(self._unsent) + len(data) > MAX_UNSENT:
                self.dropped += 1
                return False
            self._unsent += data
            return True
        sent = self._send(data)
        if sent < len(data):
            self._unsent += data[sent:]
            self._more.set()
        return True

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send and receive until cancelled.

        Raises:
            SupervisorLost: the supervisor has ended, or sends no frames.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_rest)
            task_status.started()
            await self._receive()

    async def _receive(self) -> None:
        splitter = Splitter()
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                data = self._socket.recv(_RECEIVE)
            except BlockingIOError:
                continue
            except OSError as error:
                raise SupervisorLost(str(error)) from error
            if not data:
                raise SupervisorLost("the supervisor has ended")
            try:
                frames = splitter.feed(data)
            except Malformed as error:
                raise SupervisorLost(f"the supervisor sent no frame: {error}") from error
            for kind, payload in frames:
                self._handle(kind, payload)

    def _handle(self, kind: Kind, payload: bytes) -> None:
        handler = self._handlers.get(kind)
        if handler is None:
            # It came before this node's parts were made, or after their end.
            log_event(logger, logging.DEBUG, "a frame nobody waits for", kind=kind.name)
            return
        handler(payload)

    async def next_gone(self) -> str:
        """Wait for the next ended node, whose leases this one has to reap. Only the leader
        is told of ended nodes, once of each."""
        while not self._gone:
            self._news = trio.Event()
            await self._news.wait()
        return self._gone.popleft()

    def siblings(self) -> frozenset[str] | None:
        """Return the other nodes that live, as the supervisor knows for certain, whose
        children they are; None before its first word."""
        return self.alive - {self.node} if self.alive else None

    def close(self) -> None:
        """Close the socket. Nothing may use it any more."""
        self._socket.close()

    def _note_gone(self, payload: bytes) -> None:
        self._gone.append(payload.decode("ascii", "replace"))
        self._news.set()

    def _note_members(self, payload: bytes) -> None:
        at_work, _, alive = payload.decode("ascii", "replace").partition("\n")
        self.alive = frozenset(alive.split())
        names = at_work.split()
        leader, nodes = names[0] if names else None, names[1:]
        if leader != self.leader:
            self.leader = leader
            if leader == self.node:
                log_event(logger, logging.INFO, "leads the timer", node=self.node)
        others = tuple(node for node in nodes if node != self.node)
        if others != self.others:
            self.others = others
            for watcher in self._watchers:
                watcher()

    def _send(self, data: bytes | bytearray) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)  # the supervisor is gone, which `run` finds out

    async def _send_rest(self) -> None:
        while True:
            await self._more.wait()
            self._more = trio.Event()
            while self._unsent:
                await trio.lowlevel.wait_writable(self._socket)
                sent = self._send(self._unsent[:_RECEIVE])
                del self._unsent[:sent]

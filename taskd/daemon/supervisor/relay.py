"""Hears what workers say, and hands on what they say to each other.

It never waits for a worker: what one does not take is kept within bounds and dropped
beyond them, as any carrier of signals and wake-ups may do.
"""

from __future__ import annotations

import logging
import selectors
import signal
import time

from taskd.daemon.supervisor.worker_process import WorkerProcess
from taskd.link import Kind, Malformed, split_address
from taskd.runtime.logs import log_event

logger = logging.getLogger("taskd.supervisor")


class Relay:
    """The control channels of all workers.

    Args:
        selector: where they are watched; the key's data is the worker.
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._by_node: dict[str, WorkerProcess] = {}

    def add(self, worker: WorkerProcess) -> None:
        """Begin to hear a worker."""
        self._by_node[worker.node] = worker
        for end in (worker.control, worker.connections):
            self._selector.register(end, selectors.EVENT_READ, worker)

    def remove(self, worker: WorkerProcess) -> None:
        """Hear the rest of what a worker that has ended said, and no more."""
        while self.serve(worker):
            pass
        for end in (worker.control, worker.connections):
            # Its descriptor is the next worker's, perhaps.
            if end in self._selector.get_map():
                self._selector.unregister(end)
        del self._by_node[worker.node]

    def serve(self, worker: WorkerProcess) -> bool:
        """Take what a worker has said and give it what waits for it; False once there
        is nothing more to take now."""
        if not worker.note_taken() and worker.connections in self._selector.get_map():
            self._selector.unregister(worker.connections)
        worker.send()
        try:
            frames = worker.receive()
        except BlockingIOError:
            self._watch(worker)
            return False
        except Malformed as error:
            log_event(
                logger,
                logging.ERROR,
                "a worker sent what is no frame, and is killed",
                node=worker.node,
                reason=str(error),
            )
            worker.kill(signal.SIGKILL)
            frames = None
        for kind, payload in frames or ():
            self._hear(worker, kind, payload)
        self._watch(worker, ended=frames is None)
        return frames is not None

    def tell(self, worker: WorkerProcess, kind: Kind, payload: bytes) -> None:
        """Send a worker a frame."""
        worker.post(kind, payload)
        self._watch(worker)

    def _hear(self, worker: WorkerProcess, kind: Kind, payload: bytes) -> None:
        worker.heard_at = time.monotonic()
        if kind is Kind.HEARTBEAT:
            worker.note_heartbeat(payload)
        elif kind is Kind.READY:
            worker.ready = True
        elif kind is Kind.LEAVING:
            worker.leaving = True
        elif kind is Kind.FAILED:
            worker.failure = payload.decode(errors="replace")
        elif kind in (Kind.SIGNAL, Kind.WAKE):
            address, rest = split_address(payload)
            addressee = self._by_node.get(address)
            if addressee is not None:  # else it has just ended, as its sender will hear
                self.tell(addressee, kind, rest)

    def _watch(self, worker: WorkerProcess, *, ended: bool = False) -> None:
        """Watch for what there is to do: an end is told again and again."""
        key = self._selector.get_map().get(worker.control)
        if key is None:
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.unsent else 0)
        if ended:
            self._selector.unregister(worker.control)
        elif key.events != events:
            self._selector.modify(worker.control, events, worker)

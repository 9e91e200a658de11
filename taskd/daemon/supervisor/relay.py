"""Receives the workers' frames, and sends on those that they exchange.

It never waits for a worker: it keeps frames that a worker does not take within bounds, and
drops signals and wake-ups beyond them, as any carrier of these may do.
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
        selector: watches them; its key's data is the worker.
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._by_node: dict[str, WorkerProcess] = {}

    def add(self, worker: WorkerProcess) -> None:
        """Begin to receive a worker's frames."""
        self._by_node[worker.node] = worker
        for end in (worker.control, worker.connections):
            self._selector.register(end, selectors.EVENT_READ, worker)

    def remove(self, worker: WorkerProcess) -> None:
        """Receive the last frames of an ended worker, then no more."""
        while self.serve(worker):
            pass
        for end in (worker.control, worker.connections):
            # The next worker may get the same descriptor.
            if end in self._selector.get_map():
                self._selector.unregister(end)
        del self._by_node[worker.node]

    def serve(self, worker: WorkerProcess) -> bool:
        """Receive a worker's frames and send it the waiting ones; False once there are no
        more to receive now."""
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
            if addressee is not None:  # else it has just ended, which its sender will learn
                self.tell(addressee, kind, rest)

    def _watch(self, worker: WorkerProcess, *, ended: bool = False) -> None:
        """Watch for the events that matter now: the end of a stream would be one for ever."""
        key = self._selector.get_map().get(worker.control)
        if key is None:
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.unsent else 0)
        if ended:
            self._selector.unregister(worker.control)
        elif key.events != events:
            self._selector.modify(worker.control, events, worker)

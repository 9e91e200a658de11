"""Knows which workers live, which take work, and which one leads."""

from __future__ import annotations

from collections.abc import Iterable

from taskd.daemon.supervisor.relay import Relay
from taskd.daemon.supervisor.worker_process import WorkerProcess
from taskd.link import Kind

_ABSENT_S = 3.0
"""A worker that has shown no life for so long gets no new work, and does not lead."""


class Membership:
    """Tells all workers about each other, when there is a change.

    Args:
        relay: sends the frames.
    """

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._told = b""
        self._leader: WorkerProcess | None = None
        self._gone: list[str] = []
        """Ended nodes that no leader has been told of yet."""

    def remove(self, worker: WorkerProcess) -> None:
        """Note a worker's end."""
        self._gone.append(worker.node)

    def tell(self, workers: Iterable[WorkerProcess], now: float) -> list[WorkerProcess]:
        """Tell the workers of changes; returns those that take work, by their seats."""
        workers = sorted(workers, key=lambda one: one.seat)
        at_work = [
            worker
            for worker in workers
            if worker.ready and not worker.leaving and now - worker.heard_at < _ABSENT_S
        ]
        if self._leader not in at_work:
            self._leader = at_work[0] if at_work else None
        names = [worker.node for worker in at_work]
        if self._leader is not None:
            names.insert(0, self._leader.node)
        alive = [worker.node for worker in workers if worker.ready]
        members = f"{' '.join(names)}\n{' '.join(alive)}".encode()
        if members != self._told:
            self._told = members
            for worker in workers:
                self._relay.tell(worker, Kind.MEMBERS, members)
        if self._leader is not None:
            while self._gone:
                self._relay.tell(self._leader, Kind.GONE, self._gone.pop().encode())
        return at_work

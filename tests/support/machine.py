"""A supervisor's relay and membership, and its workers' uplinks, in one process.

All that lies between two workers is the product's own, over real socket pairs; only the
processes are missing. So a worker dies here by the end of its sockets.
"""

from __future__ import annotations

import selectors
import socket
import time

import trio

from taskd.daemon.supervisor.membership import Membership
from taskd.daemon.supervisor.relay import Relay
from taskd.daemon.supervisor.worker_process import WorkerProcess
from taskd.link import Kind, Uplink


def join(relay: Relay, node: str, seat: int) -> tuple[WorkerProcess, Uplink, socket.socket]:
    """A worker as its supervisor sees it, carried for by this relay; its own end; and
    the one at which it would be handed connections."""
    control, theirs = socket.socketpair()
    connections, handed = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.settimeout(0)
    connections.settimeout(0)
    worker = WorkerProcess(
        seat=seat,
        node=node,
        pid=0,
        control=control,
        connections=connections,
        started_at=0.0,
        heard_at=0.0,
    )
    relay.add(worker)
    return worker, Uplink(theirs, node), handed


class Machine:
    """See the module. Does the supervisor's work in `run`, unless it is `stopped`."""

    def __init__(self) -> None:
        self._selector = selectors.EpollSelector()
        self.relay = Relay(self._selector)
        self._membership = Membership(self.relay)
        self._workers: dict[str, WorkerProcess] = {}
        self._uplinks: dict[str, Uplink] = {}
        self._handed: dict[str, socket.socket] = {}
        self._seats = 0
        self._goes_on = trio.Event()
        self._goes_on.set()

    def add(self, node: str) -> Uplink:
        """A worker that is ready, and its uplink, to be run."""
        worker, uplink, handed = join(self.relay, node, self._seats)
        self._seats += 1
        self._workers[node] = worker
        self._handed[node] = handed
        self._uplinks[node] = uplink
        uplink.post(Kind.READY)
        return uplink

    def remove(self, node: str) -> None:
        """Note the end of a worker, whose uplink is not run any more."""
        self._uplinks.pop(node).close()
        self._handed.pop(node).close()
        worker = self._workers.pop(node)
        self.relay.remove(worker)
        worker.close()
        self._membership.remove(worker)
        self._tell()

    def stop(self) -> None:
        """Take nothing and say nothing, as a supervisor does that was sent SIGSTOP."""
        self._goes_on = trio.Event()

    def go_on(self) -> None:
        """Undo `stop`."""
        self._goes_on.set()

    def members(self) -> set[str]:
        """The workers that live."""
        return set(self._workers)

    def knows(self, node: str) -> bool:
        """Whether a worker has been told of all that take work, itself included."""
        uplink = self._uplinks[node]
        at_work = {name for name, worker in self._workers.items() if not worker.leaving}
        return uplink.leader is not None and {*uplink.others, node} == at_work | {node}

    def close(self) -> None:
        for node in list(self._workers):
            self._uplinks.pop(node).close()
            self._handed.pop(node).close()
            self._workers.pop(node).close()
        self._selector.close()

    async def run(self) -> None:
        """Do what the supervisor does for its workers, until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._selector.fileno())
            await self._goes_on.wait()
            for key, _ in self._selector.select(0):
                self.relay.serve(key.data)
            self._tell()

    def _tell(self) -> None:
        now = time.monotonic()
        for worker in self._workers.values():
            worker.heard_at = now  # they live: all are in this process
        self._membership.tell(self._workers.values(), now)

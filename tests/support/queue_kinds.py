"""Every adapter of the Queue port, as nodes that a test begins, ends and kills."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import trio

from taskd.clock import SystemClock
from taskd.domain.model import DueTask
from taskd.ports.queue import Queue
from taskd.queues.local import LocalQueue
from taskd.queues.machine import MachineQueue
from taskd.queues.nsq.queue import NsqQueue
from taskd.queues.nsq.target import parse_nsq_url
from tests.support.machine import Machine
from tests.support.nodes import Node, until
from tests.support.proxy import Proxy
from tools.servers import Nsqd

ROOM = 400
"""Tasks that a node of a test could work on; less than an nsqd brings at a time."""


def due(task_id: int, app_id: int = 1) -> DueTask:
    """A wake-up for a task that has been due for long."""
    return DueTask(task_id=task_id, app_id=app_id, due_at=1_700_000_000_000 + task_id)


def always(app_id: int) -> bool:
    """Admits every app."""
    del app_id
    return True


class QueueKind(ABC):
    """One adapter, and what carries its wake-ups.

    Attributes:
        joins: whether a wake-up may reach another node.
        redelivers: whether what a node took and did not finish comes to others after its
            end: at once where it ended in order, else some time later.
        tells: whether it lives on, and says so, where its server is gone.
    """

    joins = False
    redelivers = False
    tells = False

    def __init__(self) -> None:
        self.nursery: trio.Nursery

    @abstractmethod
    def make(self, name: str) -> Queue:
        """A queue that does not run, and is alone."""

    def drop(self, name: str) -> None:  # noqa: B027 - most have nothing to do
        """End what `make` has made."""

    @abstractmethod
    async def begin(self, name: str, *, mortal: bool = False) -> Node[Any]:
        """A node at work.

        Args:
            name: its name.
            mortal: it may be killed.
        """

    async def settled(self) -> None:
        """Return once all nodes know of each other."""
        await trio.lowlevel.checkpoint()

    def freeze(self) -> None:
        """Have what carries the wake-ups do nothing any more, as after SIGSTOP."""
        raise NotImplementedError

    def thaw(self) -> None:
        """Undo `freeze`."""
        raise NotImplementedError

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[QueueKind]:
        """What carries the wake-ups at work; all nodes are ended at the end."""
        async with trio.open_nursery() as self.nursery:
            yield self
            self.nursery.cancel_scope.cancel()


class LocalKind(QueueKind):
    def make(self, name: str) -> LocalQueue:
        del name
        return LocalQueue()

    async def begin(self, name: str, *, mortal: bool = False) -> Node[LocalQueue]:
        del mortal
        node = Node(name, self.make(name))
        await self.nursery.start(node.run, node.port.run)
        return node


class MachineKind(QueueKind):
    joins = True

    machine: Machine

    def make(self, name: str) -> MachineQueue:
        return MachineQueue(self.machine.add(name))

    def drop(self, name: str) -> None:
        self.machine.remove(name)

    async def begin(self, name: str, *, mortal: bool = False) -> Node[MachineQueue]:
        del mortal
        uplink = self.machine.add(name)
        queue = MachineQueue(uplink)
        node = Node(name, queue, bury=lambda: self.machine.remove(name))

        async def work(*, task_status: trio.TaskStatus[None]) -> None:
            async with trio.open_nursery() as nursery:
                await nursery.start(uplink.run)
                await nursery.start(queue.run)
                task_status.started()

        await self.nursery.start(node.run, work)
        await until(lambda: self.machine.knows(name))
        return node

    async def settled(self) -> None:
        await until(lambda: all(self.machine.knows(name) for name in self.machine.members()))

    def freeze(self) -> None:
        self.machine.stop()

    def thaw(self) -> None:
        self.machine.go_on()

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[QueueKind]:
        self.machine = Machine()
        try:
            async with super().at_work():
                self.nursery.start_soon(self.machine.run)
                yield self
        finally:
            self.machine.close()


class NsqKind(QueueKind):
    joins = True
    redelivers = True
    tells = True

    def __init__(self, nsqd: Nsqd) -> None:
        super().__init__()
        self.nsqd = nsqd
        self._topic = f"t{secrets.token_hex(6)}"
        self._living: set[str] = set()
        self._proxies = ExitStack()

    def make(
        self, name: str, address: str | None = None, message_timeout_s: float = 60.0
    ) -> NsqQueue:
        url = f"nsq://{address or self.nsqd.address}?topic={self._topic}"
        return NsqQueue(
            parse_nsq_url(url),
            clock=SystemClock(),
            node=name,
            heartbeat_s=1.0,
            publish_s=0.5,
            message_timeout_s=message_timeout_s,
        )

    async def begin(self, name: str, *, mortal: bool = False) -> Node[NsqQueue]:
        cut: Callable[[], None] = lambda: None  # noqa: E731 - nothing to cut
        queue = self.make(name)
        if mortal:
            host, port = self.nsqd.address.split(":")
            proxy = self._proxies.enter_context(Proxy((host, int(port))))
            cut = proxy.cut
            queue = self.make(name, f"127.0.0.1:{proxy.port}", message_timeout_s=1.0)
        node = Node(name, queue, cut=cut, bury=lambda: self._living.discard(name))
        await self.nursery.start(node.run, queue.run)
        self._living.add(name)
        queue.room(ROOM)
        return node

    async def settled(self) -> None:
        """See `QueueKind.settled`: nsqd knows who is there, and brings nothing to the dead."""
        while True:
            channel = await trio.to_thread.run_sync(self.nsqd.channel, self._topic, "taskd")
            if {client["client_id"] for client in channel.get("clients", ())} == self._living:
                return
            await trio.sleep(0.01)

    def freeze(self) -> None:
        self.nsqd.freeze()

    def thaw(self) -> None:
        self.nsqd.thaw()

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[QueueKind]:
        with self._proxies:
            async with super().at_work():
                yield self


class Taker:
    """Stands in for a dispatcher: waits, takes, finishes.

    Attributes:
        got: what it took, in order.
        refuses: apps that may begin nothing here.
    """

    def __init__(self, queue: Queue, *, refuses: tuple[int, ...] = ()) -> None:
        self.queue = queue
        self.refuses = set(refuses)
        self.asked: list[int] = []
        self.got: list[DueTask] = []

    @property
    def ids(self) -> list[int]:
        return [task.task_id for task in self.got]

    def has(self, task_id: int) -> bool:
        """Whether it took this."""
        return task_id in self.ids

    def admit(self, app_id: int) -> bool:
        self.asked.append(app_id)
        return app_id not in self.refuses

    def take(self, limit: int = ROOM) -> list[DueTask]:
        batch = self.queue.take(limit, self.admit)
        self.got += batch
        return batch

    def take_all(self, limit: int = ROOM) -> None:
        """Take and finish while there is something."""
        while batch := self.take(limit):
            self.queue.finish(batch)
            self.queue.room(ROOM)

    def took(self, count: int) -> bool:
        """Take and finish what is there; whether it took so many by now."""
        self.take_all()
        return len(self.got) >= count

    async def run(self) -> None:
        """Take whatever comes, until cancelled."""
        while True:
            self.take_all()
            await self.queue.wait()

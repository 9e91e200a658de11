"""Every adapter of the Bus port, as nodes that a test begins, ends and kills."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager

import trio

from taskd.buses.local import LocalBus
from taskd.buses.machine import MachineBus
from taskd.buses.redis.bus import RedisBus
from taskd.buses.redis.target import parse_redis_url
from taskd.link import Kind
from taskd.ports.bus import Bus, SignalHandler
from tests.support.clocks import SteppableClock
from tests.support.machine import Machine
from tests.support.nodes import Node, until
from tests.support.proxy import Proxy
from tests.support.redis_bus import nobody_here, pass_the_epoch
from tools.servers import Redis

BusNode = Node[Bus]


class BusKind(ABC):
    """One adapter, and what carries its signals.

    Attributes:
        joins: whether several nodes may have one.
        keeps_nonces: whether it keeps nonces itself.
        never_two: whether two nodes never lead at once while its server works; else they
            may for as long as they have not heard yet.
    """

    joins = False
    keeps_nonces = False
    never_two = True

    def __init__(self) -> None:
        self.nursery: trio.Nursery
        self.clock: SteppableClock

    @abstractmethod
    async def begin(
        self, name: str, handler: SignalHandler = nobody_here, *, mortal: bool = False
    ) -> BusNode:
        """A node at work, of which all others know.

        Args:
            name: its name.
            handler: answers the signals that are sent to it.
            mortal: it may be killed.
        """

    @abstractmethod
    def make(self, name: str) -> Bus:
        """A bus that is not served yet."""

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[BusKind]:
        """What carries the signals at work; all nodes are ended at the end."""
        self.clock = SteppableClock()
        async with trio.open_nursery() as self.nursery:
            yield self
            self.nursery.cancel_scope.cancel()


class LocalKind(BusKind):
    def make(self, name: str) -> LocalBus:
        return LocalBus(name)

    async def begin(
        self, name: str, handler: SignalHandler = nobody_here, *, mortal: bool = False
    ) -> BusNode:
        del mortal
        node: BusNode = Node(name, self.make(name))
        await self.nursery.start(_serve, node, handler)
        return node


class MachineKind(BusKind):
    joins = True
    never_two = False

    machine: Machine

    def make(self, name: str) -> MachineBus:
        return MachineBus(self.machine.add(name))

    async def begin(
        self, name: str, handler: SignalHandler = nobody_here, *, mortal: bool = False
    ) -> BusNode:
        del mortal
        uplink = self.machine.add(name)
        bus = MachineBus(uplink)
        node: BusNode = Node(
            name,
            bus,
            leave=lambda: uplink.post(Kind.LEAVING),
            bury=lambda: self.machine.remove(name),
        )

        async def work(*, task_status: trio.TaskStatus[None]) -> None:
            async with trio.open_nursery() as nursery:
                await nursery.start(uplink.run)
                await nursery.start(bus.serve, handler)
                task_status.started()

        await self.nursery.start(node.run, work)
        members = self.machine.members
        await until(lambda: all(self.machine.knows(one) for one in members()))
        return node

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[BusKind]:
        self.machine = Machine()
        try:
            async with super().at_work():
                self.nursery.start_soon(self.machine.run)
                yield self
        finally:
            self.machine.close()


class RedisKind(BusKind):
    joins = True
    keeps_nonces = True

    def __init__(self, server: Redis) -> None:
        super().__init__()
        self.server = server
        self._proxies = ExitStack()

    def make(self, name: str, url: str | None = None) -> RedisBus:
        return RedisBus(parse_redis_url(url or self.server.url), node=name, clock=self.clock)

    async def begin(
        self, name: str, handler: SignalHandler = nobody_here, *, mortal: bool = False
    ) -> BusNode:
        cut: Callable[[], None] = lambda: None  # noqa: E731 - nothing to cut
        url = self.server.url
        if mortal:
            proxy = self._proxies.enter_context(Proxy((self.server.host, self.server.port)))
            url, cut = f"redis://127.0.0.1:{proxy.port}/0", proxy.cut
        bus = self.make(name, url)
        node: BusNode = Node(name, bus, cut=cut)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pass_the_epoch, bus, self.clock)
            await self.nursery.start(_serve, node, handler)
            nursery.cancel_scope.cancel()
        return node

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[BusKind]:
        with self._proxies:
            async with super().at_work():
                yield self


async def _serve(
    node: BusNode, handler: SignalHandler, *, task_status: trio.TaskStatus[None]
) -> None:
    async def work(*, task_status: trio.TaskStatus[None]) -> None:
        await node.port.serve(handler, task_status=task_status)

    await node.run(work, task_status=task_status)

"""Nodes go by an application's row that is changed underneath them, whatever their Bus is."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from taskd.buses.local import LocalBus
from taskd.buses.machine import MachineBus
from taskd.delivery.attempt import AttemptResult
from taskd.delivery.progress import Progress
from taskd.domain.model import App, LeasedTask
from taskd.engine import app_changes
from taskd.ports.bus import AppChanged, Bus
from tests.support.clocks import SteppableClock
from tests.support.machine import Machine
from tests.support.node import SUCCESS, Node
from tests.support.nodes import until
from tests.support.proxy import Proxy
from tests.support.redis_bus import make_bus
from tests.support.stores import shared_file
from tools.servers import Redis

HERE, THERE = "http://here/cb", "http://there/cb"


class Nodes:
    """Nodes on one file, and where each has delivered."""

    def __init__(self, path: Path, nodes: Sequence[Node]) -> None:
        self._path = path
        self.nodes = nodes
        self._urls: list[list[str]] = [[] for _ in nodes]
        for node, urls in zip(nodes, self._urls, strict=True):
            self._listen(node, urls)

    @staticmethod
    def _listen(node: Node, urls: list[str]) -> None:
        async def script(task: LeasedTask, _progress: Progress) -> AttemptResult:
            await trio.lowlevel.checkpoint()
            urls.append(task.app.link_url)
            return SUCCESS

        node.delivery.script = script

    def move(self, app: App) -> None:
        """Change the row of an app, as a node does that an administrator asks to."""
        connection = sqlite3.connect(self._path, timeout=30)
        with connection:
            connection.execute("UPDATE apps SET link_url = ? WHERE id = ?", (THERE, app.id))
        connection.close()

    async def deliver(self, app: App) -> list[str]:
        """Where each node delivers a task of an app, as its requests find it."""
        for node in self.nodes:
            found = node.service.known_app(app.app_key)
            found = found or await node.service.find_app(app.app_key)
            assert found is not None
            await node.ended(found, await node.submit(found, in_ms=20), within_s=15)
        return [urls[-1] for urls in self._urls]

    async def forgotten(self, app: App) -> None:
        """Wait until no request finds the app as it was."""
        await until(lambda: all(node.service.known_app(app.app_key) != app for node in self.nodes))


@asynccontextmanager
async def nodes_on(path: Path, buses: Sequence[Bus]) -> AsyncIterator[Nodes]:
    async with (
        shared_file(path, count=len(buses)) as stores,
        AsyncExitStack() as stack,
    ):
        nodes = [Node(store=store, bus=bus) for store, bus in zip(stores, buses, strict=True)]
        started = Nodes(path, nodes)
        for node in nodes:
            await stack.enter_async_context(node.running())
        yield started


@asynccontextmanager
async def machine_buses() -> AsyncIterator[list[Bus]]:
    machine = Machine()
    uplinks = [machine.add(name) for name in "ab"]
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(machine.run)
            for uplink in uplinks:
                await nursery.start(uplink.run)
            await until(lambda: machine.knows("a") and machine.knows("b"))
            yield [MachineBus(uplink) for uplink in uplinks]
            nursery.cancel_scope.cancel()
    finally:
        machine.close()


@asynccontextmanager
async def nodes_over(bus: str, redis_url: str, path: Path) -> AsyncIterator[Nodes]:
    """One node where the Bus connects none, else two."""
    async with AsyncExitStack() as stack:
        buses: Sequence[Bus]
        if bus == "local":
            buses = [LocalBus("a")]
        elif bus == "redis":
            buses = [make_bus(redis_url, SteppableClock(), name) for name in "ab"]
        else:
            buses = await stack.enter_async_context(machine_buses())
        yield await stack.enter_async_context(nodes_on(path, buses))


@pytest.fixture(params=["local", "machine", "redis"])
def nodes(request: pytest.FixtureRequest, tmp_path: Path) -> AbstractAsyncContextManager[Nodes]:
    """Nodes over each Bus, at work while the test runs."""
    url = request.getfixturevalue("redis_url") if request.param == "redis" else ""
    return nodes_over(request.param, url, tmp_path / "taskd.db")


@pytest.fixture
def _nothing_is_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_changes, "REFRESH_EVERY_S", 3_600.0)


@pytest.mark.usefixtures("_nothing_is_read_anew")
async def test_all_nodes_go_by_what_one_of_them_tells(nodes: Nodes) -> None:
    app = await nodes.nodes[0].app(HERE)
    assert set(await nodes.deliver(app)) == {HERE}
    nodes.move(app)
    nodes.nodes[-1].bus.announce(AppChanged(app.id, app.app_key))
    await nodes.forgotten(app)
    assert set(await nodes.deliver(app)) == {THERE}


async def test_all_nodes_find_what_nobody_tells(nodes: Nodes) -> None:
    app = await nodes.nodes[0].app(HERE)
    assert set(await nodes.deliver(app)) == {HERE}
    nodes.move(app)
    await nodes.forgotten(app)
    assert set(await nodes.deliver(app)) == {THERE}


async def test_a_node_that_redis_is_gone_for_finds_out_by_itself(
    redis_server: Redis, redis_url: str, tmp_path: Path
) -> None:
    clock = SteppableClock()
    with Proxy((redis_server.host, redis_server.port)) as proxy:
        buses = [
            make_bus(redis_url, clock, "a"),
            make_bus(f"redis://127.0.0.1:{proxy.port}/0", clock, "b"),
        ]
        async with nodes_on(tmp_path / "taskd.db", buses) as nodes:
            app = await nodes.nodes[0].app(HERE)
            assert await nodes.deliver(app) == [HERE, HERE]
            proxy.cut()
            nodes.move(app)
            buses[0].announce(AppChanged(app.id, app.app_key))
            await nodes.forgotten(app)
            assert await nodes.deliver(app) == [THERE, THERE]

"""A node goes by what applications are: once it is told, and soon where nobody tells it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import pytest
import trio

from taskd.delivery.attempt import AttemptResult
from taskd.delivery.progress import Progress
from taskd.domain.model import App, LeasedTask
from taskd.engine.app_changes import REFRESH_EVERY_S
from taskd.errors import StoreUnavailable
from taskd.ports.bus import AppChanged
from taskd.stores.memory import MemoryStore
from tests.support.node import SUCCESS, Node

HERE, THERE = "http://here/cb", "http://there/cb"


class CachingStore(MemoryStore):
    """Finds apps as they were until it is told, or reads them anew; notes when it does."""

    def __init__(self) -> None:
        super().__init__()
        self.truth: dict[int, App] = {}
        self.refreshed_at: list[float] = []
        self.failing = False

    def change(self, app: App) -> None:
        """Another node changes a row."""
        self.truth[app.id] = app

    def forget_app(self, app_id: int) -> None:
        if app_id in self.truth:
            app = self.truth.pop(app_id)
            self._apps[app.id] = self._apps_by_key[app.app_key] = app

    async def refresh_apps(self) -> Collection[int]:
        await trio.lowlevel.checkpoint()
        self.refreshed_at.append(trio.current_time())
        if self.failing:
            raise StoreUnavailable("the disk is full")
        changed = list(self.truth)
        for app_id in changed:
            self.forget_app(app_id)
        return changed


def hold(node: Node) -> trio.Event:
    """Let attempts wait until the event is set."""
    release = trio.Event()

    async def script(_task: LeasedTask, _progress: Progress) -> AttemptResult:
        await release.wait()
        return SUCCESS

    node.delivery.script = script
    return release


async def held_at(node: Node, app: App, *, in_ms: int) -> tuple[int, int]:
    """The places that a task of an app takes at either origin. In so many ms: one that is
    due begins with its create, another is leased."""
    release = hold(node)
    task_id = await node.submit(app, in_ms=in_ms)
    with trio.fail_after(30):
        while not len(node.registry):
            await trio.sleep(0.01)
    held = node.slots.held_at("http://here:80"), node.slots.held_at("http://there:80")
    release.set()
    await node.ended(app, task_id)
    return held


def known(node: Node, app: App) -> App:
    """An app as a request that is signed with its key finds it."""
    found = node.service.known_app(app.app_key)
    assert found is not None
    return found


@pytest.mark.parametrize("in_ms", [0, 50])
@pytest.mark.virtual_clock
async def test_a_node_that_is_told_goes_by_it_at_once(in_ms: int) -> None:
    store = CachingStore()
    node = Node(store=store)
    async with node.running():
        app = await node.app(HERE)
        assert await held_at(node, app, in_ms=in_ms) == (1, 0)
        store.change(dataclasses.replace(app, link_url=THERE))
        assert await held_at(node, known(node, app), in_ms=in_ms) == (1, 0)
        node.bus.announce(AppChanged(app.id, app.app_key))
        assert await held_at(node, known(node, app), in_ms=in_ms) == (0, 1)
        assert not store.refreshed_at


@pytest.mark.parametrize("in_ms", [0, 50])
@pytest.mark.virtual_clock
async def test_a_node_that_nobody_tells_finds_it_soon(in_ms: int) -> None:
    store = CachingStore()
    node = Node(store=store)
    async with node.running():
        app = await node.app(HERE)
        assert await held_at(node, app, in_ms=in_ms) == (1, 0)
        store.change(dataclasses.replace(app, link_url=THERE))
        await trio.sleep(REFRESH_EVERY_S + 0.1)
        assert await held_at(node, known(node, app), in_ms=in_ms) == (0, 1)


@pytest.mark.virtual_clock
async def test_a_task_that_was_leased_tells_where_its_app_is_now() -> None:
    node = Node()
    store = node.store
    assert isinstance(store, MemoryStore)
    async with node.running():
        app = await node.app(HERE)
        assert await held_at(node, app, in_ms=50) == (1, 0)
        # The Store goes by it before the dispatcher has heard of it.
        store._apps[app.id] = dataclasses.replace(app, link_url=THERE)
        assert await held_at(node, app, in_ms=50) == (1, 0)
        assert await held_at(node, app, in_ms=50) == (0, 1)


@pytest.mark.virtual_clock
async def test_tasks_that_wait_for_a_closed_receiver_go_where_it_is_now() -> None:
    store = CachingStore()
    node = Node(store=store, max_per_origin=1)
    async with node.running():
        app = await node.app(HERE)
        release = hold(node)
        first, second = await node.submit(app), await node.submit(app)
        await trio.sleep(0.1)
        assert len(node.registry) == 1
        store.change(dataclasses.replace(app, link_url=THERE))
        node.bus.announce(AppChanged(app.id, app.app_key))
        await trio.sleep(0.1)
        assert (node.slots.held_at("http://here:80"), node.slots.held_at("http://there:80")) == (
            1,
            1,
        )
        release.set()
        for task_id in (first, second):
            await node.ended(app, task_id)


@pytest.mark.virtual_clock
async def test_a_notice_of_an_app_that_nobody_knows_does_no_harm() -> None:
    node = Node()
    async with node.running():
        node.bus.announce(AppChanged(99, "nobody"))
        app = await node.app(HERE)
        assert await held_at(node, app, in_ms=50) == (1, 0)


@pytest.mark.virtual_clock
async def test_apps_are_read_anew_in_every_period() -> None:
    store = CachingStore()
    async with Node(store=store).running():
        await trio.sleep(3 * REFRESH_EVERY_S + 0.1)
    first, second, third = store.refreshed_at
    assert second - first == pytest.approx(REFRESH_EVERY_S)
    assert third - second == pytest.approx(REFRESH_EVERY_S)


@pytest.mark.virtual_clock
async def test_a_store_that_fails_is_read_again() -> None:
    store = CachingStore()
    node = Node(store=store)
    async with node.running():
        app = await node.app(HERE)
        store.failing = True
        store.change(dataclasses.replace(app, link_url=THERE))
        await trio.sleep(3 * REFRESH_EVERY_S)
        assert known(node, app).link_url == HERE
        store.failing = False
        await trio.sleep(REFRESH_EVERY_S + 0.1)
        assert known(node, app).link_url == THERE

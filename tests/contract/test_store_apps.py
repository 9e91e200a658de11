"""What a store caches of apps is as they are: once it was told, or has read them anew."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from taskd.domain.model import App
from taskd.ports.store import Store
from taskd.stores.mysql.schema import connected
from taskd.stores.mysql.target import parse_mysql_url
from taskd.stores.sqlite.store import SQLiteStore
from tests.support.mysql import opened_mysql
from tests.support.stores import DEADLINE_S, lease_one, new_app, new_task

URL = "http://127.0.0.1:10/another"
SECRET = "t" * 32


async def refreshed(store: Store) -> set[int]:
    """What is found changed when each app that is cached has had its turn."""
    return {app_id for _ in range(5) for app_id in await store.refresh_apps()}


async def test_an_app_that_has_not_changed_is_found_as_before(store: Store) -> None:
    app = await store.create_app(new_app())
    store.forget_app(app.id)
    store.forget_app(app.id + 1)  # nobody's
    assert await store.app_by_key(app.app_key) == app
    assert await store.app_by_id(app.id) == app
    assert await refreshed(store) == set()
    assert await store.app_by_id(app.id) == app
    assert (await lease_one(store, await store.create_task(new_task(app)))).app == app


async def test_a_store_without_apps_has_nothing_to_read_anew(store: Store) -> None:
    store.forget_app(1)
    assert not await store.refresh_apps()


@dataclass
class Changed:
    """A store that caches, and what changes its rows behind its back."""

    store: Store
    execute: Callable[[str], Awaitable[None]]

    async def change(self, app: App) -> None:
        await self.execute(
            f"UPDATE apps SET link_url = '{URL}', secret_key = '{SECRET}' WHERE id = {app.id}"
        )


@asynccontextmanager
async def on_sqlite(path: Path) -> AsyncIterator[Changed]:
    def execute(statement: str) -> None:
        with sqlite3.connect(path, timeout=30) as connection:
            connection.execute(statement)
        connection.close()

    store = await SQLiteStore.open(path)
    try:
        yield Changed(store, lambda statement: trio.to_thread.run_sync(execute, statement))
    finally:
        await store.aclose()


@asynccontextmanager
async def on_mysql(url: str) -> AsyncIterator[Changed]:
    async def execute(statement: str) -> None:
        async with connected(parse_mysql_url(url)) as connection:
            await connection.execute(statement)
            await connection.commit()

    async with opened_mysql(url) as store:
        yield Changed(store, execute)


@pytest.fixture(params=["sqlite", "mysql"])
def changed(request: pytest.FixtureRequest, tmp_path: Path) -> AbstractAsyncContextManager[Changed]:
    """A store of each adapter that caches apps, open while the test runs."""
    request.node.add_marker(pytest.mark.deadline(DEADLINE_S))
    if request.param == "mysql":
        return on_mysql(request.getfixturevalue("database_url"))
    return on_sqlite(tmp_path / "taskd.db")


async def assert_as_it_is(store: Store, app: App) -> None:
    """Each way to an app leads to what it is now."""
    ways = [
        await store.app_by_key(app.app_key),
        await store.app_by_id(app.id),
        store.known_app(app.app_key),
        (await store.apps_by_key([app.app_key]))[app.app_key],
        (await lease_one(store, await store.create_task(new_task(app, "later")))).app,
    ]
    for found in ways:
        assert found is not None
        assert (found.id, found.link_url, found.secret_key) == (app.id, URL, SECRET)


async def test_an_app_that_was_forgotten_is_as_it_is(changed: Changed) -> None:
    app = await changed.store.create_app(new_app())
    other = await changed.store.create_app(new_app("key-2"))
    await changed.change(app)
    assert changed.store.known_app(app.app_key) == app  # nobody has told
    changed.store.forget_app(app.id)
    assert changed.store.known_app(app.app_key) is None
    assert changed.store.known_app(other.app_key) == other
    await assert_as_it_is(changed.store, app)


async def test_a_change_that_nobody_has_told_is_found(changed: Changed) -> None:
    app = await changed.store.create_app(new_app())
    other = await changed.store.create_app(new_app("key-2"))
    await changed.change(app)
    assert await refreshed(changed.store) == {app.id}
    await assert_as_it_is(changed.store, app)
    assert changed.store.known_app(other.app_key) is other
    assert await refreshed(changed.store) == set()


async def test_an_app_that_is_no_more_is_found_so(changed: Changed) -> None:
    app = await changed.store.create_app(new_app())
    await changed.execute(f"DELETE FROM apps WHERE id = {app.id}")
    assert await refreshed(changed.store) == {app.id}
    assert changed.store.known_app(app.app_key) is None
    assert await changed.store.app_by_key(app.app_key) is None


async def test_changes_are_found_among_many_apps(changed: Changed) -> None:
    apps = [await changed.store.create_app(new_app(f"key-{number}")) for number in range(300)]
    await changed.change(apps[3])
    await changed.change(apps[-1])
    assert await refreshed(changed.store) == {apps[3].id, apps[-1].id}

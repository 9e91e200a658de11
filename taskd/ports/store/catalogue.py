"""Part of the Store: what it knows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from taskd.domain.model import App, TaskDetail


class Catalogue(Protocol):
    """What there is: apps, tasks, contents.

    What `taskd.ports.store.Store` promises holds for each method.
    """

    async def app_by_key(self, app_key: str) -> App | None:
        """The app of this key. May be cached, so cheap: see `forget_app`."""
        ...

    def known_app(self, app_key: str) -> App | None:
        """The app of this key, if it is cached. Asks nobody, and says nothing of an app
        that is not."""
        ...

    async def apps_by_key(self, app_keys: Collection[str]) -> Mapping[str, App]:
        """The apps of these keys, looked up anew, whatever is cached; what is no app's key is
        left out. Whatever was created before the call is found."""
        ...

    async def app_by_id(self, app_id: int) -> App | None:
        """The app of this id. Cached as `app_by_key` is."""
        ...

    def forget_app(self, app_id: int) -> None:
        """Cache nothing of this app that was read until now: it has changed. Calls that are
        made from here on, leases included, tell it as it is now or later. Never waits."""
        ...

    async def refresh_apps(self) -> Collection[int]:
        """Read some of the cached apps anew, those whose reading is the longest ago; returns
        the ids of those that have changed or are gone. Bounded, so cheap, however many are
        cached; called often enough, it comes to each."""
        ...

    async def task_detail(
        self, app_id: int, *, task_id: int | None = None, task_no: str | None = None
    ) -> TaskDetail | None:
        """The app's task of this id or taskNo (exactly one is given)."""
        ...

    async def content(self, task_id: int) -> bytes | None:
        """A task's content; None if there is no such task any more."""
        ...

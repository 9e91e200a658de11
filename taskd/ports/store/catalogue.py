"""Part of the Store: reading apps, tasks and contents."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from taskd.domain.model import App, TaskDetail


class Catalogue(Protocol):
    """Reads apps, tasks and contents.

    What `taskd.ports.store.Store` promises holds for each method.
    """

    async def app_by_key(self, app_key: str) -> App | None:
        """The app of this key, or None. Cheap, since it may be cached: see `forget_app`."""
        ...

    def known_app(self, app_key: str) -> App | None:
        """The app of this key, if it is cached. Never reads the database: None does not
        mean that there is no such app."""
        ...

    async def apps_by_key(self, app_keys: Collection[str]) -> Mapping[str, App]:
        """The apps of these keys, read anew, whatever is cached; keys of no app are left
        out. Finds every app that was created before the call."""
        ...

    async def app_by_id(self, app_id: int) -> App | None:
        """The app of this id. Cached as `app_by_key` is."""
        ...

    def forget_app(self, app_id: int) -> None:
        """Drop all that is cached of this app, since it has changed. Calls made after this
        one, leases included, return the app as it is now or later. Never waits."""
        ...

    async def refresh_apps(self) -> Collection[int]:
        """Read those cached apps anew that were read longest ago, and return the ids of
        those that have changed or are gone. A call reads a bounded number, so it is cheap
        however many are cached; repeated calls reach each app."""
        ...

    async def task_detail(
        self, app_id: int, *, task_id: int | None = None, task_no: str | None = None
    ) -> TaskDetail | None:
        """The app's task of this id or taskNo (exactly one is given), or None."""
        ...

    async def count_waiting(self, app_id: int, *, limit: int) -> int:
        """How many tasks of an app wait; no more than ``limit`` are counted."""
        ...

    async def content(self, task_id: int) -> bytes | None:
        """A task's content; None if there is no such task any more."""
        ...

"""A cache of the apps that a store has read."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable
from itertools import islice

from taskd.domain.model import App

REFRESHED_AT_ONCE = 250
"""Apps that are read anew in one query."""

_BOUND = 10_000


class AppCache:
    """Apps as a store last read them.

    An app may change; its id and its key do not. So the store calls `forget` for an app that
    has changed, and reads all cached apps anew in turns (`to_refresh`, `refresh`), since it may
    not hear of each change. A key that was not found is not cached: its app may be added.

    Threads may share it: a lookup is one operation on a dict, and changes are under a lock.

    Attributes:
        forgets: how often an app was forgotten. An app that was read before the last time
            may be out of date, so it is not cached.
    """

    def __init__(self) -> None:
        self._by_id: OrderedDict[int, App] = OrderedDict()
        self._by_key: dict[str, App] = {}
        self._turn = threading.Lock()
        self.forgets = 0

    def by_id(self, app_id: int) -> App | None:
        """Return the app of this id, if it is cached."""
        return self._by_id.get(app_id)

    def by_key(self, app_key: str) -> App | None:
        """Return the app of this key, if it is cached."""
        return self._by_key.get(app_key)

    def keep(self, app: App, *, since: int) -> None:
        """Cache an app that is durable.

        Args:
            app: as it was read or written.
            since: `forgets` as it was before that read or write.
        """
        with self._turn:
            if since == self.forgets:
                self._keep(app)

    def forget(self, app_id: int) -> None:
        """Drop this app. Reads that began before this call cache nothing any more."""
        with self._turn:
            self.forgets += 1
            self._drop(app_id)

    def to_refresh(self) -> list[int]:
        """Return the ids of the apps that were read longest ago."""
        with self._turn:
            return list(islice(self._by_id, REFRESHED_AT_ONCE))

    def refresh(
        self, app_ids: Iterable[int], apps: Iterable[App], *, since: int
    ) -> Collection[int]:
        """Cache apps as they were read anew, and return the ids of those that have changed or
        are gone. If any app was forgotten meanwhile, this does nothing: their turn comes again.

        Args:
            app_ids: of the apps that were looked for.
            apps: those that were found.
            since: `forgets` as it was before that read.
        """
        found = {app.id: app for app in apps}
        changed: list[int] = []
        with self._turn:
            for app_id in app_ids if since == self.forgets else ():
                known, app = self._by_id.get(app_id), found.get(app_id)
                if known is None:
                    continue
                if known == app:
                    self._by_id.move_to_end(app_id)
                    continue
                changed.append(app_id)
                self._drop(app_id)
                if app is not None:
                    self._keep(app)
        return changed

    def _keep(self, app: App) -> None:
        if len(self._by_id) >= _BOUND:
            self._by_id.clear()
            self._by_key.clear()
        self._by_id[app.id] = app
        self._by_id.move_to_end(app.id)
        self._by_key[app.app_key] = app

    def _drop(self, app_id: int) -> None:
        app = self._by_id.pop(app_id, None)
        if app is not None:
            self._by_key.pop(app.app_key, None)

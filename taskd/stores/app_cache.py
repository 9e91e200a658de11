"""Apps that a store has read before."""

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
    """Apps that were read before, each as it was then.

    An app may change, only its id and its key stay. So its owner calls `forget` for one that
    has changed, and reads all of them anew in turns (`to_refresh`, `refresh`), as it may not
    be told of each change. A key that was not found is not remembered, since it may be added.

    Threads may share it: a look is one operation on a dict, and changes take turns.

    Attributes:
        forgets: how often an app was forgotten. What was read before the last time may be
            out of date, so it is not remembered.
    """

    def __init__(self) -> None:
        self._by_id: OrderedDict[int, App] = OrderedDict()
        self._by_key: dict[str, App] = {}
        self._turn = threading.Lock()
        self.forgets = 0

    def by_id(self, app_id: int) -> App | None:
        """The app of this id, if it is remembered."""
        return self._by_id.get(app_id)

    def by_key(self, app_key: str) -> App | None:
        """The app of this key, if it is remembered."""
        return self._by_key.get(app_key)

    def keep(self, app: App, *, since: int) -> None:
        """Remember an app that is durable.

        Args:
            app: as it was read or written.
            since: `forgets` as it was before that.
        """
        with self._turn:
            if since == self.forgets:
                self._keep(app)

    def forget(self, app_id: int) -> None:
        """Remember nothing of this app that was read until now."""
        with self._turn:
            self.forgets += 1
            self._drop(app_id)

    def to_refresh(self) -> list[int]:
        """Ids of the apps whose reading is the longest ago."""
        with self._turn:
            return list(islice(self._by_id, REFRESHED_AT_ONCE))

    def refresh(
        self, app_ids: Iterable[int], apps: Iterable[App], *, since: int
    ) -> Collection[int]:
        """Remember these apps as they were read anew; returns the ids of those that have
        changed or are gone. Where one was forgotten meanwhile, nothing is done: their turn
        comes again.

        Args:
            app_ids: those that were looked for.
            apps: those that were found.
            since: `forgets` as it was before that.
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

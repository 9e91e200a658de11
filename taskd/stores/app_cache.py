"""Apps that a store has read before."""

from __future__ import annotations

from taskd.domain.model import App

_BOUND = 10_000


class AppCache:
    """Apps that were read before. An app never changes, so none goes stale; a
    key that was not found is not remembered, since it may be added.

    Threads may share it: each of its steps is one operation on a dict.
    """

    def __init__(self) -> None:
        self._by_id: dict[int, App] = {}
        self._by_key: dict[str, App] = {}

    def by_id(self, app_id: int) -> App | None:
        """The app of this id, if it is remembered."""
        return self._by_id.get(app_id)

    def by_key(self, app_key: str) -> App | None:
        """The app of this key, if it is remembered."""
        return self._by_key.get(app_key)

    def keep(self, app: App) -> None:
        """Remember an app that is durable."""
        if len(self._by_id) >= _BOUND:
            self._by_id.clear()
            self._by_key.clear()
        self._by_id[app.id] = app
        self._by_key[app.app_key] = app

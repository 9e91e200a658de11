"""Apps as a SQLite store reads them, and those it remembers."""

from __future__ import annotations

import sqlite3

from taskd.model import App

_BOUND = 10_000

_COLUMNS = "id, app_key, secret_key, name, link_url, step, retry_total, remark, created_at"
_BY_ID = f"SELECT {_COLUMNS} FROM apps WHERE id = ?"  # noqa: S608  the parts are constants
_BY_KEY = f"SELECT {_COLUMNS} FROM apps WHERE app_key = ?"  # noqa: S608  the parts are constants


class AppCache:
    """Apps that were read before. An app never changes, so none goes stale; a
    key that was not found is not remembered, since it may be added.

    Threads share it: each of its steps is one operation on a dict.
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

    def read_by_id(self, connection: sqlite3.Connection, app_id: int) -> App | None:
        """The app of this id, read where it is not remembered."""
        return self.by_id(app_id) or self._read(connection, _BY_ID, app_id)

    def read_by_key(self, connection: sqlite3.Connection, app_key: str) -> App | None:
        """The app of this key, read where it is not remembered."""
        return self.by_key(app_key) or self._read(connection, _BY_KEY, app_key)

    def _read(self, connection: sqlite3.Connection, query: str, value: int | str) -> App | None:
        row = connection.execute(query, (value,)).fetchone()
        if row is None:
            return None
        (
            app_id, app_key, secret_key, name, link_url, step, retry_total, remark, created_at,
        ) = row  # fmt: skip
        app = App(
            id=app_id,
            app_key=app_key,
            secret_key=secret_key,
            name=name,
            link_url=link_url,
            step=step,
            retry_total=retry_total,
            remark=remark,
            created_at=created_at,
        )
        self.keep(app)
        return app

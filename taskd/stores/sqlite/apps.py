"""Apps as a SQLite store reads them."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping
from typing import Any

from taskd.domain.model import App, SuccessRule
from taskd.stores.app_cache import AppCache

_COLUMNS = "id, app_key, secret_key, name, link_url, step, retry_total, remark, created_at, success"
_BY_ID = f"SELECT {_COLUMNS} FROM apps WHERE id = ?"  # noqa: S608  the parts are constants
_BY_KEY = f"SELECT {_COLUMNS} FROM apps WHERE app_key = ?"  # noqa: S608  the parts are constants
_BY_IDS = f"SELECT {_COLUMNS} FROM apps WHERE id IN ({{ids}})"  # noqa: S608  as above
_IDS = "SELECT id FROM apps WHERE app_key IN ({keys})"


class AppReader(AppCache):
    """Reads apps, each once until it is forgotten, and those anew that were read long ago."""

    def read_by_id(self, connection: sqlite3.Connection, app_id: int) -> App | None:
        """The app of this id, read where it is not remembered."""
        return self.by_id(app_id) or self._read(connection, _BY_ID, app_id)

    def read_by_key(self, connection: sqlite3.Connection, app_key: str) -> App | None:
        """The app of this key, read where it is not remembered."""
        return self.by_key(app_key) or self._read(connection, _BY_KEY, app_key)

    def read_anew(
        self, connection: sqlite3.Connection, app_keys: Collection[str]
    ) -> Mapping[str, App]:
        """The apps of these keys, looked up whatever is remembered of them. The rest of one
        that is remembered is not read again: that there is one would show in the time."""
        query = _IDS.format(keys=",".join("?" * len(app_keys)))
        ids = connection.execute(query, tuple(app_keys)).fetchall()
        apps = [self.read_by_id(connection, app_id) for (app_id,) in ids]
        return {app.app_key: app for app in apps if app is not None}

    def read_oldest(self, connection: sqlite3.Connection) -> Collection[int]:
        """See `Store.refresh_apps`."""
        since, app_ids = self.forgets, self.to_refresh()
        rows = connection.execute(_BY_IDS.format(ids=",".join("?" * len(app_ids))), app_ids)
        return self.refresh(app_ids, map(_app, rows.fetchall()), since=since)

    def _read(self, connection: sqlite3.Connection, query: str, value: int | str) -> App | None:
        since = self.forgets
        row = connection.execute(query, (value,)).fetchone()
        if row is None:
            return None
        app = _app(row)
        self.keep(app, since=since)
        return app


def _app(row: tuple[Any, ...]) -> App:
    (
        app_id, app_key, secret_key, name, link_url, step, retry_total, remark, created_at,
        success,
    ) = row  # fmt: skip
    return App(
        id=app_id,
        app_key=app_key,
        secret_key=secret_key,
        name=name,
        link_url=link_url,
        step=step,
        retry_total=retry_total,
        remark=remark,
        created_at=created_at,
        success=SuccessRule(success),
    )

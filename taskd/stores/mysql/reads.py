"""Reading a MySQL store: beside its writers, and what a lease needs of an app."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from taskd.domain.model import App, SuccessRule
from taskd.stores.app_cache import AppCache
from taskd.stores.mysql.connection import MySQLConnection
from taskd.stores.mysql.rows import literal, row

_APP = """SELECT id, app_key, secret_key, name, link_url, step, retry_total, remark, created_at,
    success
FROM apps WHERE """

APP_IDS = "SELECT id FROM apps WHERE app_key IN "

TIME = "SELECT CAST(FLOOR(UNIX_TIMESTAMP(NOW(6)) * 1000) AS SIGNED)"


class AppReader(AppCache):
    """Reads apps, each once."""

    async def read_by_id(self, connection: MySQLConnection, app_id: int) -> App | None:
        """The app of this id, read where it is not remembered."""
        return self.by_id(app_id) or await self._read(connection, b"id = %d" % app_id)

    async def read_by_key(self, connection: MySQLConnection, app_key: str) -> App | None:
        """The app of this key, read where it is not remembered."""
        condition = b"app_key = " + literal(app_key.encode())
        return self.by_key(app_key) or await self._read(connection, condition)

    async def read_anew(
        self, connection: MySQLConnection, app_keys: Collection[str]
    ) -> Mapping[str, App]:
        """The apps of these keys, looked up whatever is remembered of them. The rest of one
        that is remembered is not read again: that there is one would show in the time."""
        if not app_keys:
            return {}
        keys = row(app_key.encode() for app_key in app_keys)
        ids = (await connection.execute(APP_IDS.encode() + keys)).rows
        apps = [await self.read_by_id(connection, app_id) for (app_id,) in ids]
        return {app.app_key: app for app in apps if app is not None}

    async def _read(self, connection: MySQLConnection, condition: bytes) -> App | None:
        rows = (await connection.execute(_APP.encode() + condition)).rows
        if not rows:
            return None
        (
            app_id, app_key, secret_key, name, link_url, step, retry_total, remark, created_at,
            success,
        ) = rows[0]  # fmt: skip
        app = App(
            id=app_id,
            app_key=app_key.decode(),
            secret_key=secret_key,
            name=name,
            link_url=link_url,
            step=step,
            retry_total=retry_total,
            remark=remark,
            created_at=created_at,
            success=SuccessRule(success),
        )
        self.keep(app)
        return app


async def time_ms(connection: MySQLConnection) -> int:
    """The server's time now, in milliseconds since the Unix epoch, rounded down."""
    ((told,),) = (await connection.execute(TIME)).rows
    return int(told)

"""Reads applications. A cached one is not read until it is forgotten or its refresh is due."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from taskd.domain.model import App
from taskd.stores.encoding import read_app
from taskd.stores.operations.session import Session, Value


async def app_by_id(session: Session, app_id: int) -> App | None:
    """Return the app of this id, from the cache if it is there."""
    return session.apps.by_id(app_id) or await _read(session, session.APPS_BY_ID, ids=[app_id])


async def app_by_key(session: Session, app_key: str) -> App | None:
    """Return the app of this key, from the cache if it is there."""
    return session.apps.by_key(app_key) or await _read(
        session, session.APP_BY_KEY, app_key=session.key(app_key)
    )


async def apps_by_key(session: Session, app_keys: Collection[str]) -> Mapping[str, App]:
    """Return the apps of these keys. The keys are looked up whatever is cached. The other columns
    of a cached app are not read: the time of that would tell a caller that the key exists."""
    if not app_keys:
        return {}
    rows = await session.fetch(session.APP_IDS, app_keys=[session.key(key) for key in app_keys])
    apps = [await app_by_id(session, app_id) for (app_id,) in rows]
    return {app.app_key: app for app in apps if app is not None}


async def refresh_apps(session: Session) -> Collection[int]:
    """See `Store.refresh_apps`."""
    since, app_ids = session.apps.forgets, session.apps.to_refresh()
    if not app_ids:
        return ()
    rows = await session.fetch(session.APPS_BY_ID, ids=app_ids)
    return session.apps.refresh(app_ids, map(read_app, rows), since=since)


async def _read(session: Session, statement: str, **values: Value) -> App | None:
    since = session.apps.forgets
    rows = await session.fetch(statement, **values)
    if not rows:
        return None
    app = read_app(rows[0])
    session.apps.keep(app, since=since)
    return app

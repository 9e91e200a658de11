"""An operation's session with a SQLite database, which answers everything at once."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Sequence
from functools import lru_cache
from types import NoneType
from typing import Any

from taskd.domain.model import DueTask, NewTask, Shard, StoredTask
from taskd.domain.transitions import Ended
from taskd.stores.app_cache import AppCache
from taskd.stores.encoding import STATE_CODES, stored_columns
from taskd.stores.operations.session import Row, Scalar, Value
from taskd.stores.sqlite.rows import FEW, MAX_ROWS, WithPlain, execute_rows, inline_content, named
from taskd.stores.sqlite.statements import EPOCH_MS, Packed, PackedWithPlain, SQLiteStatements
from taskd.stores.sqlite.task_ids import TaskIds

_NO_APP = 0
_BEFORE_ALL = -(2**63)
_NO_LEASE = (None, None, None)
_LAST_DIGEST = b"\xff" * 16
_SCALARS = (int, str, bytes, NoneType)

_FEW_EPOCHS = 16
"""So many epochs are looked through one by one. Nonces live minutes, so there are fewer, unless
clocks were wrong."""


class SQLiteSession(SQLiteStatements):
    """A session over one connection.

    Args:
        connection: in a transaction, or a reader's.
        apps: the store's cache of apps.
        ids: gives new tasks their ids.
    """

    TAKEN: type[Exception] = sqlite3.IntegrityError

    def __init__(self, connection: sqlite3.Connection, apps: AppCache, ids: TaskIds) -> None:
        self._connection = connection
        self.apps = apps
        self._ids = ids

    async def fetch(self, statement: str, **values: Value) -> Sequence[Row]:
        """See `Session.fetch`."""
        if isinstance(statement, WithPlain) and _few(values):
            return self._for_each(statement.plain, values)
        cursor = self._connection.execute(statement, _bound(values))
        if isinstance(statement, (Packed, PackedWithPlain)):
            (text,) = cursor.fetchone()
            rows: list[Row] = json.loads(text)
            return rows
        return cursor.fetchall()

    async def execute(self, statement: str, **values: Value) -> None:
        """See `Session.execute`."""
        if isinstance(statement, WithPlain) and _few(values):
            self._for_each(statement.plain, values)
            return
        self._connection.execute(statement, _bound(values))

    def _for_each(self, plain: str, values: dict[str, Any]) -> list[Row]:
        """Run a plain statement for each of ``ids``, and return the rows that they answer."""
        rows: list[Row] = []
        for each in values["ids"]:
            rows += self._connection.execute(plain, {**values, "ids": each})
        return rows

    async def execute_many(self, statement: str, rows: Sequence[Sequence[Scalar]]) -> None:
        """See `Session.execute_many`."""
        if rows:
            execute_rows(self._connection, statement, rows)

    async def insert(self, statement: str, **values: Value) -> int:
        """See `Session.insert`."""
        return self._connection.execute(statement, _bound(values)).lastrowid or 0

    def key(self, text: str) -> Scalar:
        """See `Session.key`."""
        return text

    def contended(self, how: str) -> Exception:
        """See `Session.contended`. A defect here: nobody else writes during a transaction."""
        return RuntimeError(how)

    async def add_tasks(self, tasks: Sequence[NewTask]) -> Sequence[int]:
        """See `Session.add_tasks`."""
        ids = self._ids.upcoming(self._connection, len(tasks))
        rows: list[tuple[Scalar, ...]] = []
        contents: list[tuple[Scalar, ...]] = []
        for task_id, task in zip(ids, tasks, strict=True):
            content = inline_content(task.content)
            if content is None:
                contents.append((task_id, task.content))
            rows.append(_task_row(task_id, task, content))
        size = 1 if len(rows) <= FEW else MAX_ROWS
        for start in range(0, len(rows), size):
            try:
                execute_rows(self._connection, self.ADD_TASKS, rows[start : start + size])
            except sqlite3.IntegrityError:
                if start:
                    await self.execute(self.TAKE_BACK, first=ids[0], last=ids[start - 1])
                raise
        await self.execute_many(self.ADD_CONTENTS, contents)
        self._ids.give(ids)
        return ids

    async def add_nonces(self, rows: Sequence[tuple[bytes, int]]) -> None:
        """See `Session.add_nonces`."""
        if not rows:  # all of them were used before
            return
        if len(rows) > FEW:
            execute_rows(self._connection, self.ADD_NONCES, rows)
            return
        first, last = self._connection.execute(self.EPOCH_ENDS).fetchone()
        added = [(expires_at // EPOCH_MS, digest) for digest, expires_at in rows]
        epochs = [epoch for epoch, _ in added]
        if first is not None:
            epochs += (first, last)
        if max(epochs) - min(epochs) >= _FEW_EPOCHS:
            execute_rows(self._connection, self.ADD_NONCES, rows)
            return
        add = _add_nonce(self.ADD_NONCE, min(epochs), max(epochs))
        for place, row in enumerate(added):
            if self._connection.execute(add, named(row)).rowcount == 0:
                self._connection.executemany(self.TAKE_NONCE_BACK, added[:place])
                raise sqlite3.IntegrityError("a nonce was used before")

    async def find_nonces(self, digests: Sequence[bytes]) -> Collection[bytes]:
        """See `Session.find_nonces`."""
        rows = execute_rows(self._connection, self.FIND_NONCES, [(each,) for each in digests])
        return [digest for (digest,) in rows]

    async def forget_nonces(self, now: int, limit: int) -> int:
        """See `Session.forget_nonces`."""
        forgotten = 0
        while forgotten < limit:
            (oldest,) = self._connection.execute(self.OLDEST_EPOCH).fetchone()
            if oldest is None or oldest >= now // EPOCH_MS:
                break
            values = {"epoch": oldest, "count": limit - forgotten, "last": _LAST_DIGEST}
            forgotten += self._connection.execute(self.FORGET_NONCES, values).rowcount
        return forgotten

    async def find_task_nos(
        self, keys: Collection[tuple[int, str]]
    ) -> dict[tuple[int, str], tuple[int, int]]:
        """See `Session.find_task_nos`."""
        rows = execute_rows(self._connection, self.FIND_TASK_NOS, list(keys))
        return {(app_id, task_no): (task_id, state) for app_id, task_no, task_id, state in rows}

    async def find_due(
        self,
        *,
        until: int,
        after: int | None,
        limit_per_app: int,
        skip_apps: Collection[int],
        shard: Shard,
    ) -> list[DueTask]:
        """See `Session.find_due`."""
        apps = await self.fetch(
            self.FIND_DUE,
            first=_BEFORE_ALL if after is None else after,
            until=until,
            limit=limit_per_app * shard.of,
            shards=shard.of,
            shard=shard.number,
            skip_apps=skip_apps or (_NO_APP,),
        )
        return [
            DueTask(task_id=task_id, app_id=app_id, due_at=due_at)
            for app_id, tasks in apps
            for task_id, due_at in tasks
        ]

    def stored_row(self, task: StoredTask) -> Sequence[Scalar]:
        """See `Session.stored_row`."""
        return (
            task.id,
            task.app_id,
            STATE_CODES[task.state],
            task.due_at,
            *stored_columns(task),
            task.task_no,
            task.name,
            inline_content(task.content),
        )

    def ended_row(self, app_id: int, ended: Ended) -> Sequence[Scalar]:
        """See `Session.ended_row`."""
        del app_id
        return (
            ended.task_id,
            STATE_CODES[ended.state],
            ended.due_at,
            ended.attempt,
            ended.failures,
            ended.abandoned,
            int(ended.sent),
            ended.cancel_certainty and ended.cancel_certainty.value,
            ended.finished_at,
        )


@lru_cache(maxsize=64)
def _add_nonce(template: str, first: int, last: int) -> str:
    """Return `ADD_NONCE` for the epochs from first to last."""
    return template.format(epochs=",".join(map(str, range(first, last + 1))))


def _task_row(task_id: int, task: NewTask, content: str | None) -> tuple[Scalar, ...]:
    lease = task.lease
    return (
        task_id,
        task.app_id,
        0 if lease is None else 1,  # three columns: the state's code, the token, the attempt
        task.due_at,
        task.timeout_ms,
        task.step,
        task.retry_total,
        task.created_at,
        task.task_no,
        task.name,
        content,
        *(_NO_LEASE if lease is None else (lease.node, lease.leased_at, lease.expires_at)),
        task.due_at if task.runtime is None else task.runtime,
    )


def _few(values: dict[str, Any]) -> bool:
    """Whether a statement gets so few ids that a plain one for each costs less."""
    return len(values["ids"]) <= FEW


def _bound(values: dict[str, Value]) -> dict[str, Any]:
    """Return values to be bound to a statement; a collection as ``json_each`` takes it."""
    bound: dict[str, Any] = values
    for name, value in values.items():
        if not isinstance(value, _SCALARS):
            bound[name] = _listed(value)
    return bound


def _listed(values: Collection[Scalar]) -> str:
    items = list(values)
    # The text of a Python list of integers is JSON too, and is made faster.
    return json.dumps(items) if isinstance(items[0], str) else str(items)

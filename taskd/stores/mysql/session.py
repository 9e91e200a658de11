"""An operation's session with a MySQL database."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

from taskd.domain.model import DueTask, NewTask, Shard, StoredTask, TaskState
from taskd.domain.transitions import Ended
from taskd.stores.app_cache import AppCache
from taskd.stores.encoding import INLINE_CONTENT, STATE_CODES, as_text, stored_columns
from taskd.stores.mysql.connection import MySQLConnection
from taskd.stores.mysql.errors import Conflict, DuplicateKey
from taskd.stores.mysql.rows import inserts, literal, of_task_nos, row, table
from taskd.stores.mysql.schema import OVER, RUNNING
from taskd.stores.mysql.statements import MySQLStatements
from taskd.stores.operations.session import Row, Scalar, Value

_LOOKED_UP = 1_000
"""Tasks that one statement looks for, so that it stays below the server's max_allowed_packet."""

_APPS_AT_ONCE = 100
_BEFORE_ALL = -(2**63)

_TABLE = "{table}"

_SCHEDULED, _RUNNING = STATE_CODES[TaskState.SCHEDULED], STATE_CODES[TaskState.RUNNING]


class MySQLSession(MySQLStatements):
    """A session over one connection.

    Args:
        connection: in a transaction, or a reader's.
        apps: the store's cache of apps.
    """

    TAKEN: type[Exception] = DuplicateKey

    def __init__(self, connection: MySQLConnection, apps: AppCache) -> None:
        self._connection = connection
        self.apps = apps

    async def fetch(self, statement: str, **values: Value) -> Sequence[Row]:
        """See `Session.fetch`."""
        return (await self._connection.execute(_filled(statement, values))).rows

    async def execute(self, statement: str, **values: Value) -> None:
        """See `Session.execute`."""
        await self._connection.execute(_filled(statement, values))

    async def execute_many(self, statement: str, rows: Sequence[Sequence[Scalar]]) -> None:
        """See `Session.execute_many`."""
        if not rows:
            return
        if _TABLE in statement:
            await self._connection.execute(statement.replace(_TABLE, table(rows)))
            return
        for part, _ in inserts(statement, rows):
            await self._connection.execute(part)

    async def insert(self, statement: str, **values: Value) -> int:
        """See `Session.insert`."""
        return (await self._connection.execute(_filled(statement, values))).first_id

    def key(self, text: str) -> Scalar:
        """See `Session.key`."""
        return text.encode()

    def contended(self, how: str) -> Exception:
        """See `Session.contended`."""
        return Conflict(how, waited=False)

    async def add_tasks(self, tasks: Sequence[NewTask]) -> Sequence[int]:
        """See `Session.add_tasks`."""
        step = self._connection.id_step
        given: list[int] = []
        try:
            for statement, count in inserts(self.ADD_TASKS, list(map(_task_row, tasks))):
                first = (await self._connection.execute(statement)).first_id
                # The server gives the ids of such a statement, of a known number of rows, in
                # one go: they are `step` apart.
                given += range(first, first + count * step, step)
        except DuplicateKey:
            if given:
                await self.execute(self.TAKE_BACK, ids=given)
            raise
        contents = [
            (task_id, task.content)
            for task_id, task in zip(given, tasks, strict=True)
            if len(task.content) > INLINE_CONTENT
        ]
        await self.execute_many(self.ADD_CONTENTS, contents)
        return given

    async def add_nonces(self, rows: Sequence[tuple[bytes, int]]) -> None:
        """See `Session.add_nonces`."""
        await self.execute_many(self.ADD_NONCES, rows)

    async def find_nonces(self, digests: Sequence[bytes]) -> Collection[bytes]:
        """See `Session.find_nonces`."""
        return [digest for (digest,) in await self.fetch(self.FIND_NONCES, digests=digests)]

    async def forget_nonces(self, now: int, limit: int) -> int:
        """See `Session.forget_nonces`."""
        rows = await self.fetch(self.FIND_EXPIRED_NONCES, now=now, limit=limit)
        if rows:
            await self.execute(self.FORGET_NONCES, digests=[digest for (digest,) in rows])
        return len(rows)

    async def find_task_nos(
        self, keys: Collection[tuple[int, str]]
    ) -> dict[tuple[int, str], tuple[int, int]]:
        """See `Session.find_task_nos`."""
        found: dict[tuple[int, str], tuple[int, int]] = {}
        find, listed = self.FIND_TASK_NOS.encode(), list(keys)
        for start in range(0, len(listed), _LOOKED_UP):
            some = of_task_nos(listed[start : start + _LOOKED_UP])
            rows = (await self._connection.execute(find + some)).rows
            found |= {
                (app_id, as_text(task_no)): (task_id, state)
                for app_id, task_no, task_id, state in rows
            }
        return found

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
        waiting = await self.fetch(self.FIND_APPS, until=until)
        apps = [app_id for app_id, _ in waiting if app_id not in skip_apps]
        first = _BEFORE_ALL if after is None else after
        values = {"after": first, "until": until, "limit": limit_per_app * shard.of}
        found: list[DueTask] = []
        for start in range(0, len(apps), _APPS_AT_ONCE):
            statement = b" UNION ALL ".join(
                _filled(self.FIND_FIRST, {"app_id": app_id, **values})
                for app_id in apps[start : start + _APPS_AT_ONCE]
            )
            found += (
                DueTask(task_id=task_id, app_id=app_id, due_at=due_at)
                for task_id, app_id, due_at in (await self._connection.execute(statement)).rows
                if shard.has(task_id)
            )
        return found

    def stored_row(self, task: StoredTask) -> Sequence[Scalar]:
        """See `Session.stored_row`."""
        return (
            task.id,
            task.app_id,
            task.app_id,
            task.due_at,
            STATE_CODES[task.state],
            *stored_columns(task),
            task.task_no.encode(),
            task.name,
            task.content if len(task.content) <= INLINE_CONTENT else None,
        )

    def ended_row(self, app_id: int, ended: Ended) -> Sequence[Scalar]:
        """See `Session.ended_row`."""
        if ended.due_at is not None:
            lane, moment = app_id, ended.due_at
        else:
            lane, moment = OVER, ended.finished_at or 0
        return (
            ended.task_id,
            STATE_CODES[ended.state],
            lane,
            moment,
            ended.attempt,
            ended.failures,
            ended.abandoned,
            int(ended.sent),
            "" if ended.cancel_certainty is None else ended.cancel_certainty.value,
        )


def _task_row(task: NewTask) -> tuple[Scalar, ...]:
    return (
        task.app_id,
        *_place(task),
        task.due_at if task.runtime is None else task.runtime,
        task.timeout_ms,
        task.step,
        task.retry_total,
        task.created_at,
        task.task_no.encode(),
        task.name,
        task.content if len(task.content) <= INLINE_CONTENT else None,
    )


def _place(task: NewTask) -> tuple[Scalar, ...]:
    """Return lane, moment, state, token, attempt, node and leased_at of a new task."""
    lease = task.lease
    if lease is None:
        return task.app_id, task.due_at, _SCHEDULED, 0, 0, None, None
    return RUNNING, lease.expires_at, _RUNNING, 1, 1, lease.node, lease.leased_at


@cache
def _pieces(statement: str) -> tuple[list[tuple[bytes, str]], bytes]:
    """Split a statement at its values: each text before a value with the value's name, and the
    text after the last."""
    *pieces, end = re.split(r"\{(\w+)\}", statement)
    texts = [text.encode() for text in pieces[::2]]
    return list(zip(texts, pieces[1::2], strict=True)), end.encode()


def _filled(statement: str, values: dict[str, Value]) -> bytes:
    """Return a statement with its values in it. The values of a collection ascend, which is the
    order in which locks are taken."""
    pieces, end = _pieces(statement)
    return b"".join([text + _written(values[name]) for text, name in pieces]) + end


def _written(value: Value) -> bytes:
    if value is None or isinstance(value, int | str | bytes):
        return literal(value)
    ordered: list[Any] = sorted(value)
    return row(ordered)

"""What a SQLite store writes for those who submit: apps, nonces, tasks."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from taskd.domain.model import App, ExistingTask, NewTask, NonceUse
from taskd.errors import NonceUsed, StoreError
from taskd.stores.encoding import INLINE_CONTENT, STATES, nonce_digest
from taskd.stores.sqlite.rows import MAX_ROWS, SqlValue, execute_rows
from taskd.stores.sqlite.writer import Operation
from taskd.stores.submissions import Given, TaskKey, all_tasks, give, give_all, key_of, sift, to_add
from taskd.stores.write_requests import AppAddition, Submission

_EPOCH_MS = 120_000
"""Nonces that expire in the same two minutes are kept, and forgotten, together."""

_EPOCHS = """
WITH RECURSIVE epochs(epoch) AS (
    SELECT min(epoch) FROM nonces
    UNION ALL
    SELECT (SELECT min(epoch) FROM nonces WHERE epoch > epochs.epoch)
    FROM epochs WHERE epochs.epoch IS NOT NULL
)"""

_USED = """EXISTS (
    SELECT 1 FROM nonces WHERE epoch IN (SELECT epoch FROM epochs) AND digest = v.column2
)"""

# A digest that stands there already becomes NULL, which the table refuses: the
# statement as a whole then writes nothing.
_USE_NONCES = f"""{_EPOCHS}
INSERT INTO nonces (epoch, digest)
SELECT v.column1, CASE WHEN {_USED} THEN NULL ELSE v.column2 END
FROM {{rows}} AS v WHERE v.column1 IS NOT NULL"""  # noqa: S608  the parts are constants

_FIND_USED = f"""{_EPOCHS}
SELECT v.column2 FROM {{rows}} AS v WHERE v.column1 IS NOT NULL AND {_USED}"""  # noqa: S608  the parts are constants

_ADD_TASKS = """
INSERT INTO tasks (id, app_id, state, due_at, runtime, timeout_ms, step, retry_total,
                   created_at, task_no, name, content, token, attempt,
                   node, leased_at, lease_expires_at)
SELECT column1, column2, column3, iif(column3, NULL, column4), column15, column5, column6,
       column7, column8, column9, column10, column11, column3, column3,
       column12, column13, column14
FROM {rows} AS v WHERE v.column1 IS NOT NULL"""

_NO_LEASE = (None, None, None)

_LAST_ID = "SELECT seq FROM sqlite_sequence WHERE name = 'tasks'"

# A CROSS JOIN is carried out from left to right: one look into the index for each row.
_FIND_TAKEN = """
SELECT app_id, task_no, id, state FROM {rows} AS v CROSS JOIN tasks
WHERE v.column1 IS NOT NULL AND app_id = v.column1 AND task_no = v.column2"""

_TAKE_BACK = "DELETE FROM tasks WHERE id BETWEEN ? AND ?"

_ADD_CONTENTS = """
INSERT INTO contents (task_id, content)
SELECT column1, column2 FROM {rows} AS v WHERE v.column1 IS NOT NULL"""

_ADD_APP = """
INSERT INTO apps (app_key, secret_key, name, link_url, step, retry_total, remark, created_at,
    success)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""

_OLDEST_EPOCH = "SELECT min(epoch) FROM nonces"

_FORGET_NONCES = """
DELETE FROM nonces WHERE epoch = :epoch AND digest <= coalesce(
    (SELECT digest FROM nonces WHERE epoch = :epoch ORDER BY digest LIMIT 1 OFFSET :count - 1),
    :last)"""

_LAST_DIGEST = b"\xff" * 16


class Submissions:
    """Writes submissions. Knows the last task id that was given.

    Ids are given here rather than by SQLite, so that many rows need not be asked
    back for theirs. AUTOINCREMENT notes the highest all the same, which keeps
    ids of purged tasks from being given again after a restart.

    Args:
        connection: to the database.
        shared: other processes give ids as well, so the last one is read anew in
            each transaction.
    """

    def __init__(self, connection: sqlite3.Connection, *, shared: bool = False) -> None:
        self._shared = shared
        self._last_id = _last_id(connection)
        self.submit = Operation("submit", self._submit)

    def _submit(
        self, connection: sqlite3.Connection, submissions: Sequence[Submission]
    ) -> list[Given | StoreError]:
        if self._shared:
            self._last_id = _last_id(connection)
        first_id = self._last_id + 1
        nonces = [(n, s.nonce) for n, s in enumerate(submissions) if s.nonce is not None]
        refused = _use_nonces(connection, nonces)
        admitted = submissions
        if refused:
            out = set(refused)
            admitted = [s for n, s in enumerate(submissions) if n not in out]
        results, added = _add_tasks(connection, first_id, admitted)
        self._last_id += added
        for number in refused:  # in ascending order, so each finds its place
            results.insert(number, NonceUsed("the nonce was used before"))
        return results


def _add_tasks(
    connection: sqlite3.Connection, first_id: int, submissions: Sequence[Submission]
) -> tuple[list[Given | StoreError], int]:
    """Add tasks under ids from this one on; returns what their callers are told, and
    how many there were."""
    tasks = all_tasks(submissions)
    try:
        _insert_tasks(connection, first_id, tasks)
    except sqlite3.IntegrityError:
        taken = _taken(connection, tasks)
        sifted = sift(submissions, taken)
        tasks = to_add(sifted)
        _insert_tasks(connection, first_id, tasks)
        return give(sifted, count(first_id), taken), len(tasks)
    return give_all(submissions, count(first_id)), len(tasks)


def _taken(connection: sqlite3.Connection, tasks: Sequence[NewTask]) -> dict[TaskKey, ExistingTask]:
    """The tasks that have the taskNos of these, which are to be added."""
    rows = execute_rows(connection, _FIND_TAKEN, list(map(key_of, tasks)))
    return {
        (app_id, task_no): ExistingTask(task_id, STATES[state])
        for app_id, task_no, task_id, state in rows
    }


def _last_id(connection: sqlite3.Connection) -> int:
    row = connection.execute(_LAST_ID).fetchone()
    return 0 if row is None else int(row[0])


def _use_nonces(
    connection: sqlite3.Connection, nonces: Sequence[tuple[int, NonceUse]]
) -> list[int]:
    """Use nonces up; returns the numbers of those that were used before, ascending."""
    if not nonces:
        return []
    rows = [(nonce.expires_at // _EPOCH_MS, nonce_digest(nonce)) for _, nonce in nonces]
    if len({digest for _, digest in rows}) == len(rows):
        try:
            execute_rows(connection, _USE_NONCES, rows)
        except sqlite3.IntegrityError:
            pass  # some are used: find out which
        else:
            return []
    used = {digest for (digest,) in execute_rows(connection, _FIND_USED, rows)}
    refused, fresh = [], []
    for (number, _), row in zip(nonces, rows, strict=True):
        if row[1] in used:
            refused.append(number)
        else:
            used.add(row[1])
            fresh.append(row)
    if fresh:
        execute_rows(connection, _USE_NONCES, fresh)
    return refused


def _insert_tasks(connection: sqlite3.Connection, first_id: int, tasks: Sequence[NewTask]) -> None:
    """Add tasks under ids from this one on.

    Raises:
        sqlite3.IntegrityError: one is taken; none was added.
    """
    rows: list[tuple[SqlValue, ...]] = []
    contents: list[tuple[SqlValue, ...]] = []
    for task_id, task in enumerate(tasks, start=first_id):
        content = inline_content(task.content)
        if content is None:
            contents.append((task_id, task.content))
        lease = task.lease
        rows.append(
            (
                task_id,
                task.app_id,
                0 if lease is None else 1,  # the state's code, and the token and attempt
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
        )
    for start in range(0, len(rows), MAX_ROWS):
        try:
            execute_rows(connection, _ADD_TASKS, rows[start : start + MAX_ROWS])
        except sqlite3.IntegrityError:
            if start:
                connection.execute(_TAKE_BACK, (first_id, first_id + start - 1))
            raise
    if contents:
        insert_contents(connection, contents)


def insert_contents(
    connection: sqlite3.Connection, contents: Sequence[tuple[SqlValue, ...]]
) -> None:
    """Keep content that stands apart: task ids with theirs."""
    execute_rows(connection, _ADD_CONTENTS, contents)


def inline_content(content: bytes) -> str | None:
    """Content as it stands in its task's row; None where it has to stand apart."""
    if len(content) > INLINE_CONTENT or b"\0" in content:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None  # as a blob it comes back as it is


def _add_apps(
    connection: sqlite3.Connection, additions: Sequence[AppAddition]
) -> list[App | StoreError]:
    nonces = [(n, a.nonce) for n, a in enumerate(additions) if a.nonce is not None]
    refused = set(_use_nonces(connection, nonces))
    results: list[App | StoreError] = []
    for number, addition in enumerate(additions):
        if number in refused:
            results.append(NonceUsed("the nonce was used before"))
            continue
        app = addition.app
        cursor = connection.execute(
            _ADD_APP,
            (
                app.app_key,
                app.secret_key,
                app.name,
                app.link_url,
                app.step,
                app.retry_total,
                app.remark,
                app.created_at,
                app.success.value,
            ),
        )
        results.append(replace(app, id=cursor.lastrowid or 0))
    return results


def _forget_nonces(
    connection: sqlite3.Connection, orders: Sequence[tuple[int, int]]
) -> list[int | StoreError]:
    """Each order is the time now and how many at most."""
    return [_forget(connection, now // _EPOCH_MS, limit) for now, limit in orders]


def _forget(connection: sqlite3.Connection, current: int, limit: int) -> int:
    forgotten = 0
    while forgotten < limit:
        (oldest,) = connection.execute(_OLDEST_EPOCH).fetchone()
        if oldest is None or oldest >= current:
            break
        values = {"epoch": oldest, "count": limit - forgotten, "last": _LAST_DIGEST}
        forgotten += connection.execute(_FORGET_NONCES, values).rowcount
    return forgotten


ADD_APP = Operation("add app", _add_apps)
FORGET_NONCES = Operation("forget nonces", _forget_nonces)

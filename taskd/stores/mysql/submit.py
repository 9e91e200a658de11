"""What a MySQL store writes for those who submit: apps, nonces, tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from taskd.domain.model import App, ExistingTask, NewTask, NonceUse, TaskState
from taskd.errors import NonceUsed, StoreError
from taskd.stores.encoding import INLINE_CONTENT, STATE_CODES, STATES, nonce_digest
from taskd.stores.mysql.connection import MySQLConnection
from taskd.stores.mysql.errors import Conflict, DuplicateKey
from taskd.stores.mysql.rows import SqlValue, ids, inserts, of_task_nos, row
from taskd.stores.mysql.schema import RUNNING
from taskd.stores.mysql.writer import Operation
from taskd.stores.submissions import Given, TaskKey, all_tasks, give, give_all, key_of, sift, to_add
from taskd.stores.write_requests import AppAddition, Submission

_ADD_NONCES = "INSERT INTO nonces (digest, expires_at) VALUES"
_FIND_USED = "SELECT digest FROM nonces FORCE INDEX (PRIMARY) WHERE digest IN "

_ADD_TASKS = """INSERT INTO tasks (app_id, lane, moment, state, token, attempt, node, leased_at,
    runtime, timeout_ms, step, retry_total, created_at, task_no, name, content) VALUES"""
_TAKE_BACK = "DELETE FROM tasks WHERE id IN {ids}"
_FIND_TAKEN = "SELECT app_id, task_no, id, state FROM tasks FORCE INDEX (tasks_task_no) WHERE "

_ADD_CONTENTS = "INSERT INTO contents (task_id, content) VALUES"

_ADD_APP = """INSERT INTO apps (app_key, secret_key, name, link_url, step, retry_total, remark,
    created_at, success) VALUES"""

_FIND_EXPIRED_NONCES = """SELECT digest FROM nonces FORCE INDEX (nonces_expires_at)
WHERE expires_at <= {now} ORDER BY expires_at LIMIT {limit} FOR UPDATE SKIP LOCKED"""
_FORGET_NONCES = "DELETE FROM nonces WHERE digest IN "

_TRIES = 3
"""Between a refusal of rows that stand there and a look at which those are, another
node may have added or deleted some."""

_LOOKED_UP = 1_000
"""Tasks that one statement looks for: it may not grow past what a server takes."""

_ROW_BYTES = 500
"""What a task weighs beside its content, about."""

_SCHEDULED, _RUNNING = STATE_CODES[TaskState.SCHEDULED], STATE_CODES[TaskState.RUNNING]


async def _submit(
    connection: MySQLConnection, submissions: Sequence[Submission]
) -> list[Given | StoreError]:
    nonces = [(n, s.nonce) for n, s in enumerate(submissions) if s.nonce is not None]
    refused = await _use_nonces(connection, nonces)
    out = set(refused)
    admitted = [s for n, s in enumerate(submissions) if n not in out]
    results = await _add_tasks(connection, admitted)
    for number in refused:  # in ascending order, so each finds its place
        results.insert(number, NonceUsed("the nonce was used before"))
    return results


async def _add_tasks(
    connection: MySQLConnection, submissions: Sequence[Submission]
) -> list[Given | StoreError]:
    """Add tasks; returns what their callers are told."""
    every = all_tasks(submissions)
    try:
        return give_all(submissions, iter(await _insert_tasks(connection, every)))
    except DuplicateKey:
        pass  # some are taken: find out which
    for _ in range(_TRIES - 1):
        taken = await _taken(connection, every)
        sifted = sift(submissions, taken)
        try:
            ids = await _insert_tasks(connection, to_add(sifted))
        except DuplicateKey:
            continue
        return give(sifted, iter(ids), taken)
    raise Conflict("others add and delete the same tasks", waited=False)


async def _taken(
    connection: MySQLConnection, tasks: Sequence[NewTask]
) -> dict[TaskKey, ExistingTask]:
    """The tasks that have the taskNos of these, which are to be added."""
    found: dict[TaskKey, ExistingTask] = {}
    for start in range(0, len(tasks), _LOOKED_UP):
        some = of_task_nos(map(key_of, tasks[start : start + _LOOKED_UP]))
        rows = (await connection.execute(_FIND_TAKEN.encode() + some)).rows
        found |= {
            (app_id, bytes(task_no).decode()): ExistingTask(task_id, STATES[state])
            for app_id, task_no, task_id, state in rows
        }
    return found


def _place(task: NewTask) -> tuple[SqlValue, ...]:
    """Lane, moment, state, token, attempt, node and leased_at of a new task."""
    lease = task.lease
    if lease is None:
        return task.app_id, task.due_at, _SCHEDULED, 0, 0, None, None
    return RUNNING, lease.expires_at, _RUNNING, 1, 1, lease.node, lease.leased_at


async def _insert_tasks(connection: MySQLConnection, tasks: Sequence[NewTask]) -> list[int]:
    rows: list[tuple[SqlValue, ...]] = [
        (
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
        for task in tasks
    ]
    given: list[int] = []
    try:
        for statement, count in inserts(_ADD_TASKS, rows):
            first = (await connection.execute(statement)).first_id
            # A statement whose number of rows is known is given ids in one go.
            given += range(first, first + count * connection.id_step, connection.id_step)
    except DuplicateKey:
        if given:
            await connection.execute(_TAKE_BACK.format(ids=ids(given)))
        raise
    contents: list[tuple[SqlValue, ...]] = [
        (task_id, task.content)
        for task_id, task in zip(given, tasks, strict=True)
        if len(task.content) > INLINE_CONTENT
    ]
    for statement, _ in inserts(_ADD_CONTENTS, contents):
        await connection.execute(statement)
    return given


async def _use_nonces(
    connection: MySQLConnection, nonces: Sequence[tuple[int, NonceUse]]
) -> list[int]:
    """Use nonces up; returns the numbers of those that were used before."""
    digests = {number: nonce_digest(nonce) for number, nonce in nonces}
    fresh: list[tuple[int, NonceUse]] = []
    seen: set[bytes] = set()
    for number, nonce in nonces:
        if digests[number] not in seen:
            seen.add(digests[number])
            fresh.append((number, nonce))
    for _ in range(_TRIES):
        try:
            # Short rows: they are one statement, so all of them or none are there.
            rows = [(digests[number], nonce.expires_at) for number, nonce in fresh]
            for statement, _count in inserts(_ADD_NONCES, rows):
                await connection.execute(statement)
        except DuplicateKey:
            listed = row(digests[number] for number, _ in fresh)
            answer = await connection.execute(_FIND_USED.encode() + listed)
            used = {digest for (digest,) in answer.rows}
            fresh = [(number, nonce) for number, nonce in fresh if digests[number] not in used]
        else:
            kept = {number for number, _ in fresh}
            return [number for number, _ in nonces if number not in kept]
    raise Conflict("others use and forget the same nonces", waited=False)


async def _add_apps(
    connection: MySQLConnection, additions: Sequence[AppAddition]
) -> list[App | StoreError]:
    nonces = [(n, a.nonce) for n, a in enumerate(additions) if a.nonce is not None]
    refused = set(await _use_nonces(connection, nonces))
    results: list[App | StoreError] = []
    for number, addition in enumerate(additions):
        if number in refused:
            results.append(NonceUsed("the nonce was used before"))
            continue
        app = addition.app
        values = (
            app.app_key.encode(),
            app.secret_key,
            app.name,
            app.link_url,
            app.step,
            app.retry_total,
            app.remark,
            app.created_at,
            app.success.value,
        )
        ((statement, _),) = inserts(_ADD_APP, [values])
        results.append(replace(app, id=(await connection.execute(statement)).first_id))
    return results


async def _forget_nonces(
    connection: MySQLConnection, orders: Sequence[tuple[int, int]]
) -> list[int | StoreError]:
    """Each order is the time now and how many at most."""
    counts: list[int | StoreError] = []
    for now, limit in orders:
        statement = _FIND_EXPIRED_NONCES.format(now=now, limit=limit)
        expired = sorted(digest for (digest,) in (await connection.execute(statement)).rows)
        if expired:
            await connection.execute(_FORGET_NONCES.encode() + row(expired))
        counts.append(len(expired))
    return counts


def _weigh(submission: Submission) -> int:
    return sum([len(task.content) + _ROW_BYTES for task in submission.tasks])


SUBMIT = Operation("submit", _submit, _weigh)
ADD_APP = Operation("add app", _add_apps)
FORGET_NONCES = Operation("forget nonces", _forget_nonces)

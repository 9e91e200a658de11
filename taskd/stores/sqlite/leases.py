"""What a SQLite store writes about tasks on their way: lease, extend, settle,
cancel, reap, purge.

Every operation reads the rows it is about in one statement, has `transitions`
decide, and writes them in another.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from taskd.domain.model import (
    App,
    Attempt,
    CancelDecision,
    Lease,
    LeasedTask,
    ReapedTask,
    Settlement,
    TaskState,
)
from taskd.domain.transitions import (
    KINDS,
    WAITING,
    Ended,
    RunningTask,
    abandoned_attempt,
    cleared,
    reaped,
    settled,
    waiting_cancel_word,
)
from taskd.errors import LeaseLost, StoreError
from taskd.ports.store import ExtendResult
from taskd.stores.encoding import INLINE_CONTENT, STATE_CODES, STATES, attempt_row
from taskd.stores.sqlite.apps import AppReader
from taskd.stores.sqlite.rows import SqlValue, execute_rows, fetch_json, id_list
from taskd.stores.sqlite.suspects import alone_before, clear, end_of, suspect
from taskd.stores.sqlite.writer import Operation
from taskd.stores.write_requests import CancelOrder, ExtendOrder, LeaseOrder, ReapOrder

_RUNNING_COLUMNS = (
    "id, app_id, token, node, leased_at, attempt, failures, abandoned, sent, cancel_requested"
)

_FIND_WAITING = """
SELECT json_group_array(json_array(
    id, app_id, token, attempt, failures, sent, due_at, timeout_ms, step, retry_total,
    task_no, name, content))
FROM tasks
WHERE id IN (SELECT value FROM json_each(?)) AND due_at <= ?"""

_NOT_SUSPECT = """
    AND (abandoned = 0 OR NOT EXISTS (SELECT 1 FROM suspects WHERE task_id = tasks.id))"""

_LEASE = """
UPDATE tasks SET state = 1, due_at = NULL, token = token + 1, attempt = attempt + 1,
    node = ?, leased_at = ?, lease_expires_at = ?
WHERE id IN (SELECT value FROM json_each(?))"""

_CONTENT = """
SELECT length(content), CASE WHEN length(content) <= ? THEN content END
FROM contents WHERE task_id = ?"""
_ANY_LENGTH = 2**62

_FIND_RUNNING = f"""
SELECT json_group_array(json_array({_RUNNING_COLUMNS})) FROM tasks
WHERE id IN (SELECT value FROM json_each(?)) AND lease_expires_at IS NOT NULL"""  # noqa: S608  the parts are constants

_EXTEND = """
UPDATE tasks SET lease_expires_at = ? WHERE id IN (SELECT value FROM json_each(?))"""

_END = """
UPDATE tasks SET state = v.column2, due_at = v.column3, attempt = v.column4,
    failures = v.column5, abandoned = v.column6, sent = v.column7, cancel_word = v.column8,
    finished_at = v.column9, lease_expires_at = NULL, leased_at = NULL, node = NULL
FROM {rows} AS v WHERE tasks.id = v.column1"""

_ADD_ATTEMPTS = """
INSERT INTO attempts (task_id, attempt, started_at, ended_at, outcome, http_status, response, error)
SELECT * FROM {rows} AS v WHERE v.column1 IS NOT NULL"""

_FIND_ONE = (
    "SELECT id, task_no, state, node, sent, abandoned FROM tasks WHERE {key} = ? AND app_id = ?"
)
_FIND_BY_ID = _FIND_ONE.format(key="id")
_FIND_BY_NO = _FIND_ONE.format(key="task_no")

_CANCEL = """
UPDATE tasks SET state = 5, due_at = NULL, cancel_requested = 1, cancel_word = ?, finished_at = ?
WHERE id = ?"""

_WISH = "UPDATE tasks SET cancel_requested = 1 WHERE id = ?"

_FIND_EXPIRED = f"""
SELECT json_group_array(json_array({_RUNNING_COLUMNS}, task_no)) FROM (
    SELECT {_RUNNING_COLUMNS}, task_no FROM tasks
    WHERE lease_expires_at <= ? AND id NOT IN (SELECT value FROM json_each(?))
        AND node = coalesce(?, node) AND node NOT IN (SELECT value FROM json_each(?))
    ORDER BY lease_expires_at, id LIMIT ?
)"""  # noqa: S608  the parts are constants

_AFTER_ALL = 2**63 - 1

_FIND_FINISHED = """
SELECT json_group_array(id) FROM (
    SELECT id FROM tasks WHERE finished_at < ? ORDER BY finished_at, id LIMIT ?
)"""

_PURGE = (
    "DELETE FROM attempts WHERE task_id IN (SELECT value FROM json_each(?))",
    "DELETE FROM contents WHERE task_id IN (SELECT value FROM json_each(?))",
    "DELETE FROM tasks WHERE id IN (SELECT value FROM json_each(?))",
)


@dataclass(slots=True)
class _Endings:
    """What is to be written of leases that end in one batch."""

    tasks: list[tuple[SqlValue, ...]] = field(default_factory=list)
    attempts: list[tuple[SqlValue, ...]] = field(default_factory=list)

    def add(self, ended: Ended, attempt: Attempt | None) -> None:
        self.tasks.append(
            (
                ended.task_id,
                STATE_CODES[ended.state],
                ended.due_at,
                ended.attempt,
                ended.failures,
                ended.abandoned,
                int(ended.sent),
                ended.cancel_word and ended.cancel_word.value,
                ended.finished_at,
            )
        )
        if attempt is not None:
            self.attempts.append(attempt_row(ended.task_id, attempt))

    def write(self, connection: sqlite3.Connection) -> None:
        if self.tasks:
            execute_rows(connection, _END, self.tasks)
        if self.attempts:
            execute_rows(connection, _ADD_ATTEMPTS, self.attempts)


class Leases:
    """Takes leases. Reads each app once.

    Args:
        apps: where it looks first, and keeps what it had to read.
    """

    def __init__(self, apps: AppReader) -> None:
        self._apps = apps
        self.lease = Operation("lease", self._lease)

    def _lease(
        self, connection: sqlite3.Connection, orders: Sequence[LeaseOrder]
    ) -> list[list[LeasedTask] | StoreError]:
        return [self._lease_one(connection, order) for order in orders]

    def _lease_one(self, connection: sqlite3.Connection, order: LeaseOrder) -> list[LeasedTask]:
        find = _FIND_WAITING if order.suspects else _FIND_WAITING + _NOT_SUSPECT
        rows = fetch_json(connection, find, (id_list(order.task_ids), order.now))
        waiting = {row[0]: row for row in rows}
        leased = []
        room = _ANY_LENGTH if order.room is None else order.room
        for task_id in order.task_ids:
            row = waiting.pop(task_id, None)  # an id given twice is leased once
            app = row and self._apps.read_by_id(connection, row[1])
            if not app:
                continue
            if row[-1] is None:
                # Some are short and stand apart for what is in them.
                most = max(room, INLINE_CONTENT)
                length, content = connection.execute(_CONTENT, (most, task_id)).fetchone()
                if content is not None and length > INLINE_CONTENT:
                    room -= length
                leased.append(_leased_task(row, app, order, content, length))
            else:
                leased.append(_leased_task(row, app, order, row[-1].encode()))
        if leased:
            ids = id_list(task.lease.task_id for task in leased)
            connection.execute(_LEASE, (order.node, order.now, order.expires_at, ids))
        return leased


def _leased_task(
    row: Sequence[Any], app: App, order: LeaseOrder, content: bytes | None, length: int = 0
) -> LeasedTask:
    """A task as it was leased; without a content so many bytes are left in the Store."""
    (
        task_id, _, token, attempt, failures, sent, due_at, timeout_ms, step, retry_total,
        task_no, name, _,
    ) = row  # fmt: skip
    return LeasedTask(
        lease=Lease(task_id=task_id, token=token + 1, node=order.node, expires_at=order.expires_at),
        app=app,
        task_no=task_no,
        name=name,
        content=content or b"",
        left_bytes=0 if content else length,
        timeout_ms=timeout_ms,
        due_at=due_at,
        leased_at=order.now,
        attempt=attempt + 1,
        failures=failures,
        sent_before=bool(sent),
        step=app.step if step is None else step,
        retry_total=app.retry_total if retry_total is None else retry_total,
    )


def _running(rows: Iterable[Sequence[Any]]) -> list[RunningTask]:
    return [
        RunningTask(
            task_id=row[0],
            app_id=row[1],
            token=row[2],
            node=row[3],
            leased_at=row[4],
            attempt=row[5],
            failures=row[6],
            abandoned=row[7],
            sent=bool(row[8]),
            cancel_requested=bool(row[9]),
        )
        for row in rows
    ]


def _held(connection: sqlite3.Connection, leases: Iterable[Lease]) -> dict[int, RunningTask]:
    ids = id_list(lease.task_id for lease in leases)
    rows = fetch_json(connection, _FIND_RUNNING, (ids,))
    return {task.task_id: task for task in _running(rows)}


def _extend(
    connection: sqlite3.Connection, orders: Sequence[ExtendOrder]
) -> list[ExtendResult | StoreError]:
    results: list[ExtendResult | StoreError] = []
    for order in orders:
        running = _held(connection, order.leases)
        lost, kept, wished = set(), set(), set()
        for lease in order.leases:
            task = running.get(lease.task_id)
            if task is None or task.token != lease.token:
                lost.add(lease.task_id)
                continue
            kept.add(task.task_id)
            if task.cancel_requested:
                wished.add(task.task_id)
        if kept:
            connection.execute(_EXTEND, (order.expires_at, id_list(kept)))
        results.append(ExtendResult(frozenset(lost), frozenset(wished)))
    return results


def _settle(
    connection: sqlite3.Connection, settlements: Sequence[Settlement]
) -> list[TaskState | StoreError]:
    running = _held(connection, (settlement.lease for settlement in settlements))
    results: list[TaskState | StoreError] = []
    endings = _Endings()
    no_suspects: list[int] = []
    for settlement in settlements:
        lease = settlement.lease
        task = running.get(lease.task_id)
        if task is None or task.token != lease.token:
            results.append(LeaseLost(f"the lease of task {lease.task_id} is not current any more"))
            continue
        del running[lease.task_id]
        ended = settled(task, settlement)
        endings.add(ended, settlement.attempt)
        results.append(ended.state)
        if cleared(task, ended):
            no_suspects.append(task.task_id)
    endings.write(connection)
    clear(connection, no_suspects)
    return results


def _cancel(
    connection: sqlite3.Connection, orders: Sequence[CancelOrder]
) -> list[CancelDecision | StoreError]:
    return [_cancel_one(connection, order) for order in orders]


def _cancel_one(connection: sqlite3.Connection, order: CancelOrder) -> CancelDecision:
    if order.task_no is None:
        found = connection.execute(_FIND_BY_ID, (order.task_id, order.app_id))
    else:
        found = connection.execute(_FIND_BY_NO, (order.task_no, order.app_id))
    row = found.fetchone()
    if row is None:
        return CancelDecision(state=None)
    task_id, task_no, code, node, sent, abandoned = row
    state = STATES[code]
    if state is TaskState.RUNNING:
        connection.execute(_WISH, (task_id,))
        return CancelDecision(state=state, task_id=task_id, task_no=task_no, node=node)
    if state not in WAITING:
        return CancelDecision(state=None)
    word = waiting_cancel_word(sent=bool(sent))
    connection.execute(_CANCEL, (word.value, order.now, task_id))
    if abandoned:
        clear(connection, [task_id])
    return CancelDecision(state=TaskState.CANCELLED, task_id=task_id, task_no=task_no, word=word)


def _reap(
    connection: sqlite3.Connection, orders: Sequence[ReapOrder]
) -> list[list[ReapedTask] | StoreError]:
    return [_reap_one(connection, order) for order in orders]


def _reap_one(connection: sqlite3.Connection, order: ReapOrder) -> list[ReapedTask]:
    until = _AFTER_ALL if order.expired_at is None else order.expired_at
    alive = json.dumps(order.alive)
    expired = (until, id_list(order.exclude), order.node, alive, order.limit)
    endings = _Endings()
    results = []
    rows = fetch_json(connection, _FIND_EXPIRED, expired)
    task_nos = {row[0]: row[-1] for row in rows}
    tasks = _running(rows)
    # Before any of them is ended: how a node ended shows in all its leases.
    ends = {node: end_of(connection, node, now=order.now) for node in {t.node for t in tasks}}
    alone = alone_before(connection, (task.task_id for task in tasks if task.abandoned))
    suspects: list[tuple[int, int, int]] = []
    no_suspects: list[int] = []
    for task in tasks:
        before = alone.get(task.task_id, 0)
        ended, times_alone = reaped(task, ends[task.node], alone=before, now=order.now)
        if cleared(task, ended):
            no_suspects.append(task.task_id)
        elif ended.abandoned and not ended.state.terminal:
            suspects.append((task.task_id, min(ended.abandoned, KINDS[-1]), times_alone))
        attempt = abandoned_attempt(task, now=order.now)
        endings.add(ended, attempt)
        results.append(
            ReapedTask(
                task_id=task.task_id,
                task_no=task_nos[task.task_id],
                app_id=task.app_id,
                state=ended.state,
                due_at=ended.due_at,
                node=task.node,
                attempt=attempt.attempt,
            )
        )
    endings.write(connection)
    suspect(connection, suspects)
    clear(connection, no_suspects)
    return results


def _purge(
    connection: sqlite3.Connection, orders: Sequence[tuple[int, int]]
) -> list[int | StoreError]:
    """Each order is the time before which tasks ended, and how many at most."""
    counts: list[int | StoreError] = []
    for finished_before, limit in orders:
        ids = fetch_json(connection, _FIND_FINISHED, (finished_before, limit))
        if ids:
            listed = id_list(ids)
            for statement in _PURGE:
                connection.execute(statement, (listed,))
        counts.append(len(ids))
    return counts


EXTEND = Operation("extend", _extend)
SETTLE = Operation("settle", _settle, patient=True)
CANCEL = Operation("cancel", _cancel)
REAP = Operation("reap", _reap)
PURGE = Operation("purge", _purge)

"""What a MySQL store writes about tasks on their way: lease, extend, settle, cancel,
reap, purge.

Every operation locks the rows it is about, by primary key and in ascending order, has
`transitions` decide, and writes them; the index is named, since on a small table the
server would read, and lock, all of it. Who looks for rows that anybody may take (lease,
reap, purge) skips those that others have locked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from taskd.domain.model import (
    App,
    Attempt,
    CancelDecision,
    DeliveryWord,
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
from taskd.stores.encoding import STATE_CODES, STATES, AttemptRow, attempt_row
from taskd.stores.mysql.connection import MySQLConnection, Row
from taskd.stores.mysql.reads import AppReader
from taskd.stores.mysql.rows import ids, inserts, literal, of_task_nos, table
from taskd.stores.mysql.schema import OVER, RUNNING
from taskd.stores.mysql.suspects import alone_before, clear, end_of, suspect
from taskd.stores.mysql.writer import Operation
from taskd.stores.write_requests import CancelOrder, ExtendOrder, LeaseOrder, ReapOrder

FIND_WAITING = """SELECT id, app_id, token, attempt, failures, sent, moment, timeout_ms, step,
    retry_total, task_no, name, content
FROM tasks FORCE INDEX (PRIMARY) WHERE id IN {ids} AND lane > 0 AND moment <= {now}{but}
FOR UPDATE SKIP LOCKED"""

NOT_SUSPECT = """
    AND (abandoned = 0 OR NOT EXISTS (SELECT 1 FROM suspects WHERE task_id = tasks.id))"""

LEASE = f"""UPDATE tasks FORCE INDEX (PRIMARY) SET state = {STATE_CODES[TaskState.RUNNING]},
    lane = {RUNNING}, moment = {{expires_at}}, token = token + 1, attempt = attempt + 1,
    node = {{node}}, leased_at = {{now}}
WHERE id IN {{ids}}"""  # noqa: S608  the parts are constants

FIND_LENGTHS = """SELECT task_id, LENGTH(content) FROM contents FORCE INDEX (PRIMARY)
WHERE task_id IN {ids}"""

FIND_CONTENTS = "SELECT task_id, content FROM contents FORCE INDEX (PRIMARY) WHERE task_id IN {ids}"

_RUNNING_COLUMNS = (
    "id, app_id, token, node, leased_at, attempt, failures, abandoned, sent, cancel_requested"
)

FIND_RUNNING = f"""SELECT {_RUNNING_COLUMNS} FROM tasks FORCE INDEX (PRIMARY)
WHERE id IN {{ids}} AND lane = {RUNNING} FOR UPDATE"""  # noqa: S608  the parts are constants

EXTEND = "UPDATE tasks FORCE INDEX (PRIMARY) SET moment = {expires_at} WHERE id IN {ids}"

END = """UPDATE JSON_TABLE({rows}, '$[*]' COLUMNS (
    id BIGINT PATH '$[0]', state INT PATH '$[1]', lane BIGINT PATH '$[2]',
    moment BIGINT PATH '$[3]', attempt INT PATH '$[4]', failures INT PATH '$[5]',
    abandoned INT PATH '$[6]', sent INT PATH '$[7]', word VARCHAR(32) PATH '$[8]'
)) AS v STRAIGHT_JOIN tasks FORCE INDEX (PRIMARY) ON tasks.id = v.id
SET tasks.state = v.state, tasks.lane = v.lane, tasks.moment = v.moment,
    tasks.attempt = v.attempt, tasks.failures = v.failures, tasks.abandoned = v.abandoned,
    tasks.sent = v.sent, tasks.cancel_word = NULLIF(v.word, ''), tasks.node = NULL,
    tasks.leased_at = NULL"""

_ADD_ATTEMPTS = """INSERT INTO attempts (task_id, attempt, started_at, ended_at, outcome,
    http_status, response, error) VALUES"""

FIND_BY_NO = "SELECT app_id, task_no, id FROM tasks FORCE INDEX (tasks_task_no) WHERE "

FIND_TASKS = """SELECT id, app_id, task_no, state, node, sent, abandoned
FROM tasks FORCE INDEX (PRIMARY) WHERE id IN {ids} FOR UPDATE"""
_NOBODYS = (None, b"", 0, None, 0, 0)

CANCEL = f"""UPDATE JSON_TABLE({{rows}}, '$[*]' COLUMNS (
    id BIGINT PATH '$[0]', word VARCHAR(32) PATH '$[1]', moment BIGINT PATH '$[2]'
)) AS v STRAIGHT_JOIN tasks FORCE INDEX (PRIMARY) ON tasks.id = v.id
SET tasks.state = {STATE_CODES[TaskState.CANCELLED]}, tasks.lane = {OVER},
    tasks.moment = v.moment, tasks.cancel_requested = 1, tasks.cancel_word = v.word"""  # noqa: S608  the parts are constants

WISH = "UPDATE tasks FORCE INDEX (PRIMARY) SET cancel_requested = 1 WHERE id IN {ids}"

FIND_EXPIRED = f"""SELECT {_RUNNING_COLUMNS}, task_no FROM tasks FORCE INDEX (tasks_lanes)
WHERE lane = {RUNNING} AND moment <= {{expired_at}} AND id NOT IN {{ids}}{{by}}
ORDER BY lane, moment, id LIMIT {{limit}} FOR UPDATE SKIP LOCKED"""  # noqa: S608  the parts are constants

_AFTER_ALL = 2**63 - 1
_NO_TASK = 0

FIND_FINISHED = f"""SELECT id FROM tasks FORCE INDEX (tasks_lanes)
WHERE lane = {OVER} AND moment < {{finished_before}}
ORDER BY lane, moment, id LIMIT {{limit}} FOR UPDATE SKIP LOCKED"""  # noqa: S608  the parts are constants

PURGE = (
    "DELETE FROM attempts WHERE task_id IN {ids}",
    "DELETE FROM contents WHERE task_id IN {ids}",
    "DELETE FROM tasks WHERE id IN {ids}",
)


@dataclass(slots=True)
class _Endings:
    """What is to be written of leases that end in one batch."""

    tasks: list[tuple[str | int, ...]] = field(default_factory=list)
    attempts: list[AttemptRow] = field(default_factory=list)

    def add(self, ended: Ended, attempt: Attempt | None, *, app_id: int) -> None:
        if ended.due_at is not None:
            lane, moment = app_id, ended.due_at
        else:
            lane, moment = OVER, ended.finished_at or 0
        self.tasks.append(
            (
                ended.task_id,
                STATE_CODES[ended.state],
                lane,
                moment,
                ended.attempt,
                ended.failures,
                ended.abandoned,
                int(ended.sent),
                ended.cancel_word.value if ended.cancel_word is not None else "",
            )
        )
        if attempt is not None:
            self.attempts.append(attempt_row(ended.task_id, attempt))

    async def write(self, connection: MySQLConnection) -> None:
        if self.tasks:
            await connection.execute(END.format(rows=table(self.tasks)))
        for statement, _ in inserts(_ADD_ATTEMPTS, self.attempts):
            await connection.execute(statement)


class Leases:
    """Takes leases. Reads each app once.

    Args:
        apps: where it looks first, and keeps what it had to read.
    """

    def __init__(self, apps: AppReader) -> None:
        self._apps = apps
        self.lease = Operation("lease", self._lease)

    async def _lease(
        self, connection: MySQLConnection, orders: Sequence[LeaseOrder]
    ) -> list[list[LeasedTask] | StoreError]:
        return [await self._lease_one(connection, order) for order in orders]

    async def _lease_one(self, connection: MySQLConnection, order: LeaseOrder) -> list[LeasedTask]:
        if not order.task_ids:
            return []
        but = "" if order.suspects else NOT_SUSPECT
        statement = FIND_WAITING.format(ids=ids(set(order.task_ids)), now=order.now, but=but)
        waiting = {row[0]: row for row in (await connection.execute(statement)).rows}
        apps: dict[int, App] = {}
        for app_id in {row[1] for row in waiting.values()}:
            app = await self._apps.read_by_id(connection, app_id)
            if app is not None:
                apps[app_id] = app
        rows = [
            waiting.pop(task_id)  # an id given twice is leased once
            for task_id in order.task_ids
            if task_id in waiting and waiting[task_id][1] in apps
        ]
        if not rows:
            return []
        apart = [row[0] for row in rows if row[-1] is None]
        lengths: dict[int, int] = {}
        if apart and order.room is not None:
            lengths = await _lengths(connection, apart)
            apart = _within(apart, lengths, order.room)
        contents = await _contents(connection, apart)
        await connection.execute(
            LEASE.format(
                ids=ids(row[0] for row in rows),
                expires_at=order.expires_at,
                node=literal(order.node).decode(),
                now=order.now,
            )
        )
        return [
            _leased_task(row, apps[row[1]], order, contents.get(row[0]), lengths.get(row[0], 0))
            for row in rows
        ]


def _leased_task(
    row: Row, app: App, order: LeaseOrder, apart: bytes | None, length: int
) -> LeasedTask:
    """A task as it was leased; if its content is neither in the row nor apart, so many
    bytes are left in the Store."""
    (
        task_id, _, token, attempt, failures, sent, due_at, timeout_ms, step, retry_total,
        task_no, name, inline,
    ) = row  # fmt: skip
    content = apart if inline is None else inline
    return LeasedTask(
        lease=Lease(task_id=task_id, token=token + 1, node=order.node, expires_at=order.expires_at),
        app=app,
        task_no=task_no.decode(),
        name=name,
        content=b"" if content is None else content,
        left_bytes=length if content is None else 0,
        timeout_ms=timeout_ms,
        due_at=due_at,
        leased_at=order.now,
        attempt=attempt + 1,
        failures=failures,
        sent_before=bool(sent),
        step=app.step if step is None else step,
        retry_total=app.retry_total if retry_total is None else retry_total,
    )


async def _lengths(connection: MySQLConnection, task_ids: Sequence[int]) -> dict[int, int]:
    return dict((await connection.execute(FIND_LENGTHS.format(ids=ids(task_ids)))).rows)


def _within(task_ids: Sequence[int], lengths: dict[int, int], room: int) -> list[int]:
    """Those whose contents come with the lease, in their order."""
    within = []
    for task_id in task_ids:
        if lengths[task_id] <= room:
            room -= lengths[task_id]
            within.append(task_id)
    return within


async def _contents(connection: MySQLConnection, task_ids: Sequence[int]) -> dict[int, bytes]:
    if not task_ids:
        return {}
    return dict((await connection.execute(FIND_CONTENTS.format(ids=ids(task_ids)))).rows)


def _running(rows: Iterable[Row]) -> list[RunningTask]:
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


async def _held(connection: MySQLConnection, leases: Iterable[Lease]) -> dict[int, RunningTask]:
    wanted = {lease.task_id for lease in leases}
    if not wanted:
        return {}
    answer = await connection.execute(FIND_RUNNING.format(ids=ids(wanted)))
    return {task.task_id: task for task in _running(answer.rows)}


async def _extend(
    connection: MySQLConnection, orders: Sequence[ExtendOrder]
) -> list[ExtendResult | StoreError]:
    results: list[ExtendResult | StoreError] = []
    for order in orders:
        running = await _held(connection, order.leases)
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
            await connection.execute(EXTEND.format(expires_at=order.expires_at, ids=ids(kept)))
        results.append(ExtendResult(frozenset(lost), frozenset(wished)))
    return results


async def _settle(
    connection: MySQLConnection, settlements: Sequence[Settlement]
) -> list[TaskState | StoreError]:
    running = await _held(connection, (settlement.lease for settlement in settlements))
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
        endings.add(ended, settlement.attempt, app_id=task.app_id)
        results.append(ended.state)
        if cleared(task, ended):
            no_suspects.append(task.task_id)
    await endings.write(connection)
    await clear(connection, no_suspects)
    return results


async def _named(connection: MySQLConnection, orders: Sequence[CancelOrder]) -> list[int]:
    """The ids of the tasks that orders name; that of no task where there is none.

    Nothing is locked yet: locks are taken by ids, in their order. Whatever had its taskNo
    when it was found is what the order means: if it is purged before it is locked, it
    had ended then.
    """
    by_no: dict[tuple[int, str], int] = {}
    keys = [(order.app_id, order.task_no) for order in orders if order.task_no is not None]
    if keys:
        rows = (await connection.execute(FIND_BY_NO.encode() + of_task_nos(keys))).rows
        by_no = {(app_id, bytes(task_no).decode()): task_id for app_id, task_no, task_id in rows}
    return [
        order.task_id or _NO_TASK
        if order.task_no is None
        else by_no.get((order.app_id, order.task_no), _NO_TASK)
        for order in orders
    ]


async def _cancel(
    connection: MySQLConnection, orders: Sequence[CancelOrder]
) -> list[CancelDecision | StoreError]:
    task_ids = await _named(connection, orders)
    listed = ids(set(task_ids))
    found = {
        row[0]: row[1:] for row in (await connection.execute(FIND_TASKS.format(ids=listed))).rows
    }
    wishes: set[int] = set()
    no_suspects: list[int] = []
    ends: dict[int, tuple[DeliveryWord, int]] = {}
    results: list[CancelDecision | StoreError] = []
    for order, task_id in zip(orders, task_ids, strict=True):
        app_id, raw_no, code, node, sent, abandoned = found.get(task_id, _NOBODYS)
        state, task_no = STATES[code], bytes(raw_no).decode()
        if app_id != order.app_id or task_id in ends:
            results.append(CancelDecision(state=None))
        elif state is TaskState.RUNNING:
            wishes.add(task_id)
            results.append(CancelDecision(state=state, task_id=task_id, task_no=task_no, node=node))
        elif state in WAITING:
            word = waiting_cancel_word(sent=bool(sent))
            ends[task_id] = (word, order.now)
            if abandoned:
                no_suspects.append(task_id)
            results.append(
                CancelDecision(
                    state=TaskState.CANCELLED, task_id=task_id, task_no=task_no, word=word
                )
            )
        else:
            results.append(CancelDecision(state=None))
    if wishes:
        await connection.execute(WISH.format(ids=ids(wishes)))
    if ends:
        rows = [(task_id, word.value, now) for task_id, (word, now) in ends.items()]
        await connection.execute(CANCEL.format(rows=table(rows)))
    await clear(connection, no_suspects)
    return results


async def _reap(
    connection: MySQLConnection, orders: Sequence[ReapOrder]
) -> list[list[ReapedTask] | StoreError]:
    return [await _reap_one(connection, order) for order in orders]


async def _reap_one(connection: MySQLConnection, order: ReapOrder) -> list[ReapedTask]:
    by = "" if order.node is None else f" AND node = {literal(order.node).decode()}"
    if order.alive:
        names = ", ".join(literal(name).decode() for name in order.alive)
        by += f" AND node NOT IN ({names})"
    statement = FIND_EXPIRED.format(
        expired_at=_AFTER_ALL if order.expired_at is None else order.expired_at,
        ids=ids({_NO_TASK, *order.exclude}),  # a list needs one
        by=by,
        limit=order.limit,
    )
    endings = _Endings()
    results = []
    rows = (await connection.execute(statement)).rows
    task_nos = {row[0]: bytes(row[-1]).decode() for row in rows}
    tasks = _running(rows)
    # Before any of them is ended: how a node ended shows in all its leases.
    nodes = sorted({task.node for task in tasks})
    ends = {node: await end_of(connection, node, now=order.now) for node in nodes}
    alone = await alone_before(connection, (task.task_id for task in tasks if task.abandoned))
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
        endings.add(ended, attempt, app_id=task.app_id)
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
    await endings.write(connection)
    await suspect(connection, suspects)
    await clear(connection, no_suspects)
    return results


async def _purge(
    connection: MySQLConnection, orders: Sequence[tuple[int, int]]
) -> list[int | StoreError]:
    """Each order is the time before which tasks ended, and how many at most."""
    counts: list[int | StoreError] = []
    for finished_before, limit in orders:
        statement = FIND_FINISHED.format(finished_before=finished_before, limit=limit)
        found = [task_id for (task_id,) in (await connection.execute(statement)).rows]
        if found:
            listed = ids(found)
            for deletion in PURGE:
                await connection.execute(deletion.format(ids=listed))
        counts.append(len(found))
    return counts


EXTENSION = Operation("extend", _extend)
SETTLEMENT = Operation("settle", _settle)
CANCELLATION = Operation("cancel", _cancel)
REAPING = Operation("reap", _reap)
PURGING = Operation("purge", _purge)

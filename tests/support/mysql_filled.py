"""A large MySQL database, and every statement that a store sends to one."""

from __future__ import annotations

import dataclasses

import pytest
import trio

from taskd.domain.model import App, CancelCertainty, ExistingTask, NewTask, TaskState
from taskd.stores.mysql.schema import migrate
from taskd.stores.mysql.store import MySQLStore
from taskd.stores.mysql.target import parse_mysql_url
from tests.support.stores import (
    T0,
    cancelled,
    lease_one,
    new_app,
    new_task,
    nonce,
    retrying,
    succeeded,
)
from tools.servers import Database

APPS = 50
RUNNING = 2_000
TABLES = (
    "tasks", "attempts", "contents", "nonces", "apps", "batches", "suspects", "node_ends",
)  # fmt: skip
_HEAVY_APP = APPS
"""Half of all tasks are this one's."""

_NUMBERS = """
CREATE TABLE digits (d INT NOT NULL PRIMARY KEY);
INSERT INTO digits VALUES (0), (1), (2), (3), (4), (5), (6), (7), (8), (9);
CREATE TABLE numbers (n INT NOT NULL PRIMARY KEY);
INSERT INTO numbers SELECT 1 + a.d + 10 * b.d + 100 * c.d + 1000 * e.d + 10000 * f.d + 100000 * g.d
FROM digits a, digits b, digits c, digits e, digits f, digits g
WHERE a.d + 10 * b.d + 100 * c.d + 1000 * e.d + 10000 * f.d + 100000 * g.d < {rows};
"""

# A third waits, some run, the rest is over; moments are spread over days.
_FILL = f"""
INSERT INTO apps (app_key, secret_key, name, link_url, step, retry_total, remark, created_at)
SELECT CONCAT('key-', n), 's', 'n', 'http://127.0.0.1:9/', 5, 3, '', {T0}
FROM numbers WHERE n <= {APPS} ORDER BY n;
INSERT INTO tasks (app_id, lane, moment, state, attempt, token, abandoned, node, leased_at,
    timeout_ms, runtime, created_at, task_no, name, content)
SELECT app_id, IF(n % 3 = 0, app_id, IF(n <= {RUNNING}, -1, -2)),
    {T0 - 500_000_000} + n * 1000, IF(n % 3 = 0, 0, IF(n <= {RUNNING}, 1, 3)), 1, 1, 1,
    IF(n % 3 <> 0 AND n <= {RUNNING}, 'node-x', NULL), {T0}, 5000, {T0}, {T0},
    CONCAT('no-', n), 'name', '{{{{"order":1001}}}}'
FROM (SELECT n, IF(n % 2 = 0, {_HEAVY_APP}, (n DIV 2) % {APPS} + 1) AS app_id
      FROM numbers) AS some ORDER BY n;
INSERT INTO attempts (task_id, attempt, started_at, ended_at, outcome)
SELECT id, 1, {T0}, {T0}, 'succeeded' FROM tasks WHERE lane = -2;
INSERT INTO contents SELECT id, content FROM tasks WHERE id <= {{contents}};
INSERT INTO nonces SELECT UNHEX(LPAD(n, 32, '0')), {T0} + n FROM numbers WHERE n <= {{nonces}};
INSERT INTO batches SELECT CONCAT('lane-', n), n, IF(n % 3 = 0, 0, UNIX_TIMESTAMP())
FROM numbers WHERE n <= 30;
INSERT INTO suspects SELECT id, 1 + n % 3, 1 FROM numbers JOIN tasks ON id = 3 * n
WHERE n <= {{suspects}};
INSERT INTO node_ends SELECT CONCAT('node-', n), 0, 9, {T0} + n FROM numbers WHERE n <= 20;
DROP TABLE digits, numbers;
"""


def filled(server: Database, rows: int, *, known: bool) -> str:
    """A database with so many tasks, of which the server has statistics or has not; its
    URL."""
    url = server.create_database()
    database = url.rpartition("/")[2]
    trio.run(migrate, parse_mysql_url(url))
    if not known:
        for table in TABLES:
            server.execute(
                f"ALTER TABLE {table} STATS_AUTO_RECALC=0; ANALYZE TABLE {table}",
                database=database,
            )
    some = dict.fromkeys(("contents", "nonces", "suspects"), rows // 4)
    fill = _NUMBERS.format(rows=rows) + _FILL.format(**some)
    server.execute(fill, database=database)
    if known:
        server.execute(f"ANALYZE TABLE {','.join(TABLES)}", database=database)
    return url


async def use_everything(store: MySQLStore) -> App:
    """Call every method of a store on a database that is `filled`, so that each of its
    statements is needed; one call after the other, the same each time. Returns the app
    that it made."""
    app = await store.create_app(new_app("fresh"), nonce("n-0", expires_at=1))
    assert await store.app_by_key("key-7") is not None
    assert await store.app_by_id(8) is not None
    assert len(await store.apps_by_key(["key-7", "key-9", "nobody's"])) == 2
    assert not await store.refresh_apps()
    tasks = [
        new_task(app, f"fresh-{number}", content=b"x" * (3_000 if number % 2 else 30))
        for number in range(40)
    ]
    ids = await _create(store, tasks)
    assert await store.count_waiting(app.id, limit=9) == 9
    await _create_again(store, tasks)
    due = await store.find_due(until=T0, limit_per_app=10)
    assert len(due) == 10 * (APPS + 1)
    await store.find_due(until=T0, after=T0 - 495_000_000, limit_per_app=10)
    leased = await store.lease(ids[:20], node="n", now=T0, expires_at=T0 + 30_000, room=10_000)
    assert len(leased) == 20
    (left, *_) = (task.lease.task_id for task in leased if task.left_bytes)
    assert len(await store.content(left) or b"") == 3_000
    await store.extend([each.lease for each in leased], expires_at=T0 + 60_000)
    await store.settle(succeeded(leased[0]))
    await store.settle(retrying(leased[1], due_at=T0 + 5))
    await store.settle(cancelled(leased[2], CancelCertainty.UNKNOWN))
    await store.request_cancel(app.id, leased[3].lease.task_id, now=T0)
    await store.request_cancel(app.id, ids[30], now=T0)
    assert (await store.request_cancel(app.id, task_no="fresh-31", now=T0)).task_id == ids[31]
    assert await store.task_detail(app.id, task_id=ids[0]) is not None
    assert await store.task_detail(app.id, task_no="fresh-1") is not None
    old = T0 - 499_000_000
    assert len(await store.reap(now=T0, expired_at=old, exclude=range(1, 300), limit=50)) == 50
    assert len(await store.reap(now=T0, expired_at=old, exclude=(), limit=9, node="node-x")) == 9
    assert await store.purge(finished_before=T0, limit=50) == 50
    assert await store.purge_nonces(now=T0 + 10, limit=10) == 10
    await _look_after(store)
    await store.time_ms()
    await store.probe()
    assert (await lease_one(store, ids[35])).attempt == 1
    unsuspected = await store.lease(
        ids[36:38], node="n", now=T0, expires_at=T0 + 30_000, suspects=False
    )
    assert len(unsuspected) == 2
    return app


async def _look_after(store: MySQLStore) -> None:
    """What follows the end of a node, and a clock that was set back."""
    suspect = await store.request_cancel(2, 3, now=T0)
    assert suspect.state is TaskState.CANCELLED
    await store.note_stopping("node-7", now=T0)
    assert len((await store.find_suspects(now=T0, after=0, limit=10)).waiting) == 30
    after = None
    for _ in range(3):
        brought = await store.bring_forward(now=T0 - 495_000_000, after=after, limit=20)
        after = brought.reached
        assert after is not None
    assert await store.last_moment() is not None


async def _create(store: MySQLStore, tasks: list[NewTask]) -> list[int]:
    ids: list[int] = []
    for number, task in enumerate(tasks[:10]):
        ids.append(await store.create_task(task, nonce(f"n-fresh-{number}", expires_at=1)))
    ids += [each for each in await store.create_tasks(tasks[10:]) if isinstance(each, int)]
    assert len(ids) == len(tasks)
    return ids


async def _create_again(store: MySQLStore, tasks: list[NewTask]) -> None:
    for number in range(2):
        with pytest.raises(Exception, match="taskNo already"):
            await store.create_task(tasks[number])
        with pytest.raises(Exception, match="used before"):
            await store.use_nonce(nonce(f"n-fresh-{number}"))
    # Some of which are there and some are not.
    late = [dataclasses.replace(tasks[0], task_no=f"late-{number}") for number in range(5)]
    added = await store.create_tasks([*tasks[:30], *late])
    assert [isinstance(each, ExistingTask) for each in added] == [True] * 30 + [False] * 5


async def move_some(store: MySQLStore, app: App) -> None:
    """Take some out and put it in again, and some that is not there yet: every method of
    an archive."""
    archive = store.archive()
    assert await archive.running() > 0
    apps = await archive.apps_after(1, limit=10)
    new = dataclasses.replace(app, id=app.id + 1_000_000, app_key="put")
    await archive.put_apps([*apps, new])
    some = await archive.tasks_after(0, limit=20)
    highest = await archive.highest_task_id()
    # One that waits behind very many that are over.
    last = await archive.tasks_after(highest - 6, limit=20)
    assert last
    put = [
        dataclasses.replace(
            some[0], id=highest + 1 + number, app_id=new.id, content=b"x" * 3_000 * (number + 1),
            attempts=last[0].attempts,
            task_no=f"put-{number}",
        )
        for number in range(3)
    ]  # fmt: skip
    await archive.put_tasks([*some, *put])
    await archive.put_highest_task_id(highest + 10)

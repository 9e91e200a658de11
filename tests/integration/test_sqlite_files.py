"""The files of a SQLite store: who may open them, how, and what survives."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from taskd.domain.model import SuccessRule
from taskd.errors import DuplicateTaskNo, StoreRefused, StoreUnavailable
from taskd.stores.sqlite.backup import back_up
from taskd.stores.sqlite.checkpoint import Checkpointer
from taskd.stores.sqlite.guard import FileGuard
from taskd.stores.sqlite.opening import lock_database
from taskd.stores.sqlite.schema import (
    APPLICATION_ID,
    INITIAL,
    MIGRATIONS,
    Migration,
    check_file,
    connect,
)
from taskd.stores.sqlite.store import SQLiteStore
from tests.support.stores import T0, add, detail, lease_one, new_app, new_task, succeeded

_HOLD = """
import sys, trio
from pathlib import Path
from taskd.stores.sqlite.store import SQLiteStore

async def main():
    store = await SQLiteStore.open(Path(sys.argv[1]))
    print("open", flush=True)
    await trio.sleep_forever()

trio.run(main)
"""

_WRITE = """
import sys, trio
from pathlib import Path
from taskd.stores.sqlite.store import SQLiteStore
from tests.support.stores import lease_one, new_app, new_task, succeeded

async def main():
    store = await SQLiteStore.open(Path(sys.argv[1]))
    app = await store.app_by_key("key-1") or await store.create_app(new_app())

    async def write(lane):
        for number in range(10**6):
            task_no = f"{sys.argv[2]}-{lane}-{number}"
            task_id = await store.create_task(new_task(app, task_no))
            print("made", task_id, task_no, flush=True)
            if number % 2:
                await store.settle(succeeded(await lease_one(store, task_id)))
                print("done", task_id, task_no, flush=True)

    async with trio.open_nursery() as nursery:
        for lane in range(4):
            nursery.start_soon(write, lane)

trio.run(main)
"""


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(60):
            await test()

    trio.run(bounded)


async def make(path: Path, migrations: tuple[Migration, ...] = MIGRATIONS) -> None:
    store = await SQLiteStore.open(path, migrations=migrations)
    await store.aclose()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


async def test_folder_and_files_are_made_for_this_user_only(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    before = os.umask(0)
    try:
        store = await SQLiteStore.open(folder / "taskd.db")
        await store.create_app(new_app())
    finally:
        os.umask(before)
    assert mode(tmp_path / "a") == mode(folder) == 0o700
    names = {path.name for path in folder.iterdir()}
    assert names == {"taskd.db", "taskd.db-wal", "taskd.db-shm", "taskd.db.lock"}
    assert {mode(path) for path in folder.iterdir()} == {0o600}
    await store.aclose()


async def test_the_pragmas_are_those_that_durability_needs(tmp_path: Path) -> None:
    store = await SQLiteStore.open(tmp_path / "taskd.db")
    await store.create_app(new_app())
    connection = store._writer._connection
    assert connection is not None
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (1,)  # NORMAL
    await store.aclose()


async def test_callers_at_once_share_a_commit(tmp_path: Path) -> None:
    store = await SQLiteStore.open(tmp_path / "taskd.db")
    app = await store.create_app(new_app())
    before = store.statistics()
    async with trio.open_nursery() as nursery:
        for number in range(400):
            nursery.start_soon(store.create_task, new_task(app, f"no-{number}"))
    after = store.statistics()
    assert after.writes - before.writes == 400
    assert after.batches - before.batches < 40
    await store.aclose()


def test_a_second_opening_is_refused_and_names_the_holder(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path / "taskd.db")],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"

        async def refused() -> None:
            with pytest.raises(StoreRefused) as raised:
                await make(tmp_path / "taskd.db")
            assert f"process {holder.pid}" in str(raised.value)
            assert "\n" not in str(raised.value)

        run(refused)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        if holder.stdout is not None:
            holder.stdout.close()
    # However the holder ends, its lock is gone with it.
    run(lambda: make(tmp_path / "taskd.db"))


async def test_a_file_of_version_1_keeps_its_apps_and_tasks(tmp_path: Path) -> None:
    path = tmp_path / "taskd.db"
    connection = connect_new(path)
    for statement in (
        *INITIAL,
        "INSERT INTO apps VALUES (7, 'key-1', 'secret', 'n', 'http://h/', 5, 3, 'r', 1)",
        """INSERT INTO tasks (id, app_id, state, due_at, timeout_ms, runtime, created_at, task_no,
        name, content) VALUES (42, 7, 0, 1, 1000, 1, 1, 'order-1', 'n', '1')""",
        f"PRAGMA application_id = {APPLICATION_ID}",
        "PRAGMA user_version = 1",
    ):
        connection.execute(statement)
    connection.close()

    store = await SQLiteStore.open(path)
    app = await store.app_by_key("key-1")
    assert app is not None
    assert (app.id, app.link_url, app.success) == (7, "http://h/", SuccessRule.BODY)
    assert (await lease_one(store, 42)).app == app
    other = await store.create_app(new_app("key-2", success=SuccessRule.STATUS))
    await store.aclose()
    store = await SQLiteStore.open(path)
    assert await store.app_by_key("key-2") == other
    await store.aclose()


def connect_new(path: Path) -> sqlite3.Connection:
    path.touch()
    return connect(path, mode="rw")


async def test_migrations_go_forward_in_order_and_keep_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "taskd.db"
    second: Migration = (
        "CREATE TABLE second (a INTEGER)",
        "INSERT INTO second SELECT count(*) FROM tasks",
    )
    third: Migration = ("INSERT INTO second SELECT a + 100 FROM second",)

    store = await SQLiteStore.open(path)
    app = await store.create_app(new_app())
    ids = await add(store, app, 3)
    await store.aclose()
    store = await SQLiteStore.open(path, migrations=(*MIGRATIONS, second, third))
    assert (await detail(store, app, ids[0])).task_no == "order-0"
    await store.aclose()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT a FROM second ORDER BY a").fetchall() == [(3,), (103,)]
    assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 2,)
    connection.close()


async def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "taskd.db"
    broken: Migration = ("CREATE TABLE half (a INTEGER)", "INSERT INTO nowhere VALUES (1)")

    await make(path)
    with pytest.raises(StoreUnavailable):
        await make(path, (*MIGRATIONS, broken))
    await make(path)
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM sqlite_schema WHERE name = 'half'").fetchall() == []
    connection.close()


async def test_a_newer_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "taskd.db"

    await make(path, (*MIGRATIONS, ("CREATE TABLE of_the_future (a INTEGER)",)))
    before = path.read_bytes()
    with pytest.raises(StoreRefused, match="newer taskd"):
        await make(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("other", ["text", "sqlite"])
async def test_a_file_of_another_program_is_refused_and_left_alone(
    tmp_path: Path, other: str
) -> None:
    path = tmp_path / "taskd.db"
    if other == "text":
        path.write_text("this is no database, it is a letter to a friend\n" * 50)
    else:
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE letters (a TEXT)")
        connection.commit()
        connection.close()
    before = path.read_bytes()

    with pytest.raises(StoreRefused, match="not a taskd database"):
        await make(path)
    assert path.read_bytes() == before


async def test_ids_are_never_given_twice(tmp_path: Path) -> None:
    path = tmp_path / "taskd.db"

    store = await SQLiteStore.open(path)
    app = await store.create_app(new_app())
    ids = await add(store, app, 5)
    for task_id in ids:
        await store.settle(succeeded(await lease_one(store, task_id)))
    assert await store.purge(finished_before=T0 + 10**9, limit=100) == 5
    await store.aclose()
    store = await SQLiteStore.open(path)
    assert await store.create_task(new_task(app, "order-0")) > max(ids)
    await store.aclose()


def test_what_was_acknowledged_survives_a_kill_and_nothing_is_half(tmp_path: Path) -> None:
    """A process that only writes is killed at any moment, ten times over."""
    path = tmp_path / "taskd.db"
    told: list[list[str]] = []
    for number in range(10):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITE, str(path), str(number)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        told += [writer.stdout.readline().split() for _ in range(30 + 17 * number)]
        writer.kill()
        told += [line.split() for line in writer.stdout.read().splitlines()]
        writer.wait()
        writer.stdout.close()

    async def main() -> None:
        store = await SQLiteStore.open(path)
        app = await store.app_by_key("key-1")
        assert app is not None
        for line in told:
            if len(line) != 3:
                continue  # the kill came into the middle of a line
            what, task_id, task_no = line
            task = await detail(store, app, int(task_id))
            assert task.task_no == task_no
            if what == "done":
                assert task.state == "succeeded"
            assert (task.state == "succeeded") == (len(task.attempts) == 1)
        with pytest.raises(DuplicateTaskNo):
            await store.create_task(new_task(app, told[0][2]))
        await store.aclose()

    assert len(told) > 300
    run(main)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = await SQLiteStore.open(tmp_path / "taskd.db")
    app = await store.create_app(new_app())
    await store.aclose()
    for call in (
        store.create_task(new_task(app)),
        store.find_due(until=T0, limit_per_app=1),
        store.app_by_key("key-1"),
        store.probe(),
    ):
        with pytest.raises(StoreUnavailable, match="closed"):
            await call


async def test_the_write_ahead_log_stays_short_under_constant_load(tmp_path: Path) -> None:
    store = await SQLiteStore.open(tmp_path / "taskd.db")
    app = await store.create_app(new_app())
    largest = 0

    async def write(lane: int) -> None:
        nonlocal largest
        for number in range(500):
            await store.create_task(
                new_task(app, f"{lane}-{number}", content=b'"' + b"x" * 9_000 + b'"')
            )
            largest = max(largest, store.statistics().wal_bytes)

    async with trio.open_nursery() as nursery:
        for lane in range(20):
            nursery.start_soon(write, lane)
    assert largest < 100 * 2**20
    await store.aclose()


def test_the_log_is_copied_by_what_has_changed_and_not_by_calls(tmp_path: Path) -> None:
    database = tmp_path / "taskd.db"
    lock = lock_database(database)
    guard = FileGuard.open(database, lock)
    checkpointer = Checkpointer(guard)
    try:
        with contextlib.closing(connect(database, mode="rw")) as connection:
            connection.execute("CREATE TABLE t (n INTEGER PRIMARY KEY)")
            _add_rows(connection, 4_000)
            checkpointer.committed(connection)
            assert not checkpointer._wanted.is_set()
            connection.execute("DELETE FROM t")  # one call, as a purge is
            checkpointer.committed(connection)
            assert checkpointer._wanted.is_set()
            checkpointer._wanted.clear()
            checkpointer.committed(connection)
            assert not checkpointer._wanted.is_set()
        # The writer's connection may be made anew, and counts from nothing then.
        with contextlib.closing(connect(database, mode="rw")) as connection:
            _add_rows(connection, 5_000)
            checkpointer.committed(connection)
            assert checkpointer._wanted.is_set()
    finally:
        guard.close(None)
        lock.release()


def _add_rows(connection: sqlite3.Connection, rows: int) -> None:
    connection.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT ?) "
        "INSERT INTO t SELECT i FROM n",
        (rows,),
    )


@pytest.mark.parametrize(
    ("make", "what"), [(Path.mkdir, "a folder"), (os.mkfifo, "a pipe or a device")]
)
def test_a_path_that_is_no_file_is_named(
    tmp_path: Path, make: Callable[[Path], None], what: str
) -> None:
    """SQLite would wait for a pipe, and no signal ends that."""
    path = tmp_path / "taskd.db"
    make(path)

    async def start() -> None:
        await SQLiteStore.open(path)

    for opening in (
        lambda: trio.run(start),
        lambda: check_file(path),
        lambda: back_up(path, tmp_path / "backup.db"),
    ):
        with pytest.raises(StoreRefused, match=rf"/taskd\.db is {what}, and must be a file$"):
            opening()
    assert list(tmp_path.iterdir()) == [path]

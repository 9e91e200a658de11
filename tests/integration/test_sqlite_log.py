"""The write-ahead log: short, but for a reader that does not end; and that is told."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from taskd.domain.model import App
from taskd.stores.sqlite import checkpoint, wal_watch
from taskd.stores.sqlite.opening import lock_database
from taskd.stores.sqlite.store import SQLiteStore
from tests.support.stores import new_app, new_task

_MIB = 2**20
_BIG = b'"' + b"x" * 100_000 + b'"'

_READ = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN")
connection.execute("SELECT count(*) FROM tasks").fetchone()
print("reading", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def forgotten_reader(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Somebody has begun a transaction in a shell, has looked, and has gone home."""
    process = subprocess.Popen(
        [sys.executable, "-c", _READ, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it comes sooner and smaller than in earnest."""
    monkeypatch.setattr(wal_watch, "HELD_S", 0.2)
    monkeypatch.setattr(wal_watch, "HELD_BYTES", _MIB)
    monkeypatch.setattr(wal_watch, "CUT_FROM", 2 * _MIB)
    monkeypatch.setattr(wal_watch, "CUT_TO", _MIB)
    monkeypatch.setattr(wal_watch, "_CUT_STEP", 4 * _MIB)
    monkeypatch.setattr(checkpoint, "_LOOK_EVERY_S", 0.05)


async def write(store: SQLiteStore, app: App, name: str, count: int) -> None:
    for number in range(count):
        await store.create_task(new_task(app, f"{name}-{number}", content=_BIG))


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await trio.sleep(0.02)


async def test_a_forgotten_reader_is_named_and_the_log_is_cut_after_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "taskd.db"
    caplog.set_level("INFO")

    store = await SQLiteStore.open(path)
    app = await store.create_app(new_app())
    await write(store, app, "before", 3)
    with forgotten_reader(path) as reader:
        await write(store, app, "beside", 150)
        await until(store.degraded)
        told = str(store.degraded())
        assert f"process {reader.pid} (python" in told
        assert "can't be shortened" in told
        assert store.statistics().wal_bytes > 15 * _MIB
    # Nobody writes any more: it is cut all the same.
    await until(lambda: store.degraded() is None)
    await until(lambda: store.statistics().wal_bytes <= _MIB)
    await write(store, app, "after", 3)
    await store.aclose()
    (record,) = [one for one in caplog.records if "can't be shortened" in one.getMessage()]
    assert "(python" in record.fields["held_by"]  # type: ignore[attr-defined]  # see `log_event`
    assert sum("can be shortened again" in message for message in caplog.messages) == 1
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT count(*) FROM tasks").fetchall() == [(156,)]


async def test_a_log_is_cut_beside_a_load(tmp_path: Path) -> None:
    path = tmp_path / "taskd.db"

    store = await SQLiteStore.open(path)
    app = await store.create_app(new_app())
    with forgotten_reader(path):
        await write(store, app, "beside", 150)
        await until(store.degraded)
    async with trio.open_nursery() as nursery:

        async def go_on() -> None:
            for number in range(10**6):
                await store.create_task(new_task(app, f"after-{number}"))

        nursery.start_soon(go_on)
        await until(lambda: store.statistics().wal_bytes <= 2 * _MIB)
        nursery.cancel_scope.cancel()
    await store.aclose()


async def test_every_process_of_a_daemon_tells_of_it(tmp_path: Path) -> None:
    path = tmp_path / "taskd.db"

    lock = await trio.to_thread.run_sync(lock_database, path)
    stores = [await SQLiteStore.join(path, lock) for _ in range(2)]
    app = await stores[0].create_app(new_app())
    with forgotten_reader(path) as reader:
        for store in stores:
            await write(store, app, str(id(store)), 60)
        for store in stores:
            await until(store.degraded)
            assert f"process {reader.pid} (python" in str(store.degraded())
    await until(lambda: [store.degraded() for store in stores] == [None, None])
    await until(lambda: stores[0].statistics().wal_bytes <= 2 * _MIB)
    for store in stores:
        await store.aclose()
    lock.release()


async def test_a_reader_that_ends_in_time_is_not_spoken_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wal_watch, "HELD_S", 30.0)
    path = tmp_path / "taskd.db"

    store = await SQLiteStore.open(path)
    app = await store.create_app(new_app())
    with forgotten_reader(path):
        await write(store, app, "beside", 60)
        assert store.degraded() is None
    await until(lambda: store.statistics().wal_bytes <= _MIB)
    assert store.degraded() is None
    await store.aclose()
    assert "shortened" not in caplog.text

"""Where a SQLite store writes, and what waits for which sync, with a disk that fails or hangs."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from taskd.domain.model import App
from taskd.errors import StoreError, StoreUnavailable
from taskd.stores.batching import BATCH, Operation
from taskd.stores.operations.session import Session
from taskd.stores.sqlite import checkpoint, writer
from taskd.stores.sqlite.files import WriteTurn
from taskd.stores.sqlite.header import LOG_HEADER, frame_offset
from taskd.stores.sqlite.opening import lock_database
from taskd.stores.sqlite.store import SQLiteStore
from taskd.stores.sqlite.writer import Writer
from tests.support.api import until
from tests.support.crashes import start
from tests.support.stores import new_app, new_task

UNKNOWN = "whether this was kept is not known"
NOTHING = "nothing was written"


class Disk:
    """Syncs a log as a test says.

    Attributes:
        syncs: how many have begun.
        takes_s: how long each takes.
        error: what they fail with.
        database_error: what a sync of the database fails with.
        gate: after `hang`, they hang until it is set.
    """

    def __init__(self) -> None:
        self.syncs = self._before = 0
        self.takes_s = 0.0
        self.error: OSError | None = None
        self.database_error: OSError | None = None
        self.gate = threading.Event()
        self.gate.set()
        self._fdatasync = os.fdatasync

    def hang(self) -> None:
        self._before = self.syncs
        self.gate.clear()

    def is_hanging(self) -> bool:
        return self.syncs > self._before

    def fdatasync(self, fd: int) -> None:
        name = Path(f"/proc/self/fd/{fd}").readlink().name
        if name.endswith("-wal"):
            self.syncs += 1
            self.gate.wait()
            time.sleep(self.takes_s)  # noqa: TID251 - in the writer's thread
            if self.error is not None:
                raise self.error
        elif self.database_error is not None and name.endswith(".db"):
            raise self.database_error
        self._fdatasync(fd)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk()
    monkeypatch.setattr(os, "fdatasync", made.fdatasync)
    yield made
    made.gate.set()


@asynccontextmanager
async def opened(tmp_path: Path) -> AsyncIterator[tuple[SQLiteStore, App]]:
    """A store that has written in the loop, so that the next transaction may be there too."""
    store = await SQLiteStore.open(tmp_path / "taskd.db")
    try:
        app = await store.create_app(new_app())
        await store.create_task(new_task(app, "first"))
        yield store, app
    finally:
        await store.aclose()


async def spin(for_s: float) -> None:
    """Hold the thread up."""
    until_s = time.perf_counter() + for_s
    while time.perf_counter() < until_s:
        pass


def noting(
    name: str = "noting", *, quick: bool = True, takes_s: float = 0.0, weight: int = 0
) -> tuple[Operation[None, None], list[bool]]:
    """An operation, and whether it ran in the event loop's thread, each time that it ran."""
    ran: list[bool] = []

    async def run(session: Session, arguments: Sequence[None]) -> list[StoreError | None]:
        ran.append(threading.current_thread() is threading.main_thread())
        await session.execute("INSERT OR REPLACE INTO meta (name, value) VALUES ('noted', 1)")
        await spin(takes_s)
        return [None] * len(arguments)

    return Operation(name, run, lambda _: weight, quick=quick), ran


async def test_little_is_written_in_the_loop_and_all_else_in_the_thread(tmp_path: Path) -> None:
    async with opened(tmp_path) as (store, _):
        for quick, weight, here in [(True, 0, True), (False, 0, False), (True, 10**6, False)]:
            operation, ran = noting(quick=quick, weight=weight)
            await store.write(operation, None)
            assert ran == [here]


async def test_a_call_that_is_not_quick_takes_its_batch_to_the_thread(tmp_path: Path) -> None:
    async with opened(tmp_path) as (store, _):
        (quick, quick_ran), (slow, slow_ran) = noting("quick"), noting("slow", quick=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.write, quick, None)
            nursery.start_soon(store.write, slow, None)
        assert (quick_ran, slow_ran) == ([False], [False])


async def test_once_the_loop_was_held_up_the_thread_writes_for_a_while(tmp_path: Path) -> None:
    async with opened(tmp_path) as (store, _):
        slow, slow_ran = noting(takes_s=0.01)
        quick, quick_ran = noting()
        await store.write(slow, None)
        await store.write(quick, None)
        assert (slow_ran, quick_ran) == ([True], [False])
        with trio.fail_after(10):
            while not quick_ran[-1]:
                await trio.sleep(0.05)
                await store.write(quick, None)


async def test_the_loop_does_not_wait_for_the_lock_of_another_program(tmp_path: Path) -> None:
    async with opened(tmp_path) as (store, _):
        operation, ran = noting()
        with contextlib.closing(sqlite3.connect(tmp_path / "taskd.db")) as other:
            other.isolation_level = None
            other.execute("BEGIN IMMEDIATE")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.write, operation, None)
                passes_until = trio.current_time() + 0.2
                longest = 0.0
                while trio.current_time() < passes_until:
                    before = trio.current_time()
                    await trio.sleep(0.001)
                    longest = max(longest, trio.current_time() - before)
                assert ran == []
                other.execute("ROLLBACK")
        assert ran == [False]
        assert longest < 0.15


async def test_the_loop_takes_its_turn_only_if_it_is_free(tmp_path: Path) -> None:
    async with opened(tmp_path) as (store, _):
        mine, others = (WriteTurn(tmp_path / "taskd.db") for _ in range(2))
        store._writer._turn = mine
        operation, ran = noting()
        await store.write(operation, None)
        with others:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.write, operation, None)
                await trio.sleep(0.1)
                assert ran == [True]
                others.release()
        assert ran == [True, False]
        mine.close()
        others.close()


async def test_a_commit_that_begins_the_log_anew_is_made_in_the_thread(tmp_path: Path) -> None:
    async with opened(tmp_path) as (store, _):
        operation, ran = noting()
        await store.write(operation, None)
        with contextlib.closing(sqlite3.connect(tmp_path / "taskd.db")) as other:
            busy, frames, copied = other.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            assert (busy, frames) == (0, copied)
        await store.write(operation, None)
        await store.write(operation, None)
        assert ran == [True, False, True]


async def test_a_transaction_that_fails_in_the_loop_is_tried_again_in_the_thread(
    tmp_path: Path,
) -> None:
    ran: list[bool] = []

    async def run(session: Session, arguments: Sequence[None]) -> list[StoreError | None]:
        await session.execute("INSERT INTO meta (name, value) VALUES ('once', 1)")
        ran.append(threading.current_thread() is threading.main_thread())
        if ran[-1]:
            raise sqlite3.OperationalError("the disk is full")
        return [None] * len(arguments)

    async with opened(tmp_path) as (store, _):
        await store.write(Operation("fails", run, quick=True), None)
        assert ran == [True, False]
        assert store.statistics().failures == 0


async def test_nobody_is_answered_before_the_sync(tmp_path: Path, disk: Disk) -> None:
    async with opened(tmp_path) as (store, app):
        told: list[str] = []

        async def tell(what: str, call: Callable[[], object]) -> None:
            await call()  # type: ignore[misc]
            told.append(what)

        disk.hang()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell, "create", lambda: store.create_task(new_task(app, "a")))
            await until(disk.is_hanging)
            # It is committed, and a power cut may undo it.
            with contextlib.closing(sqlite3.connect(tmp_path / "taskd.db")) as other:
                assert other.execute("SELECT 1 FROM tasks WHERE task_no = 'a'").fetchall()
            nursery.start_soon(tell, "detail", lambda: store.task_detail(app.id, task_no="a"))
            nursery.start_soon(tell, "next", lambda: store.create_task(new_task(app, "b")))
            await trio.sleep(0.1)
            assert told == []
            # The next commit waits for the sync, so that no power cut undoes more than one.
            with contextlib.closing(sqlite3.connect(tmp_path / "taskd.db")) as other:
                assert not other.execute("SELECT 1 FROM tasks WHERE task_no = 'b'").fetchall()
            disk.gate.set()
        assert sorted(told) == ["create", "detail", "next"]


async def test_reads_sync_nothing_that_is_durable(tmp_path: Path, disk: Disk) -> None:
    async with opened(tmp_path) as (store, app):
        before = disk.syncs
        for _ in range(5):
            assert await store.task_detail(app.id, task_no="first") is not None
        assert disk.syncs == before


async def test_what_another_process_has_committed_is_synced_before_it_is_told(
    tmp_path: Path, disk: Disk
) -> None:
    async with opened(tmp_path) as (store, app):
        before = disk.syncs
        with contextlib.closing(sqlite3.connect(tmp_path / "taskd.db")) as other:
            other.execute("PRAGMA synchronous = OFF")
            other.execute("UPDATE tasks SET name = 'changed'")
            other.commit()
        assert await name_of(store, app, "first") == "changed"
        assert disk.syncs == before + 1


async def test_what_is_committed_after_the_index_was_made_anew_is_synced_before_it_is_told(
    tmp_path: Path, disk: Disk
) -> None:
    """SQLite makes it anew after a process was killed while it changed it, and counts the
    commits from 0 then."""
    path = tmp_path / "taskd.db"
    async with opened(tmp_path) as (store, app):
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("PRAGMA synchronous = OFF")
            for _ in range(5):
                other.execute("UPDATE tasks SET attempt = attempt + 1")
            await store.create_task(new_task(app, "a"))
            before, count = disk.syncs, commits(path)
            with (tmp_path / "taskd.db-shm").open("r+b") as index:
                index.seek(48 + 8)  # the second copy of its header
                index.write(bytes(4))
            assert store._guard.position() is None
            other.execute("UPDATE tasks SET name = 'changed'")
            assert commits(path) < count
            for _ in range(2):
                assert await name_of(store, app, "a") == "changed"
                assert disk.syncs == before + 1


async def test_what_a_log_begun_anew_holds_is_synced_before_it_is_told(
    tmp_path: Path, disk: Disk
) -> None:
    """It has fewer frames than the log before, which was synced."""
    async with opened(tmp_path) as (store, app):
        for number in range(20):
            await store.create_task(new_task(app, str(number)))
        with contextlib.closing(sqlite3.connect(tmp_path / "taskd.db")) as other:
            other.execute("PRAGMA synchronous = OFF")
            assert other.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0] == 0
            before = disk.syncs
            other.execute("UPDATE tasks SET name = 'changed' WHERE task_no = '1'")
            other.commit()
        for _ in range(2):
            assert await name_of(store, app, "1") == "changed"
            assert disk.syncs == before + 1


async def name_of(store: SQLiteStore, app: App, task_no: str) -> str | None:
    """The name that a detail tells."""
    detail = await store.task_detail(app.id, task_no=task_no)
    return None if detail is None else detail.name


def commits(path: Path) -> int:
    """How many SQLite has counted in the log's index."""
    with Path(f"{path}-shm").open("rb") as index:
        index.seek(8)
        return int.from_bytes(index.read(4), sys.byteorder)


async def test_readers_leave_those_that_write_their_place(tmp_path: Path, disk: Disk) -> None:
    """While another process commits, each read has something to sync."""
    done = threading.Event()

    def commit() -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "taskd.db")) as other:
            other.execute("PRAGMA synchronous = OFF")
            while not done.wait(0.0005):
                other.execute("UPDATE tasks SET attempt = attempt + 1")
                other.commit()

    async with opened(tmp_path) as (store, app):

        async def read() -> None:
            while True:
                await store.task_detail(app.id, task_no="first")

        thread = threading.Thread(target=commit)
        thread.start()
        disk.takes_s = 0.005
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(read)
                await trio.sleep(0.2)
                with trio.fail_after(3):
                    for number in range(5):
                        await store.create_task(new_task(app, f"created {number}"))
                nursery.cancel_scope.cancel()
        finally:
            done.set()
            await trio.to_thread.run_sync(thread.join)


async def test_calls_behind_a_batch_of_cancelled_ones_are_written(
    tmp_path: Path, disk: Disk
) -> None:
    async with opened(tmp_path) as (store, app):
        operation, _ = noting()
        written, gone = trio.Event(), trio.CancelScope()

        async def write() -> None:
            await store.write(operation, None)
            written.set()

        async def leave() -> None:
            with gone:
                async with trio.open_nursery() as callers:
                    for _ in range(BATCH):
                        callers.start_soon(store.write, operation, None)

        disk.hang()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.create_task, new_task(app, "a"))
            await until(disk.is_hanging)
            nursery.start_soon(leave)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(write)
            await trio.testing.wait_all_tasks_blocked()
            gone.cancel()
            await trio.testing.wait_all_tasks_blocked()
            disk.gate.set()
            with trio.fail_after(0.5):
                await written.wait()


@pytest.mark.parametrize("fails", [False, True])
async def test_calls_that_are_tried_alone_are_synced_one_by_one(
    tmp_path: Path, disk: Disk, fails: bool
) -> None:
    syncs: list[int] = []
    told: dict[int, str] = {}

    async def run(session: Session, arguments: Sequence[int]) -> list[StoreError | None]:
        if len(arguments) > 1 or arguments == [3]:
            raise ValueError("this can't be written")
        await session.execute("INSERT OR REPLACE INTO meta (name, value) VALUES ('noted', 1)")
        syncs.append(disk.syncs)
        if fails and arguments == [2]:
            disk.error = OSError(errno.EIO, os.strerror(errno.EIO))
        if fails and arguments == [4]:
            disk.error = None
        return [None] * len(arguments)

    operation = Operation("alone", run, quick=True)
    async with opened(tmp_path) as (store, _):

        async def write(number: int) -> None:
            try:
                await store.write(operation, number)
                told[number] = "written"
            except (ValueError, StoreUnavailable) as error:
                told[number] = str(error)

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(write, number)
        disk.error = None
        if fails:
            # Linux tells of it once: the sync of all of them at the end would have succeeded.
            assert len(told) == 6
            assert all(UNKNOWN in message for message in told.values()), told
        else:
            expected = dict.fromkeys(range(6), "written") | {3: "this can't be written"}
            assert told == expected
            assert len(set(syncs)) == len(syncs) == 5


async def test_a_failed_sync_is_told_to_all_it_covers_and_the_log_is_restored(
    tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with opened(tmp_path) as (store, app):
        disk.error = OSError(errno.EIO, os.strerror(errno.EIO))
        with pytest.raises(StoreUnavailable, match=f"could not be synced.*{UNKNOWN}"):
            await store.create_task(new_task(app, "a"))
        # While the disk fails, nothing is written, and nothing that may be undone is told.
        for task_no in "bc":
            with pytest.raises(StoreUnavailable, match=f"nor restored: .*{NOTHING}"):
                await store.create_task(new_task(app, task_no))
        with pytest.raises(StoreUnavailable):
            await store.task_detail(app.id, task_no="a")
        assert store.statistics().failures >= 3
        disk.error = None
        assert await store.create_task(new_task(app, "d"))
        assert await store.task_detail(app.id, task_no="a") is not None
        for task_no in "bc":
            assert await store.task_detail(app.id, task_no=task_no) is None
        operation, ran = noting()
        await store.write(operation, None)
        assert ran == [True]
    assert "could not be synced" in caplog.text
    assert "written anew and synced: writes are taken again" in caplog.text
    assert await trio.to_thread.run_sync(start, tmp_path / "taskd.db") == {"first", "a", "d"}


@pytest.mark.parametrize("what", ["a page", "the salts"])
async def test_what_the_disk_has_lost_is_not_restored_and_what_was_told_is_there(
    tmp_path: Path, disk: Disk, what: str
) -> None:
    path, log = tmp_path / "taskd.db", tmp_path / "taskd.db-wal"
    async with opened(tmp_path) as (store, app):
        disk.error = OSError(errno.EIO, os.strerror(errno.EIO))
        index = store._guard.log_index()
        assert index is not None
        kept = frame_offset(index.frames, index.page_size)
        with pytest.raises(StoreUnavailable, match=UNKNOWN):
            await store.create_task(new_task(app, "a"))
        with log.open("r+b") as file:
            file.seek(kept + (24 if what == "a page" else 8))
            file.write(bytes(16))
        disk.error = None
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match=r"the disk has lost page .*restart taskd"):
                await store.create_task(new_task(app, "b"))
        await trio.sleep(1.2)  # the checkpointer looks, and copies nothing
        assert LOG_HEADER < kept <= log.stat().st_size
    assert await trio.to_thread.run_sync(start, path) == {"first"}


def failing_once(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Have SQLite's next checkpoint fail to sync a file, as it tells that."""
    copy, failed = checkpoint._checkpoint, threading.Event()

    def fail(connection: sqlite3.Connection) -> tuple[int, int, int]:
        if failed.is_set():
            return copy(connection)
        failed.set()
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise error

    monkeypatch.setattr(checkpoint, "_checkpoint", fail)
    return failed


@pytest.mark.parametrize("who", ["the thread", "the writer"])
async def test_the_log_is_restored_after_a_checkpoint_that_could_not_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, who: str
) -> None:
    """The next checkpoint would sync nothing of what failed, and copy it all the same."""
    async with opened(tmp_path) as (store, app):
        failed = failing_once(monkeypatch)
        if who == "the thread":
            store._checkpointer.hurry()
            await until(failed.is_set)
        else:
            store._checkpointer.nearly_done = True
            await store.create_task(new_task(app, "before"))
        await until(lambda: store._guard.in_doubt is not None)
        assert await store.create_task(new_task(app, "a"))
        assert store._guard.in_doubt is None
    assert "could not be synced: disk I/O error" in caplog.text
    assert "written anew and synced" in caplog.text


async def test_a_process_that_joins_restores_what_another_could_not_sync(
    tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    """Linux tells nothing of the failure to who opens the log after it."""
    path = tmp_path / "taskd.db"
    lock = await trio.to_thread.run_sync(lock_database, path)
    first = await SQLiteStore.join(path, lock)
    app = await first.create_app(new_app())
    disk.error = OSError(errno.EIO, os.strerror(errno.EIO))
    with pytest.raises(StoreUnavailable, match=UNKNOWN):
        await first.create_task(new_task(app, "a"))
    second = await SQLiteStore.join(path, lock)
    with pytest.raises(StoreUnavailable, match=f"nor restored.*{NOTHING}"):
        await second.create_task(new_task(app, "b"))
    disk.error = None
    assert "written anew" not in caplog.text
    assert await second.create_task(new_task(app, "c"))
    assert "written anew and synced" in caplog.text
    third = await SQLiteStore.join(path, lock)
    assert third._guard.in_doubt is None
    for store in (first, second, third):
        await store.create_task(new_task(app, str(id(store))))
        await store.aclose()
    lock.release()


async def test_a_start_syncs_the_log_that_another_could_not(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "taskd.db"
    async with opened(tmp_path) as (store, app):
        disk.error = OSError(errno.EIO, os.strerror(errno.EIO))
        with pytest.raises(StoreUnavailable, match=UNKNOWN):
            await store.create_task(new_task(app, "a"))
    log = (tmp_path / "taskd.db-wal").read_bytes()
    with pytest.raises(StoreUnavailable, match="could not be synced"):
        await trio.to_thread.run_sync(lock_database, path)
    assert (tmp_path / "taskd.db-wal").read_bytes() == log
    disk.error, before = None, disk.syncs
    lock = await trio.to_thread.run_sync(lock_database, path)
    assert disk.syncs == before + 1
    lock.release()
    # The doubt has ended.
    lock = await trio.to_thread.run_sync(lock_database, path)
    assert disk.syncs == before + 1
    lock.release()
    assert await trio.to_thread.run_sync(start, path) == {"first", "a"}


async def test_a_database_that_could_not_be_synced_is_copied_anew_by_a_restart(
    tmp_path: Path, disk: Disk
) -> None:
    """What a checkpoint has copied by then, no other one copies again."""
    path = tmp_path / "taskd.db"
    lock = await trio.to_thread.run_sync(lock_database, path)
    stores = [await SQLiteStore.join(path, lock) for _ in range(2)]
    app = await stores[0].create_app(new_app())
    await stores[0].create_task(new_task(app, "a"))
    disk.database_error = OSError(errno.EIO, os.strerror(errno.EIO))
    stores[0]._checkpointer.hurry()
    await until(lambda: stores[0]._guard.in_doubt is not None)
    disk.database_error = None
    stores.append(await SQLiteStore.join(path, lock))
    # The one between may write: its own descriptors tell it what it may rely on.
    for store in (stores[0], stores[2], stores[0]):
        with pytest.raises(StoreUnavailable, match=f"restart taskd, which copies.*{NOTHING}"):
            await store.create_task(new_task(app, "b"))
    log = (tmp_path / "taskd.db-wal").read_bytes()
    for store in stores:
        await store.aclose()
    lock.release()
    assert (tmp_path / "taskd.db-wal").read_bytes() == log
    # Nothing of the copy has lasted.
    lock = await trio.to_thread.run_sync(lock_database, path)
    lock.release()
    assert await trio.to_thread.run_sync(start, path) == {"a"}


async def test_a_sync_that_hangs_and_then_fails_is_not_told_as_done(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with opened(tmp_path) as (store, app):
        monkeypatch.setattr(writer, "HANG_S", 0.3)
        disk.hang()
        disk.error = OSError(errno.EIO, os.strerror(errno.EIO))
        with pytest.raises(StoreUnavailable, match=UNKNOWN):
            await store.create_task(new_task(app, "a"))
        disk.gate.set()
        await until(lambda: not store._writer._hangs)
        disk.error = None
        assert await store.create_task(new_task(app, "b"))
    assert "after all" not in caplog.text


def open_below(folder: Path) -> list[Path]:
    links = [file.readlink() for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    return [link for link in links if link.is_relative_to(folder)]


async def test_a_closed_store_has_no_file_open(tmp_path: Path) -> None:
    async with opened(tmp_path):
        assert open_below(tmp_path)
    assert open_below(tmp_path) == []


async def test_a_sync_that_hangs_is_told_and_calls_are_refused_until_it_ends(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with opened(tmp_path) as (store, app):
        monkeypatch.setattr(writer, "HANG_S", 0.3)
        disk.hang()
        refused: dict[str, str] = {}

        async def refuse(name: str, call: Callable[[], object]) -> None:
            with pytest.raises(StoreUnavailable) as raised:
                await call()  # type: ignore[misc]
            refused[name] = str(raised.value)

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse, "a", lambda: store.create_task(new_task(app, "a")))
            await until(disk.is_hanging)
            nursery.start_soon(refuse, "b", lambda: store.create_task(new_task(app, "b")))
            nursery.start_soon(refuse, "told", lambda: store.task_detail(app.id, task_no="a"))
        assert trio.current_time() - began < 3
        assert UNKNOWN in refused["a"]
        assert NOTHING in refused["b"]
        assert UNKNOWN in refused["told"]
        with trio.fail_after(0.2):
            await refuse("c", lambda: store.create_task(new_task(app, "c")))
        assert NOTHING in refused["c"]
        disk.gate.set()
        await until(lambda: not store._writer._hangs)
        assert await store.create_task(new_task(app, "d"))
        for task_no, there in [("a", True), ("b", False), ("c", False), ("d", True)]:
            assert (await store.task_detail(app.id, task_no=task_no) is not None) is there
    assert "the disk has not synced the store's log for 5 s; writes are refused" in caplog.text
    assert "the disk has synced the store's log after all" in caplog.text


async def test_a_process_that_had_no_turn_for_long_takes_no_sync_for_hung(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was stopped for a while, say: nobody can tell how long the sync took by itself."""
    async with opened(tmp_path) as (store, app):
        monkeypatch.setattr(writer, "HANG_S", 0.5)
        disk.hang()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.create_task, new_task(app, "a"))
            await until(disk.is_hanging)
            for _ in range(2):
                await spin(0.7)
                await trio.lowlevel.checkpoint()
            disk.gate.set()
        assert await store.task_detail(app.id, task_no="a") is not None


async def test_a_store_closes_in_time_while_a_sync_hangs(tmp_path: Path, disk: Disk) -> None:
    store = await SQLiteStore.open(tmp_path / "taskd.db")
    app = await store.create_app(new_app())
    disk.hang()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.create_task, new_task(app, "a"))
        await until(disk.is_hanging)
        with trio.fail_after(2):
            await store.aclose(within_s=0.2)
        nursery.cancel_scope.cancel()
    disk.gate.set()
    with trio.fail_after(5):
        await store._writer._closed.wait()
    assert await trio.to_thread.run_sync(start, tmp_path / "taskd.db") == {"a"}


@pytest.mark.parametrize("place", ["_write_asked", "_begin_pass"])
def test_a_writer_that_fails_in_the_loop_ends_the_process_instead_of_keeping_all_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    async def create() -> None:
        async with opened(tmp_path) as (store, app):
            monkeypatch.setattr(Writer, place, broken)
            await store.create_task(new_task(app, "a"))

    def broken(_writer: Writer) -> None:
        monkeypatch.undo()
        raise RuntimeError("a defect")

    with pytest.raises(trio.TrioInternalError) as raised:
        trio.run(create)
    cause = raised.value.__cause__
    assert isinstance(cause, BaseExceptionGroup)
    assert cause.subgroup(RuntimeError) is not None
    assert cause.subgroup(KeyError) is None, "the store did not close"
    assert open_below(tmp_path) == []

"""The files of a store in use: removed, replaced, cut, written over, and put back.

What is told as kept has to be in the file that the next start finds, and nothing else
that is there may be touched.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from taskd.domain.model import App
from taskd.errors import StoreUnavailable
from taskd.stores.sqlite.backup import back_up
from taskd.stores.sqlite.opening import lock_database
from taskd.stores.sqlite.store import SQLiteStore
from tests.support.stores import detail, new_app, new_task

Mischief = Callable[[Path], None]


@asynccontextmanager
async def used(path: Path, tasks: int = 3) -> AsyncIterator[tuple[SQLiteStore, App]]:
    """A store in use, with so many tasks; closed at the end."""
    store = await SQLiteStore.open(path)
    app = await store.app_by_key("key-1") or await store.create_app(new_app())
    for number in range(tasks):
        await store.create_task(new_task(app, f"before-{number}"))
    try:
        yield store, app
    finally:
        await store.aclose()


def make_backup(path: Path, backup: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(path)) as source,
        contextlib.closing(sqlite3.connect(backup)) as target,
    ):
        source.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")


def task_nos(path: Path) -> set[str]:
    """What the next start finds, as SQLite alone reads it."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return {task_no for (task_no,) in connection.execute("SELECT task_no FROM tasks")}


async def refusal(store: SQLiteStore, app: App, task_no: str) -> str:
    """The sentence with which a probe is refused, and from then on creates."""
    with pytest.raises(StoreUnavailable) as refused:
        await store.probe()
    with pytest.raises(StoreUnavailable, match=re.escape(str(refused.value))):
        await store.create_task(new_task(app, task_no))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def remove(name: str) -> Mischief:
    return lambda path: path.with_name(path.name + name).unlink()


def replace(name: str) -> Mischief:
    """A copy in its place, as an editor or ``rsync`` writes one."""

    def mischief(path: Path) -> None:
        file = path.with_name(path.name + name)
        shutil.copy(file, f"{file}.copy")
        file.with_name(f"{file.name}.copy").replace(file)

    return mischief


def cut(name: str, size: int = 0) -> Mischief:
    return lambda path: os.truncate(path.with_name(path.name + name), size)


def rename_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


def write_over(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"this was a database once" * 10)


@pytest.mark.parametrize(
    ("mischief", "told"),
    [
        (remove(""), "taskd.db was removed or renamed"),
        (replace(""), "taskd.db was replaced"),
        (cut(""), "taskd.db was cut"),
        (cut("", 8192), "taskd.db was cut"),
        (write_over, "taskd.db was written over"),
        (remove("-wal"), "taskd.db-wal was removed or renamed"),
        (replace("-wal"), "taskd.db-wal was replaced"),
        (cut("-wal"), "taskd.db-wal was cut or written over"),
        (cut("-wal", 8192), "taskd.db-wal was cut or written over"),
        (remove("-shm"), "taskd.db-shm was removed or renamed"),
        (replace("-shm"), "taskd.db-shm was replaced"),
        (remove(".lock"), "taskd.db.lock was removed or renamed"),
        (replace(".lock"), "taskd.db.lock was replaced"),
        (rename_folder, "taskd.db was removed or renamed"),
    ],
)
async def test_nothing_is_told_as_kept_that_the_next_start_would_not_find(
    tmp_path: Path, mischief: Mischief, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store" / "taskd.db"
    name = told.split(maxsplit=1)[0]

    async with used(path) as (store, app):
        mischief(path)
        if name in {"taskd.db", "taskd.db-wal"}:
            # Who asks first is told as well.
            with pytest.raises(StoreUnavailable, match=told):
                await store.create_task(new_task(app, "first"))
        assert told in await refusal(store, app, "after")
        # Said again and again to those who ask, and once in the log.
        assert told in await refusal(store, app, "after, again")
        assert sum(told in message for message in caplog.messages) == 1


@pytest.mark.parametrize("mischief", [remove(""), rename_folder])
async def test_nothing_is_made_or_removed_by_name(tmp_path: Path, mischief: Mischief) -> None:
    path = tmp_path / "store" / "taskd.db"

    def files() -> dict[str, int]:
        return {str(file.relative_to(tmp_path)): file.stat().st_ino for file in tmp_path.rglob("*")}

    async with used(path) as (store, app):
        mischief(path)
        before = files()
        await refusal(store, app, "after")
        assert await store.find_due(until=2**60, limit_per_app=10)  # reading goes on
    assert files() == before


async def test_a_backup_that_is_put_in_the_place_of_the_database_stays_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, backup = tmp_path / "taskd.db", tmp_path / "backup.db"

    async with used(path) as (store, app):
        await trio.to_thread.run_sync(make_backup, path, backup)
        for number in range(300):
            await store.create_task(new_task(app, f"later-{number}"))
        content = backup.read_bytes()
        backup.rename(path)
        await refusal(store, app, "after")
        store._checkpointer.hurry()
        await refusal(store, app, "after")
    assert path.read_bytes() == content
    # The log that is left is the other database's, and the next start knows it.
    async with used(path, tasks=0) as (store, app):
        assert "set aside as taskd.db-wal.aside-1" in caplog.text
        await store.create_task(new_task(app, "next"))
    assert task_nos(path) == {"before-0", "before-1", "before-2", "next"}


def copy_of(path: Path, way: str) -> Path:
    """A copy of a store in use, as it is made here and there."""
    copy = path.with_name("copy.db")
    if way == "taskd backup":
        back_up(path, copy)
        return copy
    with contextlib.closing(sqlite3.connect(path)) as source:
        if way == "VACUUM INTO":
            source.execute("VACUUM INTO ?", (str(copy),))
        else:
            with contextlib.closing(sqlite3.connect(copy)) as target:
                source.backup(target)
    return copy


WAYS = ["taskd backup", "VACUUM INTO", ".backup"]


@pytest.mark.parametrize("way", WAYS)
async def test_a_copy_that_is_written_over_the_database_is_noticed(
    tmp_path: Path, way: str
) -> None:
    """With ``cp``, which keeps the file. It may be as long as what was there."""
    path = tmp_path / "taskd.db"

    async with used(path) as (store, app):
        copy = await trio.to_thread.run_sync(copy_of, path, way)
        content, inode = copy.read_bytes(), path.stat().st_ino
        shutil.copyfile(copy, path)
        assert path.stat().st_ino == inode
        told = await refusal(store, app, "after")
        assert "taskd.db was cut" in told or "taskd.db was written over" in told
    assert path.read_bytes() == content


async def test_another_program_may_add_tables_and_copy_the_log(tmp_path: Path) -> None:
    """As those do that replicate a database."""
    path = tmp_path / "taskd.db"

    async with used(path) as (store, app):
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE replica (place INTEGER)")
            other.commit()
            for mode in ("PASSIVE", "RESTART", "TRUNCATE"):
                await store.create_task(new_task(app, mode))
                other.execute(f"PRAGMA wal_checkpoint({mode})")
                await store.create_task(new_task(app, f"after {mode}"))
                await store.probe()
    assert {"before-0", "after TRUNCATE"} <= task_nos(path)


async def test_another_program_may_shorten_it_in_order(tmp_path: Path) -> None:
    path = tmp_path / "taskd.db"

    async with used(path) as (store, app):
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("CREATE TABLE filling AS SELECT zeroblob(5000000) AS content")
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            await store.probe()
            size = path.stat().st_size
            other.execute("DROP TABLE filling")
            other.execute("VACUUM")
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            assert path.stat().st_size < size / 2
        await store.create_task(new_task(app, "after"))
        await store.probe()
    assert {"before-0", "after"} <= task_nos(path)


async def test_a_store_goes_on_once_its_own_files_are_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, away = tmp_path / "taskd.db", tmp_path / "away.db"

    async with used(path) as (store, app):
        for round_number in range(2):
            path.rename(away)
            await refusal(store, app, f"while away {round_number}")
            away.rename(path)
            await store.create_task(new_task(app, f"back {round_number}"))
        assert "are as they were" in caplog.text
    assert {"before-0", "back 0", "back 1"} <= task_nos(path)
    assert not (tmp_path / "taskd.db-wal").exists()


@pytest.mark.parametrize("mischief", [remove("-wal"), replace("-wal")])
async def test_what_is_in_a_log_without_a_name_is_saved(
    tmp_path: Path, mischief: Mischief, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "taskd.db"

    async with used(path, tasks=200) as (store, app):
        mischief(path)
        await refusal(store, app, "after")
        while "has been saved" not in caplog.text:
            await trio.sleep(0.01)
    (tmp_path / "taskd.db-wal").unlink(missing_ok=True)
    assert {f"before-{number}" for number in range(200)} <= task_nos(path)


async def test_a_link_that_is_pointed_elsewhere_is_noticed(tmp_path: Path) -> None:
    path, named = tmp_path / "taskd.db", tmp_path / "named" / "store.db"
    named.parent.mkdir()
    named.symlink_to(path)

    async with used(named) as (store, app):
        shutil.copy(path, tmp_path / "other.db")
        named.unlink()
        named.symlink_to(tmp_path / "other.db")
        assert "store.db was replaced" in await refusal(store, app, "after")
        named.unlink()
        named.symlink_to(path)
        await store.create_task(new_task(app, "after"))
    assert "after" in task_nos(path)


async def test_a_hard_link_more_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "taskd.db"

    async with used(path) as (store, app):
        os.link(path, tmp_path / "link.db")
        await store.create_task(new_task(app, "after"))
    assert "after" in task_nos(path)


async def test_all_processes_of_a_daemon_notice_and_none_joins(tmp_path: Path) -> None:
    path, away = tmp_path / "taskd.db", tmp_path / "away.db"

    lock = await trio.to_thread.run_sync(lock_database, path)
    stores = [await SQLiteStore.join(path, lock) for _ in range(2)]
    app = await stores[0].create_app(new_app())
    shutil.copy(path, tmp_path / "other.db")
    path.rename(away)
    (tmp_path / "other.db").rename(path)
    for store in stores:
        assert "taskd.db was replaced" in await refusal(store, app, "after")
    with pytest.raises(StoreUnavailable, match=r"taskd\.db was replaced"):
        await SQLiteStore.join(path, lock)
    away.rename(path)
    stores.append(await SQLiteStore.join(path, lock))
    for number, store in enumerate(stores):
        await store.create_task(new_task(app, f"back {number}"))
    for name in ("taskd.db-wal", "taskd.db-shm"):
        (tmp_path / name).rename(away)
        with pytest.raises(StoreUnavailable, match=rf"{name} was removed or renamed"):
            await SQLiteStore.join(path, lock)
        shutil.copy(away, tmp_path / name)
        with pytest.raises(StoreUnavailable, match=rf"{name} was replaced"):
            await SQLiteStore.join(path, lock)
        away.rename(tmp_path / name)
    stores.append(await SQLiteStore.join(path, lock))
    for store in stores:
        await store.aclose()
    lock.release()
    assert {"back 0", "back 1", "back 2"} <= task_nos(path)


async def test_damage_that_is_found_while_it_runs_ends_the_writes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "taskd.db"

    async with used(path, tasks=300):
        pass
    async with used(path, tasks=0) as (store, app):
        with path.open("r+b") as file:  # all pages but the first
            file.seek(4096)
            file.write(os.urandom(path.stat().st_size - 4096))
        found = await refusal(store, app, "after")
        assert "is damaged" in found
        assert "taskd restore" in found
        with pytest.raises(StoreUnavailable, match="is damaged"):
            await store.find_due(until=2**60, limit_per_app=10)
        assert sum("writes are refused" in message for message in caplog.messages) == 1
        logging.getLogger("taskd.stores").info("closing")


async def test_a_task_of_before_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "taskd.db"

    async with used(path) as (store, app):
        path.unlink()
        await refusal(store, app, "after")
        assert (await detail(store, app, 1)).task_no == "before-0"

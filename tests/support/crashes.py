"""SQLite stores that another process uses, until it is killed."""

from __future__ import annotations

import contextlib
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import trio

from taskd.stores.sqlite.lock_record import boot_id
from taskd.stores.sqlite.store import SQLiteStore

FRAME = 24 + 4096
"""Bytes of one page in a write-ahead log."""

_USE = """
import sys, trio
from pathlib import Path
from taskd.stores.sqlite.store import SQLiteStore
from tests.support.stores import new_app, new_task

async def main():
    store = await SQLiteStore.open(Path(sys.argv[1]))
    app = await store.app_by_key("key-1") or await store.create_app(new_app())
    tasks = [new_task(app, f"{sys.argv[3]}-{number}") for number in range(int(sys.argv[2]))]
    singly = int(sys.argv[4])
    for task in tasks[:singly]:
        await store.create_task(task)
    if tasks[singly:]:
        await store.create_tasks(tasks[singly:])
    print("used", flush=True)
    await trio.to_thread.run_sync(sys.stdin.read)

trio.run(main)
"""


@contextlib.contextmanager
def in_use(
    path: Path, tasks: int = 50, name: str = "no", singly: int = 50
) -> Iterator[subprocess.Popen[str]]:
    """Another process has the store open and has added tasks, so many of them one by one;
    killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", _USE, str(path), str(tasks), name, str(singly)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "used\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def crash(path: Path, tasks: int = 50, name: str = "no", singly: int = 50) -> None:
    """Leave a store behind as a kill does."""
    with in_use(path, tasks, name, singly):
        pass
    assert path.with_name(path.name + "-wal").stat().st_size > 20 * FRAME


def commit_ends(path: Path) -> list[int]:
    """The last frame of each commit in a store's log, in order."""
    index, log = (path.with_name(path.name + suffix).read_bytes() for suffix in ("-shm", "-wal"))
    (frames,) = struct.unpack_from("=I", index, 16)
    return [
        number
        for number in range(frames)
        if struct.unpack_from(">4xI", log, 32 + number * FRAME)[0]
    ]


def restart_machine(path: Path) -> None:
    """Have a store look as if its machine had been started anew."""
    lock = path.with_name(path.name + ".lock")
    before = boot_id()
    assert before is not None
    text = lock.read_text()
    assert f"boot {before}" in text
    lock.write_text(text.replace(before, before[::-1]))


def start(path: Path) -> set[str]:
    """Start and end as a daemon does; the taskNos that are there then."""

    async def main() -> None:
        with trio.fail_after(60):
            store = await SQLiteStore.open(path)
            await store.probe()
            await store.aclose()

    trio.run(main)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return {task_no for (task_no,) in connection.execute("SELECT task_no FROM tasks")}

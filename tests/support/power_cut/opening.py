"""Opens stores as a start does, and tells what is in them.

``python -m tests.support.power_cut.opening`` reads the path of a database from each line, and
answers with a line of JSON: ``refused`` and why, or ``integrity``, what SQLite's check says,
and the store's content. Databases are thrown away afterwards, so nothing has to be synced.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import trio

from taskd.errors import StoreRefused, StoreUnavailable
from taskd.stores.encoding import STATES
from taskd.stores.sqlite.lock_record import Record, State, write_line
from taskd.stores.sqlite.store import SQLiteStore
from tests.support.power_cut import crash_states
from tests.support.power_cut.facts import Content, Found

_NO_INODE = 2**61
_ANOTHER_BOOT = "00000000-0000-4000-8000-000000000000"


def write_state(state: crash_states.State, folder: Path) -> None:
    """Write the files of a power cut into an empty folder, as a restart of the machine has them:
    inodes stay the same, so the new ones are in the lock file, and the start is another."""
    inodes: dict[int, int] = {}
    lock = None
    for name, content in state.files.items():
        path = folder / name
        path.write_bytes(content)
        inodes[state.inodes[name]] = path.stat().st_ino
        if name.endswith(".lock"):
            lock = path
    if lock is None:
        return
    fd = os.open(lock, os.O_RDWR)
    try:
        record = Record.read(fd)
        for line in ("database", "log", "index"):
            inode = getattr(record, line)
            if inode is not None:
                # One that is gone must not be that of a new file by chance.
                write_line(fd, line, inodes.get(inode, _NO_INODE + inode), durably=False)
        if record.boot is not None:
            write_line(fd, "boot", _ANOTHER_BOOT, durably=False)
        database = lock.with_suffix("")
        if record.state is State.CLOSED and record.stamp is not None and database.exists():
            # The time of the last change that the disk has is at best this one; then the start
            # does without a check.
            os.utime(database, ns=(record.stamp[1], record.stamp[1]))
    finally:
        os.close(fd)


class Opener:
    """Opens stores in a process of its own."""

    def __init__(self, library: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "LD_PRELOAD": str(library), "POWER_CUT_UNSYNCED": "*"},
        )

    def open(self, database: Path) -> tuple[str | None, Content]:
        """Return what is wrong with a store that was found after a power cut, or None; and what
        is in it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{database}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the process that opens stores has ended"
        answer = json.loads(line)
        if "refused" in answer:
            return f"the start is refused: {answer['refused']}", Content({}, frozenset(), 0)
        problem = None if answer["integrity"] == ["ok"] else str(answer["integrity"])
        return problem, _content(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.communicate()


def _content(answer: dict[str, Any]) -> Content:
    return Content(
        {task_id: Found(*rest) for task_id, *rest in answer["tasks"]},
        frozenset(answer["nonces"]),
        answer["last_id"],
    )


def content_of(database: Path) -> Content:
    """Return what is in a database, as SQLite itself finds it."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return _content(_read(connection))


def _read(connection: sqlite3.Connection) -> dict[str, Any]:
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    if "tasks" not in tables:
        return {"tasks": [], "nonces": [], "last_id": 0}
    (last_id,) = connection.execute(
        "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'tasks'"
    ).fetchone()
    return {
        "tasks": [
            (task_id, STATES[state], attempt, word)
            for task_id, state, attempt, word in connection.execute(
                "SELECT id, state, attempt, cancel_word FROM tasks"
            )
        ],
        "nonces": [one.hex() for (one,) in connection.execute("SELECT digest FROM nonces")],
        "last_id": last_id,
    }


async def _open(database: Path) -> dict[str, Any]:
    try:
        store = await SQLiteStore.open(database)
    except (StoreRefused, StoreUnavailable) as error:
        return {"refused": str(error)}
    try:
        await store.probe()
        with contextlib.closing(sqlite3.connect(database)) as connection:
            found = _read(connection)
            found["integrity"] = [text for (text,) in connection.execute("PRAGMA integrity_check")]
        return found
    finally:
        await store.aclose()


def _paths() -> Iterator[Path]:
    for line in sys.stdin:
        yield Path(line.rstrip("\n"))


def main() -> None:
    for path in _paths():
        print(json.dumps(trio.run(_open, path)), flush=True)  # noqa: T201 - the answer


if __name__ == "__main__":
    main()

"""Stores of millions of tasks, made within a minute: rows written by SQL, the indexes
that follow time built once they are there. That of taskNos, which are in no order, grows
with the rows: built at once, its pages would be so full that each create in a measurement
split one, as none does in a store that has filled up by and by.

A store is made once and then copied to where it is measured, sharing its blocks with
the copy where the file system can (``cp --reflink=auto``).
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import time
from pathlib import Path

from tools.bench.load import CONTENT
from tools.bench.stage import Slot, fill

_DAY_MS = 86_400_000
_BLOCK = 1000
_BYTES_A_TASK = 900
"""With its attempt, its index entries, and room for a copy's log."""

_NUMBERS = """
WITH RECURSIVE numbers(n) AS (
    SELECT :first UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < :first + :count
)"""

# Clients' taskNos are in no order, so each lands on a page of its own.
_ADD_WAITING = f"""{_NUMBERS}
INSERT INTO tasks (id, app_id, state, due_at, runtime, timeout_ms, created_at, task_no, name,
                   content)
SELECT n, :app_id, 0, :at + n, :at + n, 10000, :created_at, lower(hex(randomblob(12))), 'bench',
       :content FROM numbers"""

_ADD_FINISHED = f"""{_NUMBERS}
INSERT INTO tasks (id, app_id, state, finished_at, runtime, timeout_ms, created_at, task_no, name,
                   content, token, attempt, sent)
SELECT n, :app_id, 3, :at + n % 3600000, :at, 10000, :created_at, lower(hex(randomblob(12))),
       'bench', :content, 1, 1, 1 FROM numbers"""

_ADD_ATTEMPTS = f"""{_NUMBERS}
INSERT INTO attempts (task_id, attempt, started_at, ended_at, outcome, http_status, response)
SELECT n, 1, :at + n % 3600000 - 5, :at + n % 3600000, 'succeeded', 200, 'success' FROM numbers"""

_APART = """
INSERT INTO contents (task_id, content)
SELECT id, zeroblob(3000) FROM tasks WHERE finished_at IS NOT NULL AND id % 50 = 0"""


def room_for(folder: Path, tasks: int) -> bool:
    """Whether the disk has room for a store of so many tasks, its copy, and as much
    again for others."""
    return shutil.disk_usage(folder).free > 4 * tasks * _BYTES_A_TASK


def make(
    place: Slot, link_url: str, *, finished: int, waiting: int, finished_ago_ms: int = _DAY_MS
) -> None:
    """Make the place's store, with so many tasks that ended so long ago, each with its
    attempt and one in fifty with content of 3,000 bytes, and so many that are due in a
    day. Their ids are mixed in blocks of a thousand."""
    fill(place, link_url, tasks=0)
    now = time.time_ns() // 1_000_000
    with contextlib.closing(sqlite3.connect(place.database, isolation_level=None)) as store:
        store.execute("PRAGMA journal_mode = OFF")
        store.execute("PRAGMA synchronous = OFF")
        store.execute("PRAGMA cache_size = -1000000")
        (app_id,) = store.execute("SELECT id FROM apps").fetchone()
        indexes = store.execute(
            "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL"
            " AND name != 'tasks_task_no'"  # see the module
        ).fetchall()
        for name, _ in indexes:
            store.execute(f"DROP INDEX {name}")
        store.execute("BEGIN")
        started = now - finished_ago_ms
        done = {"app_id": app_id, "created_at": started, "at": started - 3_600_000}
        # The newest ones tell a daemon that its clock is right, so that it purges at once.
        due = {"app_id": app_id, "created_at": now, "at": now + _DAY_MS}
        for first in range(1, 2 * max(finished, waiting), 2 * _BLOCK):
            rows = {"first": first, "content": CONTENT}
            count = min(finished - first // 2, _BLOCK)
            if count > 0:
                store.execute(_ADD_FINISHED, {**done, **rows, "count": count})
                store.execute(_ADD_ATTEMPTS, {**done, "first": first, "count": count})
            rows["first"] = first + _BLOCK
            count = min(waiting - first // 2, _BLOCK)
            if count > 0:
                store.execute(_ADD_WAITING, {**due, **rows, "count": count})
        store.execute(_APART)
        for _, sql in indexes:
            store.execute(sql)
        store.execute("COMMIT")
        store.execute("PRAGMA journal_mode = WAL")
    # What the kernel still has to write would be written in the middle of a measurement.
    subprocess.run(["sync", str(place.database)], check=True)


def copy(source: Slot, target: Slot) -> None:
    """Copy a store that no daemon holds, and wait until it is on disk."""
    command = ["cp", "--reflink=auto", str(source.database), str(target.database)]
    subprocess.run(command, check=True)
    subprocess.run(["sync", str(target.database)], check=True)


def any_finished(place: Slot) -> bool:
    """Whether any finished task is left, asked beside a running daemon."""
    uri = f"{place.database.as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as store:
        row = store.execute("SELECT 1 FROM tasks WHERE finished_at IS NOT NULL LIMIT 1").fetchone()
    return row is not None

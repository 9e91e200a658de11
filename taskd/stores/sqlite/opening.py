"""Opens a SQLite store: locks it, checks it, brings it to the newest schema, guards its files."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from taskd.errors import StoreUnavailable
from taskd.stores.sqlite.check import admit, refuse_missing
from taskd.stores.sqlite.files import WriteTurn, make_folder
from taskd.stores.sqlite.guard import FileGuard
from taskd.stores.sqlite.lock import StoreLock
from taskd.stores.sqlite.lock_record import Record, State, boot_id
from taskd.stores.sqlite.schema import MIGRATIONS, Migration, check_library, prepare, unavailable
from taskd.stores.sqlite.task_ids import TaskIds


def lock_database(
    path: Path, *, migrations: Sequence[Migration] = MIGRATIONS, patience_s: float = 0.0
) -> StoreLock:
    """Lock a database against other daemons, for this process and those that it forks from
    here on (see `SQLiteStore.join`). Makes the database if it is missing, and brings it to the
    newest schema. It is free again once all of these have ended, or released it.

    Args:
        path: the file.
        migrations: the steps from an empty file to the newest schema.
        patience_s: see `StoreLock.take`.

    Raises:
        StoreRefused, StoreUnavailable: see `SQLiteStore.open`.
    """
    check_library()
    resolved = path.resolve()
    make_folder(resolved.parent)
    lock = StoreLock.take(resolved, patience_s=patience_s)
    try:
        refuse_missing(resolved, lock.before)
        lock.seize(patience_s=patience_s)
        admit(resolved, lock, newest=len(migrations))
        made = Record(
            pid=str(os.getpid()),
            state=State.NEW,
            database=lock.database.inode,
            boot=boot_id(),
        )
        used = replace(made, state=State.RUNNING)
        # An empty database is noted as new, so a later start does not miss it.
        lock.note(used if os.fstat(lock.database_fd).st_size else made)
        prepare(resolved, migrations)
        lock.note(used)
    except BaseException:
        lock.release()
        raise
    return lock


def open_files(path: Path, migrations: Sequence[Migration]) -> tuple[StoreLock, FileGuard, TaskIds]:
    """Lock and open a database for this process alone.

    Raises:
        StoreRefused, StoreUnavailable: see `SQLiteStore.open`.
    """
    lock = lock_database(path, migrations=migrations)
    try:
        guard = FileGuard.open(path, lock)
        return lock, guard, _task_ids(guard, multi_process=False)
    except BaseException:
        lock.release()
        raise


def join_files(path: Path, lock: StoreLock) -> tuple[FileGuard, TaskIds, WriteTurn]:
    """Open a database that this process's parent has locked.

    Raises:
        StoreUnavailable: see `SQLiteStore.join`.
    """
    guard = FileGuard.open(path, lock)
    ids = _task_ids(guard, multi_process=True)
    try:
        return guard, ids, WriteTurn(guard.path)
    except OSError as error:
        guard.close(None)
        raise StoreUnavailable(f"{guard.path} can't be opened: {error.strerror}") from error


def _task_ids(guard: FileGuard, *, multi_process: bool) -> TaskIds:
    try:
        with contextlib.closing(guard.connect("ro", in_doubt=True)) as connection:
            return TaskIds(connection, multi_process=multi_process)
    except BaseException as error:
        guard.close(None)
        if isinstance(error, sqlite3.Error):
            raise unavailable(error) from error
        raise

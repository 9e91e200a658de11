"""The tables of a SQLite store, and the migrations from one version to the next.

A task's state shows in three more columns of its row, so that each kind of query has a small
index of its own: the task waits if ``due_at`` is set, runs if ``lease_expires_at`` is set,
and has ended if ``finished_at`` is set.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from taskd.errors import StoreRefused, StoreUnavailable
from taskd.stores.sqlite.files import refuse_special

APPLICATION_ID = 0x7461736B
"""Marks a file as taskd's: "task" in ASCII, in SQLite's header."""

REQUIRED_SQLITE = (3, 35, 0)

Migration = Sequence[str]
"""Statements that bring a file from one version to the next, in one transaction."""

_TASKS = """
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY AUTOINCREMENT,   -- never given twice, purged ones included
    app_id INTEGER NOT NULL,
    state INTEGER NOT NULL,                 -- STATE_CODES
    due_at INTEGER,                         -- while waiting only
    lease_expires_at INTEGER,               -- while running only
    finished_at INTEGER,                    -- once over only
    token INTEGER NOT NULL DEFAULT 0,
    attempt INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0,
    abandoned INTEGER NOT NULL DEFAULT 0,   -- attempts in a row whose node was lost
    sent INTEGER NOT NULL DEFAULT 0,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    cancel_word TEXT,
    node TEXT,                              -- while running only
    leased_at INTEGER,
    timeout_ms INTEGER NOT NULL,
    step INTEGER,                           -- NULL: the app's
    retry_total INTEGER,                    -- NULL: the app's
    runtime INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    task_no TEXT NOT NULL,
    name TEXT NOT NULL,
    content TEXT                            -- NULL: in contents
)"""

INITIAL: Migration = (
    """
    CREATE TABLE apps (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        app_key TEXT NOT NULL UNIQUE,
        secret_key TEXT NOT NULL,
        name TEXT NOT NULL,
        link_url TEXT NOT NULL,
        step INTEGER NOT NULL,
        retry_total INTEGER NOT NULL,
        remark TEXT NOT NULL,
        created_at INTEGER NOT NULL
    )""",
    _TASKS,
    "CREATE UNIQUE INDEX tasks_task_no ON tasks (app_id, task_no)",
    "CREATE INDEX tasks_due ON tasks (app_id, due_at) WHERE due_at IS NOT NULL",
    "CREATE INDEX tasks_leased ON tasks (lease_expires_at) WHERE lease_expires_at IS NOT NULL",
    "CREATE INDEX tasks_finished ON tasks (finished_at) WHERE finished_at IS NOT NULL",
    # Contents that are too long to be rewritten with each change of their tasks.
    "CREATE TABLE contents (task_id INTEGER PRIMARY KEY, content BLOB NOT NULL)",
    """
    CREATE TABLE attempts (
        task_id INTEGER NOT NULL,
        attempt INTEGER NOT NULL,
        started_at INTEGER NOT NULL,
        ended_at INTEGER NOT NULL,
        outcome TEXT NOT NULL,
        http_status INTEGER,
        response TEXT,
        error TEXT,
        PRIMARY KEY (task_id, attempt)
    ) WITHOUT ROWID""",
    # Grouped by when they expire, so that forgetting them touches few pages.
    """
    CREATE TABLE nonces (
        epoch INTEGER NOT NULL,
        digest BLOB NOT NULL,
        PRIMARY KEY (epoch, digest)
    ) WITHOUT ROWID""",
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID",
)

_SUCCESS_RULE: Migration = ("ALTER TABLE apps ADD COLUMN success TEXT NOT NULL DEFAULT 'body'",)

_SUSPECTS: Migration = (
    # Tasks whose node died during their last attempts. An empty table costs nothing.
    """
    CREATE TABLE suspects (
        task_id INTEGER PRIMARY KEY,
        kind INTEGER NOT NULL,              -- attempts abandoned in a row, 3 for more
        alone INTEGER NOT NULL              -- how many of them while nearly alone in flight
    )""",
    "CREATE INDEX suspects_kind ON suspects (kind, task_id)",
    """
    CREATE TABLE node_ends (
        node TEXT PRIMARY KEY,
        stopping INTEGER NOT NULL,          -- 1: it was told to stop
        in_flight INTEGER NOT NULL,         -- leases when the first was reaped, up to 4
        noted_at INTEGER NOT NULL
    ) WITHOUT ROWID""",
)

MIGRATIONS: tuple[Migration, ...] = (INITIAL, _SUCCESS_RULE, _SUSPECTS)
"""Migration ``n`` (counted from 0) brings a file of version ``n`` to ``n + 1``.
One that was released never changes; a new one goes to the end."""


_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


def unavailable(error: sqlite3.Error) -> StoreUnavailable:
    """Return the port's error for a failure of SQLite's, with the reason."""
    return StoreUnavailable(f"the database can't be used now: {error}")


def tells_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite has found the database damaged."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE


def damaged(path: Path, problem: object) -> str:
    """Return the sentence that tells users of a damaged database."""
    return (
        f"the database {path} is damaged ({problem}): restore a backup with taskd restore, or save "
        "what can be read with the .recover or .dump of the sqlite3 program"
    )


def _nothing() -> None:
    pass


def connect(path: Path, *, mode: str, verify: Callable[[], None] = _nothing) -> sqlite3.Connection:
    """Open a connection that threads may hand on, and that begins no transaction by itself.

    Args:
        path: an existing database.
        mode: ``rw`` or ``ro``. A connection that is ``ro`` never writes to the database or
            its log, not even if it is closed last.
        verify: called once the file is open, before anything is read.

    Raises:
        sqlite3.Error: it can't be opened.
    """
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode={mode}",
        uri=True,
        timeout=5.0,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    try:
        verify()
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA synchronous = FULL")
        # `checkpoint` makes the checkpoints, not SQLite in the midst of a commit.
        connection.execute("PRAGMA wal_autocheckpoint = 0")
    except BaseException:
        connection.close()
        raise
    return connection


def check_library() -> None:
    """Refuse a SQLite that lacks what is needed.

    Raises:
        StoreRefused: it is too old.
    """
    if sqlite3.sqlite_version_info < REQUIRED_SQLITE:
        needed = ".".join(str(part) for part in REQUIRED_SQLITE)
        raise StoreRefused(
            f"this Python's SQLite is {sqlite3.sqlite_version}, taskd needs {needed} or newer"
        )


def prepare(path: Path, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Bring the database, even an empty file, to the newest version.

    Raises:
        StoreRefused: it is no taskd database, or of a newer version. It was not
            changed.
        StoreUnavailable: it can't be read or written now.
    """
    with explained(path), contextlib.closing(connect(path, mode="rw")) as connection:
        version = _version(connection, path, newest=len(migrations))
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        for number, migration in enumerate(migrations[version:], start=version + 1):
            _migrate(connection, migration, number)


def check_file(path: Path) -> None:
    """Refuse a file that `prepare` would refuse; changes nothing. A missing file is not
    refused.

    Raises:
        StoreRefused: it is no taskd database, or of a newer version.
        StoreUnavailable: it can't be read now.
    """
    refuse_special(path)
    if not path.exists():
        return
    with explained(path), contextlib.closing(connect(path, mode="ro")) as connection:
        refuse_others(connection, path)


def refuse_others(
    connection: sqlite3.Connection, path: Path, *, newest: int = len(MIGRATIONS)
) -> int:
    """Refuse a database that another program or a newer taskd made. Returns the version of
    its schema, 0 if it is empty.

    Raises:
        StoreRefused: see above.
        sqlite3.Error: it can't be read.
    """
    return _version(connection, path, newest=newest)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors at the opening of a database into errors of the port."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            raise StoreRefused(f"{path} is not a taskd database, it is no SQLite file") from error
        if tells_damage(error):
            raise StoreRefused(damaged(path, error)) from error
        raise StoreUnavailable(f"the database {path} can't be used now: {error}") from error


def _version(connection: sqlite3.Connection, path: Path, *, newest: int) -> int:
    application_id = _integer(connection, "PRAGMA application_id")
    version = _integer(connection, "PRAGMA user_version")
    if application_id != APPLICATION_ID:
        if application_id or version or _integer(connection, "SELECT count(*) FROM sqlite_schema"):
            raise StoreRefused(f"{path} is not a taskd database, another program made it")
        return 0
    if version > newest:
        raise StoreRefused(
            f"{path} was made by a newer taskd (schema {version}, this one knows {newest}): "
            "use that version, or restore a backup made before it"
        )
    return version


def _migrate(connection: sqlite3.Connection, migration: Migration, number: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in migration:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _integer(connection: sqlite3.Connection, statement: str) -> int:
    (value,) = connection.execute(statement).fetchone()
    return int(value)

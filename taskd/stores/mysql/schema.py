"""The tables of a MySQL store, and the migrations from one version to the next.

MySQL commits at every ``CREATE`` and ``ALTER``, so a migration can be cut off between
two of its statements. Each statement therefore does nothing if it was carried out
before, and the version is written after the last one, so the next migration goes on.

One index, ``tasks_lanes``, has each task in one place, by ``lane`` and ``moment``:

=========  =============  =====================
lane       moment         the task
=========  =============  =====================
an app_id  due_at         waits
-1         lease expires  runs
-2         finished_at    is over
=========  =============  =====================
"""

from __future__ import annotations

import hashlib
import re
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from taskd.errors import InvalidInput, StoreRefused, StoreUnavailable
from taskd.runtime.certificates import show_to_servers, why_no_authorities
from taskd.stores.mysql.connection import MySQLConnection
from taskd.stores.mysql.errors import Conflict, Refused, refusal
from taskd.stores.mysql.rows import literal
from taskd.stores.mysql.target import MySQLTarget

Migration = Sequence[str]
"""Statements that bring a database from one version to the next; each may be run again."""

RUNNING, OVER = -1, -2
"""Values of ``lane`` for tasks that do not wait."""

REQUIRED_MARIADB = (10, 6)
REQUIRED_MYSQL = (8, 0)
_LONGEST_VERSION = 100

_MARK = "schema"
_MIGRATE_S = 3600.0
_LOCK_S = 60
_LOCK_TRIES = 10

_TABLE = "ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin"

_META = f"""CREATE TABLE IF NOT EXISTS meta (
    name VARCHAR(32) NOT NULL PRIMARY KEY,
    value VARCHAR(255) NOT NULL
) {_TABLE}"""

INITIAL: Migration = (
    f"""CREATE TABLE IF NOT EXISTS apps (
        id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
        app_key VARBINARY(255) NOT NULL,
        secret_key VARCHAR(255) NOT NULL,
        name VARCHAR(255) NOT NULL,
        link_url TEXT NOT NULL,
        step BIGINT NOT NULL,
        retry_total BIGINT NOT NULL,
        remark TEXT NOT NULL,
        created_at BIGINT NOT NULL,
        UNIQUE KEY apps_app_key (app_key)
    ) {_TABLE}""",
    f"""CREATE TABLE IF NOT EXISTS tasks (
        id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
        app_id BIGINT NOT NULL,
        lane BIGINT NOT NULL,
        moment BIGINT NOT NULL,
        state TINYINT NOT NULL,
        token BIGINT NOT NULL DEFAULT 0,
        attempt INT NOT NULL DEFAULT 0,
        failures INT NOT NULL DEFAULT 0,
        abandoned INT NOT NULL DEFAULT 0,
        sent TINYINT NOT NULL DEFAULT 0,
        cancel_requested TINYINT NOT NULL DEFAULT 0,
        cancel_word VARCHAR(32),
        node VARCHAR(255),
        leased_at BIGINT,
        timeout_ms BIGINT NOT NULL,
        step BIGINT,
        retry_total BIGINT,
        runtime BIGINT NOT NULL,
        created_at BIGINT NOT NULL,
        task_no VARBINARY(256) NOT NULL,
        name VARCHAR(255) NOT NULL,
        content VARBINARY(2000),
        UNIQUE KEY tasks_task_no (app_id, task_no),
        KEY tasks_lanes (lane, moment)
    ) {_TABLE}""",
    f"""CREATE TABLE IF NOT EXISTS contents (
        task_id BIGINT NOT NULL PRIMARY KEY,
        content LONGBLOB NOT NULL
    ) {_TABLE}""",
    f"""CREATE TABLE IF NOT EXISTS attempts (
        task_id BIGINT NOT NULL,
        attempt INT NOT NULL,
        started_at BIGINT NOT NULL,
        ended_at BIGINT NOT NULL,
        outcome VARCHAR(32) NOT NULL,
        http_status INT,
        response MEDIUMTEXT,
        error MEDIUMTEXT,
        PRIMARY KEY (task_id, attempt)
    ) {_TABLE}""",
    f"""CREATE TABLE IF NOT EXISTS nonces (
        digest BINARY(16) NOT NULL PRIMARY KEY,
        expires_at BIGINT NOT NULL,
        KEY nonces_expires_at (expires_at)
    ) {_TABLE}""",
    f"""CREATE TABLE IF NOT EXISTS batches (
        lane VARCHAR(32) NOT NULL PRIMARY KEY,
        number BIGINT NOT NULL,
        seen_at BIGINT NOT NULL
    ) {_TABLE}""",
)


def added_column(table: str, column: str, definition: str) -> Migration:
    """Return statements that add a column unless it is there: ``ADD COLUMN`` of MySQL has no
    ``IF NOT EXISTS``."""
    there = (
        "SELECT COUNT(*) FROM information_schema.columns WHERE table_schema = DATABASE() "  # noqa: S608  constants
        f"AND table_name = '{table}' AND column_name = '{column}'"
    )
    add = literal(f"ALTER TABLE {table} ADD COLUMN {column} {definition}").decode()
    return (
        f"SET @taskd_change = IF(({there}) = 0, {add}, 'DO 0')",
        "PREPARE taskd_change FROM @taskd_change",
        "EXECUTE taskd_change",
        "DEALLOCATE PREPARE taskd_change",
    )


_SUCCESS_RULE: Migration = added_column("apps", "success", "VARCHAR(16) NOT NULL DEFAULT 'body'")

_SUSPECTS: Migration = (
    f"""CREATE TABLE IF NOT EXISTS suspects (
        task_id BIGINT NOT NULL PRIMARY KEY,
        kind INT NOT NULL,
        alone INT NOT NULL,
        KEY suspects_kind (kind, task_id)
    ) {_TABLE}""",
    f"""CREATE TABLE IF NOT EXISTS node_ends (
        node VARCHAR(255) NOT NULL PRIMARY KEY,
        stopping TINYINT NOT NULL,
        in_flight INT NOT NULL,
        noted_at BIGINT NOT NULL,
        KEY node_ends_noted_at (noted_at)
    ) {_TABLE}""",
)

MIGRATIONS: tuple[Migration, ...] = (INITIAL, _SUCCESS_RULE, _SUSPECTS)
"""Migration ``n`` (counted from 0) brings a database of version ``n`` to ``n + 1``.
One that was released never changes; a new one goes to the end."""

_VERSION = f"SELECT value FROM meta WHERE name = '{_MARK}'"  # noqa: S608  a constant
_TABLES = "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE()"
_SERVER = "SELECT VERSION()"
_FLUSH = "SELECT @@GLOBAL.innodb_flush_log_at_trx_commit, @@GLOBAL.log_bin, @@GLOBAL.sync_binlog"


@dataclass(frozen=True, slots=True)
class Migrated:
    """What `migrate` did: the schema's version before (0: there was none) and now."""

    before: int
    now: int


def tls_context(target: MySQLTarget) -> ssl.SSLContext | None:
    """Return the context to speak TLS with, which verifies certificate and name; None: no TLS.

    Raises:
        StoreRefused: one of the files can't be used.
    """
    if not target.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=target.ca_file)
    except OSError as error:
        reason = why_no_authorities(target.ca_file or "", error)
        raise StoreRefused(f"the certificates {target.ca_file} can't be read: {reason}") from error
    if target.cert_file is not None and target.key_file is not None:
        try:
            show_to_servers(context, target.cert_file, target.key_file)
        except InvalidInput as error:
            raise StoreRefused(error.problem) from error
    return context


@asynccontextmanager
async def connected(target: MySQLTarget) -> AsyncIterator[MySQLConnection]:
    """Connect to a server, and check its version.

    Raises:
        StoreRefused: the server is too old, lacks what the URL asks for, or refuses this user.
        StoreUnavailable: it can't be reached or used now.
    """
    tls = await trio.to_thread.run_sync(tls_context, target)
    try:
        connection = await MySQLConnection.open(target, tls, autocommit=True)
        try:
            _check_server(*(await connection.execute(_SERVER)).rows[0])
            yield connection
        finally:
            await connection.aclose()
    except StoreUnavailable as error:
        raise _named(refusal(error), target) from error
    except StoreRefused as error:
        raise _named(error, target) from error
    except (Conflict, Refused) as error:
        raise _named(
            StoreUnavailable(f"the database can't be used now: {error}"), target
        ) from error


async def migrate(target: MySQLTarget, migrations: Sequence[Migration] = MIGRATIONS) -> Migrated:
    """Bring a database, even an empty one, to the newest version. Of several callers at once
    one migrates, and the others wait.

    Raises:
        StoreRefused: it is no taskd database, or of a newer version. It was not
            changed. Or see `connected`.
        StoreUnavailable: it can't be reached or changed now. Another call continues.
    """
    async with connected(target) as connection, _locked(connection, target):
        before = await _version(connection, newest=len(migrations))
        if before is None:
            await connection.execute(_META, within_s=_MIGRATE_S)
            await _note(connection, 0)
        for number, migration in enumerate(migrations[before or 0 :], start=(before or 0) + 1):
            for statement in migration:
                await connection.execute(statement, within_s=_MIGRATE_S)
            await _note(connection, number)
        return Migrated(before or 0, len(migrations))


async def check(connection: MySQLConnection, *, newest: int) -> None:
    """Refuse a database that is not of the newest version.

    Raises:
        StoreRefused: why, and what to do.
    """
    version = await _version(connection, newest=newest)
    if not version:
        raise StoreRefused("the database has no tables of taskd's yet: run `taskd migrate`")
    if version < newest:
        raise StoreRefused(
            f"the database is of an older taskd (schema {version}, this one needs {newest}): "
            "run `taskd migrate`"
        )


async def lack_of_durability(connection: MySQLConnection) -> str | None:
    """Return why a crash of the server's machine may lose a committed write, or None."""
    ((flush, log_bin, sync_binlog),) = (await connection.execute(_FLUSH)).rows
    if flush != 1:
        return f"the database's innodb_flush_log_at_trx_commit is {flush}, not 1"
    # With a binary log, a crash undoes transactions that InnoDB has and that log lacks.
    if log_bin and sync_binlog != 1:
        return f"the database writes a binary log and its sync_binlog is {sync_binlog}, not 1"
    return None


async def _version(connection: MySQLConnection, *, newest: int) -> int | None:
    """Return the version of a database's schema; None if the database is empty."""
    tables = {name for (name,) in (await connection.execute(_TABLES)).rows}
    if not tables:
        return None
    rows = (await connection.execute(_VERSION)).rows if "meta" in tables else ()
    if not rows or not re.fullmatch("[0-9]{1,6}", rows[0][0]):
        # A migration that was cut off between its first two statements.
        if tables == {"meta"} and not (await connection.execute("SELECT 1 FROM meta LIMIT 1")).rows:
            return None
        raise StoreRefused("the database is not taskd's, another program made its tables")
    version = int(rows[0][0])
    if version > newest:
        raise StoreRefused(
            f"the database is of a newer taskd (schema {version}, this one knows {newest}): "
            "use that version, or restore a backup made before it"
        )
    return version


async def _note(connection: MySQLConnection, version: int) -> None:
    await connection.execute(
        f"INSERT INTO meta (name, value) VALUES ('{_MARK}', '{version}') "  # noqa: S608  an integer
        f"ON DUPLICATE KEY UPDATE value = '{version}'"
    )


@asynccontextmanager
async def _locked(connection: MySQLConnection, target: MySQLTarget) -> AsyncIterator[None]:
    # The name of a lock holds for the whole server, and has 64 characters at most.
    digest = hashlib.blake2b(target.database.encode(), digest_size=16).hexdigest()
    name = literal(f"taskd.migrate.{digest}").decode()
    ask = f"SELECT GET_LOCK({name}, {_LOCK_S})"
    for _ in range(_LOCK_TRIES):
        ((got,),) = (await connection.execute(ask, within_s=_LOCK_S + 5)).rows
        if got:
            break
    else:
        raise StoreUnavailable("another `taskd migrate` has been at work for too long")
    # The lock ends with the connection, however that ends.
    yield


def _check_server(version: str) -> None:
    version = version[:_LONGEST_VERSION]
    match = re.search(r"(?:5\.5\.5-)?([0-9]{1,4})\.([0-9]{1,4})", version)
    mariadb = "mariadb" in version.lower()
    required = REQUIRED_MARIADB if mariadb else REQUIRED_MYSQL
    if match is None or (int(match[1]), int(match[2])) < required:
        name = "MariaDB" if mariadb else "MySQL"
        raise StoreRefused(
            f"the database is {name} {version}, taskd needs {required[0]}.{required[1]} or newer"
        )


def _named(
    error: StoreRefused | StoreUnavailable, target: MySQLTarget
) -> StoreRefused | StoreUnavailable:
    return type(error)(f"{target}: {error}")

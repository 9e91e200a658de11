"""The statements of a SQLite store; `operations.session.Statements` says what each does.

``{rows}`` stands for a list of rows; a statement leaves out those whose ``column1`` is NULL
(see `rows`). A statement that may answer many rows answers them as one JSON text. Those that
creates, leases and settlements run have a plain form for one row besides.
"""

from __future__ import annotations

from taskd.domain.model import SHARD_FACTOR, SHARD_FOLD, SHARD_SHIFT
from taskd.domain.transitions import KINDS
from taskd.stores.sqlite.rows import WithPlain


class Packed(str):
    """A statement that answers its rows as one JSON text."""

    __slots__ = ()


class PackedWithPlain(WithPlain):
    """A statement that answers its rows as one JSON text, and its plain one doesn't."""

    __slots__ = ()


def packed(statement: str) -> str:
    """Mark a statement as `Packed`."""
    return Packed(statement)


_IDS = "id IN (SELECT value FROM json_each(:ids))"
_ID = "id = :ids"


def _by_ids(statement: str) -> str:
    """Return a statement for ids, with `_IDS` as its condition, and the plain one for one id."""
    return WithPlain(statement, statement.replace(_IDS, _ID))


def _found_by_ids(columns: str, condition: str) -> str:
    """Return a statement that finds tasks by ids if a condition holds, and one for one id."""
    where = f"FROM tasks WHERE {_IDS} AND {condition}"
    return PackedWithPlain(
        f"SELECT json_group_array(json_array({columns})) {where}",
        f"SELECT {columns} {where.replace(_IDS, _ID)}",
    )


_WAITING_COLUMNS = """id, app_id, token, attempt, failures, sent, due_at, timeout_ms, step,
    retry_total, task_no, name, content"""

_NOT_SUSPECT = """
    AND (abandoned = 0 OR NOT EXISTS (SELECT 1 FROM suspects WHERE task_id = tasks.id))"""

_RUNNING_COLUMNS = (
    "id, app_id, token, node, leased_at, attempt, failures, abandoned, sent, cancel_requested"
)


EPOCH_MS = 120_000
"""Nonces that expire in the same two minutes are kept, and forgotten, together."""

_EPOCHS = """
WITH RECURSIVE epochs(epoch) AS (
    SELECT min(epoch) FROM nonces
    UNION ALL
    SELECT (SELECT min(epoch) FROM nonces WHERE epoch > epochs.epoch)
    FROM epochs WHERE epochs.epoch IS NOT NULL
)"""

_USED = """EXISTS (
    SELECT 1 FROM nonces WHERE epoch IN (SELECT epoch FROM epochs) AND digest = v.column1
)"""


# Two statements go on from a place (due_at, id) in the index, one for the same moment and one
# for later ones: with one condition for both, SQLite reads all rows of a moment in each step.
_FIND_LATER = """
SELECT json_group_array(json_array(
    later.id, app_id, state, due_at, created_at, ended_at, outcome))
FROM (
    SELECT id, app_id, state, due_at, created_at, attempt FROM tasks INDEXED BY tasks_due
    WHERE app_id = :app_id AND due_at IS NOT NULL AND {place}
    ORDER BY due_at, id LIMIT :limit
) AS later
LEFT JOIN attempts ON attempts.task_id = later.id AND attempts.attempt = later.attempt"""


_ATTEMPTS = """
INSERT INTO attempts (task_id, attempt, started_at, ended_at, outcome, http_status, response, error)
"""

_TASKS = """
INSERT INTO tasks (id, app_id, state, due_at, runtime, timeout_ms, step, retry_total,
                   created_at, task_no, name, content, token, attempt,
                   node, leased_at, lease_expires_at)
"""

_APP_COLUMNS = (
    "id, app_key, secret_key, name, link_url, step, retry_total, remark, created_at, success"
)

_STORED_COLUMNS = """id, app_id, state, due_at, token, attempt, failures, abandoned, sent,
    timeout_ms, step, retry_total, runtime, created_at, task_no, name"""

_DETAIL = """
SELECT tasks.id, tasks.app_id, task_no, tasks.name, state, runtime, due_at, timeout_ms,
    tasks.attempt, coalesce(tasks.retry_total, apps.retry_total), tasks.created_at, finished_at,
    node, cancel_requested, cancel_word,
    attempts.attempt, started_at, ended_at, outcome, http_status, response, error
FROM tasks
LEFT JOIN apps ON apps.id = tasks.app_id
LEFT JOIN attempts ON attempts.task_id = tasks.id
WHERE tasks.app_id = :app_id AND """


class SQLiteStatements:
    """The statements by their names."""

    # A digest that is in the table already becomes NULL, which the table refuses: then the
    # statement as a whole writes nothing.
    ADD_NONCES = f"""{_EPOCHS}
INSERT INTO nonces (epoch, digest)
SELECT v.column2 / {EPOCH_MS}, CASE WHEN {_USED} THEN NULL ELSE v.column1 END
FROM {{rows}} AS v WHERE v.column1 IS NOT NULL"""
    EPOCH_ENDS = "SELECT (SELECT min(epoch) FROM nonces), (SELECT max(epoch) FROM nonces)"
    ADD_NONCE = """
INSERT INTO nonces (epoch, digest) SELECT :c1, :c2
WHERE NOT EXISTS (SELECT 1 FROM nonces WHERE epoch IN ({epochs}) AND digest = :c2)"""
    TAKE_NONCE_BACK = "DELETE FROM nonces WHERE epoch = ? AND digest = ?"
    FIND_NONCES = f"""{_EPOCHS}
SELECT v.column1 FROM {{rows}} AS v WHERE v.column1 IS NOT NULL AND {_USED}"""
    OLDEST_EPOCH = "SELECT min(epoch) FROM nonces"
    FORGET_NONCES = """
DELETE FROM nonces WHERE epoch = :epoch AND digest <= coalesce(
    (SELECT digest FROM nonces WHERE epoch = :epoch ORDER BY digest LIMIT 1 OFFSET :count - 1),
    :last)"""
    ADD_APP = """
INSERT INTO apps (app_key, secret_key, name, link_url, step, retry_total, remark, created_at,
    success)
VALUES (:app_key, :secret_key, :name, :link_url, :step, :retry_total, :remark, :created_at,
    :success)"""
    ADD_TASKS: str = WithPlain(
        f"""{_TASKS}
SELECT column1, column2, column3, iif(column3, NULL, column4), column15, column5, column6,
       column7, column8, column9, column10, column11, column3, column3,
       column12, column13, column14
FROM {{rows}} AS v WHERE v.column1 IS NOT NULL""",
        f"""{_TASKS}
VALUES (:c1, :c2, :c3, iif(:c3, NULL, :c4), :c15, :c5, :c6, :c7, :c8, :c9, :c10, :c11, :c3, :c3,
    :c12, :c13, :c14)""",
    )
    TAKE_BACK = "DELETE FROM tasks WHERE id BETWEEN :first AND :last"
    ADD_CONTENTS = """
INSERT INTO contents (task_id, content)
SELECT column1, column2 FROM {rows} AS v WHERE v.column1 IS NOT NULL"""
    # SQLite carries out a CROSS JOIN from left to right: one look into the index for each row.
    FIND_TASK_NOS = """
SELECT app_id, task_no, id, state FROM {rows} AS v CROSS JOIN tasks
WHERE v.column1 IS NOT NULL AND app_id = v.column1 AND task_no = v.column2"""

    APPS_BY_ID = f"""
SELECT {_APP_COLUMNS} FROM apps WHERE id IN (SELECT value FROM json_each(:ids))"""
    APP_BY_KEY = f"SELECT {_APP_COLUMNS} FROM apps WHERE app_key = :app_key"
    APP_IDS = """
SELECT id FROM apps WHERE app_key IN (SELECT value FROM json_each(:app_keys))"""
    DETAIL_BY_ID = f"{_DETAIL}tasks.id = :task_id"
    DETAIL_BY_NO = f"{_DETAIL}tasks.task_no = :task_no"
    COUNT_WAITING = """
SELECT count(*) FROM (
    SELECT 1 FROM tasks INDEXED BY tasks_due WHERE app_id = :app_id AND due_at IS NOT NULL
    LIMIT :limit)"""
    CONTENT = """
SELECT coalesce(content, (SELECT content FROM contents WHERE task_id = :task_id))
FROM tasks WHERE id = :task_id"""

    FIND_WAITING = _found_by_ids(_WAITING_COLUMNS, "due_at <= :now")
    FIND_UNSUSPECTED = _found_by_ids(_WAITING_COLUMNS, f"due_at <= :now {_NOT_SUSPECT}")
    LEASE = _by_ids(f"""
UPDATE tasks SET state = 1, due_at = NULL, token = token + 1, attempt = attempt + 1,
    node = :node, leased_at = :now, lease_expires_at = :expires_at
WHERE {_IDS}""")
    FIND_LENGTHS = """
SELECT task_id, length(content) FROM contents
WHERE task_id IN (SELECT value FROM json_each(:ids))"""
    FIND_CONTENTS = """
SELECT task_id, content FROM contents WHERE task_id IN (SELECT value FROM json_each(:ids))"""

    FIND_RUNNING = _found_by_ids(_RUNNING_COLUMNS, "lease_expires_at IS NOT NULL")
    EXTEND = _by_ids(f"UPDATE tasks SET lease_expires_at = :expires_at WHERE {_IDS}")
    END: str = WithPlain(
        """
UPDATE tasks SET state = v.column2, due_at = v.column3, attempt = v.column4,
    failures = v.column5, abandoned = v.column6, sent = v.column7, cancel_word = v.column8,
    finished_at = v.column9, lease_expires_at = NULL, leased_at = NULL, node = NULL
FROM {rows} AS v WHERE tasks.id = v.column1""",
        """
UPDATE tasks SET state = :c2, due_at = :c3, attempt = :c4, failures = :c5, abandoned = :c6,
    sent = :c7, cancel_word = :c8, finished_at = :c9, lease_expires_at = NULL, leased_at = NULL,
    node = NULL
WHERE id = :c1""",
    )
    ADD_ATTEMPTS: str = WithPlain(
        f"{_ATTEMPTS} SELECT * FROM {{rows}} AS v WHERE v.column1 IS NOT NULL",
        f"{_ATTEMPTS} VALUES (:c1, :c2, :c3, :c4, :c5, :c6, :c7, :c8)",
    )
    FIND_EXPIRED = packed(f"""
SELECT json_group_array(json_array({_RUNNING_COLUMNS}, task_no)) FROM (
    SELECT {_RUNNING_COLUMNS}, task_no FROM tasks
    WHERE lease_expires_at <= :until AND id NOT IN (SELECT value FROM json_each(:exclude))
        AND node = coalesce(:node, node)
        AND node NOT IN (SELECT value FROM json_each(:alive))
    ORDER BY lease_expires_at, id LIMIT :limit
)""")

    FIND_TASKS = """
SELECT id, app_id, task_no, state, node, sent, abandoned FROM tasks
WHERE id IN (SELECT value FROM json_each(:ids))"""
    CANCEL = """
UPDATE tasks SET state = 5, due_at = NULL, cancel_requested = 1, cancel_word = v.column2,
    finished_at = v.column3
FROM {rows} AS v WHERE tasks.id = v.column1"""
    REQUEST_CANCEL = """
UPDATE tasks SET cancel_requested = 1 WHERE id IN (SELECT value FROM json_each(:ids))"""

    FIND_END = "SELECT stopping, in_flight FROM node_ends WHERE node = :node"
    COUNT_IN_FLIGHT = """
SELECT count(*) FROM (
    SELECT 1 FROM tasks WHERE lease_expires_at IS NOT NULL AND node = :node LIMIT :limit
)"""
    NOTE_END = """
INSERT INTO node_ends (node, stopping, in_flight, noted_at)
VALUES (:node, :stopping, :in_flight, :now)
ON CONFLICT (node) DO UPDATE SET
    stopping = max(stopping, excluded.stopping), in_flight = max(in_flight, excluded.in_flight)"""
    FORGET_ENDS = "DELETE FROM node_ends WHERE noted_at < :before"
    FIND_ALONE = packed("""
SELECT json_group_array(json_array(task_id, alone)) FROM suspects
WHERE task_id IN (SELECT value FROM json_each(:ids))""")
    SUSPECT = """
INSERT INTO suspects (task_id, kind, alone)
SELECT column1, column2, column3 FROM {rows} AS v WHERE v.column1 IS NOT NULL
ON CONFLICT (task_id) DO UPDATE SET kind = excluded.kind, alone = excluded.alone"""
    CLEAR = "DELETE FROM suspects WHERE task_id IN (SELECT value FROM json_each(:ids))"
    FIND_SUSPECTS = " UNION ALL ".join(
        f"""
SELECT * FROM (
    SELECT task_id, app_id, due_at, abandoned FROM suspects CROSS JOIN tasks ON tasks.id = task_id
    WHERE kind = {kind} AND task_id > :after AND due_at <= :now ORDER BY task_id LIMIT :limit
)"""
        for kind in KINDS
    )
    COUNT_DEATHS = """
SELECT count(*) FROM node_ends
WHERE noted_at BETWEEN :after AND :now AND NOT stopping AND in_flight > 0"""

    # Steps from app to app on the index, so that a long backlog costs nothing, and reads no
    # more tasks of an app than the limit.
    FIND_DUE = packed(f"""
WITH RECURSIVE waiting(app_id) AS (
    SELECT (SELECT app_id FROM tasks INDEXED BY tasks_due WHERE due_at IS NOT NULL
            ORDER BY app_id LIMIT 1)
    UNION ALL
    SELECT (SELECT app_id FROM tasks INDEXED BY tasks_due
            WHERE due_at IS NOT NULL AND app_id > waiting.app_id ORDER BY app_id LIMIT 1)
    FROM waiting WHERE waiting.app_id IS NOT NULL
)
SELECT json_group_array(json_array(waiting.app_id, json((
    SELECT json_group_array(json_array(id, due_at)) FROM (
        SELECT id, due_at FROM tasks INDEXED BY tasks_due
        WHERE app_id = waiting.app_id AND due_at > :first AND due_at <= :until
        ORDER BY due_at, id LIMIT :limit
    ) WHERE ((id + (id >> {SHARD_FOLD})) * {SHARD_FACTOR} >> {SHARD_SHIFT}) % :shards = :shard
))))
FROM waiting
WHERE waiting.app_id IS NOT NULL
    AND waiting.app_id NOT IN (SELECT value FROM json_each(:skip_apps))""")

    FIND_LATE_LEASE = "SELECT id FROM tasks WHERE lease_expires_at > :until LIMIT 1"
    SHORTEN = """
UPDATE tasks SET lease_expires_at = :until WHERE id IN (
    SELECT id FROM tasks WHERE lease_expires_at > :until
    ORDER BY lease_expires_at DESC LIMIT :limit
)"""
    FIND_LATER = packed(_FIND_LATER.format(place="due_at > :after"))
    FIND_LATER_AT = packed(_FIND_LATER.format(place="due_at = :due_at AND id > :after"))
    NEXT_APP = """
SELECT app_id FROM tasks INDEXED BY tasks_due WHERE due_at IS NOT NULL AND app_id > :after
ORDER BY app_id LIMIT 1"""
    BRING_FORWARD = """
UPDATE tasks SET due_at = v.column3 FROM {rows} AS v
WHERE tasks.id = v.column1 AND tasks.due_at = v.column2"""
    LAST_CREATED = "SELECT created_at FROM tasks ORDER BY id DESC LIMIT 1"
    LAST_FINISHED = "SELECT max(finished_at) FROM tasks WHERE finished_at IS NOT NULL"

    FIND_FINISHED = packed("""
SELECT json_group_array(json_array(id)) FROM (
    SELECT id FROM tasks WHERE finished_at < :before ORDER BY finished_at, id LIMIT :limit
)""")
    PURGE: tuple[str, ...] = (
        "DELETE FROM attempts WHERE task_id IN (SELECT value FROM json_each(:ids))",
        "DELETE FROM contents WHERE task_id IN (SELECT value FROM json_each(:ids))",
        "DELETE FROM tasks WHERE id IN (SELECT value FROM json_each(:ids))",
    )

    APPS_AFTER = f"SELECT {_APP_COLUMNS} FROM apps WHERE id > :after ORDER BY id LIMIT :limit"
    APPS_LIKE = f"SELECT {_APP_COLUMNS} FROM apps WHERE id = :id OR app_key = :app_key"
    PUT_APPS = f"""
INSERT INTO apps ({_APP_COLUMNS})
SELECT * FROM {{rows}} AS v WHERE v.column1 IS NOT NULL"""
    STRIDE_END = """
SELECT max(id) FROM (SELECT id FROM tasks WHERE id > :after ORDER BY id LIMIT 20000)"""
    TASKS_AFTER = f"""
SELECT {_STORED_COLUMNS}, tasks.content, contents.content
FROM tasks LEFT JOIN contents ON contents.task_id = tasks.id
WHERE tasks.id > :after AND tasks.id <= :last AND due_at IS NOT NULL
ORDER BY tasks.id LIMIT :limit"""
    ATTEMPTS = """
SELECT task_id, attempt, started_at, ended_at, outcome, http_status, response, error
FROM attempts WHERE task_id IN (SELECT value FROM json_each(:ids)) ORDER BY task_id, attempt"""
    TASKS_LIKE = """
SELECT id, app_id, task_no FROM tasks WHERE id = :id OR (app_id = :app_id AND task_no = :task_no)"""
    COUNT_APPS = "SELECT count(*) FROM apps WHERE id = :id"
    PUT_TASKS = f"""
INSERT INTO tasks ({_STORED_COLUMNS}, content)
SELECT * FROM {{rows}} AS v WHERE v.column1 IS NOT NULL"""
    HIGHEST = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'tasks'"
    RAISE_HIGHEST = "UPDATE sqlite_sequence SET seq = max(seq, :id) WHERE name = 'tasks'"
    FIRST_HIGHEST = """
INSERT INTO sqlite_sequence (name, seq)
SELECT 'tasks', :id WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'tasks')"""

"""The statements of a MySQL store; `operations.session.Statements` says what each does.

``{name}`` stands for a value, ``{rows}`` for the rows of an ``INSERT``, ``{table}`` for rows
as the text that ``JSON_TABLE`` reads.

Rows are locked by primary key and in ascending order. The index is named, since on a small
table the server would read, and lock, all of it. A look for rows that any transaction may
take (lease, reap, purge) skips those that others have locked.
"""

from __future__ import annotations

from taskd.domain.model import TaskState
from taskd.domain.transitions import KINDS
from taskd.stores.encoding import STATE_CODES
from taskd.stores.mysql.schema import OVER, RUNNING

_WAITING = """id, app_id, token, attempt, failures, sent, moment, timeout_ms, step,
    retry_total, task_no, name, content
FROM tasks FORCE INDEX (PRIMARY) WHERE id IN {ids} AND lane > 0 AND moment <= {now}"""

_NOT_SUSPECT = """
    AND (abandoned = 0 OR NOT EXISTS (SELECT 1 FROM suspects WHERE task_id = tasks.id))"""

_SKIPPING = """
FOR UPDATE SKIP LOCKED"""

_RUNNING_COLUMNS = (
    "id, app_id, token, node, leased_at, attempt, failures, abandoned, sent, cancel_requested"
)


# Two statements go on from a place (moment, id) in the index, one for the same moment and one
# for later ones: with one condition for both, a server reads all rows of a moment in each step.
_LATER = """id, app_id, state, moment, created_at, ended_at, outcome
FROM tasks FORCE INDEX (tasks_lanes)
LEFT JOIN attempts ON attempts.task_id = tasks.id AND attempts.attempt = tasks.attempt
WHERE lane = {app_id} AND """


_APP_COLUMNS = (
    "id, app_key, secret_key, name, link_url, step, retry_total, remark, created_at, success"
)

STRIDE = 20_000
"""Tasks that one statement looks at, at most: a few may wait among millions that have ended."""

_DETAIL = f"""tasks.id, tasks.app_id, task_no, tasks.name, state, runtime,
    IF(lane > 0, moment, NULL), timeout_ms, tasks.attempt,
    COALESCE(tasks.retry_total, apps.retry_total), tasks.created_at,
    IF(lane = {OVER}, moment, NULL), node, cancel_requested, cancel_word,
    attempts.attempt, started_at, ended_at, outcome, http_status, response, error
FROM tasks
LEFT JOIN apps ON apps.id = tasks.app_id
LEFT JOIN attempts ON attempts.task_id = tasks.id
WHERE tasks.app_id = {{app_id}} AND """


class MySQLStatements:
    """The statements by their names."""

    ADD_NONCES = "INSERT INTO nonces (digest, expires_at) VALUES {rows}"
    FIND_NONCES = "SELECT digest FROM nonces FORCE INDEX (PRIMARY) WHERE digest IN {digests}"
    FIND_EXPIRED_NONCES = """SELECT digest FROM nonces FORCE INDEX (nonces_expires_at)
WHERE expires_at <= {now} ORDER BY expires_at LIMIT {limit} FOR UPDATE SKIP LOCKED"""
    FORGET_NONCES = "DELETE FROM nonces WHERE digest IN {digests}"
    ADD_APP = """INSERT INTO apps (app_key, secret_key, name, link_url, step, retry_total, remark,
    created_at, success)
VALUES ({app_key}, {secret_key}, {name}, {link_url}, {step}, {retry_total}, {remark},
    {created_at}, {success})"""
    ADD_TASKS = """INSERT INTO tasks (app_id, lane, moment, state, token, attempt, node, leased_at,
    runtime, timeout_ms, step, retry_total, created_at, task_no, name, content) VALUES {rows}"""
    TAKE_BACK = "DELETE FROM tasks WHERE id IN {ids}"
    ADD_CONTENTS = "INSERT INTO contents (task_id, content) VALUES {rows}"
    FIND_TASK_NOS = """SELECT app_id, task_no, id, state
FROM tasks FORCE INDEX (tasks_task_no) WHERE """

    APPS_BY_ID = f"SELECT {_APP_COLUMNS} FROM apps WHERE id IN {{ids}}"
    APP_BY_KEY = f"SELECT {_APP_COLUMNS} FROM apps WHERE app_key = {{app_key}}"
    APP_IDS = "SELECT id FROM apps WHERE app_key IN {app_keys}"
    DETAIL_BY_ID = f"SELECT {_DETAIL}tasks.id = {{task_id}}"
    DETAIL_BY_NO = f"SELECT {_DETAIL}tasks.task_no = {{task_no}}"
    COUNT_WAITING = """SELECT COUNT(*) FROM (SELECT 1 FROM tasks FORCE INDEX (tasks_lanes)
WHERE lane = {app_id} LIMIT {limit}) AS some"""
    CONTENT = """SELECT COALESCE(tasks.content, contents.content)
FROM tasks LEFT JOIN contents ON contents.task_id = tasks.id WHERE tasks.id = {task_id}"""

    FIND_WAITING = f"SELECT {_WAITING}{_SKIPPING}"
    FIND_UNSUSPECTED = f"SELECT {_WAITING}{_NOT_SUSPECT}{_SKIPPING}"
    LEASE = f"""UPDATE tasks FORCE INDEX (PRIMARY) SET state = {STATE_CODES[TaskState.RUNNING]},
    lane = {RUNNING}, moment = {{expires_at}}, token = token + 1, attempt = attempt + 1,
    node = {{node}}, leased_at = {{now}}
WHERE id IN {{ids}}"""
    FIND_LENGTHS = """SELECT task_id, LENGTH(content) FROM contents FORCE INDEX (PRIMARY)
WHERE task_id IN {ids}"""
    FIND_CONTENTS = """SELECT task_id, content FROM contents FORCE INDEX (PRIMARY)
WHERE task_id IN {ids}"""

    FIND_RUNNING = f"""SELECT {_RUNNING_COLUMNS} FROM tasks FORCE INDEX (PRIMARY)
WHERE id IN {{ids}} AND lane = {RUNNING} FOR UPDATE"""
    EXTEND = "UPDATE tasks FORCE INDEX (PRIMARY) SET moment = {expires_at} WHERE id IN {ids}"
    END = """UPDATE JSON_TABLE({table}, '$[*]' COLUMNS (
    id BIGINT PATH '$[0]', state INT PATH '$[1]', lane BIGINT PATH '$[2]',
    moment BIGINT PATH '$[3]', attempt INT PATH '$[4]', failures INT PATH '$[5]',
    abandoned INT PATH '$[6]', sent INT PATH '$[7]', word VARCHAR(32) PATH '$[8]'
)) AS v STRAIGHT_JOIN tasks FORCE INDEX (PRIMARY) ON tasks.id = v.id
SET tasks.state = v.state, tasks.lane = v.lane, tasks.moment = v.moment,
    tasks.attempt = v.attempt, tasks.failures = v.failures, tasks.abandoned = v.abandoned,
    tasks.sent = v.sent, tasks.cancel_word = NULLIF(v.word, ''), tasks.node = NULL,
    tasks.leased_at = NULL"""
    ADD_ATTEMPTS = """INSERT INTO attempts (task_id, attempt, started_at, ended_at, outcome,
    http_status, response, error) VALUES {rows}"""
    FIND_EXPIRED = f"""SELECT {_RUNNING_COLUMNS}, task_no FROM tasks FORCE INDEX (tasks_lanes)
WHERE lane = {RUNNING} AND moment <= {{until}} AND id NOT IN {{exclude}}
    AND node = COALESCE({{node}}, node) AND node NOT IN {{alive}}
ORDER BY lane, moment, id LIMIT {{limit}} FOR UPDATE SKIP LOCKED"""

    FIND_TASKS = """SELECT id, app_id, task_no, state, node, sent, abandoned
FROM tasks FORCE INDEX (PRIMARY) WHERE id IN {ids} FOR UPDATE"""
    CANCEL = f"""UPDATE JSON_TABLE({{table}}, '$[*]' COLUMNS (
    id BIGINT PATH '$[0]', word VARCHAR(32) PATH '$[1]', moment BIGINT PATH '$[2]'
)) AS v STRAIGHT_JOIN tasks FORCE INDEX (PRIMARY) ON tasks.id = v.id
SET tasks.state = {STATE_CODES[TaskState.CANCELLED]}, tasks.lane = {OVER},
    tasks.moment = v.moment, tasks.cancel_requested = 1, tasks.cancel_word = v.word"""
    REQUEST_CANCEL = "UPDATE tasks FORCE INDEX (PRIMARY) SET cancel_requested = 1 WHERE id IN {ids}"

    FIND_END = "SELECT stopping, in_flight FROM node_ends WHERE node = {node}"
    COUNT_IN_FLIGHT = f"""SELECT COUNT(*) FROM (SELECT 1 FROM tasks FORCE INDEX (tasks_lanes)
    WHERE lane = {RUNNING} AND node = {{node}} LIMIT {{limit}}) AS some"""
    NOTE_END = """INSERT INTO node_ends (node, stopping, in_flight, noted_at)
VALUES ({node}, {stopping}, {in_flight}, {now})
ON DUPLICATE KEY UPDATE stopping = GREATEST(stopping, VALUES(stopping)),
    in_flight = GREATEST(in_flight, VALUES(in_flight))"""
    FORGET_ENDS = "DELETE FROM node_ends WHERE noted_at < {before}"
    FIND_ALONE = """SELECT task_id, alone FROM suspects FORCE INDEX (PRIMARY)
WHERE task_id IN {ids} FOR UPDATE"""
    SUSPECT = "REPLACE INTO suspects (task_id, kind, alone) VALUES {rows}"
    CLEAR = "DELETE FROM suspects WHERE task_id IN {ids}"
    FIND_SUSPECTS = " UNION ALL ".join(
        f"""(SELECT task_id, app_id, moment, abandoned FROM suspects FORCE INDEX (suspects_kind)
STRAIGHT_JOIN tasks FORCE INDEX (PRIMARY) ON tasks.id = task_id
WHERE kind = {kind} AND task_id > {{after}} AND lane > 0 AND moment <= {{now}}
ORDER BY task_id LIMIT {{limit}})"""
        for kind in KINDS
    )
    COUNT_DEATHS = """SELECT COUNT(*) FROM node_ends FORCE INDEX (node_ends_noted_at)
WHERE noted_at BETWEEN {after} AND {now} AND NOT stopping AND in_flight > 0"""

    # Two statements, whose cost does not grow with an app's backlog: the first finds each app's
    # earliest task, the second the first tasks of apps whose earliest is in time. Both use the
    # index whatever the server's statistics say. A loose index scan would step from app to app
    # as well, but with old statistics the server reads all waiting tasks.
    # Each ORDER BY names the lane, though all rows have the same one: MySQL does not see that in
    # the first statement, and would read and sort all waiting tasks.
    FIND_APPS = """SELECT id, (SELECT moment FROM tasks FORCE INDEX (tasks_lanes)
    WHERE lane = apps.id ORDER BY lane, moment LIMIT 1) AS earliest
FROM apps HAVING earliest <= {until}"""
    FIND_FIRST = """(SELECT id, lane, moment FROM tasks FORCE INDEX (tasks_lanes)
WHERE lane = {app_id} AND moment > {after} AND moment <= {until}
ORDER BY lane, moment, id LIMIT {limit})"""

    FIND_LATE_LEASE = f"""SELECT id FROM tasks FORCE INDEX (tasks_lanes)
WHERE lane = {RUNNING} AND moment > {{until}} LIMIT 1"""
    SHORTEN = f"""UPDATE tasks FORCE INDEX (tasks_lanes) SET moment = {{until}}
WHERE lane = {RUNNING} AND moment > {{until}}
ORDER BY moment DESC LIMIT {{limit}}"""
    FIND_LATER = f"SELECT {_LATER}moment > {{after}} ORDER BY moment, id LIMIT {{limit}}"
    FIND_LATER_AT = f"""SELECT {_LATER}moment = {{due_at}} AND id > {{after}}
ORDER BY moment, id LIMIT {{limit}}"""
    NEXT_APP = """SELECT lane FROM tasks FORCE INDEX (tasks_lanes) WHERE lane > {after}
ORDER BY lane LIMIT 1"""
    BRING_FORWARD = """UPDATE JSON_TABLE({table}, '$[*]' COLUMNS (
    id BIGINT PATH '$[0]', was BIGINT PATH '$[1]', due_at BIGINT PATH '$[2]'
)) AS v STRAIGHT_JOIN tasks FORCE INDEX (PRIMARY) ON tasks.id = v.id
SET tasks.moment = v.due_at WHERE tasks.lane > 0 AND tasks.moment = v.was"""
    LAST_CREATED = "SELECT created_at FROM tasks ORDER BY id DESC LIMIT 1"
    LAST_FINISHED = f"""SELECT moment FROM tasks FORCE INDEX (tasks_lanes) WHERE lane = {OVER}
ORDER BY lane DESC, moment DESC LIMIT 1"""

    FIND_FINISHED = f"""SELECT id FROM tasks FORCE INDEX (tasks_lanes)
WHERE lane = {OVER} AND moment < {{before}}
ORDER BY lane, moment, id LIMIT {{limit}} FOR UPDATE SKIP LOCKED"""
    PURGE: tuple[str, ...] = (
        "DELETE FROM attempts WHERE task_id IN {ids}",
        "DELETE FROM contents WHERE task_id IN {ids}",
        "DELETE FROM tasks WHERE id IN {ids}",
    )

    APPS_AFTER = f"SELECT {_APP_COLUMNS} FROM apps WHERE id > {{after}} ORDER BY id LIMIT {{limit}}"
    APPS_LIKE = f"SELECT {_APP_COLUMNS} FROM apps WHERE id = {{id}} OR app_key = {{app_key}}"
    PUT_APPS = f"INSERT INTO apps ({_APP_COLUMNS}) VALUES {{rows}}"
    STRIDE_END = f"""SELECT MAX(id) FROM (
    SELECT id FROM tasks FORCE INDEX (PRIMARY) WHERE id > {{after}} ORDER BY id LIMIT {STRIDE}
) AS stride"""
    TASKS_AFTER = """SELECT tasks.id, app_id, state, moment, token, attempt, failures, abandoned,
    sent, timeout_ms, step, retry_total, runtime, created_at, task_no, name, tasks.content,
    contents.content
FROM tasks LEFT JOIN contents ON contents.task_id = tasks.id
WHERE tasks.id > {after} AND tasks.id <= {last} AND lane > 0
ORDER BY tasks.id LIMIT {limit}"""
    ATTEMPTS = """SELECT task_id, attempt, started_at, ended_at, outcome, http_status, response,
    error
FROM attempts WHERE task_id IN {ids} ORDER BY task_id, attempt"""
    TASKS_LIKE = """SELECT id, app_id, task_no FROM tasks WHERE id = {id}
UNION SELECT id, app_id, task_no FROM tasks WHERE app_id = {app_id} AND task_no = {task_no}"""
    COUNT_APPS = "SELECT COUNT(*) FROM apps WHERE id = {id}"
    PUT_TASKS = """INSERT INTO tasks (id, app_id, lane, moment, state, token, attempt, failures,
    abandoned, sent, timeout_ms, step, retry_total, runtime, created_at, task_no, name, content)
VALUES {rows}"""
    COUNT_RUNNING = f"SELECT COUNT(*) FROM tasks WHERE lane = {RUNNING}"

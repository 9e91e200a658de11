"""The session that an operation works with: a writer's transaction, or a reader's connection.

All differences between the databases are here: the statements, which each store's session
has under these names, and a few values and steps, which are methods. All else is written
once, in the operations.

A MySQL session awaits its server on Trio's loop. SQLite answers at once, so a thread without
a loop carries out a whole operation by `at_once`.
"""

from __future__ import annotations

from collections.abc import Collection, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from taskd.domain.model import DueTask, NewTask, Shard, StoredTask
from taskd.domain.transitions import Ended
from taskd.stores.app_cache import AppCache

T = TypeVar("T")

Scalar = str | bytes | int | None
Value = Scalar | Collection[Scalar]
"""A value for a statement. A collection is the list of an ``IN``, and has at least one
element."""

Row = Sequence[Any]
"""A row that a statement answers. Text may come as its bytes, see `encoding.as_text`."""


class Statements(Protocol):
    """The statements: the values, or the columns of the rows, that each takes, and the columns
    of the rows that it answers."""

    ADD_APP: str
    """Takes an app's fields."""

    APPS_BY_ID: str
    """Takes ids. Answers the columns of `encoding.read_app`."""
    APP_BY_KEY: str
    """Takes app_key. Answers the same."""
    APP_IDS: str
    """Takes app_keys. Answers id."""
    DETAIL_BY_ID: str
    """Takes app_id, task_id. Answers a row for each attempt, one if there is none: the task's id,
    app_id, task_no, name, state, runtime, due_at, timeout_ms, attempt, retry_total, created_at,
    finished_at, node, cancel_requested, cancel_word, and the columns of `encoding.read_attempt`."""
    DETAIL_BY_NO: str
    """Takes app_id, task_no. Answers the same."""
    COUNT_WAITING: str
    """Takes app_id, limit. Answers how many of the app's tasks wait, ``limit`` at most."""
    CONTENT: str
    """Takes task_id. Answers content."""

    FIND_WAITING: str
    """Locks waiting tasks that are due. Takes ids, now. Answers id, app_id, token, attempt,
    failures, sent, due_at, timeout_ms, step, retry_total, task_no, name, content (None: apart)."""
    FIND_UNSUSPECTED: str
    """The same, without suspects."""
    LEASE: str
    """Takes ids, node, now, expires_at."""
    FIND_LENGTHS: str
    """Lengths of contents that stand apart. Takes ids (of tasks). Answers task_id, bytes."""
    FIND_CONTENTS: str
    """Contents that stand apart. Takes ids (of tasks). Answers task_id, content."""

    FIND_RUNNING: str
    """Locks tasks that are leased. Takes ids. Answers id, app_id, token, node, leased_at,
    attempt, failures, abandoned, sent, cancel_requested."""
    EXTEND: str
    """Takes ids, expires_at."""
    END: str
    """Ends leases. Takes rows of `Session.ended_row`."""
    ADD_ATTEMPTS: str
    """Takes rows of `encoding.attempt_row`."""
    FIND_EXPIRED: str
    """Locks tasks whose leases end by ``until``, the earliest first. Takes until, node (None: any),
    alive and exclude (nodes and ids to skip), limit. Answers as `FIND_RUNNING`, and task_no."""

    FIND_TASKS: str
    """Locks tasks. Takes ids. Answers id, app_id, task_no, state, node, sent, abandoned."""
    CANCEL: str
    """Cancels waiting tasks. Takes rows: id, certainty, finished_at."""
    REQUEST_CANCEL: str
    """Writes cancel requests on running tasks. Takes ids."""

    FIND_END: str
    """How a node ended. Takes node. Answers stopping, in_flight."""
    COUNT_IN_FLIGHT: str
    """Takes node, limit. Answers how many leases the node has, ``limit`` at most."""
    NOTE_END: str
    """Takes node, stopping, in_flight, now. Keeps the time, and greater values, noted before."""
    FORGET_ENDS: str
    """Deletes notes made before a time. Takes before."""
    FIND_ALONE: str
    """Locks suspects. Takes ids. Answers task_id, alone."""
    SUSPECT: str
    """Adds or replaces suspects. Takes rows: task_id, kind, alone."""
    CLEAR: str
    """Deletes suspects. Takes ids."""
    FIND_SUSPECTS: str
    """Takes now, after (an id), limit (per kind). Answers task_id, app_id, due_at, abandoned."""
    COUNT_DEATHS: str
    """Takes after, now. Answers how many nodes died between them."""

    FIND_LATE_LEASE: str
    """A leased task whose lease ends after a time, if there is one. Takes until."""
    SHORTEN: str
    """Lets up to ``limit`` leases that end after ``until`` end then. Takes until, limit."""
    FIND_LATER: str
    """Waiting tasks, by due time and id. Takes app_id, after (a due time), limit. Answers id,
    app_id, state, due_at, created_at, and ended_at and outcome of the last attempt."""
    FIND_LATER_AT: str
    """Waiting for one time. Takes app_id, due_at, after (an id), limit. Answers the same."""
    NEXT_APP: str
    """Takes after (an app's id). Answers the id of the next app that has waiting tasks."""
    BRING_FORWARD: str
    """Takes rows: id, old due_at, new due_at. Skips tasks that do not wait for the old one now."""
    LAST_CREATED: str
    """Answers when the newest task was created."""
    LAST_FINISHED: str
    """Answers when the last task ended."""

    FIND_FINISHED: str
    """Locks tasks that ended before a time, the earliest first. Takes before, limit. Answers id."""
    PURGE: tuple[str, ...]
    """Delete tasks with their attempts and contents. Each takes ids."""

    APPS_AFTER: str
    """Takes after (an id), limit. Answers the columns of `encoding.read_app`."""
    APPS_LIKE: str
    """Apps of this id or with this key. Takes id, app_key. Answers the same."""
    PUT_APPS: str
    """Takes rows of the same columns."""
    STRIDE_END: str
    """Takes after (an id). Answers the last id for one `TASKS_AFTER` to look at."""
    TASKS_AFTER: str
    """Waiting tasks. Takes after and last (ids), limit. Answers id, app_id, state, due_at, token,
    attempt, failures, abandoned, sent, timeout_ms, step, retry_total, runtime, created_at,
    task_no, name, content, content that stands apart."""
    ATTEMPTS: str
    """Takes ids. Answers task_id, and the columns of `encoding.read_attempt`."""
    TASKS_LIKE: str
    """Tasks of this id or with this taskNo. Takes id, app_id, task_no. Answers these columns."""
    COUNT_APPS: str
    """Takes id. Answers how many apps have it."""
    PUT_TASKS: str
    """Takes rows of `Session.stored_row`."""
    ADD_CONTENTS: str
    """Takes rows: task_id, content."""


class Session(Statements, Protocol):
    """Runs statements, and writes values as its database has them."""

    apps: AppCache
    """The store's cache of apps."""
    TAKEN: type[Exception]
    """The exception for a row whose key another row has."""

    async def fetch(self, statement: str, **values: Value) -> Sequence[Row]:
        """Run a statement, and return the rows that it answers."""
        ...

    async def execute(self, statement: str, **values: Value) -> None:
        """Run a statement that answers nothing."""
        ...

    async def execute_many(self, statement: str, rows: Sequence[Sequence[Scalar]]) -> None:
        """Run a statement over rows of one width, any number of them."""
        ...

    async def insert(self, statement: str, **values: Value) -> int:
        """Run a statement that adds a row, and return the row's id."""
        ...

    def key(self, text: str) -> Scalar:
        """Return an app's key or a taskNo as its column has it."""
        ...

    def contended(self, how: str) -> Exception:
        """Return the exception to raise if other writers keep a transaction from its work."""
        ...

    async def add_tasks(self, tasks: Sequence[NewTask]) -> Sequence[int]:
        """Add tasks, and return their ids, which ascend.

        Raises:
            TAKEN: a taskNo is taken, in the store or by another of these. None was added.
        """
        ...

    async def add_nonces(self, rows: Sequence[tuple[bytes, int]]) -> None:
        """Add nonces, up to 500 rows: digest, expires_at.

        Raises:
            TAKEN: one was added before. None of these was added.
        """
        ...

    async def find_nonces(self, digests: Sequence[bytes]) -> Collection[bytes]:
        """Return those of these digests of nonces that were added before."""
        ...

    async def forget_nonces(self, now: int, limit: int) -> int:
        """See `Store.purge_nonces`."""
        ...

    async def find_task_nos(
        self, keys: Collection[tuple[int, str]]
    ) -> dict[tuple[int, str], tuple[int, int]]:
        """Return ids and state codes of the tasks with these pairs of app and taskNo, by pair.
        Locks nothing."""
        ...

    async def find_due(
        self,
        *,
        until: int,
        after: int | None,
        limit_per_app: int,
        skip_apps: Collection[int],
        shard: Shard,
    ) -> list[DueTask]:
        """See `Store.find_due`."""
        ...

    def stored_row(self, task: StoredTask) -> Sequence[Scalar]:
        """Return a row of `PUT_TASKS`. Its last value is the content, None if that has to stand
        apart."""
        ...

    def ended_row(self, app_id: int, ended: Ended) -> Sequence[Scalar]:
        """Return a row of `END`."""
        ...


def at_once(operation: Coroutine[Any, Any, T]) -> T:
    """Carry out an operation whose session answers at once.

    Raises:
        RuntimeError: the operation waited for something, which is a defect.
    """
    try:
        operation.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    operation.close()
    raise RuntimeError("an operation waited, though its session answers at once")

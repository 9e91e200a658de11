"""What an operation works with: one transaction of a writer, or one look of a reader.

Where the databases differ, they differ here: in the statements, which each store's session
has under these names, and in a few values and steps, which are methods. All else is the
operations', once.

A session of MySQL waits for its server in Trio's way. SQLite answers at once, so a thread
without a loop carries a whole operation out by `at_once`.
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
"""What goes into a statement. A collection is what stands after ``IN``: it has at least one
element."""

Row = Sequence[Any]
"""What a statement answers. Text may come as its bytes, see `encoding.as_text`."""


class Statements(Protocol):
    """The statements: what each is told, by name or in rows, and which columns it answers."""

    ADD_NONCES: str
    """Of rows, up to 500: digest, expires_at. Adds all of them or none."""
    ADD_APP: str
    """Of an app's fields."""

    APPS_BY_ID: str
    """Of ids: as `encoding.read_app` takes it."""
    APP_BY_KEY: str
    """Of app_key: the same."""
    APP_IDS: str
    """Of app_keys: id."""
    DETAIL_BY_ID: str
    """Of app_id and task_id, a row for each attempt, or one: the task's id, app_id, task_no,
    name, state, runtime, due_at, timeout_ms, attempt, retry_total, created_at, finished_at,
    node, cancel_requested, cancel_word, and the attempt as `encoding.read_attempt` takes it."""
    DETAIL_BY_NO: str
    """Of app_id and task_no: the same."""
    COUNT_WAITING: str
    """Of app_id and limit: how many of its tasks wait, not counted beyond the limit."""
    CONTENT: str
    """Of task_id."""

    FIND_WAITING: str
    """Locks tasks that are due. Of ids and now: id, app_id, token, attempt, failures, sent,
    due_at, timeout_ms, step, retry_total, task_no, name, content (None: it stands apart)."""
    FIND_UNSUSPECTED: str
    """The same, but for suspects."""
    LEASE: str
    """Of ids, node, now, expires_at."""
    FIND_LENGTHS: str
    """Of contents that stand apart, of task ids: task_id, bytes."""
    FIND_CONTENTS: str
    """Of task ids: task_id, content."""

    FIND_RUNNING: str
    """Locks tasks that are leased. Of ids: id, app_id, token, node, leased_at, attempt,
    failures, abandoned, sent, cancel_requested."""
    EXTEND: str
    """Of ids, expires_at."""
    END: str
    """Ends leases. Of rows as `Session.ended_row` has them."""
    ADD_ATTEMPTS: str
    """Of rows as `encoding.attempt_row` has them."""
    FIND_EXPIRED: str
    """Locks leased tasks, those first whose leases end first. Of until, node (None: of any),
    alive (not of these), exclude (not these ids), limit: as `FIND_RUNNING`, and task_no."""

    FIND_TASKS: str
    """Locks tasks. Of ids: id, app_id, task_no, state, node, sent, abandoned."""
    CANCEL: str
    """Cancels waiting tasks. Of rows: id, certainty, finished_at."""
    WISH: str
    """Notes that running tasks are to be cancelled. Of ids."""

    FIND_END: str
    """How a node ended. Of node: stopping, in_flight."""
    COUNT_IN_FLIGHT: str
    """Of node and limit: how many leases it has, not counted beyond the limit."""
    NOTE_END: str
    """Of node, stopping, in_flight, now."""
    FORGET_ENDS: str
    """Of before."""
    FIND_ALONE: str
    """Locks suspects. Of ids: task_id, alone."""
    SUSPECT: str
    """Of rows: task_id, kind, alone."""
    CLEAR: str
    """Of ids."""
    FIND_SUSPECTS: str
    """Of now, after (an id), limit (of each kind): task_id, app_id, due_at, abandoned."""
    COUNT_DEATHS: str
    """Of after and now: how many nodes died between them."""

    SHORTEN: str
    """Has leases end at a time at the latest, those first that end last. Of until, limit."""
    FIND_LATER: str
    """Tasks that wait, by due time and id. Of app_id, after (a due time), limit: id, app_id,
    state, due_at, created_at, and ended_at and outcome of the last attempt."""
    FIND_LATER_AT: str
    """Those that wait for one time. Of app_id, due_at, after (an id), limit: the same."""
    NEXT_APP: str
    """Of after, an id: the id of the next application that has waiting tasks."""
    BRING_FORWARD: str
    """Of rows: id, due_at before, due_at. Passes over those that wait no more for that."""
    LAST_CREATED: str
    """When the newest task was created."""
    LAST_FINISHED: str
    """When the last task ended."""

    FIND_FINISHED: str
    """Locks tasks that ended, the first first. Of before and limit: id."""
    PURGE: tuple[str, ...]
    """Each of ids."""

    APPS_AFTER: str
    """Of after (an id) and limit: as `encoding.read_app` takes it."""
    APPS_LIKE: str
    """Apps of this id or with this key. Of id and app_key: the same."""
    PUT_APPS: str
    """Of rows: the same."""
    STRIDE_END: str
    """Of after (an id): the last of the ids that are looked at in one go."""
    TASKS_AFTER: str
    """Waiting tasks. Of after and last (ids) and limit: id, app_id, state, due_at, token,
    attempt, failures, abandoned, sent, timeout_ms, step, retry_total, runtime, created_at,
    task_no, name, content, content that stands apart."""
    ATTEMPTS: str
    """Of ids: task_id, and the attempt as `encoding.read_attempt` takes it."""
    TASKS_LIKE: str
    """Tasks of this id or with this taskNo. Of id, app_id, task_no: id, app_id, task_no."""
    COUNT_APPS: str
    """Of id: how many there are."""
    PUT_TASKS: str
    """Of rows as `Session.stored_row` has them."""
    ADD_CONTENTS: str
    """Of rows: task_id, content."""


class Session(Statements, Protocol):
    """Runs statements, and knows the values of its database."""

    apps: AppCache
    """Those that the store has read."""
    TAKEN: type[Exception]
    """What is raised for rows with keys that others have."""

    async def fetch(self, statement: str, **values: Value) -> Sequence[Row]:
        """Run a statement that answers rows."""
        ...

    async def execute(self, statement: str, **values: Value) -> None:
        """Run a statement that answers nothing."""
        ...

    async def execute_many(self, statement: str, rows: Sequence[Sequence[Scalar]]) -> None:
        """Run a statement over rows of one width, any number of them."""
        ...

    async def insert(self, statement: str, **values: Value) -> int:
        """Run a statement that adds a row; returns the id that this was given."""
        ...

    def key(self, text: str) -> Scalar:
        """An app's key or a taskNo as it stands in its column."""
        ...

    def contended(self, how: str) -> Exception:
        """What to raise where others keep a transaction from what it is to do."""
        ...

    async def add_tasks(self, tasks: Sequence[NewTask]) -> Sequence[int]:
        """Add tasks; returns their ids, which ascend.

        Raises:
            TAKEN: some have taskNos that others have. None was added.
        """
        ...

    async def find_nonces(self, digests: Sequence[bytes]) -> Collection[bytes]:
        """Those of nonces' digests that were added before."""
        ...

    async def forget_nonces(self, now: int, limit: int) -> int:
        """See `Store.purge_nonces`."""
        ...

    async def find_task_nos(
        self, keys: Collection[tuple[int, str]]
    ) -> dict[tuple[int, str], tuple[int, int]]:
        """The ids and state codes of the tasks that have these pairs of app and taskNo.
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
        """A row of `PUT_TASKS`; its last value is the content, None where that has to stand
        apart."""
        ...

    def ended_row(self, app_id: int, ended: Ended) -> Sequence[Scalar]:
        """A row of `END`."""
        ...


def at_once(operation: Coroutine[Any, Any, T]) -> T:
    """Carry out an operation whose session answers at once.

    Raises:
        RuntimeError: it waited for something, which only a defect can do.
    """
    try:
        operation.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    operation.close()
    raise RuntimeError("an operation waited, though its session answers at once")

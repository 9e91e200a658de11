"""The values that all of taskd uses.

Moments are integers: milliseconds since the Unix epoch, UTC. Durations carry their unit in
the name. No value changes once it is made; a secret never shows in a repr.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from taskd.domain.record import record

MAX_COROUTINE_ID = 2**53 - 1
"""Largest coroutine_id: the integers that a JavaScript client keeps exactly."""

SHORT_CONTENT = 2_000
"""Bytes up to which a content stands in its task's row and does not count in memory: one for
each slot takes less memory than the slots themselves."""


class TaskState(StrEnum):
    """Where a task is in its life.

    ``scheduled``, ``running`` and ``retrying`` are alive, the other three are
    terminal and never change.
    """

    SCHEDULED = "scheduled"
    """It waits for its time; no attempt has been made. A lease or a cancel ends this."""
    RUNNING = "running"
    """A node leases it, its coroutine lives. A settlement or reaping ends this."""
    RETRYING = "retrying"
    """It waits for its next attempt. A lease or a cancel ends this."""
    SUCCEEDED = "succeeded"
    """The application answered success."""
    FAILED = "failed"
    """No retries left, 410 Gone, or the likely cause of its nodes' deaths."""
    CANCELLED = "cancelled"
    """Cancelled through the API; never attempted again."""

    @property
    def terminal(self) -> bool:
        """Whether the task has ended."""
        return self in _TERMINAL


_TERMINAL = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED})


class Outcome(StrEnum):
    """How one attempt ended."""

    SUCCEEDED = "succeeded"
    REJECTED = "rejected"
    """The application answered, but not with success."""
    TIMED_OUT = "timed_out"
    UNREACHABLE = "unreachable"
    """No connection, or no readable answer on it."""
    DENIED = "denied"
    """Egress rules forbid the address."""
    CANCELLED = "cancelled"
    ABANDONED = "abandoned"
    """Its node died or was stopped while the attempt was under way."""


class Phase(StrEnum):
    """Where a running delivery is, in this order."""

    RESOLVING = "resolving"
    CONNECTING = "connecting"
    TLS = "tls"
    SENDING = "sending"
    AWAITING_RESPONSE = "awaiting_response"
    READING = "reading"


class CancelCertainty(StrEnum):
    """How sure a cancellation is, as ``/task/cancel`` answers it."""

    NEVER_SENT = "never_sent"
    BETWEEN_ATTEMPTS = "between_attempts"
    ABORTED_BEFORE_RESPONSE = "aborted_before_response"
    ABORTED_DURING_RESPONSE = "aborted_during_response"
    UNKNOWN = "unknown"


class SuccessRule(StrEnum):
    """Which answers of an application are a success."""

    BODY = "body"
    """A 2xx whose body is the word ``success``."""
    STATUS = "status"
    """Any 2xx."""


@dataclass(frozen=True, kw_only=True, slots=True)
class App:
    """An application: submits tasks, and gets them delivered to its URL."""

    id: int
    """Its row in the Store; 0 before the Store has given one."""
    app_key: str
    secret_key: str = field(repr=False)
    name: str
    link_url: str
    step: int
    """Seconds by which the wait before each retry grows."""
    retry_total: int
    """Retries after the first attempt."""
    remark: str
    created_at: int
    success: SuccessRule = SuccessRule.BODY


@record(kw_only=True)
class NonceUse:
    """A nonce to be used up: refused for its key until ``expires_at``."""

    app_key: str
    nonce: str
    expires_at: int
    signed_at: int = 0
    """When the request says it was signed. Where clocks show this time twice, the earlier
    moment."""
    signed_latest: int = 0
    """The later of these moments."""


@record
class FirstLease:
    """A lease that a task is added under, by a node that begins it at once."""

    node: str
    leased_at: int
    expires_at: int


@record(kw_only=True)
class NewTask:
    """A validated task on its way into the Store."""

    app_id: int
    task_no: str
    name: str
    content: bytes = field(repr=False)
    """JSON text, as it stands in the callback's ``{"data": CONTENT}``."""
    timeout_ms: int
    """Limit of one attempt."""
    due_at: int
    """Never attempted before this time."""
    runtime: int | None = None
    """The time that was asked for, if it had passed and therefore is not `due_at`."""
    step: int | None = None
    """Overrides the app's, if given."""
    retry_total: int | None = None
    """Overrides the app's, if given."""
    created_at: int
    lease: FirstLease | None = None
    """Only for a task that is due and runs as soon as it is added."""

    def under(self, lease: FirstLease) -> NewTask:
        """Return the same task, to be added under this lease. (`dataclasses.replace` takes
        three times as long.)"""
        return NewTask(
            app_id=self.app_id,
            task_no=self.task_no,
            name=self.name,
            content=self.content,
            timeout_ms=self.timeout_ms,
            due_at=self.due_at,
            runtime=self.runtime,
            step=self.step,
            retry_total=self.retry_total,
            created_at=self.created_at,
            lease=lease,
        )


@record
class ExistingTask:
    """A task that already has the taskNo of one that was to be added."""

    id: int
    state: TaskState
    """In the transaction that was to add the other one."""


@record(kw_only=True)
class DueTask:
    """A waiting task's id and time: a hint, valid when it was read."""

    task_id: int
    app_id: int
    due_at: int


@record(kw_only=True)
class Suspect:
    """A waiting task whose node died during its last attempt."""

    task: DueTask
    abandoned: int
    """How many of its last attempts ended so, in a row."""


@record(kw_only=True)
class Suspects:
    """Suspects that wait, and the number of recent deaths of nodes."""

    waiting: tuple[Suspect, ...]
    deaths: int
    """Nodes found dead in the last ten minutes that had not been told to stop."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One of ``of`` parts that all tasks are divided into. Each part has about as many tasks
    of each app and of each stretch of time, whatever pattern their ids follow."""

    number: int
    """From 0."""
    of: int

    def has(self, task_id: int) -> bool:
        """Whether the task of this id is in this shard."""
        return shard_of(task_id, self.of) == self.number


WHOLE = Shard(0, 1)
"""All tasks, as one shard."""


def shard_of(task_id: int, shards: int) -> int:
    """Return the number of the shard that a task is in. The id's lowest bits alone would not
    do: of two applications that create in turns, each would be in one shard only."""
    return ((task_id + (task_id >> SHARD_FOLD)) * SHARD_FACTOR >> SHARD_SHIFT) % shards


SHARD_FOLD = 9
SHARD_FACTOR = 0x9E37
SHARD_SHIFT = 8
"""The fold lets higher bits decide too; the factor spreads ids by the golden ratio's digits
(D. Knuth, The Art of Computer Programming, 6.4). Ids may have 47 bits: the product fits 64."""


@record(kw_only=True)
class Lease:
    """The right to work on a task until ``expires_at``.

    ``token`` grows with every lease of the task, and a write with an older token changes
    nothing.
    """

    task_id: int
    token: int
    node: str
    expires_at: int


@record(kw_only=True)
class LeasedTask:
    """All values that one attempt needs, as they were when the lease was taken."""

    lease: Lease
    app: App
    task_no: str
    name: str
    content: bytes = field(repr=False)
    """Empty if it was left in the Store."""
    timeout_ms: int
    due_at: int
    """When this attempt was due."""
    leased_at: int
    attempt: int
    """This attempt's number, 1 for the first."""
    failures: int
    """Attempts that failed before; abandoned ones do not count."""
    sent_before: bool
    """Whether an earlier attempt sent anything, as far as is known."""
    step: int
    """Seconds; the task's own or its app's."""
    retry_total: int
    """The task's own or its app's."""
    left_bytes: int = 0
    """Length of the content if it was left in the Store, else 0."""


@record(kw_only=True)
class Attempt:
    """One attempt, as the Store keeps it."""

    attempt: int
    started_at: int
    ended_at: int
    outcome: Outcome
    http_status: int | None = None
    response: str | None = field(default=None, repr=False)
    """The first 4 KiB of the answer's body, undecodable bytes replaced."""
    error: str | None = None


@record(kw_only=True)
class Settlement:
    """How a lease ends: the task's next state, and the attempt that led to it.

    ``state`` is ``succeeded``, ``failed``, ``cancelled`` or ``retrying``; the
    last needs ``due_at``. If a cancel was requested, the Store writes ``cancelled`` instead of
    ``retrying`` and ``failed``.
    """

    lease: Lease
    state: TaskState
    settled_at: int
    due_at: int | None = None
    """When the next attempt is due; only with ``retrying``."""
    attempt: Attempt | None
    """None if the lease is given back, nothing was sent, and the attempt is not recorded: the
    next one gets its number."""
    failures: int
    """Failed attempts so far, this one included if it failed."""
    sent: bool
    """Whether this attempt sent anything."""
    certainty: CancelCertainty
    """What a cancel is told if this settlement ends as ``cancelled``."""


@record(kw_only=True)
class TaskDetail:
    """A task as the Store knows it, with its attempts in order."""

    id: int
    app_id: int
    task_no: str
    name: str
    state: TaskState
    runtime: int
    """The time that the create asked for, which may have been past already."""
    due_at: int | None
    """When the next attempt is due; None while running and after the end."""
    timeout_ms: int
    attempt: int
    """Number of the last attempt that was begun, 0 before the first."""
    retry_total: int
    created_at: int
    finished_at: int | None
    node: str | None
    """The node that holds the lease, while running."""
    cancel_requested: bool
    cancel_certainty: CancelCertainty | None
    """Set once the task is cancelled."""
    attempts: tuple[Attempt, ...]


@record(kw_only=True)
class StoredTask:
    """A waiting task with every column of its row, as it moves between Stores."""

    id: int
    app_id: int
    state: TaskState
    """``scheduled`` or ``retrying``."""
    due_at: int
    token: int
    """The token of its last lease; the next lease's is greater."""
    attempt: int
    failures: int
    abandoned: int
    """How many of its last attempts were abandoned, in a row."""
    sent: bool
    timeout_ms: int
    step: int | None
    retry_total: int | None
    runtime: int
    created_at: int
    task_no: str
    name: str
    content: bytes = field(repr=False)
    attempts: tuple[Attempt, ...]


@record(kw_only=True)
class CancelDecision:
    """How the Store decided on a cancel.

    ``state`` is ``cancelled`` (it was waiting; ``certainty`` says what its receiver can have
    seen), ``running`` (the request is durable; ``node`` must end the coroutine) or None (the
    app has no such task, or it has ended; nothing was changed).
    """

    state: TaskState | None
    task_id: int | None = None
    task_no: str | None = None
    """The task's id and taskNo; None if ``state`` is."""
    certainty: CancelCertainty | None = None
    node: str | None = None


@record(kw_only=True)
class ReapedTask:
    """A task whose lease was reaped, and what became of it."""

    task_id: int
    task_no: str
    app_id: int
    state: TaskState
    """``retrying`` (due now), ``failed`` (abandoned too often) or ``cancelled``
    (a cancel was requested)."""
    due_at: int | None
    node: str
    attempt: int
    """The attempt that was recorded as abandoned."""


@record(kw_only=True)
class Inspection:
    """A look into a live coroutine, taken between two of its steps."""

    node: str
    phase: Phase | None
    """None before the delivery has begun and after it has ended."""
    frames: tuple[Frame, ...]
    """Innermost first."""
    executed: Frame
    """The innermost frame of this package's own code."""
    variables: dict[str, str | int | float | bool | None]
    """That frame's allow-listed locals."""
    rounds: int
    """Times the coroutine was resumed."""
    elapsed_ms: int


@record
class Frame:
    """One frame of a suspended coroutine; the path is relative to the folder
    that its package stands in."""

    file: str
    line: int
    function: str

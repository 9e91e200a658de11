"""The three ports: what the core needs of the world, in its own words.

- `Store` is the truth: tasks, attempts, leases. Only what it has committed is so.
- `Queue` carries wake-ups. Losing, doubling or reordering them costs time only.
- `Bus` carries signals between nodes, and says who runs the timer.

One adapter of each makes the embedded default; others make a cluster.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from taskd.domain.model import (
    WHOLE,
    App,
    CancelDecision,
    DeliveryWord,
    DueTask,
    ExistingTask,
    Inspection,
    Lease,
    LeasedTask,
    NewTask,
    NonceUse,
    Part,
    ReapedTask,
    Settlement,
    StoredTask,
    Suspects,
    TaskDetail,
    TaskState,
)


@dataclass(frozen=True, slots=True)
class BroughtForward:
    """What became of waiting tasks that were looked at."""

    tasks: tuple[DueTask, ...]
    """Those that are due sooner now."""
    reached: DueTask | None
    """The last one that was looked at; None where there are no more after it."""


@dataclass(frozen=True, slots=True)
class ExtendResult:
    """What became of the leases that were to be extended."""

    lost: frozenset[int]
    """Task ids whose token is not current any more."""
    cancel_requested: frozenset[int]
    """Task ids under a cancel wish; these were extended all the same."""


class Store(Protocol):
    """Tasks, attempts, leases, apps and nonces, durably.

    Every writing method is atomic and has returned only after its change is on
    disk. A caller that is cancelled while it waits leaves either the whole
    change or none of it, never a part. Every method may raise
    `StoreUnavailable`, and has then changed nothing.

    Times are passed in; the Store never asks a clock.
    """

    async def create_app(self, app: App, nonce: NonceUse | None = None) -> App:
        """Add an app (its id is ignored) and return it with its id.

        With ``nonce``, uses it up in the same transaction.

        Raises:
            NonceUsed: nothing was changed.
        """
        ...

    async def app_by_key(self, app_key: str) -> App | None:
        """The app of this key. Cached where that is safe, so cheap."""
        ...

    def known_app(self, app_key: str) -> App | None:
        """The app of this key, if it is cached. Asks nobody, and says nothing of an app
        that is not."""
        ...

    async def apps_by_key(self, app_keys: Collection[str]) -> Mapping[str, App]:
        """The apps of these keys, looked up anew, whatever is cached; what is no app's key is
        left out. Whatever was created before the call is found."""
        ...

    async def app_by_id(self, app_id: int) -> App | None:
        """The app of this id. Cached as `app_by_key` is."""
        ...

    async def create_task(self, task: NewTask, nonce: NonceUse | None = None) -> int:
        """Add a task in state ``scheduled`` and return its id, never given before. One
        that has a lease is ``running`` under it instead, with token and attempt 1, as if
        it had been leased at once.

        With ``nonce``, uses it up in the same transaction, also where the task
        itself is refused as a duplicate.

        Raises:
            NonceUsed: nothing was changed.
            DuplicateTaskNo: the app has such a task; no task was added.
        """
        ...

    async def create_tasks(
        self, tasks: Sequence[NewTask], nonce: NonceUse | None = None, *, atomic: bool = False
    ) -> list[int | ExistingTask]:
        """Add tasks, all in one transaction, and return the id of each in their order.
        One whose taskNo its app has already, or an earlier one of these has, is not
        added; in its place stands the task that has it.

        Those that are added get ascending ids. ``atomic`` adds all of them or none.
        With ``nonce``, uses it up in the same transaction, also where none of the
        tasks is added.

        Args:
            tasks: at least one, of any apps.
            nonce: to be used up.
            atomic: whether one that can't be added keeps the others from being added.

        Raises:
            NonceUsed: nothing was changed.
            BatchRefused: only with ``atomic``; no task was added.
        """
        ...

    async def use_nonce(self, nonce: NonceUse) -> None:
        """Use a nonce up.

        Raises:
            NonceUsed: it was used before, and has not been purged since.
        """
        ...

    async def task_detail(
        self, app_id: int, *, task_id: int | None = None, task_no: str | None = None
    ) -> TaskDetail | None:
        """The app's task of this id or taskNo (exactly one is given)."""
        ...

    async def find_due(
        self,
        *,
        until: int,
        after: int | None = None,
        limit_per_app: int,
        skip_apps: Collection[int] = (),
        part: Part = WHOLE,
    ) -> list[DueTask]:
        """Waiting tasks with ``after < due_at <= until`` (no lower bound without
        ``after``), each app's earliest first, at most ``limit_per_app`` of each,
        none of ``skip_apps``. Of a ``part``: those of its tasks that are among each
        app's earliest ``limit_per_app * part.of``, which may be more than
        ``limit_per_app``. Costs no more for apps with long backlogs."""
        ...

    async def lease(
        self,
        task_ids: Sequence[int],
        *,
        node: str,
        now: int,
        expires_at: int,
        suspects: bool = True,
        room: int | None = None,
    ) -> list[LeasedTask]:
        """Take those of the tasks that are waiting and due at ``now``: they become
        ``running`` with a new token and the next attempt number. The others are
        left alone, and without ``suspects`` so are those that `find_suspects` finds. Of
        two callers at once, one gets each task.

        Contents of more than `contents.SHORT` bytes come with it as far as they have no
        more than ``room`` bytes together (None: all do), in the order of the ids; the
        others are left to `content`."""
        ...

    async def content(self, task_id: int) -> bytes | None:
        """A task's content; None if there is no such task any more."""
        ...

    async def find_suspects(self, *, now: int, after: int, limit: int) -> Suspects:
        """Waiting tasks with ids greater than ``after`` that are due at ``now`` and whose
        nodes died during their last attempts: the first ``limit`` each of those abandoned
        once, twice, and more often in a row. Each was in flight when a node died, so each
        may be why."""
        ...

    async def note_stopping(self, node: str, *, now: int) -> None:
        """Keep that this node was told to stop: should it be killed before it has
        stopped, none of its tasks was the cause."""
        ...

    async def extend(self, leases: Sequence[Lease], *, expires_at: int) -> ExtendResult:
        """Move the expiry of leases that are still held."""
        ...

    async def settle(self, settlement: Settlement) -> TaskState:
        """End a lease: write attempt and task together, return the state written.

        With a cancel wish on the row, ``retrying`` and ``failed`` become
        ``cancelled``, with the settlement's word. ``finished_at`` is
        ``settled_at`` for terminal states. A settlement with an attempt resets
        the count of abandoned attempts in a row, unless that attempt's outcome
        is ``abandoned`` (a drain's), which leaves it as it is. A settlement
        ``retrying`` without an attempt gives the attempt's number back and
        leaves the task ``scheduled`` where it never had another.

        Raises:
            LeaseLost: the token is stale; nothing was changed.
        """
        ...

    async def request_cancel(
        self, app_id: int, task_id: int | None = None, *, task_no: str | None = None, now: int
    ) -> CancelDecision:
        """Cancel a waiting task, or note the wish on a running one: the app's task of
        this id or taskNo (exactly one is given).

        Of a cancel and a lease at once, one wins: either the task is cancelled
        and no lease gets it, or it is running under the wish.
        """
        ...

    async def reap(
        self,
        *,
        now: int,
        expired_at: int | None,
        exclude: Collection[int],
        limit: int,
        node: str | None = None,
        alive: Collection[str] = (),
    ) -> list[ReapedTask]:
        """End leases that expired at or before ``expired_at`` (None: all leases,
        as a lone node does at its start), except of the tasks in ``exclude`` and of the
        nodes in ``alive``, which are known to live; with ``node``, only those of this
        node, which is known to be dead.

        Each task's attempt is recorded as abandoned, started at its lease and
        ended ``now``; the task becomes what `transitions.reaped` says, due
        ``now`` where it is to run again, and counts as having sent something. Whether it
        was nearly alone in flight is judged by all leases that its node had when the
        first of them was reaped.
        """
        ...

    async def bring_forward(self, *, now: int, after: DueTask | None, limit: int) -> BroughtForward:
        """Make those waiting tasks due sooner which were dated by a clock that was ahead
        of ``now``, as `transitions.brought_forward` says, and let no lease end later than
        it could by ``now``.

        Looks at up to ``limit`` tasks that wait for a time after ``now``, by app, due
        time and id, and begins after ``after``.
        """
        ...

    async def last_moment(self) -> int | None:
        """The latest time at which a task was created or ended, of those that are kept;
        None if there are none."""
        ...

    async def purge(self, *, finished_before: int, limit: int) -> int:
        """Delete up to ``limit`` tasks, with their attempts, that ended before
        then. Returns how many."""
        ...

    async def purge_nonces(self, *, now: int, limit: int) -> int:
        """Forget up to ``limit`` nonces that have expired. Returns how many."""
        ...

    async def probe(self) -> None:
        """Make sure that a write would be durable now.

        Raises:
            StoreUnavailable: it would not, and why.
        """
        ...

    def degraded(self) -> str | None:
        """What is not as it should be, though it does what it is asked to, or None.
        Never waits."""
        ...

    async def aclose(self) -> None:
        """Finish the writes in hand and close. Later calls raise
        `StoreUnavailable`."""
        ...


class Archive(Protocol):
    """What moves from Store to Store, while no node works on it. Each method is
    atomic, and may raise `StoreUnavailable`."""

    async def highest_task_id(self) -> int:
        """The highest task id that was ever given, 0 if none was."""
        ...

    async def apps_after(self, app_id: int, *, limit: int) -> list[App]:
        """Apps with higher ids, in their order."""
        ...

    async def tasks_after(self, task_id: int, *, limit: int) -> list[StoredTask]:
        """Waiting tasks with higher ids, in their order."""
        ...

    async def put_apps(self, apps: Sequence[App]) -> None:
        """Add apps under their ids; those that are there, just so, are passed over.

        Raises:
            TransferClash: another app has such an id or key; nothing was added.
        """
        ...

    async def put_tasks(self, tasks: Sequence[StoredTask]) -> None:
        """Add tasks under their ids; those that are there, of the same app and
        taskNo, are passed over, whatever has become of them.

        Raises:
            TransferClash: another task has such an id or taskNo, or its app is not
                there; nothing was added.
        """
        ...

    async def put_highest_task_id(self, task_id: int) -> None:
        """Never give this id, or a lower one, to a new task."""
        ...


class Queue(Protocol):
    """Wake-ups: "look at this task now".

    The Store decides what a wake-up is worth, so an adapter may drop, repeat or
    reorder them. It shares out fairly: tasks of different apps take turns.
    """

    def publish(self, tasks: Iterable[DueTask]) -> None:
        """Offer tasks that are due to any node. Never waits; drops what it has no
        room for."""
        ...

    def hold(self, tasks: Iterable[DueTask]) -> None:
        """Offer tasks to this node alone: what it found in the Store itself. Never
        waits; drops what it has no room for."""
        ...

    def keeps(self) -> int:
        """How many tasks that fall due now this node had better begin by itself than
        `publish`; none while others wait here for their turn."""
        ...

    def grace_ms(self) -> int:
        """How long a wake-up may be under way: what is overdue for less is left to
        it by those who read the Store. 0 where nothing carries it."""
        ...

    def part(self) -> Part:
        """Which part of a backlog this node had better look for in the Store, where
        all nodes look; `WHOLE` where it can't be told who else does."""
        ...

    def saturated(self) -> frozenset[int]:
        """Apps of which it holds so many, or which may begin so little, that reading
        more of them from the Store is not worth while yet. Asked once before each
        such reading."""
        ...

    def take(self, limit: int, admit: Callable[[int], bool]) -> list[DueTask]:
        """Up to ``limit`` wake-ups, apps taking turns. Never waits.

        ``admit(app_id)`` is asked before each one is taken. Once it says no, that
        app's stay where they are, and it is not asked about it again before `resume`.
        """
        ...

    def resume(self, app_ids: Iterable[int]) -> None:
        """Tell of apps that may perhaps be admitted again. Never waits."""
        ...

    def room(self, free: int) -> None:
        """Tell how many more tasks this node could work on now. Never waits."""
        ...

    def finish(self, tasks: Iterable[DueTask]) -> None:
        """Tell what the Store has answered for, of what was taken: they are leased
        here, or gone, or taken elsewhere. Never waits."""
        ...

    def release(self, tasks: Iterable[DueTask]) -> None:
        """Tell what the Store could not be asked about, of what was taken: it may
        go elsewhere. Never waits."""
        ...

    async def wait(self) -> None:
        """Return once something was offered since the last `wait` returned."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = ...) -> None:
        """Carry wake-ups between the nodes, until cancelled."""
        ...

    def degraded(self) -> str | None:
        """What does not work and is made up for, or None."""
        ...


@dataclass(frozen=True, slots=True)
class CancelSignal:
    """Ends the coroutine of a task whose cancel wish is durable."""

    task_id: int


@dataclass(frozen=True, slots=True)
class CancelReply:
    """The coroutine has unwound and its end is durable; ``state`` is None if no
    such coroutine lived there."""

    state: TaskState | None
    word: DeliveryWord | None


@dataclass(frozen=True, slots=True)
class InspectSignal:
    """Asks for a look into the coroutine of a task."""

    task_id: int


@dataclass(frozen=True, slots=True)
class InspectReply:
    """``inspection`` is None if no such coroutine lives there."""

    inspection: Inspection | None


Signal = CancelSignal | InspectSignal
Reply = CancelReply | InspectReply
SignalHandler = Callable[[Signal], Awaitable[Reply]]


class Bus(Protocol):
    """Signals between nodes, nonces that all nodes know, the timer's leadership."""

    @property
    def node(self) -> str:
        """This node's name, unique among those alive and not used by any before."""
        ...

    async def serve(
        self, handler: SignalHandler, *, task_status: trio.TaskStatus[None] = ...
    ) -> None:
        """Answer the signals sent to this node, until cancelled."""
        ...

    async def send(self, node: str, signal: Signal) -> Reply | None:
        """Send a signal and wait for its reply; None if the node is not alive or
        can't be reached. Waits as long as the caller lets it."""
        ...

    async def use_nonce(self, nonce: NonceUse) -> bool:
        """Use a nonce up, for all nodes; False where the Store has to as well: this
        Bus keeps none, or can't tell by itself whether this one was used before.

        Raises:
            NonceUsed: it was used before.
            SignedBeforeEpoch: that can't be known, as it was signed too early.
            BusUnavailable: that can't be known now.
        """
        ...

    def leads_timer(self) -> bool:
        """Whether this node is the one whose timer reads what falls due."""
        ...

    def obstacle(self) -> str | None:
        """Why signed requests can't be accepted now, or None."""
        ...

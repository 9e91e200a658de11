"""The use cases: what the API's endpoints do, without HTTP.

Every method gets the application that asks (an `App`), never trusts an id to be that app's,
and answers only what is durable.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence

import trio

from taskd.domain import signing
from taskd.domain.model import (
    App,
    CancelCertainty,
    DueTask,
    ExistingTask,
    FirstLease,
    Inspection,
    NewTask,
    NonceUse,
    SuccessRule,
    TaskDetail,
    TaskState,
)
from taskd.domain.record import record
from taskd.engine.engine import Engine
from taskd.engine.reservations import Reservation
from taskd.errors import DuplicateTaskNo, StoreUnavailable, TaskdError
from taskd.ports.bus import CancelReply, CancelSignal, InspectReply, InspectSignal
from taskd.runtime.coalesced_reads import CoalescedReads
from taskd.runtime.limiter import Limiter
from taskd.runtime.logs import degraded, log_event
from taskd.runtime.logs.task_log import TaskLog, TaskNaming, naming

logger = logging.getLogger("taskd.service")

CANCEL_DEADLINE_S = 5.0
"""A cancel whose end is not durable by then answers 503."""

BATCHED_AT_ONCE = 1_000
"""Tasks of batches that the Store is given at a time. It may write all of them in one
transaction, and single writes wait for its end."""

BEGIN_DEADLINE_S = 10.0
"""How long the Store may take to add a task that begins at once. After this, the Store may
still add it: the task then waits until its lease expires."""

_INSPECT_DEADLINE_S = 1.0
_CANCEL_POLL_S = 0.05
_CANCEL_AGAIN_S = 0.2


class CancelNotConfirmed(TaskdError):
    """The cancel request is durable, but the end of the running attempt could not be
    confirmed in time. The task will not be attempted again."""


@record(kw_only=True)
class NewApp:
    """A validated application on its way into the Store."""

    name: str
    link_url: str
    step: int
    retry_total: int
    remark: str
    success: SuccessRule = SuccessRule.BODY


@record
class Cancelled:
    """A task that was cancelled, and its cancel certainty."""

    task_id: int
    task_no: str | None
    certainty: CancelCertainty


@record
class TaskView:
    """A task as its app may see it, with an ``inspection`` while its coroutine lives."""

    task: TaskDetail
    inspection: Inspection | None
    link_url: str
    """The present URL of its application."""


class Service:
    """The use cases over an engine and its three ports.

    Args:
        engine: does the work; the service uses its ports.
        unready: returns why the scheduler is not at work, or None if it is.
        note: a choice of the operator's that has a risk, for `degraded`; or None.
        deliveries: returns what hinders deliveries and is no application's fault, or None.
        named: whether `degraded` may name origins, which only an operator may know.
        log: logs what was done with tasks and applications.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        unready: Callable[[], str | None],
        note: str | None = None,
        deliveries: Callable[[], str | None] = lambda: None,
        named: bool = True,
        log: TaskLog | None = None,
    ) -> None:
        self._log = log or TaskLog()
        self._named = named
        self._cleanup_scopes = engine.cleanup_scopes
        self._dispatcher = engine.dispatcher
        self._note = note
        self._deliveries = deliveries
        self._store = engine.store
        self._queue = engine.queue
        self._bus = engine.bus
        self._clock = engine.clock
        self._schedule = engine.schedule
        self._unready = unready
        self._batches = Limiter(BATCHED_AT_ONCE)
        self._found_apps = CoalescedReads(engine.store.apps_by_key)

    def known_app(self, app_key: str) -> App | None:
        """Return the app of this key, if it is known without asking the Store."""
        return self._store.known_app(app_key)

    async def find_app(self, app_key: str) -> App | None:
        """Return the app of this key, or None. The read costs the same whether there is such
        an app; reads that come together are made as one.

        Raises:
            StoreUnavailable: the app can't be read now.
        """
        return await self._found_apps.get(app_key)

    async def use_nonce(self, nonce: NonceUse) -> None:
        """Use a nonce up, durably.

        Raises:
            NonceUsed: it was used before.
            SignedBeforeEpoch, BusUnavailable, StoreUnavailable: whether it was can't be known.
        """
        unkept = await self._spend(nonce)
        if unkept is not None:
            await self._store.use_nonce(unkept)

    async def _spend(self, nonce: NonceUse | None) -> NonceUse | None:
        """Use a nonce up on the Bus; returns it if the Store has to use it up as well."""
        if nonce is None or await self._bus.use_nonce(nonce):
            return None
        return nonce

    async def create_app(self, new: NewApp, nonce: NonceUse | None) -> App:
        """Add an application with fresh keys.

        Raises:
            NonceUsed, SignedBeforeEpoch, BusUnavailable, StoreUnavailable: nothing
                was changed.
        """
        app = App(
            id=0,
            app_key=signing.random_token(16),
            secret_key=signing.random_token(32),
            name=new.name,
            link_url=new.link_url,
            step=new.step,
            retry_total=new.retry_total,
            remark=new.remark,
            created_at=self._clock.now_ms(),
            success=new.success,
        )
        kept = await self._store.create_app(app, await self._spend(nonce))
        self._log.app_created(kept, signed=nonce is not None)
        return kept

    async def submit(self, app: App, task: NewTask, nonce: NonceUse | None) -> int:
        """Keep a task durably and return its id, which is its coroutine_id.

        Raises:
            NonceUsed, SignedBeforeEpoch, BusUnavailable, DuplicateTaskNo,
                StoreUnavailable: no task was added.
        """
        unkept = await self._spend(nonce)
        if task.due_at <= self._clock.now_ms():
            with self._dispatcher.reserve(app, (task.content,)) as reservation:
                if reservation is not None:
                    (begun,) = await self._add_begun(reservation, [task], unkept)
                    if isinstance(begun, ExistingTask):
                        raise DuplicateTaskNo(begun)
                    self._log.created(app, task, begun)
                    return begun
        task_id = await self._store.create_task(task, unkept)
        self._wake([(task, task_id)])
        self._log.created(app, task, task_id)
        return task_id

    async def submit_batch(
        self, app: App, tasks: Sequence[NewTask], nonce: NonceUse | None, *, atomic: bool
    ) -> list[int | ExistingTask]:
        """Keep tasks durably, in one transaction, and return for each its id, or the task
        that has its taskNo already. ``atomic`` keeps all of them or none.

        Raises:
            BatchRefused: only with ``atomic``: a taskNo is taken, no task was added.
            NonceUsed, SignedBeforeEpoch, BusUnavailable, StoreUnavailable: no task was
                added.
        """
        unkept = await self._spend(nonce)
        async with self._batches.taken(len(tasks), app.id):
            now = self._clock.now_ms()
            due = [task.content for task in tasks if task.due_at <= now]
            with self._dispatcher.reserve(app, due) as reservation:
                if reservation is not None:
                    given = await self._add_begun(reservation, tasks, unkept, atomic=atomic)
                    self._log.batch_created(app, given)
                    return given
            given = await self._store.create_tasks(tasks, unkept, atomic=atomic)
        self._wake(zip(tasks, given, strict=True))
        self._log.batch_created(app, given)
        return given

    async def _add_begun(
        self,
        reservation: Reservation,
        tasks: Sequence[NewTask],
        nonce: NonceUse | None,
        *,
        atomic: bool = False,
    ) -> list[int | ExistingTask]:
        """Add tasks: due ones under a lease as far as slots are reserved, and begin these.

        Between adding a task under a lease and beginning it nothing may intervene, not even
        a cancel: no one else begins the task before the lease expires.
        """
        leased = _leased(tasks, reservation.lease, reservation.left)
        ids = await self._store.create_tasks(
            leased, nonce, atomic=atomic, within_s=BEGIN_DEADLINE_S
        )
        waiting = []
        for task, task_id in zip(leased, ids, strict=True):
            if task.lease is None:
                waiting.append((task, task_id))
            elif not isinstance(task_id, ExistingTask):
                reservation.begin(task, task_id)
        if waiting:
            self._wake(waiting)
        return ids

    def _wake(self, added: Iterable[tuple[NewTask, int | ExistingTask]]) -> None:
        """Publish or schedule the tasks that were added, under these ids. These are hints: if
        a kill or a cancel prevents them, the timer finds the tasks in the Store within about
        a second."""
        now = self._clock.now_ms()
        due_now = []
        for task, task_id in added:
            if isinstance(task_id, ExistingTask):
                continue
            due = DueTask(task_id=task_id, app_id=task.app_id, due_at=task.due_at)
            if task.due_at <= now:
                due_now.append(due)
            else:
                self._schedule(due)
        if due_now:
            self._queue.publish(due_now)

    async def cancel(
        self, app: App, task_id: int | None = None, *, task_no: str | None = None
    ) -> Cancelled | None:
        """Cancel a task, named by its id or its taskNo, for good; None if it had ended
        or is not the app's.

        The request is durable before anything is stopped, and this returns only after the
        coroutine has unwound and its end is durable. No cancel from outside reaches it, so a
        client that goes away does not stop it half way; it takes `CANCEL_DEADLINE_S` at most.

        Raises:
            CancelNotConfirmed: the end could not be confirmed in time.
            StoreUnavailable: the task is not cancelled, unless the message says that nobody
                knows.
        """
        asked_at = trio.current_time()
        decision = await self._store.request_cancel(
            app.id,
            task_id,
            task_no=task_no,
            now=self._clock.now_ms(),
            within_s=CANCEL_DEADLINE_S,
        )
        if decision.task_id is None:
            return None
        # From here on the cancel request is durable.
        certainty = decision.certainty
        if decision.state is TaskState.RUNNING:
            named = naming(decision.task_id, decision.task_no, app)
            with self._cleanup_scopes.shield(asked_at + CANCEL_DEADLINE_S) as scope:
                certainty = await self._await_cancelled(
                    app.id, decision.task_id, decision.node, named
                )
            if scope.cancelled_caught:
                log_event(logger, logging.WARNING, "a cancel was not confirmed in time", **named)
                raise CancelNotConfirmed(
                    "the running attempt could not be confirmed as ended within "
                    f"{CANCEL_DEADLINE_S:g} s; the task will not be attempted again"
                )
        if certainty is None:
            return None
        self._log.cancelled(app, decision.task_id, decision.task_no, certainty)
        return Cancelled(decision.task_id, decision.task_no, certainty)

    async def _await_cancelled(
        self, app_id: int, task_id: int, node: str | None, named: TaskNaming
    ) -> CancelCertainty | None:
        # If the coroutine is gone, its end is in the Store or will be. If it does not live
        # yet, it will: it begins when the commit of its lease returns. So the node and the
        # Store are asked again and again.
        asked_at = -math.inf
        while True:
            if node is not None and trio.current_time() - asked_at >= _CANCEL_AGAIN_S:
                reply = await self._bus.send(node, CancelSignal(task_id))
                asked_at = trio.current_time()
                if isinstance(reply, CancelReply) and reply.state is not None:
                    return reply.certainty if reply.state is TaskState.CANCELLED else None
            try:
                task = await self._store.task_detail(app_id, task_id=task_id)
            except StoreUnavailable as error:
                log_event(
                    logger,
                    logging.WARNING,
                    "a cancel waits for the store",
                    error=str(error),
                    **named,
                )
            else:
                if task is None:
                    return None
                if task.state.terminal:
                    return task.cancel_certainty
                node = task.node
            await trio.sleep(_CANCEL_POLL_S)

    async def detail(
        self, app: App, *, task_id: int | None = None, task_no: str | None = None
    ) -> TaskView | None:
        """Return a task by id or taskNo, with an inspection if it runs; None if the app has
        no such task.

        Raises:
            StoreUnavailable: the task can't be read now.
        """
        task = await self._store.task_detail(app.id, task_id=task_id, task_no=task_no)
        if task is None:
            return None
        inspection = None
        if task.state is TaskState.RUNNING and task.node is not None:
            with trio.move_on_after(_INSPECT_DEADLINE_S):
                reply = await self._bus.send(task.node, InspectSignal(task.id))
                if isinstance(reply, InspectReply):
                    inspection = reply.inspection
        return TaskView(task, inspection, app.link_url)

    def unready(self) -> str | None:
        """Return why this node does no work now, apart from its Store; None if it works."""
        if (unready := self._unready()) is not None:
            return unready
        if (bus := self._bus.unready()) is not None:
            return f"degraded: signed requests are refused, deliveries go on: {bus}"
        return None

    def degraded(self) -> list[str]:
        """Return what does not work as it should while tasks are accepted and worked on."""
        shortage = self._dispatcher.shortage()
        room = None if shortage is None else shortage.told(named=self._named)
        notes = (
            *(self._note, self._store.degraded(), self._queue.degraded(), self._deliveries()),
            *(degraded(), room),
        )
        return [note for note in notes if note is not None]

    async def store_unready(self) -> str | None:
        """Write to the Store; returns why it can't be written now, or None if it can."""
        try:
            await self._store.probe()
        except StoreUnavailable as error:
            return f"the store is not writable: {error}"
        return None


def _leased(tasks: Sequence[NewTask], lease: FirstLease, slot_count: int) -> list[NewTask]:
    """Return the tasks, as many of the due ones under the lease as there are slots."""
    leased = []
    for task in tasks:
        if slot_count and task.due_at <= lease.leased_at:
            slot_count -= 1
            leased.append(task.under(lease))
        else:
            leased.append(task)
    return leased

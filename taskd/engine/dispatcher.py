"""The dispatcher takes wake-ups as it has slots, leases their tasks and starts executions.

::

    Queue ── take ── register ── lease (one batch) ── start a coroutine each
      ▲        │                     │                     ▲
      │      slots: may its app?     │   reserve ── added under a lease
      └── nothing is put back: the   ▼
          timer finds again what could not be leased now

A wake-up that is lost here delays its task until the timer's next sweep, one second.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import trio

from taskd.clock import Clock
from taskd.delivery import attempt
from taskd.delivery.discretion import HIDDEN_VARIABLES, VEILED_PHASE, Discretion
from taskd.domain.model import App, DueTask, FirstLease, Inspection, LeasedTask, Suspect
from taskd.engine import inspection
from taskd.engine.contents import Contents, counted_bytes
from taskd.engine.execution import Executor
from taskd.engine.inspection import CountedCoroutine
from taskd.engine.pace_watch import PaceWatch
from taskd.engine.quarantine import Quarantine
from taskd.engine.registry import Ending, Execution, Registry, safe_until
from taskd.engine.reservations import Reservation, Reserving
from taskd.engine.shortage import ContentsWatch, ShortageWatch
from taskd.engine.slots import Shortage, Slot, Slots
from taskd.errors import InvalidInput, StoreUnavailable
from taskd.ports.bus import CancelReply, CancelSignal, InspectReply, Reply, Signal
from taskd.ports.queue import Queue
from taskd.ports.store import Store
from taskd.runtime.backoff import Backoff
from taskd.runtime.logs import log_event
from taskd.runtime.logs.task_log import naming, naming_app
from taskd.runtime.ticks import next_tick

logger = logging.getLogger("taskd.worker")

_LEASE_BATCH = 128
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 2.0
_RECEIVERS_KEPT = 100_000
_LEARNT_A_LAP = 50
_TEND_S = 1.0


class _Receiver(NamedTuple):
    """Where an application's tasks went when it was last read."""

    link_url: str | None
    """None: there was no such application."""
    origin: str


@dataclass(frozen=True, slots=True)
class DispatcherStatistics:
    """A `Dispatcher`'s counts."""

    running: int
    """Executions that live now."""
    started: int
    """Executions started since the start."""
    refused: int
    """Wake-ups whose task was gone, taken or not due."""


class Dispatcher:
    """Runs tasks on this node.

    Args:
        store, queue, clock: see their ports.
        executor: runs one execution to its end.
        registry: holds the executions.
        node: this node's name, as leases carry it.
        slots: decides which application may begin one more.
        contents: bounds the contents in memory.
        origin_of: returns the origin of an application's URL, by which slots are counted.
        lease_ms: length of a lease.
        clustered: other nodes work on this Store that can't know whether this one lives: an
            execution whose lease is not extended ends before they may take its task.
        discretion: decides what an inspection hides where anybody may have an application;
            None: nothing.
    """

    def __init__(
        self,
        *,
        store: Store,
        queue: Queue,
        clock: Clock,
        executor: Executor,
        registry: Registry,
        node: str,
        origin_of: Callable[[str], str],
        slots: Slots,
        contents: Contents,
        lease_ms: int,
        clustered: bool = False,
        discretion: Discretion | None = None,
    ) -> None:
        self._store = store
        self._queue = queue
        self._clock = clock
        self._executor = executor
        self._registry = registry
        self._node = node
        self._origin_of = origin_of
        self._slots = slots
        self._contents = contents
        self._contents_watch = ContentsWatch(contents)
        self._shortage = ShortageWatch(slots)
        self._pace = PaceWatch(slots)
        self._lease_ms = lease_ms
        self._clustered = clustered
        self._discretion = discretion
        self._receivers: dict[int, _Receiver] = {}
        self._unknown_apps: set[int] = set()
        self._work = trio.Event()
        self._draining = False
        self._ending = False
        self._paused = 0
        self._quarantine = Quarantine(store=store, clock=clock, beginner=self)
        self._nursery: trio.Nursery | None = None
        self._started = 0
        self._refused = 0

    def limit(self, *, max_running: int, max_per_origin: int, max_bytes: int) -> None:
        """Change the bounds. Executions beyond a smaller one run on."""
        self._contents.limit(max_bytes)
        self._slots.limit(max_running, max_per_origin)
        self._work.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take and run tasks until drained or cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                nursery.start_soon(self._watch_queue)
                nursery.start_soon(self._tend_slots)
                await nursery.start(self._quarantine.run)
                task_status.started()
                await self._take_work(nursery)
                while self._registry or self._slots.reserved:
                    await self._work.wait()
                    self._work = trio.Event()
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel()

    async def drain(self, *, patience_s: float, unwind_s: float) -> None:
        """Take no more wake-ups; let executions end for ``patience_s``, then end them and
        wait for that, ``unwind_s`` at most."""
        self._draining = True
        self._queue.room(0)
        self._work.set()
        with trio.move_on_after(patience_s):
            await self._registry.wait_empty()
        self._ending = True
        for execution in self._registry:
            execution.end(Ending.DRAIN)
        with trio.move_on_after(unwind_s):
            await self._registry.wait_empty()

    def reserve(self, app: App, contents: Sequence[bytes]) -> Reserving:
        """Return the context that holds slots for due tasks of an app that are about to be
        added with these contents."""
        return Reserving(lambda: self._reserve(app, contents))

    def _reserve(self, app: App, contents: Sequence[bytes]) -> Reservation | None:
        if not contents or self._nursery is None or self._draining or self._paused:
            return None
        origin = self._learn(app)
        wanted = min(len(contents), self._queue.local_capacity())
        taken = self._slots.take_before_others(app.id, origin, trio.current_time(), wanted)
        if not taken:
            return None
        long_bytes = sum(counted_bytes(content) for content in contents)
        if long_bytes and not self._contents.take_now(app.id, long_bytes):
            self._slots.give_back(origin, taken)
            return None
        now = self._clock.now_ms()
        return Reservation(
            app,
            origin,
            taken,
            lease=FirstLease(self._node, now, now + self._lease_ms),
            slots=self._slots,
            contents=self._contents,
            content_bytes=long_bytes,
            begin=self._begin,
            freed=self._work.set,
        )

    def _begin(self, task: LeasedTask, slot: Slot, asked_at: float) -> None:
        nursery = self._nursery
        content_bytes = counted_bytes(task.content)
        if nursery is None:
            slot.leave()
            if content_bytes:
                self._contents.give_back(task.app.id, content_bytes)
            # As after a kill between adding and beginning: another node, or this one's
            # next start, reaps the lease.
            log_event(
                logger,
                logging.WARNING,
                "a task was added under a lease and can't be begun: the node has stopped",
                **naming(task.lease.task_id, task.task_no, task.app),
            )
            return
        execution = Execution(task.lease.task_id, slot)
        execution.content_bytes = content_bytes
        self._registry.add(execution)
        self._start(execution, task, nursery, asked_at)
        if self._ending:
            execution.end(Ending.DRAIN)

    @property
    def reserved(self) -> int:
        """Slots that are held for tasks on their way into the Store."""
        return self._slots.reserved

    @property
    def slot_count(self) -> int:
        """See `Beginner.slot_count`."""
        return self._slots.size

    @property
    def in_flight(self) -> int:
        """See `Beginner.in_flight`."""
        return len(self._registry) + self._slots.reserved

    def pause(self, *, paused: bool) -> None:
        """See `Beginner.pause`. Pauses that overlap end with the last of them."""
        self._paused += 1 if paused else -1
        if not self._paused:
            self._work.set()

    async def begin(self, suspects: Sequence[Suspect]) -> list[Execution]:
        """See `Beginner.begin`."""
        await self._learn_origins({one.task.app_id for one in suspects} - self._receivers.keys())
        nursery = self._nursery
        if nursery is None or self._draining:
            return []
        batch = [
            one.task
            for one in suspects
            if one.task.task_id not in self._registry and self._admit(one.task.app_id)
        ]
        # These apps were given slots: lanes that were set aside wait no longer.
        self._queue.resume({due.app_id for due in batch})
        self._work.set()
        return await self._lease_and_start(batch, nursery, suspects=True) if batch else []

    def forget_app(self, app_id: int) -> None:
        """Look an app up again before its next wake-up is taken: it has changed. Those that
        wait for its receiver are asked about again.

        Where a reading that is under way brings the former app afterwards, its next lease
        puts that right."""
        if self._receivers.pop(app_id, None) is not None:
            self._queue.resume((app_id,))
            self._work.set()

    def shortage(self) -> Shortage | None:
        """Return which origins hold the room, if tasks have waited for it for a while; else
        None."""
        return self._shortage.lasting

    async def handle(self, signal: Signal) -> Reply:
        """Answer a signal from another node, or from this one."""
        execution = self._registry.get(signal.task_id)
        if isinstance(signal, CancelSignal):
            if execution is None:
                return CancelReply(state=None, certainty=None)
            execution.end(Ending.CANCEL)
            await execution.done.wait()
            return CancelReply(state=execution.state, certainty=execution.certainty)
        await trio.lowlevel.checkpoint()
        return InspectReply(None if execution is None else self._inspect(execution))

    def statistics(self) -> DispatcherStatistics:
        """Return its counts."""
        return DispatcherStatistics(
            running=len(self._registry), started=self._started, refused=self._refused
        )

    async def _watch_queue(self) -> None:
        while True:
            await self._queue.wait()
            self._work.set()

    async def _tend_slots(self) -> None:
        while True:
            await trio.sleep_until(next_tick(_TEND_S))
            now = trio.current_time()
            if self._slots.tend(now):
                self._work.set()
            self._shortage.look(now)
            self._pace.look(now)
            self._contents_watch.look(now)

    async def _take_work(self, nursery: trio.Nursery) -> None:
        backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        while not self._draining:
            batch = self._take()
            if self._unknown_apps or batch:
                try:
                    if batch:
                        await self._lease_waiting(batch, nursery)
                    # A few at a time: the tasks of known apps wait meanwhile.
                    await self._learn_origins(islice(self._unknown_apps, _LEARNT_A_LAP))
                except StoreUnavailable as error:
                    pause_s = backoff.next_s()
                    log_event(
                        logger,
                        logging.ERROR,
                        "no task can be leased, it is tried again",
                        reason=str(error),
                        delay_s=pause_s,
                    )
                    with trio.move_on_after(pause_s):
                        await self._wait_for_drain()
                else:
                    backoff.reset()
                continue
            await self._wait_for_work()

    async def _wait_for_work(self) -> None:
        opens_at = self._slots.opens_at
        if opens_at == math.inf or self._paused or not self._slots.free:
            await self._work.wait()
        else:
            with trio.move_on_at(opens_at):
                await self._work.wait()
        self._work = trio.Event()

    async def _wait_for_drain(self) -> None:
        while not self._draining:
            await self._work.wait()
            self._work = trio.Event()
        self._work.set()

    def _take(self) -> list[DueTask]:
        self._queue.room(0 if self._draining else self._slots.free)
        if self._paused:
            return []
        batch: list[DueTask] = []
        now = trio.current_time()
        while not batch and self._slots.free:
            woken = self._slots.woken(now)
            self._queue.resume(woken)
            batch = self._queue.take(min(self._slots.free, _LEASE_BATCH), self._admit)
            if not woken:
                break
        return batch

    def _admit(self, app_id: int) -> bool:
        receiver = self._receivers.get(app_id)
        if receiver is None:
            self._unknown_apps.add(app_id)
            return False
        return self._slots.take(app_id, receiver.origin, trio.current_time()) > 0

    async def _learn_origins(self, app_ids: Iterable[int]) -> None:
        """Look these apps up, and let their lanes ask for slots again."""
        for app_id in list(app_ids):
            app = await self._store.app_by_id(app_id)
            if app is None:
                self._note_receiver(app_id, _Receiver(None, ""))
            else:
                self._learn(app)
            self._unknown_apps.discard(app_id)
            self._queue.resume((app_id,))

    def _note_receiver(self, app_id: int, receiver: _Receiver) -> None:
        while len(self._receivers) >= _RECEIVERS_KEPT:
            del self._receivers[next(iter(self._receivers))]
        self._receivers[app_id] = receiver

    def _learn(self, app: App) -> str:
        """Remember an app that was just read; returns its origin."""
        receiver = self._receivers.get(app.id)
        if receiver is None or receiver.link_url != app.link_url:
            receiver = _Receiver(app.link_url, self._known_origin(app))
            self._note_receiver(app.id, receiver)
        return receiver.origin

    def _known_origin(self, app: App) -> str:
        try:
            return self._origin_of(app.link_url)
        except InvalidInput as error:
            # An earlier version may have accepted this URL. Its attempts fail and say
            # so; the daemon goes on.
            log_event(
                logger,
                logging.ERROR,
                "an application's linkUrl can't be read",
                **naming_app(app),
                reason=str(error),
            )
            return ""

    async def _lease_waiting(self, batch: list[DueTask], nursery: trio.Nursery) -> None:
        """Lease and begin the tasks that wake-ups name, except suspects."""
        answered = False
        try:
            started = await self._lease_and_start(batch, nursery, suspects=False)
            answered = True
            if len(started) < len(batch):
                self._quarantine.hear()
        finally:
            (self._queue.finish if answered else self._queue.release)(batch)

    async def _lease_and_start(
        self, batch: list[DueTask], nursery: trio.Nursery, *, suspects: bool
    ) -> list[Execution]:
        """Lease tasks for which slots were taken; begin and return those that were leased."""
        started: list[Execution] = []
        executions: dict[int, Execution] = {}
        for due in batch:
            origin = self._receivers[due.app_id].origin
            if due.task_id in self._registry:
                self._slots.give_back(origin, 1)
                continue
            execution = Execution(due.task_id, self._slots.use(due.app_id, origin))
            executions[due.task_id] = execution
            self._registry.add(execution)
        now = self._clock.now_ms()
        asked_at = trio.current_time()
        lent = self._contents.lend()
        taken: dict[int, int] = {}
        try:
            leased = await self._store.lease(
                list(executions),
                node=self._node,
                now=now,
                expires_at=now + self._lease_ms,
                suspects=suspects,
                room=lent,
            )
            for task in leased:
                execution = executions.pop(task.lease.task_id)
                self._learn(task.app)
                long_bytes = counted_bytes(task.content)
                if long_bytes:
                    execution.content_bytes = long_bytes
                    taken[task.app.id] = taken.get(task.app.id, 0) + long_bytes
                self._start(execution, task, nursery, asked_at)
                started.append(execution)
        finally:
            self._contents.end_loan(lent, taken)
            self._refused += len(executions)
            for execution in executions.values():
                execution.slot.leave()
                self._registry.remove(execution)
        return started

    def _start(
        self, execution: Execution, task: LeasedTask, nursery: trio.Nursery, asked_at: float
    ) -> None:
        execution.lease = task.lease
        if self._clustered:
            execution.rely_on_lease(safe_until(asked_at, self._lease_ms))
        execution.started_at = trio.current_time()
        self._started += 1

        def coroutine() -> Coroutine[Any, Any, None]:
            execution.coroutine = CountedCoroutine(self._run(execution, task))
            return execution.coroutine

        nursery.start_soon(coroutine, name=f"task {task.lease.task_id}")

    async def _run(self, execution: Execution, task: LeasedTask) -> None:
        try:
            await self._executor.run(execution, task)
        finally:
            if execution.content_bytes:
                self._contents.give_back(task.app.id, execution.content_bytes)
            execution.slot.leave()
            self._registry.remove(execution)
            self._work.set()

    def _inspect(self, execution: Execution) -> Inspection | None:
        if execution.trio_task is None or execution.coroutine is None:
            return None
        progress = execution.progress
        phase, rounds = progress.phase, execution.coroutine.rounds
        frames = inspection.frames_of(execution.trio_task)
        if self._discretion is not None and self._discretion.veils(progress):
            phase, rounds = phase and VEILED_PHASE, 1
            frames = inspection.outside_of(frames, attempt.__name__)
        executed = inspection.executed_frame(frames)
        if executed is None:
            return None
        frame, description = executed
        hidden = frozenset[str]() if self._discretion is None else HIDDEN_VARIABLES
        return Inspection(
            node=self._node,
            phase=phase,
            frames=tuple(described for _, described in frames),
            executed=description,
            variables=inspection.visible_variables(frame, hidden),
            rounds=rounds,
            elapsed_ms=round((trio.current_time() - execution.started_at) * 1000),
        )

"""One node put together from the real parts over the in-memory adapters, with a
delivery that a test scripts, on Trio's virtual clock."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from taskd.buses.local import LocalBus
from taskd.delivery.attempt import AttemptResult, Delivery
from taskd.delivery.progress import Progress
from taskd.domain.model import App, CancelCertainty, LeasedTask, NewTask, Outcome, TaskDetail
from taskd.engine.engine import Bounds, Engine
from taskd.engine.leases import reclaim
from taskd.engine.pace import START
from taskd.ports.bus import Bus
from taskd.ports.store import Store
from taskd.queues.local import LocalQueue
from taskd.service.service import NewApp, Service
from taskd.stores.memory import MemoryStore
from tests.support.clocks import SteppableClock

SUCCESS = AttemptResult(outcome=Outcome.SUCCEEDED, http_status=200, response="success")
TIMED_OUT = AttemptResult(outcome=Outcome.TIMED_OUT, error="too late", unanswered=True)
REJECTED = AttemptResult(outcome=Outcome.REJECTED, http_status=500, response="no")

Script = Callable[[LeasedTask, Progress], Awaitable[AttemptResult]]


async def succeed(task: LeasedTask, progress: Progress) -> AttemptResult:
    await trio.lowlevel.checkpoint()
    return SUCCESS


@dataclass(frozen=True)
class Made:
    """An attempt that the scripted delivery was asked for."""

    task_id: int
    app_id: int
    attempt: int
    at_ms: int


class ScriptedDelivery(Delivery):
    """Makes attempts as the test says, and keeps a ledger of them."""

    def __init__(self, clock: SteppableClock) -> None:
        self.clock = clock
        self.script: Script = succeed
        self.made: list[Made] = []

    async def attempt(self, task: LeasedTask, progress: Progress) -> AttemptResult:
        self.made.append(Made(task.lease.task_id, task.app.id, task.attempt, self.clock.now_ms()))
        return await self.script(task, progress)

    def timed_out(self, task: LeasedTask, progress: Progress) -> AttemptResult:
        progress.finish()
        return TIMED_OUT


class Node:
    """The parts of a node; `running` starts and ends them."""

    def __init__(
        self,
        *,
        store: Store | None = None,
        clock: SteppableClock | None = None,
        name: str = "node-1",
        max_running: int = 500,
        max_per_origin: int = 125,
        start_at: int = START,
        max_bytes: int = 134_217_728,
        lease_ms: int = 30_000,
        queue: LocalQueue | None = None,
        real_delivery: Delivery | None = None,
        clustered: bool = False,
        bus: Bus | None = None,
    ) -> None:
        self.clock = clock or SteppableClock()
        self.store: Store = store or MemoryStore()
        self.queue = queue or LocalQueue()
        self.clustered = clustered
        self.bus: Bus = bus or LocalBus(name)
        self.delivery = ScriptedDelivery(self.clock)
        self.engine = Engine(
            store=self.store,
            queue=self.queue,
            bus=self.bus,
            clock=self.clock,
            delivery=real_delivery or self.delivery,
            bounds=Bounds(
                max_running=max_running,
                max_per_origin=max_per_origin,
                max_bytes=max_bytes,
                lease_ms=lease_ms,
                finished_days=30,
                start_at=start_at,
            ),
            clustered=clustered,
        )
        self.service = Service(self.engine, unready=self.engine.unready)
        self.registry, self.cleanup_scopes = self.engine.registry, self.engine.cleanup_scopes
        self.timer, self.janitor = self.engine.timer, self.engine.janitor
        self.dispatcher = self.engine.dispatcher
        self.slots, self.contents = self.engine.slots, self.engine.contents
        self._numbers = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The node at work; at the end it is killed, not drained."""
        if not self.clustered:
            await reclaim(self.store, now=self.clock.now_ms())
        async with trio.open_nursery() as nursery:
            await self.engine.start(nursery)
            yield
            nursery.cancel_scope.cancel()

    async def app(
        self, url: str = "http://127.0.0.1:9000/cb", *, step: int = 5, retry_total: int = 3
    ) -> App:
        return await self.service.create_app(
            NewApp(name="app", link_url=url, step=step, retry_total=retry_total, remark=""), None
        )

    async def submit(
        self,
        app: App,
        *,
        in_ms: int = 0,
        timeout_ms: int = 60_000,
        retry_total: int | None = None,
        content: bytes = b"1",
        task_no: str | None = None,
    ) -> int:
        now = self.clock.now_ms()
        self._numbers += 1
        return await self.service.submit(
            app,
            NewTask(
                app_id=app.id,
                task_no=task_no or f"{self.bus.node}-{self._numbers}",
                name="a task",
                content=content,
                timeout_ms=timeout_ms,
                due_at=now + in_ms,
                retry_total=retry_total,
                created_at=now,
            ),
            None,
        )

    async def cancel(self, app: App, task_id: int) -> CancelCertainty | None:
        """The word of the cancellation; None where there was nothing to cancel."""
        cancelled = await self.service.cancel(app, task_id)
        assert cancelled is None or cancelled.task_id == task_id
        return None if cancelled is None else cancelled.certainty

    async def detail(self, app: App, task_id: int) -> TaskDetail:
        task = await self.store.task_detail(app.id, task_id=task_id)
        assert task is not None
        return task

    async def ended(self, app: App, task_id: int, *, within_s: float = math.inf) -> TaskDetail:
        """The task once it has come to its end."""
        with trio.fail_after(within_s):
            pause = 0.001
            while not (task := await self.detail(app, task_id)).state.terminal:
                await trio.sleep(pause)
                pause = min(pause * 1.5, 1.0)
            return task

"""Tasks that are due when they are created begin without a wake-up and a lease of
their own, where there is room and nobody waits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import trio

from taskd.delivery.attempt import AttemptResult
from taskd.delivery.progress import Progress
from taskd.domain.model import App, ExistingTask, LeasedTask, NewTask, NonceUse, TaskState
from taskd.errors import DuplicateTaskNo, StoreUnavailable
from taskd.service.service import BEGIN_DEADLINE_S
from taskd.stores.memory import MemoryStore
from tests.support.held import HeldWriter
from tests.support.node import SUCCESS, Node


class CountingStore(MemoryStore):
    """Counts the leases that were asked for; creates may be kept, or fail."""

    def __init__(self) -> None:
        super().__init__()
        self.leases = 0
        self.keep = trio.Event()
        self.keep.set()
        self.keeping = trio.Event()
        self.writer = HeldWriter()
        self.failing = False

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
        self.leases += 1
        return await super().lease(
            task_ids, node=node, now=now, expires_at=expires_at, suspects=suspects, room=room
        )

    async def create_tasks(
        self,
        tasks: Sequence[NewTask],
        nonce: NonceUse | None = None,
        *,
        atomic: bool = False,
        within_s: float | None = None,
    ) -> list[int | ExistingTask]:
        if self.failing:
            await trio.lowlevel.checkpoint()
            raise StoreUnavailable("the disk is full")
        self.keeping.set()
        await self.writer.hold(self.keep, within_s)
        return await super().create_tasks(tasks, nonce, atomic=atomic, within_s=within_s)


def hold(node: Node) -> trio.Event:
    """Let attempts wait until the event is set."""
    release = trio.Event()

    async def script(_task: LeasedTask, _progress: Progress) -> AttemptResult:
        await release.wait()
        return SUCCESS

    node.delivery.script = script
    return release


def new(app: App, number: int, *, due_at: int) -> NewTask:
    return NewTask(
        app_id=app.id,
        task_no=f"batch-{number}",
        name="t",
        content=b"1",
        timeout_ms=1_000,
        due_at=due_at,
        created_at=due_at,
    )


@pytest.mark.virtual_clock
async def test_a_due_task_begins_with_one_write() -> None:
    store = CountingStore()
    node = Node(store=store)
    async with node.running():
        app = await node.app()
        task = await node.ended(app, await node.submit(app))
        assert task.state is TaskState.SUCCEEDED
        assert [attempt.attempt for attempt in task.attempts] == [1]
        assert store.leases == 0
        await node.ended(app, await node.submit(app, in_ms=5))
        assert store.leases == 1  # by way of the timer and the queue
        assert node.dispatcher.reserved == 0


@pytest.mark.virtual_clock
async def test_the_bounds_hold_and_what_has_no_place_waits() -> None:
    store = CountingStore()
    node = Node(store=store, max_running=5, max_per_origin=3)
    async with node.running():
        one, two = await node.app("http://a/cb"), await node.app("http://b/cb")
        for app in (one, two):  # they are known to answer at once
            await node.ended(app, await node.submit(app))
        node.delivery.made.clear()
        release = hold(node)
        ids = [await node.submit(one) for _ in range(4)]
        assert node.slots.held_at("http://a:80") == 3
        ids += [await node.submit(two) for _ in range(4)]
        await trio.sleep(0.5)
        assert len(node.registry) == 5
        assert node.slots.held_at("http://a:80") == 3
        release.set()
        for app, task_id in zip([one] * 4 + [two] * 4, ids, strict=True):
            assert (await node.ended(app, task_id)).state is TaskState.SUCCEEDED
        assert len(node.delivery.made) == 8


@pytest.mark.virtual_clock
async def test_nobody_goes_before_those_that_wait() -> None:
    store = CountingStore()
    node = Node(store=store, max_running=10, max_per_origin=1)
    async with node.running():
        full, other = await node.app("http://a/cb"), await node.app("http://b/cb")
        release = hold(node)
        first = await node.submit(full)
        waits = await node.submit(full)
        leases = store.leases
        late = await node.submit(other)  # there is room, but another is in the queue
        await trio.sleep(0.01)
        assert store.leases > leases
        assert late in node.registry
        release.set()
        for task_id in (first, waits):
            await node.ended(full, task_id)


@pytest.mark.virtual_clock
async def test_of_a_batch_as_many_begin_as_there_are_places() -> None:
    store = CountingStore()
    node = Node(store=store, max_per_origin=4)
    async with node.running():
        app = await node.app()
        release = hold(node)
        now = node.clock.now_ms()
        tasks = [new(app, number, due_at=now) for number in range(6)]
        tasks.insert(1, new(app, 99, due_at=now + 60_000))
        ids = await node.service.submit_batch(app, tasks, None, atomic=False)
        begun = [task_id in node.registry for task_id in ids if isinstance(task_id, int)]
        assert begun == [True, False, True, True, True, False, False]
        release.set()
        for task_id in (ids[5], ids[6]):
            assert isinstance(task_id, int)
            await node.ended(app, task_id, within_s=1)
        assert len(node.delivery.made) == 6
        assert node.dispatcher.reserved == 0


@pytest.mark.virtual_clock
async def test_a_place_is_given_back_where_nothing_was_added() -> None:
    store = CountingStore()
    node = Node(store=store, max_running=1)
    async with node.running():
        app = await node.app()
        now = node.clock.now_ms()
        await node.service.submit(app, new(app, 1, due_at=now), None)
        await trio.sleep(0.1)
        with pytest.raises(DuplicateTaskNo):
            await node.service.submit(app, new(app, 1, due_at=now), None)
        store.failing = True
        with pytest.raises(StoreUnavailable):
            await node.service.submit(app, new(app, 2, due_at=now), None)
        store.failing = False
        assert node.dispatcher.reserved == 0
        await node.ended(app, await node.submit(app))


@pytest.mark.virtual_clock
async def test_a_client_that_goes_away_keeps_nothing_from_beginning() -> None:
    """From the commit on the task is leased: nobody else would begin it for long."""

    store = CountingStore()
    node = Node(store=store)
    async with node.running():
        app = await node.app()
        store.keep = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.submit, app)
            await store.keeping.wait()
            nursery.cancel_scope.cancel()
            store.keep.set()
        await node.ended(app, 1, within_s=1)
        assert store.leases == 0


@pytest.mark.virtual_clock
async def test_a_store_that_never_answers_is_given_up() -> None:
    store = CountingStore()
    node = Node(store=store)
    async with node.running():
        app = await node.app()
        store.keep = trio.Event()
        began = trio.current_time()
        with pytest.raises(StoreUnavailable, match="not known"):
            await node.submit(app)
        assert trio.current_time() - began == pytest.approx(BEGIN_DEADLINE_S)
        assert node.dispatcher.reserved == 0


@pytest.mark.parametrize("patience_s", [0.0, 5.0])
@pytest.mark.virtual_clock
async def test_a_drain_waits_for_a_create_that_is_under_way(patience_s: float) -> None:
    async def _drain(node: Node, patience_s: float) -> None:
        await node.dispatcher.drain(patience_s=patience_s, unwind_s=math.inf)

    store = CountingStore()
    node = Node(store=store)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.dispatcher.run)
        app = await node.app()
        hold(node)
        store.keep = trio.Event()
        nursery.start_soon(node.submit, app)
        await store.keeping.wait()
        nursery.start_soon(_drain, node, patience_s)
        await trio.sleep(patience_s + 1.0)
        store.keep.set()
        await trio.sleep(0.1)
    task = await node.detail(app, 1)
    # Nothing was sent, so it is as if it had never been begun.
    assert (task.state, task.attempt, task.attempts) == (TaskState.SCHEDULED, 0, ())
    with node.dispatcher.reserve(app, [b"1"]) as reservation:
        assert reservation is None


@pytest.mark.virtual_clock
async def test_a_reservation_holds_places_within_its_block_only() -> None:
    node = Node()
    long = bytes(200_000)
    async with node.running():
        app = await node.app()
        # Cancelled between asking for places and using them, a create asks in vain.
        never_entered = node.dispatcher.reserve(app, [long, long])
        assert (node.dispatcher.reserved, node.contents.used) == (0, 0)
        with node.dispatcher.reserve(app, [long, long]) as reservation:
            assert reservation is not None
            assert reservation.left == node.dispatcher.reserved == 2
            assert node.contents.used == 2 * len(long)
        assert (node.dispatcher.reserved, node.contents.used) == (0, 0)
        with (
            trio.CancelScope() as scope,
            node.dispatcher.reserve(app, [long]) as reservation,
        ):
            assert node.dispatcher.reserved == 1
            scope.cancel()
            await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert (node.dispatcher.reserved, node.contents.used) == (0, 0)
        del never_entered

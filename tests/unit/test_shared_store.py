"""Several nodes on one Store: who works on what, and who stops in time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio

from taskd.buses.local import LocalBus
from taskd.delivery.attempt import AttemptResult
from taskd.delivery.progress import Progress
from taskd.domain.model import DueTask, Lease, LeasedTask, Outcome, TaskState
from taskd.errors import StoreUnavailable
from taskd.ports.store import ExtendResult
from taskd.queues.local import LocalQueue
from taskd.stores.memory import MemoryStore
from tests.support.clocks import SteppableClock
from tests.support.node import SUCCESS, Node

_LEASE_MS = 10_000


class CutOff:
    """The way of one node to a Store that others reach."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.cut = False

    def __getattr__(self, name: str) -> object:
        if self.cut:
            raise StoreUnavailable("the network is cut")
        return getattr(self._store, name)

    async def extend(self, leases: Sequence[Lease], *, expires_at: int) -> ExtendResult:
        await trio.lowlevel.checkpoint()
        if self.cut:
            raise StoreUnavailable("the network is cut")
        return await self._store.extend(leases, expires_at=expires_at)


class Follower(LocalBus):
    """Of a node whose timer another one leads."""

    def leads_timer(self) -> bool:
        return False


class Spans:
    """When each attempt was under way, by node."""

    def __init__(self, clock: SteppableClock) -> None:
        self.clock = clock
        self.spans: list[tuple[str, int, int]] = []

    async def hang(self, node: str, progress: Progress) -> AttemptResult:
        progress.sent = True
        began = self.clock.now_ms()
        try:
            await trio.sleep(60)
        finally:
            self.spans.append((node, began, self.clock.now_ms()))
        return SUCCESS


@pytest.mark.virtual_clock
async def test_a_node_that_is_cut_off_stops_before_another_takes_its_task() -> None:
    clock = SteppableClock()
    store = MemoryStore()
    way = CutOff(store)
    spans = Spans(clock)
    first = Node(store=way, clock=clock, name="first", lease_ms=_LEASE_MS, clustered=True)  # type: ignore[arg-type] # as a Store, by its attributes
    second = Node(store=store, clock=clock, name="second", lease_ms=_LEASE_MS, clustered=True)

    async def hang_first(_: LeasedTask, progress: Progress) -> AttemptResult:
        return await spans.hang("first", progress)

    async def hang_second(_: LeasedTask, progress: Progress) -> AttemptResult:
        return await spans.hang("second", progress)

    first.delivery.script, second.delivery.script = hang_first, hang_second
    async with first.running():
        app = await first.app()
        task_id = await first.submit(app, timeout_ms=100_000)
        with trio.fail_after(5):
            while not first.delivery.made:
                await trio.sleep(0.1)
        await trio.sleep(20)  # the lease is extended meanwhile
        async with second.running():
            cut_at = clock.now_ms()
            way.cut = True
            with trio.fail_after(_LEASE_MS / 1000 + 2):
                while not second.delivery.made:
                    await trio.sleep(0.01)
            ((node, _, ended),) = spans.spans
            assert node == "first"
            assert cut_at < ended < second.delivery.made[0].at_ms
            way.cut = False
            task = await second.ended(app, task_id)
    assert task.state is TaskState.SUCCEEDED
    assert [a.outcome for a in task.attempts] == [Outcome.ABANDONED, Outcome.SUCCEEDED]


@pytest.mark.virtual_clock
async def test_alone_an_attempt_outlives_a_lease_that_can_not_be_extended() -> None:
    """Nobody else could take its task, so a full disk costs nothing but time."""

    way = CutOff(MemoryStore())
    node = Node(store=way, lease_ms=_LEASE_MS)  # type: ignore[arg-type] # as a Store, by its attributes
    spans = Spans(node.clock)

    async def hang(_: LeasedTask, progress: Progress) -> AttemptResult:
        return await spans.hang("node", progress)

    node.delivery.script = hang
    async with node.running():
        app = await node.app()
        task_id = await node.submit(app, timeout_ms=100_000)
        await trio.sleep(1)
        way.cut = True
        await trio.sleep(40)
        way.cut = False
        task = await node.ended(app, task_id)
    assert task.state is TaskState.SUCCEEDED
    assert [a.outcome for a in task.attempts] == [Outcome.SUCCEEDED]


@pytest.mark.virtual_clock
async def test_a_lease_that_came_too_late_is_given_back_and_counts_for_nothing() -> None:
    """Five such in a row would else end a task that was never sent."""

    class Slow(MemoryStore):
        slow = 7

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
            leased = await super().lease(
                task_ids, node=node, now=now, expires_at=expires_at, suspects=suspects, room=room
            )
            if leased and self.slow:
                self.slow -= 1
                await trio.sleep(_LEASE_MS / 1000 * 0.95)
            return leased

    node = Node(store=Slow(), lease_ms=_LEASE_MS, clustered=True)
    async with node.running():
        app = await node.app()
        task = await node.ended(app, await node.submit(app))
    assert task.state is TaskState.SUCCEEDED
    assert [(a.attempt, a.outcome) for a in task.attempts] == [(1, Outcome.SUCCEEDED)]


@pytest.mark.parametrize("in_ms", [1, 700, 9_999])
@pytest.mark.virtual_clock
async def test_a_node_that_does_not_lead_fires_what_it_accepted_on_time(in_ms: int) -> None:
    clock = SteppableClock()
    store = MemoryStore()
    leader = Node(store=store, clock=clock, name="leader", clustered=True)
    follower = Node(
        store=store, clock=clock, name="follower", clustered=True, bus=Follower("follower")
    )
    async with leader.running(), follower.running():
        await trio.sleep(0.35)  # between two sweeps
        app = await follower.app()
        due_at = clock.now_ms() + in_ms
        task_id = await follower.submit(app, in_ms=in_ms)
        await follower.ended(app, task_id)
        (made,) = leader.delivery.made + follower.delivery.made
        assert 0 <= made.at_ms - due_at <= 2


@pytest.mark.virtual_clock
async def test_what_a_dead_node_had_accepted_is_found_by_another() -> None:
    clock = SteppableClock()
    store = MemoryStore()
    leader = Node(store=store, clock=clock, name="leader", clustered=True)
    follower = Node(
        store=store, clock=clock, name="follower", clustered=True, bus=Follower("follower")
    )
    async with leader.running():
        async with follower.running():
            await trio.sleep(0.35)
            app = await follower.app()
            due_at = clock.now_ms() + 3_000
            task_id = await follower.submit(app, in_ms=3_000)
        await leader.ended(app, task_id)
        (made,) = leader.delivery.made
        assert 0 <= made.at_ms - due_at <= 1_100


@pytest.mark.virtual_clock
async def test_the_sweep_leaves_what_is_overdue_for_less_than_the_queues_grace() -> None:
    class Carried(LocalQueue):
        def publish(self, tasks: object) -> None:
            """Lost on the way."""

        def in_flight_grace_ms(self) -> int:
            return 4_000

        def backfill(self, tasks: object) -> None:
            held = [task for task in tasks if isinstance(task, DueTask)]  # type: ignore[attr-defined]
            LocalQueue.publish(self, held)

    node = Node(queue=Carried(), clustered=True)
    async with node.running():
        app = await node.app()
        due_at = node.clock.now_ms() + 1
        await node.ended(app, await node.submit(app, in_ms=1))
        assert 4_000 <= node.delivery.made[0].at_ms - due_at <= 5_100

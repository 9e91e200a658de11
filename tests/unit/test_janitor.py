"""The chores: leases kept alive, dead ones ended, the past tidied away."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import trio

from taskd.delivery.attempt import AttemptResult
from taskd.delivery.progress import Progress
from taskd.domain.model import Lease, LeasedTask, NewTask, NonceUse, Outcome, TaskState
from taskd.errors import DuplicateTaskNo, NonceUsed
from taskd.ports.store import ExtendResult
from taskd.stores.memory import MemoryStore
from tests.support.node import REJECTED, SUCCESS, Node

_DAY_S = 86_400


@pytest.mark.virtual_clock
async def test_a_lease_is_extended_for_as_long_as_its_task_runs() -> None:
    node = Node(lease_ms=6_000)
    app = await node.app()

    async def script(task: LeasedTask, progress: Progress) -> AttemptResult:
        await trio.sleep(40)
        return SUCCESS

    node.delivery.script = script
    async with node.running():
        task_id = await node.submit(app)
        for _ in range(38):
            await trio.sleep(1)
            # Another node's janitor finds nothing to reap.
            now = node.clock.now_ms()
            assert await node.store.reap(now=now, expired_at=now, exclude=(), limit=9) == []
        task = await node.ended(app, task_id)
    assert task.state is TaskState.SUCCEEDED
    assert len(task.attempts) == 1


@pytest.mark.virtual_clock
async def test_a_dead_nodes_tasks_run_again_within_the_lease_and_two_seconds() -> None:
    node = Node(lease_ms=6_000)
    app = await node.app()
    task_id = await node.submit(app)
    now = node.clock.now_ms()
    # A node that took the task and was never seen again.
    await node.store.lease([task_id], node="dead", now=now, expires_at=now + 6_000)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.bus.serve, node.dispatcher.handle)
        await nursery.start(node.dispatcher.run)
        await nursery.start(node.timer.run)
        await nursery.start(node.janitor.run)
        task = await node.ended(app, task_id)
        nursery.cancel_scope.cancel()
    assert task.state is TaskState.SUCCEEDED
    assert [attempt.outcome for attempt in task.attempts] == [
        Outcome.ABANDONED,
        Outcome.SUCCEEDED,
    ]
    assert 6_000 <= node.delivery.made[0].at_ms - now <= 8_000


@pytest.mark.virtual_clock
async def test_an_extension_that_a_pause_fell_into_ends_no_attempt() -> None:
    class PausedStore(MemoryStore):
        """Answers an extension when it may; a process that is stopped hears it late."""

        def __init__(self) -> None:
            super().__init__()
            self.asked, self.may_answer = trio.Event(), trio.Event()

        async def extend(self, leases: Sequence[Lease], *, expires_at: int) -> ExtendResult:
            extended = await super().extend(leases, expires_at=expires_at)
            self.asked.set()
            await self.may_answer.wait()
            return extended

    store = PausedStore()
    node = Node(store=store, lease_ms=6_000, clustered=True)
    app = await node.app()

    async def script(task: LeasedTask, progress: Progress) -> AttemptResult:
        progress.sent = True
        await trio.sleep(30)
        return SUCCESS

    node.delivery.script = script
    async with node.running():
        task_id = await node.submit(app)
        await store.asked.wait()
        execution = node.registry.get(task_id)
        assert execution is not None
        # The machine slept: no deadline was looked at meanwhile.
        execution.scope.deadline = math.inf
        await trio.sleep(7)
        node.engine.leases.note_pause()
        store.may_answer.set()
        task = await node.ended(app, task_id)
    assert [attempt.outcome for attempt in task.attempts] == [Outcome.SUCCEEDED]


async def _set_forward(node: Node, seconds: int) -> None:
    """Set the clock forward, and purge once it has run evenly for long enough."""
    node.clock.step(seconds * 1000)
    await node.engine.retention.purge_tasks()
    await trio.sleep(3_600)
    await node.engine.retention.purge_tasks()


@pytest.mark.virtual_clock
async def test_finished_tasks_are_kept_for_their_time_and_then_forgotten() -> None:
    node = Node()
    app = await node.app()
    async with node.running():
        ids = [await node.submit(app) for _ in range(1_200)]
        waiting = await node.submit(app, in_ms=40 * _DAY_S * 1000)
        for task_id in ids:
            await node.ended(app, task_id)
    await _set_forward(node, 30 * _DAY_S - 4_000)
    assert await node.store.task_detail(app.id, task_id=ids[0]) is not None
    await trio.sleep(500)
    await node.engine.retention.purge_tasks()
    for task_id in ids:
        assert await node.store.task_detail(app.id, task_id=task_id) is None
    assert await node.store.task_detail(app.id, task_id=waiting) is not None


@pytest.mark.virtual_clock
async def test_a_purge_takes_as_much_at_once_as_holds_up_nobody() -> None:
    class SlowStore(MemoryStore):
        """Takes so long to purge each task."""

        def __init__(self) -> None:
            super().__init__()
            self.ms_each = 0.0
            self.steps: list[tuple[float, int]] = []

        async def purge(self, *, finished_before: int, limit: int) -> int:
            self.steps.append((trio.current_time(), limit))
            await trio.sleep(limit * self.ms_each / 1000)
            if len(self.steps) == 100:
                return 0
            return limit

    async def steps(ms_each: float) -> list[tuple[float, int]]:
        store = SlowStore()
        store.ms_each = ms_each
        node = Node(store=store)
        await node.engine.retention.learn_time()
        await node.engine.retention.purge_tasks()
        return store.steps

    # A quick store is asked for more and more, up to a bound.
    assert [limit for _, limit in await steps(0.0)][:5] == [25, 50, 75, 100, 100]
    # A slow one for as much as takes 10 ms, give or take one step more.
    slow = [limit for _, limit in await steps(0.2)]
    assert 25 <= min(slow) <= max(slow) <= 75
    assert sum(slow) / len(slow) > 40
    # However slow, it goes on, and the store is others' for two thirds of the time.
    slowest = await steps(4.0)
    assert {limit for _, limit in slowest} == {25}
    assert slowest[-1][0] - slowest[0][0] >= 99 * 0.3 - 0.01


@pytest.mark.virtual_clock
async def test_a_purged_task_no_may_be_used_again() -> None:
    node = Node()
    app = await node.app()

    def again() -> NewTask:
        return NewTask(
            app_id=app.id,
            task_no=f"{node.bus.node}-1",
            name="a task",
            content=b"1",
            timeout_ms=1_000,
            due_at=node.clock.now_ms(),
            created_at=node.clock.now_ms(),
        )

    async with node.running():
        first = await node.submit(app)
        await node.ended(app, first)
        try:
            await node.service.submit(app, again(), None)
        except DuplicateTaskNo:
            pass
        else:
            raise AssertionError("the taskNo was free")
    await _set_forward(node, 31 * _DAY_S)
    assert await node.service.submit(app, again(), None) > first


@pytest.mark.virtual_clock
async def test_expired_nonces_are_forgotten_and_others_kept() -> None:
    node = Node()
    await node.engine.retention.learn_time()
    now = node.clock.now_ms()
    for number in range(4_500):
        await node.store.use_nonce(NonceUse(app_key="a", nonce=f"n{number}", expires_at=now))
    kept = NonceUse(app_key="a", nonce="kept", expires_at=now + 600_000)
    await node.store.use_nonce(kept)
    await trio.sleep(0.001)
    await node.engine.retention.purge_nonces()
    await node.store.use_nonce(NonceUse(app_key="a", nonce="n0", expires_at=now + 600_000))
    try:
        await node.store.use_nonce(kept)
    except NonceUsed:
        return
    raise AssertionError("a nonce that had not expired was forgotten")


@pytest.mark.virtual_clock
async def test_a_clock_that_is_ahead_for_a_moment_deletes_nothing() -> None:
    node = Node()
    app = await node.app()
    used = NonceUse(app_key="a", nonce="used", expires_at=node.clock.now_ms() + 600_000)
    await node.store.use_nonce(used)
    async with node.running():
        task_id = await node.submit(app)
        await node.ended(app, task_id)
        year_ms = 365 * _DAY_S * 1000
        for _ in range(20):
            node.clock.step(year_ms)
            await trio.sleep(11)
            node.clock.step(-year_ms)
            await trio.sleep(11)
    assert await node.store.task_detail(app.id, task_id=task_id) is not None
    with pytest.raises(NonceUsed):
        await node.store.use_nonce(used)


@pytest.mark.virtual_clock
async def test_retries_are_made_in_their_time_after_the_clock_was_set_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = Node()
    app = await node.app(step=7, retry_total=3)

    async def script(task: LeasedTask, progress: Progress) -> AttemptResult:
        await trio.lowlevel.checkpoint()
        return SUCCESS if task.attempt == 3 else REJECTED

    node.delivery.script = script
    node.clock.step(6 * 3_600_000)
    async with node.running():
        task_id = await node.submit(app)
        await trio.sleep(3)
        node.clock.step(-6 * 3_600_000)
        set_back_at = trio.current_time()
        task = await node.ended(app, task_id)
        # The first retry waits its 7 s from when the step was noticed, the second its
        # 14 s: by no clock less than the rule says.
        assert 7 + 14 <= trio.current_time() - set_back_at <= 7 + 14 + 3
    assert task.state is TaskState.SUCCEEDED
    assert len(task.attempts) == 3
    told = [record.message for record in caplog.records if record.name == "taskd.janitor"]
    assert any("the wall clock was set back" in line for line in told)
    assert any("brought forward" in line for line in told)


@pytest.mark.virtual_clock
async def test_what_a_node_finds_dated_by_a_clock_set_back_while_it_was_away_is_mended() -> None:
    store = MemoryStore()
    ahead = Node(store=store)
    app = await ahead.app()

    async def reject(task: LeasedTask, progress: Progress) -> AttemptResult:
        await trio.lowlevel.checkpoint()
        return REJECTED

    ahead.delivery.script = reject
    ahead.clock.step(6 * 3_600_000)
    async with ahead.running():
        task_id = await ahead.submit(app)
        await trio.sleep(1)
    node = Node(store=store, name="node-2")
    async with node.running():
        task = await node.ended(app, task_id, within_s=60)
    assert task.state is TaskState.SUCCEEDED

"""The chores: leases kept alive, dead ones ended, the past tidied away."""

from __future__ import annotations

import trio

from taskd.delivery import AttemptResult
from taskd.errors import DuplicateTaskNo, NonceUsed
from taskd.model import LeasedTask, NewTask, NonceUse, Outcome, TaskState
from taskd.progress import Progress
from taskd.stores.memory import MemoryStore
from tests.support.node import SUCCESS, Node
from tests.support.virtual import on_virtual_clock

_DAY_S = 86_400


def test_a_lease_is_extended_for_as_long_as_its_task_runs() -> None:
    async def main() -> None:
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

    on_virtual_clock(main)


def test_a_dead_nodes_tasks_run_again_within_the_lease_and_two_seconds() -> None:
    async def main() -> None:
        node = Node(lease_ms=6_000)
        app = await node.app()
        task_id = await node.submit(app)
        now = node.clock.now_ms()
        # A node that took the task and was never seen again.
        await node.store.lease([task_id], node="dead", now=now, expires_at=now + 6_000)
        async with trio.open_nursery() as nursery:
            await nursery.start(node.bus.serve, node.worker.handle)
            await nursery.start(node.worker.run)
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

    on_virtual_clock(main)


def test_finished_tasks_are_kept_for_their_time_and_then_forgotten() -> None:
    async def main() -> None:
        node = Node()
        app = await node.app()
        async with node.running():
            ids = [await node.submit(app) for _ in range(1_200)]
            waiting = await node.submit(app, in_ms=40 * _DAY_S * 1000)
            for task_id in ids:
                await node.ended(app, task_id)
        node.clock.step(30 * _DAY_S * 1000 - 60_000)
        await node.janitor.purge_tasks()
        assert await node.store.task_detail(app.id, task_id=ids[0]) is not None
        node.clock.step(120_000)
        await node.janitor.purge_tasks()
        for task_id in ids:
            assert await node.store.task_detail(app.id, task_id=task_id) is None
        assert await node.store.task_detail(app.id, task_id=waiting) is not None

    on_virtual_clock(main)


def test_a_purge_takes_as_much_at_once_as_holds_up_nobody() -> None:
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
        await Node(store=store).janitor.purge_tasks()
        return store.steps

    async def main() -> None:
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

    on_virtual_clock(main)


def test_a_purged_task_no_may_be_used_again() -> None:
    async def main() -> None:
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
        node.clock.step(31 * _DAY_S * 1000)
        await node.janitor.purge_tasks()
        assert await node.service.submit(app, again(), None) > first

    on_virtual_clock(main)


def test_expired_nonces_are_forgotten_and_others_kept() -> None:
    async def main() -> None:
        node = Node()
        now = node.clock.now_ms()
        for number in range(4_500):
            await node.store.use_nonce(NonceUse(app_key="a", nonce=f"n{number}", expires_at=now))
        kept = NonceUse(app_key="a", nonce="kept", expires_at=now + 600_000)
        await node.store.use_nonce(kept)
        node.clock.step(1)
        await node.janitor.purge_nonces()
        await node.store.use_nonce(NonceUse(app_key="a", nonce="n0", expires_at=now + 600_000))
        try:
            await node.store.use_nonce(kept)
        except NonceUsed:
            return
        raise AssertionError("a nonce that had not expired was forgotten")

    on_virtual_clock(main)

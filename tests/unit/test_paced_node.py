"""A node and a receiver that can do only a little at once, on the virtual clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from taskd.delivery.attempt import AttemptResult
from taskd.delivery.progress import Progress
from taskd.domain.model import App, LeasedTask, Outcome, Phase, TaskState
from tests.support.node import SUCCESS, Node

Ask = Callable[[LeasedTask], Awaitable[AttemptResult]]
BROKEN = AttemptResult(outcome=Outcome.UNREACHABLE, error="refused")
TIMED_OUT = AttemptResult(outcome=Outcome.TIMED_OUT, error="too late")


class FewWorkers:
    """Serve one after another, also what has been given up."""

    def __init__(self, nursery: trio.Nursery, workers: int, each_s: float) -> None:
        self._nursery = nursery
        self._workers = trio.CapacityLimiter(workers)
        self._each_s = each_s
        self.executions = 0

    async def ask(self, task: LeasedTask) -> AttemptResult:
        done = trio.Event()
        self._nursery.start_soon(self._work, done)
        with trio.move_on_after(task.timeout_ms / 1000):
            await done.wait()
            return SUCCESS
        return TIMED_OUT

    async def _work(self, done: trio.Event) -> None:
        self.executions += 1
        async with self._workers:
            await trio.sleep(self._each_s)
        done.set()


def asking(node: Node, ask: Ask) -> None:
    async def script(task: LeasedTask, progress: Progress) -> AttemptResult:
        progress.enter(Phase.CONNECTING)
        try:
            result = await ask(task)
        except trio.Cancelled:  # its time is over
            progress.enter(Phase.AWAITING_RESPONSE)
            raise
        if result is not BROKEN:
            progress.enter(Phase.AWAITING_RESPONSE)
        return result

    node.delivery.script = script


async def all_succeed(node: Node, app: App, ids: list[int], *, within_s: float) -> None:
    with trio.fail_after(within_s):
        for task_id in ids:
            assert (await node.ended(app, task_id)).state is TaskState.SUCCEEDED


@pytest.mark.parametrize(("workers", "each_s"), [(5, 0.5), (2, 0.5), (1, 0.5)])
@pytest.mark.virtual_clock
async def test_a_burst_at_a_few_workers_succeeds(workers: int, each_s: float) -> None:
    node = Node()
    app = await node.app()
    async with trio.open_nursery() as nursery:
        receiver = FewWorkers(nursery, workers, each_s)
        asking(node, receiver.ask)
        async with node.running():
            ids = [await node.submit(app, timeout_ms=5_000) for _ in range(200)]
            await all_succeed(node, app, ids, within_s=200 * each_s / workers * 1.3 + 5)
        assert receiver.executions <= 240


@pytest.mark.parametrize("timed_out", [True, False])
@pytest.mark.virtual_clock
async def test_a_receiver_that_comes_back_is_noticed_though_nothing_else_happens(
    timed_out: bool,
) -> None:
    """Nothing is under way and nothing is created: only time can go by."""

    node = Node()
    app = await node.app(retry_total=10)
    back_at = trio.current_time() + 60

    async def ask(task: LeasedTask) -> AttemptResult:
        if trio.current_time() >= back_at:
            await trio.sleep(0.01)
            return SUCCESS
        if timed_out:
            await trio.sleep(task.timeout_ms / 1000)
            return TIMED_OUT
        await trio.sleep(0.001)
        return BROKEN

    asking(node, ask)
    async with node.running():
        ids = [await node.submit(app, timeout_ms=5_000) for _ in range(100)]
        await all_succeed(node, app, ids, within_s=60 + 5.5 * 10)


@pytest.mark.virtual_clock
async def test_others_are_delivered_to_while_a_receiver_is_in_trouble() -> None:
    node = Node()
    hung = await node.app("http://127.0.0.1:9001/cb")
    well = await node.app("http://127.0.0.1:9002/cb")

    async def ask(task: LeasedTask) -> AttemptResult:
        await trio.sleep(0.01 if task.app.id == well.id else task.timeout_ms / 1000)
        return SUCCESS if task.app.id == well.id else TIMED_OUT

    asking(node, ask)
    async with node.running():
        for _ in range(300):
            await node.submit(hung, timeout_ms=2_000)
        for _ in range(30):
            ids = [await node.submit(well) for _ in range(20)]
            await all_succeed(node, well, ids, within_s=1)
            await trio.sleep(1)


@pytest.mark.virtual_clock
async def test_a_healthy_application_shares_an_origin_with_one_that_hangs() -> None:
    node = Node(max_per_origin=50)
    hung = await node.app("http://127.0.0.1:9001/hung")
    well = await node.app("http://127.0.0.1:9001/well")

    async def ask(task: LeasedTask) -> AttemptResult:
        await trio.sleep(0.01 if task.app.id == well.id else task.timeout_ms / 1000)
        return SUCCESS if task.app.id == well.id else TIMED_OUT

    asking(node, ask)
    async with node.running():
        for _ in range(15):
            await node.submit(hung, timeout_ms=3_600_000)
        for _ in range(30):
            ids = [await node.submit(well) for _ in range(20)]
            await all_succeed(node, well, ids, within_s=2)
            await trio.sleep(1)

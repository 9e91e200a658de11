"""A node's memory for contents: bounded whichever way tasks come, and nobody waits in vain."""

from __future__ import annotations

import pytest
import trio

from taskd.delivery.attempt import AttemptResult
from taskd.delivery.progress import Progress
from taskd.domain.model import SHORT_CONTENT, App, CancelCertainty, LeasedTask, TaskState
from taskd.errors import StoreUnavailable
from taskd.stores.memory import MemoryStore
from tests.support.node import SUCCESS, Node

KB = 1_000
LONG = b'"%s"' % (b"x" * 100 * KB)


class Receiver:
    """Answers after a while, and knows how much it was sent at once."""

    def __init__(self, takes_s: float = 1.0) -> None:
        self.takes_s = takes_s
        self.bytes_now = self.most_bytes = self.answered = 0

    async def script(self, task: LeasedTask, progress: Progress) -> AttemptResult:
        assert task.content
        counted = len(task.content) if len(task.content) > SHORT_CONTENT else 0
        self.bytes_now += counted
        self.most_bytes = max(self.most_bytes, self.bytes_now)
        try:
            await trio.sleep(self.takes_s)
        finally:
            self.bytes_now -= counted
        self.answered += 1
        return SUCCESS


async def all_succeed(node: Node, app: App, ids: list[int], *, within_s: float) -> None:
    with trio.fail_after(within_s):
        for task_id in ids:
            assert (await node.ended(app, task_id)).state is TaskState.SUCCEEDED


@pytest.mark.parametrize("in_ms", [0, 500], ids=["begun-at-once", "leased"])
@pytest.mark.parametrize("most", [1_000 * KB, 50_000 * KB], ids=["little", "a-loan"])
@pytest.mark.virtual_clock
async def test_contents_in_flight_are_bounded(in_ms: int, most: int) -> None:
    node = Node(max_bytes=most, start_at=1_000, max_running=5_000, max_per_origin=1_000)
    apps = [await node.app(f"http://127.0.0.1:{9_000 + number}/cb") for number in range(4)]
    receiver = Receiver()
    node.delivery.script = receiver.script
    async with node.running():
        ids = {
            app.id: [await node.submit(app, in_ms=in_ms, content=LONG) for _ in range(250)]
            for app in apps
        }
        for app in apps:
            await all_succeed(node, app, ids[app.id], within_s=1_000 * 100 * KB / most * 4 + 5)
    assert most / 2 <= receiver.most_bytes <= most
    assert node.contents.used == node.contents.waiting == 0


@pytest.mark.virtual_clock
async def test_small_tasks_and_other_applications_do_not_wait_for_long_ones_that_hang() -> None:
    node = Node(max_bytes=1_000 * KB)
    hung = await node.app("http://127.0.0.1:9001/cb")
    well = await node.app("http://127.0.0.1:9002/cb")
    quick = Receiver(0.01)

    async def script(task: LeasedTask, progress: Progress) -> AttemptResult:
        if task.app.id == hung.id:
            await trio.sleep_forever()
        return await quick.script(task, progress)

    node.delivery.script = script
    async with node.running():
        for _ in range(100):
            await node.submit(hung, in_ms=100, content=LONG)
        await trio.sleep(1)
        assert node.contents.waiting
        ids = [await node.submit(well) for _ in range(50)]
        await all_succeed(node, well, ids, within_s=2)
        ids = [await node.submit(well, content=LONG) for _ in range(50)]
        await all_succeed(node, well, ids, within_s=2)
    assert quick.most_bytes <= 500 * KB


@pytest.mark.virtual_clock
async def test_what_waits_for_room_can_be_cancelled_and_was_never_sent() -> None:
    node = Node(max_bytes=150 * KB)
    app = await node.app()
    hang = Receiver(1e6)
    node.delivery.script = hang.script
    async with node.running():
        first = await node.submit(app, content=LONG)
        second = await node.submit(app, content=LONG)
        await trio.sleep(1)
        assert node.contents.waiting == 1
        assert (await node.detail(app, second)).state is TaskState.RUNNING
        assert await node.cancel(app, second) is CancelCertainty.NEVER_SENT
        assert node.contents.waiting == 0
        third = await node.submit(app, content=LONG)
        await node.cancel(app, first)
        hang.takes_s = 1.0
        await all_succeed(node, app, [third], within_s=1e6)
    assert node.contents.used == 0


@pytest.mark.virtual_clock
async def test_a_wait_for_room_is_no_part_of_the_attempt() -> None:
    node = Node(max_bytes=150 * KB)
    app = await node.app()
    node.delivery.script = Receiver(20.0).script
    async with node.running():
        ids = [await node.submit(app, content=LONG) for _ in range(3)]
        await all_succeed(node, app, ids, within_s=70)
        spans = []
        for task_id in ids:
            (attempt,) = (await node.detail(app, task_id)).attempts
            spans.append((attempt.started_at, attempt.ended_at))
    spans.sort()
    assert all(19_900 <= end - start <= 20_100 for start, end in spans)
    assert spans[0][1] <= spans[1][0] <= spans[1][1] <= spans[2][0]


class Unreadable(MemoryStore):
    """Contents can't be read for a while."""

    reads = 0
    readable = False

    async def content(self, task_id: int) -> bytes | None:
        self.reads += 1
        if not self.readable:
            raise StoreUnavailable("the disk is broken")
        return await super().content(task_id)


@pytest.mark.virtual_clock
async def test_a_content_that_can_not_be_read_costs_no_retry_and_is_tried_again_now_and_then() -> (
    None
):

    store = Unreadable()
    node = Node(store=store, max_bytes=150 * KB)
    app = await node.app(retry_total=0)
    node.delivery.script = Receiver().script
    async with node.running():
        task_id = await node.submit(app, in_ms=100, content=LONG)
        await trio.sleep(20)
        assert 5 <= store.reads <= 25
        store.readable = True
        await all_succeed(node, app, [task_id], within_s=10)
        assert [one.attempt for one in (await node.detail(app, task_id)).attempts] == [1]
    assert node.contents.used == 0


@pytest.mark.virtual_clock
async def test_a_drain_gives_back_what_waits_for_room() -> None:
    node = Node(max_bytes=150 * KB)
    app = await node.app()
    node.delivery.script = Receiver(1e6).script
    async with node.running():
        ids = [await node.submit(app, content=LONG) for _ in range(3)]
        await trio.sleep(1)
        await node.dispatcher.drain(patience_s=1, unwind_s=1)
        for task_id in ids[1:]:
            task = await node.detail(app, task_id)
            assert (task.state, task.attempts) == (TaskState.SCHEDULED, ())
    assert node.contents.used == node.contents.waiting == 0

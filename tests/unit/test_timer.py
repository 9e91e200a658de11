"""When tasks are fired: never early, late ones at once, none forgotten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from statistics import median

import pytest
import trio

from taskd.delivery.attempt import AttemptResult
from taskd.delivery.progress import Progress
from taskd.domain.model import App, DueTask, LeasedTask, NewTask, Shard, TaskState, shard_of
from taskd.engine import timer as timer_module
from taskd.errors import InvalidInput, StoreUnavailable
from taskd.queues.local import LocalQueue
from taskd.stores.memory import MemoryStore
from tests.support.clocks import START_MS
from tests.support.node import SUCCESS, Node


@pytest.mark.virtual_clock
async def test_a_task_is_fired_at_its_time_and_not_before() -> None:
    node = Node()
    app = await node.app()
    async with node.running():
        waits = (0, 1, 2, 999, 1_000, 9_999, 10_001, 60_000, 3_600_000)
        ids = [await node.submit(app, in_ms=ms) for ms in waits]
        for task_id in ids:
            await node.ended(app, task_id)
    late = {made.task_id: made.at_ms - START_MS for made in node.delivery.made}
    for task_id, due in zip(ids, waits, strict=True):
        assert due <= late[task_id] <= due + 2


@pytest.mark.virtual_clock
async def test_a_clock_that_steps_back_fires_nothing_early() -> None:
    node = Node()
    app = await node.app()
    async with node.running():
        task_id = await node.submit(app, in_ms=5_000)
        await trio.sleep(4.9)
        node.clock.step(-60_000)
        await trio.sleep(59)
        assert node.delivery.made == []
        await node.ended(app, task_id)
    assert [made.at_ms for made in node.delivery.made] == [START_MS + 5_000]


@pytest.mark.virtual_clock
async def test_after_a_step_back_tasks_are_fired_as_punctually_as_before() -> None:
    node = Node()
    app = await node.app()
    async with node.running():
        await trio.sleep(30)
        node.clock.step(-7_200_000)
        await trio.sleep(2)
        # Added by another node, so that this one has to read it ahead.
        due_at = node.clock.now_ms() + 30_300
        await node.store.create_task(
            NewTask(
                app_id=app.id,
                task_no="elsewhere",
                name="a task",
                content=b"1",
                timeout_ms=1_000,
                due_at=due_at,
                created_at=node.clock.now_ms(),
            )
        )
        await trio.sleep(31)
    assert [made.at_ms for made in node.delivery.made] == [due_at]


@pytest.mark.virtual_clock
async def test_a_clock_that_steps_back_between_lease_and_start_fires_nothing_early() -> None:
    node = Node()
    app = await node.app()
    original = node.store.lease
    stepped: list[bool] = []

    async def step_after_lease(
        task_ids: list[int], *, node: str, now: int, expires_at: int
    ) -> list[LeasedTask]:
        leased = await original(task_ids, node=node, now=now, expires_at=expires_at)
        if leased and not stepped:
            stepped.append(True)
            the_node.clock.step(-10_000)
        return leased

    the_node = node
    node.store.lease = step_after_lease  # type: ignore[method-assign,assignment]
    async with node.running():
        task_id = await node.submit(app)
        task = await node.ended(app, task_id)
    assert [made.at_ms for made in node.delivery.made] == [START_MS]
    assert [attempt.attempt for attempt in task.attempts] == [1]


@pytest.mark.virtual_clock
async def test_a_clock_that_steps_forward_fires_what_is_late_at_once() -> None:
    node = Node()
    app = await node.app()
    async with node.running():
        # One within the lookahead (in the heap), one far beyond it.
        near = await node.submit(app, in_ms=9_000)
        far = await node.submit(app, in_ms=3_600_000)
        await trio.sleep(1)
        stepped_at = trio.current_time()
        node.clock.step(7_200_000)
        await node.ended(app, near)
        await node.ended(app, far)
        assert trio.current_time() - stepped_at < 0.5


@pytest.mark.virtual_clock
async def test_a_burst_of_any_size_is_delivered_whole() -> None:
    node = Node(queue=LocalQueue(lane_bound=1_000))
    app = await node.app()
    ids = [await node.submit(app, in_ms=2_000) for _ in range(5_000)]
    async with node.running():
        await node.ended(app, ids[-1])
        for task_id in ids:
            await node.ended(app, task_id)
    assert sorted(made.task_id for made in node.delivery.made) == ids
    assert min(made.at_ms for made in node.delivery.made) >= START_MS + 2_000
    assert node.queue.statistics().dropped > 0


@pytest.mark.virtual_clock
async def test_a_full_heap_costs_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timer_module, "HEAP_BOUND", 10)
    node = Node()
    app = await node.app()
    async with node.running():
        ids = [await node.submit(app, in_ms=3_000) for _ in range(50)]
        for task_id in ids:
            await node.ended(app, task_id)
    assert node.timer.statistics().dropped > 0
    assert max(made.at_ms for made in node.delivery.made) <= START_MS + 4_500


@pytest.mark.virtual_clock
async def test_wake_ups_that_are_all_lost_cost_a_second() -> None:
    class DeafOnce(LocalQueue):
        """Loses the first wake-up of every task."""

        def __init__(self) -> None:
            super().__init__()
            self.heard: set[int] = set()

        def publish(self, tasks: Iterable[DueTask]) -> None:
            told = list(tasks)
            super().publish([task for task in told if task.task_id in self.heard])
            self.heard.update(task.task_id for task in told)

    node = Node(queue=DeafOnce())
    app = await node.app()
    async with node.running():
        now = await node.submit(app)
        later = await node.submit(app, in_ms=500)
        await node.ended(app, now)
        await node.ended(app, later)
    assert max(made.at_ms for made in node.delivery.made) <= START_MS + 2_600


@pytest.mark.virtual_clock
async def test_a_store_that_can_not_be_read_is_read_again() -> None:
    node = Node()
    app = await node.app()
    original = node.store.find_due
    failures = 3

    async def flaky(**arguments: object) -> list[DueTask]:
        nonlocal failures
        if failures:
            failures -= 1
            raise StoreUnavailable("the disk is gone")
        return await original(**arguments)  # type: ignore[arg-type]

    task_id = await node.submit(app, in_ms=4_000)
    node.store.find_due = flaky  # type: ignore[method-assign]
    async with node.running():
        await node.ended(app, task_id)
    assert failures == 0
    assert node.delivery.made[0].at_ms == START_MS + 4_000


@pytest.mark.virtual_clock
async def test_the_timer_says_when_it_can_not_read_the_store() -> None:
    node = Node()
    async with node.running():
        assert node.timer.unready() is None

        async def broken(**arguments: object) -> list[DueTask]:
            raise StoreUnavailable("the disk is gone")

        node.store.find_due = broken  # type: ignore[method-assign]
        await trio.sleep(12)
        assert node.timer.unready() is not None


class Parted(LocalQueue):
    """The queue of a node that shares all with another, which does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[list[int]] = []
        """What each sweep found."""

    def shard(self) -> Shard:
        return Shard(0, 2)

    def publish(self, tasks: Iterable[DueTask]) -> None:
        super().publish(task for task in tasks if self.shard().has(task.task_id))

    def backfill(self, tasks: Iterable[DueTask]) -> None:
        tasks = list(tasks)
        self.found.append([task.task_id for task in tasks])
        super().publish(tasks)


@pytest.mark.parametrize("backlog", [6, 20, 3_000])
@pytest.mark.virtual_clock
async def test_a_node_looks_after_its_part_of_a_backlog_and_then_after_the_rest(
    backlog: int,
) -> None:
    queue = Parted()
    node = Node(queue=queue, start_at=100)
    app = await node.app()
    ids = [await node.submit(app) for _ in range(backlog)]
    async with node.running():
        for task_id in ids:
            await node.ended(app, task_id)
    made = [each.task_id for each in node.delivery.made]
    own = [task_id for task_id in ids if shard_of(task_id, 2) == 0]
    rest = [task_id for task_id in ids if shard_of(task_id, 2) == 1]
    assert own
    assert rest
    assert sorted(made[: len(own)]) == own
    assert sorted(made[len(own) :]) == rest
    if backlog < 500:
        assert set(queue.found[0]) >= set(rest)
    else:
        assert queue.found[0]
        assert set(queue.found[0]) <= set(own), "as long as it has its own, no others'"
        assert set(made[len(own) : len(own) + 30]) <= set(rest[-200:]), "from their end"


async def beside_a_hung_one(node: Node, *, backlog: int) -> App:
    """An application that answers at once, and a backlog of another whose receiver hangs."""
    hung = await node.app("http://127.0.0.1:1/cb")
    well = await node.app("http://127.0.0.1:2/cb")

    async def script(task: LeasedTask, progress: Progress) -> AttemptResult:
        await trio.sleep(60 if task.app.id == hung.id else 0.005)
        return SUCCESS

    node.delivery.script = script
    for _ in range(backlog):
        await node.submit(hung)
    return well


@pytest.mark.virtual_clock
async def test_a_node_that_can_not_begin_its_part_helps_other_applications() -> None:
    queue = Parted()
    node = Node(queue=queue, max_per_origin=10, start_at=10)
    well = await beside_a_hung_one(node, backlog=2_000)
    async with node.running():
        await trio.sleep(10)
        found = [task_id for sweep in queue.found for task_id in sweep]
        assert all(shard_of(task_id, 2) == 0 for task_id in found)
        assert queue.found[3:] == [[]] * len(queue.found[3:]), "it is not read each second"
        begun = trio.current_time()
        ids = [await node.submit(well) for _ in range(40)]
        for task_id in ids:
            await node.ended(well, task_id)
        assert trio.current_time() - begun < 5
    assert any(shard_of(task_id, 2) == 1 for task_id in ids)


@pytest.mark.parametrize("of", [2, 3, 5])
@pytest.mark.parametrize("step", [1, 2, 3, 28, 512, 1024])
def test_parts_are_alike_however_ids_follow_each_other(of: int, step: int) -> None:
    for first in (1, 10**12):
        parts = Counter(shard_of(first + step * number, of) for number in range(3_000))
        assert min(parts[number] for number in range(of)) > 0.9 * 3_000 / of, (first, parts)
    near = Counter(shard_of(number, of) for number in range(1_000, 1_050))
    assert max(near.values()) - min(near[number] for number in range(of)) <= 10


@pytest.mark.virtual_clock
async def test_an_application_that_hangs_does_not_delay_another() -> None:
    node = Node()
    well = await beside_a_hung_one(node, backlog=5_000)
    async with node.running():
        due = {}
        for index in range(200):
            task_id = await node.submit(well, in_ms=0 if index % 2 else 700)
            due[task_id] = (await node.detail(well, task_id)).runtime
            await trio.sleep(0.02)
        for task_id in due:
            assert (await node.ended(well, task_id)).state is TaskState.SUCCEEDED
    delays = [made.at_ms - due[made.task_id] for made in node.delivery.made if made.task_id in due]
    assert median(delays) < 100
    assert max(delays) < 1_500


@pytest.mark.virtual_clock
async def test_applications_of_one_origin_share_its_room() -> None:
    node = Node(max_running=50, max_per_origin=10)
    first = await node.app("http://127.0.0.1:1/a")
    second = await node.app("http://127.0.0.1:1/b")
    most = 0

    async def script(task: LeasedTask, progress: Progress) -> AttemptResult:
        nonlocal most
        most = max(most, len(node.registry))
        await trio.sleep(1)
        return SUCCESS

    node.delivery.script = script
    ids = [(app, await node.submit(app)) for app in (first, second) for _ in range(40)]
    async with node.running():
        for app, task_id in ids:
            await node.ended(app, task_id)
    assert most == 10


@pytest.mark.virtual_clock
async def test_a_backlog_is_shared_in_turns() -> None:
    node = Node(max_running=1, max_per_origin=1)
    apps = [await node.app(f"http://127.0.0.1:{port}/cb") for port in (1, 2, 3)]
    for app, count in zip(apps, (30, 30, 3), strict=True):
        for _ in range(count):
            await node.submit(app)
    async with node.running():
        while len(node.delivery.made) < 63:
            await trio.sleep(0.1)
    places = [i for i, made in enumerate(node.delivery.made) if made.app_id == apps[2].id]
    assert places[-1] <= 12


@pytest.mark.virtual_clock
async def test_memory_holds_only_what_falls_due_soon() -> None:
    store = MemoryStore()
    node = Node(store=store)
    app = await node.app()
    async with node.running():
        for _ in range(100):
            await node.submit(app, in_ms=3_600_000)
        await trio.sleep(5)
        assert node.timer.statistics().waiting == 0
        assert len(node.registry) == 0


@pytest.mark.virtual_clock
async def test_a_link_url_that_can_not_be_read_fails_its_attempts_only() -> None:
    node = Node()

    def origin_of(url: str) -> str:
        if "broken" in url:
            raise InvalidInput("linkUrl", "can't be read")
        return url

    node.dispatcher._origin_of = origin_of
    broken = await node.app("http://broken url/cb", retry_total=0)
    well = await node.app("http://127.0.0.1:2/cb")
    async with node.running():
        first = await node.submit(broken)
        second = await node.submit(well)
        assert (await node.ended(well, second)).state is TaskState.SUCCEEDED
        await node.ended(broken, first)


@pytest.mark.virtual_clock
async def test_apps_that_are_new_do_not_hold_up_those_that_are_known() -> None:
    node = Node()
    lookups = 0
    original = node.store.app_by_id

    async def slow(app_id: int) -> App | None:
        nonlocal lookups
        lookups += 1
        await trio.sleep(0.001)
        return await original(app_id)

    known = await node.app("http://127.0.0.1:1/cb")
    apps = [await node.app(f"http://127.0.0.1:{port}/cb") for port in range(2, 1_002)]
    async with node.running():
        await node.ended(known, await node.submit(known))
        node.store.app_by_id = slow  # type: ignore[method-assign]
        for app in apps:
            await node.submit(app, in_ms=1)  # by way of the lanes
        began = node.clock.now_ms()
        task_id = await node.submit(known, in_ms=1)
        await node.ended(known, task_id)
        (made,) = [made for made in node.delivery.made if made.task_id == task_id]
        assert made.at_ms - began < 100
        while len(node.delivery.made) < 1_002:
            await trio.sleep(0.1)
    assert lookups == 1_000

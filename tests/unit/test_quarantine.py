"""Which task is why its nodes die, and that the others are spared."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import trio
import trio.lowlevel

from taskd.delivery.attempt import AttemptResult
from taskd.delivery.progress import Progress
from taskd.domain.model import DueTask, LeasedTask, Suspect, TaskState
from taskd.engine.quarantine import ALONE_S, LOT_S, QUIET_S
from taskd.stores.memory import MemoryStore
from tests.support.clocks import SteppableClock
from tests.support.node import SUCCESS, Node


@dataclass
class Lives:
    """Nodes one after another on one store, each until it dies of what is under way."""

    deadly: Callable[[dict[int, LeasedTask]], bool]
    """Whether what is under way kills the node."""
    takes_s: float = 0.1
    max_running: int = 500
    store: MemoryStore = field(default_factory=MemoryStore)
    clock: SteppableClock = field(default_factory=SteppableClock)
    deaths: list[set[int]] = field(default_factory=list)
    """What was under way at each."""

    async def live(self, *, until: Callable[[], object], most_deaths: int = 60) -> None:
        while len(self.deaths) <= most_deaths:
            if await self._live_once(until):
                return
        raise AssertionError(f"{len(self.deaths)} deaths")

    async def _live_once(self, until: Callable[[], object]) -> bool:
        node = self.node()
        under_way: dict[int, LeasedTask] = {}
        died = trio.Event()

        async def script(task: LeasedTask, _progress: Progress) -> AttemptResult:
            under_way[task.lease.task_id] = task
            try:
                await trio.lowlevel.checkpoint()
                if self.deadly(under_way):
                    died.set()
                    await trio.sleep_forever()
                await trio.sleep(self.takes_s)
            finally:
                if not died.is_set():
                    del under_way[task.lease.task_id]
            return SUCCESS

        node.delivery.script = script
        async with node.running():
            while not died.is_set():
                with trio.move_on_after(1):
                    await died.wait()
                if await self.ended(until):
                    return True
        self.deaths.append(set(under_way))
        return False

    async def ended(self, until: Callable[[], object]) -> bool:
        result = until()
        return bool(await result) if hasattr(result, "__await__") else bool(result)

    def node(self) -> Node:
        return Node(
            store=self.store,
            clock=self.clock,
            name=f"node-{len(self.deaths)}",
            max_running=self.max_running,
            max_per_origin=self.max_running,
            start_at=self.max_running,
        )

    async def states(self, ids: list[int]) -> dict[int, TaskState]:
        app = await self.store.app_by_id(1)
        assert app is not None
        found = {}
        for task_id in ids:
            task = await self.store.task_detail(app.id, task_id=task_id)
            assert task is not None
            found[task_id] = task.state
        return found

    async def all_ended(self, ids: list[int]) -> bool:
        return all(state.terminal for state in (await self.states(ids)).values())


async def _submit(lives: Lives, number: int) -> list[int]:
    node = lives.node()
    app = await node.app()
    return [await node.submit(app) for _ in range(number)]


@pytest.mark.parametrize("beside", [0, 1, 3, 40, 300])
@pytest.mark.virtual_clock
async def test_the_culprit_is_found_and_the_innocent_are_spared(beside: int) -> None:
    culprit = 1 + beside // 2
    lives = Lives(lambda under_way: culprit in under_way)
    ids = await _submit(lives, 1 + beside)
    await lives.live(until=lambda: lives.all_ended(ids))
    states = await lives.states(ids)
    assert states.pop(culprit) is TaskState.FAILED
    assert set(states.values()) <= {TaskState.SUCCEEDED}
    # Those it takes with it grow fewer: at last it is alone, or nearly.
    assert all(len(death) <= 3 for death in lives.deaths[-5:])
    assert len(lives.deaths) <= 5 + 3


@pytest.mark.virtual_clock
async def test_two_culprits_are_found() -> None:
    culprits = {20, 90}
    lives = Lives(lambda under_way: bool(culprits & under_way.keys()))
    ids = await _submit(lives, 120)
    await lives.live(until=lambda: lives.all_ended(ids))
    failed = [one for one, state in (await lives.states(ids)).items() if state != "succeeded"]
    assert set(failed) == culprits


@pytest.mark.parametrize("bearable", [1, 5, 40])
@pytest.mark.virtual_clock
async def test_a_node_that_dies_of_too_many_fails_none(bearable: int) -> None:
    """As under a memory limit: none of them is to blame."""

    lives = Lives(lambda under_way: len(under_way) > bearable)
    ids = await _submit(lives, 375)
    await lives.live(until=lambda: lives.all_ended(ids))
    assert set((await lives.states(ids)).values()) == {TaskState.SUCCEEDED}


@pytest.mark.virtual_clock
async def test_others_go_on_beside_suspects_that_take_long() -> None:
    lives = Lives(lambda _: False)
    ids = await _submit(lives, 400)
    store = lives.store
    quick = await lives.node().app("http://127.0.0.1:9002/cb")
    ids.append(await lives.node().submit(quick))
    now = lives.clock.now_ms()
    await store.lease(ids, node="dead", now=now, expires_at=now + 1)
    await store.reap(now=now, expired_at=None, exclude=(), limit=1_000)
    node = lives.node()
    begun: dict[int, float] = {}

    async def script(task: LeasedTask, _progress: Progress) -> AttemptResult:
        begun[task.lease.task_id] = trio.current_time()
        if task.lease.task_id <= 400:
            await trio.sleep(10_000)
        return SUCCESS

    node.delivery.script = script
    async with node.running():
        began = trio.current_time()
        other = await node.app("http://127.0.0.1:9001/cb")
        fresh = await node.submit(other)
        await node.ended(other, fresh, within_s=1)
        # A lot is an eighth of the places; what hangs makes room in it after a while.
        await trio.sleep_until(began + LOT_S - 0.5)
        assert 50 <= len(begun) - 1 <= 70
        await node.ended(quick, ids[-1], within_s=2 * LOT_S)


@pytest.mark.virtual_clock
async def test_a_task_begins_alone_and_others_wait_for_a_short_while() -> None:
    lives = Lives(lambda _: False)
    (suspect,) = await _submit(lives, 1)
    store = lives.store
    for number in range(3):
        now = lives.clock.now_ms()
        await store.lease([suspect], node=f"dead-{number}", now=now, expires_at=now + 1)
        await store.reap(now=now, expired_at=None, exclude=(), limit=9)
    node = lives.node()
    app = await store.app_by_id(1)
    assert app is not None
    begun: dict[int, float] = {}

    async def script(task: LeasedTask, _progress: Progress) -> AttemptResult:
        begun[task.lease.task_id] = trio.current_time()
        await trio.sleep(1_000 if task.lease.task_id == suspect else 0.01)
        return SUCCESS

    node.delivery.script = script
    async with node.running():
        began = trio.current_time()
        fresh = await node.submit(app, task_no="fresh")
        await node.ended(app, fresh)
    assert begun[suspect] == pytest.approx(began, abs=0.1)
    assert begun[fresh] - began == pytest.approx(ALONE_S, abs=0.3)


@pytest.mark.virtual_clock
async def test_a_busy_node_makes_short_pauses_for_those_that_begin_alone() -> None:
    lives = Lives(lambda _: False)
    suspects = await _submit(lives, 5)
    store = lives.store
    node = lives.node()
    app = await store.app_by_id(1)
    assert app is not None
    begun: list[tuple[int, float]] = []
    hang = trio.Event()

    async def script(task: LeasedTask, _progress: Progress) -> AttemptResult:
        begun.append((task.lease.task_id, trio.current_time()))
        if task.task_no.endswith("-hung"):
            await hang.wait()
        return SUCCESS

    node.delivery.script = script
    async with node.running():
        # More than a few hang, so that it is never quiet.
        for number in range(6):
            await node.submit(app, task_no=f"{number}-hung")
        for number in range(3):
            now = node.clock.now_ms()
            await store.lease(suspects, node=f"d-{number}", now=now, expires_at=now + 1)
            await store.reap(now=now, expired_at=None, exclude=(), limit=9, node=f"d-{number}")
        started = trio.current_time()
        while not all(one in dict(begun) for one in suspects):
            await node.submit(app)
            await trio.sleep(0.05)
        took = trio.current_time() - started
        hang.set()
    others = [at for one, at in begun if one not in suspects]
    gaps = [late - early for early, late in itertools.pairwise(others)]
    assert max(gaps) <= QUIET_S + 0.5
    assert sum(gap for gap in gaps if gap > 0.2) <= 0.3 * took


@pytest.mark.virtual_clock
async def test_a_suspect_that_finds_a_place_leaves_nobody_of_its_application_waiting() -> None:
    node = Node()
    app = await node.app()

    async def script(task: LeasedTask, _progress: Progress) -> AttemptResult:
        await trio.sleep(0.5)
        return SUCCESS

    node.delivery.script = script
    async with node.running():
        others = [await node.submit(app) for _ in range(40)]
        suspect = await node.submit(app, in_ms=100)
        await trio.sleep(0.2)
        now = node.clock.now_ms()
        assert await node.store.lease([suspect], node="dead", now=now, expires_at=now + 1)
        await node.store.reap(now=now, expired_at=None, exclude=(), limit=1, node="dead")
        # Those under way end, and nobody is asked to begin anything but the suspect.
        node.dispatcher.pause(paused=True)
        await trio.sleep(0.5)
        due = DueTask(task_id=suspect, app_id=app.id, due_at=now)
        (execution,) = await node.dispatcher.begin([Suspect(task=due, abandoned=1)])
        node.dispatcher.pause(paused=False)
        await execution.done.wait()
        for task_id in others:
            await node.ended(app, task_id, within_s=5)

"""A task's whole life by the retry rule, on the virtual clock."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from taskd.delivery.attempt import AttemptResult
from taskd.delivery.progress import Progress
from taskd.domain import retry
from taskd.domain.model import LeasedTask, Outcome, Settlement, TaskState
from taskd.errors import StoreUnavailable, SystemShort
from tests.support.clocks import START_MS
from tests.support.node import REJECTED, SUCCESS, Node
from tests.support.virtual import on_virtual_clock


@pytest.mark.virtual_clock
async def test_the_whole_schedule_of_a_task() -> None:
    node = Node()
    app = await node.app(step=5, retry_total=3)

    async def script(task: LeasedTask, progress: Progress) -> AttemptResult:
        await trio.sleep(2)
        return REJECTED

    node.delivery.script = script
    async with node.running():
        task_id = await node.submit(app, in_ms=10_000)
        task = await node.ended(app, task_id)
    # Due at 10 s; every attempt takes 2 s; then 5 s, 10 s and 15 s of waiting.
    starts = [made.at_ms - START_MS for made in node.delivery.made]
    for start, expected in zip(starts, (10_000, 17_000, 29_000, 46_000), strict=True):
        assert expected <= start <= expected + 5
    assert task.state is TaskState.FAILED
    assert [attempt.attempt for attempt in task.attempts] == [1, 2, 3, 4]
    assert {attempt.outcome for attempt in task.attempts} == {Outcome.REJECTED}
    assert task.finished_at is not None
    assert START_MS + 48_000 <= task.finished_at <= START_MS + 48_010


@pytest.mark.virtual_clock
async def test_the_wait_never_exceeds_an_hour() -> None:
    node = Node()
    app = await node.app(step=3600, retry_total=3)

    async def script(task: LeasedTask, progress: Progress) -> AttemptResult:
        await trio.lowlevel.checkpoint()
        return SUCCESS if task.attempt == 4 else REJECTED

    node.delivery.script = script
    async with node.running():
        task = await node.ended(app, await node.submit(app))
    starts = [made.at_ms - START_MS for made in node.delivery.made]
    for start, hours in zip(starts, (0, 1, 2, 3), strict=True):
        assert hours * 3_600_000 <= start <= hours * 3_600_000 + 20
    assert task.state is TaskState.SUCCEEDED


@pytest.mark.virtual_clock
async def test_those_that_fail_at_once_are_not_repeated_at_once() -> None:
    node = Node()
    app = await node.app(step=5, retry_total=3)

    async def script(task: LeasedTask, progress: Progress) -> AttemptResult:
        await trio.lowlevel.checkpoint()
        return SUCCESS if task.attempt == 2 else REJECTED

    node.delivery.script = script
    async with node.running():
        ids = [await node.submit(app) for _ in range(200)]
        for task_id in ids:
            assert (await node.ended(app, task_id)).state is TaskState.SUCCEEDED
    first = {made.task_id: made.at_ms for made in node.delivery.made if made.attempt == 1}
    waits = [made.at_ms - first[made.task_id] for made in node.delivery.made if made.attempt == 2]
    assert len(waits) == 200
    assert min(waits) >= 5_000
    assert max(waits) <= 5_600
    in_a_tenth = Counter(wait // 100 for wait in waits)
    assert max(in_a_tenth.values()) <= 80


@pytest.mark.virtual_clock
async def test_gone_ends_a_task_at_once() -> None:
    node = Node()
    app = await node.app(retry_total=10)

    async def script(task: LeasedTask, progress: Progress) -> AttemptResult:
        await trio.lowlevel.checkpoint()
        return AttemptResult(outcome=Outcome.REJECTED, http_status=410)

    node.delivery.script = script
    async with node.running():
        task = await node.ended(app, await node.submit(app))
    assert task.state is TaskState.FAILED
    assert len(node.delivery.made) == 1


@pytest.mark.parametrize(
    ("status", "retry_after_s", "waited_s"),
    [
        (429, 100, 100),
        (503, 100, 100),
        (429, 2, 5),
        (503, 9_999, 3600),
        (500, 100, 5),
        (429, None, 5),
    ],
)
@pytest.mark.virtual_clock
async def test_retry_after_counts_where_it_is_longer(
    status: int, retry_after_s: float | None, waited_s: float
) -> None:
    node = Node()
    app = await node.app(step=5)

    async def script(task: LeasedTask, progress: Progress) -> AttemptResult:
        await trio.lowlevel.checkpoint()
        if task.attempt == 2:
            return SUCCESS
        return AttemptResult(
            outcome=Outcome.REJECTED, http_status=status, retry_after_s=retry_after_s
        )

    node.delivery.script = script
    async with node.running():
        await node.ended(app, await node.submit(app))
    first, second = (made.at_ms for made in node.delivery.made)
    assert waited_s * 1000 <= second - first <= waited_s * 1000 + 20


@pytest.mark.virtual_clock
async def test_a_task_may_override_its_apps_rule() -> None:
    node = Node()
    app = await node.app(retry_total=3)

    async def script(task: LeasedTask, progress: Progress) -> AttemptResult:
        await trio.lowlevel.checkpoint()
        return REJECTED

    node.delivery.script = script
    async with node.running():
        task = await node.ended(app, await node.submit(app, retry_total=0))
    assert task.state is TaskState.FAILED
    assert len(task.attempts) == 1


@pytest.mark.virtual_clock
async def test_an_end_that_can_not_be_kept_is_kept_when_the_store_is_back() -> None:
    node = Node()
    app = await node.app()
    original = node.store.settle
    failures = 6

    async def flaky(settlement: Settlement, *, within_s: float | None = None) -> TaskState:
        nonlocal failures
        if failures:
            failures -= 1
            raise StoreUnavailable("the disk is full")
        return await original(settlement, within_s=within_s)

    node.store.settle = flaky  # type: ignore[method-assign]
    async with node.running():
        task = await node.ended(app, await node.submit(app))
    assert task.state is TaskState.SUCCEEDED
    assert len(node.delivery.made) == 1
    assert node.engine.executor.settle_failures == 6


@pytest.mark.virtual_clock
async def test_tasks_that_can_not_be_leased_are_leased_when_the_store_is_back() -> None:
    node = Node()
    app = await node.app()
    original = node.store.lease
    failures = 4

    async def flaky(*arguments: object, **options: object) -> list[LeasedTask]:
        nonlocal failures
        if failures:
            failures -= 1
            raise StoreUnavailable("the disk is full")
        return await original(*arguments, **options)  # type: ignore[arg-type]

    node.store.lease = flaky  # type: ignore[method-assign]
    async with node.running():
        task = await node.ended(app, await node.submit(app, in_ms=1))
    assert task.state is TaskState.SUCCEEDED
    assert failures == 0
    assert len(node.registry) == 0


@pytest.mark.virtual_clock
async def test_an_attempt_that_this_machine_has_no_room_for_is_put_off_and_costs_nothing() -> None:
    node = Node()
    app = await node.app(step=5, retry_total=0)

    async def script(task: LeasedTask, progress: Progress) -> AttemptResult:
        await trio.lowlevel.checkpoint()
        if len(node.delivery.made) < 8:
            raise SystemShort("too many open files")
        return SUCCESS

    node.delivery.script = script
    async with node.running():
        task = await node.ended(app, await node.submit(app))
    assert task.state is TaskState.SUCCEEDED
    assert [made.attempt for made in node.delivery.made] == [1] * 8
    assert [attempt.outcome for attempt in task.attempts] == [Outcome.SUCCEEDED]
    starts = [made.at_ms for made in node.delivery.made]
    for before, after in pairwise(starts):
        assert 1000 <= after - before <= 4100


@pytest.mark.virtual_clock
async def test_a_defect_in_an_attempt_costs_that_attempt_only() -> None:
    node = Node()
    app = await node.app(retry_total=1)

    async def script(task: LeasedTask, progress: Progress) -> AttemptResult:
        await trio.lowlevel.checkpoint()
        if task.attempt == 1:
            raise RuntimeError("a defect")
        return SUCCESS

    node.delivery.script = script
    async with node.running():
        task = await node.ended(app, await node.submit(app))
    assert task.state is TaskState.SUCCEEDED
    assert [attempt.outcome for attempt in task.attempts] == [
        Outcome.UNREACHABLE,
        Outcome.SUCCEEDED,
    ]


@dataclass(frozen=True)
class Step:
    """One attempt of a made-up life."""

    kind: str
    status: int | None
    retry_after_s: float | None
    took_s: int


STEPS = st.builds(
    Step,
    kind=st.sampled_from(["ok", "rejected", "timed_out", "unreachable", "denied", "killed"]),
    status=st.sampled_from([None, 200, 302, 404, 410, 429, 500, 503]),
    retry_after_s=st.sampled_from([None, 0, 1, 30, 5_000]),
    took_s=st.integers(0, 20),
)


def _result(step: Step) -> AttemptResult:
    if step.kind == "ok":
        return SUCCESS
    return AttemptResult(
        outcome=Outcome(step.kind),
        http_status=step.status if step.kind == "rejected" else None,
        retry_after_s=step.retry_after_s if step.kind == "rejected" else None,
    )


@dataclass
class Expected:
    """What the protocol says of a life, worked out by hand beside the code."""

    step: int
    retry_total: int
    failures: int = 0
    abandoned: int = 0
    state: TaskState = TaskState.SCHEDULED
    wait_s: float = 0

    def take(self, step: Step) -> None:
        if step.kind == "killed":
            self.abandoned += 1
            self.wait_s = 0
            self.state = TaskState.FAILED if self.abandoned == 5 else TaskState.RETRYING
            return
        self.abandoned = 0
        result = _result(step)
        if step.kind == "ok":
            self.state = TaskState.SUCCEEDED
            return
        self.failures += 1
        if result.http_status == 410 or self.failures == self.retry_total + 1:
            self.state = TaskState.FAILED
            return
        self.state = TaskState.RETRYING
        self.wait_s = min(self.step * self.failures, 3600)
        if result.http_status in (429, 503) and result.retry_after_s is not None:
            self.wait_s = max(self.wait_s, min(result.retry_after_s, 3600))


@settings(max_examples=100, deadline=None)
@given(
    step=st.integers(1, 3600),  # a life of step 0 would run on between two looks
    retry_total=st.integers(0, 10),
    life=st.lists(STEPS, min_size=1, max_size=30),
)
def test_any_life_follows_the_rule(step: int, retry_total: int, life: list[Step]) -> None:
    """States, attempt numbers and due times of a task whose attempts end in any
    way, node deaths included."""

    async def main() -> None:
        node = Node()
        app = await node.app(step=step, retry_total=retry_total)
        expected = Expected(step, retry_total)
        task_id = await node.submit(app)
        due = START_MS
        for attempts, act in enumerate(life, 1):
            died = trio.Event()

            async def script(
                task: LeasedTask, progress: Progress, act: Step = act, died: trio.Event = died
            ) -> AttemptResult:
                if act.kind == "killed":
                    died.set()
                    await trio.sleep_forever()
                await trio.sleep(act.took_s)
                return _result(act)

            node.delivery.script = script
            async with node.running():
                if act.kind == "killed":
                    await died.wait()
                else:
                    while len((await node.detail(app, task_id)).attempts) < attempts:
                        await trio.sleep(0.05)
            # The next node finds what this one left.
            await node.store.reap(now=node.clock.now_ms(), expired_at=None, exclude=(), limit=10)
            ended_at = node.clock.now_ms()
            assert due <= node.delivery.made[-1].at_ms <= due + 60
            expected.take(act)
            task = await node.detail(app, task_id)
            assert task.state is expected.state
            assert [attempt.attempt for attempt in task.attempts] == list(range(1, attempts + 1))
            assert [made.attempt for made in node.delivery.made] == list(range(1, attempts + 1))
            if task.state.terminal:
                assert task.due_at is None
                break
            assert task.due_at is not None
            assert abs(task.due_at - (ended_at + expected.wait_s * 1000)) <= 60
            due = task.due_at
            # What lies between is another test's; here the clock skips it.
            node.clock.step(max(0, due - node.clock.now_ms() - 300))
            node = _successor(node)

    on_virtual_clock(main)


def _successor(node: Node) -> Node:
    """A node that takes over the Store of one that died, as after a restart."""
    successor = Node(store=node.store, clock=node.clock)
    successor.delivery.made = node.delivery.made
    return successor


@given(
    failures=st.integers(0, 20),
    step=st.integers(0, 3600),
    retry_total=st.integers(0, 10),
    status=st.sampled_from([None, 200, 301, 410, 429, 500, 503]),
    retry_after_s=st.one_of(st.none(), st.floats(0, 100_000)),
)
def test_no_wait_is_ever_negative_or_over_an_hour(
    failures: int, step: int, retry_total: int, status: int | None, retry_after_s: float | None
) -> None:
    decision = retry.after_attempt(
        outcome=Outcome.REJECTED,
        http_status=status,
        retry_after_s=retry_after_s,
        failures=failures,
        step=step,
        retry_total=retry_total,
        crowd=0.0,
        chance=lambda: 1.0,
    )
    if decision.delay_ms is None:
        assert decision.state is TaskState.FAILED
    else:
        assert decision.state is TaskState.RETRYING
        assert 0 <= decision.delay_ms <= 3_600_000
        assert decision.failures <= retry_total

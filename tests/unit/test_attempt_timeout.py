"""What ends an attempt: its timeout, its lease, a cancel, a drain, or several at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from taskd.delivery.attempt import AttemptResult
from taskd.delivery.progress import Progress
from taskd.domain.model import App, Lease, LeasedTask, Outcome, Phase, TaskDetail, TaskState
from taskd.engine.registry import Ending, Execution
from taskd.engine.slots import Slots
from taskd.errors import StoreUnavailable
from taskd.ports.store import ExtendResult
from taskd.stores.memory import MemoryStore
from tests.support.node import SUCCESS, TIMED_OUT, Node

_LEASE_MS = 10_000
_SAFE_S = 9.0
"""A tenth of the lease before its end."""


class CutOff(MemoryStore):
    """Extends no lease after this many times."""

    def __init__(self, extensions: int = 0) -> None:
        super().__init__()
        self.extensions = extensions

    async def extend(self, leases: Sequence[Lease], *, expires_at: int) -> ExtendResult:
        if leases:
            self.extensions -= 1
            if self.extensions < 0:
                await trio.lowlevel.checkpoint()
                raise StoreUnavailable("the network is cut")
        return await super().extend(leases, expires_at=expires_at)


class Attempt:
    """One attempt that waits until it is ended, in a node that may lose its leases."""

    def __init__(
        self, *, timeout_ms: int, store: MemoryStore | None = None, sent: bool = True
    ) -> None:
        self.node = Node(store=store, lease_ms=_LEASE_MS, clustered=True)
        self._timeout_ms = timeout_ms
        self._sent = sent
        self._began = self._ended = -1.0
        self.node.delivery.script = self._hang

    async def _hang(self, task: LeasedTask, progress: Progress) -> AttemptResult:
        if task.attempt > 1:
            return SUCCESS
        progress.enter(Phase.SENDING if self._sent else Phase.CONNECTING)
        self._began = trio.current_time()
        try:
            await trio.sleep_forever()
        finally:
            self._ended = trio.current_time()
        raise AssertionError

    async def begin(self) -> tuple[App, Execution]:
        app = await self.node.app()
        task_id = await self.node.submit(app, timeout_ms=self._timeout_ms)
        await wait_all_tasks_blocked()
        execution = self.node.registry.get(task_id)
        assert execution is not None
        return app, execution

    @property
    def took_s(self) -> float:
        return round(self._ended - self._began, 6)

    async def first(self, app: App, execution: Execution) -> TaskDetail:
        with trio.fail_after(100):
            await execution.done.wait()
        return await self.node.detail(app, execution.task_id)


def outcomes(task: TaskDetail) -> list[Outcome]:
    return [attempt.outcome for attempt in task.attempts]


@pytest.mark.parametrize("timeout_ms", [2_000, 5_000, 8_999])
@pytest.mark.virtual_clock
async def test_a_lease_that_is_extended_does_not_prolong_the_timeout(timeout_ms: int) -> None:
    attempt = Attempt(timeout_ms=timeout_ms)
    async with attempt.node.running():
        app, execution = await attempt.begin()
        task = await attempt.first(app, execution)
    assert attempt.took_s == timeout_ms / 1000
    assert outcomes(task) == [Outcome.TIMED_OUT]
    assert task.attempts[0].ended_at - task.attempts[0].started_at == timeout_ms
    assert task.state is TaskState.RETRYING
    assert execution.ending is None


@pytest.mark.parametrize("timeout_ms", [9_000, 9_500, 10_000, 25_000, 60_000])
@pytest.mark.virtual_clock
async def test_a_timeout_after_the_end_of_the_first_lease_counts_as_it_is_extended(
    timeout_ms: int,
) -> None:
    attempt = Attempt(timeout_ms=timeout_ms)
    async with attempt.node.running():
        app, execution = await attempt.begin()
        task = await attempt.first(app, execution)
    assert attempt.took_s == timeout_ms / 1000
    assert outcomes(task) == [Outcome.TIMED_OUT]


@pytest.mark.parametrize("extensions", [0, 1, 2])
@pytest.mark.virtual_clock
async def test_a_lease_that_is_not_extended_ends_the_attempt_before_its_timeout(
    extensions: int,
) -> None:
    attempt = Attempt(timeout_ms=60_000, store=CutOff(extensions))
    async with attempt.node.running():
        app, execution = await attempt.begin()
        task = await attempt.first(app, execution)
    # Each extension comes at a multiple of a third of the lease.
    extended_s = extensions * _LEASE_MS / 3000
    assert attempt.took_s == pytest.approx(_SAFE_S + extended_s, abs=0.01)
    assert execution.ending is Ending.LEASE_LOST
    assert task.state is TaskState.RUNNING  # nothing was settled


@pytest.mark.parametrize("sent", [True, False])
@pytest.mark.virtual_clock
async def test_where_timeout_and_lease_end_together_the_lease_counts(sent: bool) -> None:
    attempt = Attempt(timeout_ms=round(_SAFE_S * 1000), store=CutOff(), sent=sent)
    async with attempt.node.running():
        app, execution = await attempt.begin()
        assert execution.timeout_at == execution.lease_until == execution.scope.deadline
        task = await attempt.first(app, execution)
        assert execution.ending is Ending.LEASE_LOST
        # What was not sent is given back, and is no attempt.
        assert execution.state is (None if sent else TaskState.SCHEDULED)
        assert task.attempts == ()


@pytest.mark.parametrize("ahead_ms", [-1, 1])
@pytest.mark.virtual_clock
async def test_of_timeout_and_lease_the_earlier_one_counts(ahead_ms: int) -> None:
    attempt = Attempt(timeout_ms=round(_SAFE_S * 1000) + ahead_ms, store=CutOff())
    async with attempt.node.running():
        app, execution = await attempt.begin()
        task = await attempt.first(app, execution)
    assert outcomes(task) == ([Outcome.TIMED_OUT] if ahead_ms < 0 else [])
    assert attempt.took_s == min(_SAFE_S, _SAFE_S + ahead_ms / 1000)


@pytest.mark.parametrize(
    ("ending", "outcome", "state"),
    [
        (Ending.CANCEL, [Outcome.CANCELLED], TaskState.CANCELLED),
        (Ending.DRAIN, [Outcome.ABANDONED], TaskState.RETRYING),
        (Ending.LEASE_LOST, [], None),
    ],
)
@pytest.mark.virtual_clock
async def test_who_ends_an_attempt_at_the_moment_of_its_timeout_goes_first(
    ending: Ending, outcome: list[Outcome], state: TaskState | None
) -> None:
    attempt = Attempt(timeout_ms=5_000)
    async with attempt.node.running():
        app, execution = await attempt.begin()

        async def end() -> None:
            """At the timeout's moment, when Trio has cancelled the scope already."""
            await trio.sleep_until(execution.timeout_at)
            if attempt._ended < 0:
                execution.end(ending)

        async with trio.open_nursery() as nursery:
            for _ in range(8):  # some of them run before the attempt does
                nursery.start_soon(end)
        task = await attempt.first(app, execution)
    assert attempt.took_s == 5
    if execution.ending is None:  # the attempt was first, each time
        assert outcomes(task) == [Outcome.TIMED_OUT]
    else:
        assert (outcomes(task), execution.state) == (outcome, state)


@pytest.mark.virtual_clock
async def test_an_attempt_that_ends_at_the_moment_of_its_timeout_has_its_result() -> None:
    node = Node()
    at_the_moment = trio.Event()

    async def script(task: LeasedTask, progress: Progress) -> AttemptResult:
        progress.enter(Phase.SENDING)
        await at_the_moment.wait()
        return SUCCESS

    node.delivery.script = script
    async with node.running():
        app = await node.app()
        task_id = await node.submit(app, timeout_ms=5_000)
        await wait_all_tasks_blocked()
        execution = node.registry.get(task_id)
        assert execution is not None
        await trio.sleep(1)
        at_the_moment.set()
        execution.timeout_at = execution.scope.deadline = trio.current_time()
        task = await node.ended(app, task_id)
    assert task.state is TaskState.SUCCEEDED


def new_execution() -> Execution:
    slots = Slots(1, 1)
    assert slots.take(1, "http://a:80", trio.current_time())
    return Execution(1, slots.use(1, "http://a:80"))


async def _left(execution: Execution, in_time: Callable[[], None]) -> bool:
    """Leave the scope once it is cancelled, after something has happened; returns whether it
    was a timeout."""
    with execution.scope:
        try:
            await trio.sleep_forever()
        finally:
            in_time()
    return execution.timed_out()


@pytest.mark.virtual_clock
async def test_an_extension_that_comes_too_late_makes_no_timeout_of_a_lost_lease() -> None:
    execution = new_execution()
    execution.rely_on_lease(trio.current_time() + 3)
    execution.begin_attempt(5)
    assert not await _left(execution, lambda: execution.rely_on_lease(trio.current_time() + 30))
    assert execution.scope.cancelled_caught


@pytest.mark.virtual_clock
async def test_an_extension_at_the_moment_of_the_timeout_changes_nothing() -> None:
    execution = new_execution()
    execution.rely_on_lease(trio.current_time() + 9)
    execution.begin_attempt(5)
    assert await _left(execution, lambda: execution.rely_on_lease(trio.current_time() + 30))


@pytest.mark.virtual_clock
async def test_an_ending_at_the_moment_of_the_timeout_goes_first() -> None:
    execution = new_execution()
    execution.begin_attempt(5)
    assert not await _left(execution, lambda: execution.end(Ending.CANCEL))
    assert execution.ending is Ending.CANCEL


@pytest.mark.virtual_clock
async def test_what_ends_before_the_attempt_began_is_no_timeout() -> None:
    execution = new_execution()
    execution.rely_on_lease(trio.current_time() + 3)
    assert not await _left(execution, lambda: None)


@pytest.mark.virtual_clock
async def test_the_time_of_an_attempt_begins_when_its_content_is_there() -> None:
    """A long content may wait for room in memory: that is no time of the attempt's."""

    class SlowContent(MemoryStore):
        async def content(self, task_id: int) -> bytes | None:
            await trio.sleep(20)
            return await super().content(task_id)

    node = Node(store=SlowContent(), max_bytes=150_000)
    long = b'"' + bytes(100_000).replace(b"\0", b"x") + b'"'
    took: list[float] = []

    async def script(task: LeasedTask, progress: Progress) -> AttemptResult:
        progress.enter(Phase.SENDING)
        began = trio.current_time()
        try:
            await trio.sleep_forever()
        finally:
            took.append(trio.current_time() - began)
        raise AssertionError

    node.delivery.script = script
    async with node.running():
        app = await node.app(retry_total=0)
        ids = [await node.submit(app, timeout_ms=5_000, content=long) for _ in range(2)]
        for task_id in ids:
            assert outcomes(await node.ended(app, task_id)) == [Outcome.TIMED_OUT]
    assert [round(one, 6) for one in took] == [5, 5]


@pytest.mark.virtual_clock
async def test_a_timeout_that_can_not_be_judged_costs_one_attempt(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(task: LeasedTask, progress: Progress) -> AttemptResult:
        if task.attempt == 1:
            raise ZeroDivisionError
        return TIMED_OUT

    node = Node()
    monkeypatch.setattr(node.delivery, "timed_out", broken)

    async def script(task: LeasedTask, progress: Progress) -> AttemptResult:
        progress.enter(Phase.SENDING)
        await trio.sleep_forever()
        raise AssertionError

    node.delivery.script = script
    with caplog.at_level(logging.ERROR):
        async with node.running():
            app = await node.app(retry_total=1)
            task = await node.ended(app, await node.submit(app, timeout_ms=5_000))
    assert outcomes(task) == [Outcome.UNREACHABLE, Outcome.TIMED_OUT]
    assert "an attempt failed within" in caplog.text


@pytest.mark.virtual_clock
async def test_a_timeout_and_the_death_of_the_node_leave_the_task_to_others() -> None:
    attempt = Attempt(timeout_ms=5_000)
    async with attempt.node.running():
        app, execution = await attempt.begin()
        await trio.sleep_until(execution.timeout_at)
    task = await attempt.node.detail(app, execution.task_id)
    # As Trio happens to run them: timed out and settled, or neither.
    assert (task.state, len(task.attempts)) in {(TaskState.RUNNING, 0), (TaskState.RETRYING, 1)}

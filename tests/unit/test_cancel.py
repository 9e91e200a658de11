"""Cancelling in every state and phase, and what the canceller is told."""

from __future__ import annotations

import pytest
import trio

from taskd.delivery.attempt import AttemptResult
from taskd.delivery.progress import Progress
from taskd.domain.model import CancelCertainty, LeasedTask, Outcome, Phase, Settlement, TaskState
from taskd.engine.registry import Ending
from taskd.errors import StoreUnavailable
from taskd.service.service import CancelNotConfirmed
from tests.support.node import REJECTED, SUCCESS, Node, Script

W = CancelCertainty
FIRST = {
    None: W.NEVER_SENT,
    Phase.RESOLVING: W.NEVER_SENT,
    Phase.CONNECTING: W.NEVER_SENT,
    Phase.TLS: W.NEVER_SENT,
    Phase.SENDING: W.ABORTED_BEFORE_RESPONSE,
    Phase.AWAITING_RESPONSE: W.ABORTED_BEFORE_RESPONSE,
    Phase.READING: W.ABORTED_DURING_RESPONSE,
}


def hang_in(phase: Phase | None, reached: trio.Event, *, on_attempt: int = 1) -> Script:
    """A delivery that goes through the phases up to one, and stays there; attempts
    before ``on_attempt`` send something and are rejected."""

    async def script(task: LeasedTask, progress: Progress) -> AttemptResult:
        if task.attempt < on_attempt:
            progress.enter(Phase.SENDING)
            await trio.lowlevel.checkpoint()
            return REJECTED
        for step in Phase:
            if phase is None:
                break
            progress.enter(step)
            await trio.lowlevel.checkpoint()
            if step is phase:
                break
        reached.set()
        await trio.sleep_forever()
        raise AssertionError

    return script


@pytest.mark.parametrize("phase", [None, *Phase])
@pytest.mark.parametrize("earlier_attempt", [False, True])
@pytest.mark.virtual_clock
async def test_a_running_task_is_cancelled_in_every_phase(
    phase: Phase | None, earlier_attempt: bool
) -> None:
    node = Node()
    app = await node.app()
    reached = trio.Event()
    node.delivery.script = hang_in(phase, reached, on_attempt=1 + earlier_attempt)
    async with node.running():
        task_id = await node.submit(app)
        await reached.wait()
        word = await node.cancel(app, task_id)
        expected = FIRST[phase]
        if earlier_attempt and expected is W.NEVER_SENT:
            expected = W.BETWEEN_ATTEMPTS
        assert word is expected
        task = await node.detail(app, task_id)
        assert task.state is TaskState.CANCELLED
        assert task.cancel_certainty is expected
        assert task.attempts[-1].outcome is Outcome.CANCELLED
        made = len(node.delivery.made)
        assert await node.cancel(app, task_id) is None
        await trio.sleep(200)
        assert len(node.delivery.made) == made


@pytest.mark.virtual_clock
async def test_a_task_that_waits_for_its_time_is_cancelled() -> None:
    node = Node()
    app = await node.app()
    async with node.running():
        near = await node.submit(app, in_ms=5_000)
        far = await node.submit(app, in_ms=100_000)
        for task_id in (near, far):
            assert await node.cancel(app, task_id) is W.NEVER_SENT
            assert await node.cancel(app, task_id) is None
            assert (await node.detail(app, task_id)).state is TaskState.CANCELLED
        await trio.sleep(200)
    assert node.delivery.made == []


@pytest.mark.parametrize(("sent", "word"), [(True, W.BETWEEN_ATTEMPTS), (False, W.NEVER_SENT)])
@pytest.mark.virtual_clock
async def test_a_task_between_attempts_is_cancelled(sent: bool, word: CancelCertainty) -> None:
    node = Node()
    app = await node.app()

    async def script(task: LeasedTask, progress: Progress) -> AttemptResult:
        progress.enter(Phase.SENDING if sent else Phase.CONNECTING)
        await trio.lowlevel.checkpoint()
        return AttemptResult(outcome=Outcome.UNREACHABLE, error="no")

    node.delivery.script = script
    async with node.running():
        task_id = await node.submit(app)
        while (await node.detail(app, task_id)).state is not TaskState.RETRYING:
            await trio.sleep(0.01)
        assert await node.cancel(app, task_id) is word
        await trio.sleep(200)
    assert len(node.delivery.made) == 1


@pytest.mark.virtual_clock
async def test_ended_unknown_and_foreign_tasks_are_not_cancelled() -> None:
    node = Node()
    app = await node.app()
    other = await node.app("http://127.0.0.1:2/cb")
    async with node.running():
        done = await node.submit(app)
        await node.ended(app, done)
        foreign = await node.submit(other, in_ms=1_000)
        for task_id in (done, foreign, 12_345):
            assert await node.cancel(app, task_id) is None
        assert (await node.ended(other, foreign)).state is TaskState.SUCCEEDED


@pytest.mark.virtual_clock
async def test_two_cancels_at_once_are_told_the_same() -> None:
    node = Node()
    app = await node.app()
    reached = trio.Event()
    node.delivery.script = hang_in(Phase.AWAITING_RESPONSE, reached)
    words = []

    async def cancel() -> None:
        words.append(await node.cancel(app, task_id))

    async with node.running():
        task_id = await node.submit(app)
        await reached.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel)
            nursery.start_soon(cancel)
    assert words == [W.ABORTED_BEFORE_RESPONSE] * 2


@pytest.mark.parametrize("result", [SUCCESS, REJECTED])
@pytest.mark.virtual_clock
async def test_a_cancel_at_the_moment_of_completion_has_one_winner(result: AttemptResult) -> None:
    """The cancel is asked for at every distance from the attempt's end."""

    async def once(steps: int) -> None:
        node = Node()
        app = await node.app()
        reached = trio.Event()

        async def script(task: LeasedTask, progress: Progress) -> AttemptResult:
            progress.enter(Phase.SENDING)
            progress.enter(Phase.READING)
            reached.set()
            for _ in range(6):
                await trio.lowlevel.checkpoint()
            return result

        node.delivery.script = script
        async with node.running():
            task_id = await node.submit(app)
            await reached.wait()
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            word = await node.cancel(app, task_id)
            task = await node.detail(app, task_id)
            if result is SUCCESS and word is None:
                assert task.state is TaskState.SUCCEEDED
            else:
                assert task.state is TaskState.CANCELLED
                assert task.cancel_certainty is word
                assert word in (W.ABORTED_DURING_RESPONSE, W.BETWEEN_ATTEMPTS)
            await trio.sleep(30)
            assert len(node.delivery.made) == 1

    for steps in range(30):
        await once(steps)


@pytest.mark.virtual_clock
async def test_a_cancel_that_can_not_be_confirmed_says_so_and_still_counts() -> None:
    node = Node()
    app = await node.app()
    reached = trio.Event()
    node.delivery.script = hang_in(Phase.AWAITING_RESPONSE, reached)
    original = node.store.settle
    broken = True

    async def flaky(settlement: Settlement, *, within_s: float | None = None) -> TaskState:
        if broken:
            raise StoreUnavailable("the disk is full")
        return await original(settlement, within_s=within_s)

    node.store.settle = flaky  # type: ignore[method-assign]
    async with node.running():
        task_id = await node.submit(app)
        await reached.wait()
        before = trio.current_time()
        with pytest.raises(CancelNotConfirmed):
            await node.cancel(app, task_id)
        assert trio.current_time() - before < 5.1
        broken = False
        task = await node.ended(app, task_id)
        assert task.state is TaskState.CANCELLED
        assert len(node.delivery.made) == 1


@pytest.mark.virtual_clock
async def test_a_wish_outlives_its_node() -> None:
    node = Node()
    app = await node.app()
    reached = trio.Event()
    node.delivery.script = hang_in(Phase.AWAITING_RESPONSE, reached)
    async with node.running():
        task_id = await node.submit(app)
        await reached.wait()
        await node.store.request_cancel(app.id, task_id, now=node.clock.now_ms())
    # The node is dead; the next one honours the wish instead of running it.
    successor = Node(store=node.store, clock=node.clock)
    async with successor.running():
        await trio.sleep(30)
    task = await node.detail(app, task_id)
    assert task.state is TaskState.CANCELLED
    assert task.cancel_certainty is W.UNKNOWN
    assert successor.delivery.made == []
    assert [attempt.outcome for attempt in task.attempts] == [Outcome.ABANDONED]


@pytest.mark.virtual_clock
async def test_a_client_that_goes_away_does_not_stop_a_cancel() -> None:
    node = Node()
    app = await node.app()
    reached = trio.Event()
    node.delivery.script = hang_in(Phase.AWAITING_RESPONSE, reached)
    async with node.running():
        task_id = await node.submit(app)
        await reached.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.cancel, app, task_id)
            nursery.cancel_scope.cancel()
        assert (await node.ended(app, task_id)).state is TaskState.CANCELLED


@pytest.mark.virtual_clock
async def test_a_wish_whose_signal_was_lost_is_found_by_the_janitor() -> None:
    node = Node(lease_ms=9_000)
    app = await node.app()
    reached = trio.Event()
    node.delivery.script = hang_in(Phase.AWAITING_RESPONSE, reached)
    async with node.running():
        task_id = await node.submit(app)
        await reached.wait()
        await node.store.request_cancel(app.id, task_id, now=node.clock.now_ms())
        task = await node.ended(app, task_id, within_s=4)
        assert task.state is TaskState.CANCELLED


@pytest.mark.virtual_clock
async def test_a_drain_gives_back_what_does_not_end_in_time() -> None:
    node = Node()
    app = await node.app()

    async def script(task: LeasedTask, progress: Progress) -> AttemptResult:
        progress.enter(Phase.CONNECTING)
        if task.task_no.endswith("-1"):
            await trio.sleep(3)
            return SUCCESS
        if task.task_no.endswith("-3"):
            progress.enter(Phase.SENDING)
        await trio.sleep_forever()
        raise AssertionError

    node.delivery.script = script
    async with node.running():
        quick, unsent, sent = [await node.submit(app) for _ in range(3)]
        while len(node.delivery.made) < 3:
            await trio.sleep(0.01)
        before = trio.current_time()
        await node.dispatcher.drain(patience_s=5, unwind_s=1)
        assert trio.current_time() - before < 5.1
        assert len(node.registry) == 0
    assert (await node.detail(app, quick)).state is TaskState.SUCCEEDED
    never_begun = await node.detail(app, unsent)
    assert never_begun.state is TaskState.SCHEDULED
    assert never_begun.attempts == ()
    begun = await node.detail(app, sent)
    assert begun.state is TaskState.RETRYING
    assert [attempt.outcome for attempt in begun.attempts] == [Outcome.ABANDONED]
    successor = Node(store=node.store, clock=node.clock)
    async with successor.running():
        for task_id in (unsent, sent):
            task = await successor.ended(app, task_id)
            assert task.state is TaskState.SUCCEEDED
    assert {(made.task_id, made.attempt) for made in successor.delivery.made} == {
        (unsent, 1),
        (sent, 2),
    }


@pytest.mark.virtual_clock
async def test_a_node_that_lost_a_lease_stops_and_settles_nothing() -> None:
    node = Node(lease_ms=9_000)
    app = await node.app()
    reached = trio.Event()
    node.delivery.script = hang_in(Phase.AWAITING_RESPONSE, reached)
    async with node.running():
        task_id = await node.submit(app)
        await reached.wait()
        execution = node.registry.get(task_id)
        assert execution is not None
        # As if another node had reaped and taken it.
        now = node.clock.now_ms()
        await node.store.reap(now=now, expired_at=None, exclude=(), limit=1)
        await node.store.lease([task_id], node="other", now=now, expires_at=now + 1_000_000)
        with trio.fail_after(5):
            await execution.done.wait()
        assert execution.ending is Ending.LEASE_LOST
        task = await node.detail(app, task_id)
        assert task.state is TaskState.RUNNING
        assert task.node == "other"

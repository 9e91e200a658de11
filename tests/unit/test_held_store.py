"""A Store that does not answer: settlements, cancels and the drain have their deadlines."""

from __future__ import annotations

import logging
import math

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from taskd.delivery.attempt import AttemptResult
from taskd.delivery.progress import Progress
from taskd.domain.model import CancelDecision, LeasedTask, Phase, Settlement, TaskState
from taskd.errors import StoreUnavailable
from taskd.service.service import CANCEL_DEADLINE_S, CancelNotConfirmed
from taskd.stores.memory import MemoryStore
from tests.support.held import HeldWriter
from tests.support.node import Node

_SETTLE_S = 5.0


class HeldStore(MemoryStore):
    """Settlements and cancels wait until they may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.may_settle, self.may_cancel = trio.Event(), trio.Event()
        self.writer = HeldWriter()

    async def settle(self, settlement: Settlement, *, within_s: float | None = None) -> TaskState:
        await self.writer.hold(self.may_settle, within_s)
        return await super().settle(settlement, within_s=within_s)

    async def request_cancel(
        self,
        app_id: int,
        task_id: int | None = None,
        *,
        task_no: str | None = None,
        now: int,
        within_s: float | None = None,
    ) -> CancelDecision:
        await self.writer.hold(self.may_cancel, within_s)
        return await super().request_cancel(
            app_id, task_id, task_no=task_no, now=now, within_s=within_s
        )

    def end_by(self, latest: float) -> None:
        super().end_by(latest)
        self.writer.end_by(latest)


async def hang(_task: LeasedTask, progress: Progress) -> AttemptResult:
    progress.enter(Phase.SENDING)
    await trio.sleep_forever()
    raise AssertionError


@pytest.mark.virtual_clock
async def test_a_settlement_that_is_not_answered_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = HeldStore()
    node = Node(store=store)
    async with node.running():
        app = await node.app()
        task_id = await node.submit(app)
        with caplog.at_level(logging.ERROR):
            await trio.sleep(_SETTLE_S + 0.05)
        (record,) = [one for one in caplog.records if one.name == "taskd.attempt"]
        told = "the store did not answer within 5 s; whether this was written is not known"
        assert told in str(vars(record))
        await trio.sleep(1)
        store.may_settle.set()
        task = await node.ended(app, task_id, within_s=1)
        assert task.state is TaskState.SUCCEEDED
        assert node.engine.executor.settle_failures == 1
        assert len(node.delivery.made) == 1


@pytest.mark.virtual_clock
async def test_a_settlement_is_written_although_its_node_is_killed() -> None:
    store = HeldStore()
    node = Node(store=store)
    async with trio.open_nursery() as nursery:
        await node.engine.start(nursery)
        app = await node.app()
        task_id = await node.submit(app)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
        store.may_settle.set()
    assert (await node.detail(app, task_id)).state is TaskState.SUCCEEDED


@pytest.mark.virtual_clock
async def test_a_drain_ends_a_settlement_that_waits_for_the_store() -> None:
    node = Node(store=HeldStore())
    async with trio.open_nursery() as nursery:
        await node.engine.start(nursery)
        app = await node.app()
        task_id = await node.submit(app)
        await trio.sleep(1)
        began = trio.current_time()
        node.engine.end_by(began + 2)
        await node.dispatcher.drain(patience_s=1, unwind_s=1)
        nursery.cancel_scope.cancel()
    assert trio.current_time() == began + 2
    assert node.engine.executor.settle_failures == 1
    assert (await node.detail(app, task_id)).state is TaskState.RUNNING


@pytest.mark.virtual_clock
async def test_a_settlement_after_the_end_of_the_drain_is_left_to_the_next_start() -> None:
    store = HeldStore()
    store.may_settle.set()
    node = Node(store=store)
    node.delivery.script = hang
    async with trio.open_nursery() as nursery:
        await node.engine.start(nursery)
        app = await node.app()
        task_id = await node.submit(app)
        await wait_all_tasks_blocked()
        node.engine.end_by(trio.current_time())
        began = trio.current_time()
        await node.dispatcher.drain(patience_s=0, unwind_s=1)
        nursery.cancel_scope.cancel()
    assert trio.current_time() == began + 1
    assert node.engine.executor.settle_failures > 1
    assert (await node.detail(app, task_id)).state is TaskState.RUNNING


@pytest.mark.virtual_clock
async def test_a_cancel_that_the_store_does_not_answer_is_given_up_in_time() -> None:
    store = HeldStore()
    node = Node(store=store)
    async with node.running():
        app = await node.app()
        task_id = await node.submit(app, in_ms=100_000)
        began = trio.current_time()
        with pytest.raises(StoreUnavailable, match="not known"):
            await node.cancel(app, task_id)
        assert trio.current_time() - began == CANCEL_DEADLINE_S
        store.may_cancel.set()
        assert await node.cancel(app, task_id) is not None


@pytest.mark.virtual_clock
async def test_a_client_that_goes_away_while_the_store_waits_does_not_stop_a_cancel() -> None:
    store = HeldStore()
    store.may_settle.set()
    node = Node(store=store)
    node.delivery.script = hang
    async with node.running():
        app = await node.app()
        task_id = await node.submit(app)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.cancel, app, task_id)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
            store.may_cancel.set()
        assert (await node.detail(app, task_id)).state is TaskState.CANCELLED


@pytest.mark.parametrize("asked", [0.0, 4.0, 6.0])
@pytest.mark.virtual_clock
async def test_the_time_of_a_cancel_counts_from_its_beginning(asked: float) -> None:
    """However long the Store took for the request, and for what comes after."""
    store = HeldStore()
    node = Node(store=store)
    node.delivery.script = hang
    async with node.running():
        app = await node.app()
        task_id = await node.submit(app)
        await wait_all_tasks_blocked()
        began = trio.current_time()

        async def answer() -> None:
            await trio.sleep(asked)
            store.may_cancel.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            late = StoreUnavailable if asked > CANCEL_DEADLINE_S else CancelNotConfirmed
            with pytest.raises(late):
                await node.cancel(app, task_id)
            assert trio.current_time() - began == pytest.approx(CANCEL_DEADLINE_S)
        store.may_settle.set()


@pytest.mark.parametrize("within_s", [0.0, 2.0])
@pytest.mark.virtual_clock
async def test_a_drain_ends_a_cancel_that_is_not_confirmed(within_s: float) -> None:
    store = HeldStore()
    store.may_cancel.set()
    node = Node(store=store)
    node.delivery.script = hang
    async with node.running():
        app = await node.app()
        task_id = await node.submit(app)
        await wait_all_tasks_blocked()

        async def drain() -> None:
            await trio.sleep(1)
            node.engine.end_by(trio.current_time() + within_s)

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain)
            with pytest.raises(CancelNotConfirmed):
                await node.cancel(app, task_id)
        assert trio.current_time() - began == pytest.approx(1 + within_s)
        with pytest.raises(StoreUnavailable, match="nothing was written"):
            await node.cancel(app, task_id)
        store.may_settle.set()
    assert node.engine.cleanup_scopes._scopes == set()


@pytest.mark.virtual_clock
async def test_a_store_in_memory_refuses_what_has_no_time_left() -> None:
    node = Node()
    app = await node.app()
    task_id = await node.submit(app, in_ms=1_000)
    with pytest.raises(StoreUnavailable, match="nothing was written"):
        await node.store.request_cancel(app.id, task_id, now=0, within_s=0)
    node.store.end_by(trio.current_time() + 1)
    node.store.end_by(math.inf)
    await node.store.request_cancel(app.id, task_id, now=0, within_s=5)
    await trio.sleep(1)
    with pytest.raises(StoreUnavailable, match="nothing was written"):
        await node.store.request_cancel(app.id, task_id, now=0, within_s=5)
    await node.store.request_cancel(app.id, task_id, now=0)

"""An nsqd that takes wake-ups and does not bring them, or takes none: seen, told, and made
up for; and what is none of it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from taskd.clock import SystemClock
from taskd.domain.model import DueTask
from taskd.queues.nsq.queue import NsqQueue
from taskd.queues.nsq.watch import LATE_S
from tests.support.nsq_queue import Consumer, consuming, due, queue_on, until
from tests.support.services import Nsqd, StandInNsqd

pytestmark = pytest.mark.deadline(30)

MakeNsqd = Callable[..., StandInNsqd]
_SWEEP_S = 0.3
"""How often these nodes look; a real one looks once a second."""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all stretches of time be short."""
    for name, seconds in (("QUIET_S", 1.0), ("REST_S", 0.5), ("PROBE_S", 1.0)):
        monkeypatch.setattr(f"taskd.queues.nsq.watch.{name}", seconds)


class Store:
    """Tasks that are due and have not been taken, as a Store would find them."""

    def __init__(self) -> None:
        self.waiting: dict[int, tuple[DueTask, float]] = {}
        self.number = 0
        self.done = 0
        self.sweeps = True

    def create(self, queue: NsqQueue, count: int = 1) -> None:
        tasks = []
        for _ in range(count):
            self.number += 1
            task = due(self.number, due_at=SystemClock().now_ms())
            self.waiting[task.task_id] = (task, trio.current_time())
            tasks.append(task)
        queue.publish(tasks)

    def overdue(self, queue: NsqQueue) -> list[DueTask]:
        now = trio.current_time()
        grace = LATE_S + 0.05
        return [task for task, since in self.waiting.values() if now - since > grace]

    async def serve(self, queue: NsqQueue, consumer: Consumer) -> None:
        """Be a node's timer and worker on it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep, queue)
            while True:
                await trio.sleep(0.02)
                for task in consumer.got:
                    self.done += self.waiting.pop(task.task_id, None) is not None
                consumer.got.clear()

    async def _sweep(self, queue: NsqQueue) -> None:
        while True:
            await trio.sleep(_SWEEP_S)
            if self.sweeps:
                queue.backfill(self.overdue(queue))


@asynccontextmanager
async def node(*addresses: str, secret: str = "") -> AsyncIterator[tuple[NsqQueue, Store]]:
    """A node at work on a store of its own."""
    async with (
        queue_on(*addresses, secret=secret) as queue,
        consuming(queue) as (consumer,),
        trio.open_nursery() as nursery,
    ):
        await until(lambda: queue.statistics().connected == len(addresses), within_s=10)
        store = Store()
        nursery.start_soon(store.serve, queue, consumer)
        yield queue, store
        nursery.cancel_scope.cancel()


async def creating(store: Store, queue: NsqQueue, condition: Callable[[], object]) -> None:
    """Create a task now and then until something is so."""
    with trio.fail_after(20):
        while not condition():
            store.create(queue)
            await trio.sleep(0.15)


@pytest.mark.parametrize("channel", [None, "taskd"], ids=["topic", "channel"])
@pytest.mark.deadline(60)
async def test_a_paused_topic_or_channel_is_told_and_costs_no_second(
    nsqd: Nsqd, channel: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "taskd.queues.nsq")

    async with node(nsqd.address) as (queue, store):
        await creating(store, queue, lambda: store.done > 3)
        assert queue.degraded() is None
        await trio.to_thread.run_sync(nsqd.operate, "pause", "taskd", channel)
        await creating(store, queue, queue.degraded)
        told = queue.degraded() or ""
        assert f"nsqd {nsqd.address} takes wake-ups of topic taskd" in told
        assert "channel taskd" in told
        assert "paused" in told
        # From now on nothing waits for a look.
        await until(lambda: not store.waiting)
        store.sweeps = False
        store.create(queue, 20)
        await until(lambda: not store.waiting)
        # A connect is no end of it.
        await trio.sleep(1.5)
        assert queue.degraded()
        await trio.to_thread.run_sync(nsqd.operate, "unpause", "taskd", channel)
        await creating(store, queue, lambda: queue.degraded() is None)
    messages = [record.getMessage() for record in caplog.records]
    assert sum("does not bring them" in message for message in messages) == 1
    assert sum("brings wake-ups again" in message for message in messages) == 1


@pytest.mark.parametrize("fault", [{"drop": 1.0}, {"delay_ms": 20_000}], ids=["lost", "held"])
@pytest.mark.deadline(60)
async def test_messages_that_are_lost_or_held_up_are_told(
    stand_in_nsqd: MakeNsqd, fault: dict[str, float]
) -> None:
    nsqd = stand_in_nsqd()
    nsqd.faults(**fault)

    async with node(nsqd.address) as (queue, store):
        await creating(store, queue, queue.degraded)
        assert "does not bring them" in (queue.degraded() or "")
        await until(lambda: not store.waiting)


@pytest.mark.parametrize(
    ("options", "fault", "secret", "told"),
    [
        (["--mem-queue-size=0"], {"disk_full": True}, "", "E_MPUB_FAILED"),
        ([], {"refuse_publish": True}, "", "E_MPUB_FAILED"),
        (
            ["--auth-secret=geheim", "--auth-permissions=subscribe"],
            {},
            "geheim",
            "E_UNAUTHORIZED",
        ),
    ],
    ids=["disk", "refused", "auth"],
)
@pytest.mark.deadline(60)
async def test_one_that_takes_nothing_is_told_for_as_long_as_it_lasts(
    stand_in_nsqd: MakeNsqd,
    options: list[str],
    fault: dict[str, object],
    secret: str,
    told: str,
) -> None:
    nsqd = stand_in_nsqd(options=options)

    async with node(nsqd.address, secret=secret) as (queue, store):
        await trio.to_thread.run_sync(lambda: nsqd.faults(**fault))
        store.sweeps = False
        store.create(queue)
        await until(lambda: told in (queue.degraded() or ""))
        # Connected again, and again, it is not well.
        for _ in range(20):
            store.create(queue)
            await trio.sleep(0.1)
            assert f"nsqd {nsqd.address} takes no wake-ups" in (queue.degraded() or "")
        # Not a connection for each: what is in flight on one comes a minute late.
        assert queue.statistics().connects <= 8
        await until(lambda: not store.waiting)  # worked on here at once
        if fault:
            await trio.to_thread.run_sync(lambda: nsqd.faults(**dict.fromkeys(fault, False)))
            await creating(store, queue, lambda: queue.degraded() is None)


@pytest.mark.deadline(60)
async def test_with_another_nsqd_that_is_well_that_one_carries_on(stand_in_nsqd: MakeNsqd) -> None:
    both = [stand_in_nsqd(), stand_in_nsqd()]

    async with node(both[0].address, both[1].address) as (queue, store):
        # Which of them is published to, is chance.
        await creating(store, queue, lambda: store.done > 3)
        silent = max(both, key=lambda each: each.channel("taskd", "taskd")["message_count"])
        silent.operate("pause", "taskd", "taskd")
        await creating(
            store, queue, lambda: f"nsqd {silent.address} takes" in (queue.degraded() or "")
        )
        assert "the 1 connected carry on" in (queue.degraded() or "")
        kept = queue.statistics().kept
        before = queue.statistics().published
        store.create(queue, 20)
        await until(lambda: queue.statistics().published == before + 20)
        assert queue.statistics().kept == kept, "the other brings them"
        silent.operate("empty", "taskd", "taskd")
        silent.operate("unpause", "taskd", "taskd")
        # It is tried now and then, so this is noticed.
        await creating(store, queue, lambda: queue.degraded() is None)


async def test_a_node_without_room_says_nothing_of_it(nsqd: Nsqd) -> None:
    async with queue_on(nsqd.address) as queue:
        await until(lambda: queue.statistics().connected == 1)
        queue.room(0)
        store = Store()
        for _ in range(10):
            store.create(queue)
            await trio.sleep(0.2)
            queue.backfill(store.overdue(queue))
        assert queue.degraded() is None


async def test_a_backlog_that_waits_in_nsqd_is_nothing_of_that_kind(nsqd: Nsqd) -> None:
    """With more than a node has room for, messages come late, and come."""

    room = 5
    async with queue_on(nsqd.address) as queue:
        await until(lambda: queue.statistics().connected == 1)
        queue.room(room)
        await trio.sleep(0.1)
        store = Store()
        for _ in range(25):
            store.create(queue, 8)
            batch = queue.take(room, lambda _: True)
            queue.room(room - len(batch))
            await trio.sleep(0.2)
            queue.backfill(store.overdue(queue))
            for task in batch:
                store.waiting.pop(task.task_id, None)
            queue.finish(batch)
            queue.room(room)
            assert queue.degraded() is None
        assert queue.statistics().counts.received > room, "some come"


async def test_another_node_that_hangs_is_nothing_of_nsqds(nsqd: Nsqd) -> None:
    async with queue_on(nsqd.address, node="hangs") as hanging:
        await until(lambda: hanging.statistics().connected == 1)
        hanging.room(1_000)
        await trio.sleep(0.1)
        async with node(nsqd.address) as (queue, store):
            store.create(queue, 40)
            await trio.sleep(0.2)
            for _ in range(15):
                store.create(queue, 4)
                await trio.sleep(0.15)
            assert hanging.statistics().in_flight > 5, "it has its share, and keeps it"
            assert queue.degraded() is None


@pytest.mark.deadline(60)
async def test_an_nsqd_that_is_killed_with_messages_in_it_is_nothing_of_that_kind(
    stand_in_nsqd: MakeNsqd,
) -> None:
    nsqd = stand_in_nsqd()

    async with node(nsqd.address) as (queue, store):
        nsqd.operate("pause", "taskd", "taskd")
        store.create(queue, 2)
        await trio.sleep(0.1)
        await trio.to_thread.run_sync(nsqd.kill)
        await trio.to_thread.run_sync(nsqd.start)
        await until(lambda: queue.statistics().connects == 2)
        await until(lambda: not store.waiting)
        assert "does not bring" not in (queue.degraded() or "")
        # It knows that it was paused, after a kill too.
        await creating(store, queue, lambda: "does not bring" in (queue.degraded() or ""))

"""The queue on an nsqd: the stand-in always, the real one where it is at hand."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from taskd.clock import SystemClock
from taskd.queues.nsq.connection import ConnectionSettings, NsqConnection, connect
from taskd.queues.nsq.queue import MOST_AT_ONCE
from taskd.queues.nsq.target import parse_nsq_url
from taskd.queues.nsq.wire import decode_body
from tests.support.nsq_queue import Consumer, consuming, due, queue_on, until, until_idle
from tests.support.services import Nsqd

pytestmark = pytest.mark.deadline(30)

SETTINGS = ConnectionSettings(
    topic="taskd", channel="taskd", client_id="raw", heartbeat_s=1.0, message_timeout_s=1.0
)


async def raw_connection(nsqd: Nsqd) -> NsqConnection:
    """A connection that answers for nothing by itself."""
    return await connect(parse_nsq_url(f"nsq://{nsqd.address}").nsqds[0], SETTINGS)


def in_flight(nsqd: Nsqd) -> int:
    return int(nsqd.channel("taskd", "taskd")["in_flight_count"])


def unanswered(nsqd: Nsqd) -> int:
    channel = nsqd.channel("taskd", "taskd")
    return int(channel["depth"] + channel["in_flight_count"] + channel["deferred_count"])


async def test_each_wake_up_goes_to_one_of_the_nodes(nsqd: Nsqd) -> None:
    async with (
        queue_on(nsqd.address, node="a") as a,
        queue_on(nsqd.address, node="b") as b,
        consuming(a, b, room=20) as (first, second),
    ):
        for start in range(1, 2001, 40):
            a.publish(due(n, n % 7 + 1) for n in range(start, start + 40))
            await trio.sleep(0.001)
        await until(lambda: len(first.ids) + len(second.ids) >= 2000)
        await until_idle(lambda: unanswered(nsqd) == 0)
        assert sorted(first.ids + second.ids) == list(range(1, 2001))
        assert min(len(first.ids), len(second.ids)) > 100


async def test_a_lone_wake_up_is_there_within_five_milliseconds(nsqd: Nsqd) -> None:
    # On another node: what nsqd says to the publisher would take a message along.
    async with (
        queue_on(nsqd.address, node="a") as a,
        queue_on(nsqd.address, node="b") as b,
        consuming(b) as (consumer,),
    ):
        took = []
        for number in range(1, 102):
            started = trio.current_time()
            a.publish([due(number)])
            await until(partial(consumer.has, number))
            took.append(trio.current_time() - started)
            # Each on its own: with nothing under way to gather with.
            await trio.sleep(0.005)
        # The poll above adds up to 3 ms of its own, other work of this machine more.
        assert min(took) < 0.005 + 0.003


async def test_a_message_is_finished_only_after_the_store_has_answered(nsqd: Nsqd) -> None:
    async with queue_on(nsqd.address) as queue:
        queue.room(10)
        queue.publish([due(1)])
        await queue.wait()
        taken = queue.take(10, lambda _: True)
        assert [task.task_id for task in taken] == [1]
        await trio.sleep(0.5)
        assert await trio.to_thread.run_sync(in_flight, nsqd) == 1
        queue.finish(taken)
        await until_idle(lambda: unanswered(nsqd) == 0)


async def test_what_a_node_had_taken_when_it_ends_goes_to_another_at_once(nsqd: Nsqd) -> None:
    async with queue_on(nsqd.address, node="a") as a:
        a.room(10)
        a.publish([due(1), due(2), due(3, due_at=SystemClock().now_ms() + 500)])
        ending = Consumer(a)
        await until(lambda: ending.take() or len(ending.ids) == 2)
        await until(lambda: a.statistics().in_flight == 3)
    async with queue_on(nsqd.address, node="b") as b, consuming(b) as (consumer,):
        await until(lambda: sorted(consumer.ids) == [1, 2, 3], within_s=2)


async def test_what_a_silent_consumer_holds_goes_to_another_after_its_time(nsqd: Nsqd) -> None:
    raw = await raw_connection(nsqd)
    held: list[bytes] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raw.run, lambda messages: held.extend(m.body for m in messages))
        raw.set_ready(5)
        await raw.publish([b"1 1 1 1"])
        await until(lambda: held)
        async with queue_on(nsqd.address) as queue, consuming(queue) as (consumer,):
            # A real nsqd looks at a new channel's timeouts after up to 5 s.
            took = await until(lambda: consumer.ids == [1], within_s=12)
            assert took > 0.5
        nursery.cancel_scope.cancel()
    await raw.aclose()


async def test_without_room_nothing_arrives_and_with_room_it_does(nsqd: Nsqd) -> None:
    async with queue_on(nsqd.address) as queue:
        consumer = Consumer(queue)
        queue.room(10)
        queue.publish([due(1)])
        await until(lambda: queue.take(1, lambda _: True))
        queue.finish([due(1)])
        queue.room(0)
        queue.publish(due(n) for n in range(2, 8))
        await until(lambda: queue.statistics().published == 7)
        await trio.sleep(0.3)
        assert queue.statistics().in_flight == 0
        assert consumer.take() == []
        queue.room(3)
        await until(lambda: queue.statistics().in_flight == 3)
        await trio.sleep(0.1)
        assert queue.statistics().in_flight == 3, "no more than there is room for"


async def test_what_is_taken_and_finished_makes_no_room_by_itself(nsqd: Nsqd) -> None:
    async with queue_on(nsqd.address) as queue:
        queue.room(10)
        await until(lambda: queue.statistics().ready == 10)
        queue.publish(due(n) for n in range(1, 41))
        await until(lambda: queue.statistics().waiting == 10)
        for _ in range(2):
            taken = queue.take(5, lambda _: True)
            assert len(taken) == 5
            queue.finish(taken)
        await trio.sleep(0.2)
        assert queue.statistics().counts.received == 10
        queue.room(10)
        await until(lambda: queue.statistics().counts.received == 20)


async def test_rdy_follows_the_room_and_is_not_sent_per_message(
    nsqd: Nsqd, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    set_ready = NsqConnection.set_ready

    def counted(connection: NsqConnection, count: int) -> None:
        sent.append(count)
        set_ready(connection, count)

    monkeypatch.setattr(NsqConnection, "set_ready", counted)

    async with queue_on(nsqd.address) as queue, consuming(queue, room=5000) as (consumer,):
        await until(lambda: queue.statistics().ready == MOST_AT_ONCE)
        for start in range(1, 3001, 100):
            queue.publish(due(n) for n in range(start, start + 100))
            # A fifth of the room: two hundred at once, on a machine that is busy, would use up
            # so much of it that RDY follows.
            await until(lambda: len(consumer.ids) == start + 99)  # noqa: B023 - called before it changes
        assert len(consumer.ids) == 3000
        assert max(sent) == MOST_AT_ONCE, "others have room too"
        assert len(sent) < 20
        consumer.room = 0
        queue.room(0)
        assert sent[-1] == 0


async def test_what_the_store_could_not_be_asked_about_comes_again(nsqd: Nsqd) -> None:
    async with queue_on(nsqd.address) as queue:
        queue.room(10)
        queue.publish([due(1)])
        await queue.wait()
        queue.release(queue.take(10, lambda _: True))
        async with consuming(queue) as (consumer,):
            took = await until(lambda: consumer.ids == [1], within_s=10)
            # Beside the consumer, which has taken it and may not have finished it yet.
            await until_idle(lambda: unanswered(nsqd) == 0)
        assert took > 0.5


async def test_an_app_at_its_limit_does_not_keep_others_waiting(nsqd: Nsqd) -> None:
    async with (
        queue_on(nsqd.address) as queue,
        consuming(queue, room=50, refuses=(1,)) as (consumer,),
    ):
        queue.publish(due(n, app_id=1) for n in range(1, 501))
        await until(lambda: queue.statistics().counts.received > 40)
        queue.publish([due(1000, app_id=2)])
        # It stands behind 500 messages, of which 50 at a time are looked at.
        await until(lambda: 1000 in consumer.ids, within_s=5)
        assert consumer.ids == [1000]
        assert queue.statistics().counts.sent_back == 0, "they would come again and again"
        await until_idle(lambda: unanswered(nsqd) == 0)
        consumer.refuses = ()
        queue.resume([1])
        await until(lambda: len(consumer.take()) or len(consumer.ids) == 501, within_s=10)


async def test_no_wake_up_is_handed_out_before_its_time(nsqd: Nsqd) -> None:
    clock = SystemClock()
    async with queue_on(nsqd.address) as queue, consuming(queue) as (consumer,):
        at = clock.now_ms() + 400
        queue.publish([due(1, due_at=at), due(2, due_at=at + 200), due(3, due_at=at - 300)])
        seen: dict[int, int] = {}
        while len(seen) < 3:
            await trio.sleep(0.001)
            for task in consumer.got:
                seen.setdefault(task.task_id, clock.now_ms() - task.due_at)
        assert all(0 <= late < 100 for late in seen.values()), seen


async def test_what_is_no_wake_up_is_dropped_and_told_once(
    nsqd: Nsqd, caplog: pytest.LogCaptureFixture
) -> None:
    raw = await raw_connection(nsqd)
    async with (
        trio.open_nursery() as nursery,
        queue_on(nsqd.address) as queue,
        consuming(queue) as (consumer,),
    ):
        nursery.start_soon(raw.run, lambda _: None)
        await raw.publish([b"hello", b"9 1 1 1", b'{"json": 1}'])
        queue.publish([due(7)])
        await until(lambda: consumer.ids == [7])
        await until(lambda: queue.statistics().bad == 3)
        await until_idle(lambda: unanswered(nsqd) == 0)
        assert queue.statistics().connected == 1
        nursery.cancel_scope.cancel()
    await raw.aclose()
    assert [r.getMessage() for r in caplog.records if "no wake-up" in r.getMessage()] != []
    assert sum("no wake-up" in record.getMessage() for record in caplog.records) == 1


async def test_nsqd_killed_and_back(nsqd: Nsqd, caplog: pytest.LogCaptureFixture) -> None:
    async with queue_on(nsqd.address) as queue, consuming(queue) as (consumer,):
        assert queue.degraded() is None
        assert queue.in_flight_grace_ms() == 900
        queue.publish([due(1)])
        await until(lambda: consumer.ids == [1])

        await trio.to_thread.run_sync(nsqd.kill)
        await until(lambda: queue.in_flight_grace_ms() == 0)
        await until(lambda: "refused" in (queue.degraded() or "").lower())
        assert nsqd.address in (queue.degraded() or "")
        assert "once a second" in (queue.degraded() or "")
        queue.publish([due(2)])
        assert await until(lambda: consumer.ids == [1, 2]) < 0.5, "kept here"
        queue.backfill([due(3)])
        await until(lambda: consumer.ids == [1, 2, 3])

        await trio.to_thread.run_sync(nsqd.start)
        assert await until(lambda: queue.degraded() is None) < 3
        assert queue.in_flight_grace_ms() == 900
        before = queue.statistics().published
        queue.publish([due(4)])
        await until(lambda: consumer.ids == [1, 2, 3, 4])
        await until(lambda: queue.statistics().published == before + 1)
    assert sum("can't be used" in record.getMessage() for record in caplog.records) == 1


async def test_a_node_starts_without_nsqd_and_finds_it_when_it_comes(nsqd: Nsqd) -> None:
    await trio.to_thread.run_sync(nsqd.stop)
    started = trio.current_time()
    async with queue_on(nsqd.address) as queue, consuming(queue) as (consumer,):
        assert trio.current_time() - started < 2
        assert queue.degraded() is not None
        queue.publish([due(1)])
        await until(lambda: consumer.ids == [1])
        await trio.to_thread.run_sync(nsqd.start)
        await until(lambda: queue.degraded() is None)


async def test_an_nsqd_that_no_longer_answers_is_noticed(nsqd: Nsqd) -> None:
    async with (
        queue_on(nsqd.address, publish_s=0.5) as queue,
        consuming(queue) as (consumer,),
    ):
        await trio.to_thread.run_sync(nsqd.freeze)
        took = await until(lambda: queue.in_flight_grace_ms() == 0, within_s=6)
        assert took > 0.5, "two heartbeats, or what is left of them"
        # The reason is noted once the connection is closed, a moment later.
        await until(lambda: "sign of life" in (queue.degraded() or ""))
        await trio.to_thread.run_sync(nsqd.thaw)
        await until(lambda: queue.degraded() is None, within_s=10)
        queue.publish([due(1)])
        await until(lambda: 1 in consumer.ids)


async def test_an_unconfirmed_publish_stays_here(nsqd: Nsqd) -> None:
    async with (
        queue_on(nsqd.address, publish_s=0.3) as queue,
        consuming(queue) as (consumer,),
    ):
        await trio.to_thread.run_sync(nsqd.freeze)
        queue.publish([due(1)])
        took = await until(lambda: consumer.ids == [1])
        assert 0.2 < took < 1
        await trio.to_thread.run_sync(nsqd.thaw)


async def test_a_node_finds_its_nsqd_by_the_lookup(nsqd: Nsqd) -> None:
    query = f"lookupd={nsqd.lookupd}&topic=found"
    lookup = partial(queue_on, query=query, lookup_every_s=0.2)
    # Nobody knows the topic yet: whoever is first makes it.
    async with lookup(node="a") as a:
        await until(lambda: a.statistics().connected == 1, within_s=10)
        async with lookup(node="b") as b, consuming(b) as (consumer,):
            await until(lambda: b.statistics().connected == 1, within_s=10)
            a.publish([due(1)])
            await until(lambda: consumer.ids == [1])
        assert a.degraded() is None


@pytest.mark.deadline(40)
async def test_with_many_messages_at_once_none_is_lost(nsqd: Nsqd) -> None:
    async with (
        queue_on(nsqd.address) as queue,
        consuming(queue, room=500) as (consumer,),
    ):
        queue.publish(due(n, n % 50 + 1) for n in range(1, 15_001))
        await until(lambda: len(consumer.ids) >= 15_000, within_s=20)
        assert sorted(consumer.ids) == list(range(1, 15_001))
        await until_idle(lambda: unanswered(nsqd) == 0)


async def test_bodies_on_the_wire_can_be_read_by_people(nsqd: Nsqd) -> None:
    raw = await raw_connection(nsqd)
    bodies: list[bytes] = []
    async with trio.open_nursery() as nursery, queue_on(nsqd.address) as queue:
        nursery.start_soon(raw.run, lambda got: bodies.extend(one.body for one in got))
        raw.set_ready(1)
        queue.publish([due(42, app_id=7)])
        await until(lambda: bodies)
        assert bodies == [b"1 42 7 1700000000000"]
        assert decode_body(bodies[0]) == due(42, app_id=7)
        nursery.cancel_scope.cancel()
    await raw.aclose()

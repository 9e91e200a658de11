"""What NSQ does wrong costs time, and nothing else. On the stand-in, which can be told
to do wrong."""

from __future__ import annotations

import logging
import random
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio
from nsq.response import Error, Message, Response  # type: ignore[import-untyped]  # no types

from taskd.clock import SystemClock
from taskd.domain.model import DueTask, TaskState
from taskd.errors import InvalidInput, QueueUnavailable
from taskd.queues.nsq import discovery, wire
from taskd.queues.nsq.connection import ConnectionSettings, connect
from taskd.queues.nsq.queue import NsqQueue
from taskd.queues.nsq.target import Address, parse_nsq_url
from taskd.stores.memory import MemoryStore
from tests.support import stores
from tests.support.clocks import SteppableClock
from tests.support.nsq_queue import Consumer, consuming, due, queue_on, until
from tests.support.services import StandInNsqd

pytestmark = pytest.mark.deadline(30)

MakeNsqd = Callable[..., StandInNsqd]

NO_SUCH_ID = b"E_FIN_FAILED FIN 0123456789abcdef failed ID not in flight"


def told(caplog: pytest.LogCaptureFixture, words: str) -> int:
    return sum(words in record.getMessage() for record in caplog.records)


def connected_again(queue: NsqQueue, connects: int) -> bool:
    return queue.statistics().connects > connects


async def works(queue: NsqQueue, consumer: Consumer, task_id: int) -> None:
    """Fail unless a wake-up goes through nsqd."""
    before = queue.statistics().published
    queue.publish([due(task_id)])
    await until(lambda: task_id in consumer.ids)
    await until(lambda: queue.statistics().published > before)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no frame"),
        (struct.pack(">ll", wire.MAX_FRAME + 1, 2), "no frame"),
        (struct.pack(">ll", 5, 9) + b"x", "can't be read"),
        (struct.pack(">ll", 8, 2) + b"abcd", "can't be read"),
        (Message.pack(1, 1, b"0123456789abcdef", b""), "without a body"),
        (Response.pack(b"OK"), "answer to nothing"),
        (Response.pack(b"WHAT"), "answer to nothing"),
        (Error.pack(b"E_NEVER_HEARD_OF x"), "E_NEVER_HEARD_OF"),
        (Error.pack(b"E_INVALID y"), "E_INVALID"),
    ],
    ids=["garbage", "oversized", "type", "short", "empty", "ok", "what", "unknown", "fatal"],
)
async def test_nonsense_ends_a_connection_which_is_built_anew(
    stand_in_nsqd: MakeNsqd, caplog: pytest.LogCaptureFixture, raw: bytes, reason: str
) -> None:
    nsqd = stand_in_nsqd()
    caplog.set_level(logging.WARNING, "taskd")

    async with queue_on(nsqd.address) as queue, consuming(queue) as (consumer,):
        for round_number in range(1, 4):
            assert await trio.to_thread.run_sync(nsqd.inject, raw) == 1
            await until(partial(connected_again, queue, round_number))
        await until(lambda: queue.degraded() is None)
        await works(queue, consumer, 1)
    assert told(caplog, "nsqd can't be used") == 1, "one outage"
    [record] = caplog.records
    assert reason in str(record.__dict__["fields"]["reason"])


async def test_errors_about_a_message_leave_the_connection(stand_in_nsqd: MakeNsqd) -> None:
    nsqd = stand_in_nsqd()

    async with queue_on(nsqd.address) as queue, consuming(queue) as (consumer,):
        for code in (b"FIN", b"REQ", b"TOUCH"):
            raw = Error.pack(NO_SUCH_ID.replace(b"FIN", code))
            await trio.to_thread.run_sync(nsqd.inject, raw)
        await works(queue, consumer, 1)
        assert queue.statistics().connects == 1


async def test_the_end_of_the_stream_ends_a_connection_at_once(stand_in_nsqd: MakeNsqd) -> None:
    nsqd = stand_in_nsqd()

    async with queue_on(nsqd.address) as queue, consuming(queue) as (consumer,):
        steps = Steps()
        await trio.to_thread.run_sync(nsqd.cut)
        assert await until(lambda: queue.statistics().connects == 2) < 1
        trio.lowlevel.add_instrument(steps)
        await trio.sleep(0.3)
        trio.lowlevel.remove_instrument(steps)
        assert steps.taken < 500, "it does not spin"
        await works(queue, consumer, 1)


class Steps(trio.abc.Instrument):
    """Counts the steps of all tasks."""

    def __init__(self) -> None:
        self.taken = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.taken += 1


async def test_an_outage_is_told_once_and_its_end_once(
    stand_in_nsqd: MakeNsqd, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskd.queues.nsq.link.STEADY_S", 0.3)
    nsqd = stand_in_nsqd()
    caplog.set_level(logging.INFO, "taskd")

    async with queue_on(nsqd.address) as queue:
        for _ in range(3):
            connects = queue.statistics().connects
            await trio.to_thread.run_sync(nsqd.cut)
            await until(partial(connected_again, queue, connects))
        assert told(caplog, "works again") == 0
        await until(lambda: told(caplog, "works again") == 1)
        await trio.to_thread.run_sync(nsqd.cut)
        await until(lambda: told(caplog, "can't be used") == 2)
    assert told(caplog, "works again") == 1


async def test_one_that_breaks_again_and_again_is_not_well_because_it_is_connected(
    stand_in_nsqd: MakeNsqd,
) -> None:
    nsqd = stand_in_nsqd()

    async with queue_on(nsqd.address) as queue:
        for round_number in range(1, 4):
            assert await trio.to_thread.run_sync(nsqd.cut) == 1
            await until(partial(connected_again, queue, round_number))
        assert f"nsqd {nsqd.address} is back, but not for long" in (queue.degraded() or "")
        await until(lambda: queue.degraded() is None)
        assert queue.statistics().connects == 4, "it has held since"


async def test_frames_in_pieces_of_a_few_bytes(stand_in_nsqd: MakeNsqd) -> None:
    nsqd = stand_in_nsqd()
    nsqd.faults(split=True)

    async with (
        queue_on(nsqd.address, publish_s=20, heartbeat_s=10.0) as queue,
        consuming(queue) as (consumer,),
    ):
        # Few: the stand-in takes a millisecond for each piece.
        queue.publish(due(n) for n in range(1, 31))
        await until(lambda: sorted(consumer.ids) == list(range(1, 31)), within_s=25)
        assert queue.statistics().connects == 1


async def test_room_is_shared_among_several_nsqd(stand_in_nsqd: MakeNsqd) -> None:
    first, second = stand_in_nsqd(), stand_in_nsqd()

    def ready(nsqd: StandInNsqd) -> int:
        clients = nsqd.channel("taskd", "taskd").get("clients", [])
        return sum(client["ready_count"] for client in clients)

    async with queue_on(first.address, second.address) as queue:
        assert queue.statistics().connected == 2
        queue.room(100)
        await until(lambda: queue.statistics().ready == 100)
        await until(lambda: (ready(first), ready(second)) == (50, 50))

        # There is one left: both get it in turn, and never both.
        queue.room(1)
        seen: Counter[tuple[int, int]] = Counter()
        while len(seen) < 2:
            await trio.sleep(0.02)
            shares = ready(first), ready(second)
            if sum(shares) <= 1:
                seen[shares] += 1
        assert set(seen) <= {(1, 0), (0, 1), (0, 0)}

        queue.room(0)
        await until(lambda: (ready(first), ready(second)) == (0, 0))

        queue.room(100)
        await until(lambda: queue.statistics().ready == 100)
        await trio.to_thread.run_sync(second.kill)
        await until(lambda: queue.statistics().connected == 1)
        await until(lambda: ready(first) == 100)
        assert second.address in (queue.degraded() or "")
        assert "carry on" in (queue.degraded() or "")
        assert queue.in_flight_grace_ms() > 0
        await trio.to_thread.run_sync(second.start)
        await until(lambda: queue.statistics().connected == 2)
        await until(lambda: queue.degraded() is None)
        await until(lambda: ready(first) == 50, within_s=3)


async def test_publishing_goes_on_at_the_next_nsqd(stand_in_nsqd: MakeNsqd) -> None:
    first, second = stand_in_nsqd(), stand_in_nsqd()

    async with (
        queue_on(first.address, second.address, publish_s=0.3) as queue,
        consuming(queue) as (consumer,),
    ):
        for number, nsqd in enumerate((first, second), start=1):
            await trio.to_thread.run_sync(nsqd.freeze)
            queue.publish([due(number)])
            await until(partial(consumer.has, number), within_s=3)
            await trio.to_thread.run_sync(nsqd.thaw)
            await until(lambda: queue.statistics().connected == 2, within_s=10)
        assert queue.statistics().kept == 0


async def test_what_every_nsqd_refuses_is_worked_on_here(stand_in_nsqd: MakeNsqd) -> None:
    nsqd = stand_in_nsqd()
    nsqd.faults(refuse_publish=True)

    async with queue_on(nsqd.address) as queue, consuming(queue) as (consumer,):
        queue.publish([due(1), due(2)])
        await until(lambda: consumer.ids == [1, 2])
        assert queue.statistics().kept == 2


async def test_what_the_outbox_has_no_room_for_stays_here(
    stand_in_nsqd: MakeNsqd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskd.queues.nsq.outbox.OUTBOX_BOUND", 10)
    nsqd = stand_in_nsqd()

    async with queue_on(nsqd.address) as queue:
        queue.publish(due(n) for n in range(1, 101))
        assert queue.statistics().unpublished == 10
        assert queue.statistics().waiting == 90
        async with consuming(queue) as (consumer,):
            await until(lambda: len(consumer.ids) == 100)


async def test_a_hanging_lookup_and_nsqd_do_not_keep_a_node_from_starting(
    stand_in_nsqd: MakeNsqd,
) -> None:
    nsqd = stand_in_nsqd()
    nsqd.faults(hang=True)

    started = trio.current_time()
    async with queue_on(nsqd.address, query=f"lookupd={nsqd.lookupd}") as queue:
        assert trio.current_time() - started < 2
        assert queue.in_flight_grace_ms() == 0
        await trio.to_thread.run_sync(partial(nsqd.faults, hang=False))
        await until(lambda: queue.degraded() is None, within_s=10)


async def test_without_the_lookup_the_nsqd_known_before_are_used(
    stand_in_nsqd: MakeNsqd, caplog: pytest.LogCaptureFixture
) -> None:
    nsqd, other = stand_in_nsqd(), stand_in_nsqd()
    caplog.set_level(logging.INFO, "taskd")

    query = f"lookupd={other.lookupd},{nsqd.lookupd}"
    async with (
        queue_on(query=query, lookup_every_s=0.1) as queue,
        consuming(queue) as (consumer,),
    ):
        await until(lambda: queue.statistics().connected == 2)
        await trio.to_thread.run_sync(other.kill)
        await until(lambda: f"nsqlookupd {other.lookupd}" in (queue.degraded() or ""))
        await works(queue, consumer, 1)
        await trio.to_thread.run_sync(other.start)
        await until(lambda: queue.degraded() is None)
        await until(lambda: queue.statistics().connected == 2)
    assert told(caplog, "nsqlookupd can't be asked") == 1
    assert told(caplog, "nsqlookupd answers again") == 1


async def test_an_nsqd_that_is_not_named_any_more_is_given_up(
    stand_in_nsqd: MakeNsqd, monkeypatch: pytest.MonkeyPatch
) -> None:
    nsqd, going = stand_in_nsqd(), stand_in_nsqd()

    named = [nsqd.address, going.address]

    async def find(_: Address, topic: str) -> list[Address]:
        await trio.lowlevel.checkpoint()
        return [Address("127.0.0.1", int(each.rpartition(":")[2])) for each in named]

    monkeypatch.setattr(discovery, "find_nsqds", find)
    async with queue_on(query="lookupd=127.0.0.1:1", lookup_every_s=0.1) as queue:
        await until(lambda: queue.statistics().connected == 2)
        named.pop()
        await trio.sleep(0.3)
        assert queue.statistics().connected == 2, "while it works"
        await trio.to_thread.run_sync(going.stop)
        await until(lambda: queue.statistics().connected == 1)
        await until(lambda: queue.degraded() is None)


@asynccontextmanager
async def publishing_raw(
    nsqd: StandInNsqd,
) -> AsyncIterator[Callable[[list[bytes]], Awaitable[None]]]:
    """Publish bodies of any kind, to the topic that the queues use."""
    settings = ConnectionSettings(topic="taskd", channel="taskd", client_id="raw", heartbeat_s=1.0)
    connection = await connect(parse_nsq_url(f"nsq://{nsqd.address}").nsqds[0], settings)

    async def run_until_cut() -> None:
        with suppress(QueueUnavailable):
            await connection.run(lambda _: None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_until_cut)
        yield connection.publish
        nursery.cancel_scope.cancel()
    await connection.aclose()


class FakeWorker:
    """Leases what it takes from a store, as a worker does, and settles it."""

    def __init__(self, queue: NsqQueue, store: MemoryStore, clock: SteppableClock) -> None:
        self._queue = queue
        self._store = store
        self._clock = clock
        self.runs: Counter[int] = Counter()
        self.refused = 0
        self.early = 0

    async def work(self, node: str) -> None:
        """Take, lease, settle, until cancelled."""
        self._queue.room(20)
        while True:
            await self._queue.wait()
            while batch := self._queue.take(20, lambda _: True):
                now = self._clock.now_ms()
                self.early += sum(task.due_at > now for task in batch)
                ids = [task.task_id for task in batch]
                leased = await self._store.lease(ids, node=node, now=now, expires_at=now + 30_000)
                self.refused += len(batch) - len(leased)
                self._queue.finish(batch)
                for one in leased:
                    self.runs[one.lease.task_id] += 1
                    await self._store.settle(stores.succeeded(one))
                self._queue.room(20)

    async def sweep(self) -> None:
        """Look into the store as the timer does, only more often."""
        while True:
            await trio.sleep(0.2)
            now = self._clock.now_ms()
            self._queue.backfill(
                await self._store.find_due(
                    until=now - self._queue.in_flight_grace_ms(), limit_per_app=1000
                )
            )


@pytest.mark.parametrize("seed", range(3))
async def test_messages_lost_doubled_delayed_and_shuffled_change_nothing_but_time(
    stand_in_nsqd: MakeNsqd, seed: int
) -> None:
    nsqd = stand_in_nsqd()
    nsqd.faults(drop=0.3, double=0.3, shuffle=True, delay_ms=300, seed=seed)
    chance = random.Random(seed)

    clock = SteppableClock(stores.T0)
    store = MemoryStore()
    app = await store.create_app(stores.new_app())
    async with (
        queue_on(nsqd.address, node="a", clock=clock) as a,
        queue_on(nsqd.address, node="b", clock=clock) as b,
        publishing_raw(nsqd) as publish_raw,
        trio.open_nursery() as nursery,
    ):
        workers = [FakeWorker(queue, store, clock) for queue in (a, b)]
        for name, worker in zip("ab", workers, strict=True):
            nursery.start_soon(worker.work, name)
            nursery.start_soon(worker.sweep)
        ids = []
        for number in range(600):
            due_at = clock.now_ms() + chance.randrange(-200, 200)
            task_id = await store.create_task(stores.new_task(app, f"n-{number}", due_at=due_at))
            ids.append(task_id)
            task = DueTask(task_id=task_id, app_id=app.id, due_at=due_at)
            if due_at <= clock.now_ms():
                chance.choice((a, b)).publish([task] * chance.choice((1, 1, 2)))
            elif number < 300:
                # As by a node whose clock is ahead.
                await publish_raw([wire.encode_body(task)])
            await trio.sleep(0.001)
            if number == 300:
                await trio.to_thread.run_sync(nsqd.cut)
        done: set[int] = set()
        while len(done) < len(ids):
            await trio.sleep(0.02)
            for task_id in ids:
                if task_id not in done:
                    found = await stores.detail(store, app, task_id)
                    if found.state is TaskState.SUCCEEDED:
                        done.add(task_id)
        runs = workers[0].runs + workers[1].runs
        assert runs == dict.fromkeys(ids, 1), "each once"
        assert sum(worker.early for worker in workers) == 0
        assert min(len(worker.runs) for worker in workers) > 20
        assert a.statistics().counts.early + b.statistics().counts.early > 0
        nursery.cancel_scope.cancel()


async def test_tls_and_a_secret(stand_in_nsqd: MakeNsqd) -> None:
    nsqd = stand_in_nsqd(tls=True, options=["--tls-required", "--auth-secret=open sesame"])
    assert nsqd.certificates is not None
    query = f"tls=true&ca_file={nsqd.certificates.ca}"

    async with (
        queue_on(nsqd.address, query=query, secret="open%20sesame") as queue,
        consuming(queue, room=2000) as (consumer,),
    ):
        assert queue.degraded() is None
        queue.publish(due(n) for n in range(1, 3001))
        await until(lambda: len(consumer.ids) == 3000, within_s=10)
        [client] = nsqd.channel("taskd", "taskd")["clients"]
        assert client["tls"] is True
        assert client["authed"] is True
        assert client["client_id"] == "a"
        assert client["user_agent"].startswith("taskd/")


@pytest.mark.parametrize(
    ("tls", "options", "query", "secret", "reason"),
    [
        (True, [], "tls=true", "", "certificate is not accepted"),
        (False, [], "tls=true", "", "does not offer TLS"),
        (True, ["--tls-required"], "", "", "E_INVALID"),
        (False, ["--auth-secret=right"], "", "hush-hush", "E_AUTH_FAILED"),
        (False, ["--auth-secret=right"], "", "", "asks for a secret"),
        (False, ["--auth-secret=hush-hush", "--auth-topics=no"], "", "hush-hush", "E_UNAUTHORIZED"),
    ],
    ids=["stranger", "no-tls", "tls-wanted", "wrong-secret", "no-secret", "wrong-topic"],
)
async def test_why_an_nsqd_can_not_be_used_is_told_without_the_secret(
    stand_in_nsqd: MakeNsqd,
    caplog: pytest.LogCaptureFixture,
    *,
    tls: bool,
    options: list[str],
    query: str,
    secret: str,
    reason: str,
) -> None:
    nsqd = stand_in_nsqd(tls=tls, options=options)
    caplog.set_level(logging.DEBUG)

    async with (
        queue_on(nsqd.address, query=query, secret=secret) as queue,
        consuming(queue) as (consumer,),
    ):
        await until(lambda: reason in (queue.degraded() or ""))
        queue.publish([due(1)])
        await until(lambda: consumer.ids == [1])
        await trio.sleep(0.3)
        everything = f"{queue!r} {queue.degraded()} {vars(queue)}"
        assert "hush-hush" not in everything
    assert told(caplog, "nsqd can't be used, it is tried again") == 1
    assert "hush-hush" not in caplog.text
    assert "hush-hush" not in "".join(str(record.__dict__) for record in caplog.records)


def test_a_ca_file_that_can_not_be_used_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    for content, word in ((None, "No such file"), ("no pem", "no PEM")):
        if content is not None:
            path.write_text(content)
        with pytest.raises(InvalidInput, match=word):
            NsqQueue(
                parse_nsq_url(f"nsq://a?tls=true&ca_file={path}"), clock=SystemClock(), node="a"
            )

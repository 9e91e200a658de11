"""The bus and the queue between worker processes, over a supervisor's relay."""

from __future__ import annotations

import selectors
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing

import pytest
import trio
import trio.lowlevel

from taskd.buses.machine import MachineBus
from taskd.daemon.supervisor.membership import Membership
from taskd.daemon.supervisor.relay import Relay
from taskd.daemon.supervisor.worker_process import WorkerProcess
from taskd.domain.model import WHOLE, CancelCertainty, DueTask, Shard, TaskState, shard_of
from taskd.link import Kind, Uplink, frame
from taskd.ports.bus import CancelReply, CancelSignal, Reply, Signal
from taskd.queues.machine import KEEP, MachineQueue
from tests.support.machine import join

CANCELLED = CancelReply(TaskState.CANCELLED, CancelCertainty.NEVER_SENT)


class Workers:
    """A real relay, and uplinks to it, in one process."""

    def __init__(self, nodes: list[str]) -> None:
        self.selector = selectors.DefaultSelector()
        self.relay = Relay(self.selector)
        self.workers: list[WorkerProcess] = []
        self.uplinks: list[Uplink] = []
        self.handed: list[socket.socket] = []
        for seat, node in enumerate(nodes):
            worker, uplink, handed = join(self.relay, node, seat)
            self.workers.append(worker)
            self.uplinks.append(uplink)
            self.handed.append(handed)

    def tell_members(self, nodes: list[str]) -> None:
        for worker in self.workers:
            names = " ".join(nodes)
            self.relay.tell(worker, Kind.MEMBERS, f"{nodes[0]} {names}\n{names}".encode())

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        for uplink in self.uplinks:
            uplink.close()
        for handed in self.handed:
            handed.close()
        self.selector.close()

    async def run(self) -> None:
        while True:
            for key, _ in self.selector.select(0):
                self.relay.serve(key.data)
            await trio.sleep(0.0005)


@asynccontextmanager
async def workers_of(*nodes: str) -> AsyncIterator[Workers]:
    workers = Workers(list(nodes))
    try:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(workers.run)
                for uplink in workers.uplinks:
                    await nursery.start(uplink.run)
                workers.tell_members(list(nodes))
                await until(lambda: all(uplink.leader for uplink in workers.uplinks))
                yield workers
                nursery.cancel_scope.cancel()
    finally:
        workers.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.001)


def due(count: int, *, app: int = 1, first: int = 1) -> list[DueTask]:
    return [DueTask(task_id=number, app_id=app, due_at=5) for number in range(first, first + count)]


def taken(queue: MachineQueue) -> list[int]:
    return [task.task_id for task in queue.take(10_000, lambda _: True)]


async def test_a_signal_reaches_another_worker_and_its_reply_comes_back() -> None:
    async with workers_of("a", "b", "c") as workers, trio.open_nursery() as nursery:
        asked: list[tuple[str, Signal]] = []

        def answering(name: str) -> Callable[[Signal], object]:
            async def handle(signal: Signal) -> Reply:
                asked.append((name, signal))
                await trio.lowlevel.checkpoint()
                return CANCELLED

            return handle

        buses = [MachineBus(uplink) for uplink in workers.uplinks]
        for bus in buses:
            await nursery.start(bus.serve, answering(bus.node))
        assert await buses[0].send("b", CancelSignal(7)) == CANCELLED
        assert await buses[2].send("c", CancelSignal(8)) == CANCELLED
        assert asked == [("b", CancelSignal(7)), ("c", CancelSignal(8))]
        assert await buses[0].send("nobody", CancelSignal(9)) is None
        assert [bus.leads_timer() for bus in buses] == [True, False, False]
        assert buses[0].statistics().sent == 2
        nursery.cancel_scope.cancel()


async def test_a_signal_to_a_worker_that_ends_is_given_up() -> None:
    async with workers_of("a", "b") as workers, trio.open_nursery() as nursery:
        bus = MachineBus(workers.uplinks[0])
        workers.uplinks[1].on(Kind.SIGNAL, lambda _: workers.tell_members(["a"]))  # and no answer

        async def handle(_: Signal) -> Reply:
            raise AssertionError("nobody asks it")

        await nursery.start(bus.serve, handle)
        assert await bus.send("b", CancelSignal(7)) is None
        nursery.cancel_scope.cancel()


async def test_few_wake_ups_stay_and_many_are_shared_by_all() -> None:
    async with workers_of("a", "b", "c") as workers:
        queues = [MachineQueue(uplink) for uplink in workers.uplinks]
        queues[0].publish(due(KEEP))
        assert taken(queues[0]) == list(range(1, KEEP + 1))
        queues[0].publish(due(KEEP + 300, first=1000))
        await until(lambda: sum(q.statistics().waiting for q in queues) == KEEP + 300)
        held = [taken(queue) for queue in queues]
        kept = range(1000, 1000 + KEEP)
        dealt = range(1000 + KEEP, 1000 + KEEP + 300)
        parts = [[n for n in dealt if shard_of(n, 3) == number] for number in range(3)]
        assert held == [[*kept, *parts[0]], parts[1], parts[2]]
        assert all(90 <= len(part) <= 110 for part in parts)
        assert queues[0].statistics().dealt == len(parts[1]) + len(parts[2])
        assert queues[1].statistics().received == len(parts[1])


async def test_single_wake_ups_are_shared_once_this_worker_has_enough() -> None:
    async with workers_of("a", "b") as workers:
        queues = [MachineQueue(uplink) for uplink in workers.uplinks]
        for task in due(KEEP + 20):
            queues[0].publish([task])
        others = [n for n in range(KEEP + 1, KEEP + 21) if shard_of(n, 2) == 1]
        await until(lambda: queues[1].statistics().received == len(others))
        assert taken(queues[1]) == others
        assert queues[0].statistics().waiting == KEEP + 20 - len(others)


async def test_each_worker_looks_for_the_part_that_it_is_dealt() -> None:
    async with workers_of("b", "c", "a") as workers:
        queues = [MachineQueue(uplink) for uplink in workers.uplinks]
        await until(lambda: all(len(uplink.others) == 2 for uplink in workers.uplinks))
        assert [queue.shard() for queue in queues] == [Shard(1, 3), Shard(2, 3), Shard(0, 3)]
        queues[0].publish(due(KEEP))
        queues[0].publish(due(300, first=1000))
        await until(lambda: sum(q.statistics().waiting for q in queues) == KEEP + 300)
        for queue in queues:
            assert all(queue.shard().has(n) for n in taken(queue) if n >= 1000)
        workers.tell_members(["a"])
        await until(lambda: not workers.uplinks[2].others)
        assert queues[2].shard() == WHOLE


async def test_what_is_another_s_once_the_members_have_changed_is_left_to_it() -> None:
    async with workers_of("a", "b") as workers:
        workers.tell_members(["a"])
        await until(lambda: not workers.uplinks[0].others)
        queues = [MachineQueue(uplink) for uplink in workers.uplinks]
        queues[0].publish(due(200))
        assert queues[0].statistics().waiting == 200
        workers.tell_members(["a", "b"])
        await until(lambda: bool(workers.uplinks[0].others))
        assert taken(queues[0]) == [n for n in range(1, 201) if shard_of(n, 2) == 0]
        workers.tell_members(["a"])
        await until(lambda: not workers.uplinks[0].others)
        queues[0].publish(due(200))
        assert queues[0].statistics().waiting == 200


async def test_what_is_dealt_to_fewer_members_stays_right() -> None:
    async with workers_of("a", "b", "c") as workers:
        queues = [MachineQueue(uplink) for uplink in workers.uplinks]
        queues[0].publish(due(KEEP + 2))
        await until(lambda: sum(q.statistics().waiting for q in queues) == KEEP + 2)
        workers.tell_members(["a", "b"])
        await until(lambda: workers.uplinks[0].others == ("b",))
        for queue in queues:
            taken(queue)
        queues[0].publish(due(KEEP + 9, first=100))
        await until(lambda: sum(q.statistics().waiting for q in queues[:2]) == KEEP + 9)
        workers.tell_members(["a"])
        await until(lambda: not workers.uplinks[0].others)
        assert queues[0].in_flight_grace_ms() == 0
        taken(queues[0])
        queues[0].publish(due(KEEP + 9, first=200))
        assert taken(queues[0]) == list(range(200, 200 + KEEP + 9))


@pytest.mark.parametrize("payload", [b"", b"{", b"[1]", b"[[1,2]]", b"[[1,2,3,4]]", b"null"])
async def test_wake_ups_that_cannot_be_read_harm_nothing(payload: bytes) -> None:
    async with workers_of("a", "b") as workers:
        queue = MachineQueue(workers.uplinks[1])
        workers.relay.tell(workers.workers[1], Kind.WAKE, payload)
        workers.relay.tell(workers.workers[1], Kind.WAKE, b"[[7,1,5]]")
        await until(lambda: queue.statistics().received == 1)
        assert taken(queue) == [7]


async def test_a_worker_that_takes_nothing_costs_the_others_nothing() -> None:
    with closing(Workers(["a", "b", "stuck"])) as workers:
        with trio.fail_after(10):
            for _ in range(300):  # the stuck one's uplink never runs
                workers.relay.tell(workers.workers[2], Kind.WAKE, b"x" * 60_000)
            assert workers.workers[2].dropped > 0
            async with trio.open_nursery() as nursery:
                nursery.start_soon(workers.run)
                for uplink in workers.uplinks[:2]:
                    await nursery.start(uplink.run)
                workers.tell_members(["a", "b", "stuck"])
                await until(lambda: bool(workers.uplinks[0].others))
                queues = [MachineQueue(uplink) for uplink in workers.uplinks[:2]]
                queues[0].publish(due(KEEP + 30))
                dealt = [n for n in range(KEEP + 1, KEEP + 31) if shard_of(n, 3) == 1]
                await until(lambda: queues[1].statistics().received == len(dealt))
                nursery.cancel_scope.cancel()


def test_what_a_worker_says_of_itself_is_noted_also_after_its_end() -> None:
    with closing(Workers(["a"])) as workers:
        (worker,), (uplink,) = workers.workers, workers.uplinks
        uplink.post(Kind.READY)
        uplink.post(Kind.HEARTBEAT, b"3 1")
        connections = [socket.socket() for _ in range(4)]
        worker.handed.extend(connections)
        workers.relay.serve(worker)
        assert worker.ready
        assert worker.connected == 7
        assert worker.full
        workers.handed[0].send(b"t")
        workers.handed[0].send(b"t")
        workers.relay.serve(worker)
        assert worker.connected == 7
        assert list(worker.handed) == connections[2:]
        assert [one.fileno() < 0 for one in connections] == [True, True, False, False]
        assert worker.heard_at > 0
        uplink.post(Kind.LEAVING)
        uplink.post(Kind.FAILED, "it can't: ünbound".encode())
        uplink.post(Kind.SIGNAL, b"x", to="nobody")
        uplink.close()
        workers.relay.remove(worker)
        assert worker.leaving
        assert worker.failure == "it can't: ünbound"
        assert frame(Kind.READY) == b"\0\0\0\x01\x01"


@pytest.mark.parametrize("rest", [b"", b"\0\0", frame(Kind.WAKE, b"x" * 100_000)[:70_000]])
def test_a_worker_that_died_in_the_middle_of_a_frame_leaves_nothing_behind(rest: bytes) -> None:
    with closing(Workers(["a", "b"])) as workers:
        worker, uplink = workers.workers[0], workers.uplinks[0]
        uplink.post(Kind.FAILED, b"why")
        uplink._socket.setblocking(True)
        uplink._socket.sendall(rest)
        uplink.close()
        workers.relay.remove(worker)
        assert worker.failure == "why"
        watched = {key.fd for key in workers.selector.get_map().values()}
        # The next worker gets the same descriptors, and has to find them free.
        assert watched.isdisjoint({worker.control.fileno(), worker.connections.fileno()})


def test_of_what_a_worker_does_not_take_only_wake_ups_and_signals_are_dropped() -> None:
    with closing(Workers(["a", "stuck"])) as workers:
        stuck = workers.workers[1]
        while not stuck.dropped:
            workers.relay.tell(stuck, Kind.WAKE, b"x" * 60_000)
        workers.relay.tell(stuck, Kind.MEMBERS, b"a a\na stuck")
        assert stuck.dropped == 1


async def test_who_stops_or_is_silent_gets_nothing_new_and_is_alive_all_the_same() -> None:
    async with workers_of("a", "b", "c") as workers:
        told = Membership(workers.relay)
        for worker in workers.workers:
            worker.ready, worker.heard_at = True, 100.0
        assert told.tell(workers.workers, 100.5) == workers.workers
        a, b, c = workers.workers
        a.leaving = True
        b.heard_at = 99.0
        assert told.tell(workers.workers, 102.5) == [c]
        await until(lambda: workers.uplinks[1].leader == "c")
        assert workers.uplinks[2].others == ()
        assert workers.uplinks[2].alive == {"a", "b", "c"}
        told.remove(a)
        assert told.tell([b, c], 102.6) == [c]
        with trio.fail_after(5):
            assert await workers.uplinks[2].next_gone() == "a"
        await until(lambda: workers.uplinks[2].alive == {"b", "c"})


async def test_a_dead_leader_is_told_of_once_there_is_another() -> None:
    async with workers_of("a", "b") as workers:
        told = Membership(workers.relay)
        a, b = workers.workers
        told.remove(a)
        assert told.tell([b], 0.0) == []  # it is not ready yet
        b.ready = True
        told.tell([b], 0.0)
        with trio.fail_after(5):
            assert await workers.uplinks[1].next_gone() == "a"

"""The Queue port on one node: what is taken, in which order, what is set aside, how much is
held. Each test runs on every adapter."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from taskd.domain.model import DueTask
from taskd.queues.local import LANE_BOUND
from tests.support.nodes import Node, until
from tests.support.queue_kinds import ROOM, QueueKind, Taker, always, due

pytestmark = pytest.mark.parametrize("offer", ["backfill", "publish"])


async def offered(node: Node[Any], offer: str, tasks: list[DueTask]) -> None:
    """Offer tasks, and wait until they are here."""
    before = node.port.statistics().waiting
    getattr(node.port, offer)(tasks)
    await until(lambda: node.port.statistics().waiting == before + len(tasks))


async def test_what_is_offered_is_taken_once_and_whole(queues: QueueKind, offer: str) -> None:
    async with queues.at_work():
        node = await queues.begin("a")
        tasks = [due(1), due(3, 7), DueTask(task_id=2**53 - 1, app_id=2**31 - 1, due_at=123)]
        await offered(node, offer, tasks)
        taken = node.port.take(ROOM, always)
        assert sorted(taken, key=lambda task: task.task_id) == tasks
        assert node.port.take(ROOM, always) == []


async def test_no_more_than_the_limit_is_taken_and_the_rest_stays(
    queues: QueueKind, offer: str
) -> None:
    async with queues.at_work():
        node = await queues.begin("a")
        await offered(node, offer, [due(n) for n in range(1, 101)])
        assert node.port.take(0, always) == []
        taken: list[int] = []
        while batch := node.port.take(7, always):
            assert len(batch) <= 7
            taken += [task.task_id for task in batch]
        assert sorted(taken) == list(range(1, 101))


async def test_apps_take_turns_also_from_one_take_to_the_next(
    queues: QueueKind, offer: str
) -> None:
    async with queues.at_work():
        node = await queues.begin("a")
        tasks = [due(n, 1) for n in range(1, 31)]
        tasks += [due(100 * app + n, app) for app in (2, 3) for n in range(10)]
        await offered(node, offer, tasks)
        order = [node.port.take(1, always)[0].app_id for _ in range(9)]
        order += [task.app_id for task in node.port.take(21, always)]
        turns = [order[start : start + 3] for start in range(0, 30, 3)]
        assert all(turn == turns[0] and len(set(turn)) == 3 for turn in turns), order
        assert [task.app_id for task in node.port.take(ROOM, always)] == [1] * 20


async def test_a_lone_task_waits_for_one_of_each_other_app_at_most(
    queues: QueueKind, offer: str
) -> None:
    async with queues.at_work():
        node = await queues.begin("a")
        await offered(node, offer, [due(n, 1 + n % 3) for n in range(1, 301)])
        assert len(node.port.take(50, always)) == 50
        await offered(node, offer, [due(1000, 9)])
        assert 9 in {task.app_id for task in node.port.take(4, always)}


async def test_an_app_that_is_not_admitted_is_set_aside_until_resumed(
    queues: QueueKind, offer: str
) -> None:
    async with queues.at_work():
        node = await queues.begin("a")
        taker = Taker(node.port, refuses=(1,))
        await offered(node, offer, [due(n, 1 + n % 2) for n in range(1, 21)])
        assert {task.app_id for task in taker.take(10)} == {2}
        assert taker.asked.count(1) == 1
        for _ in range(5):
            taker.take(10)
        node.port.resume([77])
        assert taker.take(10) == []
        assert taker.asked.count(1) == 1, "it was asked about again"
        assert len(taker.got) == 10
        taker.refuses.clear()
        node.port.resume([1, 77])
        assert {task.task_id for task in taker.take()} == set(range(2, 21, 2))


async def test_each_wake_up_is_admitted_by_itself_before_it_is_taken(
    queues: QueueKind, offer: str
) -> None:
    async with queues.at_work():
        node = await queues.begin("a")
        await offered(node, offer, [due(n, 1 + n % 2) for n in range(1, 41)])
        places = {1: 3, 2: 25}
        asked: list[int] = []

        def admit(app_id: int) -> bool:
            asked.append(app_id)
            places[app_id] -= 1
            return places[app_id] >= 0

        taken = [task.app_id for task in node.port.take(ROOM, admit)]
        assert (taken.count(1), taken.count(2)) == (3, 20)
        assert (asked.count(1), asked.count(2)) == (4, 20)


async def test_what_comes_for_an_app_that_was_set_aside_joins_its_others(
    queues: QueueKind, offer: str
) -> None:
    async with queues.at_work():
        node = await queues.begin("a")
        taker = Taker(node.port, refuses=(1,))
        await offered(node, offer, [due(1)])
        taker.take()
        node.port.backfill([due(2)])
        node.port.publish([due(3, 2)])
        await until(lambda: taker.take() or taker.ids == [3])
        assert taker.asked.count(1) == 1
        taker.refuses.clear()
        node.port.resume([1])
        assert sorted(task.task_id for task in taker.take()) == [1, 2]


async def test_an_admission_that_fails_loses_nothing_that_waits(
    queues: QueueKind, offer: str
) -> None:
    async with queues.at_work():
        node = await queues.begin("a")
        await offered(node, offer, [due(n) for n in range(1, 6)])

        def fail(app_id: int) -> bool:
            raise RuntimeError(f"a bug, of app {app_id}")

        with pytest.raises(RuntimeError, match="a bug"):
            node.port.take(ROOM, fail)
        assert sorted(task.task_id for task in node.port.take(ROOM, always)) == [1, 2, 3, 4, 5]


async def test_what_waits_here_already_is_not_held_twice(queues: QueueKind, offer: str) -> None:
    async with queues.at_work():
        node = await queues.begin("a")
        await offered(node, offer, [due(1), due(2)])
        for again in (node.port.backfill, node.port.publish, node.port.backfill):
            again([due(1), due(2), due(1)])
        await offered(node, "publish", [due(3, 2)])  # what was published before has come
        taker = Taker(node.port)
        taker.take_all()
        assert sorted(taker.ids) == [1, 2, 3]


async def test_answers_for_what_was_never_taken_or_twice_harm_nothing(
    queues: QueueKind, offer: str
) -> None:
    async with queues.at_work():
        node = await queues.begin("a")
        queue = node.port
        await offered(node, offer, [due(n) for n in range(1, 5)])
        queue.finish([due(99)])
        queue.release([due(98)])
        queue.finish([])
        taken = queue.take(2, always)
        queue.finish(taken)
        queue.finish(taken)
        queue.release(taken)
        assert sorted(task.task_id for task in queue.take(ROOM, always)) == [3, 4]
        # The Store decides: what is due again is offered again.
        queue.backfill(taken)
        assert sorted(task.task_id for task in queue.take(ROOM, always)) == [1, 2]


async def test_a_lane_that_is_full_drops_and_says_so_and_others_go_on(
    queues: QueueKind, offer: str
) -> None:
    async with queues.at_work():
        node = await queues.begin("a")
        queue = node.port
        assert queue.saturated() == frozenset()
        # Far more than is held of one app; what nothing carries away stays here.
        queue.backfill(due(n) for n in range(1, 3 * LANE_BOUND))
        getattr(queue, offer)([due(10**9, 2)])
        await until(lambda: queue.statistics().waiting == LANE_BOUND + 1)
        assert queue.saturated() == {1}
        assert 2 in {task.app_id for task in queue.take(2, always)}
        taken = 0
        while queue.saturated():
            taken += len(queue.take(ROOM, always))
        assert 0 < taken < LANE_BOUND, "the Store is read again before all is gone"
        # What was dropped was dropped, and not kept from coming again.
        queue.backfill([due(3 * LANE_BOUND - 1)])
        rest = 0
        while batch := queue.take(ROOM, always):
            rest += sum(task.task_id == 3 * LANE_BOUND - 1 for task in batch)
        assert rest == 1


async def test_the_store_is_not_read_at_once_again_for_an_app_that_was_set_aside(
    queues: QueueKind, offer: str
) -> None:
    async with queues.at_work():
        node = await queues.begin("a")
        await offered(node, offer, [due(1), due(2, 2)])
        Taker(node.port, refuses=(1,)).take()
        node.port.saturated()  # a first reading may be worth while
        assert node.port.saturated() == {1}
        node.port.resume([1])
        assert node.port.saturated() == frozenset()


async def test_a_node_begins_nothing_before_what_waits_here(queues: QueueKind, offer: str) -> None:
    async with queues.at_work():
        node = await queues.begin("a")
        await offered(node, offer, [due(1)])
        assert node.port.local_capacity() == 0
        node.port.finish(node.port.take(ROOM, always))
        assert node.port.local_capacity() >= 0


async def test_alone_a_node_looks_for_all(queues: QueueKind, offer: str) -> None:
    async with queues.at_work():
        node = await queues.begin("a")
        await offered(node, offer, [due(1)])
        part = node.port.shard()
        assert all(part.has(n) for n in range(1, 100))
        assert node.port.degraded() is None
        assert node.port.in_flight_grace_ms() >= 0
        assert queues.joins or node.port.in_flight_grace_ms() == 0, "nothing carries it"


class Turns(RuleBasedStateMachine):
    """Random use of a queue that is alone, against a model of what waits."""

    kind: QueueKind
    offer: str

    def __init__(self) -> None:
        super().__init__()
        self.queue: Any = self.kind.make("model")
        self.waiting: dict[int, dict[int, DueTask]] = defaultdict(dict)
        self.aside: set[int] = set()
        self.taken: list[DueTask] = []
        self.overtaken: dict[int, set[int]] = {}

    def teardown(self) -> None:
        self.resume(set(self.aside))
        self.take(10_000, set())
        assert not any(self.waiting.values()), "something was lost"
        self.kind.drop("model")

    @rule(
        how=st.sampled_from(["backfill", "publish", "given"]),
        named=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), max_size=12),
    )
    def offer_some(self, how: str, named: list[tuple[int, int]]) -> None:
        tasks = [due(100 * app + number, app) for number, app in named]
        getattr(self.queue, self.offer if how == "given" else how)(tasks)
        for task in tasks:
            if not self.waiting[task.app_id]:
                self.overtaken[task.app_id] = set()
            self.waiting[task.app_id].setdefault(task.task_id, task)

    @rule(limit=st.integers(0, 9), refused=st.sets(st.integers(1, 5), max_size=3))
    def take(self, limit: int, refused: set[int]) -> None:
        order: list[int] = []

        def admit(app_id: int) -> bool:
            assert app_id not in self.aside, "it was asked about, and nobody had resumed it"
            if app_id in refused:
                self.aside.add(app_id)
                return False
            order.append(app_id)
            return True

        batch = self.queue.take(limit, admit)
        assert [task.app_id for task in batch] == order
        for task in batch:
            del self.waiting[task.app_id][task.task_id]  # or it was handed out twice
            self.taken.append(task)
            self._note_turn(task.app_id)
        if len(batch) < limit:
            left = {app for app, tasks in self.waiting.items() if tasks}
            assert left <= self.aside, "it could have been taken"

    def _note_turn(self, app_id: int) -> None:
        self.overtaken[app_id] = set()
        for other, tasks in self.waiting.items():
            if other != app_id and tasks and other not in self.aside:
                assert app_id not in self.overtaken[other], "it had two turns"
                self.overtaken[other].add(app_id)

    @rule(app_ids=st.sets(st.integers(1, 6)))
    def resume(self, app_ids: set[int]) -> None:
        self.queue.resume(app_ids)
        for app_id in self.aside & app_ids:
            self.overtaken[app_id] = set()
        self.aside -= app_ids

    @rule(answered=st.booleans(), count=st.integers(0, 5))
    def answer(self, answered: bool, count: int) -> None:
        some, self.taken = self.taken[:count], self.taken[count:]
        (self.queue.finish if answered else self.queue.release)(some)

    @rule(free=st.integers(0, ROOM))
    def room(self, free: int) -> None:
        self.queue.room(free)

    @invariant()
    def says_what_is_so(self) -> None:
        ready = {app for app, tasks in self.waiting.items() if tasks and app not in self.aside}
        if ready:
            assert self.queue.local_capacity() == 0
        assert self.queue.saturated() <= self.aside
        held = self.queue.statistics().waiting
        assert held == sum(len(tasks) for tasks in self.waiting.values())


async def test_any_use_keeps_turns_and_loses_nothing(queues: QueueKind, offer: str) -> None:
    async with queues.at_work():
        await trio.lowlevel.checkpoint()
        model = type("Turns", (Turns,), {"kind": queues, "offer": offer})
        run_state_machine_as_test(
            model, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
        )


async def test_offers_and_takings_at_random_hand_each_out_once(
    queues: QueueKind, offer: str
) -> None:
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    async with queues.at_work():
        node = await queues.begin("a")
        taker = Taker(node.port)
        for start in range(1, 1001, 20):
            tasks = [due(n, chance.randint(1, 5)) for n in range(start, start + 20)]
            getattr(node.port, chance.choice([offer, "backfill", "publish"]))(tasks)
            for _ in range(chance.randint(0, 3)):
                await trio.lowlevel.checkpoint()
            node.port.finish(taker.take(chance.randint(0, 60)))
            node.port.room(ROOM)
        await until(lambda: taker.took(1000))
        assert sorted(taker.ids) == list(range(1, 1001)), f"seed {seed}"

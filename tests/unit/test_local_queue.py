"""The in-process queue: bounded, fair, without doubles."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from taskd.domain.model import DueTask
from taskd.queues.local import LocalQueue


def due(task_id: int, app_id: int = 1) -> DueTask:
    return DueTask(task_id=task_id, app_id=app_id, due_at=0)


def always(app_id: int) -> bool:
    return True


def test_apps_take_turns() -> None:
    queue = LocalQueue()
    queue.publish([due(1), due(2), due(3), due(11, 2), due(12, 2), due(21, 3)])
    assert [task.task_id for task in queue.take(4, always)] == [1, 11, 21, 2]
    assert [task.task_id for task in queue.take(4, always)] == [12, 3]


def test_a_turn_goes_on_where_the_last_take_ended() -> None:
    queue = LocalQueue()
    for app_id in (1, 2, 3):
        queue.publish(due(app_id * 100 + n, app_id) for n in range(3))
    order = [queue.take(1, always)[0].app_id for _ in range(9)]
    assert order == [1, 2, 3] * 3


def test_an_app_that_is_not_admitted_keeps_its_wake_ups() -> None:
    queue = LocalQueue()
    queue.publish([due(1), due(2), due(11, 2)])
    assert [task.task_id for task in queue.take(9, lambda app_id: app_id == 2)] == [11]
    assert queue.take(9, always) == [], "nobody asks about it"
    queue.resume([1, 77])
    assert [task.task_id for task in queue.take(9, always)] == [1, 2]


async def test_what_comes_for_a_parked_app_joins_its_others_and_wakes_nobody() -> None:
    queue = LocalQueue()
    queue.publish([due(1), due(11, 2)])
    await queue.wait()
    queue.take(9, lambda app_id: app_id == 2)
    assert queue.is_parked(1)
    queue.publish([due(2), due(2)])
    assert (queue.waiting, queue.ready) == (2, 0)
    assert queue.local_capacity(), "nobody that could begin waits"
    with trio.move_on_after(0.01) as deadline:
        await queue.wait()
    assert deadline.cancelled_caught
    queue.resume([1])
    assert queue.ready == 2
    assert not queue.local_capacity()
    assert [task.task_id for task in queue.take(9, always)] == [1, 2]
    assert (queue.waiting, queue.ready) == (0, 0)


def test_however_many_lanes_are_parked_nobody_is_asked_about_them() -> None:
    asked = Counter[int]()

    def only_the_last(app_id: int) -> bool:
        asked[app_id] += 1
        return app_id == 1_000

    queue = LocalQueue()
    queue.publish(due(app_id, app_id) for app_id in range(1_000))
    assert queue.take(9, only_the_last) == []
    for task_id in range(5_000, 5_100):
        queue.publish([due(task_id, 1_000)])
        assert len(queue.take(9, only_the_last)) == 1
    assert set(asked.values()) == {1, 100}


@pytest.mark.virtual_clock
async def test_the_store_is_not_read_for_parked_apps_but_now_and_then() -> None:
    queue = LocalQueue()
    queue.publish(due(app_id, app_id) for app_id in range(1, 101))
    queue.publish([due(1_000, 101)])
    queue.take(999, lambda app_id: app_id == 101)
    reads = Counter[int]()
    parked = frozenset(range(1, 101))
    for _ in range(121):
        turn = parked - queue.saturated()
        assert len(turn) <= (100 if not reads else 25), "not all at once"
        reads.update(turn)
        await trio.sleep(1)
    assert set(reads) == parked
    assert 4 <= min(reads.values()) <= max(reads.values()) <= 7
    queue.resume(parked)
    assert queue.saturated() == frozenset()


def test_many_long_lanes_share_what_is_held_in_all() -> None:
    queue = LocalQueue(bound=1_000)
    for app_id in range(1, 40):
        queue.publish(due(app_id * 10_000 + number, app_id) for number in range(2_000))
    held = queue.statistics().waiting
    assert 900 < held <= 1_000 + 40
    assert queue.offer(due(1, 99)), "a short lane finds room"


def test_what_is_held_is_not_held_twice() -> None:
    queue = LocalQueue()
    queue.publish([due(1), due(1)])
    queue.publish([due(1)])
    assert len(queue.take(9, always)) == 1
    queue.publish([due(1)])
    assert len(queue.take(9, always)) == 1


def test_a_full_lane_drops_and_says_that_it_is_saturated() -> None:
    queue = LocalQueue(lane_bound=10)
    queue.publish(due(n) for n in range(25))
    queue.publish([due(100, 2)])
    assert queue.saturated() == {1}
    assert queue.statistics().dropped == 15
    assert queue.statistics().waiting == 11
    queue.take(8, always)
    assert queue.saturated() == frozenset()


async def test_wait_returns_for_what_was_published_before_and_after_it() -> None:
    queue = LocalQueue()
    queue.publish([due(1)])
    with trio.fail_after(1):
        await queue.wait()
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(queue.wait)
            await trio.testing.wait_all_tasks_blocked()
            queue.publish([due(2)])


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 4)), max_size=200), st.integers(1, 9))
def test_nothing_is_lost_below_the_bound(published: list[tuple[int, int]], limit: int) -> None:
    queue = LocalQueue()
    wanted = {task_id * 10 + app_id: app_id for task_id, app_id in published}
    queue.publish(due(task_id, app_id) for task_id, app_id in wanted.items())
    taken: list[int] = []
    while batch := queue.take(limit, always):
        assert len(batch) <= limit
        taken += [task.task_id for task in batch]
    assert sorted(taken) == sorted(wanted)

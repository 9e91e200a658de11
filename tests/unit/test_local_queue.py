"""The in-process queue: bounded, fair, without doubles."""

from __future__ import annotations

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from taskd.model import DueTask
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
    assert [task.task_id for task in queue.take(9, always)] == [1, 2]


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


def test_wait_returns_for_what_was_published_before_and_after_it() -> None:
    async def main() -> None:
        queue = LocalQueue()
        queue.publish([due(1)])
        with trio.fail_after(1):
            await queue.wait()
        with trio.fail_after(1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(queue.wait)
                await trio.testing.wait_all_tasks_blocked()
                queue.publish([due(2)])

    trio.run(main)


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

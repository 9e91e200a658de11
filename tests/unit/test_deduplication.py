"""Which tasks of which submissions are added: a pure function, held against one that
takes them one by one."""

from __future__ import annotations

import dataclasses
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from taskd.domain.model import ExistingTask, FirstLease, NewTask, TaskState
from taskd.errors import BatchRefused
from taskd.stores.deduplication import (
    Given,
    TaskKey,
    all_tasks,
    deduplicate,
    give,
    give_all,
    key_of,
    to_add,
)
from taskd.stores.write_requests import Submission
from tests.support.stores import new_app, new_task

_APP = new_app()
_LEASE = FirstLease("node", 1, 2)

_TASKS = st.builds(
    lambda app_id, number, lease: dataclasses.replace(
        new_task(_APP, f"no-{number}", lease=lease), app_id=app_id
    ),
    st.integers(1, 2),
    st.integers(0, 4),
    st.sampled_from([None, _LEASE]),
)
_SUBMISSIONS = st.lists(
    st.builds(Submission, st.lists(_TASKS, max_size=4), st.none(), st.booleans()), max_size=5
)
_TAKEN = st.dictionaries(
    st.tuples(st.integers(1, 2), st.integers(0, 4).map(lambda n: f"no-{n}")),
    st.builds(ExistingTask, st.integers(1, 6), st.sampled_from(TaskState)),
)


class OneByOne:
    """A store that takes submissions one by one."""

    def __init__(self, tasks: dict[TaskKey, ExistingTask], ids: count[int]) -> None:
        self.tasks = dict(tasks)
        self.ids = ids
        self.added: list[NewTask] = []

    def submit(self, submission: Submission) -> Given | tuple[int, ExistingTask | None]:
        seen: set[TaskKey] = set()
        for position, task in enumerate(submission.tasks if submission.atomic else ()):
            key = key_of(task)
            if key in self.tasks or key in seen:
                return position, self.tasks.get(key)
            seen.add(key)
        return [self.add(task) for task in submission.tasks]

    def add(self, task: NewTask) -> int | ExistingTask:
        key = key_of(task)
        if key in self.tasks:
            return self.tasks[key]
        task_id = next(self.ids)
        state = TaskState.SCHEDULED if task.lease is None else TaskState.RUNNING
        self.tasks[key] = ExistingTask(task_id, state)
        self.added.append(task)
        return task_id


@given(_SUBMISSIONS, _TAKEN)
def test_each_is_told_what_it_would_be_if_they_came_one_by_one(
    submissions: list[Submission], taken: dict[TaskKey, ExistingTask]
) -> None:
    one_by_one = OneByOne(taken, count(7))
    expected = [one_by_one.submit(submission) for submission in submissions]
    deduplicated = deduplicate(submissions, taken)
    told = [
        (one.position, one.existing) if isinstance(one, BatchRefused) else one
        for one in give(deduplicated, count(7), dict(taken))
    ]
    assert told == expected
    assert to_add(deduplicated) == one_by_one.added


@given(_SUBMISSIONS)
def test_where_nothing_is_taken_all_of_them_are_added(submissions: list[Submission]) -> None:
    tasks = all_tasks(submissions)
    assert tasks == [task for one in submissions for task in one.tasks]
    ids = count(7)
    assert give_all(submissions, count(7)) == [[next(ids) for _ in s.tasks] for s in submissions]

"""Which tasks of which submissions are added, and what their callers are told.

A store first tries to add all of them. Only where the database refuses that, it looks
for the taskNos that are taken, and has the submissions deduplicated here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from taskd.domain.model import ExistingTask, NewTask, TaskState
from taskd.errors import BatchRefused, StoreError
from taskd.stores.write_requests import Submission

TaskKey = tuple[int, str]
"""What no two tasks share: the app and its taskNo."""


@dataclass(frozen=True, slots=True)
class RefusedWhole:
    """A submission none of whose tasks is added, and the first one that is taken."""

    position: int
    key: TaskKey


Deduplicated = list[NewTask | TaskKey] | RefusedWhole
"""A submission's tasks, the key of each that is not to be added; or why none is."""

Given = list[int | ExistingTask]
"""The ids of a submission's tasks; for each that was not added, the task that has its
taskNo."""


def key_of(task: NewTask) -> TaskKey:
    """What no other task may share with it."""
    return task.app_id, task.task_no


def all_tasks(submissions: Iterable[Submission]) -> list[NewTask]:
    """The tasks of all of them, in their order."""
    return [task for submission in submissions for task in submission.tasks]


def give_all(submissions: Iterable[Submission], ids: Iterator[int]) -> list[Given | StoreError]:
    """What each caller is told, once all tasks were given these ids."""
    return [[next(ids) for _ in submission.tasks] for submission in submissions]


def deduplicate(submissions: Iterable[Submission], taken: Iterable[TaskKey]) -> list[Deduplicated]:
    """Leave out what can't be added, of the first submission first.

    Args:
        submissions: in the order in which they are to be judged.
        taken: the keys of their tasks that the store has already.
    """
    seen = set(taken)
    return [_deduplicate(submission, seen) for submission in submissions]


def _deduplicate(submission: Submission, taken: set[TaskKey]) -> Deduplicated:
    deduplicated: list[NewTask | TaskKey] = []
    added: set[TaskKey] = set()
    for position, task in enumerate(submission.tasks):
        key = key_of(task)
        if key not in taken and key not in added:
            added.add(key)
            deduplicated.append(task)
        elif submission.atomic:
            return RefusedWhole(position, key)
        else:
            deduplicated.append(key)
    taken |= added
    return deduplicated


def to_add(deduplicated: Iterable[Deduplicated]) -> list[NewTask]:
    """The tasks that are left, in their order."""
    return [
        task
        for tasks in deduplicated
        if not isinstance(tasks, RefusedWhole)
        for task in tasks
        if isinstance(task, NewTask)
    ]


def give(
    deduplicated: Sequence[Deduplicated], ids: Iterator[int], taken: dict[TaskKey, ExistingTask]
) -> list[Given | StoreError]:
    """What each caller is told, once the tasks of `to_add` were given these ids.

    Args:
        deduplicated: in the order in which they were judged.
        ids: one for each task that was added.
        taken: the store's tasks by the keys that were taken; those that were added
            join them.
    """
    return [_give(tasks, ids, taken) for tasks in deduplicated]


def _give(
    tasks: Deduplicated, ids: Iterator[int], taken: dict[TaskKey, ExistingTask]
) -> Given | StoreError:
    if isinstance(tasks, RefusedWhole):
        return BatchRefused(tasks.position, taken.get(tasks.key))
    given: Given = []
    for task in tasks:
        if isinstance(task, NewTask):
            task_id = next(ids)
            given.append(task_id)
            taken[key_of(task)] = ExistingTask(task_id, first_state(task))
        else:
            given.append(taken[task])
    return given


def first_state(task: NewTask) -> TaskState:
    """The state that a task is added in."""
    return TaskState.SCHEDULED if task.lease is None else TaskState.RUNNING

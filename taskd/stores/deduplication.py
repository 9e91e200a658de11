"""Decides which tasks of submissions are added, and what the callers are told.

A store first tries to add all tasks. Only if the database refuses that, it looks for the
taskNos that are taken, and deduplicates the submissions here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from taskd.domain.model import ExistingTask, NewTask, TaskState
from taskd.domain.record import record
from taskd.errors import BatchRefused, StoreError
from taskd.stores.write_requests import Submission

TaskKey = tuple[int, str]
"""An app's id and a taskNo, which no two tasks share."""


@record
class RefusedWhole:
    """An atomic submission that adds no task: where its first task with a taken key is."""

    position: int
    key: TaskKey


Deduplicated = list[NewTask | TaskKey] | RefusedWhole
"""For each task of a submission the task, or its key if that is taken; or why none is added."""

Given = list[int | ExistingTask]
"""For each task of a submission its new id, or the task that has its taskNo already."""


def key_of(task: NewTask) -> TaskKey:
    """Return the task's key."""
    return task.app_id, task.task_no


def all_tasks(submissions: Iterable[Submission]) -> list[NewTask]:
    """Return the tasks of all submissions, in order."""
    return [task for submission in submissions for task in submission.tasks]


def give_all(submissions: Iterable[Submission], ids: Iterator[int]) -> list[Given | StoreError]:
    """Return what each caller is told after all tasks were added under these ids."""
    return [[next(ids) for _ in submission.tasks] for submission in submissions]


def deduplicate(submissions: Iterable[Submission], taken: Iterable[TaskKey]) -> list[Deduplicated]:
    """Find the tasks whose keys are taken; the others are to be added.

    Args:
        submissions: an earlier one takes keys before a later one.
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
    """Return the tasks to be added, in order."""
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
    """Return what each caller is told after the tasks of `to_add` were added under these ids.

    Args:
        deduplicated: the submissions, in the order of `deduplicate`.
        ids: one for each task that was added.
        taken: by key, the store's tasks whose keys were taken; the added tasks are put in.
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

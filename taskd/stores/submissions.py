"""Which tasks of which submissions are added, and what their callers are told.

A store first tries to add all of them. Only where the database refuses that, it looks
for the taskNos that are taken, and has the submissions sifted here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from taskd.errors import BatchRefused, StoreError
from taskd.model import NewTask
from taskd.stores.orders import Submission

TaskKey = tuple[int, str]
"""What no two tasks share: the app and its taskNo."""

Sifted = list[NewTask | None] | BatchRefused
"""A submission's tasks, None for each that is not to be added; or why none is."""

Given = list[int | None]
"""The ids of a submission's tasks, None for each that was not added."""


def key_of(task: NewTask) -> TaskKey:
    """What no other task may share with it."""
    return task.app_id, task.task_no


def unsifted(submissions: Iterable[Submission]) -> list[Sifted]:
    """All of them, whole."""
    return [list(submission.tasks) for submission in submissions]


def sift(submissions: Iterable[Submission], taken: set[TaskKey]) -> list[Sifted]:
    """Leave out what can't be added, of the first submission first.

    Args:
        submissions: in the order in which they are to be judged.
        taken: the keys of their tasks that the store has already; those of tasks that
            are not left out are added to it.
    """
    return [_sift(submission, taken) for submission in submissions]


def _sift(submission: Submission, taken: set[TaskKey]) -> Sifted:
    sifted: list[NewTask | None] = []
    added: set[TaskKey] = set()
    for position, task in enumerate(submission.tasks):
        key = key_of(task)
        if key not in taken and key not in added:
            added.add(key)
            sifted.append(task)
        elif submission.atomic:
            return BatchRefused(position)
        else:
            sifted.append(None)
    taken |= added
    return sifted


def to_add(sifted: Iterable[Sifted]) -> list[NewTask]:
    """The tasks that are left, in their order."""
    return [
        task
        for tasks in sifted
        if not isinstance(tasks, BatchRefused)
        for task in tasks
        if task is not None
    ]


def give(sifted: Sequence[Sifted], ids: Iterator[int]) -> list[Given | StoreError]:
    """What each caller is told, once the tasks of `to_add` were given these ids."""
    return [
        tasks
        if isinstance(tasks, BatchRefused)
        else [None if task is None else next(ids) for task in tasks]
        for tasks in sifted
    ]

"""Which tasks of which submissions are added: a pure function, held against one that
takes them one by one."""

from __future__ import annotations

import dataclasses
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from taskd.errors import BatchRefused
from taskd.model import NewTask
from taskd.stores.orders import Submission
from taskd.stores.submissions import TaskKey, give, key_of, sift, to_add, unsifted
from tests.support.stores import new_app, new_task

_APP = new_app()

_TASKS = st.builds(
    lambda app_id, number: dataclasses.replace(new_task(_APP, f"no-{number}"), app_id=app_id),
    st.integers(1, 2),
    st.integers(0, 4),
)
_SUBMISSIONS = st.lists(
    st.builds(Submission, st.lists(_TASKS, max_size=4), st.none(), st.booleans()), max_size=5
)
_KEYS = st.sets(st.tuples(st.integers(1, 2), st.integers(0, 4).map(lambda n: f"no-{n}")))


def one_by_one(submission: Submission, taken: set[TaskKey]) -> list[NewTask | None] | int:
    """What is added of a submission; of one that is refused, the first task that is taken."""
    added: list[NewTask | None] = []
    now_taken = set(taken)
    for position, task in enumerate(submission.tasks):
        free = key_of(task) not in now_taken
        if submission.atomic and not free:
            return position
        added.append(task if free else None)
        now_taken.add(key_of(task))
    taken.update(now_taken)
    return added


@given(_SUBMISSIONS, _KEYS)
def test_the_first_to_ask_for_a_task_no_gets_it(
    submissions: list[Submission], taken: set[TaskKey]
) -> None:
    seen = set(taken)
    expected = [one_by_one(submission, seen) for submission in submissions]
    sifted = sift(submissions, set(taken))
    found = [one.position if isinstance(one, BatchRefused) else one for one in sifted]
    assert found == expected
    keys = [key_of(task) for task in to_add(sifted)]
    assert len(keys) == len(set(keys))
    assert not taken & set(keys)


@given(_SUBMISSIONS, _KEYS)
def test_each_task_that_is_added_gets_the_next_id(
    submissions: list[Submission], taken: set[TaskKey]
) -> None:
    sifted = sift(submissions, set(taken))
    ids = count(7)
    for told, tasks in zip(give(sifted, count(7)), sifted, strict=True):
        if isinstance(tasks, BatchRefused):
            assert told is tasks
        else:
            assert told == [None if task is None else next(ids) for task in tasks]
    assert next(ids) == 7 + len(to_add(sifted))


@given(_SUBMISSIONS)
def test_unsifted_is_all_of_them(submissions: list[Submission]) -> None:
    assert to_add(unsifted(submissions)) == [task for one in submissions for task in one.tasks]

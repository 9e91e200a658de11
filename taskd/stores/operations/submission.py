"""Adds tasks and apps, and uses up the nonces of the requests that bring them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from taskd.domain.model import App, ExistingTask, NewTask, NonceUse
from taskd.errors import NonceUsed, StoreError
from taskd.stores.batching import ROW_BYTES, Operation
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
from taskd.stores.encoding import STATES, nonce_digest
from taskd.stores.operations.session import Session
from taskd.stores.write_requests import AppAddition, Submission

_TRIES = 3
"""Attempts at adding rows. Other nodes may add or delete the same ones between a refusal and the
look for those that are taken."""

_NONCES_AT_ONCE = 500
"""Nonces of one statement, so that it adds all of them or none."""


def _weigh(submission: Submission) -> int:
    """Return about how many bytes a submission writes."""
    return sum([len(task.content) + ROW_BYTES for task in submission.tasks])


async def submit(session: Session, submissions: Sequence[Submission]) -> list[Given | StoreError]:
    """See `Store.create_tasks`."""
    refused = await _use_nonces(session, [submission.nonce for submission in submissions])
    admitted = submissions
    if refused:
        out = set(refused)
        admitted = [one for number, one in enumerate(submissions) if number not in out]
    results = await _add_tasks(session, admitted)
    for number in refused:  # in ascending order, so each finds its place
        results.insert(number, NonceUsed("the nonce was used before"))
    return results


async def _add_tasks(
    session: Session, submissions: Sequence[Submission]
) -> list[Given | StoreError]:
    """Add tasks, and return what each caller is told."""
    tasks = all_tasks(submissions)
    try:
        return give_all(submissions, iter(await session.add_tasks(tasks)))
    except session.TAKEN:
        pass  # find out which
    for _ in range(_TRIES - 1):
        taken = await _taken(session, tasks)
        deduplicated = deduplicate(submissions, taken)
        try:
            ids = await session.add_tasks(to_add(deduplicated))
        except session.TAKEN:
            continue
        return give(deduplicated, iter(ids), taken)
    raise session.contended("others add and delete the same tasks")


async def _taken(session: Session, tasks: Iterable[NewTask]) -> dict[TaskKey, ExistingTask]:
    """Return, by app and taskNo, the store's tasks that have the taskNos of these new ones."""
    found = await session.find_task_nos(set(map(key_of, tasks)))
    return {key: ExistingTask(task_id, STATES[state]) for key, (task_id, state) in found.items()}


async def _use_nonces(session: Session, nonces: Sequence[NonceUse | None]) -> list[int]:
    """Use nonces up. Returns the places of those that were used before, in the store or
    earlier among these, in ascending order."""
    placed = [(place, nonce) for place, nonce in enumerate(nonces) if nonce is not None]
    refused: list[int] = []
    for start in range(0, len(placed), _NONCES_AT_ONCE):
        refused += await _use_some(session, placed[start : start + _NONCES_AT_ONCE])
    return refused


async def _use_some(session: Session, nonces: Sequence[tuple[int, NonceUse]]) -> list[int]:
    fresh: dict[bytes, tuple[int, int]] = {}
    for place, nonce in nonces:
        fresh.setdefault(nonce_digest(nonce), (place, nonce.expires_at))
    for _ in range(_TRIES):
        rows = [(digest, expires_at) for digest, (_, expires_at) in fresh.items()]
        try:
            await session.add_nonces(rows)
        except session.TAKEN:
            for digest in await session.find_nonces(list(fresh)):
                del fresh[digest]
        else:
            if len(fresh) == len(nonces):
                return []
            used = {place for place, _ in fresh.values()}
            return [place for place, _ in nonces if place not in used]
    raise session.contended("others use and forget the same nonces")


async def add_apps(session: Session, additions: Sequence[AppAddition]) -> list[App | StoreError]:
    """See `Store.create_app`."""
    refused = set(await _use_nonces(session, [addition.nonce for addition in additions]))
    results: list[App | StoreError] = []
    for number, addition in enumerate(additions):
        if number in refused:
            results.append(NonceUsed("the nonce was used before"))
            continue
        app = addition.app
        app_id = await session.insert(
            session.ADD_APP,
            app_key=session.key(app.app_key),
            secret_key=app.secret_key,
            name=app.name,
            link_url=app.link_url,
            step=app.step,
            retry_total=app.retry_total,
            remark=app.remark,
            created_at=app.created_at,
            success=app.success.value,
        )
        results.append(replace(app, id=app_id))
    return results


SUBMIT = Operation("submit", submit, _weigh, quick=True)
ADD_APP = Operation("add app", add_apps)

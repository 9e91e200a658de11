"""MySQL and the in-memory store give the same answers to the same calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings

from taskd.domain.model import ExistingTask, Lease, LeasedTask, NewTask, NonceUse, Settlement
from taskd.ports.store import ExtendResult
from taskd.stores.memory import MemoryStore
from taskd.stores.mysql.schema import connected
from taskd.stores.mysql.store import MySQLStore
from taskd.stores.mysql.target import parse_mysql_url
from tests.contract.test_store_model import APPS, Player, Step, steps
from tests.support.mysql import opened_mysql, run_bounded
from tests.support.stores import new_app

pytestmark = pytest.mark.timeout(300)  # a MySQL on a busy machine takes its time

_ABSENT = 10**12


class Numbered:
    """A store whose task ids are 1, 2, 3: MySQL leaves out those of refused creates."""

    def __init__(self, store: MySQLStore) -> None:
        self._store = store
        self._ids: dict[int, int] = {}
        self._numbers: dict[int, int] = {}

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the store has
        return getattr(self._store, name)

    async def create_task(self, task: NewTask, nonce: NonceUse | None = None) -> int:
        return self._given(await self._store.create_task(task, nonce))

    async def create_tasks(
        self, tasks: Sequence[NewTask], nonce: NonceUse | None = None, *, atomic: bool = False
    ) -> list[int | ExistingTask]:
        given = await self._store.create_tasks(tasks, nonce, atomic=atomic)
        return [
            self._out(one) if isinstance(one, ExistingTask) else self._given(one) for one in given
        ]

    def _given(self, task_id: int) -> int:
        number = len(self._ids) + 1
        self._ids[number], self._numbers[task_id] = task_id, number
        return number

    async def task_detail(self, app_id: int, *, task_id: int) -> object:
        return self._out(await self._store.task_detail(app_id, task_id=self._id(task_id)))

    async def find_due(self, **limits: Any) -> object:  # noqa: ANN401 - as the store takes them
        return [self._out(due) for due in await self._store.find_due(**limits)]

    async def lease(self, task_ids: Sequence[int], **how: Any) -> list[LeasedTask]:  # noqa: ANN401 - as above
        taken = await self._store.lease([self._id(each) for each in task_ids], **how)
        return [dataclasses.replace(task, lease=self._out(task.lease)) for task in taken]

    async def extend(self, leases: Sequence[Lease], *, expires_at: int) -> ExtendResult:
        inner = [dataclasses.replace(each, task_id=self._id(each.task_id)) for each in leases]
        result = await self._store.extend(inner, expires_at=expires_at)
        return ExtendResult(self._set(result.lost), self._set(result.cancel_requested))

    async def settle(self, settlement: Settlement) -> object:
        lease = settlement.lease
        lease = dataclasses.replace(lease, task_id=self._id(lease.task_id))
        return await self._store.settle(dataclasses.replace(settlement, lease=lease))

    async def request_cancel(
        self, app_id: int, task_id: int | None = None, *, task_no: str | None = None, now: int
    ) -> object:
        inner = None if task_id is None else self._id(task_id)
        return self._out(await self._store.request_cancel(app_id, inner, task_no=task_no, now=now))

    async def reap(self, *, exclude: Collection[int], **how: Any) -> object:  # noqa: ANN401 - as above
        excluded = [self._id(each) for each in exclude]
        return [self._out(task) for task in await self._store.reap(exclude=excluded, **how)]

    async def find_suspects(self, **limits: Any) -> object:  # noqa: ANN401 - as above
        found = await self._store.find_suspects(**limits)
        waiting = [dataclasses.replace(each, task=self._out(each.task)) for each in found.waiting]
        return dataclasses.replace(found, waiting=tuple(waiting))

    def _id(self, number: int) -> int:
        return self._ids.get(number, _ABSENT + number)

    def _out(self, value: Any) -> Any:  # noqa: ANN401 - a value with an id
        if value is None:
            return None
        name = "id" if hasattr(value, "id") else "task_id"
        if getattr(value, name) is None:
            return value
        return dataclasses.replace(value, **{name: self._number(getattr(value, name))})

    def _number(self, task_id: int) -> int:
        return self._numbers.get(task_id, task_id - _ABSENT)

    def _set(self, task_ids: Collection[int]) -> frozenset[int]:
        return frozenset(self._number(each) for each in task_ids)


async def _compare(url: str, plan: list[Step]) -> None:
    async with connected(parse_mysql_url(url)) as connection:
        for (name,) in (await connection.execute("SHOW TABLES")).rows:
            if name != "meta":
                await connection.execute(f"TRUNCATE TABLE {name}")
    async with opened_mysql(url) as store:
        players = [Player(MemoryStore()), Player(Numbered(store))]  # type: ignore[arg-type] # a store by its attributes
        for player in players:
            player.apps = [
                await player.store.create_app(new_app(f"key-{number}")) for number in range(APPS)
            ]
        for number, step in enumerate(plan):
            expected, answer = [await player.play(step) for player in players]
            assert answer == expected, f"step {number}: {step}"
            await trio.lowlevel.checkpoint()
        assert await players[1].look() == await players[0].look()


def test_both_stores_answer_alike(database_url: str) -> None:
    async def empty() -> None:
        async with opened_mysql(database_url):
            pass

    run_bounded(empty)

    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(steps)
    def compare(plan: list[Step]) -> None:
        async def main() -> None:
            await _compare(database_url, plan)

        run_bounded(main)

    compare()

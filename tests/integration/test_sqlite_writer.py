"""The writer thread, where what it needs for a batch fails it."""

from __future__ import annotations

import errno
import math
import os
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from taskd.errors import StoreError, StoreUnavailable
from taskd.stores.batching import Operation
from taskd.stores.operations.session import Session
from taskd.stores.sqlite.store import SQLiteStore
from tests.support.stores import new_app, new_task


class Turn:
    """Fails so many times, as it begins or as it ends."""

    def __init__(self, *, begins: bool, times: int = 1) -> None:
        self._begins = begins
        self._left = times

    def _fail(self) -> None:
        if self._left:
            self._left -= 1
            raise OSError("the file system is gone")

    def __enter__(self) -> None:
        if self._begins:
            self._fail()

    def take_if_free(self) -> bool:
        self.__enter__()
        return True

    def release(self) -> None:
        self.__exit__(None, None, None)

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if not self._begins:
            self._fail()


@asynccontextmanager
async def opened(tmp_path: Path) -> AsyncIterator[SQLiteStore]:
    store = await SQLiteStore.open(tmp_path / "taskd.db")
    try:
        yield store
    finally:
        await store.aclose()


async def test_without_its_turn_nothing_is_written_and_the_next_batch_tries_afresh(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as store:
        app = await store.create_app(new_app())
        store._writer._turn = Turn(begins=True, times=2)  # in the loop, and in the thread
        with pytest.raises(StoreUnavailable, match="the store's writer failed"):
            await store.create_task(new_task(app))
        assert await store.create_task(new_task(app))


@pytest.mark.parametrize("here", [True, False])
async def test_what_was_committed_before_the_turn_failed_to_end_is_told_as_it_is(
    tmp_path: Path, here: bool
) -> None:
    async with opened(tmp_path) as store:
        app = await store.create_app(new_app())
        store._writer._turn = Turn(begins=False)
        if not here:
            store._writer._slow_until = math.inf
        task_id = await store.create_task(new_task(app))
        assert await store.task_detail(app.id, task_id=task_id) is not None


@pytest.mark.parametrize("begins", [True, False])
async def test_a_turn_that_fails_the_last_batch_does_not_keep_the_store_open(
    tmp_path: Path, begins: bool
) -> None:
    store = await SQLiteStore.open(tmp_path / "taskd.db")
    store._writer._turn = Turn(begins=begins)
    with trio.fail_after(5):
        await store._writer.aclose()
    await store.aclose()


async def test_an_operation_that_waits_fails_and_what_it_wrote_is_rolled_back(
    tmp_path: Path,
) -> None:
    async def waits(session: Session, arguments: Sequence[None]) -> list[StoreError | None]:
        await session.execute("INSERT INTO meta (name, value) VALUES ('waits', x'00')")
        await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.SUCCEEDED)
        return [None] * len(arguments)

    async def looks(session: Session, arguments: Sequence[None]) -> list[int | StoreError]:
        ((count,),) = await session.fetch("SELECT count(*) FROM meta WHERE name = 'waits'")
        return [count] * len(arguments)

    async with opened(tmp_path) as store:
        with pytest.raises(StoreUnavailable, match="an operation waited"):
            await store._writer.execute(Operation("waits", waits), None)
        assert await store._writer.execute(Operation("looks", looks), None) == 0


async def test_callers_of_one_pass_of_the_loop_share_a_transaction(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        app = await store.create_app(new_app())
        before = store.statistics()
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(store.create_task, new_task(app, f"no-{number}"))
            await wait_all_tasks_blocked()
        after = store.statistics()
        assert after.writes - before.writes == 20
        assert after.batches - before.batches == 1


@pytest.mark.parametrize(
    ("committed", "here"),
    # Before anything is written in the loop, nothing is lost: the thread tries again.
    [(False, False), (True, False), (True, True)],
)
async def test_a_batch_whose_files_can_not_be_looked_at_is_unavailable_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, committed: bool, here: bool
) -> None:
    async with opened(tmp_path) as store:
        app = await store.create_app(new_app())
        if not here:
            store._writer._slow_until = math.inf
        told: list[object] = []

        async def create(task_no: str) -> None:
            try:
                told.append(await store.create_task(new_task(app, task_no)))
            except Exception as error:  # noqa: BLE001 - it is looked at
                told.append(error)

        def fails() -> None:
            monkeypatch.undo()
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        check = "check_after_commit" if committed else "check_before_commit"
        monkeypatch.setattr(store._guard, check, fails)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(create, "a")
            nursery.start_soon(create, "b")
        assert [type(each) for each in told] == [StoreUnavailable] * 2
        for each in told:
            assert ("whether this was kept is not known" in str(each)) is committed
        for task_no in "ab":
            assert (await store.task_detail(app.id, task_no=task_no) is not None) is committed
        assert await store.create_task(new_task(app, "c"))


async def test_who_is_late_is_told_whether_its_batch_had_begun_and_the_next_call_works(
    tmp_path: Path,
) -> None:
    may_go_on = threading.Event()

    async def blocks(_session: Session, arguments: Sequence[None]) -> list[StoreError | None]:
        may_go_on.wait(20)
        return [None] * len(arguments)

    async with opened(tmp_path) as store:
        app = await store.create_app(new_app())
        try:
            with pytest.raises(StoreUnavailable, match=r"within 0\.2.* s; whether .* not known"):
                await store._writer.execute(Operation("blocks", blocks), None, within_s=0.2)
            with pytest.raises(StoreUnavailable, match=r"within 0\.2.* s; nothing was written"):
                await store.create_tasks([new_task(app, "late")], within_s=0.2)
            store.end_by(trio.current_time() + 0.3)
            with pytest.raises(StoreUnavailable, match=r"nothing was written"):
                await store.create_tasks([new_task(app, "late")], within_s=60)
        finally:
            may_go_on.set()
        await store.probe()
        assert await store.task_detail(app.id, task_no="late") is None
        assert await store.create_tasks([new_task(app, "late")])

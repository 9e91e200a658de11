"""A disk that is full or broken: refused without a trace, and over by itself."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from taskd.domain.model import App
from taskd.errors import StoreUnavailable
from taskd.ports.store import Store
from taskd.stores.sqlite.store import SQLiteStore
from tests.support.stores import detail, lease_one, new_app, new_task, succeeded

_BIG = b'"' + b"x" * 100_000 + b'"'
_SMALL = b'"' + b"x" * 1_000 + b'"'
_REFUSALS = 4


@contextmanager
def no_file_grows_past(size: int) -> Iterator[Callable[[], None]]:
    """Writes past this size fail with EFBIG, as an I/O error of the disk would,
    until what is yielded is called."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def lift() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield lift
    finally:
        lift()


async def fill_up(store: Store, app: App) -> dict[str, int]:
    """Create until nothing fits any more: first big tasks, then small ones. The
    taskNos that were acknowledged, with their ids."""
    made: dict[str, int] = {}
    number = 0
    for content in (_BIG, _SMALL):
        refusals = 0
        # A refusal may make room, when the log is written back to the file.
        while refusals < _REFUSALS:
            number += 1
            try:
                made[f"fill-{number}"] = await store.create_task(
                    new_task(app, f"fill-{number}", content=content)
                )
                refusals = 0
            except StoreUnavailable:
                refusals += 1
                assert await store.task_detail(app.id, task_no=f"fill-{number}") is None
    return made


async def check_full_and_free_again(store: Store, app: App, free: Callable[[], None]) -> None:
    before = await store.create_task(new_task(app, "before"))
    leased = await lease_one(store, before)
    made = await fill_up(store, app)
    with pytest.raises(StoreUnavailable) as refused:
        await store.probe()
    assert "\n" not in str(refused.value)
    # Reading goes on.
    assert (await detail(store, app, before)).state == "running"
    free()
    await store.probe()
    after = await store.create_task(new_task(app, "after", content=_BIG))
    assert after > max([0, *made.values()])
    assert await store.settle(succeeded(leased)) == "succeeded"
    for task_no, task_id in made.items():
        assert (await detail(store, app, task_id)).task_no == task_no


async def test_an_io_error_refuses_and_passes(tmp_path: Path) -> None:
    store = await SQLiteStore.open(tmp_path / "taskd.db")
    app = await store.create_app(new_app())
    with no_file_grows_past(1_000_000) as lift:
        await check_full_and_free_again(store, app, lift)
    await store.aclose()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m,mode=0700", "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a small file system needs root: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


async def test_a_full_disk_refuses_and_passes(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(os.urandom(1_000_000))
    store = await SQLiteStore.open(small_disk / "taskd.db")
    app = await store.create_app(new_app())
    await check_full_and_free_again(store, app, ballast.unlink)
    await store.aclose()


async def test_callers_at_once_on_a_full_disk_are_all_told(small_disk: Path) -> None:
    """Of a batch that did not fit, everyone is refused, and nobody is kept."""

    store = await SQLiteStore.open(small_disk / "taskd.db")
    app = await store.create_app(new_app())
    kept: dict[str, int] = {}
    refused: list[str] = []

    async def create(task_no: str) -> None:
        try:
            kept[task_no] = await store.create_task(new_task(app, task_no, content=_BIG))
        except StoreUnavailable:
            refused.append(task_no)

    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(create, f"no-{number}")
    assert len(kept) + len(refused) == 100
    assert refused
    for task_no in refused:
        assert await store.task_detail(app.id, task_no=task_no) is None
    for task_no, task_id in kept.items():
        assert (await detail(store, app, task_id)).task_no == task_no
    await store.aclose()

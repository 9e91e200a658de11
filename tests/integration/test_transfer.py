"""Applications and unfinished tasks out of one store and into another."""

from __future__ import annotations

import dataclasses
import json
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from taskd.client import Client
from taskd.daemon.transfer import Counts, TransferError, export, import_lines
from taskd.domain.model import StoredTask, SuccessRule, TaskState
from taskd.errors import TransferClash
from taskd.stores.sqlite.store import SQLiteStore
from tests.support.commands import invoke
from tests.support.daemon import Daemon
from tests.support.receiver import Receiver
from tests.support.stores import T0, lease_one, new_app, new_task, retrying, succeeded

_HARD = ["no-1", "单号 二", "no-1 ", "NO-1", "é", "e\u0301", "\U0001f600", "a\tb", "'\"\\"]


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SQLiteStore]:
    """The store of this file; closed at the end."""
    store = await SQLiteStore.open(path)
    try:
        yield store
    finally:
        await store.aclose()


async def lines_of(path: Path) -> list[str]:
    async with opened(path) as store:
        return [line async for line in export(store.archive(), now=T0)]


async def put(path: Path, lines: list[str]) -> Counts:
    async with opened(path) as store:
        return await import_lines(store.archive(), lines)


async def fill(store: SQLiteStore) -> None:
    """Two apps; tasks that wait, were tried, and are over."""
    app = await store.create_app(new_app("key-1"))
    other = await store.create_app(new_app("key-2", success=SuccessRule.STATUS))
    for number, task_no in enumerate(_HARD):
        task = new_task(app, task_no, due_at=T0 + 1_000 * number, content=b'{"a":"\xc3\xa9"}')
        await store.create_task(task)
    big = b'"' + b"x" * 1_000_000 + b'"'
    await store.create_task(new_task(other, "big", content=big))
    tried = await store.create_task(new_task(other, "tried"))
    lease = await lease_one(store, tried)
    await store.settle(retrying(lease, due_at=T0 + 7_777))
    over = await store.create_task(new_task(other, "over"))
    await store.settle(succeeded(await lease_one(store, over)))


@pytest.fixture
@asynccontextmanager
async def filled(tmp_path: Path) -> AsyncIterator[Path]:
    path = tmp_path / "from.db"
    async with opened(path) as store:
        await fill(store)
    yield path  # noqa: PT022 - an async context manager has to


async def test_what_comes_in_is_what_went_out(filled: Path, tmp_path: Path) -> None:
    lines = await lines_of(filled)
    target = tmp_path / "to.db"
    assert await put(target, lines) == Counts(apps=2, tasks=len(_HARD) + 2)
    assert await lines_of(target) == lines
    header = json.loads(lines[0])
    assert header["highestTaskId"] == len(_HARD) + 3


async def test_ids_that_were_ever_given_are_not_given_again(filled: Path, tmp_path: Path) -> None:
    target = tmp_path / "to.db"
    lines = await lines_of(filled)
    await put(target, lines)

    async with opened(target) as store:
        app = await store.app_by_key("key-1")
        assert app is not None
        assert (
            await store.create_task(new_task(app, "new"))
            == json.loads(lines[0])["highestTaskId"] + 1
        )


async def test_an_import_may_be_run_again_also_when_tasks_have_gone_on(
    filled: Path, tmp_path: Path
) -> None:
    target = tmp_path / "to.db"
    lines = await lines_of(filled)
    with pytest.raises(TransferError, match="was cut"):
        await put(target, lines[:-3])
    await put(target, lines)

    async with opened(target) as store:
        await store.settle(succeeded(await lease_one(store, 1)))
    await put(target, lines)
    async with opened(target) as store:
        detail = await store.task_detail(1, task_id=1)
        assert detail is not None
        assert detail.state is TaskState.SUCCEEDED


@pytest.mark.parametrize(
    ("line", "text", "told"),
    [
        (0, "", "line 1: is not JSON"),
        (0, "[]", "line 1: is no JSON object"),
        (0, '{"format":"other"}', "line 1: this is no export of taskd's"),
        (0, '{"format":"taskd-export","version":3}', "line 1: version 3 of the format"),
        (1, '{"app":{}}', "line 2: id must be an integer"),
        (1, '{"app":1}', "line 2: id must be an integer"),
        (2, '{"thing":{}}', "line 3: is neither"),
        (3, '{"task":{"content":1}}', "line 4: content must be a string"),
        (3, '{"task":{"content":"1","attempts":[],"id":true}}', "line 4: id must be an integer"),
        (-1, '{"apps":2,"tasks":1}', "counts 2 applications and 1 tasks, but 2 and 11"),
        (-1, '{"apps":2,"tasks":-1}', "tasks must be an integer"),
    ],
)
async def test_a_line_that_is_wrong_is_named(
    filled: Path, tmp_path: Path, line: int, text: str, told: str
) -> None:
    lines = await lines_of(filled)
    lines[line] = text
    with pytest.raises(TransferError, match=told):
        await put(tmp_path / "to.db", lines)


async def test_what_comes_after_the_last_line_is_refused(filled: Path, tmp_path: Path) -> None:
    with pytest.raises(TransferError, match="comes after the last one"):
        await put(tmp_path / "to.db", [*await lines_of(filled), "{}"])


async def test_every_field_of_a_task_is_held_to_its_rule(filled: Path, tmp_path: Path) -> None:
    lines = await lines_of(filled)
    whole = json.loads(next(line for line in lines if '"tried"' in line))["task"]
    for name in {field.name for field in dataclasses.fields(StoredTask)} - {"step", "retry_total"}:
        broken = whole | {name: [None]}
        bad = [*lines[:3], json.dumps({"task": broken}), *lines[4:]]
        with pytest.raises(TransferError, match="line 4: "):
            await put(tmp_path / f"{name}.db", bad)


async def test_an_export_of_version_1_has_applications_whose_body_counts(
    filled: Path, tmp_path: Path
) -> None:
    lines = [line.replace(', "success": "status"', "") for line in await lines_of(filled)]
    lines = [line.replace(', "success": "body"', "") for line in lines]
    assert '"success"' not in "".join(lines)
    lines[0] = lines[0].replace('"version": 2', '"version": 1')
    await put(tmp_path / "to.db", lines)
    _, *apps = (await lines_of(tmp_path / "to.db"))[:3]
    assert [json.loads(line)["app"]["success"] for line in apps] == ["body", "body"]


@pytest.mark.parametrize("word", ["Status", "", None, 1, ["body"]])
async def test_a_rule_of_success_that_is_none_is_refused(
    filled: Path, tmp_path: Path, word: object
) -> None:
    lines = await lines_of(filled)
    app = json.loads(lines[1])["app"] | {"success": word}
    with pytest.raises(TransferError, match="line 2: success has an unknown value"):
        await put(tmp_path / "to.db", [lines[0], json.dumps({"app": app}), *lines[2:]])


async def test_another_applications_row_is_never_overwritten(filled: Path, tmp_path: Path) -> None:
    target = tmp_path / "to.db"

    async with opened(target) as store:
        await store.create_app(new_app("key-of-another"))
    with pytest.raises(TransferError, match="from line 2 on: there is another application"):
        await put(target, await lines_of(filled))
    assert [json.loads(line) for line in await lines_of(target)][-1] == {"apps": 1, "tasks": 0}


async def test_another_task_is_never_overwritten_and_an_orphan_not_taken(filled: Path) -> None:
    async with opened(filled) as store:
        archive = store.archive()
        first, second = await archive.tasks_after(0, limit=2)
        for clash in (
            dataclasses.replace(first, task_no="another"),
            dataclasses.replace(first, id=1_000),
            dataclasses.replace(first, id=1_000, app_id=99),
        ):
            new = dataclasses.replace(second, id=2_000, task_no="new")
            with pytest.raises(TransferClash):
                await archive.put_tasks([new, clash])
            assert await archive.tasks_after(1_999, limit=1) == []


def test_a_store_that_a_daemon_holds_is_not_exported(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        said = invoke("export", "out.ndjson", "--config", str(daemon.config_path))
    assert said.exit_code == 1
    assert f"in use by another taskd, process {daemon.pid}" in said.stderr
    assert not Path("out.ndjson").exists()


def test_tasks_go_on_in_another_store_under_their_numbers(tmp_path: Path) -> None:
    """Out of one daemon, into the next, which delivers, cancels and knows them; a
    lease that a killed daemon left behind is an abandoned attempt."""
    homes = [tmp_path / "a", tmp_path / "b"]
    for home in homes:
        home.mkdir()
    first, second = (Daemon(home) for home in homes)
    with Receiver() as receiver:
        first.start()
        keys = first.create_keys(receiver.url)
        with Client(first.url, *keys) as client:
            later = client.create_task(
                task_no="later", name="n", content='{"n":1}', timeout=5_000, runtime=4_102_444_800
            )["coroutine_id"]
            soon = client.create_task(
                task_no="soon", name="n", content='{"n":2}', timeout=5_000, runtime=4_102_444_801
            )["coroutine_id"]
        first.kill()
        path = tmp_path / "tasks.ndjson"
        said = invoke("export", str(path), "--config", str(first.config_path))
        assert said.exit_code == 0, said.stderr
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert keys[1] in path.read_text()
        assert invoke("export", str(path), "--config", str(first.config_path)).exit_code == 1
        path.write_text(path.read_text().replace("4102444801000", "1700000000000"))
        said = invoke("import", str(path), "--json", "--config", str(second.config_path))
        assert json.loads(said.stdout) == {"applications": 1, "tasks": 2}
        with second, Client(second.url, *keys) as client:
            (delivery,) = receiver.wait_for(lambda ledger: len(ledger) == 1)
            assert delivery.task_id == soon
            assert client.cancel(later)["delivery"] == "never_sent"

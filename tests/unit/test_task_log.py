"""What the log says of tasks and applications: named alike, at the levels that are promised."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest
import trio

from taskd.delivery.progress import Progress
from taskd.delivery.verdict import AttemptResult
from taskd.domain.model import (
    App,
    CancelCertainty,
    LeasedTask,
    NewTask,
    Outcome,
    ReapedTask,
    Settlement,
    TaskState,
)
from taskd.engine.leases import reclaim
from taskd.errors import DuplicateTaskNo, StoreUnavailable
from taskd.runtime.logs import TextFormatter
from taskd.runtime.logs.task_log import LINES, STRANGERS_LINES, STRANGERS_PERIOD_S, TaskLog
from taskd.service.service import NewApp
from taskd.stores.memory import MemoryStore
from tests.support.node import REJECTED, SUCCESS, Node
from tests.support.stores import new_app
from tests.support.stores import new_task as plain_task

NAME = 'the "帅" shop\x1b[2J\n'
HOSTILE_NO = "order 1\u2028x=y"


@pytest.fixture(autouse=True)
def at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="taskd")


def said(caplog: pytest.LogCaptureFixture, message: str) -> list[dict[str, Any]]:
    """The fields of each line with this message, and its level."""
    return [
        {"level": record.levelname, **vars(record)["fields"]}
        for record in caplog.records
        if record.getMessage() == message
    ]


async def shop(node: Node) -> App:
    new = NewApp(
        name=NAME,
        link_url="http://127.0.0.1:9000/in/5ecret?token=5ecret",
        step=0,
        retry_total=1,
        remark="",
        success=(await node.app()).success,
    )
    return await node.service.create_app(new, None)


def new_task(node: Node, app: App, task_no: str, *, in_ms: int = 0) -> NewTask:
    now = node.clock.now_ms()
    return NewTask(
        app_id=app.id,
        task_no=task_no,
        name="a task",
        content=b"1",
        timeout_ms=1000,
        due_at=now + in_ms,
        created_at=now,
    )


def named(app: App, task_id: int, task_no: str) -> dict[str, object]:
    return {"task": task_id, "task_no": task_no, "app": app.app_key, "app_name": app.name}


@pytest.mark.virtual_clock
async def test_an_application_is_told_of_without_its_secrets(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = await shop(Node())
    line = said(caplog, "application created")[-1]
    assert line == {
        "level": "INFO",
        "app": app.app_key,
        "app_name": NAME,
        "origin": "http://127.0.0.1:9000",
        "step": 0,
        "retry_total": 1,
        "signed": False,
    }
    assert "5ecret" not in str([vars(record) for record in caplog.records])


@pytest.mark.virtual_clock
async def test_creates_and_cancels_are_told_once_they_are_done(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = Node()
    app = await shop(node)
    async with node.running():
        at_once = new_task(node, app, "at once")
        later = new_task(node, app, HOSTILE_NO, in_ms=60_000)
        ids = [await node.service.submit(app, task, None) for task in (at_once, later)]
        with pytest.raises(DuplicateTaskNo):
            await node.service.submit(app, later, None)
        lines = said(caplog, "task created")
        assert {"level": "INFO", **named(app, ids[0], "at once")}.items() <= lines[0].items()
        assert lines[1] == {
            "level": "INFO",
            **named(app, ids[1], HOSTILE_NO),
            "due": "2023-11-14T22:14:20.000Z",
        }
        assert len(lines) == 2
        for _ in range(2):
            await node.service.cancel(app, task_no=HOSTILE_NO)
        (line,) = said(caplog, "task cancelled")
        told = {"level": "INFO", **named(app, ids[1], HOSTILE_NO), "delivery": "never_sent"}
        assert line == told


@pytest.mark.virtual_clock
async def test_a_batch_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    node = Node()
    app = await shop(node)
    async with node.running():
        tasks = [new_task(node, app, f"no-{number}", in_ms=9_000) for number in range(100)]
        await node.service.submit_batch(app, tasks[:3], None, atomic=False)
        given = await node.service.submit_batch(app, tasks, None, atomic=False)
        await node.service.submit_batch(app, tasks, None, atomic=False)
        first, second = said(caplog, "tasks created")
        assert (first["number"], first["there_already"]) == (3, 0)
        assert second == {
            "level": "INFO",
            "app": app.app_key,
            "app_name": NAME,
            "number": 97,
            "first": given[3],
            "last": given[99],
            "there_already": 3,
        }
        assert said(caplog, "task created") == []


def test_beyond_so_many_lines_a_second_the_rest_is_counted_by_application(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [0.0]
    log = TaskLog(lambda: now[0])
    apps = [
        dataclasses.replace(new_app(f"key-{number}"), id=number, name=f"app-{number}")
        for number in range(2)
    ]
    for number in range(LINES + 70):
        app = apps[number % 2]
        log.created(app, plain_task(app, f"no-{number}"), number)
    assert len(said(caplog, "task created")) == LINES
    log.batch_created(apps[0], [9_000, 9_001])
    log.cancelled(apps[1], 3, "no-3", CancelCertainty.NEVER_SENT)
    log.app_created(apps[0], signed=False)
    assert said(caplog, "tasks created") == []
    log.settle()  # the second is not over
    assert said(caplog, "tasks created") == []
    now[0] = 1.0
    log.settle()
    one, two = said(caplog, "tasks created")
    assert one == {
        "level": "INFO",
        "app": "key-0",
        "app_name": "app-0",
        "number": 37,
        "first": LINES,
        "last": 9_001,
    }
    assert (two["number"], two["first"], two["last"]) == (35, LINES + 1, LINES + 69)
    (cancelled,) = said(caplog, "tasks cancelled")
    assert (cancelled["app"], cancelled["number"]) == ("key-1", 1)
    (created,) = said(caplog, "applications created")
    assert created["number"] == 1
    # A line of its own again, in the next second, and nothing is told twice.
    log.created(apps[0], plain_task(apps[0], "next"), 1)
    log.settle(all_of_them=True)
    assert said(caplog, "task created")[-1]["task_no"] == "next"
    assert len(said(caplog, "tasks created")) == 2


def test_strangers_have_few_lines_and_take_none_of_those_who_sign(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [0.0]
    log = TaskLog(lambda: now[0])
    for _ in range(LINES + STRANGERS_LINES):
        log.app_created(new_app("strangers"), signed=False)
    assert len(said(caplog, "application created")) == STRANGERS_LINES
    log.app_created(new_app("signed"), signed=True)
    assert said(caplog, "application created")[-1]["app"] == "signed"
    now[0] = 1.0
    log.settle()
    log.app_created(new_app("strangers"), signed=False)
    log.settle(all_of_them=True)
    assert [line["number"] for line in said(caplog, "applications created")] == [LINES, 1]
    now[0] = STRANGERS_PERIOD_S
    log.app_created(new_app("strangers"), signed=False)
    assert len(said(caplog, "application created")) == STRANGERS_LINES + 2


def test_what_was_counted_is_told_at_the_latest_at_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = TaskLog(lambda: 7.5)
    app = new_app()
    for number in range(LINES + 3):
        log.created(app, plain_task(app, f"no-{number}"), number)
    log.settle(all_of_them=True)
    (line,) = said(caplog, "tasks created")
    assert line["number"] == 3


@pytest.mark.virtual_clock
async def test_what_fails_for_good_is_a_warning_that_says_what_of_whom_and_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def script(task: LeasedTask, progress: Progress) -> AttemptResult:
        await trio.lowlevel.checkpoint()
        if task.task_no == "well":
            return SUCCESS
        error = "no connection to http://127.0.0.1:9000/in?token=5ecret"
        return AttemptResult(outcome=Outcome.UNREACHABLE, error=error)

    node = Node()
    node.delivery.script = script
    app = await shop(node)
    async with node.running():
        well, ill = [
            await node.service.submit(app, new_task(node, app, task_no), None)
            for task_no in ("well", "ill")
        ]
        for task_id in (well, ill):
            await node.ended(app, task_id)
    (line,) = said(caplog, "task failed")
    assert line == {
        "level": "WARNING",
        **named(app, ill, "ill"),
        "attempts": 2,
        "error": "no connection to http://127.0.0.1:9000/in?…",
    }
    attempts = said(caplog, "attempt")
    assert sorted(line["task_no"] for line in attempts) == ["ill", "ill", "well"]
    assert {line["app_name"] for line in attempts} == {NAME}
    assert {line["level"] for line in attempts} == {"INFO"}


@pytest.mark.virtual_clock
async def test_what_was_abandoned_is_named_too(caplog: pytest.LogCaptureFixture) -> None:
    node = Node()
    app = await shop(node)
    task_id = await node.service.submit(app, new_task(node, app, "lost"), None)
    await node.store.lease(
        [task_id], node="gone", now=node.clock.now_ms(), expires_at=node.clock.now_ms() + 1
    )
    async with node.running():
        await node.ended(app, task_id)
    (line,) = said(caplog, "an attempt was abandoned by its node")
    assert line == {
        "level": "WARNING",
        **named(app, task_id, "lost"),
        "attempt": 1,
        "node": "gone",
        "state": "retrying",
    }


@pytest.mark.virtual_clock
async def test_what_was_abandoned_for_good_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    class GivesUp(MemoryStore):
        async def reap(self, **how: Any) -> list[ReapedTask]:  # noqa: ANN401 - as the store takes it
            reaped = await super().reap(**how)
            return [dataclasses.replace(task, state=TaskState.FAILED) for task in reaped]

    node = Node(store=GivesUp())
    app = await shop(node)
    now = node.clock.now_ms()
    task_id = await node.service.submit(app, new_task(node, app, "lost"), None)
    await node.store.lease([task_id], node="gone", now=now, expires_at=now + 1)
    assert await reclaim(node.store, now=now + 1) == 1
    (line,) = said(caplog, "task failed")
    assert line == {
        "level": "WARNING",
        **named(app, task_id, "lost"),
        "attempts": 1,
        "error": "its node gone was lost",
    }


class SlowStore(MemoryStore):
    """Fails to settle once."""

    def __init__(self) -> None:
        super().__init__()
        self.failed = False

    async def settle(self, settlement: Settlement, *, within_s: float | None = None) -> TaskState:
        if not self.failed:
            self.failed = True
            await trio.lowlevel.checkpoint()
            raise StoreUnavailable("the disk is full")
        return await super().settle(settlement, within_s=within_s)


@pytest.mark.virtual_clock
async def test_what_goes_wrong_with_a_task_names_it(caplog: pytest.LogCaptureFixture) -> None:
    async def script(task: LeasedTask, progress: Progress) -> AttemptResult:
        await trio.lowlevel.checkpoint()
        if task.attempt == 1:
            raise ZeroDivisionError
        return REJECTED

    node = Node(store=SlowStore())
    node.delivery.script = script
    app = await shop(node)
    async with node.running():
        task_id = await node.service.submit(app, new_task(node, app, "no-1"), None)
        await node.ended(app, task_id)
    expected = named(app, task_id, "no-1").items()
    for message in (
        "an attempt failed within",
        "an attempt's end could not be kept, it is tried again",
    ):
        (line,) = said(caplog, message)
        assert line["level"] == "ERROR"
        assert expected <= line.items()


@pytest.mark.virtual_clock
async def test_no_name_can_forge_a_line(caplog: pytest.LogCaptureFixture) -> None:
    node = Node()
    app = dataclasses.replace(await shop(node), name="a\nb\u202e\x9b")
    await node.service.submit(app, new_task(node, app, HOSTILE_NO), None)
    (record,) = [r for r in caplog.records if r.getMessage() == "task created"]
    line = TextFormatter().format(record)
    assert not {"\n", "\x9b", "\u2028", "\u202e"} & set(line)

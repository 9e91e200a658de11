"""A look into a running coroutine."""

from __future__ import annotations

from types import CoroutineType
from typing import cast

import pytest
import trio

from taskd.delivery.attempt import AttemptResult
from taskd.delivery.progress import Progress
from taskd.domain.model import Inspection, LeasedTask, Phase
from taskd.engine.inspection import VISIBLE_VARIABLES, visible_variables
from tests.support.node import SUCCESS, Node


async def look(node: Node, task_id: int) -> Inspection | None:
    app = await node.store.app_by_id(1)
    assert app is not None
    view = await node.service.detail(app, task_id=task_id)
    assert view is not None
    return view.inspection


@pytest.mark.virtual_clock
async def test_a_running_task_shows_its_frames_rounds_phase_and_time() -> None:
    node = Node()
    app = await node.app()
    reached = trio.Event()

    async def script(task: LeasedTask, progress: Progress) -> AttemptResult:
        progress.enter(Phase.SENDING)
        progress.enter(Phase.AWAITING_RESPONSE)
        reached.set()
        for _ in range(100):
            await trio.sleep(1)
        return SUCCESS

    node.delivery.script = script
    async with node.running():
        task_id = await node.submit(app)
        await reached.wait()
        first = await look(node, task_id)
        await trio.sleep(10)
        second = await look(node, task_id)
        assert first is not None
        assert second is not None
        assert first.phase is Phase.AWAITING_RESPONSE
        assert second.rounds >= first.rounds + 9
        assert 9_900 <= second.elapsed_ms - first.elapsed_ms <= 10_100
        assert second.node == "node-1"
        functions = [frame.function for frame in second.frames]
        assert functions.index("script") < functions.index("run")
        assert second.executed.file == "taskd/engine/execution.py"
        assert all(not frame.file.startswith("/") for frame in second.frames)
        assert {frame.file.split("/")[0] for frame in second.frames} == {
            "taskd",
            "tests",
            "trio",
        }
        await node.ended(app, task_id)
        assert await look(node, task_id) is None


def test_only_allow_listed_scalars_are_shown() -> None:
    async def suspended() -> None:
        secret_key = "never shown"
        headers = {"signature": "never shown"}
        attempt = 3
        host = "127.0.0.1"
        sent_bytes = b"x" * 5
        status = {"a": "container"}
        phase = Phase.READING
        await trio.lowlevel.checkpoint()
        del secret_key, headers, attempt, host, sent_bytes, status, phase

    coroutine = cast("CoroutineType[object, None, None]", suspended())
    coroutine.send(None)
    frame = coroutine.cr_frame
    assert frame is not None
    assert visible_variables(frame) == {
        "attempt": 3,
        "host": "127.0.0.1",
        "sent_bytes": 5,
        "phase": "reading",
    }
    coroutine.close()


def test_no_allow_listed_name_speaks_of_a_secret() -> None:
    for name in VISIBLE_VARIABLES:
        for word in ("secret", "key", "nonce", "signature", "header", "content", "body", "payload"):
            assert word not in name


@pytest.mark.virtual_clock
async def test_looking_does_not_disturb_the_coroutine() -> None:
    node = Node()
    app = await node.app()

    async def script(task: LeasedTask, progress: Progress) -> AttemptResult:
        await trio.sleep(5)
        return SUCCESS

    node.delivery.script = script
    async with node.running():
        task_id = await node.submit(app)
        while task_id not in node.registry:
            await trio.sleep(0.01)
        rounds = []
        for _ in range(50):
            inspection = await look(node, task_id)
            assert inspection is not None
            rounds.append(inspection.rounds)
            await trio.sleep(0.02)
        assert len(set(rounds[1:])) == 1
        await node.ended(app, task_id)

"""What the demo tells: seven tasks, each with what was promised of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from taskd.cli.demo_receiver import Receiver
from taskd.client import Client
from taskd.clock import Clock, iso_utc
from taskd.errors import RequestRefused

_WITHIN_S = 10.0
_POLL_S = 0.05
_ENDED = frozenset({"succeeded", "failed", "cancelled"})

STEP_S = 1
_STEP_MS = STEP_S * 1000
_RETRIED_ENDINGS = ("was refused", "was refused", "answered success")

Tell = Callable[[str], None]


class NotAsPromised(Exception):
    """A story did not go as the protocol promises; the message says how."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What a story plays on."""

    client: Callable[[], Client]
    receiver: Receiver
    clock: Clock
    pause: threading.Event
    """Never set; waited on instead of sleeping."""


@dataclass(frozen=True, slots=True)
class Story:
    """One task's story: its title, and what plays it and returns how it ended."""

    title: str
    play: Callable[[Stage, Tell], str]


def _submit(client: Client, task_no: str, **fields: Any) -> int:  # noqa: ANN401 - as create_task
    options: dict[str, Any] = {"timeout": 10_000, **fields}
    data = client.create_task(task_no=task_no, name="demo", content='{"demo":true}', **options)
    return int(data["coroutine_id"])


def _task(client: Client, coroutine_id: int) -> dict[str, Any]:
    task: dict[str, Any] = client.detail(coroutine_id=coroutine_id)["task"]
    return task


def _ended(stage: Stage, client: Client, coroutine_id: int) -> dict[str, Any]:
    deadline = stage.clock.now_ms() + _WITHIN_S * 1000
    while (task := _task(client, coroutine_id))["state"] not in _ENDED:
        if stage.clock.now_ms() > deadline:
            raise NotAsPromised(f"it is still {task['state']} after {_WITHIN_S:g} s")
        stage.pause.wait(_POLL_S)
    return task


def _expect(what: str, found: object, promised: object) -> None:
    if found != promised:
        raise NotAsPromised(f"{what}: {found}, promised {promised}")


def _outcomes(task: dict[str, Any]) -> list[str]:
    return [attempt["outcome"] for attempt in task["attempts"]]


def _immediate(stage: Stage, tell: Tell) -> str:
    with stage.client() as client:
        began = stage.clock.now_ms()
        coroutine_id = _submit(client, "now-1")
        tell(f"submitted, coroutine_id {coroutine_id}")
        arrivals = stage.receiver.wait_for("now-1", 1, _WITHIN_S)
        if not arrivals:
            raise NotAsPromised("it was not delivered")
        took = arrivals[0].at_ms - began
        tell(f"delivered {took} ms after it was sent to the API")
        _expect("state", _ended(stage, client, coroutine_id)["state"], "succeeded")
        return f"delivered within {took} ms"


def _due(stage: Stage, tell: Tell) -> str:
    with stage.client() as client:
        due = stage.clock.now_ms() + 2_000
        _submit(client, "due-1", runtime=iso_utc(due))
        tell("submitted, due in 2 s")
        arrivals = stage.receiver.wait_for("due-1", 1, _WITHIN_S)
        if not arrivals:
            raise NotAsPromised("it was not delivered")
        late = arrivals[0].at_ms - due
        if late < 0:
            raise NotAsPromised(f"it came {-late} ms before its time")
        tell(f"delivered {late} ms after its time")
        return f"{late} ms late, never early"


def _retried(stage: Stage, tell: Tell) -> str:
    with stage.client() as client:
        coroutine_id = _submit(client, "fails-1")
        for number, ending in enumerate(_RETRIED_ENDINGS, 1):
            if len(stage.receiver.wait_for("fails-1", number, _WITHIN_S)) < number:
                raise NotAsPromised(f"attempt {number} was not made")
            tell(f"attempt {number} {ending}")
        task = _ended(stage, client, coroutine_id)
        _expect("outcomes", _outcomes(task), ["rejected", "rejected", "succeeded"])
        first, second, third = (arrival.at_ms for arrival in stage.receiver.arrivals("fails-1"))
        waits = f"{(second - first) / 1000:.2f} s and {(third - second) / 1000:.2f} s"
        if second - first < _STEP_MS or third - second < 2 * _STEP_MS:
            raise NotAsPromised(f"the waits were {waits}, promised 1 s and 2 s")
        return f"3 attempts, {waits} apart"


def _timed_out(stage: Stage, tell: Tell) -> str:
    with stage.client() as client:
        coroutine_id = _submit(client, "hangs-timeout", timeout=1_000, retry_total=0)
        tell("submitted with a timeout of 1,000 ms to a receiver that hangs")
        task = _ended(stage, client, coroutine_id)
        _expect("state", task["state"], "failed")
        _expect("outcomes", _outcomes(task), ["timed_out"])
        tell(f"ended: {task['attempts'][0]['error']}")
        return "stopped at its 1,000 ms"


def _cancelled_waiting(stage: Stage, tell: Tell) -> str:
    with stage.client() as client:
        due = stage.clock.now_ms() + 3_000
        coroutine_id = _submit(client, "waits-1", runtime=iso_utc(due))
        tell("submitted, due in 3 s; cancelling it")
        word = client.cancel(coroutine_id)["delivery"]
        tell(f"cancelled: {word}")
        _expect("delivery", word, "never_sent")
        while stage.clock.now_ms() < due + 500:
            stage.pause.wait(_POLL_S)
        _expect("deliveries", len(stage.receiver.arrivals("waits-1")), 0)
        return f"{word}, and nothing came at its time"


def _cancelled_in_flight(stage: Stage, tell: Tell) -> str:
    with stage.client() as client:
        coroutine_id = _submit(client, "hangs-cancel")
        if not stage.receiver.wait_for("hangs-cancel", 1, _WITHIN_S):
            raise NotAsPromised("it was not delivered")
        tell("the receiver has it and hangs; cancelling it")
        began = stage.clock.now_ms()
        word = client.cancel(coroutine_id)["delivery"]
        took = stage.clock.now_ms() - began
        tell(f"cancelled within {took} ms: {word}")
        _expect("delivery", word, "aborted_before_response")
        _expect("state", _task(client, coroutine_id)["state"], "cancelled")
        try:
            client.cancel(coroutine_id)
        except RequestRefused as error:
            _expect("a second cancel", str(error), "Unknown!")
        else:
            raise NotAsPromised("a second cancel was not refused")
        return f"{word}, within {took} ms"


def _inspected(stage: Stage, tell: Tell) -> str:
    with stage.client() as client:
        coroutine_id = _submit(client, "hangs-look")
        if not stage.receiver.wait_for("hangs-look", 1, _WITHIN_S):
            raise NotAsPromised("it was not delivered")
        deadline = stage.clock.now_ms() + _WITHIN_S * 1000
        while (detail := client.detail(coroutine_id=coroutine_id))["task"].get(
            "phase"
        ) != "awaiting_response":
            if stage.clock.now_ms() > deadline:
                raise NotAsPromised("it was never seen awaiting its response")
            stage.pause.wait(_POLL_S)
        frames = json.loads(detail["trace_list"])
        own = [frame for frame in frames if frame["file"].startswith("taskd/")]
        if not own:
            raise NotAsPromised("its stack shows no frame of taskd")
        tell(f"awaiting its response, {detail['round']} rounds, {detail['elapsed']} ms; its stack:")
        for frame in frames:
            tell(f"    {frame['file']}:{frame['line']} {frame['function']}")
        _expect("state", _ended(stage, client, coroutine_id)["state"], "succeeded")
        return f"awaiting_response at {own[0]['file']}:{own[0]['line']}"


STORIES = (
    Story("delivered at once", _immediate),
    Story("due in 2 s", _due),
    Story("fails twice, then succeeds", _retried),
    Story("hits its timeout", _timed_out),
    Story("cancelled while waiting", _cancelled_waiting),
    Story("cancelled in flight", _cancelled_in_flight),
    Story("looked into live", _inspected),
)

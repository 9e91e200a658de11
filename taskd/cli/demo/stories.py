"""The demo's stories: each does one thing with a task and checks the promise."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from taskd.cli.demo.receiver import Receiver
from taskd.cli.follow import TERMINAL
from taskd.cli.task_text import live_frames
from taskd.client import Client
from taskd.clock import Clock

PATIENCE_S = 15.0
STEP_S = 1

_POLL_S = 0.05
_TIMEOUT_MS = 800
_SLACK_MS = 1000
_DELAY_MS = 2000
_FAR_MS = 60_000
_OURS = "taskd/"
_SHOWN = 3
"""How many frames of a coroutine are shown without ``--verbose``."""


class Broken(Exception):
    """A promise was not kept; the message says what was seen."""


class Tell(Protocol):
    """Shows news of a story: see `Display.tell`."""

    def __call__(self, text: str, *, lasting: bool = False) -> None:
        """Show it."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """All that a story needs to be played."""

    key: str
    client: Client
    receiver: Receiver
    clock: Clock
    tell: Tell
    verbose: bool = False
    """Whether all frames of a coroutine are shown."""

    def submit(
        self, *, due_ms: int | None = None, retry_total: int | None = None, **behaviour: object
    ) -> int:
        """Submit the story's task. The receiver reads ``behaviour`` in its content."""
        data = self.client.create_task(
            task_no=f"demo-{self.key}",
            name=self.key.replace("-", " "),
            content={"story": self.key, **behaviour},
            timeout_ms=_TIMEOUT_MS if self.key == "timeout" else 10_000,
            runtime=None if due_ms is None else due_ms / 1000,
            retry_total=retry_total,
        )
        task_id: int = data["coroutine_id"]
        self.tell(f"submitted as task {task_id}")
        return task_id

    def end_of(self, task_id: int) -> dict[str, Any]:
        """Wait for the end of a task, telling its attempts on the way; returns the task."""
        deadline = time.monotonic() + PATIENCE_S
        told = 0
        while time.monotonic() < deadline:
            task: dict[str, Any] = self.client.detail(coroutine_id=task_id)["task"]
            for attempt in task["attempts"][told:]:
                status = "" if attempt["httpStatus"] is None else f" (HTTP {attempt['httpStatus']})"
                self.tell(f"attempt {attempt['attempt']}: {attempt['outcome']}{status}")
            told = len(task["attempts"])
            if task["state"] in TERMINAL:
                return task
            time.sleep(_POLL_S)  # noqa: TID251 - a synchronous client can only ask again
        raise Broken(f"task {task_id} had not ended after {PATIENCE_S:g} s")

    def called(self) -> int:
        """When the receiver got the story's first callback, in milliseconds."""
        call = self.receiver.wait_for_call(self.key, PATIENCE_S)
        if call is None:
            raise Broken("the receiver was never called")
        if call.problem is not None:
            raise Broken(f"the receiver refused the callback: {call.problem}")
        return call.at_ms

    def expect(self, what: str, seen: object, promised: object) -> None:
        """Compare what was seen with what was promised.

        Raises:
            Broken: they differ.
        """
        if seen != promised:
            raise Broken(f"{what}: promised {promised}, seen {seen}")

    def expect_calls(self, promised: int) -> None:
        """Check how often the receiver was called, and each call's signature."""
        calls = self.receiver.calls(self.key)
        self.expect("callbacks", len(calls), promised)
        for call in calls:
            self.expect(f"signature of callback {call.attempt}", call.problem, None)


@dataclass(frozen=True, kw_only=True)
class Story:
    """One story: its name, what is promised, and how it is played."""

    key: str
    promise: str
    play: Callable[[Stage], str]
    """Returns what was seen; raises `Broken`."""


def _immediate(stage: Stage) -> str:
    submitted_ms = stage.clock.now_ms()
    task_id = stage.submit()
    took_ms = stage.called() - submitted_ms
    task = stage.end_of(task_id)
    stage.expect("state", task["state"], "succeeded")
    stage.expect_calls(1)
    return f"{took_ms} ms after the submit began"


def _scheduled(stage: Stage) -> str:
    due_ms = stage.clock.now_ms() + _DELAY_MS
    task_id = stage.submit(due_ms=due_ms)
    late_ms = stage.called() - due_ms
    task = stage.end_of(task_id)
    stage.expect("state", task["state"], "succeeded")
    if not 0 <= late_ms <= _SLACK_MS:
        raise Broken(f"delivered {late_ms} ms after its time")
    stage.expect_calls(1)
    return f"{late_ms} ms late"


def _retried(stage: Stage) -> str:
    task = stage.end_of(stage.submit(fail=2))
    stage.expect("state", task["state"], "succeeded")
    outcomes = [attempt["outcome"] for attempt in task["attempts"]]
    stage.expect("outcomes", outcomes, ["rejected", "rejected", "succeeded"])
    stage.expect_calls(3)
    times = [call.at_ms for call in stage.receiver.calls(stage.key)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    for number, gap in enumerate(gaps, start=1):
        least = STEP_S * 1000 * number
        if not least <= gap <= least + _SLACK_MS:
            raise Broken(f"retry {number} came after {gap} ms instead of {least} ms")
    return f"3 attempts, after {gaps[0]} and {gaps[1]} ms"


def _timed_out(stage: Stage) -> str:
    task = stage.end_of(stage.submit(retry_total=0, hold=True))
    stage.expect("state", task["state"], "failed")
    stage.expect("outcomes", [a["outcome"] for a in task["attempts"]], ["timed_out"])
    stage.expect_calls(1)
    return f"given up at its limit of {_TIMEOUT_MS} ms"


def _cancelled_waiting(stage: Stage) -> str:
    task_id = stage.submit(due_ms=stage.clock.now_ms() + _FAR_MS)
    answer = stage.client.cancel(task_id)
    stage.expect("delivery", answer["delivery"], "never_sent")
    stage.expect("state", stage.end_of(task_id)["state"], "cancelled")
    stage.expect_calls(0)
    return "never sent"


def _cancelled_in_flight(stage: Stage) -> str:
    task_id = stage.submit(hold=True)
    stage.called()
    stage.tell("the receiver has it and does not answer; cancelling")
    began = time.monotonic()
    answer = stage.client.cancel(task_id)
    took_ms = (time.monotonic() - began) * 1000
    stage.expect("delivery", answer["delivery"], "aborted_before_response")
    stage.expect("state", stage.end_of(task_id)["state"], "cancelled")
    stage.expect_calls(1)
    return f"unwound in {took_ms:.0f} ms, before its answer"


def _inspected(stage: Stage) -> str:
    task_id = stage.submit(hold=True)
    stage.called()
    detail = _look_at_awaiting(stage, task_id)
    frames = live_frames(detail)
    if not frames:
        raise Broken("its stack was empty")
    # Frames of taskd's own code say most to a newcomer; those of Trio are beneath.
    shown = frames if stage.verbose else [f for f in frames if f["file"].startswith(_OURS)][:_SHOWN]
    which = "its" if len(shown) == len(frames) else f"{len(shown)} of its"
    stage.tell(f"suspended, awaiting the answer; {which} {len(frames)} frames:", lasting=True)
    for frame in shown:
        stage.tell(f"at {frame['file']}:{frame['line']} in {frame['function']}", lasting=True)
    stage.receiver.release(stage.key)
    stage.expect("state", stage.end_of(task_id)["state"], "succeeded")
    stage.expect_calls(1)
    where = detail["executed_function_name"]
    return f"suspended in {where}, {detail['elapsed']} ms old"


def _look_at_awaiting(stage: Stage, task_id: int) -> dict[str, Any]:
    """The detail of the task while it awaits the receiver's answer."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        detail = stage.client.detail(coroutine_id=task_id)
        if detail["task"]["phase"] == "awaiting_response":
            stage.expect("state", detail["state"], "waiting")
            return detail
        time.sleep(_POLL_S)  # noqa: TID251 - a synchronous client can only ask again
    raise Broken("it was never seen awaiting its answer")


STORIES = (
    Story(key="at-once", promise="delivered at once", play=_immediate),
    Story(key="in-2-s", promise="delivered in 2 s, never early", play=_scheduled),
    Story(key="retried", promise="fails twice, then succeeds", play=_retried),
    Story(key="timeout", promise="hits its timeout", play=_timed_out),
    Story(key="cancelled", promise="cancelled while waiting", play=_cancelled_waiting),
    Story(key="in-flight", promise="cancelled in flight", play=_cancelled_in_flight),
    Story(key="inspected", promise="looked into live", play=_inspected),
)

"""A task's detail as lines for people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from taskd.cli.boundary import plain
from taskd.nesting import load_json

Detail = dict[str, Any]

_RESPONSE_SHOWN = 100

DELIVERY_WORDS = {
    "never_sent": "nothing was ever sent",
    "between_attempts": "an earlier attempt was sent, none was under way",
    "aborted_before_response": "an attempt was cut off before its answer",
    "aborted_during_response": "an attempt was cut off while its answer came in",
    "unknown": "the node that worked on it was lost",
}
"""What the word of a cancellation means."""


def detail_lines(detail: Detail) -> Iterator[str]:
    """The whole of a known task, in lines."""
    task = detail["task"]
    yield f"task {task['taskId']}  {task['taskNo']}  {task['name']}"
    phase = f", {task['phase']}" if task.get("phase") else ""
    node = f", on {task['node']}" if task.get("node") else ""
    yield f"  state     {task['state']}{phase}{node}"
    yield f"  runtime   {task['runtime']}"
    if task.get("dueAt", task["runtime"]) != task["runtime"]:
        yield f"  due       {task['dueAt']}"
    retries = f", with up to {task['retryTotal']} retries" if not task.get("finishedAt") else ""
    yield f"  attempt   {task['attempt']}{retries}"
    yield f"  timeout   {task['timeout']} ms"
    yield f"  created   {task['createdAt']}"
    if task.get("finishedAt"):
        yield f"  finished  {task['finishedAt']}"
    for attempt in task["attempts"]:
        yield f"  {attempt_line(attempt)}"
    if frames := live_frames(detail):
        yield f"  live for {detail['elapsed']} ms, resumed {detail['round']} times, suspended in"
        for frame in frames:
            yield f"    {frame['file']}:{frame['line']} {frame['function']}"
        for name, value in (detail.get("vars") or {}).items():
            yield f"    {name} = {json.dumps(value, ensure_ascii=False)}"


def live_frames(detail: Detail) -> list[Detail]:
    """The stack of the task's coroutine, innermost first; empty when none lives."""
    frames: list[Detail] | None = load_json(detail.get("trace_list") or "null")
    return frames or []


def attempt_line(attempt: Detail) -> str:
    """One attempt in one line."""
    parts = [f"attempt {attempt['attempt']} {attempt['outcome']}"]
    if attempt.get("httpStatus") is not None:
        parts.append(f"HTTP {attempt['httpStatus']}")
    if attempt.get("error"):
        parts.append(str(attempt["error"]))
    elif attempt.get("response"):
        parts.append(json.dumps(attempt["response"][:_RESPONSE_SHOWN], ensure_ascii=False))
    return ", ".join(parts)


def news(before: Detail | None, now: Detail) -> Iterator[str]:
    """What has changed between two looks at a task, in lines."""
    task = now["task"]
    seen = 0 if before is None else len(before["task"]["attempts"])
    for attempt in task["attempts"][seen:]:
        yield plain(attempt_line(attempt))
    if before is None or before["task"]["state"] != task["state"]:
        yield plain(f"task {task['taskId']} {task['state']}")

"""Shows a task's detail as lines for people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from taskd.cli.boundary import plain
from taskd.runtime.json_depth import load_json

Detail = dict[str, Any]

_WAITING = frozenset({"scheduled", "retrying"})
_SHOWN = 300
"""The most characters of a receiver's answer in a task's detail; ``--json`` shows all that
is kept."""

_SHOWN_IN_NEWS = 100
_OK, _NOT_OK = 200, 300

DELIVERY_WORDS = {
    "never_sent": "nothing was ever sent",
    "between_attempts": "an earlier attempt was sent, none was under way",
    "aborted_before_response": "an attempt was cut off before its answer",
    "aborted_during_response": "an attempt was cut off while its answer came in",
    "unknown": "the node that worked on it was lost",
}
"""The meaning of each cancel certainty (`delivery` in answers)."""


def detail_lines(detail: Detail) -> Iterator[str]:
    """All of a task's detail, in lines."""
    task = detail["task"]
    yield f"task {task['taskId']}  {task['taskNo']}  {task['name']}"
    phase = f", {task['phase']}" if task.get("phase") else ""
    node = f", on {task['node']}" if task.get("node") else ""
    yield f"  state     {task['state']}{phase}{node}"
    if task.get("delivery"):
        yield f"  cancelled {meaning_of(task['delivery'])}"
    if task.get("linkUrl"):
        yield f"  url       {task['linkUrl']}"
    yield f"  runtime   {task['runtime']}"
    due = task.get("dueAt")
    if due is not None and task["state"] in _WAITING:
        yield f"  next      {due}, attempt {task['attempt'] + 1}"
    elif due is not None and due != task["runtime"]:
        yield f"  due       {due}, since its runtime had passed"
    retries = f", with up to {task['retryTotal']} retries" if not task.get("finishedAt") else ""
    yield f"  attempt   {task['attempt']}{retries}"
    yield f"  timeout   {task['timeout']} ms"
    yield f"  created   {task['createdAt']}"
    if task.get("finishedAt"):
        yield f"  finished  {task['finishedAt']}"
    for attempt in task["attempts"]:
        yield from _attempt_lines(attempt)
    if frames := live_frames(detail):
        yield f"  live for {detail['elapsed']} ms, resumed {detail['round']} times, suspended in"
        for frame in frames:
            yield f"    {frame['file']}:{frame['line']} {frame['function']}"
        for name, value in (detail.get("vars") or {}).items():
            yield f"    {name} = {json.dumps(value, ensure_ascii=False)}"


def live_frames(detail: Detail) -> list[Detail]:
    """The stack of the task's coroutine, innermost frame first; empty if it does not run."""
    frames: list[Detail] | None = load_json(detail.get("trace_list") or "null")
    return frames or []


def meaning_of(word: str) -> str:
    """A cancel certainty with its meaning."""
    return f"{word}: {DELIVERY_WORDS.get(word, 'see the reference of the API')}"


def quoted(text: str, most: int) -> str:
    """The first ``most`` characters of a text from elsewhere, in quotes. Characters that
    can't be seen are escaped: control characters, marks without width, unusual spaces."""
    shown = json.dumps(text[:most], ensure_ascii=False)
    shown = "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in shown)
    return shown if len(text) <= most else f"{shown}… ({len(text)} characters)"


def _attempt_lines(attempt: Detail) -> Iterator[str]:
    """One attempt: its outcome, its times, its error, and the receiver's answer."""
    status = "" if attempt.get("httpStatus") is None else f", HTTP {attempt['httpStatus']}"
    yield f"  attempt {attempt['attempt']} {attempt['outcome']}{status}"
    yield f"    {attempt['startedAt']} to {attempt['endedAt']}"
    if attempt.get("error"):
        yield f"    {attempt['error']}"
    if attempt.get("response") is not None:
        yield f"    answer {quoted(attempt['response'], _SHOWN)}"


def attempt_line(attempt: Detail) -> str:
    """One attempt in one line."""
    parts = [f"attempt {attempt['attempt']} {attempt['outcome']}"]
    status, error = attempt.get("httpStatus"), attempt.get("error")
    if status is not None:
        parts.append(f"HTTP {status}")
    if error:
        parts.append(str(error))
    # If a 2xx is an error, its body is why, and the error's text has that already.
    told = error and status is not None and _OK <= status < _NOT_OK
    if attempt.get("response") and not told:
        parts.append(quoted(attempt["response"], _SHOWN_IN_NEWS))
    return ", ".join(parts)


def news(before: Detail | None, now: Detail) -> Iterator[str]:
    """The changes from one detail of a task to the next, in lines."""
    task = now["task"]
    seen = 0 if before is None else len(before["task"]["attempts"])
    for attempt in task["attempts"][seen:]:
        yield plain(attempt_line(attempt))
    if before is None or before["task"]["state"] != task["state"]:
        yield plain(f"task {task['taskId']} {task['state']}")

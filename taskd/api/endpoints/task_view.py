"""A task as ``/task/detail`` shows it."""

from __future__ import annotations

import json

from taskd.clock import iso_utc
from taskd.domain.model import Attempt, Inspection, TaskDetail
from taskd.service.service import TaskView

_WAITING = "waiting"
"""The state of a coroutine that is inspected: it is suspended meanwhile."""

_NO_TRACE = "null"

UNKNOWN: dict[str, object] = {
    "state": None,
    "trace_list": _NO_TRACE,
    "executed_file_name": None,
    "executed_function_name": None,
    "executed_function_line": None,
    "vars": None,
    "round": None,
    "elapsed": None,
}
"""What is shown of a task that does not exist, or is another application's."""


def describe(view: TaskView) -> dict[str, object]:
    """The answer's data: the eight keys of the protocol's source, and the task."""
    look = view.inspection
    phase = None if look is None else look.phase
    task = _task(view.task) | {"phase": phase, "linkUrl": view.link_url}
    if look is None:
        return UNKNOWN | {"state": view.task.state, "task": task}
    return _coroutine(look) | {"task": task}


def _coroutine(look: Inspection) -> dict[str, object]:
    trace = [
        {"file": frame.file, "line": frame.line, "function": frame.function}
        for frame in look.frames
    ]
    return {
        "state": _WAITING,
        "trace_list": json.dumps(trace, ensure_ascii=False),
        "executed_file_name": look.executed.file,
        "executed_function_name": look.executed.function,
        "executed_function_line": look.executed.line,
        "vars": look.variables,
        "round": look.rounds,
        "elapsed": look.elapsed_ms,
    }


def _task(task: TaskDetail) -> dict[str, object]:
    return {
        "taskId": task.id,
        "taskNo": task.task_no,
        "name": task.name,
        "state": task.state,
        "phase": None,
        "node": task.node,
        "runtime": iso_utc(task.runtime),
        "dueAt": iso_utc(_due_at(task)),
        "timeout": task.timeout_ms,
        "attempt": task.attempt,
        "retryTotal": task.retry_total,
        "createdAt": iso_utc(task.created_at),
        "finishedAt": _time(task.finished_at),
        "linkUrl": None,
        "delivery": task.cancel_certainty,
        "attempts": [_attempt(attempt) for attempt in task.attempts],
    }


def _due_at(task: TaskDetail) -> int:
    """When its next attempt is due; if there will be none, when its first was."""
    return max(task.runtime, task.created_at) if task.due_at is None else task.due_at


def _attempt(attempt: Attempt) -> dict[str, object]:
    return {
        "attempt": attempt.attempt,
        "startedAt": iso_utc(attempt.started_at),
        "endedAt": iso_utc(attempt.ended_at),
        "outcome": attempt.outcome,
        "httpStatus": attempt.http_status,
        "response": attempt.response,
        "error": attempt.error,
    }


def _time(ms: int | None) -> str | None:
    return None if ms is None else iso_utc(ms)

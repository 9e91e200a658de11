"""Follows a task to its end by polling."""

from __future__ import annotations

import time
from collections.abc import Iterator

from taskd.cli.boundary import CommandError, hint
from taskd.cli.task_name import TaskName
from taskd.cli.task_text import Detail
from taskd.client import Client
from taskd.errors import DaemonUnreachable, RequestRefused
from taskd.runtime.backoff import Backoff

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
PATIENCE_S = 60.0
"""How long the daemon may be away, as in a restart, before following ends."""

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})

_GROWTH = 1.4
_UNAVAILABLE = 503


def ended(detail: Detail) -> bool:
    """Whether the task has ended."""
    return detail["task"]["state"] in TERMINAL


def follow(client: Client, name: TaskName) -> Iterator[Detail]:
    """Poll a task until it ends, yielding its detail each time; the pauses grow while
    nothing changes. A task named by its taskNo is polled by its number after the first time.

    Raises:
        DaemonUnreachable: the daemon was away for `PATIENCE_S`.
        RequestRefused: the daemon refuses the request.
        CommandError: this application has no such task.
    """
    backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S, growth=_GROWTH)
    previous: tuple[object, ...] | None = None
    gone_since: float | None = None
    while True:
        try:
            detail = client.detail(task_id=name.task_id, task_no=name.task_no)
        except (DaemonUnreachable, RequestRefused) as error:
            if isinstance(error, RequestRefused) and error.code != _UNAVAILABLE:
                raise
            now = time.monotonic()
            if gone_since is None:
                gone_since = now
                hint(f"{error}; trying again")
            elif now - gone_since > PATIENCE_S:
                raise
        else:
            gone_since = None
            if detail.get("task") is None:
                raise CommandError(f"no {name} of this application{name.otherwise}")
            name = TaskName(task_id=detail["task"]["taskId"])
            yield detail
            if ended(detail):
                return
            task = detail["task"]
            current = (task["state"], task["attempt"], task["phase"])
            if current != previous:
                previous = current
                backoff.reset()
        time.sleep(backoff.next_s())  # noqa: TID251 - a synchronous client can only ask again

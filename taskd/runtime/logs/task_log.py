"""The log's lines about tasks and applications, which name them all alike.

A number alone says nothing to an operator who knows tasks by their own names, so each line has
the task's number and taskNo, and the application's key and name. No line has a secret: a URL's
path and query may hold some, and are left out.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict
from urllib.parse import urlsplit

import trio

from taskd.clock import iso_utc
from taskd.domain.model import App, CancelCertainty, ExistingTask, NewTask
from taskd.runtime.logs import log_event

logger = logging.getLogger("taskd.task")

LINES = 200
"""Lines about new tasks, new applications and cancels that may be written in a second."""

STRANGERS_LINES = 10
STRANGERS_PERIOD_S = 60.0
"""Lines about unsigned requests that may be written in each such period."""

_CREATED = "tasks created"
_QUERY = re.compile(r"\?[^\s'\"]+")


class AppNaming(TypedDict, total=False):
    """The fields that name an application."""

    app: str
    app_name: str


class TaskNaming(AppNaming):
    """The fields that name a task and its application."""

    task: int
    task_no: str | None


def naming(task_id: int, task_no: str | None, app: App | None) -> TaskNaming:
    """Return the fields that name a task; ``app`` is None if it can't be read."""
    return {"task": task_id, "task_no": task_no, **naming_app(app)}


def naming_app(app: App | None) -> AppNaming:
    """Return the fields that name an application."""
    return {} if app is None else {"app": app.app_key, "app_name": app.name}


def without_queries(text: str | None) -> str | None:
    """Return a text without the queries of the URLs in it."""
    return None if text is None else _QUERY.sub("?…", text)


@dataclass(slots=True)
class _More:
    """Events of one kind and application that have no line of their own."""

    naming: AppNaming
    number: int
    first: int
    last: int


class TaskLog:
    """Logs new applications, new tasks and cancels.

    Up to `LINES` of these a second have a line of their own; one line for each application
    counts the others, once the second is over. (A line for each would cost a tenth of a create;
    docs/decisions/0040 has the figures.) All new applications without a signature together have
    `STRANGERS_LINES` in `STRANGERS_PERIOD_S`.

    Args:
        now: a monotonic clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = trio.current_time) -> None:
        self._now = now
        self._second = -1
        self._left = 0
        self._strangers_left = 0
        self._strangers_until = -math.inf
        self._more: dict[tuple[str, int | None], _More] = {}

    def app_created(self, app: App, *, signed: bool) -> None:
        """Log a new application, and whether the administrator has signed for it."""
        if not ((signed or self._admits_a_stranger()) and self._admits()):
            self._count("applications created", None, app.id, app.id, 1)
            return
        log_event(
            logger,
            logging.INFO,
            "application created",
            **naming_app(app),
            origin="{}://{}".format(*urlsplit(app.link_url)),
            step=app.step,
            retry_total=app.retry_total,
            signed=signed,
        )

    def created(self, app: App, task: NewTask, task_id: int) -> None:
        """Log a new task."""
        if not self._admits():
            self._count(_CREATED, app, task_id, task_id, 1)
            return
        log_event(
            logger,
            logging.INFO,
            "task created",
            **naming(task_id, task.task_no, app),
            due=iso_utc(task.due_at),
        )

    def batch_created(self, app: App, given: Sequence[int | ExistingTask]) -> None:
        """Log a batch of new tasks, whose ids are ascending, in one line."""
        ids = [one for one in given if not isinstance(one, ExistingTask)]
        if not ids:
            return
        if not self._admits():
            self._count(_CREATED, app, ids[0], ids[-1], len(ids))
            return
        log_event(
            logger,
            logging.INFO,
            _CREATED,
            **naming_app(app),
            number=len(ids),
            first=ids[0],
            last=ids[-1],
            there_already=len(given) - len(ids),
        )

    def cancelled(
        self, app: App, task_id: int, task_no: str | None, certainty: CancelCertainty
    ) -> None:
        """Log a task that was cancelled."""
        if not self._admits():
            self._count("tasks cancelled", app, task_id, task_id, 1)
            return
        log_event(
            logger,
            logging.INFO,
            "task cancelled",
            **naming(task_id, task_no, app),
            delivery=certainty.value,
        )

    def settle(self, *, all_of_them: bool = False) -> None:
        """Log the counts of a second that is over; ``all_of_them``: of this one too."""
        if not self._more or not (all_of_them or int(self._now()) != self._second):
            return
        for (message, _), more in self._more.items():
            log_event(
                logger,
                logging.INFO,
                message,
                **more.naming,
                number=more.number,
                first=more.first,
                last=more.last,
            )
        self._more.clear()

    def _admits(self) -> bool:
        """Whether a line may be written now; counts it."""
        if not logger.isEnabledFor(logging.INFO):
            return True  # there will be none
        second = int(self._now())
        if second != self._second:
            self.settle(all_of_them=True)
            self._second, self._left = second, LINES
        self._left -= 1
        return self._left >= 0

    def _admits_a_stranger(self) -> bool:
        """Whether a line may be written about an unsigned request; counts it."""
        now = self._now()
        if now >= self._strangers_until:
            self._strangers_until = now + STRANGERS_PERIOD_S
            self._strangers_left = STRANGERS_LINES
        self._strangers_left -= 1
        return self._strangers_left >= 0

    def _count(self, message: str, app: App | None, first: int, last: int, number: int) -> None:
        key = (message, None if app is None else app.id)
        more = self._more.get(key)
        if more is None:
            self._more[key] = _More(naming_app(app), number, first, last)
            return
        more.number += number
        more.first, more.last = min(more.first, first), max(more.last, last)


def log_failed(named: TaskNaming, *, attempts: int, error: str | None) -> None:
    """Log a task, by its `naming`, that has failed for good, with its last error."""
    log_event(
        logger,
        logging.WARNING,
        "task failed",
        **named,
        attempts=attempts,
        error=without_queries(error),
    )

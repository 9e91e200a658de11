"""The log's lines about tasks and applications, which name them all alike.

A number alone says nothing to whoever knows their tasks by their own names, so each line
has the task's number and taskNo, and the application's key and name. None has a secret:
a URL's path and query may hold some, and are left out.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import TypedDict
from urllib.parse import urlsplit

from taskd.clock import iso_utc
from taskd.logs import log_event
from taskd.model import App, DeliveryWord, ExistingTask, NewTask

logger = logging.getLogger("taskd.task")

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
    """What names a task of an application, which is None where that can't be known."""
    return {"task": task_id, "task_no": task_no, **naming_app(app)}


def naming_app(app: App | None) -> AppNaming:
    """What names an application."""
    return {} if app is None else {"app": app.app_key, "app_name": app.name}


def without_queries(text: str | None) -> str | None:
    """A text without the queries of the URLs in it."""
    return None if text is None else _QUERY.sub("?…", text)


def log_app_created(app: App, *, signed: bool) -> None:
    """Tell of a new application, and whether the administrator has signed for it."""
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


def log_created(app: App, task: NewTask, task_id: int) -> None:
    """Tell of a new task. One line for each create, so no call is spent on naming."""
    if logger.isEnabledFor(logging.INFO):
        log_event(
            logger,
            logging.INFO,
            "task created",
            task=task_id,
            task_no=task.task_no,
            app=app.app_key,
            app_name=app.name,
            due=iso_utc(task.due_at),
        )


def log_batch_created(app: App, given: Sequence[int | ExistingTask]) -> None:
    """Tell of a batch of new tasks: one line, whose ids are ascending."""
    ids = [one for one in given if not isinstance(one, ExistingTask)]
    if ids:
        log_event(
            logger,
            logging.INFO,
            "tasks created",
            **naming_app(app),
            number=len(ids),
            first=ids[0],
            last=ids[-1],
            there_already=len(given) - len(ids),
        )


def log_cancelled(named: TaskNaming, word: DeliveryWord) -> None:
    """Tell of a task, by its `naming`, that was cancelled."""
    log_event(logger, logging.INFO, "task cancelled", **named, delivery=word.value)


def log_failed(named: TaskNaming, *, attempts: int, error: str | None) -> None:
    """Tell of a task, by its `naming`, that has failed for good, and of its last error."""
    log_event(
        logger,
        logging.WARNING,
        "task failed",
        **named,
        attempts=attempts,
        error=without_queries(error),
    )

"""Reads the name of the task that a command is about: its number or its taskNo."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import click

from taskd.cli.boundary import plain
from taskd.domain.model import MAX_COROUTINE_ID

_MAX_DIGITS = len(str(MAX_COROUTINE_ID))


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskName:
    """The name of a task: exactly one of number and taskNo."""

    task_id: int | None = None
    task_no: str | None = None
    may_be_no: bool = False
    """Whether a person has typed the number, and may have meant a taskNo."""

    @property
    def otherwise(self) -> str:
        """The end of a sentence that says that there is no such task: a hint, or ""."""
        if not self.may_be_no:
            return ""
        return f": if {self.task_id} is a taskNo, say --task-no {self.task_id}"

    def __str__(self) -> str:
        return f"task {self.task_no if self.task_id is None else self.task_id}"


def task_name(command: Callable[..., None]) -> Callable[..., None]:
    """Add the argument and the option that name a task; the command gets a `TaskName`
    as ``name``."""

    @click.argument("task", metavar="TASK", required=False)
    @click.option(
        "--task-no",
        metavar="NO",
        help="The task of this taskNo, in place of TASK: for one that looks like a number.",
    )
    @wraps(command)
    def named(*, task: str | None, task_no: str | None, **rest: Any) -> None:  # noqa: ANN401 - the command's other options
        command(name=_name(task, task_no), **rest)

    return named


def _name(given: str | None, task_no: str | None) -> TaskName:
    if given is not None and task_no is not None:
        raise click.UsageError("give either TASK or --task-no, not both")
    if task_no is not None:
        return TaskName(task_no=task_no)
    if given is None:
        raise click.UsageError("Missing argument 'TASK' (or '--task-no').")
    # Only ASCII digits: `int` would also take ``4_2``, which may be a taskNo.
    if not re.fullmatch("[0-9]+", given):
        return TaskName(task_no=given)
    # ``007`` is more likely a taskNo than the number 7.
    if given[0] == "0" or len(given) > _MAX_DIGITS or int(given) > MAX_COROUTINE_ID:
        raise click.UsageError(
            f"{plain(given)} is no task's number, those are from 1 to {MAX_COROUTINE_ID}: if it is "
            "a taskNo, say --task-no"
        )
    return TaskName(task_id=int(given), may_be_no=True)

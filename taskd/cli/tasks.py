"""``taskd task``: submit, cancel and look at tasks."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from taskd.cli.boundary import (
    EXIT_FAILED,
    CommandError,
    Section,
    WrongUsage,
    hint,
    plain,
    print_json,
    wants_json,
)
from taskd.cli.bulk.command import submit_from
from taskd.cli.connection import app_client, app_options
from taskd.cli.follow import follow
from taskd.cli.task_name import TaskName, task_name
from taskd.cli.task_text import Detail, detail_lines, meaning_of, news
from taskd.client import Client
from taskd.errors import RequestRefused, TaskNoTaken
from taskd.runtime.json_depth import MAX_DEPTH, refuse_deep
from taskd.runtime.text import NotText, text_of

_REFUSED = 1  # the envelope's code of a refusal that the protocol documents


@click.group(cls=Section, example="taskd task detail order-1001 --watch")
def task() -> None:
    """Submit, cancel and look at tasks of an application."""


@task.command(
    example="taskd task submit --task-no order-1001 --name 'close order' \\\n"
    "    --content '{\"order\": 1001}' --timeout 5000 --wait\n"
    "taskd task submit --from tasks.ndjson"
)
@app_options
@click.option(
    "--from",
    "source",
    metavar="FILE|-",
    help="Submit many: a file, or stdin, with one JSON object a line, as /task/create takes it. "
    "Takes the place of all options that describe a task.",
)
@click.option("--task-no", help="Your own name for the task, unique.  [required, or --from]")
@click.option("--name", help="What the task is.  [required, or --from]")
@click.option(
    "--content",
    metavar="JSON|@FILE|-",
    help="JSON text, a file of it, or stdin.  [required, or --from]",
)
@click.option(
    "--timeout",
    type=int,
    metavar="MS",
    help="Limit of one attempt, milliseconds.  [required, or --from]",
)
@click.option(
    "--runtime",
    metavar="T",
    help="When: 'YYYY-MM-DD HH:MM:SS' in the daemon's timezone, ISO 8601 with an offset, or "
    "Unix seconds.  [default: now]",
)
@click.option(
    "--in",
    "delay",
    metavar="DELAY",
    help="In place of --runtime, how long from now: 90s, 30m, 2h, 3d, 1h30m, or seconds.",
)
@click.option("--step", type=int, metavar="S", help="Seconds between retries, for this task.")
@click.option("--retry-total", type=int, metavar="R", help="Retries, for this task.")
@click.option("--wait", is_flag=True, help="Follow the task to its end; 0 if it succeeded, else 1.")
def submit(
    *,
    source: str | None,
    task_no: str | None,
    name: str | None,
    content: str | None,
    timeout: int | None,
    runtime: str | None,
    delay: str | None,
    step: int | None,
    retry_total: int | None,
    wait: bool,
    **connection: Any,  # noqa: ANN401 - the options of `app_options`, handed on
) -> None:
    """Submit a task, or a file of them; done once they are durable.

    With --from, lines that are refused are told with their numbers, and the rest is
    submitted; the exit code is 1 then. After an interruption run it again: tasks
    whose taskNo is there already are passed over, and counted apart. Those of them
    that have failed are told as well, and the exit code is 1.
    """
    described = {
        "--task-no": task_no,
        "--name": name,
        "--content": content,
        "--timeout": timeout,
        "--runtime": runtime,
        "--in": delay,
        "--step": step,
        "--retry-total": retry_total,
        "--wait": wait or None,
    }
    given = [option for option, value in described.items() if value is not None]
    if source is not None:
        if given:
            raise click.UsageError(f"--from can't be given together with {given[0]}")
        submit_from(app_client(**connection), source)
        return
    if task_no is None or name is None or content is None or timeout is None:
        missing = next(option for option in described if option not in given)
        raise click.UsageError(f"Missing option '{missing}' (or '--from').")
    if runtime is not None and delay is not None:
        raise click.UsageError("give either --runtime or --in, not both")
    text = _content(content)
    with app_client(**connection) as client:
        try:
            data = client.create_task(
                task_no=task_no,
                name=name,
                content=text,
                timeout_ms=timeout,
                runtime=None if runtime is None else _number_or_text(runtime),
                delay=None if delay is None else _number_or_text(delay),
                step=step,
                retry_total=retry_total,
            )
        except TaskNoTaken as error:
            which = f": task {error.task_id}, {error.state}" if error.task_id is not None else ""
            raise CommandError(f"there is a task {task_no} already{which} ({error.msg})") from error
        task_id = data["coroutine_id"]
        if not wait:
            if wants_json():
                print_json(data)
            else:
                # The daemon's own reading of the time, so that a wrong timezone shows.
                due = f", due {data['dueAt']}" if "dueAt" in data else ""
                click.echo(plain(f"task {task_id} submitted{due}"))
            return
        _wait(client, task_id)


def _wait(client: Client, task_id: int) -> None:
    before: Detail | None = None
    try:
        for detail in follow(client, TaskName(task_id=task_id)):
            if not wants_json():
                for line in news(before, detail):
                    click.echo(line)
            before = detail
    except KeyboardInterrupt:
        hint(f"no longer waiting; task {task_id} goes on")
        raise click.exceptions.Exit(EXIT_FAILED) from None
    if before is None:  # follow() yields before it ends
        raise AssertionError("a task was followed without a look at it")
    if wants_json():
        print_json(before)
    if before["task"]["state"] != "succeeded":
        raise click.exceptions.Exit(EXIT_FAILED)


@task.command(example="taskd task cancel 42\ntaskd task cancel order-1001")
@app_options
@task_name
def cancel(name: TaskName, **connection: Any) -> None:  # noqa: ANN401 - the options of `app_options`
    """Cancel a task for good, and say whether anything had been delivered.

    TASK is its number, or its taskNo.
    """
    with app_client(**connection) as client:
        try:
            data = client.cancel(task_id=name.task_id, task_no=name.task_no)
        except RequestRefused as error:
            if error.code == _REFUSED:
                raise CommandError(
                    f"{name} is unknown to this application, or it has ended{name.otherwise}"
                ) from error
            raise
    if wants_json():
        print_json(data)
    else:
        told = meaning_of(str(data["delivery"]))
        click.echo(plain(f"task {data['coroutine_id']} {data['state']}, {told}"))


@task.command(example="taskd task detail 42\ntaskd task detail order-1001 --watch")
@app_options
@task_name
@click.option("--watch", is_flag=True, help="Look again and again until the task ends.")
def detail(
    *,
    name: TaskName,
    watch: bool,
    **connection: Any,  # noqa: ANN401 - the options of `app_options`, handed on
) -> None:
    """Show a task: its state, its attempts, and its stack while it runs.

    TASK is its number, or its taskNo.
    """
    with app_client(**connection) as client:
        if watch:
            _watch(client, name)
            return
        data = client.detail(task_id=name.task_id, task_no=name.task_no)
    if wants_json():
        print_json(data)
    if data.get("task") is None:
        raise CommandError(f"no {name} of this application{name.otherwise}")
    if not wants_json():
        _print(data)


def _watch(client: Client, name: TaskName) -> None:
    redraw = sys.stdout.isatty() and not wants_json()
    before: Detail | None = None
    for data in follow(client, name):
        if redraw:
            click.clear()
            _print(data)
        elif not wants_json():
            for line in news(before, data):
                click.echo(line)
        before = data
    if wants_json():
        print_json(before)


def _print(data: Detail) -> None:
    click.echo("\n".join(plain(line) for line in detail_lines(data)))


def _content(given: str) -> str:
    """The JSON text given by ``--content``, unchanged."""
    try:
        if given in {"-", "@-"}:  # the second is curl's
            text = text_of(sys.stdin.buffer.read())
        elif given.startswith("@"):
            text = text_of(_file(Path(given[1:])))
        else:
            text = given
    except NotText as error:
        raise WrongUsage(f"--content: the text {error}") from error
    try:
        refuse_deep(text, MAX_DEPTH)
        json.loads(text, parse_int=len, parse_float=len, parse_constant=_refuse_constant)
    except ValueError as error:
        raise WrongUsage(f"--content: must be JSON text: {error}") from error
    return text


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandError(f"--content: {path} can't be read: {error.strerror}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _number_or_text(given: str) -> str | float:
    """A number of seconds becomes a JSON number, any other text stays text."""
    if re.fullmatch("-?[0-9]{1,18}", given):
        return int(given)
    if re.fullmatch(r"-?[0-9]{1,18}\.[0-9]{1,9}", given):
        return float(given)
    return given

"""``taskd export`` and ``taskd import``: move tasks from one store to another."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click
import trio

from taskd.cli.boundary import Command, CommandError, hint, print_json, wants_json
from taskd.cli.connection import config_option
from taskd.clock import SystemClock
from taskd.config import Config, load_config
from taskd.errors import sole_cause
from taskd.runtime.text import NotText, lines_of

_STANDARD = "-"


@click.command("export", cls=Command, example="taskd export tasks.ndjson")
@config_option
@click.argument("file", default=_STANDARD, metavar="[FILE]")
def export_tasks(config_path: Path | None, file: str) -> None:
    """Write applications and unfinished tasks to a file, or to standard output.

    Stop the daemon first, all nodes of a cluster. The file holds the
    applications' secret keys, so it is made readable by you alone; one that is
    there is not overwritten.
    """
    config = load_config(config_path, os.environ)
    with _written(file) as stream:
        count = _run(_export, config, stream)
    if wants_json() and file != _STANDARD:
        print_json({"lines": count})
    else:
        hint(f"exported {count - 2} applications and tasks")


@click.command("import", cls=Command, example="taskd import tasks.ndjson")
@config_option
@click.argument("file", metavar="FILE")
def import_tasks(config_path: Path | None, file: str) -> None:
    """Take in what `taskd export` wrote, from a file or from standard input (-).

    All ids stay as they were. Stop the daemon first, all nodes of a cluster.
    After an interruption run it again: what is there already is passed over.
    """
    config = load_config(config_path, os.environ)
    with _read(file) as stream:
        counts = _run(_import, config, stream)
    if wants_json():
        print_json({"applications": counts[0], "tasks": counts[1]})
    else:
        click.echo(f"imported {counts[0]} applications and {counts[1]} tasks")


def _run(function: Any, config: Config, stream: Any) -> Any:  # noqa: ANN401 - what the function returns
    try:
        return trio.run(function, config, stream)
    except Exception as error:
        raise sole_cause(error) from error


async def _export(config: Config, stream: IO[str]) -> int:
    from taskd.daemon.adapters import opened_archive  # noqa: PLC0415 - no other command needs its imports
    from taskd.daemon.transfer import export  # noqa: PLC0415 - as above

    clock = SystemClock()
    count = 0
    async with opened_archive(config, clock) as archive:
        async for line in export(archive, now=clock.now_ms()):
            stream.write(line + "\n")
            count += 1
    return count


async def _import(config: Config, stream: IO[bytes]) -> tuple[int, int]:
    from taskd.daemon.adapters import opened_archive  # noqa: PLC0415 - no other command needs its imports
    from taskd.daemon.transfer import import_lines  # noqa: PLC0415 - as above

    async with opened_archive(config, SystemClock()) as archive:
        counts = await import_lines(archive, lines_of(stream))
    return counts.apps, counts.tasks


@contextmanager
def _written(file: str) -> Iterator[IO[str]]:
    if file == _STANDARD:
        # UTF-8 in any locale, since `taskd import` reads it.
        stream = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8")
        try:
            yield stream
            stream.flush()
        finally:
            stream.detach()
        return
    path = Path(file)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise CommandError(f"{path} is there already; nothing was written") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        path.unlink()  # a part of an export is useless
        raise


@contextmanager
def _read(file: str) -> Iterator[IO[bytes]]:
    try:
        if file == _STANDARD:
            yield sys.stdin.buffer
        else:
            with Path(file).open("rb") as stream:
                yield stream
    except NotText as error:
        raise CommandError(f"{file}: {error}") from error

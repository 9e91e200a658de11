"""``taskd backup`` and ``taskd restore``: a copy of the store, and back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import click

from taskd.cli.boundary import Command, CommandError, hint, print_json, wants_json
from taskd.cli.connection import config_option
from taskd.clock import SystemClock
from taskd.config import load_config

_CLUSTER = (
    "a cluster's database is backed up and restored with its own tools, mysqldump "
    "--single-transaction or mariadb-backup: see docs/how-to/back-up-and-restore.md"
)

_MIB = 1024 * 1024


@click.command(cls=Command, example="taskd backup /var/backups/taskd-$(date +%F).db")
@config_option
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
def backup(config_path: Path | None, file: Path) -> None:
    """Copy the SQLite store into a new file, while it is used.

    The copy has all that was acknowledged before, in one file that is readable by you
    alone, and is checked before it gets its name. It holds secret keys and contents.
    A file that is there is not overwritten.
    """
    _refuse_stream(file)
    path = _store(config_path)
    # Imported here, so that other commands start sooner.
    from taskd.stores.sqlite.backup import back_up  # noqa: PLC0415 - see above

    with _terminated_as_interrupted():
        copied = back_up(path, file)
    if wants_json():
        print_json(
            {
                "file": str(file.absolute()),
                "bytes": copied.size,
                "applications": copied.apps,
                "tasks": copied.tasks,
            }
        )
    else:
        click.echo(
            f"backed up {copied.apps} applications and {copied.tasks} tasks to {file} "
            f"({copied.size / _MIB:.1f} MiB)"
        )


@click.command(cls=Command, example="taskd restore /var/backups/taskd-2026-11-27.db")
@config_option
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
def restore(config_path: Path | None, file: Path) -> None:
    """Put a backup in the place of the SQLite store.

    Stop the daemon first. The backup is checked and copied before anything is
    changed, and what was there is kept under another name. After an interruption run
    it again.
    """
    _refuse_stream(file)
    path = _store(config_path)
    from taskd.stores.sqlite.backup import restore as put_back  # noqa: PLC0415 - as above

    now = datetime.fromtimestamp(SystemClock().now_ms() / 1000, UTC)
    with _terminated_as_interrupted():
        done = put_back(path, file, label=f"{now:%Y%m%dT%H%M%SZ}")
    if wants_json():
        print_json(
            {
                "store": str(path),
                "kept": None if done.kept is None else str(done.kept),
                "bytes": done.copied.size,
                "applications": done.copied.apps,
                "tasks": done.copied.tasks,
                "idsAfter": done.ids_after,
            }
        )
        return
    click.echo(
        f"restored {done.copied.apps} applications and {done.copied.tasks} tasks to {path}"
        + (f"; what was there is kept as {done.kept}" if done.kept else "")
    )
    hint(
        "tasks that have ended since the backup are delivered again, those created since are gone, "
        "and nonces used since are forgotten: see docs/how-to/back-up-and-restore.md"
    )
    hint(f"the next task's id is {done.ids_after + 1}")


def _refuse_stream(file: Path) -> None:
    """Refuse ``-`` as FILE: a database can't be a stream."""
    if str(file) == "-":
        raise click.UsageError("FILE must be a file: no standard input or output, as - would be")


def _store(config_path: Path | None) -> Path:
    config = load_config(config_path, os.environ)
    if config.store.on_server:
        raise CommandError(_CLUSTER)
    return config.store.path


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Handle SIGTERM as Ctrl-C within this block, so that no half of a copy stays behind."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

"""``taskd migrate``: the tables of a cluster's store."""

from __future__ import annotations

import os
from pathlib import Path

import click
import trio

from taskd.cli.boundary import Command, CommandError, print_json, wants_json
from taskd.cli.connection import config_option
from taskd.config import load_config, without_password
from taskd.errors import sole_cause


@click.command(cls=Command, example="taskd migrate --config /etc/taskd/taskd.toml")
@config_option
def migrate(config_path: Path | None) -> None:
    """Create or upgrade the tables of a MySQL store.

    Nothing is changed where they are new enough. Two nodes may run it at once. A
    SQLite store needs none: the daemon upgrades its own at start.
    """
    config = load_config(config_path, os.environ)
    if not config.store.on_server:
        raise CommandError("a SQLite store is upgraded by taskd serve; nothing was done")
    # Imported here, so that other commands start sooner.
    from taskd.daemon import adapters  # noqa: PLC0415 - see above

    try:
        before, now = trio.run(adapters.migrate, config)
    except Exception as error:
        raise sole_cause(error) from error
    where = without_password(config.store.url)
    if wants_json():
        print_json({"store": where, "before": before, "now": now})
    elif before == now:
        click.echo(f"{where} is at version {now} already")
    else:
        click.echo(f"{where} was brought from version {before} to {now}")

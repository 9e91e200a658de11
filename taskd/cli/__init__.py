"""The ``taskd`` command.

Most commands use the client over HTTP, as any application does; those for the daemon's
own machine import the daemon. Begin with `boundary`, which handles all errors.
"""

from __future__ import annotations

import click

from taskd import __version__
from taskd.cli.apps import app
from taskd.cli.backup import backup, restore
from taskd.cli.boundary import Program
from taskd.cli.demo.command import demo as demo_command
from taskd.cli.migrate import migrate
from taskd.cli.serve import serve
from taskd.cli.setup import check_config, init
from taskd.cli.tasks import task
from taskd.cli.transfer import export_tasks, import_tasks


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    example="taskd demo\ntaskd init && taskd serve",
)
@click.version_option(__version__, prog_name="taskd", message="%(prog)s %(version)s")
def cli() -> None:
    """A durable task daemon: it calls your application back at each task's time.

    Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 the daemon can't be
    reached.
    """


_COMMANDS = (
    *(init, serve, check_config, backup, restore, migrate),
    *(app, task),
    *(export_tasks, import_tasks),
    demo_command,
)
for _command in _COMMANDS:
    cli.add_command(_command)


def main() -> None:
    """Run the ``taskd`` command and exit. Called by `taskd.__main__`."""
    cli(prog_name="taskd")

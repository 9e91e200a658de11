"""``taskd serve``: run the daemon."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import click

from taskd.cli.boundary import EXIT_FAILED, Command, wants_json
from taskd.cli.connection import config_option
from taskd.cli.serve_output import announce, likely_style, note_style, tell_in_log
from taskd.config import Config, load_config
from taskd.errors import TaskdError, sole_cause
from taskd.runtime.logs import DirectHandler, log_event, logging_by, logging_to

_logger = logging.getLogger("taskd.cli")


@click.command(
    cls=Command, example="taskd serve --config /etc/taskd/taskd.toml --port 9502", tells=tell_in_log
)
@config_option
@click.option("--host", help="Address to listen on, instead of [server] host.")
@click.option("--port", help="Port to listen on, instead of [server] port; 0 lets the system pick.")
@click.option(
    "--workers",
    metavar="N",
    help="Processes that share the work, instead of [server] workers; 0 is one per core.",
)
def serve(
    config_path: Path | None, host: str | None, port: str | None, workers: str | None
) -> None:
    """Run the daemon in the foreground until SIGTERM or SIGINT.

    Prints the bound address once it accepts requests. Logs go to standard error.
    SIGHUP has it read its configuration again.
    """
    given = {"--host": host, "--port": port, "--workers": workers}
    overrides = {option: value for option, value in given.items() if value is not None}
    style = likely_style(config_path, os.environ)
    note_style(style)
    # A log handler without a thread, since a daemon of several processes will fork.
    with logging_by(DirectHandler(sys.stderr), style=style):
        config = load_config(config_path, os.environ, overrides=overrides)
        note_style(config.log.format)
        # The web framework takes 250 ms to import, and no other command needs it.
        from taskd.daemon import run, supervisor  # noqa: PLC0415 - see above

    def read_again() -> Config:
        path = config.path or config_path
        return load_config(path, os.environ, overrides=overrides, again=True)

    bare = wants_json()

    def on_ready(url: str) -> None:
        announce(url, config.log.format, bare=bare)

    if config.server.worker_count > 1:
        if code := supervisor.run(config, on_ready=on_ready, read_again=read_again):
            raise click.exceptions.Exit(code)
        return
    with logging_to(sys.stderr, level=config.log.level, style=config.log.format):
        try:
            code = run.run(config, on_ready=on_ready, read_again=read_again)
        except Exception as error:
            cause = sole_cause(error)
            if isinstance(cause, TaskdError | OSError):
                raise cause from error  # one line will do: the operator can mend it
            log_event(_logger, logging.CRITICAL, "the daemon failed", error=error)
            code = EXIT_FAILED
    if code:
        raise click.exceptions.Exit(code)

"""Writes the lines of ``taskd serve`` that are not its log: its address, and why it failed.

If the log is JSON these lines are JSON too: so standard error, or both streams together,
is JSON from the first line to the last.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from taskd.cli.boundary import CommandError, wants_traceback
from taskd.config import find_config
from taskd.runtime.logs import JsonFormatter, Output, Style, log_event, logging_to

_logger = logging.getLogger("taskd.cli")

_STYLE = "taskd.style"
_VARIABLE = "TASKD_LOG_FORMAT"
_JSON_IN_FILE = re.compile(r"^\[log\][^\[]*?^[ \t]*format[ \t]*=[ \t]*([\"'])json\1", re.M | re.S)
_READ = 1024 * 1024


def likely_style(config_path: Path | None, environ: Mapping[str, str]) -> Style:
    """The log's style, as far as it can be told before the configuration is read, or if
    it can't be read."""
    if (told := environ.get(_VARIABLE)) is not None:
        return "json" if told == "json" else "text"
    try:
        found = find_config(config_path, environ)
        if found is None or not found.is_file():
            return "text"  # a pipe can be read only once
        with found.open(encoding="utf-8-sig", errors="replace") as file:
            text = file.read(_READ)
    except (OSError, ValueError):
        return "text"
    return "json" if _JSON_IN_FILE.search(text) else "text"


def announce(url: str, style: Style, *, bare: bool) -> None:
    """Print the daemon's address on standard output. If that fails, since the output is
    full, closed or read by nobody, there is only a warning in the log.

    Args:
        url: the address.
        style: the log's.
        bare: whether ``--json`` was given: prints an object with nothing but the URL.
    """
    line = f"taskd is listening on {url}"
    if bare:
        line = f'{{"url": "{url}"}}'
    elif style == "json":
        record = logging.LogRecord(_logger.name, logging.INFO, "", 0, line, (), None)
        record.fields = {"url": url}
        line = JsonFormatter().format(record)
    output = Output(sys.stdout)
    if not output.takes_more() or not output.write([line]):
        log_event(_logger, logging.WARNING, "standard output does not take the address", url=url)


def note_style(style: Style) -> None:
    """Note the style of the running command's log, for its errors."""
    click.get_current_context().meta[_STYLE] = style


def tell_in_log(
    told: click.ClickException, error: Exception, ctx: click.Context
) -> click.ClickException | None:
    """The `Teller` of ``taskd serve``: if the log is JSON, its last error is a log line."""
    style = ctx.meta.get(_STYLE) or likely_style(None, os.environ)
    if style != "json":
        return None
    return _LoggedError(told, error if wants_traceback(ctx) else None)


class _LoggedError(CommandError):
    """Ends the daemon with a line of JSON.

    Args:
        told: the message for people.
        error: the error whose traceback is wanted, or None.
    """

    def __init__(self, told: click.ClickException, error: Exception | None) -> None:
        super().__init__(told.format_message())
        self._error = error
        self.exit_code = told.exit_code  # type: ignore[misc]  # each instance has its own

    def show(self, file: object = None) -> None:
        """See `click.ClickException.show`."""
        del file
        with logging_to(sys.stderr, style="json"):
            log_event(
                _logger, logging.ERROR, "taskd serve failed", reason=self.message, error=self._error
            )

"""What ``taskd serve`` writes besides its log: where it listens, and why it failed.

Where its log is JSON, each is a line of it: whoever reads standard error, or both
streams as one, reads JSON from the first line to the last.
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
    """How the log is to look, as far as that can be known of a configuration that was
    not read yet, or can't be."""
    if (told := environ.get(_VARIABLE)) is not None:
        return "json" if told == "json" else "text"
    try:
        found = find_config(config_path, environ)
        if found is None or not found.is_file():
            return "text"  # what comes over a pipe can be read once only
        with found.open(encoding="utf-8-sig", errors="replace") as file:
            text = file.read(_READ)
    except (OSError, ValueError):
        return "text"
    return "json" if _JSON_IN_FILE.search(text) else "text"


def announce(url: str, style: Style, *, bare: bool) -> None:
    """Say on standard output where the daemon listens. It works all the same where that
    is full, gone, or read by nobody.

    Args:
        url: where.
        style: the log's.
        bare: as ``--json`` wants it.
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
    """Note how the running command's log looks: its errors are told in the same form."""
    click.get_current_context().meta[_STYLE] = style


def tell_in_log(
    told: click.ClickException, error: Exception, ctx: click.Context
) -> click.ClickException | None:
    """What ends ``taskd serve``, as a line of its log where that is JSON: see `Teller`."""
    style = ctx.meta.get(_STYLE) or likely_style(None, os.environ)
    if style != "json":
        return None
    return _LoggedError(told, error if wants_traceback(ctx) else None)


class _LoggedError(CommandError):
    """Ends the daemon with a line of JSON.

    Args:
        told: what a person would be told.
        error: whose traceback is wanted, or None.
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

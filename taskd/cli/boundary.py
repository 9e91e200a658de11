"""The parts of all commands: ``--json``, ``--debug``, and the one error boundary.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 the daemon can't be
reached. An error is one line on standard error; a traceback comes with
``--debug`` only.
"""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

import click

from taskd.errors import DaemonUnreachable, InvalidInput, RequestRefused, TaskdError, sole_cause
from taskd.runtime.logs import Output

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3

_KEYS_REFUSED = (401, 403)

_DEBUG = "taskd.debug"
_JSON = "taskd.json"
_SIGNER = "taskd.signer"
# Characters by which text from elsewhere could control the terminal that shows it.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class CommandError(click.ClickException):
    """Ends a command with one line: refused or failed."""

    exit_code = EXIT_FAILED

    def __init__(self, message: str) -> None:
        super().__init__(plain(message))


class WrongUsage(CommandError):
    """Ends a command with one line: it was called wrongly."""

    exit_code = EXIT_USAGE


class Unreachable(CommandError):
    """Ends a command with one line: the daemon can't be reached."""

    exit_code = EXIT_UNREACHABLE


class _WithExample(click.Command):
    """A command or group whose help ends with an example."""

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:  # noqa: ANN401 - handed through to click
        super().__init__(*args, **kwargs)
        self.example = example

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example, its lines unchanged."""
        super().format_epilog(ctx, formatter)
        formatter.write_paragraph()
        formatter.write("Example:\n")
        formatter.write("".join(f"  {line}\n" for line in self.example.splitlines()))


Teller = Callable[[click.ClickException, Exception, click.Context], click.ClickException | None]
"""Is given the message for people, the error itself, and the program's context; returns
another message, or None to keep the first."""


class Command(_WithExample):
    """A command that also takes ``--json`` and ``--debug``.

    Args:
        tells: may replace the messages of this command's errors.
    """

    def __init__(self, *args: Any, tells: Teller | None = None, **kwargs: Any) -> None:  # noqa: ANN401 - handed through to click
        super().__init__(*args, **kwargs)
        self.tells = tells
        self.params += [
            _flag("--json", _JSON, "Print the answer's data as JSON, and nothing else, on stdout."),
            _flag("--debug", _DEBUG, "Print a traceback where the command fails."),
        ]


class Section(_WithExample, click.Group):
    """A group of commands within the program."""

    command_class = Command


class Program(Section):
    """The whole program. It turns every error of taskd into one line."""

    group_class = Section

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:  # noqa: ANN401 - as click declares it
        """Read the arguments. Prints ``--help`` and ``--version``, so it may fail to write."""
        try:
            return super().make_context(*args, **kwargs)
        except BrokenPipeError:
            raise  # see `invoke`
        except OSError as error:
            raise _translated(error, None) from error

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as click declares it
        """Run the command, and translate the error that it raises."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click ends silently if nobody reads the pipe it writes to
        except Exception as error:
            told = self._told(error, ctx)
            if told is error:
                raise
            raise told from error

    def _told(self, error: Exception, ctx: click.Context) -> click.ClickException:
        if isinstance(error, click.ClickException):
            told = error
        else:
            told = _translated(error, ctx.meta.get(_SIGNER))
        command = self.commands.get(ctx.invoked_subcommand or "")
        if isinstance(command, Command) and command.tells is not None:
            otherwise = command.tells(told, error, ctx)
            if otherwise is not None:
                return otherwise
        if wants_traceback(ctx) and told is not error:
            traceback.print_exc()
        return told


def wants_traceback(ctx: click.Context) -> bool:
    """Whether the running command was given ``--debug``."""
    return bool(ctx.meta.get(_DEBUG))


def signs_with(app_key: str, source: str) -> None:
    """Note whose keys the running command signs with, and where they were found, for the
    message if they are refused."""
    click.get_current_context().meta[_SIGNER] = f"{app_key}, from {source}"


def wants_json() -> bool:
    """Whether the running command was given ``--json``."""
    return bool(click.get_current_context().meta.get(_JSON))


def print_json(data: object) -> None:
    """Print data as one line of JSON."""
    # Names stay readable if the stream's encoding allows. The characters escaped below
    # occur only within JSON strings, so the line stays valid JSON.
    line = json.dumps(data, ensure_ascii=not Output(sys.stdout).unicode, default=str)
    click.echo(_STEERING.sub(lambda match: f"\\u{ord(match.group()):04x}", line))


def plain(text: str) -> str:
    """A text on one line and harmless to a terminal: control characters are escaped."""
    return _STEERING.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def hint(text: str) -> None:
    """Print a line on standard error that is not part of the result."""
    click.echo(plain(text), err=True)


def _flag(name: str, key: str, help_text: str) -> click.Option:
    def note(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 - called by click
        if value:
            ctx.meta[key] = True

    return click.Option([name], is_flag=True, expose_value=False, callback=note, help=help_text)


def _translated(error: Exception, signer: str | None) -> CommandError:
    error = sole_cause(error)
    if isinstance(error, RequestRefused) and error.code in _KEYS_REFUSED and signer is not None:
        return CommandError(f"{error} (signed with the keys of {signer})")
    if isinstance(error, DaemonUnreachable):
        return Unreachable(str(error))
    if isinstance(error, InvalidInput):
        return WrongUsage(str(error))
    if isinstance(error, TaskdError):
        return CommandError(str(error))
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return CommandError(f"{where}{error.strerror}")
    return CommandError(f"internal error, --debug shows where: {type(error).__name__}: {error}")

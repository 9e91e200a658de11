"""The `taskd` command within this process."""

from __future__ import annotations

import inspect
from typing import Any

from click.testing import CliRunner, Result

from taskd.cli import cli

# Click 8.1 has to be told to keep the two streams apart, later ones always do.
_APART: dict[str, Any] = (
    {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
)


def invoke(*arguments: str, stdin: str | bytes = "") -> Result:
    """Run a command; its two streams are kept apart."""
    return CliRunner(**_APART).invoke(cli, arguments, input=stdin)

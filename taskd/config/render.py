"""Writes TOML: the example config file, and single values."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping

from taskd.config.sections import SECTIONS, default_of, settings_of

_WIDTH = 88


def toml_string(text: str) -> str:
    """A text as a TOML basic string."""
    # TOML has JSON's escapes, and requires one for DEL, too.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_value(value: object) -> str:
    """The TOML form of a setting's value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(toml_string(str(item)) for item in value) + "]"
    return toml_string(str(value))


def render_config(values: Mapping[str, str] | None = None) -> str:
    """A config file with every key, its meaning and its default, commented out.

    Args:
        values: strings to set, not commented out, by ``section.key``.
    """
    values = values or {}
    lines = [
        "# Configuration of taskd. Every key is shown with its default; one without a",
        "# default is shown empty. Uncomment a key to change it. The variable",
        "# TASKD_SECTION_KEY (TASKD_SERVER_PORT=9600) overrides the key of that section.",
    ]
    for section in SECTIONS:
        lines += ["", f"[{section}]"]
        for key, setting in settings_of(section).items():
            text = f"{setting.doc} ({setting.kind.meaning})"
            lines += [f"# {line}" for line in textwrap.wrap(text, _WIDTH)]
            if f"{section}.{key}" in values:
                lines.append(f"{key} = {toml_string(values[f'{section}.{key}'])}")
            else:
                default = default_of(section, key)
                lines.append(f"#{key} = {toml_value('' if default is None else default)}")
    return "\n".join(lines) + "\n"

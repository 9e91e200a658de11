"""The example file, the reference page and the code say the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskd.config.render import render_config, toml_value
from taskd.config.sections import SECTIONS, default_of, settings_of

_ROOT = Path(__file__).parents[2]
_KEYS = [(section, key) for section in SECTIONS for key in settings_of(section)]


def test_the_example_file_is_what_the_code_says() -> None:
    assert (_ROOT / "taskd.toml.example").read_text() == render_config()


@pytest.mark.parametrize(("section", "key"), _KEYS)
def test_every_key_is_in_the_reference_with_its_default_and_meaning(section: str, key: str) -> None:
    page = (_ROOT / "docs/reference/configuration.md").read_text()
    _, _, after = page.partition(f"## [{section}]\n")
    part, _, _ = after.partition("\n## ")
    default = default_of(section, key)
    shown = "none" if default is None else f"`{toml_value(default)}`"
    setting = settings_of(section)[key]
    meaning = setting.kind.meaning.replace("|", "\\|")
    assert f"| `{key}` | {shown} | {meaning} | {setting.doc} |" in part


def test_the_reference_has_no_key_that_is_none() -> None:
    page = (_ROOT / "docs/reference/configuration.md").read_text()
    page, _, _ = page.partition("\n## Read again without a restart\n")  # what follows is no key
    assert page.count("\n| `") == len(_KEYS)

"""What says which release this is says the same everywhere."""

from __future__ import annotations

import datetime
import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.version import Version

import taskd
from tests.support.commands import invoke
from tests.unit.test_docs import page_id, pages

ROOT = Path(__file__).parents[2]
CHANGELOG = ROOT / "CHANGELOG.md"

_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_RELEASE = re.compile(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})")


def releases() -> list[tuple[Version, datetime.date]]:
    """The changelog's releases, as they stand there."""
    unreleased, *titles = _SECTION.findall(CHANGELOG.read_text())
    assert unreleased == "[Unreleased]"
    found = [_RELEASE.fullmatch(title) for title in titles]
    assert None not in found, titles
    return [(Version(match[1]), datetime.date.fromisoformat(match[2])) for match in found if match]


def test_the_changelog_has_the_newest_release_first() -> None:
    listed = releases()
    assert listed
    assert listed == sorted(listed, reverse=True)


def test_the_newest_release_of_the_changelog_is_this_version() -> None:
    assert str(releases()[0][0]) == taskd.__version__


def test_the_command_line_says_this_version() -> None:
    assert invoke("--version").stdout == f"taskd {taskd.__version__}\n"


def test_the_installed_metadata_has_this_version() -> None:
    assert importlib.metadata.version("taskd") == taskd.__version__, "run make dev"


@pytest.mark.parametrize("page", pages(), ids=page_id)
def test_the_pages_name_no_other_version_as_an_image_or_a_wheel(page: Path) -> None:
    named = re.findall(r"\btaskd[:-](\d+\.\d+\.\d+)", page.read_text())
    assert set(named) <= {taskd.__version__}

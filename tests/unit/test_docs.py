"""The documents hold together: with each other, with the code, with the command line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from taskd.cli import cli
from taskd.config import SECTIONS, settings_of
from taskd.domain.model import CancelCertainty, Outcome, Phase, TaskState

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
COMMAND_LINE = DOCS / "reference" / "command-line.md"
STATES = DOCS / "reference" / "states.md"

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")
_OUR_PATH = re.compile(r"(?:taskd|tests|examples|docs|tools)/[\w./-]*\w/?")
_SETTING = re.compile(rf"\[({'|'.join(SECTIONS)})\] ([a-z_]+)")


def pages() -> list[Path]:
    """Every page that people read."""
    return [
        *sorted(ROOT.glob("*.md")),
        *sorted((ROOT / "examples").rglob("README.md")),
        *sorted(DOCS.rglob("*.md")),
    ]


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose_of(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def blocks_of(page: Path, language: str) -> list[str]:
    """The fenced blocks in a language."""
    return [block for name, block in _FENCE.findall(page.read_text()) if name == language]


def links_of(page: Path) -> list[str]:
    """Where a page links to, on this site."""
    prose = _CODE.sub("", prose_of(page))
    return [link for link in _LINK.findall(prose) if not re.match(r"[a-z]+:", link)]


def anchor_of(heading: str) -> str:
    """The anchor that a heading gets where Markdown is shown."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors_of(page: Path) -> set[str]:
    return {anchor_of(heading) for heading in _HEADING.findall(prose_of(page))}


@pytest.mark.parametrize("page", pages(), ids=page_id)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in links_of(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page_id(page)} links to {link}"
        assert target.is_relative_to(ROOT), f"{page_id(page)} links out of the project: {link}"
        if anchor:
            assert anchor in anchors_of(target), f"{page_id(page)} links to {link}"


def test_every_page_is_reached_from_the_index() -> None:
    reached: set[Path] = set()
    ahead = [DOCS / "index.md"]
    while ahead:
        page = ahead.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        ahead += [(page.parent / link.partition("#")[0]).resolve() for link in links_of(page)]
    assert [page_id(page) for page in pages() if page not in reached] == []


@pytest.mark.parametrize("page", pages(), ids=page_id)
def test_paths_of_the_project_exist(page: Path) -> None:
    for code in _CODE.findall(prose_of(page)):
        if _OUR_PATH.fullmatch(code) and not code.startswith("dist/"):
            assert (ROOT / code).exists(), f"{page_id(page)} speaks of {code}"


@pytest.mark.parametrize("page", pages(), ids=page_id)
def test_no_path_of_somebodys_machine_is_in_the_pages(page: Path) -> None:
    assert re.findall(r"(?<![\w.])/(?:home|root|work|Users|tmp)/\S*", page.read_text()) == []


@pytest.mark.parametrize("page", pages(), ids=page_id)
def test_settings_that_the_pages_name_exist(page: Path) -> None:
    for section, key in _SETTING.findall(page.read_text()):
        assert key in settings_of(section), f"{page_id(page)} speaks of [{section}] {key}"
    for block in blocks_of(page, "toml"):
        for section, table in tomllib.loads(block).items():
            assert set(table) <= set(settings_of(section)), f"{page_id(page)}: {block}"


def test_the_pages_name_settings_at_all() -> None:
    assert sum(len(_SETTING.findall(page.read_text())) for page in pages()) > 20


@pytest.mark.parametrize("words", [TaskState, Outcome, Phase, CancelCertainty])
def test_the_page_of_states_explains_every_word(
    words: type[TaskState | Outcome | Phase | CancelCertainty],
) -> None:
    rows = re.findall(r"^\| `(\w+)` \| \S", STATES.read_text(), re.MULTILINE)
    assert {word.value for word in words} <= set(rows)


def test_the_page_of_states_explains_no_word_that_there_is_not() -> None:
    rows = re.findall(r"^\| `(\w+)` \| \S", STATES.read_text(), re.MULTILINE)
    known = {word.value for words in (TaskState, Outcome, Phase, CancelCertainty) for word in words}
    assert set(rows) == known


def commands(
    command: click.Command = cli, name: str = "taskd", parent: click.Context | None = None
) -> Iterator[tuple[str, str]]:
    """Every command with what its --help says, depth first."""
    context = command.make_context(
        name, [], parent, resilient_parsing=True, terminal_width=80, max_content_width=80
    )
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for child_name in command.list_commands(context):
            child = command.get_command(context, child_name)
            assert child is not None
            yield from commands(child, child_name, context)


def test_the_command_line_has_commands() -> None:
    found = [path for path, _ in commands()]
    assert {"taskd", "taskd serve", "taskd app create", "taskd task submit"} <= set(found)


@pytest.mark.parametrize(
    ("path", "text"), [pytest.param(path, text, id=path) for path, text in commands()]
)
def test_the_help_of_every_command_is_in_the_reference(path: str, text: str) -> None:
    # Releases of Click break lines differently.
    page = " ".join(COMMAND_LINE.read_text().split())
    assert " ".join(text.split()) in page, f"docs/reference/command-line.md lacks:\n\n{text}"
    assert f"## {path} " in page


def test_the_reference_has_no_command_that_there_is_not() -> None:
    headings = re.findall(r"^## (taskd.*)$", COMMAND_LINE.read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(path for path, _ in commands())


@pytest.mark.parametrize("page", pages(), ids=page_id)
def test_make_targets_that_the_pages_name_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = [*_CODE.findall(prose_of(page)), *blocks_of(page, "sh")]
    named = {name for text in code for name in re.findall(r"(?:^|\n)make ([a-z-]+)", text)}
    assert named <= targets

"""Words that were given up, since another says the same, come back into no name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TASKD = ROOT / "taskd"

RETIRED = {
    "beat": "tick, or heartbeat",
    "bury": "reap, or remove",
    "crew": "membership",
    "doors": "acceptor",
    "jsontext": "strict_json",
    "nesting": "json_depth",
    "obstacle": "unready",
    "shields": "cleanup scopes",
    "sift": "deduplicate",
    "sifted": "deduplicated",
    "timekeeper": "clock sync",
    "trouble": "degraded",
    "turning": "file shortage",
    "wish": "request",
    "wishes": "requests",
}
"""Words of names that are not used any more, and what is."""


def names_in(path: Path) -> Iterator[str]:
    """Of the module, and of all that is defined in it."""
    yield path.stem
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def words_of(name: str) -> set[str]:
    """The words of a name in snake case, camel case or capitals."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def modules() -> list[str]:
    return [str(path.relative_to(TASKD)) for path in sorted(TASKD.rglob("*.py"))]


@pytest.mark.parametrize("module", modules())
def test_no_name_uses_a_word_that_was_given_up(module: str) -> None:
    for name in names_in(TASKD / module):
        for word in words_of(name) & RETIRED.keys():
            pytest.fail(f"{name}: say {RETIRED[word]} instead of {word}")


def test_the_words_of_names_are_told_apart() -> None:
    assert words_of("_CREW_KILL_S") == {"crew", "kill", "s"}
    assert words_of("BuryTheDead") == {"bury", "the", "dead"}
    assert words_of("test_doors2") == {"test", "doors"}

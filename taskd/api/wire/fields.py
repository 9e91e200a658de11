"""The fields of a request, each held to its rule.

`Fields` goes on after a mistake, so that one answer can list them all.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import lru_cache
from typing import TypeVar

from taskd.api.wire.envelope import InvalidFields, shown
from taskd.api.wire.strict_json import MAX_NAME
from taskd.errors import InvalidInput

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

_MISSING = object()
_NEAR = 0.7
"""`difflib`'s ratio from which on an unknown name counts as a slip of a field's name."""

_MOST_TOLD = 8
"""Unknown fields of one request that the answer lists: finding the nearest name takes time."""


class Fields:
    """Takes values out of a parsed body by name.

    Every method returns a value of its type even where it noted a mistake; call
    `check` before using any.

    Args:
        values: the body.
        known: the fields that this endpoint has.
        ignored: unknown fields that it accepts all the same, for old clients.
    """

    def __init__(
        self,
        values: Mapping[str, object],
        known: frozenset[str],
        *,
        ignored: frozenset[str] = frozenset(),
    ) -> None:
        self._values = values
        self.errors: list[InvalidInput] = []
        if not values.keys() <= known:
            unknown = [name for name in values if name not in known and name not in ignored]
            for name in unknown[:_MOST_TOLD]:
                self._unknown(name, known)

    def check(self) -> None:
        """Make sure that no mistake was noted.

        Raises:
            InvalidFields: some were.
        """
        if self.errors:
            raise InvalidFields(self.errors)

    def has(self, name: str) -> bool:
        """Whether the field was given."""
        return name in self._values

    def text(self, name: str, *, most: int, least: int = 0, printable: bool = False) -> str:
        """A required string of ``least`` to ``most`` characters; with
        ``printable``, none of them a control character."""
        value = self._values.get(name, _MISSING)
        if type(value) is str and least <= len(value) <= most:
            if printable and not value.isprintable() and (bad := _control(value)) is not None:
                self.note(name, f"must not contain control characters, got {bad}")
            return value
        rule = f"must be a string of {least} to {most} characters"
        if value is _MISSING:
            self.note(name, "is required")
        elif isinstance(value, str):
            has = f"{len(value)} character{'' if len(value) == 1 else 's'}"
            self.note(name, f"{rule}, has {has}")
        else:
            self.note(name, f"{rule}, got {shown(value)}")
        return ""

    def integer(self, name: str, low: int, high: int, *, unit: str = "") -> int:
        """A required integer in a range, both ends included."""
        value = self._values.get(name, _MISSING)
        if type(value) is int and low <= value <= high:
            return value
        if value is _MISSING:
            self.note(name, "is required")
        else:
            number = f"integer number of {unit}" if unit else "integer"
            self.note(name, f"must be an {number} from {low} to {high}, got {shown(value)}")
        return low

    def flag(self, name: str, *, otherwise: bool) -> bool:
        """A boolean; the field may be left out."""
        value = self._values.get(name, otherwise)
        if type(value) is bool:
            return value
        self.note(name, f"must be true or false, got {shown(value)}")
        return otherwise

    def choice(self, name: str, words: type[E], *, otherwise: E) -> E:
        """A word of an enumeration; the field may be left out."""
        value = self._values.get(name, otherwise)
        for word in words:
            if value == word:
                return word
        known = " or ".join(f'"{word}"' for word in words)
        self.note(name, f"must be {known}, got {shown(value)}")
        return otherwise

    def array(self, name: str, *, most: int) -> list[object]:
        """A required array of 1 to ``most`` elements."""
        value = self._values.get(name, _MISSING)
        if type(value) is list and 1 <= len(value) <= most:
            return value
        if value is _MISSING:
            self.note(name, "is required")
        else:
            got = f"{len(value)} of them" if type(value) is list else shown(value)
            self.note(name, f"must be an array of 1 to {most} elements, got {got}")
        return []

    def parsed(self, name: str, parse: Callable[[object], T], otherwise: T) -> T:
        """A required field, read by a function that raises `InvalidInput`."""
        value = self._values.get(name, _MISSING)
        if value is _MISSING:
            self.note(name, "is required")
            return otherwise
        try:
            return parse(value)
        except InvalidInput as error:
            self.errors.append(error)
            return otherwise

    def note(self, name: str, problem: str) -> None:
        """Note a mistake."""
        self.errors.append(InvalidInput(name, problem))

    def _unknown(self, name: str, known: frozenset[str]) -> None:
        name = name[:MAX_NAME]
        self.note(name, f"is not a field of this endpoint; {_instead(name, known)}")


@lru_cache(maxsize=256)  # items of a batch often have the same wrong names
def _instead(name: str, known: frozenset[str]) -> str:
    """A hint: the nearest field, if one is near enough; else all fields there are."""
    words = {_plain(word): word for word in sorted(known)}
    near = difflib.get_close_matches(_plain(name), words, n=1, cutoff=_NEAR)
    if near:
        return f"the nearest one is {words[near[0]]}"
    return f"it has {', '.join(sorted(known))}"


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _control(text: str) -> str | None:
    for character in text:
        if character < " " or "\x7f" <= character <= "\x9f":
            return f"U+{ord(character):04X}"
    return None

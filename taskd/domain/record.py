"""Records: values that are made for each piece of work, and thrown away with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform, overload

T = TypeVar("T")

FROZEN = False
"""Whether records refuse assignments at run time. Only `tests/conftest.py` sets it, before any
record is defined: it is no option, so that no daemon runs on other records than measured."""


@overload
def record(cls: type[T], /) -> type[T]: ...


@overload
def record(*, kw_only: bool) -> Callable[[type[T]], type[T]]: ...


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(
    cls: type[T] | None = None, /, *, kw_only: bool = False
) -> type[T] | Callable[[type[T]], type[T]]:
    """Make a class a dataclass that nobody may assign to: mypy refuses it everywhere, and the
    class itself in the tests. In a daemon it does not, since a frozen dataclass sets each
    field by a call, and so takes two to three times as long to make.

    Records are what comes and goes with the work: what is made for each task, attempt,
    request, message, or call of a store. What is kept or rarely made (settings,
    applications, statistics) is a frozen dataclass.
    """
    # The hash is the one that frozen dataclasses have; plain ones would have none.
    make = dataclass(frozen=FROZEN, kw_only=kw_only, slots=True, unsafe_hash=True)
    return make if cls is None else make(cls)

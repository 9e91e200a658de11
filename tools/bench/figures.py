"""Figures beside what was asked of them, and the little statistics they need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Figure:
    """One number, with what was asked of it."""

    name: str
    value: float
    unit: str
    asked: str
    met: bool | None
    spread: tuple[float, float] | None = None
    """The lowest and the highest of the runs."""


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def of_runs(
    name: str,
    values: Sequence[float],
    unit: str,
    asked: str = "",
    holds: Callable[[float], bool] | None = None,
) -> Figure:
    """The median of several runs with their range; ``holds`` judges the median."""
    middle = median(values)
    met = None if holds is None else holds(middle)
    return Figure(name, middle, unit, asked, met, (min(values), max(values)))


def at_least(name: str, values: Sequence[float], unit: str, least: float) -> Figure:
    """A figure that is asked to be so much or more."""
    return of_runs(name, values, unit, f">= {least:g}", lambda value: value >= least)


def under(name: str, values: Sequence[float], unit: str, bound: float) -> Figure:
    """A figure that is asked to stay below."""
    return of_runs(name, values, unit, f"< {bound:g}", lambda value: value < bound)


def at_most(name: str, values: Sequence[float], unit: str, most: float) -> Figure:
    """A figure that is asked to be so much or less."""
    return of_runs(name, values, unit, f"<= {most:g}", lambda value: value <= most)


def ratios(loaded: Sequence[float], bare: Sequence[float]) -> list[float]:
    """Each run against the one that it was paired with."""
    return [one / other for one, other in zip(loaded, bare, strict=True)]


def tell(figures: Sequence[Figure]) -> None:
    """Print each in a line."""
    for figure in figures:
        verdict = "" if figure.met is None else ("met" if figure.met else "NOT MET")
        spread = ""
        if figure.spread is not None and figure.spread[0] != figure.spread[1]:
            spread = f"({figure.spread[0]:.2f} to {figure.spread[1]:.2f})"
        print(
            f"{figure.name:<56} {figure.value:>10.2f} {figure.unit:<9} {figure.asked:<9} "
            f"{verdict:<7} {spread}".rstrip(),
            flush=True,
        )

"""Horizontal bars with the range of their runs, as SVG text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH = 860
_LEFT, _RIGHT, _TOP, _BOTTOM = 190, 70, 62, 34
_BAR, _GAP, _GROUP_GAP = 13, 2, 10
_COLOURS = ("#33658a", "#f26419", "#86bbd8", "#758e4f")
_FONT = "font-family='sans-serif' font-size='12'"


@dataclass(frozen=True)
class Bar:
    """One bar: the median, and the least and the most of the runs."""

    series: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Group:
    """The bars of one peer."""

    label: str
    bars: Sequence[Bar]


def bars(
    title: str, unit: str, series: Sequence[str], groups: Sequence[Group], *, log: bool = False
) -> str:
    """The chart; on a logarithmic axis where ``log``."""
    axis = _Axis(groups, log=log)
    height = _TOP + _BOTTOM
    for group in groups:
        height += len(group.bars) * (_BAR + _GAP) + _GROUP_GAP
    parts = [
        (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {height}' "
            f"width='{_WIDTH}' height='{height}' role='img' aria-label='{escape(title)}'>"
        ),
        f"<rect width='{_WIDTH}' height='{height}' fill='white'/>",
        f"<text x='12' y='22' font-family='sans-serif' font-size='15'>{escape(title)}</text>",
        *_legend(series),
        *axis.lines(height - _BOTTOM, unit),
    ]
    top = _TOP
    for group in groups:
        middle = top + len(group.bars) * (_BAR + _GAP) / 2 + 4
        parts.append(
            f"<text x='{_LEFT - 8}' y='{middle:.1f}' text-anchor='end' {_FONT}>"
            f"{escape(group.label)}</text>"
        )
        for bar in group.bars:
            parts += _bar(bar, top, axis)
            top += _BAR + _GAP
        top += _GROUP_GAP
    return "\n".join([*parts, "</svg>"]) + "\n"


class _Axis:
    """Where a value lies between the left and the right edge."""

    def __init__(self, groups: Sequence[Group], *, log: bool) -> None:
        values = [value for group in groups for bar in group.bars for value in (bar.low, bar.high)]
        most = max([*values, 1e-9])
        self._log = log
        if log:
            least = min([value for value in values if value > 0] or [most])
            self._from: float = math.floor(math.log10(least))
            self._to: float = max(math.ceil(math.log10(most)), self._from + 1)
            self._ticks = [10.0**power for power in range(int(self._from), int(self._to) + 1)]
        else:
            step = 10.0 ** math.floor(math.log10(most))
            step = next(
                s for s in (step / 5, step / 2, step, 2 * step) if most / s <= 6 or s > step
            )
            count = math.ceil(most / step)
            self._from, self._to = 0.0, count * step
            self._ticks = [step * index for index in range(count + 1)]

    def x(self, value: float) -> float:
        """The horizontal place of a value."""
        if self._log:
            value = math.log10(max(value, 10.0**self._from))
        return _LEFT + (value - self._from) / (self._to - self._from) * (_WIDTH - _LEFT - _RIGHT)

    def lines(self, bottom: float, unit: str) -> list[str]:
        """The axis' ticks with their numbers."""
        parts = []
        for tick in self._ticks:
            x = self.x(tick)
            parts.append(
                f"<line x1='{x:.1f}' y1='{_TOP - 4}' x2='{x:.1f}' y2='{bottom}' stroke='#ddd'/>"
                f"<text x='{x:.1f}' y='{bottom + 16}' text-anchor='middle' {_FONT}>{tick:,g}</text>"
            )
        parts.append(
            f"<text x='{_WIDTH - 12}' y='{bottom + 30}' text-anchor='end' {_FONT} "
            f"fill='#555'>{escape(unit)}</text>"
        )
        return parts


def _legend(series: Sequence[str]) -> list[str]:
    parts = []
    x = float(_LEFT)
    for index, name in enumerate(series):
        parts.append(
            f"<rect x='{x:.0f}' y='34' width='12' height='12' fill='{_COLOURS[index]}'/>"
            f"<text x='{x + 17:.0f}' y='44' {_FONT}>{escape(name)}</text>"
        )
        x += 40 + 7 * len(name)
    return parts


def _bar(bar: Bar, top: float, axis: _Axis) -> list[str]:
    end, low, high = axis.x(bar.value), axis.x(bar.low), axis.x(bar.high)
    middle = top + _BAR / 2
    return [
        (
            f"<rect x='{_LEFT}' y='{top:.1f}' width='{max(end - _LEFT, 1):.1f}' height='{_BAR}' "
            f"fill='{_COLOURS[bar.series]}'/>"
        ),
        (
            f"<line x1='{low:.1f}' y1='{middle:.1f}' x2='{high:.1f}' y2='{middle:.1f}' "
            "stroke='#222' stroke-width='1.5'/>"
        ),
        f"<text x='{max(end, high) + 5:.1f}' y='{top + 11:.1f}' {_FONT}>{number(bar.value)}</text>",
    ]


def number(value: float) -> str:
    """Three significant digits, or a whole number, with commas."""
    if abs(value) >= 100 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"

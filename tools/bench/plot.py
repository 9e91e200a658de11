"""Plots as SVG, as plain as can be: they stand in the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 250, 190
_LEFT, _TOP, _RIGHT, _BOTTOM = 40, 34, 14, 34
_COLUMNS = 2
_LOWEST, _HIGHEST = 0.6, 1.6
_TICKS = (0.6, 0.8, 1.0, 1.2, 1.4, 1.6)
_INK, _FAINT, _BOUND = "#1f3a5f", "#9aa5b1", "#b3261e"


def growth(worse: Mapping[str, Mapping[int, Sequence[float]]], bound: float) -> str:
    """A panel for each measure: how many times worse than on an empty store, by the
    number of stored tasks; the median as a dot, the range as a line.

    Args:
        worse: for each measure and size, the ratio of each pair of runs.
        bound: what none should go beyond; a dashed line.
    """
    rows = -(-len(worse) // _COLUMNS)
    width, height = _COLUMNS * _WIDTH, rows * _HEIGHT + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for number, (name, sizes) in enumerate(worse.items()):
        row, column = divmod(number, _COLUMNS)
        parts.append(f'<g transform="translate({column * _WIDTH} {row * _HEIGHT})">')
        parts += _panel(name, sizes, bound)
        parts.append("</g>")
    legend = "times worse than the empty store, by stored tasks; median and range of the pairs"
    parts.append(_text(width / 2, height - 8, legend, anchor="middle"))
    return "\n".join([*parts, "</svg>", ""])


def _panel(name: str, sizes: Mapping[int, Sequence[float]], bound: float) -> list[str]:
    parts = [_text(_LEFT, _TOP - 14, name, weight="bold")]
    for tick in _TICKS:
        dashed = ' stroke-dasharray="4 3"' if tick == bound else ""
        colour = _BOUND if tick == bound else _FAINT
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_y(tick):.1f}" y2="{_y(tick):.1f}" '
            f'stroke="{colour}" stroke-width="{1.0 if tick in (1.0, bound) else 0.4}"{dashed}/>'
        )
        parts.append(_text(_LEFT - 6, _y(tick) + 4, f"{tick:.1f}", anchor="end"))
    step = (_WIDTH - _LEFT - _RIGHT) / max(len(sizes), 1)
    dots = []
    for place, (size, ratios) in enumerate(sizes.items()):
        x, middle = _LEFT + step * (place + 0.5), median(ratios)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_y(min(ratios)):.1f}" '
            f'y2="{_y(max(ratios)):.1f}" stroke="{_INK}" stroke-width="1.5"/>'
        )
        dots.append(f"{x:.1f},{_y(middle):.1f}")
        parts.append(f'<circle cx="{x:.1f}" cy="{_y(middle):.1f}" r="3.5" fill="{_INK}"/>')
        parts.append(_text(x + 7, _y(middle) - 5, f"{middle:.2f}"))
        parts.append(_text(x, _HEIGHT - _BOTTOM + 16, f"{size:,}", anchor="middle"))
    parts.append(f'<polyline points="{" ".join(dots)}" fill="none" stroke="{_INK}" opacity="0.4"/>')
    return parts


def _y(ratio: float) -> float:
    """What lies beyond the panel is drawn at its edge."""
    share = (min(max(ratio, _LOWEST), _HIGHEST) - _LOWEST) / (_HIGHEST - _LOWEST)
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{_INK}" text-anchor="{anchor}" '
        f'font-family="sans-serif" font-size="11" font-weight="{weight}">{escape(text)}</text>'
    )

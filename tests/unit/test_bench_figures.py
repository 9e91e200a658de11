"""The little statistics behind the figures that the documentation quotes."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from tools.bench import growth, plot
from tools.bench.figures import at_least, at_most, of_runs, percentile, ratios, under


def test_percentiles_are_of_the_nearest_rank() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert percentile(values, 0.5) == 51
    assert percentile(values, 0.99) == 100
    assert percentile([7.0], 0.99) == 7


def test_a_figure_is_judged_by_its_median_and_tells_its_range() -> None:
    figure = at_least("rate", [900, 1_500, 1_100], "tasks/s", 1_000)
    assert (figure.value, figure.met, figure.spread) == (1_100, True, (900, 1_500))
    assert at_least("rate", [900], "tasks/s", 1_000).met is False
    assert under("late", [2.0], "ms", 2).met is False
    assert at_most("late", [2.0], "ms", 2).met is True
    assert of_runs("rate", [1.0], "x").met is None


def test_runs_are_compared_with_those_they_were_paired_with() -> None:
    assert ratios([2, 9], [1, 3]) == [2, 3]
    with pytest.raises(ValueError, match="argument 2"):
        ratios([1], [1, 2])


def test_worse_is_slower_for_rates_and_later_for_latencies() -> None:
    bare = dict.fromkeys(growth.MEASURES, 10.0)
    full = {measure: 5.0 if measure.rate else 20.0 for measure in growth.MEASURES}
    worse = growth.worse_by({0: [bare, bare], 100: [full, bare]})
    assert all(sizes == {100: [2.0, 1.0]} for sizes in worse.values())


def test_a_plot_has_a_panel_for_each_measure_and_a_dot_for_each_size() -> None:
    worse = {name: {100: [0.9, 1.0, 1.3], 1_000: [9.0]} for name in ("a < b", "c")}
    drawn = ET.fromstring(plot.growth(worse, 1.2))
    circles = list(drawn.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == 4
    texts = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a < b", "c", "1,000", "9.00"} <= set(texts)
    # What lies beyond the panel is drawn at its edge, and not outside.
    assert all(0 <= float(circle.get("cy", "-1")) <= 190 for circle in circles)

"""Whether a daemon gets slower as its store fills: the same measurements on an empty
store and on full ones, in turns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tools.bench import filling, plot, scenarios
from tools.bench.figures import at_most, percentile, ratios, tell
from tools.bench.stage import Receiver, Slot, folder

SIZES = (100_000, 1_000_000, 5_000_000)
PAIRS = 7
WORST = 1.2
PLOT = Path("docs/explanation/growth.svg")

_SUBMITTED = 12_000
_DELIVERED = 8_000
_CREATES_A_SECOND, _CREATE_S = 50, 8
_DUE_A_SECOND, _DUE_S = 200, 8


@dataclass(frozen=True)
class Measure:
    """One thing that is measured at every size."""

    name: str
    unit: str
    rate: bool
    """More is better; of the others, less is."""


MEASURES = (
    Measure("submit, 32 connections", "tasks/s", rate=True),
    Measure("delivery from a backlog", "tasks/s", rate=True),
    Measure("create at 50/s, p50", "ms", rate=False),
    Measure("create at 50/s, p99", "ms", rate=False),
    Measure("lateness at 200/s, p50", "ms", rate=False),
    Measure("lateness at 200/s, p99", "ms", rate=False),
)

Sample = dict[Measure, float]


def growth(
    receiver: Receiver, pairs: int, *, sizes: Sequence[int] = SIZES, plot_to: Path | None = None
) -> None:
    """Rates and latencies at 0 to 5,000,000 stored tasks, half of them finished."""
    samples: dict[int, list[Sample]] = {0: [], **{size: [] for size in sizes}}
    with ExitStack() as stack:
        places = {}
        for size in sizes:
            place = Slot(stack.enter_context(folder()))
            if not filling.room_for(place.folder, size):
                print(f"growth: {size:,} tasks not measured, the disk has no room for them")
                del samples[size]
                continue
            began = time.perf_counter()
            filling.make(place, receiver.url, finished=size // 2, waiting=size - size // 2)
            print(f"({size:,} tasks filled in within {time.perf_counter() - began:.0f} s)")
            places[size] = place
        for turn in range(pairs):
            order = [0, *places]
            # Every size comes first, and last, as often as the others.
            for size in order[turn % len(order) :] + order[: turn % len(order)]:
                samples[size].append(_measured(places.get(size), receiver))
    _tell(samples)
    if plot_to is not None and len(samples) > 1:
        plot_to.write_text(
            plot.growth({m.name: sizes for m, sizes in worse_by(samples).items()}, WORST)
        )
        print(f"(plotted to {plot_to})")


def _measured(place: Slot | None, receiver: Receiver) -> Sample:
    """All measures on this store, or on an empty one of its own."""
    with ExitStack() as stack:
        if place is None:
            place = Slot(stack.enter_context(folder()))
        submitted, _ = scenarios.submit_rate(place, receiver, tasks=_SUBMITTED)
        delivered = scenarios.delivery_rate(place, receiver, tasks=_DELIVERED)
        creates = scenarios.create_latency(
            place, receiver, per_second=_CREATES_A_SECOND, seconds=_CREATE_S
        )
        late = scenarios.lateness(place, receiver, per_second=_DUE_A_SECOND, seconds=_DUE_S)
    latencies = [percentile(values, share) for values in (creates, late) for share in (0.5, 0.99)]
    return dict(zip(MEASURES, [submitted, delivered, *latencies], strict=True))


def worse_by(samples: dict[int, list[Sample]]) -> dict[Measure, dict[int, list[float]]]:
    """Of each measure and size, how many times worse than the empty store each run
    was; over 1 is slower or later."""
    found: dict[Measure, dict[int, list[float]]] = {}
    for measure in MEASURES:
        bare = [sample[measure] for sample in samples[0]]
        found[measure] = {}
        for size, made in samples.items():
            if size:
                loaded = [sample[measure] for sample in made]
                worse = ratios(bare, loaded) if measure.rate else ratios(loaded, bare)
                found[measure][size] = worse
    return found


def _tell(samples: dict[int, list[Sample]]) -> None:
    worse = worse_by(samples)
    for measure in MEASURES:
        values = [f"{median(s[measure] for s in made):,.2f}" for made in samples.values()]
        print(
            f"{measure.name} at {', '.join(f'{size:,}' for size in samples)} tasks: "
            f"{', '.join(values)} {measure.unit}"
        )
        tell(
            [
                at_most(f"  worse by, at {n:,}", runs, "x", WORST)
                for n, runs in worse[measure].items()
            ]
        )
    print()
    print("| what | " + " | ".join(f"{size:,}" for size in samples) + " |")
    print("| --- |" + " --- |" * len(samples))
    for measure in MEASURES:
        cells = [_cell(measure, made, worse[measure].get(size)) for size, made in samples.items()]
        print(f"| {measure.name} | " + " | ".join(cells) + " |")


def _cell(measure: Measure, made: list[Sample], worse: list[float] | None) -> str:
    value = median(sample[measure] for sample in made)
    text = f"{value:,.0f} {measure.unit}" if measure.rate else f"{value:.2f} {measure.unit}"
    if worse is None:
        return text
    return f"{text}; {median(worse):.2f} ({min(worse):.2f} to {max(worse):.2f})"

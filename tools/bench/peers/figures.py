"""From raw results to what the page shows: medians with their ranges, by peer and class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from tools.bench.peers import results, roster
from tools.bench.peers.svg import number

Raw = dict[str, Any]

TIERS = {
    "fsync before submit returns": ("fsync", "always"),
    "fsync once a second": ("everysec",),
    "none (in memory)": ("memory",),
}
"""The page's three parts. taskd's own and Redis' ``always`` promise the same."""

MODES = {"single": "one at a time", "flight": "16 in flight", "batch": "batches of 100"}


@dataclass(frozen=True)
class Figure:
    """A median, and the least and the most of the runs."""

    median: float
    low: float
    high: float
    runs: int

    def __str__(self) -> str:
        """As it stands in a table: the median, and the range where there is one."""
        low, high = number(self.low), number(self.high)
        if self.runs < 2 or low == high:
            return number(self.median)
        return f"{number(self.median)} ({low}–{high})"


class Row:
    """All runs of one peer in one durability class."""

    def __init__(self, key: str, durability: str, runs: Sequence[Raw]) -> None:
        self.peer = roster.BY_KEY[key]
        self.durability = durability
        self.runs = list(runs)

    @property
    def name(self) -> str:
        """The peer's name."""
        return self.peer.name

    def figure(self, *path: str) -> Figure | None:
        """The figure at a path in the results; None where no run has it."""
        found = list(results.values(self.runs, path))
        return Figure(median(found), min(found), max(found), len(found)) if found else None

    @property
    def cheapest_mode(self) -> str:
        """In which way of submitting CPU and memory are told."""
        return "batch" if self.figure("throughput", "batch", "tasks") else "flight"

    def cost(self, name: str) -> Figure | None:
        """A figure of the way of submitting that costs the peer least."""
        return self.figure("throughput", self.cheapest_mode, name)


@dataclass(frozen=True)
class Column:
    """One figure of the page: what it is called, where it is, and which is better."""

    name: str
    of: Callable[[Row], Figure | None]
    higher_is_better: bool = False
    fair: Callable[[Row], bool] = lambda _: True
    """Whether a row may be called first in it."""


_EARLY_MS = -5
"""Who comes earlier than that has no clock so fine, and is not called punctual."""


def _waits(row: Row) -> bool:
    earliest = row.figure("lateness", "earliest_ms")
    return earliest is not None and earliest.low >= _EARLY_MS


def _path(*path: str) -> Callable[[Row], Figure | None]:
    return lambda row: row.figure(*path)


SUBMIT = tuple(
    Column(f"submit/s, {words}", _path("throughput", mode, "submit_per_s"), higher_is_better=True)
    for mode, words in MODES.items()
)
END_TO_END = tuple(
    Column(
        f"end-to-end/s, {words}",
        _path("throughput", mode, "end_to_end_per_s"),
        higher_is_better=True,
    )
    for mode, words in MODES.items()
)
TIMES = (
    Column("latency p50 ms", _path("latency", "p50_ms")),
    Column("latency p99 ms", _path("latency", "p99_ms")),
    Column("lateness p50 ms", _path("lateness", "p50_ms"), fair=_waits),
    Column("lateness p99 ms", _path("lateness", "p99_ms"), fair=_waits),
)
COSTS = (
    Column("CPU s per 1,000", lambda row: row.cost("cpu_s_per_1000")),
    Column("submitter's CPU s per 1,000", lambda row: row.cost("submitter_cpu_s_per_1000")),
    Column("memory MB", lambda row: row.cost("memory_mb")),
)
KILLS = (
    Column("lost, worker killed", _path("kill_worker", "lost")),
    Column("repeated, worker killed", _path("kill_worker", "repeated")),
    Column("lost, broker killed", _path("kill_broker", "lost")),
    Column("repeated, broker killed", _path("kill_broker", "repeated")),
)


def rows(raw: Sequence[Raw]) -> dict[str, list[Row]]:
    """The rows of each tier, in the roster's order."""
    grouped: dict[tuple[str, str], list[Raw]] = {}
    for result in raw:
        grouped.setdefault((result["peer"], result["durability"]), []).append(result)
    return {
        tier: [
            Row(key, durability, runs)
            for (key, durability), runs in grouped.items()
            if durability in classes
        ]
        for tier, classes in TIERS.items()
    }


def winners(tier: Sequence[Row]) -> list[tuple[Column, Row, Figure, Row | None]]:
    """Of each column of speed and cost who is first, and taskd's best row beside it."""
    found = []
    for column in (*SUBMIT, *END_TO_END, *TIMES, *COSTS):
        having = [
            (row, figure)
            for row in tier
            if (figure := column.of(row)) is not None and column.fair(row)
        ]
        if not having:
            continue
        sign = -1 if column.higher_is_better else 1
        having.sort(key=lambda pair: sign * pair[1].median)
        ours = next((row for row, _ in having if row.peer.broker == "taskd"), None)
        found.append((column, *having[0], ours))
    return found

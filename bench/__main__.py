"""``python -m bench``: prints each figure beside what was asked of it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

from bench import cluster, machine, scenarios, stage
from bench.scenarios import Figure, percentile
from bench.stage import Place


@contextmanager
def _place() -> Iterator[Place]:
    with stage.folder() as folder:
        yield Place(folder)


def _runs(count: int, measure: Callable[[Place], float]) -> list[float]:
    figures = []
    for _ in range(count):
        with _place() as place:
            figures.append(measure(place))
    return figures


def _tell(figures: list[Figure]) -> None:
    for figure in figures:
        verdict = "" if figure.met is None else ("met" if figure.met else "NOT MET")
        print(
            f"{figure.name:<56} {figure.value:>10.2f} {figure.unit:<9} {figure.asked:<9} {verdict}",
            flush=True,
        )


def submit(receiver: stage.Receiver, runs: int) -> None:
    """Creates a second."""
    cpu = []

    def measure(place: Place, *, immediate: bool) -> float:
        rate, cpu_ms = scenarios.submit_rate(place, receiver, tasks=6000, immediate=immediate)
        cpu.append(cpu_ms)
        return rate

    waiting = _runs(runs, lambda place: measure(place, immediate=False))
    cpu_ms = median(cpu)
    immediate = _runs(runs, lambda place: measure(place, immediate=True))
    rate = median(waiting)
    _tell(
        [
            Figure(
                "submit, 32 connections, tasks due later", rate, "tasks/s", ">= 1200", rate >= 1200
            ),
            Figure("  of it, the daemon's CPU for each", cpu_ms, "ms", "", None),
            Figure(
                "submit, 32 connections, delivered at once meanwhile",
                median(immediate),
                "tasks/s",
                "",
                None,
            ),
        ]
    )


def batch(receiver: stage.Receiver, runs: int) -> None:
    """Tasks a second in batches of 100."""
    cpu = []

    def measure(place: Place, *, connections: int) -> float:
        rate, cpu_ms = scenarios.batch_rate(
            place, receiver, tasks=40_000, size=100, connections=connections
        )
        cpu.append(cpu_ms)
        return rate

    rate = median(_runs(runs, lambda place: measure(place, connections=1)))
    cpu_ms = median(cpu)
    several = median(_runs(runs, lambda place: measure(place, connections=4)))
    whole = median(
        _runs(runs, lambda place: scenarios.end_to_end_rate(place, receiver, tasks=5_000, size=100))
    )
    _tell(
        [
            Figure(
                "submit in batches of 100, one connection, tasks due later",
                rate,
                "tasks/s",
                ">= 12000",
                rate >= 12_000,
            ),
            Figure("  of it, the daemon's CPU for each task", cpu_ms, "ms", "", None),
            Figure("submit in batches of 100, 4 connections", several, "tasks/s", "", None),
            Figure(
                "5,000 in batches of 100, first submit to last delivery",
                whole,
                "tasks/s",
                ">= 4500",
                whole >= 4_500,
            ),
        ]
    )


def backlog(receiver: stage.Receiver, runs: int) -> None:
    """Deliveries a second from 20,000 due tasks."""
    rate = median(_runs(runs, lambda place: scenarios.delivery_rate(place, receiver, tasks=20_000)))
    _tell([Figure("delivered from a backlog of 20,000", rate, "tasks/s", ">= 3500", rate >= 3500)])


def lateness(receiver: stage.Receiver, runs: int) -> None:
    """How late tasks are at 200 a second."""
    with_p50, with_p99 = [], []
    for _ in range(runs):
        with _place() as place:
            late = scenarios.lateness(place, receiver, per_second=200, seconds=15)
            with_p50.append(percentile(late, 0.5))
            with_p99.append(percentile(late, 0.99))
    p50, p99 = median(with_p50), median(with_p99)
    _tell(
        [
            Figure("lateness at 200 tasks/s, p50", p50, "ms", "< 2", p50 < 2),
            Figure("lateness at 200 tasks/s, p99", p99, "ms", "< 8", p99 < 8),
        ]
    )


def latency(receiver: stage.Receiver, runs: int) -> None:
    """Create to receiver at 50 a second."""
    with_p50, with_p99 = [], []
    for _ in range(runs):
        with _place() as place:
            took = scenarios.latency(place, receiver, per_second=50, seconds=15)
            with_p50.append(percentile(took, 0.5))
            with_p99.append(percentile(took, 0.99))
    p50, p99 = median(with_p50), median(with_p99)
    _tell(
        [
            Figure("create to receiver at 50 tasks/s, p50", p50, "ms", "< 3", p50 < 3),
            Figure("create to receiver at 50 tasks/s, p99", p99, "ms", "< 8", p99 < 8),
        ]
    )


def drain(receiver: stage.Receiver, runs: int) -> None:
    """Creates while a burst drains."""
    p99s = []
    for _ in range(runs):
        with _place() as place:
            took, _ = scenarios.create_latency_under_drain(place, receiver, backlog=20_000)
            p99s.append(percentile(took, 0.99))
    p99 = median(p99s)
    _tell([Figure("create while 20,000 due tasks drain, p99", p99, "ms", "< 250", p99 < 250)])


def neighbour(receiver: stage.Receiver, runs: int) -> None:
    """What 5,000 hung tasks of one app cost another app's."""
    delays = []
    for _ in range(runs):
        medians = []
        for hung in (0, 5_000):
            with _place() as place:
                late = scenarios.neighbour(place, receiver, hung=hung, per_second=100, seconds=8)
                medians.append(percentile(late, 0.5))
        delays.append(medians[1] - medians[0])
    delay = median(delays)
    _tell(
        [
            Figure(
                "delay by a hung neighbour's 5,000 tasks, median", delay, "ms", "< 100", delay < 100
            )
        ]
    )


def growth(receiver: stage.Receiver, pairs: int) -> None:
    """A million waiting tasks against none, in interleaved pairs."""
    submit_ratios, delivery_ratios = [], []
    with _place() as full:
        began = time.perf_counter()
        resident, started = scenarios.waiting(full, receiver, tasks=1_000_000)
        print(f"(filled and first looked at within {time.perf_counter() - began:.0f} s)")
        _tell(
            [
                Figure("1,000,000 waiting: resident", resident, "MB", "< 150", resident < 150),
                Figure("1,000,000 waiting: start", started, "s", "< 3", started < 3),
            ]
        )
        for _ in range(pairs):
            with _place() as empty:
                bare, _ = scenarios.submit_rate(empty, receiver, tasks=4000)
                loaded, _ = scenarios.submit_rate(full, receiver, tasks=4000)
                submit_ratios.append(loaded / bare)
                bare = scenarios.delivery_rate(empty, receiver, tasks=8000)
                loaded = scenarios.delivery_rate(full, receiver, tasks=8000)
                delivery_ratios.append(loaded / bare)
    for name, ratios in (("submit", submit_ratios), ("delivery", delivery_ratios)):
        ratio = median(ratios)
        _tell(
            [
                Figure(
                    f"1,000,000 waiting: {name} rate against empty",
                    ratio,
                    "x",
                    ">= 0.8",
                    ratio >= 0.8,
                )
            ]
        )
        print(f"  pairs: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


def several(receiver: stage.Receiver, runs: int) -> None:
    """One node and two on MariaDB, Redis and NSQ, beside one on SQLite."""
    with cluster.servers() as servers:
        if servers is None:
            print("cluster: not measured, apt-get install mariadb-server redis-server first")
            return
        print(f"(cluster on MariaDB and Redis, with {servers.nsqd_name})", flush=True)
        rates: dict[int, list[float]] = {0: [], 1: [], 2: []}
        for _ in range(runs):
            for nodes, figures in rates.items():
                with stage.folder() as folder:
                    place = servers.place(folder, nodes) if nodes else Place(folder)
                    figures.append(scenarios.delivery_rate(place, receiver, tasks=20_000))
        alone, one, two = (median(rates[nodes]) for nodes in (0, 1, 2))
        share = median(node / embedded for embedded, node in zip(rates[0], rates[1], strict=True))
        _tell(
            [
                Figure(
                    "backlog of 20,000, SQLite, in turns with those below",
                    alone,
                    "tasks/s",
                    "",
                    None,
                ),
                Figure("backlog of 20,000, cluster of one node", one, "tasks/s", "", None),
                Figure("  of SQLite's rate", share, "x", ">= 0.4", share >= 0.4),
                Figure("backlog of 20,000, cluster of two nodes", two, "tasks/s", "", None),
            ]
        )
        late_p50, late_p99, submitted = [], [], []
        for _ in range(runs):
            with stage.folder() as folder:
                place = servers.place(folder, 1)
                late = scenarios.lateness(place, receiver, per_second=200, seconds=15)
                late_p50.append(percentile(late, 0.5))
                late_p99.append(percentile(late, 0.99))
            with stage.folder() as folder:
                place = servers.place(folder, 1)
                submitted.append(scenarios.submit_rate(place, receiver, tasks=4000)[0])
        p50, p99 = median(late_p50), median(late_p99)
        _tell(
            [
                Figure("cluster of one node: lateness at 200 tasks/s, p50", p50, "ms", "", None),
                Figure("cluster of one node: lateness, p99", p99, "ms", "< 25", p99 < 25),
                Figure(
                    "cluster of one node: submit, 32 connections",
                    median(submitted),
                    "tasks/s",
                    "",
                    None,
                ),
            ]
        )


SCENARIOS: dict[str, Callable[[stage.Receiver, int], None]] = {
    "submit": submit,
    "batch": batch,
    "backlog": backlog,
    "lateness": lateness,
    "latency": latency,
    "drain": drain,
    "neighbour": neighbour,
    "growth": growth,
    "cluster": several,
}


def main() -> None:
    """Measure what was named, or everything."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("scenario", nargs="*", choices=[*SCENARIOS, []], help="default: all")
    parser.add_argument(
        "--runs", type=int, default=3, help="runs of each (default 3; growth: at least 5 pairs)"
    )
    options = parser.parse_args()
    print(machine.describe())
    with stage.receiver() as receiver:
        for name in options.scenario or SCENARIOS:
            runs = (
                max(options.runs, 5) if name == "growth" and not options.scenario else options.runs
            )
            SCENARIOS[name](receiver, runs)


if __name__ == "__main__":
    main()

"""``python -m tools.bench``: prints each figure beside what was asked of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from tools.bench import (
    batches,
    cluster,
    cores,
    costs,
    growth,
    hung,
    machine,
    purging,
    scenarios,
    stage,
)
from tools.bench.figures import Figure, percentile, tell, under
from tools.bench.stage import Slot


@contextmanager
def _place() -> Iterator[Slot]:
    with stage.folder() as folder:
        yield Slot(folder)


def _runs(count: int, measure: Callable[[Slot], float]) -> list[float]:
    figures = []
    for _ in range(count):
        with _place() as place:
            figures.append(measure(place))
    return figures


def submit(receiver: stage.Receiver, runs: int) -> None:
    """Creates a second."""
    cpu = []

    def measure(place: Slot, *, immediate: bool) -> float:
        rate, cpu_ms = scenarios.submit_rate(place, receiver, tasks=6000, immediate=immediate)
        cpu.append(cpu_ms)
        return rate

    waiting = _runs(runs, lambda place: measure(place, immediate=False))
    cpu_ms = median(cpu)
    immediate = _runs(runs, lambda place: measure(place, immediate=True))
    rate = median(waiting)
    tell(
        [
            Figure(
                "submit, 32 connections, tasks due later", rate, "tasks/s", ">= 1400", rate >= 1400
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


def backlog(receiver: stage.Receiver, runs: int) -> None:
    """Deliveries a second from 20,000 due tasks."""
    rate = median(_runs(runs, lambda place: scenarios.delivery_rate(place, receiver, tasks=20_000)))
    tell([Figure("delivered from a backlog of 20,000", rate, "tasks/s", ">= 5000", rate >= 5000)])


def lateness(receiver: stage.Receiver, runs: int) -> None:
    """How late tasks are at 200 and at 1,000 a second."""
    for per_second, asked_p99 in ((200, 8), (1_000, 15)):
        p50, p99 = [], []
        for _ in range(runs):
            with _place() as place:
                late = scenarios.lateness(place, receiver, per_second=per_second, seconds=15)
            p50.append(percentile(late, 0.5))
            p99.append(percentile(late, 0.99))
        name = f"lateness at {per_second:,} tasks/s"
        tell([under(f"{name}, p50", p50, "ms", 2), under(f"{name}, p99", p99, "ms", asked_p99)])


def burst(receiver: stage.Receiver, runs: int) -> None:
    """10,000 tasks at one instant, and creates meanwhile."""
    drained, creates = [], []
    for _ in range(runs):
        with _place() as place:
            made = scenarios.burst(place, receiver, tasks=10_000, per_second=50)
        drained.append(made.drained_s)
        creates.append(percentile(made.creates_ms, 0.99))
    tell(
        [
            under("10,000 tasks due at one instant: the last one arrives", drained, "s", 2.5),
            under("  a create meanwhile, 50 a second, p99", creates, "ms", 150),
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
    tell(
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
    tell([Figure("create while 20,000 due tasks drain, p99", p99, "ms", "< 250", p99 < 250)])


def neighbour(receiver: stage.Receiver, runs: int) -> None:
    """What 5,000 hung tasks of one app cost another app's."""
    delays = []
    for _ in range(runs):
        medians = []
        for backlog in (0, 5_000):
            with _place() as place:
                late = scenarios.neighbour(place, receiver, hung=backlog, per_second=100, seconds=8)
                medians.append(percentile(late, 0.5))
        delays.append(medians[1] - medians[0])
    delay = median(delays)
    tell(
        [
            Figure(
                "delay by a hung neighbour's 5,000 tasks, median", delay, "ms", "< 100", delay < 100
            )
        ]
    )


def waiting(receiver: stage.Receiver, runs: int) -> None:
    """What a million waiting tasks take of the memory, and of the start."""
    resident, started = [], []
    with _place() as place:
        for _ in range(runs):
            megabytes, seconds = scenarios.waiting(place, receiver, tasks=1_000_000)
            resident.append(megabytes)
            started.append(seconds)
    tell(
        [
            under("1,000,000 waiting: resident", resident, "MB", 150),
            under("1,000,000 waiting: start", started, "s", 3),
        ]
    )


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
                    place = servers.place(folder, nodes) if nodes else Slot(folder)
                    figures.append(scenarios.delivery_rate(place, receiver, tasks=20_000))
        alone, one, two = (median(rates[nodes]) for nodes in (0, 1, 2))
        share = median(node / embedded for embedded, node in zip(rates[0], rates[1], strict=True))
        tell(
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
        tell(
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
    "batch": batches.batch,
    "backlog": backlog,
    "workers": cores.workers,
    "cpu": costs.cpu,
    "idle": costs.idle,
    "lateness": lateness,
    "burst": burst,
    "latency": latency,
    "drain": drain,
    "neighbour": neighbour,
    "hung": hung.hung,
    "waiting": waiting,
    "purge": purging.purge,
    "growth": growth.growth,
    "cluster": several,
}


_RUNS = {"workers": cores.PAIRS}


def main() -> None:
    """Measure what was named, or everything."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    parser.add_argument("scenario", nargs="*", choices=[*SCENARIOS, []], help="default: all")
    parser.add_argument(
        "--runs", type=int, help="runs of each (default 3; 5 pairs for workers, 7 for growth)"
    )
    parser.add_argument(
        "--sizes",
        type=_sizes,
        default=growth.SIZES,
        help="growth: numbers of stored tasks, beside none (default 100000,1000000,5000000)",
    )
    parser.add_argument(
        "--plot", type=Path, help=f"growth: draw the ratios to this file, such as {growth.PLOT}"
    )
    options = parser.parse_args()
    print(machine.describe())
    with stage.receiver() as receiver:
        print(f"(delivered to {receiver.name})", flush=True)
        for name in options.scenario or SCENARIOS:
            if name == "growth":
                pairs = options.runs or growth.PAIRS
                growth.growth(receiver, pairs, sizes=options.sizes, plot_to=options.plot)
            else:
                SCENARIOS[name](receiver, options.runs or _RUNS.get(name, 3))


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(size) for size in text.split(",")} - {0}))


if __name__ == "__main__":
    main()

"""What receivers that never answer cost an application whose receiver does."""

from __future__ import annotations

import json
import urllib.request
from contextlib import ExitStack
from dataclasses import replace
from statistics import median

from tools.bench import cluster, machine
from tools.bench.figures import percentile, tell, under
from tools.bench.load import Keys
from tools.bench.scenarios import lateness
from tools.bench.stage import Daemon, Receiver, Slot, fill, folder, silent_receiver

_RECEIVERS = 40
_TASKS = 1_000
_TIMEOUT_MS = 3_600_000
_PER_SECOND, _SECONDS = 20, 30
_ASKED_MS = 100


def hung(receiver: Receiver, runs: int) -> None:
    """40 applications of 1,000 due tasks each whose receivers hang, for an hour if they
    are let, and one whose tasks are due at 20 a second: alone, with two workers, in a
    cluster of three nodes."""
    for name, workers in (("alone", 1), ("two workers", 2)):
        late = []
        for _ in range(runs):
            with folder() as made:
                late.append(_beside_hung(replace(Slot(made), workers=workers), receiver))
        _tell(name, late)
    with cluster.servers() as servers:
        if servers is None:
            print("cluster: not measured, apt-get install mariadb-server redis-server first")
            return
        late = []
        for _ in range(runs):
            with folder() as made:
                late.append(_beside_hung(servers.place(made, 3), receiver))
        _tell(f"three nodes, {servers.nsqd_name}", late)


def _tell(name: str, late: list[list[float]]) -> None:
    p50 = [percentile(run, 0.5) for run in late]
    p99 = [percentile(run, 0.99) for run in late]
    longest = max(max(run) for run in late)
    tell(
        [
            under(f"beside 40 hung receivers, {name}: lateness, p50", p50, "ms", _ASKED_MS),
            under(f"beside 40 hung receivers, {name}: lateness, p99", p99, "ms", _ASKED_MS),
        ]
    )
    print(f"  the latest of all: {longest:.1f} ms; medians {median(p50):.2f}, {median(p99):.2f}")


def _beside_hung(place: Slot, receiver: Receiver) -> list[float]:
    with ExitStack() as stack:
        for number in range(_RECEIVERS):
            url = stack.enter_context(silent_receiver())
            keys = Keys(f"hung{number:012}", f"hungsecret{number:022}")
            fill(place, url, tasks=_TASKS, keys=keys, timeout_ms=_TIMEOUT_MS)
        return lateness(
            place, receiver, per_second=_PER_SECOND, seconds=_SECONDS, at_end=_tell_daemon
        )


def _tell_daemon(daemon: Daemon) -> None:
    with urllib.request.urlopen(f"{daemon.url}/readyz", timeout=10) as answer:
        degraded = json.load(answer)["data"]
    told = degraded.get("degraded") if isinstance(degraded, dict) else None
    print(f"  resident {machine.resident_mb(daemon.pid):.0f} MB; degraded: {told}")

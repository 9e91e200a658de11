"""Two worker processes against one, under a load that takes little of the machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from tools.bench import load, machine
from tools.bench.figures import at_least, of_runs, ratios, tell
from tools.bench.scenarios import delivery_rate
from tools.bench.stage import KEYS, Daemon, Receiver, Slot, fill, folder, running

_DAY_MS = 86_400_000
_WRK_S = 5
_PREPARED_A_SECOND = 20_000
_BACKLOG = 20_000
_CONNECTIONS = (32, 128, 256)
_ASKED_RATIO = 1.3
PAIRS = 5


@dataclass(frozen=True)
class _Run:
    rate: float
    busy: float
    """The share of the run in which a transaction was open or being committed."""
    commits: float
    """Writes that shared a commit, at the mean."""
    cores: float = 0.0
    """CPU that all processes of the daemon took, in cores; 0 where it was not taken."""


def workers(receiver: Receiver, runs: int) -> None:
    """Creates by wrk and a backlog, with two workers and with one, in pairs."""
    if shutil.which("wrk") is None:
        print("workers: not measured, apt-get install wrk first")
        return
    counts = (1, 2)
    creates: dict[int, dict[int, list[_Run]]] = {
        connections: {count: [] for count in counts} for connections in _CONNECTIONS
    }
    backlogs: dict[int, list[_Run]] = {count: [] for count in counts}
    for turn in range(runs):
        for count in counts if turn % 2 == 0 else reversed(counts):
            for connections, runs_of in creates.items():
                with folder() as made:
                    place = replace(Slot(made), workers=count)
                    runs_of[count].append(_created(place, receiver, connections))
            with folder() as made:
                backlogs[count].append(_delivered(replace(Slot(made), workers=count), receiver))
    for connections, runs_of in creates.items():
        _compare(f"creates by wrk, {connections} connections", runs_of)
    _compare(f"backlog of {_BACKLOG:,}", backlogs)


def _compare(what: str, measured: dict[int, list[_Run]]) -> None:
    for count, made in measured.items():
        tell([of_runs(f"{what}, {count} worker(s)", [run.rate for run in made], "tasks/s")])
        if all(run.cores for run in made):
            tell([of_runs("  the daemon takes", [run.cores for run in made], "cores")])
        busy = [100 * run.busy for run in made]
        tell([of_runs("  the writer is busy", busy, "% of time")])
        shared = median(run.commits for run in made)
        print(f"  writes that share a commit, at the mean: {shared:.1f}")
    one, two = ([run.rate for run in measured[count]] for count in (1, 2))
    tell([at_least("  two against one, of each pair", ratios(two, one), "x", _ASKED_RATIO)])


def _created(place: Slot, receiver: Receiver, connections: int) -> _Run:
    """Single creates, due later, as wrk sends them: prepared and signed beforehand."""
    fill(place, receiver.url, tasks=0)
    with running(place) as daemon:
        later = time.time_ns() // 1_000_000 + _DAY_MS
        prepared = place.folder / "requests"
        with prepared.open("wb") as file:
            for _ in range(_WRK_S * _PREPARED_A_SECOND):
                request = load.create_request(daemon.url, KEYS, runtime_ms=later)
                file.write(b"%d\n%b" % (len(request), request))
        before = machine.cpu_seconds(daemon.pid)
        told = _wrk(daemon.url, prepared, connections)
        cores = (machine.cpu_seconds(daemon.pid) - before) / told["seconds"]
    if told["failed"]:
        raise RuntimeError(f"wrk was refused {told['failed']} of {told['requests']} creates")
    run = _run(daemon, told["requests"] / told["seconds"], told["seconds"])
    return replace(run, cores=cores)


def _wrk(url: str, prepared: Path, connections: int) -> dict[str, Any]:
    script = Path(__file__).with_name("wrk.lua")
    command = ["wrk", "-t1", f"-c{connections}", f"-d{_WRK_S}s", "-s", str(script), url]
    command += ["--", str(prepared)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    summary: dict[str, Any] = json.loads(told.splitlines()[-1])
    return summary


def _delivered(place: Slot, receiver: Receiver) -> _Run:
    daemons: list[Daemon] = []
    rate = delivery_rate(place, receiver, tasks=_BACKLOG, watch=daemons.append)
    return _run(daemons[0], rate, _BACKLOG / rate)


def _run(daemon: Daemon, rate: float, seconds: float) -> _Run:
    """With what the processes told of the writer at their end. They are idle for the
    rest of their life, so all that the writer was busy with fell into these seconds."""
    ends = daemon.store_closed()
    writes, transactions = (sum(end[key] for end in ends) for key in _WRITER_COUNTS)
    return _Run(
        rate, sum(end["store_busy_s"] for end in ends) / seconds, writes / max(transactions, 1)
    )


_WRITER_COUNTS = ("store_writes", "store_batches")

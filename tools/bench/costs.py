"""What taskd takes of the machine: CPU for each task, and for waiting."""

from __future__ import annotations

import time

from tools.bench import batches, filling, load, machine
from tools.bench.figures import at_most, of_runs, tell, under
from tools.bench.stage import Receiver, Slot, fill, folder, running

_WAITING = 1_000_000
_SETTLES_S = 5.0
_WATCHED_S = 30.0
_LAST_SETTLEMENTS_S = 1.0


def cpu(receiver: Receiver, runs: int) -> None:
    """CPU seconds for 1,000 tasks, submitted to settled; a core's share while idle."""
    in_batches: list[float] = []
    singly: list[float] = []
    for _ in range(runs):
        for batched, figures in ((True, in_batches), (False, singly)):
            with folder() as made:
                seconds = _cpu_for_tasks(Slot(made), receiver, tasks=10_000, batched=batched)
            figures.append(seconds)
    tell([at_most("CPU for 1,000 tasks, in batches of 100", in_batches, "s", 0.30)])
    tell([of_runs("CPU for 1,000 tasks, singly, 16 in flight", singly, "s")])


def idle(receiver: Receiver, runs: int) -> None:
    """A core's share that a daemon takes while a million tasks wait."""
    with folder() as made:
        place = Slot(made)
        filling.make(place, receiver.url, finished=0, waiting=_WAITING)
        shares = [_idle_share(place) for _ in range(runs)]
    tell([under("idle with 1,000,000 waiting tasks", shares, "% of core", 0.5)])


def _cpu_for_tasks(place: Slot, receiver: Receiver, *, tasks: int, batched: bool) -> float:
    fill(place, receiver.url, tasks=0)
    with running(place) as daemon:
        way = "batches of 100" if batched else "16 in flight"
        requests = batches.requests_for(daemon, tasks, way)
        before = machine.cpu_seconds(daemon.pid)
        load.submit(daemon.url, requests, connections=batches.WAYS[way])
        receiver.wait_for(tasks, within_s=120)
        time.sleep(_LAST_SETTLEMENTS_S)
        return (machine.cpu_seconds(daemon.pid) - before) * 1000 / tasks


def _idle_share(place: Slot) -> float:
    with running(place) as daemon:
        time.sleep(_SETTLES_S)
        before, began = machine.cpu_seconds(daemon.pid), time.perf_counter()
        time.sleep(_WATCHED_S)
        spent = machine.cpu_seconds(daemon.pid) - before
        return 100 * spent / (time.perf_counter() - began)

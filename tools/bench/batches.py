"""Submitting in batches, and tasks from their submission to their delivery."""

from __future__ import annotations

import time
from dataclasses import replace

from tools.bench import load
from tools.bench.figures import at_least, of_runs, tell
from tools.bench.stage import KEYS, Daemon, Receiver, Slot, fill, folder, running

_DAY_MS = 86_400_000
_BATCH = 100
_WARM_UP = 500

WAYS = {"one at a time": 1, "16 in flight": 16, f"batches of {_BATCH}": 1}
_AIMS = {"one at a time": 1_412, "16 in flight": 5_600, f"batches of {_BATCH}": 7_611}
"""What the quickest peer of the same durability did when this was begun. Its messages were
made within the time, and its receiver checked signatures: `bench.peers` compares like
with like."""

_ASKED_IN_BATCHES = 4_500


def batch(receiver: Receiver, runs: int) -> None:
    """Tasks a second in batches of 100; 5,000 from the first submit to the last delivery."""
    for connections in (1, 4):
        rates = []
        for _ in range(runs):
            with folder() as place:
                rate = _submitted(Slot(place), receiver, tasks=30_000, connections=connections)
            rates.append(rate)
        name = f"submit in batches of {_BATCH}, {connections} connection(s), due later"
        tell([at_least(name, rates, "tasks/s", 12_000)])
    print("(aim: what the quickest peer of this durability did; here requests are signed before)")
    for workers in (1, 2):
        for way in WAYS:
            _end_to_end(receiver, runs, workers, way)


def _end_to_end(receiver: Receiver, runs: int, workers: int, way: str) -> None:
    rates = []
    for _ in range(runs):
        with folder() as made:
            place = replace(Slot(made), workers=workers)
            rate = end_to_end(place, receiver, tasks=5_000, way=way)
        rates.append(rate)
    name = f"5,000 end to end, {way}, {workers} worker(s)"
    if way.startswith("batches"):
        tell([at_least(name, rates, "tasks/s", _ASKED_IN_BATCHES)])
        name = "  against the aim"
    tell([of_runs(name, rates, "tasks/s", f"aim {_AIMS[way]}", lambda rate: rate >= _AIMS[way])])


def _submitted(place: Slot, receiver: Receiver, *, tasks: int, connections: int) -> float:
    fill(place, receiver.url, tasks=0)
    with running(place) as daemon:
        later = [time.time_ns() // 1_000_000 + _DAY_MS] * tasks
        requests = load.batch_requests(daemon.url, KEYS, tasks, runtimes_ms=later, size=_BATCH)
        load.submit(daemon.url, requests[:10], connections=connections)
        took, created = load.submit(daemon.url, requests[10:], connections=connections)
    return len(created) / took


def end_to_end(place: Slot, receiver: Receiver, *, tasks: int, way: str) -> float:
    """Tasks a second from the first submit to the last delivery, all due at once and
    submitted in one of the ways."""
    fill(place, receiver.url, tasks=0)
    with running(place) as daemon:
        warm_up = requests_for(daemon, _WARM_UP, way)
        requests = requests_for(daemon, tasks, way)
        load.submit(daemon.url, warm_up, connections=WAYS[way])
        receiver.wait_for(_WARM_UP, within_s=60)
        _, created = load.submit(daemon.url, requests, connections=WAYS[way])
        arrived = dict(receiver.wait_for(tasks, within_s=120))
    first = min(answer.sent_ms for answer in created)
    return tasks / (max(arrived.values()) - first) * 1000


def requests_for(daemon: Daemon, tasks: int, way: str) -> list[bytes]:
    if way.startswith("batches"):
        return load.batch_requests(daemon.url, KEYS, tasks, size=_BATCH)
    return [load.create_request(daemon.url, KEYS) for _ in range(tasks)]

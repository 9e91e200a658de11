"""The measurements, each a function from a folder to figures."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bench import load, machine
from bench.stage import HUNG_KEYS, KEYS, Place, Receiver, fill, running, silent_receiver

_DAY_MS = 86_400_000


@dataclass(frozen=True)
class Figure:
    """One number, with what was asked of it."""

    name: str
    value: float
    unit: str
    asked: str
    met: bool | None


def percentile(values: list[float], share: float) -> float:
    """The nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def submit_rate(
    place: Place, receiver: Receiver, *, tasks: int, immediate: bool = False
) -> tuple[float, float]:
    """Creates a second over 32 connections, and the daemon's CPU ms for each.

    Tasks are due in a day, so that nothing is delivered meanwhile, or at once.
    """
    fill(place, receiver.url, tasks=0)
    with running(place) as daemon:
        later = None if immediate else time.time_ns() // 1_000_000 + _DAY_MS
        requests = [load.create_request(daemon.url, KEYS, runtime_ms=later) for _ in range(tasks)]
        load.submit(daemon.url, requests[: tasks // 10], connections=32)
        before = machine.cpu_seconds(daemon.pid)
        rest = requests[tasks // 10 :]
        took, created = load.submit(daemon.url, rest, connections=32)
        cpu = machine.cpu_seconds(daemon.pid) - before
        if immediate:
            receiver.wait_for(tasks, within_s=60)
    return len(created) / took, cpu * 1000 / len(created)


def batch_rate(
    place: Place, receiver: Receiver, *, tasks: int, size: int, connections: int
) -> tuple[float, float]:
    """Tasks a second in batches of one client, due in a day, and the daemon's CPU ms
    for each task."""
    fill(place, receiver.url, tasks=0)
    with running(place) as daemon:
        later = time.time_ns() // 1_000_000 + _DAY_MS
        requests = [
            load.batch_request(daemon.url, KEYS, size, runtime_ms=later)
            for _ in range(tasks // size)
        ]
        load.submit(daemon.url, requests[: len(requests) // 10], connections=connections)
        rest = requests[len(requests) // 10 :]
        before = machine.cpu_seconds(daemon.pid)
        took, answered = load.submit(daemon.url, rest, connections=connections)
        cpu = machine.cpu_seconds(daemon.pid) - before
    return len(answered) * size / took, cpu * 1000 / (len(answered) * size)


def end_to_end_rate(place: Place, receiver: Receiver, *, tasks: int, size: int) -> float:
    """Tasks a second from the first batch, of tasks that are due at once, to the last
    delivery."""
    fill(place, receiver.url, tasks=0)
    with running(place) as daemon:
        warm = [load.batch_request(daemon.url, KEYS, size) for _ in range(3)]
        requests = [load.batch_request(daemon.url, KEYS, size) for _ in range(tasks // size)]
        load.submit(daemon.url, warm, connections=1)
        receiver.wait_for(3 * size, within_s=30)
        receiver.take()
        began = time.time_ns() / 1_000_000
        load.submit(daemon.url, requests, connections=1)
        arrived = receiver.wait_for(len(requests) * size, within_s=60)
    return len(arrived) / (max(at for _, at in arrived) - began) * 1000


def delivery_rate(place: Place, receiver: Receiver, *, tasks: int) -> float:
    """Deliveries a second from a backlog of due tasks, first to last arrival."""
    fill(place, receiver.url, tasks=tasks)
    receiver.take()
    with running(place):
        arrived = [at for _, at in receiver.wait_for(tasks, within_s=120)]
    return (len(arrived) - 1) / (max(arrived) - min(arrived)) * 1000


def lateness(place: Place, receiver: Receiver, *, per_second: int, seconds: int) -> list[float]:
    """Milliseconds from a task's due time to its arrival, for tasks that are due
    at an even rate and were submitted beforehand."""
    fill(place, receiver.url, tasks=0)
    count = per_second * seconds
    receiver.take()
    with running(place) as daemon:
        # Submitting takes about a millisecond a task; leave twice that.
        start = time.time_ns() // 1_000_000 + 2_000 + count * 2
        due = [start + index * 1000 // per_second for index in range(count)]
        requests = [load.create_request(daemon.url, KEYS, runtime_ms=at) for at in due]
        _, created = load.submit(daemon.url, requests, connections=1)
        due_of = {answer.task_id: at for answer, at in zip(created, due, strict=True)}
        arrived = receiver.wait_for(count, within_s=60 + count * 0.005 + seconds)
    late = [at - due_of[task_id] for task_id, at in arrived]
    # Both sides read the same clock; the due time is a whole millisecond.
    if min(late) < 0:
        raise AssertionError(f"a task arrived {-min(late):.3f} ms before its time")
    return late


def latency(place: Place, receiver: Receiver, *, per_second: int, seconds: int) -> list[float]:
    """Milliseconds from sending a create to the arrival of its delivery."""
    fill(place, receiver.url, tasks=0)
    count = per_second * seconds
    receiver.take()
    with running(place) as daemon:
        requests = [load.create_request(daemon.url, KEYS) for _ in range(count)]
        created = load.submit_paced(daemon.url, requests, per_second=per_second)
        arrived = dict(receiver.wait_for(count, within_s=30))
    return [arrived[answer.task_id] - answer.sent_ms for answer in created]


def create_latency_under_drain(
    place: Place, receiver: Receiver, *, backlog: int
) -> tuple[list[float], float]:
    """Milliseconds that creates take (40 a second, one connection) while so many
    due tasks drain, and the seconds the drain took."""
    fill(place, receiver.url, tasks=backlog)
    receiver.take()
    took = []
    with running(place) as daemon:
        arrived: list[tuple[int, float]] = []
        later = time.time_ns() // 1_000_000 + _DAY_MS
        began = time.perf_counter()
        while len(arrived) < backlog:
            requests = [load.create_request(daemon.url, KEYS, runtime_ms=later) for _ in range(10)]
            created = load.submit_paced(daemon.url, requests, per_second=40)
            took += [answer.took_ms for answer in created]
            arrived += receiver.take()
        seconds = time.perf_counter() - began
    return took, seconds


def neighbour(
    place: Place, receiver: Receiver, *, hung: int, per_second: int, seconds: int
) -> list[float]:
    """Milliseconds from a due time to the arrival, for an app whose tasks are due
    at an even rate beside another whose receiver hangs with so many due tasks."""
    with silent_receiver() as hung_url:
        if hung:
            fill(place, hung_url, tasks=hung, keys=HUNG_KEYS)
        return lateness(place, receiver, per_second=per_second, seconds=seconds)


def waiting(place: Place, receiver: Receiver, *, tasks: int) -> tuple[float, float]:
    """Resident MB and seconds to start with so many waiting tasks in the store."""
    if not place.database.exists():
        fill(place, receiver.url, tasks=tasks, due_at=time.time_ns() // 1_000_000 + _DAY_MS)
    with running(place) as daemon:
        time.sleep(3)
        return machine.resident_mb(daemon.pid), daemon.started_in_s

"""The measurements, each a function from a folder to figures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tools.bench import filling, load, machine
from tools.bench.stage import (
    HUNG_KEYS,
    KEYS,
    Daemon,
    Receiver,
    Slot,
    fill,
    running,
    silent_receiver,
)

_DAY_MS = 86_400_000


def submit_rate(
    place: Slot, receiver: Receiver, *, tasks: int, immediate: bool = False
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


def delivery_rate(
    place: Slot,
    receiver: Receiver,
    *,
    tasks: int,
    watch: Callable[[Daemon], object] | None = None,
) -> float:
    """Deliveries a second from a backlog of due tasks, first to last arrival.
    ``watch`` is told of the daemon."""
    fill(place, receiver.url, tasks=tasks)
    receiver.take()
    with running(place) as daemon:
        if watch is not None:
            watch(daemon)
        arrived = [at for _, at in receiver.wait_for(tasks, within_s=120)]
    return (len(arrived) - 1) / (max(arrived) - min(arrived)) * 1000


def lateness(
    place: Slot,
    receiver: Receiver,
    *,
    per_second: int,
    seconds: int,
    at_end: Callable[[Daemon], object] | None = None,
) -> list[float]:
    """Milliseconds from a task's due time to its arrival, for tasks that are due
    at an even rate and were submitted beforehand. ``at_end`` is told of the daemon."""
    fill(place, receiver.url, tasks=0)
    count = per_second * seconds
    receiver.take()
    with running(place) as daemon:
        # A thousand a second are submitted at least; leave twice that.
        start = time.time_ns() // 1_000_000 + 2_000 + count * 2
        due = [start + index * 1000 // per_second for index in range(count)]
        requests = [load.create_request(daemon.url, KEYS, runtime_ms=at) for at in due]
        _, created = load.submit(daemon.url, requests, connections=16)
        _be_early(start)
        due_of = {answer.task_id: at for answer, at in zip(created, due, strict=True)}
        arrived = receiver.wait_for(count, within_s=60 + count * 0.005 + seconds)
        if at_end is not None:
            at_end(daemon)
    late = [at - due_of[task_id] for task_id, at in arrived]
    # Both sides read the same clock; the due time is a whole millisecond.
    if min(late) < 0:
        raise AssertionError(f"a task arrived {-min(late):.3f} ms before its time")
    return late


def latency(place: Slot, receiver: Receiver, *, per_second: int, seconds: int) -> list[float]:
    """Milliseconds from sending a create to the arrival of its delivery."""
    fill(place, receiver.url, tasks=0)
    count = per_second * seconds
    receiver.take()
    with running(place) as daemon:
        requests = [load.create_request(daemon.url, KEYS) for _ in range(count)]
        created = load.submit_paced(daemon.url, requests, per_second=per_second)
        arrived = dict(receiver.wait_for(count, within_s=30))
    return [arrived[answer.task_id] - answer.sent_ms for answer in created]


def create_latency(
    place: Slot, receiver: Receiver, *, per_second: int, seconds: int
) -> list[float]:
    """Milliseconds that creates take at an even rate over one connection, for tasks
    that are due in a day."""
    fill(place, receiver.url, tasks=0)
    later = time.time_ns() // 1_000_000 + _DAY_MS
    with running(place) as daemon:
        requests = [
            load.create_request(daemon.url, KEYS, runtime_ms=later)
            for _ in range(per_second * seconds)
        ]
        created = load.submit_paced(daemon.url, requests, per_second=per_second)
    return [answer.took_ms for answer in created]


def create_latency_under_drain(
    place: Slot, receiver: Receiver, *, backlog: int
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


def _be_early(ms: int) -> None:
    """Refuse to measure what was submitted too late to be in time."""
    if time.time() * 1000 > ms:
        raise TimeoutError("submitting took longer than was left before the first due time")


@dataclass(frozen=True)
class Burst:
    """Many tasks at one instant."""

    drained_s: float
    """From the instant to the last arrival."""
    creates_ms: list[float]
    """What the creates took that were sent from the instant until then."""


def burst(place: Slot, receiver: Receiver, *, tasks: int, per_second: int) -> Burst:
    """So many tasks due at one instant, submitted beforehand, and creates at an even
    rate over one connection meanwhile."""
    fill(place, receiver.url, tasks=0)
    receiver.take()
    with running(place) as daemon:
        instant = time.time_ns() // 1_000_000 + 4_000 + tasks * 2
        requests = [load.create_request(daemon.url, KEYS, runtime_ms=instant) for _ in range(tasks)]
        load.submit(daemon.url, requests, connections=32)
        _be_early(instant - 1_000)
        later = instant + _DAY_MS
        aside = [
            load.create_request(daemon.url, KEYS, runtime_ms=later) for _ in range(per_second * 4)
        ]
        time.sleep((instant - 500) / 1000 - time.time())
        created = load.submit_paced(daemon.url, aside, per_second=per_second)
        arrived = [at for _, at in receiver.wait_for(tasks, within_s=60)]
    if min(arrived) < instant:
        raise AssertionError(f"a task arrived {instant - min(arrived):.3f} ms before its time")
    meanwhile = [one.took_ms for one in created if instant <= one.sent_ms <= max(arrived)]
    return Burst((max(arrived) - instant) / 1000, meanwhile)


def neighbour(
    place: Slot, receiver: Receiver, *, hung: int, per_second: int, seconds: int
) -> list[float]:
    """Milliseconds from a due time to the arrival, for an app whose tasks are due
    at an even rate beside another whose receiver hangs with so many due tasks."""
    with silent_receiver() as hung_url:
        if hung:
            fill(place, hung_url, tasks=hung, keys=HUNG_KEYS)
        return lateness(place, receiver, per_second=per_second, seconds=seconds)


def waiting(place: Slot, receiver: Receiver, *, tasks: int) -> tuple[float, float]:
    """Resident MB and seconds to start with so many waiting tasks in the store."""
    if not place.database.exists():
        filling.make(place, receiver.url, finished=0, waiting=tasks)
    with running(place) as daemon:
        time.sleep(3)
        return machine.resident_mb(daemon.pid), daemon.started_in_s

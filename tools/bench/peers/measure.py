"""What is measured of a peer, each a function from a stage to figures."""

from __future__ import annotations

import time
from typing import Any

from tools.bench.figures import percentile
from tools.bench.peers.stage import Stage

Figures = dict[str, Any]

_SUBMIT_S = 8
"""Longest that a throughput run submits; what was submitted by then counts."""
_QUIET_S = 10
_DELIVER_S = 60
_FIRST, _WARM_UP = 100, 1_000
_RUN_S = 6
"""About how long a throughput run may take; slower peers get fewer tasks."""
PACED, PACE = 250, 50
DELAYED, DELAYED_OVER_S = 1_000, 10


class Incomplete(Exception):
    """Tasks that were acknowledged did not all come, although nothing was killed."""


def warm_up(stage: Stage) -> None:
    """Some tasks that count for nothing: imports, connections, just-in-time code. They
    also tell how many a slow peer can be given."""
    mode = "batch" if stage.submitter.can_batch else "flight"
    stage.per_s = _throughput(stage, mode, _FIRST)["end_to_end_per_s"]
    stage.per_s = _throughput(stage, mode, tasks_for(stage, _WARM_UP))["end_to_end_per_s"]
    if mode == "batch":
        _throughput(stage, "flight", tasks_for(stage, _WARM_UP))


def tasks_for(stage: Stage, most: int) -> int:
    """So many tasks, or as many hundreds as the peer delivers in a few seconds."""
    return min(most, max(2 * _FIRST, int(stage.per_s * _RUN_S / _FIRST) * _FIRST))


def throughput(stage: Stage) -> Figures:
    """Submitting one at a time, 16 in flight, in batches: rates, CPU, memory."""
    figures: Figures = {}
    modes = ["single", "flight"] + (["batch"] if stage.submitter.can_batch else [])
    for mode in modes:
        figures[mode] = _throughput(stage, mode, tasks_for(stage, stage.peer.tasks))
    return figures


def _throughput(stage: Stage, mode: str, count: int) -> Figures:
    stage.receiver.take()
    before = stage.cpu_s()
    answer = stage.submitter.order(mode, stage.numbers(count), count, _SUBMIT_S)
    sent = len(answer.acknowledged)
    complete = stage.receiver.wait_for(sent, quiet_s=_QUIET_S, within_s=_DELIVER_S)
    time.sleep(0.3)  # acknowledgements and clean-up after the last delivery are work, too
    cpu = stage.cpu_s() - before
    refused = stage.receiver.count().refused
    arrived = stage.receiver.take()
    if not complete or not sent:
        raise Incomplete(f"{mode}: {len(arrived)} of {sent} tasks came; {answer.errors}")
    last_s = max(at_us for _, at_us in arrived) / 1e6
    return {
        "tasks": sent,
        "submit_per_s": sent / (answer.ended_s - answer.began_s),
        "end_to_end_per_s": sent / (last_s - answer.began_s),
        "cpu_s_per_1000": cpu / sent * 1000,
        "submitter_cpu_s_per_1000": answer.cpu_s / sent * 1000,
        "memory_mb": stage.memory_mb(),
        "repeated": len(arrived) - len({number for number, _ in arrived}),
        "refused": refused,
    }


def latency(stage: Stage) -> Figures:
    """From before the submitting call to the receiver, at an even 50 a second."""
    stage.receiver.take()
    first = stage.numbers(PACED)
    answer = stage.submitter.order("paced", first, PACED, PACED / PACE * 3, rate=PACE)
    complete = stage.receiver.wait_for(len(answer.acknowledged), quiet_s=_QUIET_S, within_s=30)
    arrived = dict(reversed(stage.receiver.take()))
    if not complete:
        raise Incomplete(f"latency: {len(arrived)} of {len(answer.acknowledged)} tasks came")
    took = [(at_us - answer.sent_us[number]) / 1000 for number, at_us in arrived.items()]
    return {"p50_ms": percentile(took, 0.5), "p99_ms": percentile(took, 0.99), "tasks": len(took)}


def lateness(stage: Stage, *, lead_s: float) -> Figures:
    """From its due time to a task's arrival, for a thousand that are due over ten
    seconds and were submitted before the first."""
    stage.receiver.take()
    first = stage.numbers(DELAYED)
    due_s = time.time() + lead_s
    answer = stage.submitter.order(
        "single", first, DELAYED, lead_s + 20, due_s=due_s, over_s=DELAYED_OVER_S
    )
    complete = stage.receiver.wait_for(
        len(answer.acknowledged), quiet_s=lead_s + 10, within_s=lead_s + DELAYED_OVER_S + 20
    )
    arrived = dict(reversed(stage.receiver.take()))
    if not complete:
        raise Incomplete(f"lateness: {len(arrived)} of {len(answer.acknowledged)} tasks came")
    late = [
        at_us / 1000 - (due_s + (number - first) * DELAYED_OVER_S / DELAYED) * 1000
        for number, at_us in arrived.items()
    ]
    return {
        "p50_ms": percentile(late, 0.5),
        "p99_ms": percentile(late, 0.99),
        "earliest_ms": min(late),
        "submitted_in_time": answer.ended_s <= due_s,
    }

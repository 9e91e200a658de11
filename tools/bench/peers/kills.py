"""What is lost and what comes twice when the worker, or the broker, dies in mid-run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from tools.bench.machine import cpu_seconds
from tools.bench.peers.measure import Figures, tasks_for
from tools.bench.peers.stage import Stage

Strike = Callable[[Stage], None]

KILL_TASKS = 3_000
_AFTER = 0.25
"""The share of the tasks that has been delivered when the kill comes."""
_SUBMIT_S = 20
_WITHIN_S = 40
_QUIET_S = 10


def worker(stage: Stage) -> Figures:
    """kill -9 of the workers while they work, and a new start at once. Of a taskd with
    several workers one is killed, and its supervisor makes up for it; one that is alone
    is its own broker, and `broker` says what becomes of it."""
    if stage.workers:
        return _kill(stage, _one_worker_of_taskd if stage.peer.broker == "taskd" else _workers)
    return _kill(stage, _submitter, delayed=True)


def broker(stage: Stage) -> Figures:
    """kill -9 of the broker while workers and submitter work, and a new start at once."""
    return _kill(stage, _daemon if stage.peer.broker == "taskd" else _broker)


def _kill(stage: Stage, strike: Strike, *, delayed: bool = False) -> Figures:
    stage.receiver.take()
    count = tasks_for(stage, min(KILL_TASKS, stage.peer.tasks))
    first = stage.numbers(count)
    if delayed:
        # Submitted before the kill, for the submitter is what is killed.
        answer = stage.submitter.order(
            "single", first, count, _SUBMIT_S, due_s=time.time() + 3, over_s=2
        )
        _reach(stage, count)
        strike(stage)
    else:
        mode = "batch" if stage.submitter.can_batch else "flight"
        order = stage.in_background(mode, first, count, _SUBMIT_S)
        _reach(stage, count)
        strike(stage)
        while not order.done:
            stage.tend()
            time.sleep(0.02)
        answer = order.answer(_SUBMIT_S)
    killed_at = time.monotonic()
    acknowledged = set(answer.acknowledged)
    quiet_s = _QUIET_S + stage.peer.recovers_s
    stage.receiver.wait_for(len(acknowledged), quiet_s=quiet_s, within_s=_WITHIN_S, tick=stage.tend)
    # As many have come, but some of them may have come twice; and what a dead worker
    # had in hand comes again only now.
    settled = time.monotonic() + (stage.peer.recovers_s or 1)
    while time.monotonic() < settled:
        stage.tend()
        time.sleep(0.05)
    arrived = [number for number, _ in stage.receiver.take()]
    return {
        "acknowledged": len(acknowledged),
        "lost": len(acknowledged - set(arrived)),
        "repeated": len(arrived) - len(set(arrived)),
        "restarts": stage.restarts,
        "waited_s": time.monotonic() - killed_at,
    }


def _reach(stage: Stage, count: int) -> None:
    """Wait until the share has been delivered."""
    if not stage.receiver.wait_for(int(count * _AFTER), quiet_s=15, within_s=40):
        raise RuntimeError("nothing to kill: too little was delivered")


def _workers(stage: Stage) -> None:
    for program in stage.workers:
        program.kill()
    stage.start_workers()


def _submitter(stage: Stage) -> None:
    stage.submitter.program.kill()
    stage.start_submitter()
    # Until it answers, its scheduler may not run yet.
    stage.submitter.order("single", stage.numbers(1), 0, 1)


def _one_worker_of_taskd(stage: Stage) -> None:
    (daemon,) = stage.workers
    children = [pid for pid in daemon.family() if pid != daemon.process.pid]
    if not children:
        _daemon(stage)
        return
    busiest = max(children, key=cpu_seconds)
    os.kill(busiest, signal.SIGKILL)


def _daemon(stage: Stage) -> None:
    _workers(stage)


def _broker(stage: Stage) -> None:
    stage.broker.kill()
    stage.broker.start()

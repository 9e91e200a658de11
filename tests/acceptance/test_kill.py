"""kill -9 in a loop under load: nothing acknowledged is lost, nothing is early,
repeats only where a kill overlapped an attempt, cancelled is cancelled.

The proof is kept by the receiver, which lives through all kills.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from taskd.client import Client
from taskd.errors import ClientError, RequestRefused
from tests.support.daemon import Daemon
from tests.support.receiver import Answer, Delivery, Receiver

_SUBMITTERS = 4
_SETTLE_GRACE_S = 1.0
"""An attempt lasts until its end is durable, which the receiver cannot see."""


@dataclass
class Ledger:
    """What the submitters were told."""

    due: dict[int, float] = field(default_factory=dict)
    """Acknowledged tasks: when each is due, in Unix seconds."""
    task_nos: dict[int, str] = field(default_factory=dict)
    asked: set[int] = field(default_factory=set)
    """Tasks whose cancel was asked for, whatever came of it."""
    cancelled: dict[int, float] = field(default_factory=dict)
    """Cancels answered with code 0, and when the answer was there."""
    unsent: set[int] = field(default_factory=set)
    """Those of them that were told ``never_sent``."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class Load:
    """Threads that submit and cancel for as long as the daemon answers."""

    def __init__(self, ledger: Ledger, keys: tuple[str, str], seed: int) -> None:
        self.ledger = ledger
        self.keys = keys
        self.seed = seed
        self.stopped = threading.Event()
        self.threads: list[threading.Thread] = []

    def start(self, url: str) -> None:
        self.stopped.clear()
        self.threads = [
            threading.Thread(target=self._submit, args=(url, self.seed * 100 + index), daemon=True)
            for index in range(_SUBMITTERS)
        ]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()

    def _submit(self, url: str, seed: int) -> None:
        rng = random.Random(seed)
        client = Client(url, *self.keys, timeout=10)
        number = 0
        while not self.stopped.is_set():
            number += 1
            kind = rng.choice(["quick", "quick", "quick", "late", "fails"])
            task_no = f"{kind}-{seed}-{number}"
            wait_s = rng.choice([0, 0, 0, 0.3, 1.0, 2.0])
            due = _now() + wait_s
            try:
                data = client.create_task(
                    task_no=task_no,
                    name=kind,
                    content="{}",
                    timeout=5_000,
                    runtime=round(due, 3) if wait_s else None,
                )
                task_id = int(data["coroutine_id"])
                with self.ledger.lock:
                    self.ledger.due[task_id] = round(due, 3) if wait_s else 0.0
                    self.ledger.task_nos[task_id] = task_no
                if rng.random() < 0.15:
                    self._cancel(client, task_id)
            except ClientError:
                # The daemon was killed under this request: nothing was promised.
                if not self.stopped.is_set():
                    self.stopped.wait(0.01)
        client.close()

    def _cancel(self, client: Client, task_id: int) -> None:
        with self.ledger.lock:
            self.ledger.asked.add(task_id)
        try:
            word = client.cancel(task_id)["delivery"]
        except RequestRefused:
            return  # it had ended
        with self.ledger.lock:
            self.ledger.cancelled[task_id] = _now()
            if word == "never_sent":
                self.ledger.unsent.add(task_id)


class Application:
    """Answers quickly, late, or with a failure first; notes when it had answered."""

    def __init__(self) -> None:
        self.answered: dict[tuple[int, int], float] = {}

    def __call__(self, delivery: Delivery) -> Answer:
        kind = delivery.task_no.partition("-")[0]
        after_s = 0.8 if kind == "late" else 0.0
        self.answered[delivery.task_id, delivery.attempt] = delivery.arrived_at + after_s
        if kind == "fails" and delivery.attempt == 1:
            return Answer(status=500, body=b"not yet")
        return Answer(after_s=after_s)


def test_kill_9_in_a_loop_under_load_keeps_the_promise(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    rounds = int(pytestconfig.getoption("--kill-rounds"))
    application = Application()
    ledger = Ledger()
    rng = random.Random(1)
    kills: list[float] = []
    delivered_per_round: list[int] = []
    with Receiver(application) as receiver:
        daemon = Daemon(tmp_path).start()
        try:
            keys = daemon.create_keys(receiver.url, step=0, retry_total=3)
            load = Load(ledger, keys, seed=1)
            for round_number in range(rounds):
                load.seed = round_number + 1
                before = len(receiver.ledger())
                load.start(daemon.url)
                receiver.wait_for(_more_than(before + 10))
                time.sleep(rng.uniform(0.1, 0.6))  # noqa: TID251 - the kill comes at any moment
                daemon.kill()
                kills.append(_now())
                load.stop()
                delivered_per_round.append(len(receiver.ledger()) - before)
                daemon.start()
            states = _wait_for_ends(daemon, keys, ledger)
        finally:
            daemon.kill()
        deliveries = receiver.ledger()
    assert len(kills) == rounds
    assert min(delivered_per_round) > 10
    assert ledger.cancelled
    assert set(states.values()) <= {"succeeded", "cancelled", "failed"}
    _check(ledger, states, deliveries, application.answered, kills)


def _now() -> float:
    return time.time()  # noqa: TID251 - the receiver's clock, outside of the daemon


def _more_than(count: int) -> Callable[[list[Delivery]], bool]:
    return lambda ledger: len(ledger) > count


def _wait_for_ends(daemon: Daemon, keys: tuple[str, str], ledger: Ledger) -> dict[int, str]:
    """Every acknowledged task's terminal state."""
    with Client(daemon.url, *keys) as client:
        return _ends(client, ledger)


def _started_by(task: dict[str, Any], moment: float) -> bool:
    """Whether no attempt was started after this, by the daemon's own ledger."""
    starts = [datetime.fromisoformat(attempt["startedAt"]) for attempt in task["attempts"]]
    return all(start.timestamp() <= moment for start in starts)


def _ends(client: Client, ledger: Ledger) -> dict[int, str]:
    states: dict[int, str] = {}
    deadline = time.monotonic() + 60
    missing = set(ledger.due)
    while missing:
        for task_id in sorted(missing):
            task = client.detail(coroutine_id=task_id)["task"]
            assert isinstance(task, dict)
            if task["state"] in ("succeeded", "failed", "cancelled"):
                states[task_id] = task["state"]
            if task["state"] == "cancelled" and task_id in ledger.cancelled:
                assert _started_by(task, ledger.cancelled[task_id]), task
            if task["state"] == "failed":
                # The one way to it here: five kills in a row came into its attempts.
                outcomes = [attempt["outcome"] for attempt in task["attempts"]]
                assert outcomes[-5:] == ["abandoned"] * 5, task
        missing -= set(states)
        assert time.monotonic() < deadline, f"{len(missing)} tasks have not ended"
    return states


def _check(
    ledger: Ledger,
    states: dict[int, str],
    deliveries: list[Delivery],
    answered: dict[tuple[int, int], float],
    kills: list[float],
) -> None:
    of_task: dict[int, list[Delivery]] = defaultdict(list)
    for delivery in deliveries:
        of_task[delivery.task_id].append(delivery)
    for task_id, due in ledger.due.items():
        arrived = of_task[task_id]
        told = f"task {task_id} {ledger.task_nos[task_id]} {states[task_id]}: {arrived}"
        if states[task_id] == "succeeded":
            assert arrived, f"acknowledged and never delivered: {told}"
        for delivery in arrived:
            assert delivery.arrived_at >= due, f"early: {told}"
        if task_id in ledger.cancelled:
            assert states[task_id] == "cancelled", told
        if states[task_id] == "cancelled":
            assert task_id in ledger.asked, f"nobody asked for it: {told}"
        if task_id in ledger.unsent:
            assert not arrived, f"never sent, and yet: {told}"
        attempts = [delivery.attempt for delivery in arrived]
        assert attempts == sorted(set(attempts)), f"an attempt was made twice: {told}"
        for earlier in arrived[:-1]:
            if ledger.task_nos[task_id].startswith("fails") and earlier.attempt == 1:
                continue
            end = answered[task_id, earlier.attempt] + _SETTLE_GRACE_S
            assert any(earlier.arrived_at - 0.1 <= kill <= end for kill in kills), (
                f"repeated without a kill: {told}"
            )

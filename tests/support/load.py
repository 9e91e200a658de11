"""A load on one daemon or several that may be killed under it, and the proof that
nothing acknowledged was lost, nothing early, and repeats had a cause.

The receiver's ledger is held against what the submitters were told; both live in
the test's process, through all faults.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from taskd.client import Client
from taskd.errors import ClientError, DaemonUnreachable, RequestRefused
from tests.support.receiver import Answer, Delivery

SETTLE_GRACE_S = 1.0
"""An attempt lasts until its end is durable, which the receiver cannot see."""

CANCEL_GRACE_S = 0.5
"""What was sent before a cancel's answer may be read after it, by a receiver that has
as many threads as requests."""

_SUBMITTERS = 4

Fault = tuple[float, float]
"""When it began, and when all that it may have harmed was over; Unix seconds."""


def now() -> float:
    return time.time()  # noqa: TID251 - the receiver's clock, outside of the daemon


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
    started: dict[tuple[int, int], float] = field(default_factory=dict)
    """When the attempts of ended tasks began, by task and number, as the daemon tells."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class Load:
    """Threads that submit and cancel, each through all the daemons in turns, for as
    long as any answers.

    Args:
        pause_s: between two tasks of a thread.
        retrying: where a connection is refused, the next daemon is asked, once.
    """

    def __init__(
        self,
        ledger: Ledger,
        keys: tuple[str, str],
        seed: int,
        *,
        pause_s: float = 0.0,
        retrying: bool = False,
    ) -> None:
        self.ledger = ledger
        self.keys = keys
        self.seed = seed
        self.pause_s = pause_s
        self.retrying = retrying
        self.stopped = threading.Event()
        self.threads: list[threading.Thread] = []
        self.refusals: list[str] = []
        """What a submitter was told instead of an answer."""

    def start(self, *urls: str) -> None:
        self.stopped.clear()
        self.threads = [
            threading.Thread(target=self._submit, args=(urls, self.seed * 100 + index), daemon=True)
            for index in range(_SUBMITTERS)
        ]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()

    def _submit(self, urls: Sequence[str], seed: int) -> None:
        rng = random.Random(seed)
        clients = [Client(url, *self.keys, timeout=10) for url in urls]
        turns = itertools.cycle(clients[seed % len(clients) :] + clients[: seed % len(clients)])
        number = 0
        while not self.stopped.is_set():
            number += 1
            kind = rng.choice(["quick", "quick", "quick", "late", "fails"])
            task_no = f"{kind}-{seed}-{number}"
            wait_s = rng.choice([0, 0, 0, 0.3, 1.0, 2.0])
            due = now() + wait_s
            try:
                task = {
                    "task_no": task_no,
                    "name": kind,
                    "content": "{}",
                    "timeout": 5_000,
                    "runtime": round(due, 3) if wait_s else None,
                }
                data = self._ask(turns, partial(_create, task=task))
                task_id = int(data["coroutine_id"])
                with self.ledger.lock:
                    self.ledger.due[task_id] = round(due, 3) if wait_s else 0.0
                    self.ledger.task_nos[task_id] = task_no
                if rng.random() < 0.15:
                    self._cancel(turns, task_id)
            except ClientError as error:
                # The daemon was killed under this request: nothing was promised.
                self.refusals.append(str(error))
                if not self.stopped.is_set():
                    self.stopped.wait(0.01)
            if self.pause_s:
                self.stopped.wait(self.pause_s)
        for client in clients:
            client.close()

    def _ask(
        self, turns: Iterator[Client], call: Callable[[Client], dict[str, Any]]
    ) -> dict[str, Any]:
        try:
            return call(next(turns))
        except DaemonUnreachable as error:
            if not self.retrying or not isinstance(error.__cause__, ConnectionRefusedError):
                raise
        return call(next(turns))

    def _cancel(self, turns: Iterator[Client], task_id: int) -> None:
        with self.ledger.lock:
            self.ledger.asked.add(task_id)
        try:
            word = self._ask(turns, lambda client: client.cancel(task_id))["delivery"]
        except RequestRefused:
            return  # it had ended
        with self.ledger.lock:
            self.ledger.cancelled[task_id] = now()
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


def _create(client: Client, task: dict[str, Any]) -> dict[str, Any]:
    return client.create_task(**task)


def wait_for_ends(client: Client, ledger: Ledger, *, within_s: float = 60) -> dict[int, str]:
    """Every acknowledged task's terminal state. There may be thousands, so ``within_s`` bounds
    how long none ends."""
    states: dict[int, str] = {}
    ended_at = time.monotonic()
    missing = set(ledger.due)
    while missing:
        for task_id in sorted(missing):
            task = client.detail(coroutine_id=task_id)["task"]
            assert isinstance(task, dict)
            if task["state"] in ("succeeded", "failed", "cancelled"):
                states[task_id] = task["state"]
                for attempt in task["attempts"]:
                    ledger.started[task_id, attempt["attempt"]] = _moment(attempt["startedAt"])
            if task["state"] == "cancelled" and task_id in ledger.cancelled:
                assert _started_by(task, ledger.cancelled[task_id]), task
            if task["state"] == "failed":
                # The one way to it here: five kills in a row came into its attempts.
                outcomes = [attempt["outcome"] for attempt in task["attempts"]]
                assert outcomes[-5:] == ["abandoned"] * 5, task
        if missing & states.keys():
            ended_at = time.monotonic()
        missing -= states.keys()
        assert time.monotonic() < ended_at + within_s, f"{len(missing)} tasks do not end"
    return states


def _started_by(task: dict[str, Any], moment: float) -> bool:
    """Whether no attempt was started after this, by the daemon's own ledger."""
    return all(_moment(attempt["startedAt"]) <= moment for attempt in task["attempts"])


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def check(
    ledger: Ledger,
    states: dict[int, str],
    deliveries: list[Delivery],
    answered: dict[tuple[int, int], float],
    faults: Sequence[Fault],
) -> int:
    """Hold the receiver's ledger against the submitters'. Returns how many deliveries
    no fault overlapped, for which nothing is excused."""

    def overlapped(delivery: Delivery) -> bool:
        # A receiver that has much to do reads some of what came long after it was sent.
        attempt = delivery.task_id, delivery.attempt
        end = answered[attempt] + SETTLE_GRACE_S
        started = ledger.started.get(attempt, delivery.arrived_at)
        return any(began <= end and started <= over for began, over in faults)

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
            latest = ledger.cancelled[task_id] + CANCEL_GRACE_S
            assert all(one.arrived_at <= latest for one in arrived), f"after its cancel: {told}"
        if states[task_id] == "cancelled":
            assert task_id in ledger.asked, f"nobody asked for it: {told}"
        if task_id in ledger.unsent:
            assert not arrived, f"never sent, and yet: {told}"
        attempts = [delivery.attempt for delivery in arrived]
        assert attempts == sorted(set(attempts)), f"an attempt was made twice: {told}"
        for earlier in arrived[:-1]:
            if ledger.task_nos[task_id].startswith("fails") and earlier.attempt == 1:
                continue
            assert overlapped(earlier), f"repeated without a fault: {told}"
    return sum(not overlapped(one) for one in deliveries)

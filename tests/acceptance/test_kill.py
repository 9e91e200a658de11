"""kill -9 in a loop under load: nothing acknowledged is lost, nothing is early,
repeats only where a kill overlapped an attempt, cancelled is cancelled.

The proof is kept by the receiver, which lives through all kills.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from taskd.client import Client
from tests.support.daemon import Daemon
from tests.support.load import Application, Fault, Ledger, Load, check, now, wait_for_ends
from tests.support.receiver import Delivery, Receiver


def test_kill_9_in_a_loop_under_load_keeps_the_promise(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    rounds = int(pytestconfig.getoption("--kill-rounds"))
    application = Application()
    ledger = Ledger()
    rng = random.Random(1)
    kills: list[Fault] = []
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
                kills.append((now(), now()))
                load.stop()
                delivered_per_round.append(len(receiver.ledger()) - before)
                daemon.start()
            with Client(daemon.url, *keys) as client:
                states = wait_for_ends(client, ledger)
        finally:
            daemon.kill()
        deliveries = receiver.ledger()
    assert len(kills) == rounds
    assert min(delivered_per_round) > 10
    assert ledger.cancelled
    assert set(states.values()) <= {"succeeded", "cancelled", "failed"}
    check(ledger, states, deliveries, application.answered, kills)


def _more_than(count: int) -> Callable[[list[Delivery]], bool]:
    return lambda ledger: len(ledger) > count

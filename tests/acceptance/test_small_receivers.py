"""A burst at a receiver that can do only a little of it at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from taskd.client import Client
from tests.support.daemon import Daemon, wait_until
from tests.support.gunicorn_receiver import GunicornReceiver
from tests.support.workers import events

pytestmark = pytest.mark.timeout(180)

MOST_EXECUTIONS = 1.2
"""Of each task."""


def due_at_once(client: Client, tasks: int, *, timeout_ms: int) -> None:
    client.create_tasks(
        [
            {"taskNo": f"burst-{number}", "name": "t", "content": "{}", "timeout": timeout_ms}
            for number in range(tasks)
        ]
    )


@dataclass(frozen=True)
class Case:
    workers: int
    each_s: float
    tasks: int
    timeout_ms: int
    sections: dict[str, dict[str, object]] = field(default_factory=dict)


@pytest.mark.parametrize(
    "case",
    [
        Case(workers=5, each_s=0.5, tasks=200, timeout_ms=5_000),
        Case(5, 0.1, 200, 2_000, {"server": {"workers": 2}}),
        Case(workers=1, each_s=0.1, tasks=50, timeout_ms=2_000),
    ],
    ids=["5", "5-two-workers", "1"],
)
def test_a_burst_at_a_few_sync_workers_succeeds(tmp_path: Path, case: Case) -> None:
    tasks = case.tasks
    needed_s = tasks * case.each_s / case.workers
    with (
        GunicornReceiver(tmp_path, workers=case.workers, each_s=case.each_s) as receiver,
        Daemon(tmp_path, sections=case.sections) as daemon,
        daemon.create_app(receiver.url, step=5, retry_total=3) as client,
    ):
        due_at_once(client, tasks, timeout_ms=case.timeout_ms)

        def ended() -> bool:
            attempts = events(daemon, "attempt")
            return sum(event["state"] in {"succeeded", "failed"} for event in attempts) == tasks

        wait_until(ended, within_s=4 * needed_s + 60, what="the end of all")
        states = [event["state"] for event in events(daemon, "attempt")]
        assert states.count("succeeded") == tasks
        executions = receiver.executions()
        assert len(executions) == tasks
        assert executions.total() <= MOST_EXECUTIONS * tasks

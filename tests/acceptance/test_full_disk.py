"""A daemon whose disk is full: 503, not ready, and at work again by itself."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from taskd.client import Client
from taskd.errors import ClientError, RequestRefused
from tests.support.daemon import Daemon, wait_until
from tests.support.receiver import Answer, Receiver
from tests.support.workers import worker_pids

_CONTENT = '"' + "x" * 50_000 + '"'


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_costs_time_only(tmp_path: Path, workers: int) -> None:
    sections = {"server": {"workers": workers}}
    with (
        Receiver(lambda _: Answer(after_s=0.5)) as receiver,
        Daemon(tmp_path, sections=sections) as daemon,
    ):
        processes = [daemon.pid, *worker_pids(daemon)]
        keys = daemon.create_keys(receiver.url)
        with Client(daemon.url, *keys) as app:

            def create(number: int) -> int:
                data = app.create_task(
                    task_no=f"no-{number}", name="t", content=_CONTENT, timeout=10_000
                )
                return int(data["coroutine_id"])

            # No file of the daemon's may grow past this, as on a disk that is full.
            _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
            for pid in processes:
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (2_000_000, hard))
            made: list[int] = []
            refusal = fill_up(create, made)
            assert refusal.code == 503
            assert "store" in str(refusal)
            wait_until(lambda: not ready(app), what="not being ready")
            assert app.healthy()
            for pid in processes:
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
            wait_until(lambda: ready(app), what="being ready")
            made.append(create(len(made)))
            for task_id in made:
                wait_until(lambda task_id=task_id: state(app, task_id) == "succeeded", within_s=30)
        delivered = sorted((delivery.task_id, delivery.attempt) for delivery in receiver.ledger())
        assert {task_id for task_id, _ in delivered} == set(made)
        assert len(set(delivered)) == len(delivered)


def fill_up(create: Callable[[int], int], made: list[int]) -> RequestRefused:
    """Create until it is refused; what refused it."""
    while True:
        try:
            made.append(create(len(made)))
        except RequestRefused as refusal:
            return refusal


def ready(app: Client) -> bool:
    try:
        return app.ready()
    except ClientError:
        return False


def state(app: Client, task_id: int) -> str:
    return str(app.detail(coroutine_id=task_id)["task"]["state"])

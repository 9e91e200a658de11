"""A task that kills its daemon each time ends as failed; those beside it are delivered."""

from __future__ import annotations

from pathlib import Path

from taskd.client import Client
from taskd.errors import DaemonUnreachable
from tests.support.daemon import Daemon, wait_until
from tests.support.receiver import Answer, Delivery, Receiver

_INNOCENT = 20
_MOST_DEATHS = 12


def test_the_culprit_is_found_and_the_innocent_are_spared(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    deaths = 0

    def answer(delivery: Delivery) -> Answer:
        nonlocal deaths
        if delivery.task_no == "culprit":
            deaths += 1
            daemon.process.kill()
        # Long enough for many to be under way at each death.
        return Answer(after_s=0.2)

    numbers = range(_INNOCENT)
    task_nos = [f"innocent-{number}" for number in numbers]
    task_nos.insert(_INNOCENT // 2, "culprit")
    with Receiver(answer) as receiver, daemon:
        keys = daemon.create_keys(receiver.url)
        with Client(daemon.url, *keys) as app:
            app.create_tasks(
                [{"taskNo": one, "name": "n", "content": 1, "timeout": 5_000} for one in task_nos]
            )

        def state(task_no: str) -> str:
            try:
                if daemon.process.poll() is not None:
                    daemon.kill()
                    daemon.start()
                with Client(daemon.url, *keys) as app:
                    return str(app.detail(task_no=task_no)["task"]["state"])
            except (DaemonUnreachable, AssertionError):
                return "unknown"  # it has ended again, perhaps while it started

        wait_until(lambda: state("culprit") == "failed", within_s=90)
        assert deaths <= _MOST_DEATHS
        for task_no in task_nos:
            wait_until(lambda: state(task_no) in {"succeeded", "failed"})  # noqa: B023 - called at once
        assert [one for one in task_nos if state(one) == "failed"] == ["culprit"]

"""What tasks with long contents take of a daemon's memory while they are under way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from taskd.client import Client
from tests.support.daemon import Daemon, wait_until
from tests.support.hung import hung_receivers
from tests.support.receiver import Receiver
from tests.support.workers import events

MB = 1_000_000
RECEIVERS, TASKS, BOUND = 20, 200, 16 * 1_048_576
_CONTENT = json.dumps("x" * (MB - 1_000))


def peak_bytes(daemon: Daemon) -> int:
    """The most memory that it has had since it was started."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


@pytest.mark.timeout(180)
def test_long_contents_under_way_are_bounded_and_others_are_delivered(tmp_path: Path) -> None:
    sections: Mapping[str, Mapping[str, object]] = {"worker": {"max_bytes": BOUND}}
    with (
        hung_receivers(RECEIVERS) as urls,
        Receiver() as receiver,
        Daemon(tmp_path, sections=sections) as daemon,
    ):
        keys = daemon.create_keys(receiver.url)

        def deliver(task_no: str) -> None:
            with Client(daemon.url, *keys) as client:
                client.create_task(task_no=task_no, name="t", content="{}", timeout=5_000)
            receiver.wait_for(lambda ledger: task_no in {one.task_no for one in ledger})

        clients = [daemon.create_app(url) for url in urls]
        before = peak_bytes(daemon)
        for number in range(TASKS):
            clients[number % RECEIVERS].create_task(
                task_no=f"long-{number}", name="t", content=_CONTENT, timeout=3_600_000
            )
        for client in clients:
            client.close()
        # What was begun at once, what was leased, and the requests as they came.
        assert peak_bytes(daemon) - before <= BOUND + 48 * MB
        deliver("short")

        daemon.kill()
        daemon.start()  # and all of it is read from the store
        started = peak_bytes(daemon)
        deliver("short-again")
        told = "tasks wait for room for their contents"
        wait_until(lambda: len(events(daemon, told)) == 2, within_s=60, what="that it is told")
        assert peak_bytes(daemon) - started <= BOUND + 32 * MB

"""A machine whose clock ran ahead and is set back: nothing waits for hours because of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.daemon import Daemon, wait_until
from tests.support.receiver import Answer, Receiver
from tests.support.services import faketime_library

_AHEAD = "+21600s"


@pytest.mark.parametrize("workers", [1, 2])
def test_retries_go_on_after_the_clock_was_set_back(tmp_path: Path, workers: int) -> None:
    offset = tmp_path / "offset"
    offset.write_text(_AHEAD)
    clock = {
        "LD_PRELOAD": faketime_library(),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    # The client's clock is right, and six hours behind.
    sections = {"auth": {"window": 86_400}, "server": {"workers": workers}}
    with (
        Receiver(lambda delivery: Answer(500) if delivery.attempt == 1 else Answer()) as receiver,
        Daemon(tmp_path, sections=sections, environ=clock) as daemon,
        daemon.create_app(receiver.url, step=3) as app,
    ):
        app.create_task(task_no="retried", name="n", content="1", timeout=5_000)
        receiver.wait_for(lambda ledger: len(ledger) == 1)
        offset.write_text("+0s")
        wait_until(lambda: "the wall clock was set back" in daemon.log())
        receiver.wait_for(lambda ledger: len(ledger) == 2, within_s=20)
        # What is accepted from now on goes by the new time.
        app.create_task(task_no="new", name="n", content="1", timeout=5_000)
        receiver.wait_for(lambda ledger: len(ledger) == 4, within_s=20)

"""What a supervisor shares out, and what it makes of a system that has no room."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskd.config import Config, WorkerConfig
from taskd.daemon.supervisor.worker_main import share
from taskd.daemon.supervisor.worker_process import Ends, fork


@given(st.integers(1, 64), st.integers(64, 5_000), st.integers(64, 5_000))
def test_the_parts_make_the_whole(workers: int, running: int, per_origin: int) -> None:
    config = Config(worker=WorkerConfig(max_running=running, max_per_origin=per_origin))
    parts = [share(config, seat, workers).worker for seat in range(workers)]
    assert sum(one.max_running for one in parts) == running
    assert sum(one.max_per_origin for one in parts) == per_origin
    assert sum(one.max_bytes for one in parts) == config.worker.max_bytes
    assert min(min(one.max_running, one.max_per_origin) for one in parts) >= 1


def test_a_fork_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> int:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    def body(_ends: Ends) -> int:
        raise AssertionError("nothing was forked")

    monkeypatch.setattr(os, "fork", none)
    files = len(list(Path("/proc/self/fd").iterdir()))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(OSError, match="allocate"):
        fork(0, body=body, close=lambda: None)
    assert len(list(Path("/proc/self/fd").iterdir())) == files
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == blocked

"""SIGTERM and SIGINT: what is in hand ends, what is not is given back, exit 0."""

from __future__ import annotations

import contextlib
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from taskd.client import Client
from taskd.errors import RequestRefused
from tests.support.daemon import Daemon, wait_until
from tests.support.receiver import Answer, Receiver
from tests.support.workers import events, worker_pids

_DRAIN_S = 2
_LATE_S = 5
"""By how much an end may come late on a machine that has other work."""


DaemonAt = Callable[[Path], Daemon]


@pytest.fixture(params=[1, 2], ids=["one process", "two workers"])
def daemon_at(request: pytest.FixtureRequest) -> DaemonAt:
    """Makes a daemon in a folder."""
    server = {"drain_timeout": _DRAIN_S, "workers": request.param}
    return lambda folder: Daemon(folder, sections={"server": server})


def create(daemon: Daemon, keys: tuple[str, str], task_no: str) -> int:
    with Client(daemon.url, *keys) as app:
        data = app.create_task(task_no=task_no, name="t", content="1", timeout=60_000)
    return int(data["coroutine_id"])


def task_of(daemon: Daemon, keys: tuple[str, str], task_id: int) -> dict[str, Any]:
    with Client(daemon.url, *keys) as app:
        task: dict[str, Any] = app.detail(coroutine_id=task_id)["task"]
    return task


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_daemon_stops_at_once(
    tmp_path: Path, daemon_at: DaemonAt, number: signal.Signals
) -> None:
    with daemon_at(tmp_path) as daemon:
        began = time.monotonic()
        daemon.signal(number)
        assert daemon.wait() == 0
        assert time.monotonic() - began < _DRAIN_S
        assert "stopped" in daemon.log()


def test_attempts_in_hand_end_before_the_daemon_does(tmp_path: Path, daemon_at: DaemonAt) -> None:
    release = threading.Event()
    with Receiver(lambda _: Answer(hold=release)) as receiver, daemon_at(tmp_path) as daemon:
        keys = daemon.create_keys(receiver.url)
        task_id = create(daemon, keys, "in-hand")
        receiver.wait_for(lambda ledger: len(ledger) == 1)
        daemon.signal(signal.SIGTERM)
        wait_until(lambda: "draining" in daemon.log())
        release.set()
        assert daemon.wait() == 0
        daemon.start()
        task = task_of(daemon, keys, task_id)
        assert task["state"] == "succeeded"
        assert [attempt["attempt"] for attempt in task["attempts"]] == [1]
        assert len(receiver.ledger()) == 1


def test_a_draining_daemon_says_so_and_accepts_no_more(tmp_path: Path, daemon_at: DaemonAt) -> None:
    release = threading.Event()
    with Receiver(lambda _: Answer(hold=release)) as receiver, daemon_at(tmp_path) as daemon:
        keys = daemon.create_keys(receiver.url)
        create(daemon, keys, "in-hand")
        receiver.wait_for(lambda ledger: len(ledger) == 1)
        with Client(daemon.url, *keys) as kept:
            assert kept.ready()
            processes = max(len(worker_pids(daemon)), 1)
            daemon.signal(signal.SIGTERM)
            wait_until(lambda: len(events(daemon, "draining")) == processes)
            for _ in range(2):  # the connection that is open, and a new one
                with pytest.raises(RequestRefused, match="draining"):
                    kept.create_task(task_no="late", name="t", content="1", timeout=1)
            assert not kept.ready()
            assert kept.healthy()
        release.set()
        assert daemon.wait() == 0
        daemon.start()
        with Client(daemon.url, *keys) as app:
            assert app.detail(task_no="late")["state"] is None


def test_a_receiver_that_never_answers_does_not_hold_the_daemon(
    tmp_path: Path, daemon_at: DaemonAt
) -> None:
    release = threading.Event()

    def answer(delivery: object) -> Answer:
        return Answer(hold=None if release.is_set() else release)

    with Receiver(answer) as receiver, daemon_at(tmp_path) as daemon:
        keys = daemon.create_keys(receiver.url)
        task_id = create(daemon, keys, "hung")
        receiver.wait_for(lambda ledger: len(ledger) == 1)
        began = time.monotonic()
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert _DRAIN_S - 0.2 <= time.monotonic() - began <= _DRAIN_S + _LATE_S
        release.set()
        daemon.start()
        # Given back, so it runs again at once and not after a lease.
        receiver.wait_for(lambda ledger: len(ledger) == 2, within_s=3)
        assert [delivery.attempt for delivery in receiver.ledger()] == [1, 2]
        wait_until(lambda: task_of(daemon, keys, task_id)["state"] == "succeeded")
        task = task_of(daemon, keys, task_id)
        assert [attempt["outcome"] for attempt in task["attempts"]] == ["abandoned", "succeeded"]


def test_a_task_whose_daemon_is_killed_at_every_stop_is_not_to_blame(tmp_path: Path) -> None:
    """As by an init system that waits for less long than a drain takes."""
    release = threading.Event()

    def answer(delivery: object) -> Answer:
        return Answer(hold=None if release.is_set() else release)

    def noted() -> int:
        with contextlib.closing(sqlite3.connect(tmp_path / "taskd.db")) as store:
            (number,) = store.execute("SELECT count(*) FROM node_ends WHERE stopping").fetchone()
        return int(number)

    daemon = Daemon(tmp_path, sections={"server": {"drain_timeout": 60}})
    with Receiver(answer) as receiver, daemon:
        keys = daemon.create_keys(receiver.url)
        task_id = create(daemon, keys, "hung")
        for stops in range(1, 7):
            receiver.wait_for(lambda ledger, wanted=stops: len(ledger) == wanted)  # type: ignore[misc] # mypy infers no lambda with a default
            daemon.signal(signal.SIGTERM)
            wait_until(lambda wanted=stops: noted() == wanted)
            daemon.kill()
            daemon.start()
        release.set()
        wait_until(lambda: task_of(daemon, keys, task_id)["state"] == "succeeded", within_s=30)
        outcomes = [a["outcome"] for a in task_of(daemon, keys, task_id)["attempts"]]
        assert outcomes == ["abandoned"] * 6 + ["succeeded"]


def test_a_client_that_reads_nothing_does_not_hold_the_daemon(
    tmp_path: Path, daemon_at: DaemonAt
) -> None:
    with daemon_at(tmp_path) as daemon:
        parts = urlsplit(daemon.url)
        assert parts.hostname is not None
        assert parts.port is not None
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect((parts.hostname, parts.port))
            slow.setblocking(False)
            request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
            # Ask until the daemon can't get its answers out any more.
            stuck_since = None
            deadline = time.monotonic() + 20
            while stuck_since is None or time.monotonic() - stuck_since < 0.5:
                assert time.monotonic() < deadline
                try:
                    slow.send(request * 100)
                    stuck_since = None
                except BlockingIOError:
                    stuck_since = stuck_since or time.monotonic()
            began = time.monotonic()
            daemon.signal(signal.SIGTERM)
            assert daemon.wait() == 0
            assert time.monotonic() - began <= _DRAIN_S + _LATE_S


def test_a_store_that_does_not_answer_does_not_hold_the_daemon(
    tmp_path: Path, daemon_at: DaemonAt
) -> None:
    """Another program holds the database's write lock, as a backup may."""
    release = threading.Event()
    with Receiver(lambda _: Answer(hold=release)) as receiver, daemon_at(tmp_path) as daemon:
        keys = daemon.create_keys(receiver.url)
        task_id = create(daemon, keys, "hung")
        receiver.wait_for(lambda ledger: len(ledger) == 1)
        holder = sqlite3.connect(tmp_path / "taskd.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert time.monotonic() - began <= _DRAIN_S + _LATE_S
        holder.execute("ROLLBACK")
        holder.close()
        release.set()
        daemon.start()
        wait_until(lambda: task_of(daemon, keys, task_id)["state"] == "succeeded")
        assert [delivery.attempt for delivery in receiver.ledger()] == [1, 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("apart_s", [0.001, 0.003, 0.006, 0.02])
def test_a_second_signal_at_the_very_end_changes_no_exit_code(
    tmp_path: Path, daemon_at: DaemonAt, number: signal.Signals, apart_s: float
) -> None:
    """As a supervisor sends it to the process and to its group."""
    with daemon_at(tmp_path) as daemon:
        daemon.signal(number)
        time.sleep(apart_s)  # noqa: TID251 - the second one comes at any moment
        daemon.signal(number)
        assert daemon.wait() == 0


def test_a_second_signal_ends_at_once_and_loses_nothing(
    tmp_path: Path, daemon_at: DaemonAt
) -> None:
    release = threading.Event()

    def answer(delivery: object) -> Answer:
        return Answer(hold=None if release.is_set() else release)

    with Receiver(answer) as receiver, daemon_at(tmp_path) as daemon:
        keys = daemon.create_keys(receiver.url)
        create(daemon, keys, "hung")
        receiver.wait_for(lambda ledger: len(ledger) == 1)
        began = time.monotonic()
        daemon.signal(signal.SIGTERM)
        wait_until(lambda: "draining" in daemon.log())
        time.sleep(0.5)  # noqa: TID251 - sooner, it passes for the first one again
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 1
        assert time.monotonic() - began < _DRAIN_S
        release.set()
        daemon.start()
        receiver.wait_for(lambda ledger: len(ledger) == 2)
        assert [delivery.attempt for delivery in receiver.ledger()] == [1, 2]

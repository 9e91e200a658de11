"""A stop ends within what Docker waits, whatever hangs, and at any moment."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from taskd.config import Config
from taskd.daemon.run import END_S
from taskd.daemon.supervisor.supervisor import _DRAIN_MARGIN_S
from taskd.engine.pace import START
from tests.support.cluster import Cluster
from tests.support.daemon import Daemon, wait_until
from tests.support.receiver import Answer, Receiver
from tests.support.slow_disk import SlowDisk
from tests.support.workers import events, worker_pids
from tools.servers import Database, Nsqd, Redis

_DOCKER_S = 10.0
_PATIENCE_S = 1.0
_SLACK_S = 1.5
"""For what a machine that is busy with other tests takes longer."""

_WITHIN_S = _PATIENCE_S + _DRAIN_MARGIN_S + _SLACK_S


@contextmanager
def hung_attempts(daemon: Daemon, count: int = START) -> Iterator[None]:
    """So many attempts whose receiver never answers, for a daemon that is started here."""
    release = threading.Event()
    with Receiver(lambda _: Answer(hold=release)) as receiver, daemon:
        with daemon.create_app(receiver.url) as app:
            for number in range(count):
                app.create_task(task_no=f"{number}", name="t", content="1", timeout=60_000)
        receiver.wait_for(lambda ledger: len(ledger) == count)
        yield
        release.set()


def connected_to(port: int) -> bool:
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[3] == "01" and int(row[2].partition(":")[2], 16) == port for row in rows)


def stop(daemon: Daemon) -> int:
    began = time.monotonic()
    daemon.signal(signal.SIGTERM)
    code = daemon.wait(60)
    took = time.monotonic() - began
    assert took < _WITHIN_S, f"it took {took:.1f} s:\n{daemon.log()[-3000:]}"
    return code


def test_the_defaults_leave_docker_no_reason_to_kill() -> None:
    assert Config().server.drain_timeout + max(END_S, _DRAIN_MARGIN_S) <= _DOCKER_S - 0.2


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_hangs_does_not_hold_up_the_end(tmp_path: Path, workers: int) -> None:
    disk = SlowDisk(tmp_path / "disk")
    sections = {"server": {"workers": workers, "drain_timeout": _PATIENCE_S}}
    daemon = Daemon(tmp_path, sections=sections, environ=disk.environ)
    with hung_attempts(daemon):
        disk.hang()
        stop(daemon)
        assert daemon.process.returncode in {0, 1}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_standard_error_that_is_stuck_does_not_hold_up_the_end(
    tmp_path: Path, workers: int
) -> None:
    sections = {"server": {"workers": workers, "drain_timeout": _PATIENCE_S}}
    daemon = Daemon(tmp_path, sections=sections)
    daemon.log_path.unlink(missing_ok=True)
    os.mkfifo(daemon.log_path)
    reading = os.open(daemon.log_path, os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(daemon.log_path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        while os.write(writing, b"x" * 4096):
            pass
    except BlockingIOError:
        pass
    daemon.log = lambda: ""  # type: ignore[method-assign]  # nobody reads it
    try:
        with hung_attempts(daemon):
            assert stop(daemon) == 0
    finally:
        os.close(writing)
        os.close(reading)


def test_a_worker_that_is_stopped_does_not_hold_up_the_end(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, sections={"server": {"workers": 2, "drain_timeout": _PATIENCE_S}})
    with hung_attempts(daemon):
        os.kill(worker_pids(daemon)[0], signal.SIGSTOP)
        assert stop(daemon) == 1
        assert events(daemon, "a worker did not end in time, and is killed")


def test_a_loop_that_hangs_is_cut_off(tmp_path: Path) -> None:
    """As by a defect of a library's: the event loop gets no turn any more."""
    hang = "import time, taskd.api.server as s; s.ApiServer.say_goodbye = "
    hang += "lambda self: time.sleep(60); from taskd.__main__ import main; main()"
    command = (sys.executable, "-c", hang)
    daemon = Daemon(tmp_path, sections={"server": {"drain_timeout": _PATIENCE_S}}, command=command)
    with hung_attempts(daemon, 1):
        assert stop(daemon) == 1
        assert events(daemon, "the end took too long, and was cut off: nothing is lost by it")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_in_the_middle_of_a_start_ends_it(tmp_path: Path, workers: int) -> None:
    disk = SlowDisk(tmp_path / "disk")
    disk.hang()
    sections = {"server": {"workers": workers, "drain_timeout": _PATIENCE_S}}
    daemon = Daemon(tmp_path, sections=sections, environ=disk.environ)
    daemon.launch()
    try:
        wait_until((tmp_path / "taskd.db.lock").exists, what="that the store is made")
        stop(daemon)
    finally:
        daemon.kill()


@pytest.mark.parametrize("frozen", ["the database", "all servers"])
def test_servers_that_hang_do_not_hold_up_the_end(
    tmp_path: Path,
    private_database: Callable[..., Database],
    private_redis: Callable[..., Redis],
    nsqd: Nsqd,
    frozen: str,
) -> None:
    store, bus = private_database(), private_redis()
    urls = {
        "store": store.create_database(),
        "bus": bus.url,
        "queue": f"nsq://{nsqd.address}",
    }
    patience: dict[str, dict[str, object]] = {"server": {"drain_timeout": _PATIENCE_S}}
    cluster = Cluster(tmp_path, urls, nodes=1, per_node={0: patience})
    cluster.migrate()
    servers: list[Database | Redis | Nsqd] = (
        [store] if frozen == "the database" else [store, bus, nsqd]
    )
    try:
        with hung_attempts(cluster[0]):
            for server in servers:
                server.freeze()
            assert stop(cluster[0]) == 0
            # Neither does a start wait for what does not answer.
            cluster[0].launch()
            asks = "that it asks the database"
            wait_until(lambda: connected_to(store.port), within_s=30, what=asks)
            assert stop(cluster[0]) == 0
    finally:
        cluster.kill()
        for server in servers:
            server.thaw()


def test_a_stop_that_is_sent_to_all_processes_drains_them(tmp_path: Path) -> None:
    """As systemd sends it to a whole service: what a worker then gets from its
    supervisor as well is no second signal, however late it comes."""
    release = threading.Event()
    daemon = Daemon(tmp_path, sections={"server": {"workers": 2, "drain_timeout": 60}})
    with Receiver(lambda _: Answer(hold=release)) as receiver, daemon:
        with daemon.create_app(receiver.url) as app:
            for number in range(8):
                app.create_task(task_no=f"{number}", name="t", content="1", timeout=60_000)
        receiver.wait_for(lambda ledger: len(ledger) == 8)
        workers = worker_pids(daemon)
        for pid in workers:
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda: len(events(daemon, "draining")) == 2)
        time.sleep(0.5)  # noqa: TID251 - sooner, it passes for the first one again
        daemon.signal(signal.SIGTERM)
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):  # it had no attempts, and has ended
                os.kill(pid, signal.SIGTERM)
        wait_until(
            lambda: "taskd.supervisor" in {one["logger"] for one in events(daemon, "signal")}
        )
        release.set()
        assert daemon.wait(30) == 0
        assert not events(daemon, "a second signal: ended at once")
        assert {one["outcome"] for one in events(daemon, "attempt")} == {"succeeded"}

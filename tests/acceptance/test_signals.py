"""Signals from the first moment on: what asks for nothing does no harm, and the first
process of a container is one that hears them and forgets its orphans."""

from __future__ import annotations

import ctypes
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from taskd.runtime import signals
from tests.support.daemon import Daemon, wait_until
from tests.support.workers import events, worker_pids

_PR_SET_CHILD_SUBREAPER = 36
_NO_ORDERS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT, signal.SIGPIPE, *signals.IGNORED)
_AT_S = (0.0, 0.08, 0.2, 0.4)
"""Moments of a start, which takes longer than the last of them."""


DaemonAt = Callable[[Path], Daemon]


@pytest.fixture(params=[1, 2], ids=["one process", "two workers"])
def daemon_at(request: pytest.FixtureRequest) -> DaemonAt:
    return lambda folder: Daemon(folder, sections={"server": {"workers": request.param}})


def test_what_asks_for_nothing_does_no_harm(tmp_path: Path, daemon_at: DaemonAt) -> None:
    with daemon_at(tmp_path) as daemon:
        processes = [daemon.pid, *worker_pids(daemon)]
        for pid in processes:
            for number in _NO_ORDERS:
                os.kill(pid, number)
        wait_until(lambda: len(events(daemon, "status")) >= len(processes), what="their state")
        told = {key for event in events(daemon, "status") for key in event}
        assert {"running", "connections", "receivers_idle"} <= told
        for pid in processes[1:]:  # which hear of it from their supervisor
            os.kill(pid, signal.SIGHUP)
        said = "a signal that asks for nothing"

        def quits() -> int:
            return sum(one["signal"] == "SIGQUIT" for one in events(daemon, said))

        wait_until(lambda: quits() == len(processes), what="a line of each")
        assert [daemon.pid, *worker_pids(daemon)] == processes
        daemon.create_keys("http://127.0.0.1:9/")
        assert daemon.stop() == 0


def test_an_order_in_the_middle_of_a_start_does_no_harm(
    tmp_path: Path, daemon_at: DaemonAt
) -> None:
    for after_s in _AT_S:
        daemon = daemon_at(tmp_path)
        daemon.launch()
        try:
            wait_until(lambda d=daemon: started(d.pid))
            time.sleep(after_s)  # noqa: TID251 - it comes at any moment
            for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT):
                daemon.signal(number)
            assert daemon.process.stdout is not None
            assert "taskd is listening on" in daemon.process.stdout.readline()
            assert daemon.stop() == 0
        finally:
            daemon.kill()


def started(pid: int) -> bool:
    """Whether a process has come to handle SIGTERM, which is its first act. No program
    can answer for what comes before, while Python itself starts."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.M)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_a_stop_in_the_middle_of_a_start_is_a_clean_one(
    tmp_path: Path, daemon_at: DaemonAt
) -> None:
    for after_s in _AT_S:
        daemon = daemon_at(tmp_path)
        daemon.launch()
        wait_until(lambda d=daemon: started(d.pid))
        time.sleep(after_s)  # noqa: TID251 - it comes at any moment
        daemon.signal(signal.SIGTERM)
        try:
            assert daemon.wait(5) == 0, daemon.log()
        finally:
            daemon.kill()


_STOPPED_IN_BETWEEN = """
import os, signal, time
from taskd.runtime import signals
attend = signals.attend
def attend_and_stop(numbers):
    attend(numbers)
    os.kill(os.getpid(), signal.SIGTERM)
    # Any other thread that may take it does so meanwhile.
    time.sleep(0.3)
signals.attend = attend_and_stop
from taskd.__main__ import main
main()
"""


def test_a_stop_is_not_lost_before_somebody_hears_it(tmp_path: Path, daemon_at: DaemonAt) -> None:
    daemon = daemon_at(tmp_path)
    daemon.command = (sys.executable, "-c", _STOPPED_IN_BETWEEN)
    daemon.launch()
    try:
        assert daemon.wait(30) == 0, daemon.log()
    finally:
        daemon.kill()


class Contained(Daemon):
    """A daemon that is the first process of a namespace of its own, as in a container."""

    @property
    def pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        wait_until(children.read_text, what="the first process")
        return int(children.read_text())

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


def contained(folder: Path, workers: int, *program: str) -> Contained:
    unshare = shutil.which("unshare")
    command = (unshare or "", "--pid", "--fork", "--mount-proc", "--kill-child")
    if unshare is None or subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("no namespaces here: needs unshare (util-linux) and root")
    program = program or (sys.executable, "-m", "taskd")
    return Contained(
        folder, sections={"server": {"workers": workers}}, command=(*command, *program)
    )


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_process_of_a_container_hears_a_stop(
    tmp_path: Path, workers: int, number: signal.Signals
) -> None:
    with contained(tmp_path, workers) as daemon:
        daemon.create_keys("http://127.0.0.1:9/")
        daemon.signal(signal.SIGHUP)
        wait_until(lambda: events(daemon, "the configuration was read again") != [])
        daemon.signal(number)
        assert daemon.wait() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_process_of_a_container_hears_a_stop_while_it_starts(
    tmp_path: Path, workers: int
) -> None:
    for after_s in _AT_S:
        daemon = contained(tmp_path, workers)
        daemon.launch()
        try:
            wait_until(lambda d=daemon: started(d.pid))
            time.sleep(after_s)  # noqa: TID251 - it comes at any moment
            daemon.signal(signal.SIGTERM)
            assert daemon.wait(5) == 0
        finally:
            daemon.kill()


def test_a_stop_that_was_blocked_before_the_start_is_not_lost(tmp_path: Path) -> None:
    """As the image of the examples blocks it, until the daemon can hear it."""
    told = subprocess.run(["env", "--help"], check=False, capture_output=True).stdout
    if b"--block-signal" not in told:
        pytest.skip("this env can't block signals: needs coreutils 8.32")
    blocking = ("env", "--block-signal=TERM,INT,HUP", sys.executable, "-m", "taskd")
    daemon = contained(tmp_path, 1, *blocking)
    daemon.launch()
    try:
        # unshare blocks it too, before it is what it is to be.
        exe = Path(f"/proc/{daemon.pid}/exe")
        status = Path(f"/proc/{daemon.pid}/status")
        wait_until(
            lambda: exe.readlink().name != "unshare" and (blocked(status) or started(daemon.pid))
        )
        daemon.signal(signal.SIGTERM)
        assert daemon.wait(5) == 0
    finally:
        daemon.kill()


def blocked(status: Path) -> bool:
    found = re.search(r"^SigBlk:\s*([0-9a-f]+)", status.read_text(), re.M)
    return found is not None and bool(int(found[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("arguments", [("task", "submit", "--from", "-"), ("import", "-")])
def test_a_command_that_is_the_first_process_of_a_container_can_be_stopped(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    daemon = contained(tmp_path, 1)  # for its command only
    with subprocess.Popen(
        [*daemon.command, *arguments],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TASKD_APP_KEY": "a" * 16, "TASKD_SECRET_KEY": "s" * 32},
    ) as process:
        daemon._process = process  # type: ignore[assignment]  # bytes, not text
        wait_until(lambda: started(daemon.pid))
        daemon.signal(signal.SIGTERM)
        assert process.wait(10) in {1, 128 + signal.SIGTERM}


def adopting() -> None:
    """Become one that orphans are given to, as the first process of a container is; a
    program that is run from here on stays so."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_orphans_are_forgotten_and_children_are_not(tmp_path: Path, workers: int) -> None:
    # A child that ends, one that leaves a child of its own behind, and one that ended
    # before Python had begun.
    orphans = "sleep 1 & (sleep 2 & (sleep 1.5 & exec sleep 0.1) &) & true & exec"
    shell = ("sh", "-c", f'{orphans} "$@"', "sh", sys.executable, "-m", "taskd")
    daemon = Daemon(tmp_path, sections={"server": {"workers": workers}}, command=shell)
    ctypes.CDLL(None)  # loaded before the fork
    original = subprocess.Popen

    def popen(*args: object, **options: object) -> subprocess.Popen[str]:
        return original(*args, **options, preexec_fn=adopting)  # type: ignore[call-overload, no-any-return]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", popen)
        daemon.start()
    try:
        mine = workers if workers > 1 else 0

        def only_mine() -> bool:
            return len(worker_pids(daemon)) == mine

        wait_until(only_mine, within_s=20, what="that all others are forgotten")
        daemon.create_keys("http://127.0.0.1:9/")
        if mine:
            os.kill(worker_pids(daemon)[0], signal.SIGKILL)
            wait_until(lambda: events(daemon, "a worker ended, another takes its place") != [])
            wait_until(lambda: len(worker_pids(daemon)) == mine)
        assert daemon.stop() == 0
    finally:
        daemon.kill()


@pytest.mark.parametrize("hangup", ["default", "nohup"])
def test_the_end_of_its_terminal_drains_it_unless_nohup_forbids(
    tmp_path: Path, daemon_at: DaemonAt, hangup: str
) -> None:
    daemon = daemon_at(tmp_path)
    command = [*daemon.command, "serve", "--config", str(daemon.config_path)]
    if hangup == "nohup":
        command.insert(0, "nohup")
    pid, terminal = pty.fork()
    if pid == 0:
        log = os.open(daemon.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 2)
        os.chdir(tmp_path)
        os.execvp(command[0], command)
    try:
        wait_until(lambda: events(daemon, "started") != [], within_s=20)
        os.kill(pid, signal.SIGHUP)  # an order of somebody's: the terminal is there
        wait_until(lambda: events(daemon, "the configuration was read again") != [])
        os.close(terminal)
        if hangup == "nohup":
            wait_until(lambda: len(events(daemon, "the configuration was read again")) == 2)
            os.kill(pid, signal.SIGTERM)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert events(daemon, "stopped")
    finally:
        if not events(daemon, "stopped"):
            os.kill(pid, signal.SIGKILL)

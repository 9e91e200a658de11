"""The demo's daemon: the real one, in a process of its own."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from taskd.cli.demo.signals import Signals
from taskd.config import toml_string

START_S = 20.0
STOP_S = 15.0

_ANNOUNCEMENT = "taskd is listening on "
_LINES_SHOWN = 15


class DaemonFailed(Exception):
    """The daemon did not start to listen."""


@contextmanager
def running_daemon(folder: Path, admin_secret: str, signals: Signals) -> Iterator[str]:
    """Run a daemon with its database in the folder, on a free port; yields its URL.

    It ends with the block, whatever happens.

    Raises:
        DaemonFailed: it ended or stayed silent instead of listening.
    """
    config = folder / "taskd.toml"
    config.touch(mode=0o600)
    config.write_text(
        "[server]\nport = 0\ndrain_timeout = 2\n\n"
        f"[auth]\nadmin_secret = {toml_string(admin_secret)}\n\n"
        '[store]\nurl = "sqlite:///taskd.db"\n',
        encoding="utf-8",
    )
    with ExitStack() as stack:
        with signals.held():
            process = _started(folder, config)
            stack.callback(_end, process)
        yield _announced_url(process)


def _started(folder: Path, config: Path) -> subprocess.Popen[bytes]:
    environ = {name: text for name, text in os.environ.items() if not name.startswith("TASKD_")}
    with log_path(folder).open("wb") as log:
        return subprocess.Popen(  # noqa: S603 - this very program
            [*_program(), "serve", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environ,
            # So Ctrl-C reaches the demo alone, which then ends the daemon in order.
            start_new_session=True,
        )


def log_path(folder: Path) -> Path:
    """The file of the daemon's log."""
    return folder / "daemon.log"


def last_log_lines(folder: Path) -> list[str]:
    """The last lines of the daemon's log."""
    try:
        with log_path(folder).open(encoding="utf-8", errors="backslashreplace") as log:
            return [line.rstrip("\n") for line in deque(log, maxlen=_LINES_SHOWN)]
    except FileNotFoundError:
        return []


def _program() -> list[str]:
    # In the single executable, sys.executable is the program itself.
    frozen = getattr(sys, "frozen", False)
    return [sys.executable] if frozen else [sys.executable, "-m", "taskd"]


def _announced_url(process: subprocess.Popen[bytes]) -> str:
    if process.stdout is None:  # never: `_started` asks for a pipe
        raise DaemonFailed("the daemon has no standard output")
    deadline = time.monotonic() + START_S
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN | select.POLLHUP)
    text = b""
    while b"\n" not in text:
        left_ms = (deadline - time.monotonic()) * 1000
        if left_ms <= 0 or not poll.poll(left_ms):
            raise DaemonFailed(f"the daemon did not listen within {START_S:g} s")
        chunk = os.read(process.stdout.fileno(), 4096)
        if not chunk:
            raise DaemonFailed("the daemon ended instead of listening")
        text += chunk
    line = text.decode().partition("\n")[0]
    if not line.startswith(_ANNOUNCEMENT):
        raise DaemonFailed(f"the daemon said {line!r}")
    return line.removeprefix(_ANNOUNCEMENT)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.terminate()
        process.wait(STOP_S)
    finally:
        # A second Ctrl-C leads here too, with the daemon still running: end it anyway.
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

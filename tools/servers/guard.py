"""Ends the servers of a test run whose process went away without ending them.

A process of its own: it reads ``+PID`` and ``-PID`` lines, one for each server that
was started or has ended, and at the end of its input, which comes however the other
end went, kills what is left. So ``kill -9`` of a test run leaves no database behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO


class Guard:
    """Keeps the list at the end that starts servers; begins with the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pipe: IO[bytes] | None = None

    def watch(self, pid: int) -> None:
        """A server was started."""
        self._tell(b"+%d\n" % pid)

    def forget(self, pid: int) -> None:
        """It has ended."""
        self._tell(b"-%d\n" % pid)

    def _tell(self, line: bytes) -> None:
        with self._lock:
            if self._pipe is None:
                self._pipe = self._launch()
            self._pipe.write(line)

    def _launch(self) -> IO[bytes]:
        read, write = os.pipe()
        try:
            # Its exit is nobody's concern: it ends when this process does.
            guard = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__], stdin=read, start_new_session=True
            )
        finally:
            os.close(read)
        _ended_with_us.append(guard)
        return open(write, "wb", buffering=0)  # noqa: PTH123 - a file descriptor


_ended_with_us: list[subprocess.Popen[bytes]] = []


def _started_at(pid: int) -> bytes:
    """What tells a process from a later one of the same number; empty without one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return b""
    return stat.rpartition(b")")[2].split()[19]


def _run(lines: IO[bytes]) -> None:
    watched: dict[int, bytes] = {}
    for line in lines:
        pid = int(line[1:])
        if line.startswith(b"+"):
            watched[pid] = _started_at(pid)
        else:
            watched.pop(pid, None)
    for pid, started_at in watched.items():
        if started_at and _started_at(pid) == started_at:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # each was started as the leader of a group


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _run(sys.stdin.buffer)

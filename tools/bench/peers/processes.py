"""Programs with all that they start: ended as a whole, and their CPU and memory added up."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_TICKS = os.sysconf("SC_CLK_TCK")


class Program:
    """A program that runs in a session of its own, with its output in a log."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        log: Path,
        cwd: Path,
        environment: Mapping[str, str] | None = None,
        talks: bool = False,
    ) -> None:
        """Start it; one that ``talks`` has its standard input and output piped."""
        pipe = subprocess.PIPE if talks else None
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                list(argv),
                cwd=cwd,
                env={**os.environ, **(environment or {})},
                stdin=pipe or subprocess.DEVNULL,
                stdout=pipe or output,
                stderr=output,
                start_new_session=True,
                text=True if talks else None,
            )
        self.log = log

    @property
    def running(self) -> bool:
        """Whether the program itself, not only a child, is there."""
        return self.process.poll() is None

    @property
    def stdin(self) -> IO[str]:
        """Of one that talks."""
        assert self.process.stdin is not None
        return self.process.stdin

    @property
    def stdout(self) -> IO[str]:
        """Of one that talks."""
        assert self.process.stdout is not None
        return self.process.stdout

    def family(self) -> list[int]:
        """The program and all that it started, orphans of its session included."""
        parents: dict[int, tuple[int, int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                fields = _stat(int(entry.name))
                if fields and fields[0] != "Z":
                    parents[int(entry.name)] = (int(fields[1]), int(fields[3]))
        root = self.process.pid
        found = {pid for pid, (_, session) in parents.items() if session == root}
        found |= {root} & set(parents)
        grown = True
        while grown:
            more = {pid for pid, (parent, _) in parents.items() if parent in found} - found
            found |= more
            grown = bool(more)
        return sorted(found)

    def kill(self) -> None:
        """SIGKILL for all of the family, as when the machine kills it."""
        for pid in self.family():
            _send(pid, signal.SIGKILL)
        self._reap()

    def stop(self, *, within_s: float = 3) -> None:
        """SIGTERM, and SIGKILL for what is still there after a while."""
        if self.running:
            _send(self.process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(within_s)
        self.kill()

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-1500:]

    def _reap(self) -> None:
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was not read by who is gone
                    stream.close()


def cpu_seconds(programs: Sequence[Program]) -> float:
    """User and system time of the programs and all that they started, the children
    that have ended and been waited for included."""
    total = 0
    for program in programs:
        for pid in program.family():
            fields = _stat(pid)
            if fields:
                total += sum(int(field) for field in fields[11:15])
    return total / _TICKS


def memory_mb(programs: Sequence[Program]) -> float:
    """Resident memory in MB, a page that several share counted once (PSS)."""
    total = 0
    for program in programs:
        for pid in program.family():
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except OSError:
                continue
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024 / 1e6


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; none of a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)

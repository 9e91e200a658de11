"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import sqlite3
import tempfile
import time
from pathlib import Path


def describe() -> str:
    """The machine in a line: cores, memory, Python, SQLite, and its disk's fsync."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, "
        f"{platform.system()} {platform.release().partition('-')[0]}, "
        f"Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, fsync of 8 KiB p50 {_fsync_ms():.2f} ms"
    )


def resident_mb(pid: int) -> float:
    """The resident memory in MB of a process and all below it."""
    return sum(_resident_mb(member) for member in family(pid))


def _resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ProcessLookupError(pid)


def cpu_seconds(pid: int) -> float:
    """User and system time that a process and all below it have taken, those that
    have ended and been waited for included."""
    ticks = 0
    for member in family(pid):
        fields = _stat(member)
        ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """A process and those it has started, and those they have."""
    members = [pid]
    for member in members:  # grows while it is walked
        for children in Path(f"/proc/{member}/task").glob("*/children"):
            try:
                members += [int(child) for child in children.read_text().split()]
            except (FileNotFoundError, ProcessLookupError):
                continue  # the thread has ended meanwhile
    return members


def _stat(pid: int) -> list[str]:
    """The fields of a process's ``stat`` from the state on; zeros once it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["0"] * 15


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _fsync_ms() -> float:
    times = []
    with tempfile.NamedTemporaryFile(dir=Path.cwd()) as file:
        for _ in range(100):
            file.write(b"x" * 8192)
            file.flush()
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return sorted(times)[50] * 1000

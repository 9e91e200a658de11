"""A daemon of several worker processes, and what is seen of them from outside."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.daemon import Daemon, wait_until

LEASE_S = 5


def workers_at(
    folder: Path, *, count: int = 2, sections: Mapping[str, Mapping[str, object]] | None = None
) -> Daemon:
    """A daemon of so many workers, with leases as short as they may be."""
    given = {name: dict(values) for name, values in (sections or {}).items()}
    given.setdefault("server", {}).update({"workers": count})
    given.setdefault("worker", {}).setdefault("lease", LEASE_S)
    return Daemon(folder, sections=given)


def worker_pids(daemon: Daemon) -> list[int]:
    """The worker processes that live now."""
    listed = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text()
    return [int(pid) for pid in listed.split()]


def lives(pid: int) -> bool:
    """Whether a process has not ended; a zombie has."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def kill_worker(daemon: Daemon, pid: int) -> None:
    """kill -9, and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not lives(pid), what="the worker's end")


def events(daemon: Daemon, message: str) -> list[dict[str, Any]]:
    """The log's events with this message."""
    found = []
    for line in daemon.log().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # half a line, of a process that was killed
        if event.get("message") == message:
            found.append(event)
    return found


def all_ready(daemon: Daemon, *, since: int, within_s: float = 15.0) -> None:
    """Wait until as many workers have started as had before, and so many more."""
    deadline = time.monotonic() + within_s
    while len(events(daemon, "started")) < since:
        assert time.monotonic() < deadline, f"no worker took the place:\n{daemon.log()}"
        time.sleep(0.02)  # noqa: TID251 - a synchronous test polls a subprocess

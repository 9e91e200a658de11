"""A process that has as many files open as it may."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def no_file_left(*pids: int) -> Iterator[None]:
    """These processes, or this one, can't open another file in this block."""
    changed = pids or (os.getpid(),)
    before = [resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in changed]
    try:
        # Others twice: a file that was open for a moment only would be the one that is left.
        for pid, (_, hard) in [*zip(changed, before, strict=True)] * (2 if pids else 1):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (_first_free(pid), hard))
        yield
    finally:
        for pid, limits in zip(changed, before, strict=True):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def _first_free(pid: int) -> int:
    if pid == os.getpid():
        number = os.dup(0)
        os.close(number)
        return number
    taken = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
    return next(number for number in range(len(taken) + 1) if number not in taken)

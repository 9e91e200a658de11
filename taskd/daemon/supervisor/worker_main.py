"""The body of a worker process: runs a node, with its share of the daemon's bounds."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import stat
import sys
from select import PIPE_BUF

from taskd.config import Config
from taskd.daemon import run
from taskd.daemon.supervisor.worker_process import Ends
from taskd.errors import TaskdError, sole_cause
from taskd.link import Handover, Kind, Uplink, frame
from taskd.runtime.logs import log_event, logging_to
from taskd.stores.sqlite.lock import StoreLock

logger = logging.getLogger("taskd.supervisor")


def work(
    config: Config,
    ends: Ends,
    seat: int,
    of: int,
    url: str,
    *,
    first: bool,
    lock: StoreLock | None,
) -> int:
    """Run a worker from its fork on; returns its exit code.

    Args:
        config: of the daemon as a whole.
        ends: the worker's ends of the channels to its supervisor.
        seat: its number, from 0.
        of: how many workers there are.
        url: the URL at which the supervisor listens.
        first: whether no other worker runs yet.
        lock: the lock by which the supervisor holds a store that is a file.
    """

    def make_seat() -> run.Seat:
        return run.Seat(
            uplink=Uplink(ends.control, ends.node),
            handover=Handover(ends.connections),
            number=seat,
            of=of,
            url=url,
            first=first,
            lock=lock,
            share=lambda whole: share(whole, seat, of),
        )

    logging.getLogger().handlers.clear()  # the supervisor's
    log = config.log
    with logging_to(sys.stderr, level=log.level, style=log.format, longest=_longest_line()):
        try:
            return run.run_worker(config, make_seat)
        except Exception as error:  # noqa: BLE001 - it is told to the supervisor
            cause = sole_cause(error)
            if not isinstance(cause, TaskdError | OSError):
                log_event(logger, logging.CRITICAL, "a worker failed", error=error)
            ends.control.settimeout(None)
            with contextlib.suppress(OSError):
                ends.control.sendall(frame(Kind.FAILED, str(cause).encode()))
            return 1


def _longest_line() -> int | None:
    """Return how many bytes a log line may have. A pipe takes so many as a whole, so that
    lines of several processes do not mix; a file takes any line as a whole: None."""
    try:
        kind = os.fstat(sys.stderr.fileno()).st_mode
    except (OSError, ValueError):
        return None
    return None if stat.S_ISREG(kind) else PIPE_BUF - 1


def share(config: Config, seat: int, of: int) -> Config:
    """Return the configuration with a worker's share of the daemon's bounds. All workers'
    shares add up to the bounds."""
    worker = dataclasses.replace(
        config.worker,
        max_running=_share(config.worker.max_running, seat, of),
        max_per_origin=_share(config.worker.max_per_origin, seat, of),
        max_bytes=_share(config.worker.max_bytes, seat, of),
    )
    return dataclasses.replace(config, worker=worker)


def _share(bound: int, seat: int, of: int) -> int:
    return bound // of + (seat < bound % of)

"""The supervisor of a daemon's worker processes.

::

              ┌──────────── supervisor: lock of the store, listening sockets ─────────┐
              │ accepts, hands connections on      carries signals, replies, wake-ups │
              ▼                                                                       ▼
      worker 1: a node                      …                          worker n: a node
      API, timer, deliveries                                    API, timer, deliveries
              └──────────────────────► the SQLite file ◄──────────────────────────────┘

    start    the first worker alone, which reclaims the last daemon's leases; then the
             others; the address is told once all are ready
    watch    another worker replaces an ended one, at once at first, and later the more
             often it ends; a worker that shows no life for `HUNG_S` is killed
    renew    SIGHUP: the configuration is read again, checked, and sent to all
    drain    SIGTERM, SIGINT: all are told to stop, and waited for. A second one ends them
    killed   the kernel kills the workers with it (`worker_process`). The next start waits for
             the lock, which is free once the last of them is gone

One loop in one thread, without a blocking call: a process that forks has to be simple.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import cast

from taskd.api.http.file_shortage import TurnedAway
from taskd.config import Config, refuse_unshared_bounds, renewed, to_bytes
from taskd.daemon.adapters import lock_store
from taskd.daemon.node import Made
from taskd.daemon.run import END_S, raise_file_limit
from taskd.daemon.steering import SAME_SIGNAL_S, conclude, tell_refused
from taskd.daemon.supervisor.acceptor import Acceptor
from taskd.daemon.supervisor.membership import Membership
from taskd.daemon.supervisor.relay import Relay
from taskd.daemon.supervisor.signal_pipe import SignalPipe, ignore_signals
from taskd.daemon.supervisor.worker_main import work
from taskd.daemon.supervisor.worker_process import Ends, WorkerProcess, fork
from taskd.errors import TaskdError
from taskd.link import Kind
from taskd.runtime import signals
from taskd.runtime.backoff import Backoff
from taskd.runtime.logs import DirectHandler, log_event, logging_by
from taskd.stores.sqlite.lock import StoreLock

logger = logging.getLogger("taskd.supervisor")

HUNG_S = 10.0
"""A worker that has shown no life for so long is killed. If it was stopped in the middle of a
write, it holds up the others' writes until then."""

START_S = 30.0
"""A worker that is not ready so long after its fork is killed as well."""

_TURN_S = 0.5
_PAUSED_S = 2.0
_PAUSES_S = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_STABLE_S = 10.0
"""A worker that lived for so long is replaced at once, whatever its predecessors did."""

_LOCK_PATIENCE_S = 3.0
_GLANCE_S = 0.1
_DRAIN_MARGIN_S = END_S + 0.3
"""Time beyond drain_timeout: a worker that has not ended by then can't end by itself."""

_HARD_STOP_S = 1.0


class StartFailed(TaskdError):
    """A worker could not start, whether it said why or not."""


def run(
    config: Config, *, on_ready: Callable[[str], None], read_again: Callable[[], Config]
) -> int:
    """Run the daemon's ``[server] workers`` processes until a signal ends them; returns
    the exit code.

    Args:
        config: of the daemon as a whole.
        on_ready: is called with the bound URL once all workers accept.
        read_again: reads the configuration once more.

    Raises:
        TaskdError: the configuration can't be used, or the database can't be opened.
        OSError: the address can't be bound.
    """
    _check(config)
    log = config.log
    with logging_by(DirectHandler(sys.stderr), level=log.level, style=log.format):
        raise_file_limit()
        supervisor = Supervisor(config, on_ready, read_again)
        try:
            return supervisor.run()
        finally:
            supervisor.close()


def _held(config: Config) -> StoreLock | None:
    """Take the store's lock, in a thread: its file is synced, and a disk that hangs would
    keep the main thread from handling a stop."""
    with ThreadPoolExecutor(1) as beside:
        holding = beside.submit(lock_store, config, patience_s=_LOCK_PATIENCE_S)
        while not holding.done():
            wait([holding], timeout=_GLANCE_S)
    return holding.result()


def _check(config: Config) -> None:
    """Refuse a configuration that a worker would refuse, before there is one."""
    Made.of(config)
    refuse_unshared_bounds(config)


class Supervisor:
    """See the module."""

    def __init__(
        self,
        config: Config,
        on_ready: Callable[[str], None],
        read_again: Callable[[], Config],
    ) -> None:
        self._config = config
        self._on_ready = on_ready
        self._read_again = read_again
        self._terminal = signals.Terminal()
        self._count = config.server.worker_count
        self._acceptor = Acceptor(config.server)
        self._lock: StoreLock | None = None
        self._selector = selectors.DefaultSelector()
        self._relay = Relay(self._selector)
        self._signals = SignalPipe()
        self._workers: dict[int, WorkerProcess] = {}
        """By seat."""
        self._empty: dict[int, float] = dict.fromkeys(range(self._count), 0.0)
        """When each seat without a worker gets one."""
        self._backoffs = [Backoff.through(_PAUSES_S) for _ in range(self._count)]
        """By seat: how long it stays empty after each death; begins anew after a life of
        `_STABLE_S`."""
        self._membership = Membership(self._relay)
        self._started = False
        """Whether all workers have been ready once."""
        self._first_ready = False
        self._stopping_at: float | None = None
        self._hard = False
        self._code = 0
        self._turned_at = time.monotonic()
        try:
            self._lock = _held(config)
        except BaseException:
            self.close()
            raise

    def run(self) -> int:
        """Run until all workers have ended; returns the exit code.

        Raises:
            StartFailed: a worker could not start.
        """
        # Memory of the modules imported by now is shared with the workers until a process
        # writes to it, as the garbage collector would.
        gc.collect()
        gc.freeze()
        self._signals.open(self._selector)
        while self._stopping_at is None or self._workers:
            self._fill_seats()
            for key, _ in self._selector.select(self._pause()):
                self._answer(key)
            self._watch()
        self._acceptor.dismiss()
        log_event(logger, logging.INFO, "stopped", workers=self._count)
        return self._code

    def close(self) -> None:
        """Kill the workers that are left, and give all resources back."""
        for worker in self._workers.values():
            worker.kill(signal.SIGKILL)
            os.waitpid(worker.pid, 0)
            worker.close()
        self._workers.clear()
        ignore_signals()
        self._close_own()
        if self._lock is not None:
            self._lock.release()

    def _close_own(self) -> None:
        """Close the descriptors that no worker may keep open."""
        self._selector.close()
        self._acceptor.close()
        self._signals.close()

    def _take_signals(self) -> None:
        # Each once, as the kernel would merge equal ones.
        for number in dict.fromkeys(self._signals.take()):
            if number in signals.STOP or (number is signals.RELOAD and self._terminal.closed()):
                self._stop(number.name)
            elif number is signals.RELOAD:
                self._renew()
            elif number is signals.STATUS:
                self._tell_status()
            elif number is not signal.SIGCHLD:  # `_watch` looks for children that ended
                log_event(
                    logger, logging.INFO, "a signal that asks for nothing", signal=number.name
                )

    def _stop(self, name: str) -> None:
        if self._stopping_at is None:
            log_event(logger, logging.INFO, "signal", signal=name)
            self._reap()  # a worker that died before does not count as ended by the drain
            self._drain()
        elif not self._hard and time.monotonic() - self._stopping_at > SAME_SIGNAL_S:
            log_event(logger, logging.WARNING, "a second signal: ended at once", signal=name)
            self._hard, self._code = True, 1
            self._stopping_at = time.monotonic()
            for worker in self._workers.values():
                self._relay.tell(worker, Kind.END, b"")

    def _renew(self) -> None:
        """Read the configuration again, and apply it in all workers, future ones included."""
        if self._stopping_at is not None:
            return
        try:
            renewal = renewed(self._config, self._read_again())
            _check(renewal.config)
        except (TaskdError, OSError) as error:
            tell_refused(error)
            return
        self._config = renewal.config
        for worker in self._workers.values():
            self._relay.tell(worker, Kind.CONFIG, to_bytes(renewal.config))
        conclude(renewal)

    def _tell_status(self) -> None:
        """Log the state, and have the workers log theirs."""
        workers = self._workers.values()
        log_event(
            logger,
            logging.INFO,
            "status",
            workers=len(workers),
            ready=sum(worker.ready for worker in workers),
            connections=sum(worker.connected for worker in workers),
        )
        for worker in workers:
            worker.kill(signals.STATUS)

    def _drain(self) -> None:
        self._stopping_at = time.monotonic()
        for worker in self._workers.values():
            if not worker.leaving:
                worker.leaving = True
                worker.kill(signal.SIGTERM)

    def _fill_seats(self) -> None:
        if self._stopping_at is not None:
            return
        now = time.monotonic()
        for seat, at in list(self._empty.items()):
            # The first worker is alone until it is ready: it reclaims all leases it finds.
            if at <= now and (self._first_ready or (seat == 0 and not self._workers)):
                del self._empty[seat]
                try:
                    self._start(seat)
                except OSError as error:
                    # Out of memory, or of descriptors: the present workers go on.
                    if not self._started:
                        raise
                    self._put_off(seat)
                    log_event(
                        logger,
                        logging.ERROR,
                        "no worker could be started, it is tried again",
                        reason=str(error),
                        delay_s=round(self._empty[seat] - now, 1),
                    )

    def _put_off(self, seat: int) -> float:
        """Have a seat filled after some time, more each time; returns the seconds."""
        delay_s = self._backoffs[seat].next_s()
        self._empty[seat] = time.monotonic() + delay_s
        return delay_s

    def _start(self, seat: int) -> None:
        others = list(self._workers.values())

        def close_others() -> None:
            self._close_own()
            for other in others:
                other.close()

        def body(ends: Ends) -> int:
            return work(
                self._config,
                ends,
                seat,
                self._count,
                self._acceptor.url,
                first=first,
                lock=self._lock,
            )

        first = not self._first_ready
        worker = fork(seat, body=body, close=close_others)
        self._workers[seat] = worker
        self._relay.add(worker)

    def _watch(self) -> None:
        """Handle workers' ends, silence and deadlines, and update membership and acceptor."""
        now = time.monotonic()
        if now - self._turned_at > _PAUSED_S:
            # This process, or the machine, slept: no worker could be heard meanwhile.
            for worker in self._workers.values():
                worker.heard_at = now
        self._turned_at = now
        self._reap()
        for worker in self._workers.values():
            if now - worker.heard_at > (HUNG_S if worker.ready else START_S):
                log_event(logger, logging.ERROR, "a worker shows no life, and is killed",
                          node=worker.node, pid=worker.pid)  # fmt: skip
                worker.heard_at = now
                worker.kill(signal.SIGKILL)
        self._note_start()
        self._enforce_end(now)
        at_work = self._membership.tell(self._workers.values(), now)
        # While all of them stop, they answer so to new requests.
        takers = list(self._workers.values()) if self._stopping_at else at_work
        self._acceptor.place(takers)
        self._acceptor.see_off(self._selector)
        self._acceptor.open(self._selector, takers)

    def _reap(self) -> None:
        """Reap and remove workers that have ended. Any other child is an orphan, which the
        first process of a container is given: it is reaped only."""
        by_pid = {worker.pid: worker for worker in self._workers.values()}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if (worker := by_pid.get(pid)) is not None:
                self._remove(worker, status)

    def _remove(self, worker: WorkerProcess, status: int) -> None:
        """Remove an ended worker, and have its seat filled again unless the daemon stops."""
        self._relay.remove(worker)
        self._acceptor.take_back(worker)
        worker.close()
        del self._workers[worker.seat]
        code = os.waitstatus_to_exitcode(status)
        if self._stopping_at is not None:
            # A worker that is not ready yet is ended by the signal to stop, which is no failure.
            self._code = self._code or (1 if code and worker.ready else 0)
            return
        if not self._started:
            why = worker.failure or f"a worker ended at its start ({_told(code)})"
            raise StartFailed(why)
        self._membership.remove(worker)
        lived_s = time.monotonic() - worker.started_at
        if lived_s > _STABLE_S:
            self._backoffs[worker.seat].reset()
        delay_s = self._put_off(worker.seat)
        log_event(
            logger,
            logging.WARNING if worker.leaving else logging.ERROR,
            "a worker ended, another takes its place",
            node=worker.node,
            pid=worker.pid,
            ended=_told(code),
            reason=worker.failure,
            lived_s=round(lived_s, 1),
            delay_s=delay_s,
        )

    def _end_by(self) -> float:
        """Return when the workers are killed, if the daemon stops."""
        if self._stopping_at is None:
            return math.inf
        if self._hard:
            return self._stopping_at + _HARD_STOP_S
        return self._stopping_at + self._config.server.drain_timeout + _DRAIN_MARGIN_S

    def _enforce_end(self, now: float) -> None:
        if now < self._end_by():
            return
        for worker in self._workers.values():
            log_event(logger, logging.ERROR, "a worker did not end in time, and is killed",
                      node=worker.node, pid=worker.pid)  # fmt: skip
            worker.kill(signal.SIGKILL)
        self._stopping_at = now

    def _answer(self, key: selectors.SelectorKey) -> None:
        match key.data:
            case Acceptor() as acceptor:
                acceptor.admit(cast("socket.socket", key.fileobj))
            case WorkerProcess() as worker:
                self._relay.serve(worker)
            case TurnedAway():
                pass  # `_watch` sees it off
            case _:
                self._take_signals()

    def _pause(self) -> float:
        """Return for how long, in seconds, only events need an answer."""
        now = time.monotonic()
        due = self._acceptor.look_at(self._workers.values())
        if self._stopping_at is not None:
            due = min(due, self._end_by())
        elif self._first_ready:
            due = min((due, *self._empty.values()))
        return min(max(due - now, 0.0), _TURN_S)

    def _note_start(self) -> None:
        """Log and tell once that all workers accept."""
        ready = [worker for worker in self._workers.values() if worker.ready]
        self._first_ready = self._first_ready or bool(ready)
        if self._started or len(ready) < self._count:
            return
        self._started = True
        log_event(
            logger,
            logging.INFO,
            "all workers are ready",
            url=self._acceptor.url,
            workers=self._count,
            pids=" ".join(str(worker.pid) for worker in ready),
        )
        self._on_ready(self._acceptor.url)


def _told(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"

"""Names to addresses, without blocking the event loop.

``getaddrinfo`` can't be cancelled, and may hang for as long as a name server
does. So each lookup runs in a thread of its own and is waited for by everyone
who wants that name: a name that hangs holds one thread, however many ask for it,
and there are never more threads than the limit. Who no longer wants to wait,
leaves; the thread stays until it returns.

Nothing is cached: an answer serves those who were waiting for it, no later one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence

import outcome
import trio

from taskd.errors import SystemShort, Unreachable

Lookup = Callable[[str], Sequence[str]]
"""Gives the IP addresses of a name, in the order to try them. Blocks. Raises
`OSError` if there are none."""


def system_lookup(host: str) -> list[str]:
    """The system's addresses of a name (hosts file, DNS, …), each once."""
    entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))


class _Pending:
    """One lookup and those who wait for it."""

    __slots__ = ("done", "host", "result", "started", "waiters")

    def __init__(self, host: str) -> None:
        self.host = host
        self.done = trio.Event()
        self.waiters = 0
        self.started = False
        self.result: outcome.Outcome[Sequence[str]] | None = None


class Resolver:
    """Resolves names in a bounded number of threads.

    Args:
        lookup: blocks until it has the addresses of a name.
        max_threads: lookups under way at once; more wait for their turn.
    """

    def __init__(self, lookup: Lookup = system_lookup, *, max_threads: int = 32) -> None:
        self._lookup = lookup
        self._max_threads = max_threads
        self._pending: dict[str, _Pending] = {}
        self._queue: OrderedDict[str, _Pending] = OrderedDict()
        self.busy = 0
        """Threads that are looking a name up now."""

    async def resolve(self, host: str) -> tuple[str, ...]:
        """The addresses of a name, at least one. Waits as long as it is let.

        Raises:
            Unreachable: the name has none, or can't be looked up.
            SystemShort: this machine could not look it up.
        """
        pending = self._pending.get(host)
        if pending is None:
            pending = self._pending[host] = self._queue[host] = _Pending(host)
            self._start_next()
        pending.waiters += 1
        try:
            await pending.done.wait()
        finally:
            pending.waiters -= 1
            if not pending.waiters and not pending.started:
                del self._pending[host], self._queue[host]
        if isinstance(pending.result, outcome.Error):
            cause = pending.result.error
            if _short(cause):
                raise SystemShort(f"this machine can't look names up: {_reason(cause)}") from cause
            raise Unreachable(f"the name {host} can't be resolved: {_reason(cause)}") from cause
        if isinstance(pending.result, outcome.Value) and pending.result.value:
            return tuple(pending.result.value)
        raise Unreachable(f"the name {host} has no address")

    def _start_next(self) -> None:
        while self._queue and self.busy < self._max_threads:
            _, pending = self._queue.popitem(last=False)
            pending.started = True
            self.busy += 1
            self._run(pending, trio.lowlevel.current_trio_token())

    def _run(self, pending: _Pending, token: trio.lowlevel.TrioToken) -> None:
        def deliver(result: outcome.Outcome[Sequence[str]]) -> None:
            with contextlib.suppress(trio.RunFinishedError):  # then nobody waits
                token.run_sync_soon(self._finish, pending, result)

        try:
            trio.lowlevel.start_thread_soon(lambda: self._lookup(pending.host), deliver, "resolver")
        except RuntimeError as error:  # the system gives no more threads
            deliver(outcome.Error(error))

    def _finish(self, pending: _Pending, result: outcome.Outcome[Sequence[str]]) -> None:
        self.busy -= 1
        pending.result = result
        del self._pending[pending.host]
        pending.done.set()
        self._start_next()


def _short(cause: BaseException) -> bool:
    """Whether a lookup failed since this machine, or this process, is out of something.
    Of files the C library says "try again" as well."""
    if isinstance(cause, RuntimeError):  # no thread
        return True
    if isinstance(cause, socket.gaierror):
        return cause.errno == socket.EAI_MEMORY or (
            cause.errno in {socket.EAI_AGAIN, socket.EAI_FAIL} and _no_file_left()
        )
    return isinstance(cause, OSError) and cause.errno in {errno.EMFILE, errno.ENFILE}


def _no_file_left() -> bool:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno in {errno.EMFILE, errno.ENFILE}
    return False


def _reason(cause: BaseException) -> str:
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return repr(cause)

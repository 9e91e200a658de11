"""Resolves names to addresses, without blocking the event loop.

``getaddrinfo`` can't be cancelled, and may hang for as long as a name server does. So each
lookup runs in a thread of its own, and all callers that want its name wait for it: a name
that hangs holds one thread, however many ask for it. An application has one linkUrl, so it
holds one thread at most.

::

               ┌── in the hosts file ── threads of its own ───────────────┐
    resolve ───┤                                                          ├── answer
               └── else, by how the name was answered lately:             │
                     promptly  may have each thread ──────────────────────┤
                     (new)     leaves an eighth of them free ─────────────┤
                     slowly    waits while a quarter of them is busy ─────┘

So names that are answered find threads even while many others hang. One name server may be
silent for a whole domain, so names under one domain hold at most as many threads as they
leave free to others, except names that are answered promptly. A caller that is cancelled
leaves at once; the thread stays until its lookup returns.

Nothing is cached: an answer serves the callers that were waiting for it, and no later ones.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import partial

import outcome
import trio

from taskd.delivery.hosts import HostsFile
from taskd.errors import SystemShort, Unreachable

PROMPT_S = 1.0
"""A lookup that takes longer is slow."""

SHORT_LASTS_S = 1.0
"""After the system gave no more threads: how long no more are asked for than there were
then. A name that hangs may keep its thread for much longer."""

SLOW_LASTS_S = 60.0
"""How long a name counts as slow after a lookup that was."""

_FEWEST_THREADS, _MOST_THREADS = 32, 256
_FILES_PER_THREAD = 4
"""A lookup has a file open. There is one thread for so many files that may be open."""

_APART = 32
"""Threads for names of the hosts file."""

_REMEMBERED = 10_000
"""Names of each standing that are remembered."""

Lookup = Callable[[str], Sequence[str]]
"""Gives the IP addresses of a name, in the order to try them. Blocks. Raises
`OSError` if there are none."""


def system_lookup(host: str) -> list[str]:
    """The system's addresses of a name (hosts file, DNS, …), each once."""
    entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))


class _Kind(IntEnum):
    """Which threads a name may have. Lookups of the first kind start first."""

    APART = 0
    """It is in the hosts file."""
    PROMPT = 1
    """It had addresses, within `PROMPT_S`, when it was looked up last."""
    NEW = 2
    """Nothing is known."""
    SLOW = 3
    """A lookup took longer, in the last `SLOW_LASTS_S`."""


_RESERVED_EIGHTHS = {_Kind.PROMPT: 0, _Kind.NEW: 1, _Kind.SLOW: 6}
"""The eighths of all threads that names of each kind must leave free."""

_ZONED = frozenset({_Kind.NEW, _Kind.SLOW})
"""The kinds whose threads are shared out among domains."""


class _Pending:
    """One lookup, and how many callers wait for it."""

    __slots__ = ("began_at", "done", "host", "kind", "result", "waiters", "zone")

    def __init__(self, host: str, kind: _Kind) -> None:
        self.host = host
        self.zone = _zone(host) if kind in _ZONED else ""
        self.kind = kind
        self.done = trio.Event()
        self.waiters = 0
        self.began_at: float | None = None
        self.result: outcome.Outcome[Sequence[str]] | None = None


class _Standings:
    """How the latest `_REMEMBERED` names of each standing were answered."""

    def __init__(self) -> None:
        self._prompt: OrderedDict[str, None] = OrderedDict()
        self._slow_until: OrderedDict[str, float] = OrderedDict()

    def of(self, host: str, now: float) -> _Kind:
        if self._slow_until.get(host, now) > now:
            return _Kind.SLOW
        return _Kind.PROMPT if host in self._prompt else _Kind.NEW

    def note(self, host: str, *, answered: bool, took_s: float, now: float) -> None:
        self._prompt.pop(host, None)
        self._slow_until.pop(host, None)
        if took_s > PROMPT_S:
            self._slow_until[host] = now + SLOW_LASTS_S
        elif answered:
            self._prompt[host] = None
        for known in (self._prompt, self._slow_until):
            if len(known) > _REMEMBERED:
                known.popitem(last=False)


class _Queue:
    """Waiting lookups of one kind. Domains take turns; within a domain, the first comes
    first."""

    def __init__(self) -> None:
        self._zones: OrderedDict[str, OrderedDict[str, _Pending]] = OrderedDict()

    def add(self, pending: _Pending, *, first: bool = False) -> None:
        zone = self._zones.setdefault(pending.zone, OrderedDict())
        zone[pending.host] = pending
        if first:
            zone.move_to_end(pending.host, last=False)
            self._zones.move_to_end(pending.zone, last=False)

    def remove(self, pending: _Pending) -> None:
        zone = self._zones[pending.zone]
        del zone[pending.host]
        if not zone:
            del self._zones[pending.zone]

    def take(self, has_room: Callable[[str], bool]) -> _Pending | None:
        """Take out the next lookup whose domain has room."""
        found = next((name for name in self._zones if has_room(name)), None)
        if found is None:
            return None
        pending = next(iter(self._zones[found].values()))
        self._zones.move_to_end(found)
        self.remove(pending)
        return pending


class Resolver:
    """Resolves names in a bounded number of threads.

    Args:
        lookup: blocks until it has the addresses of a name.
        max_threads: lookups under way at once, of names that are not in the hosts file;
            more wait for their turn. By default what the limit of open files leaves
            room for.
        hosts: names that have threads of their own, and wait for no other name.
    """

    def __init__(
        self,
        lookup: Lookup = system_lookup,
        *,
        max_threads: int | None = None,
        hosts: HostsFile | None = None,
    ) -> None:
        self._lookup = lookup
        self._max_threads = _threads_within_files() if max_threads is None else max_threads
        self._hosts = HostsFile() if hosts is None else hosts
        self._standings = _Standings()
        self._pending: dict[str, _Pending] = {}
        self._queues = {kind: _Queue() for kind in _Kind}
        self._held: Counter[str] = Counter()
        """Threads, by domain."""
        self._apart = 0
        self._shared = 0
        self._limit = self._max_threads
        """Fewer than `max_threads` while the system gives no more."""
        self._short_until = 0.0

    @property
    def busy(self) -> int:
        """Threads that are looking a name up now."""
        return self._apart + self._shared

    async def resolve(self, host: str) -> tuple[str, ...]:
        """The addresses of a name, at least one. Has no deadline of its own.

        Raises:
            Unreachable: the name has none, or can't be looked up.
            SystemShort: this machine could not look it up.
        """
        pending = self._pending.get(host)
        if pending is None:
            apart = self._hosts.has(host)
            kind = _Kind.APART if apart else self._standings.of(host, trio.current_time())
            pending = self._pending[host] = _Pending(host, kind)
            self._queues[kind].add(pending)
            self._start_next()
        pending.waiters += 1
        try:
            await pending.done.wait()
        finally:
            pending.waiters -= 1
            if not pending.waiters and pending.began_at is None:
                del self._pending[host]
                self._queues[pending.kind].remove(pending)
        if isinstance(pending.result, outcome.Error):
            cause = pending.result.error
            if _short(cause):
                raise SystemShort(f"this machine can't look names up: {_reason(cause)}") from cause
            raise Unreachable(f"the name {host} can't be resolved: {_reason(cause)}") from cause
        if isinstance(pending.result, outcome.Value) and pending.result.value:
            return tuple(pending.result.value)
        raise Unreachable(f"the name {host} has no address")

    def _start_next(self) -> None:
        if not self.busy or trio.current_time() >= self._short_until:
            self._limit = self._max_threads
        for kind, queue in self._queues.items():
            while (room := self._room(kind)) > 0:
                pending = queue.take(partial(self._may_take, room))
                if pending is None:
                    break
                if not self._start(pending):
                    # The system gives no more threads for now: wait until one of the busy
                    # ones is free.
                    queue.add(pending, first=True)
                    self._limit = min(self._limit, max(self._shared, 1))
                    self._short_until = trio.current_time() + SHORT_LASTS_S
                    break

    def _may_take(self, room: int, zone: str) -> bool:
        return self._held[zone] < room

    def _room(self, kind: _Kind) -> int:
        """How many threads are free to a kind."""
        if kind is _Kind.APART:
            return _APART - self._apart
        return self._limit - self._limit * _RESERVED_EIGHTHS[kind] // 8 - self._shared

    def _start(self, pending: _Pending) -> bool:
        """Look a name up in a thread; False if the system gives none now, but one will
        become free."""
        token = trio.lowlevel.current_trio_token()

        def deliver(result: outcome.Outcome[Sequence[str]]) -> None:
            with contextlib.suppress(trio.RunFinishedError):  # then nobody waits
                token.run_sync_soon(self._finish, pending, result)

        try:
            trio.lowlevel.start_thread_soon(lambda: self._lookup(pending.host), deliver, "resolver")
        except RuntimeError as error:
            if self.busy:
                return False
            deliver(outcome.Error(error))
        pending.began_at = trio.current_time()
        self._count(pending, 1)
        return True

    def _count(self, pending: _Pending, change: int) -> None:
        if pending.kind is _Kind.APART:
            self._apart += change
        else:
            self._shared += change
        if pending.kind in _ZONED:
            self._held[pending.zone] += change
            if not self._held[pending.zone]:
                del self._held[pending.zone]

    def _finish(self, pending: _Pending, result: outcome.Outcome[Sequence[str]]) -> None:
        self._count(pending, -1)
        now = trio.current_time()
        if pending.began_at is not None:
            self._standings.note(
                pending.host,
                answered=isinstance(result, outcome.Value) and bool(result.value),
                took_s=now - pending.began_at,
                now=now,
            )
        pending.result = result
        del self._pending[pending.host]
        pending.done.set()
        self._start_next()


def _zone(host: str) -> str:
    """The domain of a name, as far as the name tells it: its last two labels."""
    return ".".join(host.removesuffix(".").split(".")[-2:])


def _threads_within_files() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return _MOST_THREADS
    return min(max(files // _FILES_PER_THREAD, _FEWEST_THREADS), _MOST_THREADS)


def _short(cause: BaseException) -> bool:
    """Whether a lookup failed because this machine or this process lacks a thread, memory
    or files. If it lacks files, the C library says "try again" as well."""
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

"""Connecting to one of the addresses that egress has approved (RFC 8305).

::

    an address of each family in turns ── connect ──┬─ first to answer: taken, the others
        ▲                                           │  are closed
        └── 250 ms later, or as soon as one fails ──┘

Addresses that were tried before the one that answered are tried last for `SHUNNED_S`: a
family that leads nowhere costs its 250 ms once, not per connection.

One Trio task runs all of a race, and waits for all of its sockets by an epoll: it leaves
nothing behind, whatever ends it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections import OrderedDict, deque
from collections.abc import Container, Iterable, Sequence
from itertools import zip_longest

import trio

from taskd.delivery.progress import Progress
from taskd.errors import SystemShort, Unreachable

HEAD_START_S = 0.25
"""How long an address is tried before the next one is tried beside it."""

SHUNNED_S = 600.0
"""How long an address that was too slow, or failed, is tried last."""

MOST_AT_ONCE = 8
"""Tries beside each other. If more addresses are left, the oldest try is ended for the
next."""

MOST_ORIGINS = 1024
"""Origins whose slow addresses are remembered."""

_MOST_ADDRESSES = 64
_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_SHOWN_FAILURES = 3


class Dialer:
    """Connects, and remembers which addresses of an origin were slow or failed."""

    def __init__(self) -> None:
        self._shunned: OrderedDict[str, dict[str, float]] = OrderedDict()
        """By origin, the latest at the end: its slow addresses, and until when they are
        tried last."""

    async def dial(
        self, addresses: Sequence[str], port: int, origin: str, progress: Progress
    ) -> socket.socket:
        """Connect to the address that accepts first. Has no deadline of its own.

        Raises:
            Unreachable: none accepted.
            SystemShort: none could be tried.
        """
        if len(addresses) == 1:
            progress.address = shown(addresses[0], port)
            try:
                return await _connect(addresses[0], port)
            except OSError as error:
                refuse_shortage(error)
                raise unreachable(origin, {addresses[0]: _reason(error)}) from error
        race = _Race(self.in_order(addresses, origin), port, progress)
        try:
            sock = await race.run()
        except OSError as error:  # of the race's epoll
            refuse_shortage(error)
            raise
        if sock is None or race.winner is None:
            raise unreachable(origin, race.failures)
        self.note(origin, race.begun, race.winner)
        return sock

    def in_order(self, addresses: Sequence[str], origin: str) -> list[str]:
        """An origin's addresses in the order to try them."""
        now = trio.current_time()
        known = self._shunned.get(origin, {})
        slow = {address for address, until in known.items() if now < until}
        return in_turns(addresses[:_MOST_ADDRESSES], slow)

    def note(self, origin: str, begun: Iterable[str], winner: str) -> None:
        """Remember which addresses were tried and overtaken, and that the winner was not."""
        now = trio.current_time()
        known = self._shunned.pop(origin, {})
        kept = {address: until for address, until in known.items() if now < until}
        kept.update(dict.fromkeys(begun, now + SHUNNED_S))
        kept.pop(winner, None)
        if kept:
            self._shunned[origin] = kept
            if len(self._shunned) > MOST_ORIGINS:
                self._shunned.popitem(last=False)


def in_turns(addresses: Iterable[str], slow: Container[str] = ()) -> list[str]:
    """Addresses in the order to try them: IPv4 and IPv6 in turns, each in the resolver's
    order, beginning with its first address. Addresses that are known as slow come last."""
    ordered: list[str] = []
    for is_slow in (False, True):
        left = [address for address in addresses if (address in slow) is is_slow]
        first = [address for address in left if (":" in address) is (":" in left[0])]
        second = [address for address in left if (":" in address) is not (":" in left[0])]
        pairs = zip_longest(first, second)
        ordered += [address for pair in pairs for address in pair if address is not None]
    return ordered


class _Race:
    """The tries for one connection, beside each other.

    Attributes:
        failures: by address, why it failed.
        begun: the addresses that were tried.
        winner: the address that was connected to.
    """

    def __init__(self, addresses: Sequence[str], port: int, progress: Progress) -> None:
        self._waiting = deque(addresses)
        self._port = port
        self._progress = progress
        self._tries: dict[int, tuple[str, socket.socket]] = {}
        self.begun: list[str] = []
        self._next_at = 0.0
        self.failures: dict[str, str] = {}
        self.winner: str | None = None

    async def run(self) -> socket.socket | None:
        """A connected, non-blocking socket; None if every address failed."""
        try:
            # A Trio task waits for one descriptor at a time: the epoll stands for all
            # sockets.
            with select.epoll() as poll:
                while self._waiting or self._tries:
                    self._begin_next(poll)
                    if not self._tries:
                        continue
                    with trio.move_on_at(self._next_at if self._waiting else float("inf")):
                        await trio.lowlevel.wait_readable(poll)
                    if (sock := self._look(poll)) is not None:
                        return sock
            return None
        finally:
            for _, sock in self._tries.values():
                sock.close()

    def _begin_next(self, poll: select.epoll) -> None:
        """Try another address if its time has come, or no try is under way."""
        now = trio.current_time()
        if not self._waiting or (self._tries and now < self._next_at):
            return
        if len(self._tries) >= MOST_AT_ONCE:
            self._fail(next(iter(self._tries)), "no answer")
        address = self._waiting.popleft()
        self.begun.append(address)
        self._progress.address = shown(address, self._port)
        self._next_at = now + HEAD_START_S
        try:
            sock = _begin(address, self._port)
        except OSError as error:
            refuse_shortage(error)
            self.failures[address] = _reason(error)
            self._next_at = now
            return
        # The epoll also reports a socket that is connected already.
        poll.register(sock, select.EPOLLOUT)
        self._tries[sock.fileno()] = (address, sock)

    def _look(self, poll: select.epoll) -> socket.socket | None:
        """A socket that is connected, or None. If a try has failed, the next may begin at
        once."""
        for descriptor, _ in poll.poll(0):
            address, sock = self._tries[descriptor]
            try:
                _check(sock)
            except OSError as error:
                self._fail(descriptor, _reason(error))
                self._next_at = 0.0
                continue
            del self._tries[descriptor]
            self.winner = address
            self._progress.address = shown(address, self._port)
            return sock
        return None

    def _fail(self, descriptor: int, reason: str) -> None:
        address, sock = self._tries.pop(descriptor)
        sock.close()
        self.failures[address] = reason


def refuse_shortage(error: OSError) -> None:
    """Tell a shortage of this system from what an address answers.

    Raises:
        SystemShort: the error is such a shortage.
    """
    if error.errno in _SHORT:
        reason = _reason(error)
        raise SystemShort(f"this machine has no room for another connection: {reason}") from error


def _begin(address: str, port: int) -> socket.socket:
    """A non-blocking socket that connects, or is connected. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(BlockingIOError):
            sock.connect((address, port))
    except OSError as error:
        sock.close()
        # For IPv6 it mostly means that this machine has no address of that kind.
        if error.errno == errno.EADDRNOTAVAIL and family == socket.AF_INET:
            raise SystemShort("this machine has no port left to connect from") from error
        raise
    except BaseException:
        sock.close()
        raise
    return sock


async def _connect(address: str, port: int) -> socket.socket:
    """A connected, non-blocking socket. Raises `OSError`."""
    sock = _begin(address, port)
    try:
        await trio.lowlevel.wait_writable(sock)
        _check(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def _check(sock: socket.socket) -> None:
    """Raise the `OSError` that connecting has ended with, if there is one."""
    failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failure:
        raise OSError(failure, os.strerror(failure))


def shown(address: str, port: int) -> str:
    """An address with its port, as it is written in URLs and told to people."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def unreachable(origin: str, failures: dict[str, str]) -> Unreachable:
    """The error that an origin has accepted no connection, with the reason of each address."""
    told = [f"{address}: {reason}" for address, reason in failures.items()]
    more = len(told) - _SHOWN_FAILURES
    shown = "; ".join(told[:_SHOWN_FAILURES])
    return Unreachable(
        f"can't connect to {origin} ({shown}{f'; and {more} more' if more > 0 else ''})"
    )

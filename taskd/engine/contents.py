"""How many bytes of tasks' contents are in memory for attempts, shared among applications.

::

    lease ── short ──────────────────────────────────────────► counts for nothing
        ├─── long, much is free ──── lent to the lease ──────► held until the end
        └─── long, left in the Store ── take (in turns) ─ read ─► held until the end

An application may hold at most twice what is free, so that however many hold theirs for
long, something is left for one more.
"""

from __future__ import annotations

from collections import OrderedDict, deque

import trio

from taskd.domain.model import SHORT_CONTENT

_LENT = 8_388_608
"""Bytes that one lease may read at most: a batch comes at once."""

_SHARE = 2


def counted_bytes(content: bytes) -> int:
    """What a content counts for: its length, or nothing where it is short."""
    length = len(content)
    return length if length > SHORT_CONTENT else 0


class _Waiter:
    __slots__ = ("granted", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.granted = trio.Event()


class Contents:
    """See the module.

    Args:
        most: bytes. What alone is longer is let through while there is nothing else.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._used = 0
        self._held: dict[int, int] = {}
        self._waiting: OrderedDict[int, deque[_Waiter]] = OrderedDict()

    def limit(self, most: int) -> None:
        """Change the bound. Who holds more than a smaller one goes on holding it."""
        self._most = most
        self._grant()

    @property
    def most(self) -> int:
        """Bytes that may be held."""
        return self._most

    @property
    def used(self) -> int:
        """Bytes that are held."""
        return self._used

    @property
    def waiting(self) -> int:
        """Tasks that wait for room."""
        return sum(map(len, self._waiting.values()))

    def lend(self) -> int:
        """Bytes that a lease may read on the way: some while plenty is free, else none. To be
        given back with `end_loan`."""
        if self._waiting or self._most - self._used <= max(self._most // 2, _LENT):
            return 0
        self._used += _LENT
        return _LENT

    def end_loan(self, lent: int, taken: dict[int, int]) -> None:
        """Give a loan back, but for what was read of each application's contents."""
        self._used -= lent
        for app_id, size in taken.items():
            self._charge(app_id, size)
        self._grant()

    def take_now(self, app_id: int, size: int) -> bool:
        """Hold so many bytes if there is room, and nobody waits; returns whether."""
        if self._waiting or not self._is_open(app_id, size):
            return False
        self._charge(app_id, size)
        return True

    async def take(self, app_id: int, size: int) -> None:
        """Hold so many bytes once there is room."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.take_now(app_id, size):
            return
        waiter = _Waiter(size)
        self._waiting.setdefault(app_id, deque()).append(waiter)
        self._grant()
        try:
            await waiter.granted.wait()
        except BaseException:
            self._forget(app_id, waiter)
            raise

    def give_back(self, app_id: int, size: int) -> None:
        """Hold so many bytes no more."""
        self._used -= size
        held = self._held[app_id] - size
        if held:
            self._held[app_id] = held
        else:
            del self._held[app_id]
        self._grant()

    def _charge(self, app_id: int, size: int) -> None:
        self._used += size
        self._held[app_id] = self._held.get(app_id, 0) + size

    def _forget(self, app_id: int, waiter: _Waiter) -> None:
        if waiter.granted.is_set():
            self.give_back(app_id, waiter.size)
            return
        queue = self._waiting[app_id]
        queue.remove(waiter)
        if not queue:
            del self._waiting[app_id]
        self._grant()

    def _is_open(self, app_id: int, size: int) -> bool:
        if not self._used:
            return True
        free = self._most - self._used - size
        return free >= 0 and self._held.get(app_id, 0) + size <= max(_SHARE * free, size)

    def _grant(self) -> None:
        """Let in who waits and may, an application after another."""
        refused = 0
        while self._waiting and refused < len(self._waiting):
            app_id, queue = self._waiting.popitem(last=False)
            if self._is_open(app_id, queue[0].size):
                refused = 0
                waiter = queue.popleft()
                self._charge(app_id, waiter.size)
                waiter.granted.set()
            else:
                refused += 1
            if queue:
                self._waiting[app_id] = queue

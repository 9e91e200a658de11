"""Bounds the bytes of tasks' contents in memory for attempts, and shares them among applications.

::

    lease ── short ──────────────────────────────────────────► counts for nothing
        ├─── long, much is free ──── lent to the lease ──────► held until the end
        └─── long, left in the Store ── take (in turns) ─ read ─► held until the end

An application may hold at most twice the free bytes. So something is left for one more,
however many hold theirs for long.
"""

from __future__ import annotations

from collections import OrderedDict, deque

import trio

from taskd.domain.model import SHORT_CONTENT

_LENT_BYTES = 8_388_608
"""Bytes of contents that one lease may read at most: it reads those of a whole batch."""

_SHARE = 2


def counted_bytes(content: bytes) -> int:
    """Return the bytes that a content counts for: its length, or 0 for a short one."""
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
        most: bytes. A longer content is let in while no other is held.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._used = 0
        self._held: dict[int, int] = {}
        self._waiting: OrderedDict[int, deque[_Waiter]] = OrderedDict()

    def limit(self, most: int) -> None:
        """Change the bound. Bytes held beyond a smaller one stay held."""
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
        """Lend a lease bytes to read contents with; returns how many: 0 unless plenty is
        free. Give them back with `end_loan`."""
        if self._waiting or self._most - self._used <= max(self._most // 2, _LENT_BYTES):
            return 0
        self._used += _LENT_BYTES
        return _LENT_BYTES

    def end_loan(self, lent: int, taken: dict[int, int]) -> None:
        """Give a loan back, and hold the bytes that were read, by application."""
        self._used -= lent
        for app_id, size in taken.items():
            self._charge(app_id, size)
        self._grant()

    def take_now(self, app_id: int, size: int) -> bool:
        """Hold ``size`` bytes if there is room and no task waits; returns whether it did."""
        if self._waiting or not self._is_open(app_id, size):
            return False
        self._charge(app_id, size)
        return True

    async def take(self, app_id: int, size: int) -> None:
        """Hold ``size`` bytes once there is room."""
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
        """Stop holding ``size`` bytes."""
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
        """Let in waiting tasks that there is room for, one application after another."""
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

"""Slots for tasks that begin as soon as they are added.

On a node with room, a task that is due when it is created needs neither a wake-up nor a
second transaction: the one that adds it leases it too, and it begins once that is on disk.
Its slot is taken before it is added, so that the bounds hold. `Dispatcher.reserve` is the
context that takes slots and gives them back.

    reserve ──► added under the lease ──► begin
       │                │
       └── no slot      └── refused, or the store failed ──► given back
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import trio

from taskd.domain.model import App, FirstLease, Lease, LeasedTask, NewTask
from taskd.engine.contents import Contents, counted_bytes
from taskd.engine.slots import Slot, Slots

Begin = Callable[[LeasedTask, Slot, float], None]
"""Begins a leased task in this slot, whose lease was asked for at this
`trio.current_time()`."""


class Reservation:
    """Slots held for one origin, until each is used or all are freed.

    Args:
        app: the application whose tasks they are for.
        origin: of the app's URL.
        left: how many slots are held.
        lease: the lease that the tasks are added under.
        slots: they were taken from here.
        contents: room for the tasks' contents was taken from here.
        content_bytes: how many bytes of it.
        begin: begins a task.
        freed: is called once slots are given back.
    """

    __slots__ = (
        "_app",
        "_asked_at",
        "_begin",
        "_content_bytes",
        "_contents",
        "_freed",
        "_origin",
        "_slots",
        "lease",
        "left",
    )

    def __init__(
        self,
        app: App,
        origin: str,
        left: int,
        *,
        lease: FirstLease,
        slots: Slots,
        contents: Contents,
        content_bytes: int,
        begin: Begin,
        freed: Callable[[], None],
    ) -> None:
        self._app = app
        self._origin = origin
        self.left = left
        self.lease = lease
        self._slots = slots
        self._contents = contents
        self._content_bytes = content_bytes
        self._begin = begin
        self._freed = freed
        self._asked_at = trio.current_time()

    def free(self) -> None:
        """Give back the unused slots and bytes."""
        if self.left:
            self._slots.give_back(self._origin, self.left)
            self.left = 0
            self._freed()
        if self._content_bytes:
            self._contents.give_back(self._app.id, self._content_bytes)
            self._content_bytes = 0

    def begin(self, task: NewTask, task_id: int) -> None:
        """Begin a task that was added under `lease`, in one of the slots."""
        self.left -= 1
        self._content_bytes -= counted_bytes(task.content)  # the execution holds them now
        app, first = self._app, self.lease
        leased = LeasedTask(
            lease=Lease(task_id=task_id, token=1, node=first.node, expires_at=first.expires_at),
            app=app,
            task_no=task.task_no,
            name=task.name,
            content=task.content,
            timeout_ms=task.timeout_ms,
            due_at=task.due_at,
            leased_at=first.leased_at,
            attempt=1,
            failures=0,
            sent_before=False,
            step=app.step if task.step is None else task.step,
            retry_total=app.retry_total if task.retry_total is None else task.retry_total,
        )
        self._begin(leased, self._slots.use(app.id, self._origin), self._asked_at)


class Reserving:
    """A context that holds slots within its block. Gives None where the tasks have to wait
    for their turn: others wait already, there is no room, or this node stops.

    Slots are taken when the block is entered; unused ones are given back when it is left, by
    an exception or a cancel too. (A class, since a generator takes twice as long.)
    """

    __slots__ = ("_reservation", "_take")

    def __init__(self, take: Callable[[], Reservation | None]) -> None:
        self._take = take
        self._reservation: Reservation | None = None

    def __enter__(self) -> Reservation | None:
        self._reservation = self._take()
        return self._reservation

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._reservation is not None:
            self._reservation.free()

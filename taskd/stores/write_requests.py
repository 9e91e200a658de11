"""Write requests: the arguments of calls that wait for their batch."""

from __future__ import annotations

from collections.abc import Sequence

from taskd.domain.model import App, DueTask, Lease, NewTask, NonceUse
from taskd.domain.record import record


@record
class Submission:
    """Tasks to be added, a nonce to be used up, or both at once."""

    tasks: Sequence[NewTask]
    """Any number, none included."""
    nonce: NonceUse | None
    atomic: bool = False
    """Whether all of the tasks are added or none."""


@record
class AppAddition:
    """An app to be added, and a nonce to be used up with it."""

    app: App
    nonce: NonceUse | None


@record
class LeaseRequest:
    """Tasks to be leased, and how."""

    task_ids: Sequence[int]
    node: str
    now: int
    expires_at: int
    suspects: bool = True
    room: int | None = None
    """Bytes that contents longer than `INLINE_CONTENT` may have together; None: any number."""


@record
class ExtendRequest:
    """Leases to be extended."""

    leases: Sequence[Lease]
    expires_at: int


@record
class CancelRequest:
    """A task to be cancelled, by its id or its taskNo."""

    app_id: int
    task_id: int | None
    task_no: str | None
    now: int


@record
class ReapRequest:
    """Which leases to end."""

    now: int
    expired_at: int | None
    exclude: tuple[int, ...]
    limit: int
    node: str | None
    """Only this node's leases; None: any node's."""
    alive: tuple[str, ...]
    """Nodes whose leases stay."""


@record
class ForwardRequest:
    """Which waiting tasks to bring forward."""

    now: int
    after: DueTask | None
    limit: int

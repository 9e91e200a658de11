"""Write requests: the arguments of calls that wait for their batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from taskd.domain.model import App, DueTask, Lease, NewTask, NonceUse


@dataclass(frozen=True, slots=True)
class Submission:
    """Tasks to be added, a nonce to be used up, or both at once."""

    tasks: Sequence[NewTask]
    """Any number, none included."""
    nonce: NonceUse | None
    atomic: bool = False
    """Whether all of the tasks are added or none."""


@dataclass(frozen=True, slots=True)
class AppAddition:
    """An app to be added, and a nonce to be used up with it."""

    app: App
    nonce: NonceUse | None


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """Tasks to be leased, and how."""

    task_ids: Sequence[int]
    node: str
    now: int
    expires_at: int
    suspects: bool = True
    room: int | None = None
    """Bytes that contents longer than `INLINE_CONTENT` may have together; None: any number."""


@dataclass(frozen=True, slots=True)
class ExtendRequest:
    """Leases to be extended."""

    leases: Sequence[Lease]
    expires_at: int


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """A task to be cancelled, by its id or its taskNo."""

    app_id: int
    task_id: int | None
    task_no: str | None
    now: int


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class ForwardRequest:
    """Which waiting tasks to bring forward."""

    now: int
    after: DueTask | None
    limit: int

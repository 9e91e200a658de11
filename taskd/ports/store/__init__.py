"""The Store port: the truth about tasks, attempts, leases. Nothing counts uncommitted.

One protocol in four parts, a module each; a fifth, `Archive`, moves a store's content to
another one, while no node is at work. Begin with `leases`.
"""

from __future__ import annotations

from typing import Protocol

from taskd.ports.store.archive import Archive
from taskd.ports.store.catalogue import Catalogue
from taskd.ports.store.leases import ExtendResult, Leases
from taskd.ports.store.submission import Submission
from taskd.ports.store.upkeep import BroughtForward, Upkeep

__all__ = [
    "Archive",
    "BroughtForward",
    "Catalogue",
    "ExtendResult",
    "Leases",
    "Store",
    "Submission",
    "Upkeep",
]


class Store(Submission, Catalogue, Leases, Upkeep, Protocol):
    """Tasks, attempts, leases, apps and nonces, durably.

    Every writing method is atomic and has returned only after its change is on
    disk. A caller that is cancelled while it waits leaves either the whole
    change or none of it, never a part. Every method may raise
    `StoreUnavailable`, and has then changed nothing, unless the message says that nobody
    knows.

    With ``within_s`` a call can't be cancelled, not even by a cancel that came before it: it
    returns once its change is on disk, and raises `StoreUnavailable` if that is not so after
    so many seconds, or at the moment of `Upkeep.end_by` if it is sooner. The change may be
    made later all the same if the message says that nobody knows.

    Times are passed in; the Store never asks a clock.
    """

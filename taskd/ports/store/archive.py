"""Beside the Store: reading and writing all of it, to move it to another Store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from taskd.domain.model import App, StoredTask


class Archive(Protocol):
    """Reads and writes apps and waiting tasks to move them to another Store, while no
    node works on either. Each method is atomic, and may raise `StoreUnavailable`."""

    async def highest_task_id(self) -> int:
        """The highest task id that was ever given, 0 if none was."""
        ...

    async def apps_after(self, app_id: int, *, limit: int) -> list[App]:
        """Apps with higher ids, in their order."""
        ...

    async def tasks_after(self, task_id: int, *, limit: int) -> list[StoredTask]:
        """Waiting tasks with higher ids, in their order."""
        ...

    async def put_apps(self, apps: Sequence[App]) -> None:
        """Add apps under their ids; those that are there already, and equal, are skipped.

        Raises:
            TransferClash: another app has such an id or key; nothing was added.
        """
        ...

    async def put_tasks(self, tasks: Sequence[StoredTask]) -> None:
        """Add tasks under their ids; those that are there already, with the same app and
        taskNo, are skipped, whatever their state is.

        Raises:
            TransferClash: another task has such an id or taskNo, or its app is not
                there; nothing was added.
        """
        ...

    async def put_highest_task_id(self, task_id: int) -> None:
        """Never give this id, or a lower one, to a new task."""
        ...

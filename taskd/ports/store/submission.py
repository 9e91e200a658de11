"""Part of the Store: what is added to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from taskd.domain.model import App, ExistingTask, NewTask, NonceUse


class Submission(Protocol):
    """What is added: apps, tasks, used nonces.

    What `taskd.ports.store.Store` promises holds for each method.
    """

    async def create_app(self, app: App, nonce: NonceUse | None = None) -> App:
        """Add an app (its id is ignored) and return it with its id.

        With ``nonce``, uses it up in the same transaction.

        Raises:
            NonceUsed: nothing was changed.
        """
        ...

    async def create_task(self, task: NewTask, nonce: NonceUse | None = None) -> int:
        """Add a task in state ``scheduled`` and return its id, never given before. One
        that has a lease is ``running`` under it instead, with token and attempt 1, as if
        it had been leased at once.

        With ``nonce``, uses it up in the same transaction, also where the task
        itself is refused as a duplicate.

        Raises:
            NonceUsed: nothing was changed.
            DuplicateTaskNo: the app has such a task; no task was added.
        """
        ...

    async def create_tasks(
        self, tasks: Sequence[NewTask], nonce: NonceUse | None = None, *, atomic: bool = False
    ) -> list[int | ExistingTask]:
        """Add tasks, all in one transaction, and return the id of each in their order.
        One whose taskNo its app has already, or an earlier one of these has, is not
        added; in its place stands the task that has it.

        Those that are added get ascending ids. ``atomic`` adds all of them or none.
        With ``nonce``, uses it up in the same transaction, also where none of the
        tasks is added.

        Args:
            tasks: at least one, of any apps.
            nonce: to be used up.
            atomic: whether one that can't be added keeps the others from being added.

        Raises:
            NonceUsed: nothing was changed.
            BatchRefused: only with ``atomic``; no task was added.
        """
        ...

    async def use_nonce(self, nonce: NonceUse) -> None:
        """Use a nonce up.

        Raises:
            NonceUsed: it was used before, and has not been purged since.
        """
        ...

"""Part of the Store: adding apps, tasks and used nonces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from taskd.domain.model import App, ExistingTask, NewTask, NonceUse


class Submission(Protocol):
    """Adds apps, tasks and used nonces.

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
        """Add a task in state ``scheduled`` and return its id, never given before. A task
        with a lease is added as ``running`` under it instead, with token and attempt 1,
        as if it had been leased at once.

        With ``nonce``, uses it up in the same transaction, even if the task is refused
        as a duplicate.

        Raises:
            NonceUsed: nothing was changed.
            DuplicateTaskNo: the app has such a task; no task was added.
        """
        ...

    async def create_tasks(
        self,
        tasks: Sequence[NewTask],
        nonce: NonceUse | None = None,
        *,
        atomic: bool = False,
        within_s: float | None = None,
    ) -> list[int | ExistingTask]:
        """Add tasks, all in one transaction, and return the id of each in their order.
        A task whose taskNo is taken, in the Store or by an earlier one of these, is not
        added; the result has the task with that taskNo in its place.

        The added tasks get ascending ids. With ``nonce``, uses it up in the same
        transaction, even if none of the tasks is added.

        Args:
            tasks: at least one, of any apps.
            nonce: to be used up.
            atomic: add all tasks or none: one that can't be added refuses the batch.
            within_s: see `taskd.ports.store.Store`.

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

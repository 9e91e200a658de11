"""Cancel scopes for work that ends although its task was cancelled: shielded, with a deadline.

A daemon that stops has a deadline of its own, which every shield then keeps. Work that is not
done by then is left to the next start.
"""

from __future__ import annotations

import math
from types import TracebackType

import trio


class CleanupScope:
    """The context manager that `CleanupScopes.shield` returns. Every settlement enters one, so
    it is no generator, which would take as long again as the scope."""

    __slots__ = ("_scope", "_scopes")

    def __init__(self, scopes: set[trio.CancelScope], scope: trio.CancelScope) -> None:
        self._scopes = scopes
        self._scope = scope

    def __enter__(self) -> trio.CancelScope:
        self._scope.__enter__()
        self._scopes.add(self._scope)
        return self._scope

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        self._scopes.discard(self._scope)
        return self._scope.__exit__(kind, error, traceback)


class CleanupScopes:
    """Hands out shielded cancel scopes, and can bring all their deadlines forward."""

    def __init__(self) -> None:
        self._latest = math.inf
        self._scopes: set[trio.CancelScope] = set()

    def shield(self, seconds: float) -> CleanupScope:
        """Return a scope that no cancel from outside reaches, for so many seconds at most,
        or until the moment of `end_by` if that is sooner."""
        deadline = min(trio.current_time() + seconds, self._latest)
        return CleanupScope(self._scopes, trio.CancelScope(shield=True, deadline=deadline))

    def end_by(self, latest: float) -> None:
        """Let no shield, present or future, last longer than this moment.

        Args:
            latest: by `trio.current_time()`.
        """
        self._latest = latest
        for scope in self._scopes:
            scope.deadline = min(scope.deadline, latest)

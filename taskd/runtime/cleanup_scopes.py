"""Cancel scopes for work that ends although its task was cancelled: shielded, with a deadline.

A daemon that stops has a deadline of its own, which every shield then keeps. Work that is not
done by then is left to the next start. A single write needs no such scope: the Store takes a
deadline.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import trio


class CleanupScopes:
    """Hands out shielded cancel scopes, and can bring all their deadlines forward."""

    def __init__(self) -> None:
        self._latest = math.inf
        self._scopes: set[trio.CancelScope] = set()

    @contextmanager
    def shield(self, deadline: float) -> Iterator[trio.CancelScope]:
        """Enter a scope that no cancel from outside reaches. It ends at its deadline, by
        `trio.current_time`, or at the moment of `end_by` if that is sooner."""
        with trio.CancelScope(shield=True, deadline=min(deadline, self._latest)) as scope:
            self._scopes.add(scope)
            try:
                yield scope
            finally:
                self._scopes.discard(scope)

    def end_by(self, latest: float) -> None:
        """Let no shield, present or future, last longer than this moment.

        Args:
            latest: by `trio.current_time()`.
        """
        self._latest = latest
        for scope in self._scopes:
            scope.deadline = min(scope.deadline, latest)

"""Work that is finished although its task was cancelled: shielded, with a deadline.

A daemon that stops has a deadline of its own, which every shield then keeps: what
is not done by it is left to the next start.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Shields:
    """Hands out shielded cancel scopes, and can bring all their deadlines forward."""

    def __init__(self) -> None:
        self._latest = math.inf
        self._scopes: set[trio.CancelScope] = set()

    @contextmanager
    def shield(self, seconds: float) -> Iterator[trio.CancelScope]:
        """A scope that no cancellation from outside reaches, for so many seconds at
        most, or until `end_by` if that is sooner."""
        deadline = min(trio.current_time() + seconds, self._latest)
        with trio.CancelScope(shield=True, deadline=deadline) as scope:
            self._scopes.add(scope)
            try:
                yield scope
            finally:
                self._scopes.discard(scope)

    def end_by(self, latest: float) -> None:
        """Let no shield, present or to come, last longer than this moment.

        Args:
            latest: in Trio's time.
        """
        self._latest = latest
        for scope in self._scopes:
            scope.deadline = min(scope.deadline, latest)

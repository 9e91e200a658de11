"""Pauses before a failed call is tried again, longer each time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Self


class Backoff:
    """A sequence of pauses, from the first to the longest, which is then repeated.

    Args:
        first_s: the first pause, above 0.
        longest_s: no pause is longer.
        growth: what each pause is multiplied by for the next one, above 1.
        jitter: by what part of itself a pause may be shorter, from 0 to 1. Nodes that
            failed at the same moment then do not all try again at the same moment.
        spread: returns a number between two others; by default a random one.
    """

    __slots__ = ("_jitter", "_pauses_s", "_spread", "_taken")

    def __init__(
        self,
        first_s: float,
        longest_s: float,
        *,
        growth: float = 2.0,
        jitter: float = 0.0,
        spread: Callable[[float, float], float] = random.uniform,
    ) -> None:
        pauses_s = [first_s]
        while pauses_s[-1] < longest_s:
            pauses_s.append(min(pauses_s[-1] * growth, longest_s))
        self._pauses_s: Sequence[float] = pauses_s
        self._jitter = jitter
        self._spread = spread
        self._taken = 0

    @classmethod
    def through(cls, pauses_s: Sequence[float]) -> Self:
        """One that goes through these pauses, and repeats the last; without jitter."""
        backoff = cls(pauses_s[-1], pauses_s[-1])
        backoff._pauses_s = pauses_s
        return backoff

    @property
    def fresh(self) -> bool:
        """Whether the next pause is the first one."""
        return not self._taken

    def next_s(self) -> float:
        """Take the next pause; returns its seconds."""
        pause_s = self._pauses_s[min(self._taken, len(self._pauses_s) - 1)]
        self._taken += 1
        if not self._jitter:
            return pause_s
        return pause_s * self._spread(1 - self._jitter, 1)

    def reset(self) -> None:
        """Begin again with the first pause, after a success."""
        self._taken = 0

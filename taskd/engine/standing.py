"""How an application has answered lately, which decides how much of a node's room is open to
it. Pure, no clock; moments are `trio.current_time()`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

PROMPT_S = 1.0
"""An attempt that takes longer holds its slot for long."""

_KEPT_SLOWNESS = 0.9


class Standing(IntEnum):
    """How an app has answered lately. The lower, the more of the room is open to it."""

    PROMPT = 0
    """It answers within a second, and no attempt waits for longer."""
    NEW = 1
    """Nothing is known."""
    SLOW = 2
    """It takes longer, or an attempt waits for longer while others are answered."""
    SILENT = 3
    """An attempt waits for long, and none has been answered since it began; or the last
    attempt that ended was not answered."""


class Begun(Protocol):
    """An attempt under way."""

    @property
    def began_at(self) -> float:
        """When it began."""
        ...


@dataclass(slots=True, eq=False)
class Manners:
    """The record of one app's attempts and answers."""

    running: dict[Begun, None] = field(default_factory=dict)
    """Its attempts under way, in the order in which they began."""
    usual_s: float | None = None
    """How long the slowest answer took lately, a tenth less with each answer since; None
    before the first."""
    answered_at: float = float("-inf")
    silent: bool = False
    """Whether its last attempt that ended was not answered."""
    seen_at: float = 0.0

    def standing(self, now: float) -> Standing:
        """How it has answered lately."""
        for oldest in self.running:
            age_s = now - oldest.began_at
            if age_s > PROMPT_S:
                usual_s = self.usual_s or 0.0
                heard = self.answered_at > oldest.began_at or age_s <= 2 * usual_s
                return Standing.SLOW if heard else Standing.SILENT
            break
        if self.silent:
            return Standing.SILENT
        if self.usual_s is None:
            return Standing.NEW
        return Standing.PROMPT if self.usual_s <= PROMPT_S else Standing.SLOW

    def note_end(self, slot: Begun, now: float, *, answered: bool | None) -> bool:
        """Note that an attempt has ended.

        Args:
            slot: of the attempt.
            now: when it ended.
            answered: whether the receiver answered; None where the end does not say.

        Returns:
            Whether it was under way.
        """
        if slot not in self.running:
            return False
        del self.running[slot]
        if answered is not None:
            self.silent = not answered
        if answered:
            took_s = now - slot.began_at
            self.answered_at = now
            self.usual_s = max(took_s, (self.usual_s or 0.0) * _KEPT_SLOWNESS)
        return True

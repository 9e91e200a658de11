"""How an application answers: what of the room is open to it depends on that. Pure, no
clock; times are Trio's."""

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
    """Within a second, and nothing waits for longer."""
    NEW = 1
    """Nothing is known."""
    SLOW = 2
    """It takes longer, or something waits for longer though others are answered."""
    SILENT = 3
    """Something waits for long, and nothing has been answered since it began; or what
    ended last was not answered."""


class Begun(Protocol):
    """An attempt under way."""

    @property
    def began_at(self) -> float:
        """When it began."""
        ...


@dataclass(slots=True, eq=False)
class Manners:
    """What is known of one app."""

    running: dict[Begun, None] = field(default_factory=dict)
    """Its attempts under way, in the order in which they began."""
    usual_s: float | None = None
    """How long answers took lately, the slow ones above all; None before the first."""
    answered_at: float = float("-inf")
    silent: bool = False
    """Whether its last attempt that ended was not answered."""
    seen_at: float = 0.0

    def standing(self, now: float) -> Standing:
        """How it has answered lately."""
        for oldest in self.running:
            age = now - oldest.began_at
            if age > PROMPT_S:
                usual = self.usual_s or 0.0
                heard = self.answered_at > oldest.began_at or age <= 2 * usual
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
            now: when.
            answered: by the receiver; None where nothing follows from its end.

        Returns:
            Whether it was under way.
        """
        if slot not in self.running:
            return False
        del self.running[slot]
        if answered is not None:
            self.silent = not answered
        if answered:
            took = now - slot.began_at
            self.answered_at = now
            self.usual_s = max(took, (self.usual_s or 0.0) * _KEPT_SLOWNESS)
        return True

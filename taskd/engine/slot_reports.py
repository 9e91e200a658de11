"""What `slots.Slots` tell of themselves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shortage:
    """Apps wait for a slot although their own origins might have more."""

    size: int
    held: int
    waiting: int
    """How many apps."""
    holders: tuple[tuple[str, int], ...]
    """The origins that hold most, and how many slots."""
    others: int
    """How many more origins hold some."""

    def told(self, *, named: bool) -> str:
        """In a sentence; ``named`` also tells the origins that hold most."""
        most = f", most by {self.holders_told()}" if named else " (the log says by whom)"
        return (
            f"tasks of {self.waiting} application(s) wait for a place: {self.held} of "
            f"{self.size} are held{most}"
        )

    def holders_told(self) -> str:
        """The origins that hold most, in words."""
        told = [f"{origin or 'unreadable URLs'} ({held})" for origin, held in self.holders]
        if self.others:
            told.append(f"{self.others} more")
        return ", ".join(told)


@dataclass(frozen=True, slots=True)
class Slowed:
    """An origin that trouble has made the pace slow for."""

    origin: str
    at_once: int
    """How many attempts it may have under way."""
    because: str
    """The trouble."""
    waiting: int
    """Apps that wait for it."""


@dataclass(frozen=True, slots=True)
class SlotsStatistics:
    """What they hold and know."""

    size: int
    held: int
    reserved: int
    """Places that were taken and are not used yet."""
    waiting: int
    """Apps that were refused and wait."""
    short: int
    """Those of them that wait for the room, and not for their own origin."""
    apps: int
    """Apps that something is known of."""
    origins: int

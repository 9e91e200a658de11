"""What `slots.Slots` report."""

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
        """Return it as a sentence; ``named``: with the origins that hold most."""
        most = f", most by {self.holders_told()}" if named else " (the log says by whom)"
        return (
            f"tasks of {self.waiting} application(s) wait for a place: {self.held} of "
            f"{self.size} are held{most}"
        )

    def holders_told(self) -> str:
        """Return the origins that hold most, in words."""
        told = [f"{origin or 'unreadable URLs'} ({held})" for origin, held in self.holders]
        if self.others:
            told.append(f"{self.others} more")
        return ", ".join(told)


@dataclass(frozen=True, slots=True)
class Slowed:
    """An origin that is sent fewer attempts at once, because of trouble."""

    origin: str
    at_once: int
    """How many attempts it may have under way."""
    because: str
    """The trouble."""
    waiting: int
    """Apps that wait for it."""


@dataclass(frozen=True, slots=True)
class SlotsStatistics:
    """The counts of `slots.Slots`."""

    size: int
    held: int
    reserved: int
    """Slots that were taken and are not used yet."""
    waiting: int
    """Apps that were refused and wait."""
    short: int
    """Waiting apps that wait for the node's room, not for their own origin."""
    apps: int
    """Apps of which something is known."""
    origins: int

"""Whether Redis can be asked: what one part of a Bus finds out, all act on."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import trio

from taskd.errors import BusUnavailable
from taskd.runtime.logs import log_event

logger = logging.getLogger("taskd.buses.redis")


@dataclass(slots=True)
class Health:
    """Whether Redis can be asked; shared by all parts of a Bus."""

    unready: str | None = "the bus has not reached Redis yet"
    """Why it can't, or None."""
    outages: int = 0
    """How often it stopped being so."""
    hurry: trio.Event | None = None
    """Set to have the next beat at once."""

    def fail(self, error: BusUnavailable) -> None:
        """Note a failure; a beat will soon tell whether it lasts."""
        if self.unready is None:
            self.outages += 1
            log_event(logger, logging.ERROR, "the bus can't be used", reason=str(error))
        self.unready = str(error)
        if self.hurry is not None:
            self.hurry.set()

    def recover(self) -> None:
        """Note that it can be asked."""
        if self.unready is not None:
            log_event(logger, logging.INFO, "the bus can be used")
        self.unready = None

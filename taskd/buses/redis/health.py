"""Whether Redis can be used. All parts of a Bus share it: one notes, all act on it."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import trio

from taskd.errors import BusUnavailable
from taskd.runtime.logs import log_event

logger = logging.getLogger("taskd.buses.redis")


@dataclass(slots=True)
class Health:
    """Whether Redis can be used; shared by all parts of a Bus."""

    unready: str | None = "the bus has not reached Redis yet"
    """Why Redis can't be used, or None."""
    outages: int = 0
    """How often it became unusable."""
    hurry: trio.Event | None = None
    """Set to have the next heartbeat at once."""

    def fail(self, error: BusUnavailable) -> None:
        """Note a failure, and have a heartbeat find out soon whether it lasts."""
        if self.unready is None:
            self.outages += 1
            log_event(logger, logging.ERROR, "the bus can't be used", reason=str(error))
        self.unready = str(error)
        if self.hurry is not None:
            self.hurry.set()

    def recover(self) -> None:
        """Note that Redis can be used."""
        if self.unready is not None:
            log_event(logger, logging.INFO, "the bus can be used")
        self.unready = None

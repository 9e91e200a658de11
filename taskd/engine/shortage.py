"""Notices that tasks wait for a slot, or for room for their contents, and logs it once."""

from __future__ import annotations

import logging

from taskd.engine.contents import Contents
from taskd.engine.slots import Shortage, Slots
from taskd.runtime.logs import log_event

logger = logging.getLogger("taskd.worker")

BEGINS_AFTER = 2
ENDS_AFTER = 5
"""Looks in a row, a second apart, that begin and that end a shortage: a shorter one is a
burst."""

TOLD_EVERY_S = 60.0
"""A shortage that comes again sooner is not logged again."""


class ShortageWatch:
    """See the module.

    Args:
        slots: the slots that are watched.

    Attributes:
        lasting: the shortage as it was last seen; None before it has lasted for
            `BEGINS_AFTER` looks, and once it is over.
    """

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self.lasting: Shortage | None = None
        self._since = 0.0
        self._changed = 0
        """Looks in a row that contradicted `lasting`."""
        self._told_at = float("-inf")
        self._told = False

    def look(self, now: float) -> None:
        """Look whether there is a shortage. To be called every second.

        Args:
            now: in Trio's time.
        """
        found = self._slots.shortage()
        if (found is None) == (self.lasting is None):
            self._changed = 0
            self.lasting = found
        else:
            self._changed += 1
            if found is not None and self._changed >= BEGINS_AFTER:
                self._changed, self._since, self.lasting = 0, now, found
            elif found is None and self._changed >= ENDS_AFTER:
                self._changed, self.lasting = 0, None
                self._tell_end(now)
        if self.lasting is not None and not self._told:
            self._tell(self.lasting, now)

    def _tell(self, shortage: Shortage, now: float) -> None:
        if now - self._told_at < TOLD_EVERY_S:
            return
        self._told, self._told_at = True, now
        log_event(
            logger,
            logging.WARNING,
            "tasks wait for a place: see who holds most",
            held=shortage.held,
            of=shortage.size,
            waiting_apps=shortage.waiting,
            origins=shortage.holders_told(),
        )

    def _tell_end(self, now: float) -> None:
        if self._told:
            self._told = False
            log_event(
                logger,
                logging.INFO,
                "no task waits for a place any more",
                lasted_s=round(now - self._since, 1),
            )


class ContentsWatch:
    """Logs that tasks wait for room for their contents.

    Args:
        contents: the room that is watched.
    """

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._changed = 0
        self._since: float | None = None
        self._told_at = float("-inf")

    def look(self, now: float) -> None:
        """Look whether tasks wait. To be called every second.

        Args:
            now: in Trio's time.
        """
        waiting = self._contents.waiting
        if bool(waiting) == (self._since is not None):
            self._changed = 0
            return
        self._changed += 1
        if self._since is not None:
            if self._changed >= ENDS_AFTER:
                self._tell_end(now - self._since)
        elif self._changed >= BEGINS_AFTER and now - self._told_at >= TOLD_EVERY_S:
            self._since = self._told_at = now
            self._changed = 0
            log_event(
                logger,
                logging.WARNING,
                "tasks wait for room for their contents",
                waiting=waiting,
                held_bytes=self._contents.used,
                of_bytes=self._contents.most,
            )

    def _tell_end(self, lasted_s: float) -> None:
        self._since, self._changed = None, 0
        log_event(
            logger,
            logging.INFO,
            "no task waits for room for its content any more",
            lasted_s=round(lasted_s, 1),
        )

"""Notices receivers in trouble that tasks wait for, and logs each once."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from taskd.engine.slot_reports import Slowed
from taskd.engine.slots import Slots
from taskd.runtime.logs import log_event

logger = logging.getLogger("taskd.worker")

BEGINS_AFTER = 3
ENDS_AFTER = 5
"""Looks in a row, a second apart, that begin and that end a case: a shorter one is not
logged."""

TOLD_A_MINUTE = 10
_MINUTE_S = 60.0


@dataclass(slots=True)
class _Case:
    since: float
    seen: int = 0
    """Looks in a row that found it; once it is logged, looks in a row that did not."""
    told: bool = False


class PaceWatch:
    """See the module.

    Args:
        slots: the slots that are watched.
    """

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._cases: dict[str, _Case] = {}
        self._minute_ends = float("-inf")
        self._told = self._untold = 0

    def look(self, now: float) -> None:
        """Look which receivers tasks wait for. To be called every second.

        Args:
            now: in Trio's time.
        """
        found = {slowed.origin: slowed for slowed in self._slots.slowed()}
        if not found and not self._cases:
            return
        for origin, case in list(self._cases.items()):
            if origin not in found:
                self._miss(origin, case, now)
        for origin, slowed in found.items():
            self._find(self._cases.setdefault(origin, _Case(since=now)), slowed, now)

    def _find(self, case: _Case, slowed: Slowed, now: float) -> None:
        if case.told:
            case.seen = 0
            return
        case.seen += 1
        if case.seen < BEGINS_AFTER:
            return
        if now >= self._minute_ends:
            self._minute_ends, self._told, self._untold = now + _MINUTE_S, 0, 0
        if self._told == TOLD_A_MINUTE:
            if case.seen == BEGINS_AFTER:
                self._untold += 1
            return
        self._told += 1
        case.told, case.seen = True, 0
        log_event(
            logger,
            logging.WARNING,
            "a receiver is in trouble and is sent fewer attempts at once: its tasks wait",
            origin=slowed.origin or "unreadable URLs",
            at_once=slowed.at_once,
            because=slowed.because,
            waiting_apps=slowed.waiting,
            more=self._untold or None,
        )

    def _miss(self, origin: str, case: _Case, now: float) -> None:
        case.seen = case.seen + 1 if case.told else ENDS_AFTER
        if case.seen < ENDS_AFTER:
            return
        del self._cases[origin]
        if case.told:
            log_event(
                logger,
                logging.INFO,
                "no task waits for a receiver that was in trouble any more",
                origin=origin or "unreadable URLs",
                lasted_s=round(now - case.since, 1),
            )

"""Limits what an application is told of its attempts where anybody may create applications.

A stranger can point a linkUrl at any name or address, and read in the attempts what became
of it. So that this tells nothing of the network here, one sentence stands for all attempts
without a connection: the name does not exist, its address is denied, or nothing listens
there. Such an attempt ends at a multiple of `STEP_S`, and an inspection shows the same
until then. An attempt that fails on an address which only ``allowed_networks`` opens is
told likewise. The log has what the application is not told.
"""

from __future__ import annotations

import dataclasses

import trio

from taskd.delivery.egress import Egress
from taskd.delivery.progress import Progress
from taskd.delivery.verdict import AttemptResult
from taskd.domain.model import Outcome, Phase

STEP_S = 0.5
"""An attempt without a connection ends a multiple of this after it began, so that how
long it took does not tell what happened."""

HIDDEN_VARIABLES = frozenset({"address"})
"""Variables that an inspection of a running attempt leaves out."""

VEILED_PHASE = Phase.CONNECTING
"""The phase that an inspection shows of an attempt that it must not follow."""

_NOT_CONNECTED = frozenset({Phase.RESOLVING, Phase.CONNECTING})


class Discretion:
    """Decides what is told.

    Args:
        egress: knows which addresses are public.
    """

    def __init__(self, egress: Egress) -> None:
        self._egress = egress

    async def even_out(self, progress: Progress, began_at: float) -> None:
        """Delay the end of an attempt without a connection to a multiple of `STEP_S` after
        it began."""
        if progress.last in _NOT_CONNECTED:
            passed_s = trio.current_time() - began_at
            await trio.sleep((passed_s // STEP_S + 1) * STEP_S - passed_s)

    def told(self, result: AttemptResult, origin: str, progress: Progress) -> AttemptResult:
        """The result of an attempt, as the application may know it."""
        if result.error is None or progress.last is None:
            return result
        inside = self._is_inside(progress)
        if result.http_status is not None:
            where = f", {progress.address}"
            error = result.error.replace(where, "") if inside else result.error
            return dataclasses.replace(result, error=error, detail=result.error)
        if progress.last not in _NOT_CONNECTED and not inside:
            return result
        error = f"{origin} has no address that callbacks go to, or nothing answers there"
        outcome = Outcome.UNREACHABLE
        if result.outcome is Outcome.TIMED_OUT:
            error, outcome = f"{error} within the task's timeout", result.outcome
        return dataclasses.replace(result, outcome=outcome, error=error, detail=result.error)

    def veils(self, progress: Progress) -> bool:
        """Whether an inspection must not follow an attempt: how long a name is looked up,
        and whether a connection is tried next, would tell what `told` leaves out."""
        return progress.last in _NOT_CONNECTED or self._is_inside(progress)

    def _is_inside(self, progress: Progress) -> bool:
        return progress.address is not None and self._egress.is_inside(_ip(progress.address))


def _ip(address: str) -> str:
    """The IP address of ``IP:port``."""
    return address.rpartition(":")[0].strip("[]")
